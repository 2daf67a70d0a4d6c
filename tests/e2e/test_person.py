"""From a photo alone to a film: pipeline, `Portrait` and `vivant portrait`, and what is refused before models load."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import tiny_consisid as small
import tiny_faces
import vivant.api.portrait
from commands import Vivant
from vivant import ConsisIDPipeline, InputError, Portrait
from vivant.cli.screen import Code
from vivant.faces.antelope import Scrfd
from vivant.faces.detect import RetinaFace
from vivant.faces.encoders import Encoders
from vivant.faces.face import Face, average
from vivant.media.recipe import read_recipe

SHORT = {"num_inference_steps": 2, "seed": 7}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ConsisID with its face encoders, small."""
    folder = tmp_path_factory.mktemp("person") / "consisid"
    small.pipeline(is_kps=True, **tiny_faces.TRANSFORMER).save_pretrained(folder)
    return tiny_faces.write(folder)


@pytest.fixture(scope="module")
def portrait(repository: Path) -> Portrait:
    return Portrait.from_pretrained(repository, dtype=torch.float32)


@pytest.fixture
def film(vivant_: Vivant, repository: Path, tmp_path: Path) -> Vivant:
    """Runs `vivant portrait` in a folder with two photos."""
    Image.fromarray(data.astronaut()).save(tmp_path / "photo.png")
    Image.fromarray(data.astronaut()[:, 60:]).save(tmp_path / "other.png")
    fixed = ["--model", str(repository), "--steps", "2", "--seed", "7", "--dtype", "float32"]

    def run(*args: str, photo: str = "photo.png", output: str = "a.mp4") -> Any:
        return vivant_("portrait", photo, "a sea", *fixed, "-o", output, *args)

    return run


def photo() -> Image.Image:
    return Image.fromarray(data.astronaut())


# ------------------------------------------------------------------------------------------------------------ Python


def test_the_pipeline_reads_the_face_in_a_photo(repository):
    pipe = ConsisIDPipeline.from_pretrained(repository)
    pipe.set_progress_bar_config(disable=True)
    face = Encoders.from_pretrained(repository).encode(photo())
    asked = {name: value for name, value in small.asked().items() if name not in ("image", "id_cond", "id_vit_hidden")}
    direct = pipe(image=photo(), **asked).frames
    given = {"image": face.image, "id_cond": face.id_cond, "id_vit_hidden": face.id_vit_hidden}
    asked["generator"] = torch.Generator().manual_seed(5)
    assert torch.equal(direct, pipe(**given, kps_cond=face.keypoints, **asked).frames)
    with pytest.raises(InputError, match="E-KEY-POINTS"):
        pipe(image=photo(), kps_cond=face.keypoints, **asked)


def test_a_pipeline_that_was_put_together_asks_for_an_identity():
    pipe = small.pipeline()
    asked = {name: value for name, value in small.asked().items() if name not in ("id_cond", "id_vit_hidden")}
    with pytest.raises(InputError, match="E-IDENTITY-NONE"):
        pipe(**asked)


def test_a_photo_a_face_and_its_file_give_the_same_film(portrait, tmp_path):
    direct = portrait.film(photo(), "a sea", **SHORT)
    face = portrait.face(photo())
    path = face.save(tmp_path / "face.safetensors")
    for given in (face, path, str(path), [face]):
        again = portrait.film(given, "a sea", **SHORT)
        assert np.array_equal(again.clips[0], direct.clips[0])
        assert again.recipe["identity"] == direct.recipe["identity"]
        assert again.recipe["image"] == direct.recipe["image"]
    assert direct.clips[0].std() > 5


def test_several_photos_of_a_person(portrait):
    photos = [photo(), Image.fromarray(data.astronaut()[:, 60:])]
    together = portrait.face(photos)
    due = average([portrait.face(one) for one in photos])
    assert torch.equal(together.id_cond, due.id_cond)
    assert not torch.equal(together.id_cond, portrait.face(photos[0]).id_cond)
    people = portrait.film(photos, "a sea", **SHORT)
    assert len(people.clips) == len(set(people.recipe["identity"]["digests"])) == 2


def test_what_nothing_would_read_is_refused(portrait, monkeypatch):
    face = portrait.face(photo())
    monkeypatch.setattr(ConsisIDPipeline, "encode_faces", lambda *_, **__: pytest.fail("faces were looked for"))
    with pytest.raises(InputError, match="E-FACE-CHOICE"):
        portrait.film(face, choice=0)
    with pytest.raises(InputError, match="E-ARG-VALUE"):
        portrait.film(face, identity=face)
    with pytest.raises(InputError, match="E-IDENTITY-TYPE"):
        portrait.film([face, photo()])
    with pytest.raises(InputError, match="E-SIZE"):
        portrait.film(photo(), "a sea", height=17)


