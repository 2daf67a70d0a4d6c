"""How much the person in a clip is the person in a photo, on clips that are made of portraits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage import data
from torch import Tensor

from portraits import as_tensor, portrait
from sources import ROOT
from vivant.cli import main
from vivant.errors import InputError, LoadError
from vivant.evaluate import identity
from vivant.evaluate.identity import Embedding, Likeness, Near, Spread, Stack, likeness
from vivant.faces.dlib import SAME_PERSON
from vivant.media.decode import frames_in
from vivant.media.video import read_clip, write_clip

STACK = Stack.shipped()
GOLDEN = ROOT / "tests" / "golden"
SIDE = 320


def frame(*placed: tuple[str, float, int, int]) -> np.ndarray:
    """Portraits on grey, each at so many times the height of the frame, with its corner there."""
    canvas = torch.full((3, SIDE, 2 * SIDE), 128.0)
    for name, scale, top, left in placed:
        photo = portrait(name)
        height = round(SIDE * scale)
        size = height, round(photo.shape[2] * height / photo.shape[1])
        small = F.interpolate(photo[None], size, mode="bilinear", antialias=True)[0]
        small = small[:, : SIDE - top, : 2 * SIDE - left]
        canvas[:, top : top + small.shape[1], left : left + small.shape[2]] = small
    return canvas.round().byte().permute(1, 2, 0).numpy()


BLANK = frame()
MOVED = [("obama.jpg", 1.0, 0, 10), ("obama.jpg", 0.8, 20, 100), ("obama.jpg", 1.2, 0, 200)]


def write(path: Path, *frames: np.ndarray) -> str:
    write_clip(np.stack(frames), path, 8)
    return str(path)


def saved(path: Path, photo: Tensor) -> str:
    Image.fromarray(photo.byte().permute(1, 2, 0).numpy()).save(path)
    return str(path)


@pytest.fixture(scope="module")
def persons() -> dict[str, Embedding]:
    names = {"Obama": "obama2.jpg", "Biden": "biden.jpg", "Collins": "astronaut"}
    return {
        who: STACK.person(Image.fromarray(portrait(name).byte().permute(1, 2, 0).numpy()))
        for who, name in names.items()
    }


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("clips") / "moved.apng", *(frame(one) for one in MOVED))


def test_another_photo_of_the_person_is_the_same_and_that_of_another_is_not(persons, moved):
    own, other = (likeness(STACK, persons[who], moved) for who in ("Obama", "Biden"))
    assert all([own.similarity, own.distance, other.similarity, other.distance])
    assert (own.frames, own.faces, own.share, own.grades) == (3, 3, 1.0, ())
    assert (own.same_person, other.same_person) == (1.0, 0.0)
    assert own.distance.max < SAME_PERSON < other.distance.min
    assert own.similarity.min > other.similarity.max
    assert own.space == other.space == "dlib-128"


def test_blank_frames_lower_the_share_and_nothing_else(persons, moved, tmp_path):
    plain = likeness(STACK, persons["Obama"], moved)
    shots = [frame(one) for one in MOVED]
    blanks = likeness(STACK, persons["Obama"], write(tmp_path / "b.apng", BLANK, *shots, BLANK, BLANK))
    assert (blanks.frames, blanks.faces, blanks.share) == (6, 3, 0.5)
    assert (blanks.similarity, blanks.distance) == (plain.similarity, plain.distance)
    assert blanks.same_person == plain.same_person == 1.0
    assert plain.farthest is not None
    assert blanks.farthest == plain.farthest + 1


def test_of_two_people_the_nearer_one_counts(persons, tmp_path):
    """Biden's face is larger, Obama's is surer: neither decides."""
    places = [("obama.jpg", 0.8, 10, 0), ("biden.jpg", 1.6, 0, 280)]
    clip = write(tmp_path / "two.apng", frame(*places), frame(*places[::-1]))
    first, second = STACK.detector.faces_in(as_tensor(frame(*places)))
    assert first.center[0] < second.center[0]
    assert 1.2 * first.area < second.area
    for who in ("Obama", "Biden"):
        assert likeness(STACK, persons[who], clip).same_person == 1.0
    assert likeness(STACK, persons["Collins"], clip).same_person == 0.0


def test_numbers_are_those_of_their_definitions(persons, moved):
    """The angle and the distance of embeddings that are made here one by one."""
    seen = likeness(STACK, persons["Obama"], moved)
    due: list[tuple[float, float]] = []
    for shot in (as_tensor(frame(one)) for one in MOVED):
        with torch.no_grad():
            a = STACK.recogniser.embed(shot, STACK.detector.faces_in(shot)[0].points)[0].numpy()
        b = persons["Obama"].values.numpy()
        due.append((float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), float(np.linalg.norm(a - b))))
    for spread, values in zip((seen.similarity, seen.distance), zip(*due, strict=True), strict=True):
        assert isinstance(spread, Spread)
        wanted = np.mean(values), np.median(values), min(values), max(values)
        assert (spread.mean, spread.median, spread.min, spread.max) == pytest.approx(wanted, abs=1e-5)
    assert seen.farthest == int(np.argmax([distance for _, distance in due]))


def test_one_frame_of_several_is_looked_at(persons, tmp_path):
    clip = write(tmp_path / "a.apng", BLANK, BLANK, frame(MOVED[0]), BLANK)
    seen = likeness(STACK, persons["Obama"], clip, every=2)
    assert (seen.frames, seen.faces, seen.farthest) == (2, 1, 2)
    with pytest.raises(InputError, match="E-EVAL-EVERY"):
        likeness(STACK, persons["Obama"], clip, every=0)


def test_a_clip_without_a_face_has_no_values_and_says_so(persons, tmp_path):
    seen = likeness(STACK, persons["Obama"], write(tmp_path / "a.apng", BLANK, BLANK))
    assert seen == Likeness("dlib-128", seen.file, 2, 0, None, None, None, None)
    assert [grade.code for grade in seen.grades] == ["W-EVAL-NO-FACE"]
    assert "W-EVAL-NO-FACE" in seen.summary()


def test_spaces_are_not_compared(persons):
    stranger = Embedding("antelopev2-512", persons["Obama"].values)
    for compare in (stranger.similarity, stranger.distance):
        with pytest.raises(InputError, match="E-EVAL-SPACE"):
            compare(persons["Obama"])
    with pytest.raises(InputError, match="E-EVAL-SPACE"):
        STACK.nearest(stranger, frame(MOVED[0]))


def test_the_nearest_is_so_by_distance_where_there_is_one():
    assert min(Near(0.9, 0.7), Near(0.8, 0.4), key=lambda near: near.away).distance == 0.4
    assert min(Near(0.9, None), Near(0.8, None), key=lambda near: near.away).similarity == 0.9


# ------------------------------------------------------------------------------------------ antelopev2


@pytest.fixture
def antelope(tmp_path: Path) -> Path:
    folder = tmp_path / "antelope"
    folder.mkdir()
    for name, file in (("small_scrfd.onnx", "scrfd_10g_bnkps.onnx"), ("small_arcface.onnx", "glintr100.onnx")):
        (folder / file).write_bytes((GOLDEN / name).read_bytes())
    return folder


def test_antelope_is_measured_by_angles_alone(antelope, tmp_path, capsys):
    """Its networks are random: what they find in a picture, they find there again."""
    coffee = data.coffee()
    photo = saved(tmp_path / "p.png", as_tensor(coffee))
    clip = write(tmp_path / "a.apng", coffee, np.ascontiguousarray(coffee[::-1]))
    assert main(["eval", "identity", photo, clip, "--faces", str(antelope), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    (row,) = values["clips"]
    assert values["space"] == row["space"] == "antelopev2-512"
    assert (values["threshold"], row["distance"], row["same_person"]) == (None, None, None)
    stack, upside_down = Stack.antelope(antelope), as_tensor(np.ascontiguousarray(coffee[::-1]))
    person = stack.person(photo).values
    due = max(
        F.cosine_similarity(person, stack.recogniser.embed(upside_down, face.points)[0], dim=0).item()
        for face in stack.detector.faces_in(upside_down)
    )
    assert due < 1 - 1e-5
    assert (row["similarity"]["min"], row["similarity"]["max"]) == pytest.approx((due, 1), abs=1e-6)
    assert (row["frames"], row["faces"], row["farthest"]) == (2, 2, 1)
    (antelope / "glintr100.onnx").unlink()
    assert main(["eval", "identity", photo, clip, "--faces", str(antelope), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E-FACE-MODEL"


# ------------------------------------------------------------------------------------------ the command


def test_the_command_prints_one_object_or_a_line_for_each_clip(moved, tmp_path, capsys):
    photo = saved(tmp_path / "p.png", portrait("obama2.jpg"))
    blank = write(tmp_path / "blank.apng", BLANK)
    assert main(["eval", "identity", photo, moved, blank, "--json"]) == 6
    values = json.loads(capsys.readouterr().out)
    assert (values["photo"], values["space"], values["threshold"]) == (photo, "dlib-128", SAME_PERSON)
    first, second = values["clips"]
    assert (first["file"], first["same_person"], first["grades"]) == (moved, 1.0, [])
    assert (second["share"], second["similarity"], second["distance"], second["farthest"]) == (0.0, None, None, None)
    assert [grade["code"] for grade in second["grades"]] == ["W-EVAL-NO-FACE"]
    assert main(["eval", "identity", photo, moved]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert all(part in said for part in (moved, "the same person in 100 %", "dlib-128"))


def test_a_face_of_the_photo_is_chosen(moved, tmp_path, capsys):
    places = [("obama.jpg", 0.8, 10, 0), ("biden.jpg", 1.6, 0, 280)]
    photo = saved(tmp_path / "p.png", as_tensor(frame(*places)))
    for face, due in (("0", 1.0), ("1", 0.0), ("largest", 0.0)):
        assert main(["eval", "identity", photo, moved, "--face", face, "--every", "3", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["clips"][0]["same_person"] == due


def test_what_cannot_work_is_refused_before_any_network_runs(moved, tmp_path, monkeypatch, capsys):
    """As for `eval clips`, a clip that is missing stops it; here before the others took their time."""
    photo = saved(tmp_path / "p.png", portrait("astronaut"))
    blank = saved(tmp_path / "blank.png", as_tensor(BLANK))
    assert main(["eval", "identity", blank, moved, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E-FACE-NONE"

    def reached(*_: object) -> None:
        raise AssertionError("a network was loaded")

    monkeypatch.setattr(identity.Stack, "shipped", reached)
    refused = {"E-CLIP-MISSING": [str(tmp_path / "none.mp4")], "E-EVAL-EVERY": ["--every", "0"]}
    for code, more in {**refused, "E-FACE-CHOICE": ["--face", "left"]}.items():
        assert main(["eval", "identity", photo, moved, *more, "--json"]) in (2, 3)
        assert json.loads(capsys.readouterr().out)["error"]["code"] == code


# ------------------------------------------------------------------------------------------ frame by frame


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.webp", "a.apng", "frames"])
def test_frames_come_as_the_whole_clip_has_them(name, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 40, 3), dtype=np.uint8)
    path = tmp_path / name
    if path.suffix:
        write_clip(frames, path, 8)
    else:
        path.mkdir()
        for i, pixels in enumerate(frames):
            Image.fromarray(pixels).save(path / f"{i:03}.png")
    assert np.array_equal(np.stack(list(frames_in(path))), read_clip(path)[0])


def test_a_frame_is_decoded_when_it_is_asked_for(tmp_path, monkeypatch):
    """Not the second one before the first is used."""
    num = 0
    original = Image.Image.convert

    def counted(image: Image.Image, *args: object, **more: object) -> Image.Image:
        nonlocal num
        num += 1
        return original(image, *args, **more)  # pyright: ignore[reportArgumentType]

    clip = write(tmp_path / "a.apng", *[np.full((16, 16, 3), 40 * i, dtype=np.uint8) for i in range(5)])
    monkeypatch.setattr(Image.Image, "convert", counted)
    frames = frames_in(clip)
    next(frames)
    assert num == 1


def test_damage_has_a_code(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    for name in ("a.apng", "a.mp4"):
        whole = Path(write(tmp_path / name, *frames)).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
        with pytest.raises(LoadError, match="E-CLIP-BROKEN"):
            list(frames_in(tmp_path / name))
    with pytest.raises(LoadError, match="E-CLIP-MISSING"):
        next(frames_in(tmp_path / "none.gif"))
