"""Clips that are written while their frames are still being made."""

import json
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from vivant.errors import InputError, OutputError
from vivant.media import encode
from vivant.media.recipe import read_recipe, sidecar_of
from vivant.media.video import ClipWriter, probe, read_clip, write_clip

KINDS = ("x.mp4", "x.webm", "x.gif", "x.webp", "x.apng", "x.png", "x/")
RECIPE = {"vivant": 1, "kind": "pia", "seed": 7}


def clip(num_frames: int, width: int = 96, height: int = 64) -> np.ndarray:
    """A slow zoom into the astronaut."""
    picture = Image.fromarray(data.astronaut())
    boxes = [(2 * i, i, 500 - i, 510 - 2 * i) for i in range(num_frames)]
    return np.stack([np.asarray(picture.resize((width, height), 1, box=box)) for box in boxes])


def code_of(error, function, *args, **kwargs) -> str:
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    return caught.value.code


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory, monkeypatch) -> Path:
    """Where temporary files lie, so that what is left can be seen."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def parts(frames: np.ndarray, *sizes: int):
    ends = np.cumsum(sizes).tolist()
    return [frames[start:end] for start, end in zip([0, *ends], [*ends, len(frames)], strict=True)]


@pytest.mark.filterwarnings("ignore:.*W-VIDEO-PADDED")
@pytest.mark.parametrize("name", KINDS)
def test_parts_make_the_same_clip_as_the_whole(tmp_path, scratch, name):
    frames = clip(17, 95, 63)
    whole = write_clip(
        frames, tmp_path / f"whole-{name}" if name != "x/" else f"{tmp_path}/whole/", 12.5, recipe=RECIPE
    )
    spelled = f"{tmp_path}/{name}"
    with ClipWriter(spelled, 12.5) as writer:
        for part in parts(frames, 1, 8, 4):
            writer.write(part)
        written = writer.finish(RECIPE)
    assert written == Path(spelled)
    assert json.loads(sidecar_of(written).read_text()) == RECIPE
    sidecar_of(written).unlink()
    assert read_recipe(written) == RECIPE
    if name == "x/":
        assert [f.read_bytes() for f in sorted(written.glob("*.png"))] == [
            f.read_bytes() for f in sorted(whole.glob("*.png"))
        ]
    else:
        assert np.array_equal(read_clip(written)[0], read_clip(whole)[0])
        assert probe(written) == probe(whole)
        # WebM gives every file a number of its own.
        assert name == "x.webm" or written.read_bytes() == whole.read_bytes()
    assert left_in(scratch) == set()


def test_film_is_exact(tmp_path):
    with ClipWriter(tmp_path / "x.mp4", Fraction(30000, 1001)) as writer:
        writer.write(clip(5))
        writer.write(clip(4))
        writer.finish(RECIPE)
    info = probe(tmp_path / "x.mp4")
    assert (info.num_frames, info.fps, info.width, info.height) == (9, Fraction(30000, 1001), 96, 64)
    data = (tmp_path / "x.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_frames_are_encoded_before_the_end(tmp_path):
    with ClipWriter(tmp_path / "x.mp4", 8) as writer:
        writer.write(clip(6))
        deadline = time.monotonic() + 20
        while writer.encoded < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert writer.encoded == 6
        assert not (tmp_path / "x.mp4").exists()
        writer.finish()
    assert len(read_clip(tmp_path / "x.mp4")[0]) == 6


def test_few_parts_wait(tmp_path, monkeypatch):
    gate, most = threading.Event(), []
    real = encode.Film.add

    def add(self, frames):
        gate.wait(20)
        real(self, frames)

    monkeypatch.setattr(encode.Film, "add", add)
    with ClipWriter(tmp_path / "x.mp4", 8) as writer:
        for _ in range(ClipWriter.AHEAD):
            writer.write(clip(1))
        feeder = threading.Thread(target=lambda: (writer.write(clip(1)), most.append(1)))
        feeder.start()
        time.sleep(0.2)
        assert most == []  # the fifth waits until one is encoded
        gate.set()
        feeder.join(20)
        assert most == [1]
        writer.finish()


@pytest.mark.parametrize("name", ["x.mp4", "x.gif", "x/"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, None])
def test_leaving_early_leaves_nothing(tmp_path, scratch, name, failure):
    old = write_clip(clip(2), f"{tmp_path}/{name}", 8)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def leave():
        with ClipWriter(old if name != "x/" else f"{old}/", 8, overwrite=True) as writer:
            writer.write(clip(3))
            if failure is not None:
                raise failure

    if failure is None:
        leave()
    else:
        with pytest.raises(failure):
            leave()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert left_in(scratch) == set()


def test_what_the_encoder_refuses_arrives(tmp_path, monkeypatch, scratch):
    def add(self, frames):
        raise OutputError("E-OUTPUT-WRITE", "The disk is full.")

    monkeypatch.setattr(encode.Film, "add", add)

    def write():
        with ClipWriter(tmp_path / "x.mp4", 8) as writer:
            writer.write(clip(1))
            writer.finish()

    assert code_of(OutputError, write) == "E-OUTPUT-WRITE"
    assert left_in(tmp_path) | left_in(scratch) == set()


def test_refused_before_any_frame(tmp_path):
    write_clip(clip(1), tmp_path / "old.mp4", 8)
    assert code_of(OutputError, ClipWriter, tmp_path / "old.mp4", 8) == "E-OUTPUT-EXISTS"
    assert code_of(InputError, ClipWriter, tmp_path / "x.avi", 8) == "E-OUTPUT-SUFFIX"
    assert code_of(OutputError, ClipWriter, tmp_path / "no" / "x.mp4", 8) == "E-OUTPUT-FOLDER"
    assert code_of(InputError, ClipWriter, tmp_path / "x.gif", 80) == "E-OUTPUT-FPS"
    assert code_of(InputError, ClipWriter, tmp_path / "x.mp4", 8, enlarge=0) == "E-ENLARGE"


@pytest.mark.parametrize("name", ["x.mp4", "x.gif"])
def test_frames_that_do_not_fit_are_refused(tmp_path, name):
    with ClipWriter(tmp_path / name, 8) as writer:
        writer.write(clip(1))
        assert code_of(InputError, writer.write, clip(1, 98)) == "E-FRAMES-SHAPE"
        assert code_of(InputError, writer.write, clip(1).astype(np.int64)) == "E-FRAMES-RANGE"
    with ClipWriter(tmp_path / name, 8) as writer:
        assert code_of(InputError, writer.finish) == "E-FRAMES-EMPTY"


def test_enlarged(tmp_path):
    with ClipWriter(tmp_path / "x.mp4", 8, enlarge=3) as writer:
        writer.write(clip(2, 32, 16))
        writer.finish()
    assert (probe(tmp_path / "x.mp4").width, probe(tmp_path / "x.mp4").height) == (96, 48)