# ------------------------------------------------------------------------------------------------------ command line


def test_a_photo_is_enough(film, vivant_, repository):
    ran = film("--save-face", "me.safetensors")
    assert ran.code == Code.OK, ran.err
    recipe = read_recipe("a.mp4")
    assert len(recipe["identity"]["digests"]) == 1
    assert Face.load("me.safetensors").image.size == (512, 512)
    again = film(photo="me.safetensors", output="b.mp4")
    assert again.code == Code.OK, again.err
    assert read_recipe("b.mp4")["frames_hash"] == recipe["frames_hash"]
    redone = vivant_("redo", "a.mp4", "--model", str(repository))
    assert redone.code == Code.OK, redone.err


def test_more_photos_and_a_chosen_face(film):
    assert film("--photo", "other.png", "--face", "1", output="b.gif").code == Code.OK
    assert film("--face", "1", output="c.gif").code == Code.OK
    digests = [read_recipe(name)["identity"]["digests"] for name in ("b.gif", "c.gif")]
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("options", "code", "error"),
    [
        (["--face", "900"], Code.INPUT, "E-FACE-CHOICE"),
        (["--face", "nose"], Code.INPUT, "E-FACE-CHOICE"),
        (["--face", "1.5"], Code.INPUT, "E-FACE-CHOICE"),
        (["--photo", "absent.png"], Code.INPUT, "E-IMAGE-MISSING"),
        (["--save-face", "me.png"], Code.OUTPUT, "E-OUTPUT-SUFFIX"),
        (["--save-face", "away/me.safetensors"], Code.OUTPUT, "E-OUTPUT-FOLDER"),
        (["--identity", "x.safetensors", "--face", "1"], Code.INPUT, "E-FACE-CHOICE"),
    ],
)
def test_refused_before_the_model_is_loaded(film, monkeypatch, options, code, error):
    monkeypatch.setattr(vivant.api.portrait.Portrait, "from_pretrained", lambda *_, **__: pytest.fail("was loaded"))
    ran = film(*options, "--json")
    assert (ran.code, ran.json["error"]["code"]) == (code, error)
    assert sorted(path.name for path in Path().iterdir()) == ["other.png", "photo.png"]


def test_no_face_is_an_error_before_the_model_is_loaded(film, monkeypatch):
    monkeypatch.setattr(vivant.api.portrait.Portrait, "from_pretrained", lambda *_, **__: pytest.fail("was loaded"))
    for detector in (RetinaFace, Scrfd):
        monkeypatch.setattr(detector, "faces_in", lambda *_: [])
    ran = film("--save-face", "me.safetensors", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (Code.INPUT, "E-FACE-NONE")
    assert not Path("me.safetensors").exists()


# --------------------------------------------------------------------------------------------------------- face check


def test_photos_are_checked_and_drawn(vivant_):
    large = Image.fromarray(data.astronaut()).resize((1024, 1024))
    large.save("anna.png")
    Image.new("RGB", (300, 300)).save("dark.png")
    ran = vivant_("face", "check", "anna.png")
    assert (ran.code, ran.err) == (Code.OK, "")
    assert ran.out.startswith("anna.png: 1 face; number 0 at ")
    ran = vivant_("face", "check", "anna.png", "dark.png", "--json", "-o", "seen.png")
    assert ran.code == Code.GRADED
    first, second = ran.json["photos"]
    assert (first["chosen"], first["grades"], first["drawn"]) == (0, [], "seen-0.png")
    assert (second["chosen"], [grade["code"] for grade in second["grades"]]) == (None, ["E-FACE-NONE"])
    drawn = np.array(Image.open("seen-0.png"))
    left, top, _, _ = (round(side) for side in first["faces"][0]["box"])
    assert drawn[top, left + 9].tolist() == [0, 160, 60]
    assert 0.001 < (drawn != np.array(large)).any(axis=2).mean() < 0.1


def test_a_photo_that_cannot_be_read_does_not_keep_the_others_from_it(vivant_):
    Image.fromarray(data.astronaut()).save("anna.png")
    ran = vivant_("face", "check", "absent.png", "anna.png", "--json")
    assert ran.code == Code.INPUT
    first, second = ran.json["photos"]
    assert (first["error"]["code"], second["chosen"]) == ("E-IMAGE-MISSING", 0)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["-o", "seen.txt"], "E-OUTPUT-SUFFIX"),
        (["-o", "photo.png", "--overwrite"], "E-OUTPUT-TWICE"),
        (["--face", "mouth"], "E-FACE-CHOICE"),
    ],
)
def test_a_check_that_cannot_be_written_is_refused(vivant_, options, code):
    assert vivant_("face", "check", "photo.png", *options, "--json").json["error"]["code"] == code
