"""`vivant demo`, shorter: real models, real pictures, every file that it promises."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sources import ROOT
from vivant import pocket
from vivant.cli import main
from vivant.cli.demo import CLIPS, ENLARGE, PERSON, together
from vivant.media.recipe import read_recipe
from vivant.media.video import read_clip

FILES = {f"{clip.name}{suffix}" for clip in CLIPS for suffix in (".mp4", ".gif")} | {"demo.gif", "index.html"}


class Links(HTMLParser):
    """What a page shows and links."""

    def __init__(self, text: str):
        super().__init__()
        self.found: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found |= {value for name, value in attrs if name in ("src", "href") and value}


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "new" / "out"
    assert main(["demo", "-o", str(folder), "--frames", "3", "--steps", "2"]) == 0
    return folder


def test_a_drawing_a_photo_and_a_person_with_three_clips_each(out):
    assert {path.name for path in out.iterdir()} >= FILES
    assert sorted(clip.picture for clip in CLIPS) == ["drawing"] * 3 + ["person"] * 3 + ["photo"] * 3
    for clip in CLIPS:
        frames, fps = read_clip(out / f"{clip.name}.gif")
        assert frames.shape == (9 if clip.picture == PERSON else 3, 64 * ENLARGE, 64 * ENLARGE, 3)
        assert fps == 8
        assert read_recipe(out / f"{clip.name}.mp4")["request"]["prompt"] == clip.prompt
    everything, _ = read_clip(out / "demo.gif")
    assert everything.shape == (9, 3 * 64 * ENLARGE, 4 * 64 * ENLARGE, 3)
    with Image.open(pocket.PICTURES["photo"]) as photo:
        shown = np.asarray(photo.convert("RGB").resize((256, 256))).astype(int)
    assert np.abs(everything[0, 256:512, :256].astype(int) - shown).mean() < 12  # the palette of a gif


def test_the_page_shows_all_of_them(out):
    links = Links((out / "index.html").read_text()).found
    assert links >= {"drawing.png", "photo.png", "person.png"} | {f"{clip.name}.mp4" for clip in CLIPS}
    assert {name for name in links if not (out / name).is_file()} == set()


def test_nothing_is_replaced_unasked(out, capsys):
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert main(["demo", "-o", str(out), "--frames", "3", "--steps", "2", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E-OUTPUT-EXISTS"
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_picture_beside_the_clips_is_not_replaced_either(tmp_path, capsys):
    (tmp_path / "photo.png").write_bytes(b"mine")
    assert main(["demo", "-o", str(tmp_path), "--frames", "3", "--steps", "2", "--json"]) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E-OUTPUT-EXISTS"


def test_a_clip_of_the_demo_is_made_again(out, capsys):
    """The recipe names the models that ship, so nobody has to say where they are."""
    name = CLIPS[0].name
    assert main(["redo", str(out / f"{name}.gif"), "--image", str(pocket.PICTURES["drawing"]), "--offline"]) == 0
    assert "The same frames as before." in capsys.readouterr().out
    again, _ = read_clip(out / f"{name}-redo.gif")
    assert np.array_equal(again, read_clip(out / f"{name}.gif")[0])


def test_the_person_is_left_out_where_no_face_can_be_found(tmp_path, capsys, monkeypatch):
    """onnxruntime is an extra of the package."""
    monkeypatch.setattr("vivant.cli.demo.find_spec", lambda name: None)
    assert main(["demo", "-o", str(tmp_path), "--frames", "3", "--steps", "1"]) == 0
    assert "vivant[faces]" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} >= {name for name in FILES if not name.startswith(PERSON)}
    assert not list(tmp_path.glob(f"{PERSON}*"))
    assert read_clip(tmp_path / "demo.gif")[0].shape == (3, 2 * 64 * ENLARGE, 4 * 64 * ENLARGE, 3)


def test_the_last_frame_of_a_shorter_clip_stays():
    short, long = (np.arange(n * 12, dtype=np.uint8).reshape(n, 2, 2, 3) for n in (2, 3))
    frames = together([[short, long], [long, long]])
    assert frames.shape == (3, 4, 4, 3)
    assert np.array_equal(frames[2, :2, :2], short[1])
    assert np.array_equal(frames[:, 2:, 2:], long)


def test_the_pictures_have_their_notice():
    notices = (ROOT / "THIRD_PARTY_NOTICES").read_text(encoding="utf-8")
    assert "src/vivant/pocket/pictures/photo.jpg" in notices
    assert sum(path.stat().st_size for path in pocket.PICTURES.values()) < 100_000
