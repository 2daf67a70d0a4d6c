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

from vivant.errors import InputError, OutputError, VivantWarning
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
@pytest.mark.parametrize("sizes", [(1, 8, 4), (1,) * 16, (7, 8)], ids=["1 8 4 4", "one by one", "7 8 2"])
@pytest.mark.parametrize("name", KINDS)
def test_parts_make_the_same_clip_as_the_whole(tmp_path, scratch, name, sizes):
    frames = clip(17, 95, 63)
    whole = write_clip(
        frames, tmp_path / f"whole-{name}" if name != "x/" else f"{tmp_path}/whole/", 12.5, recipe=RECIPE
    )
    spelled = f"{tmp_path}/{name}"
    with ClipWriter(spelled, 12.5) as writer:
        for part in parts(frames, *sizes):
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


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_film_of_odd_sides_is_padded_as_the_whole_is(tmp_path, suffix):
    def in_parts(frames):
        with ClipWriter(tmp_path / f"parts{suffix}", 8) as writer:
            for part in parts(frames, 1, 1):
                writer.write(part)
            writer.finish()

    said = []
    for write in (lambda frames: write_clip(frames, tmp_path / f"whole{suffix}", 8), in_parts):
        with pytest.warns(VivantWarning, match="W-VIDEO-PADDED") as caught:
            write(clip(3, 95, 63))
        said.append([str(warning.message) for warning in caught])
    assert said[0] == said[1]
    assert len(said[0]) == 1


@pytest.mark.parametrize("name", ["x.mp4", "x.webm", "x/"])
def test_frames_are_encoded_before_the_end(tmp_path, name):
    path = tmp_path / name
    with ClipWriter(f"{tmp_path}/{name}", 8) as writer:
        writer.write(clip(6))
        deadline = time.monotonic() + 20
        while writer.encoded < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert writer.encoded == 6
        assert not path.exists()
        writer.finish()
    assert len(read_clip(path)[0]) == 6


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


@pytest.mark.parametrize("name", ["x.mp4", "x.gif", "x/"])
def test_a_failure_is_told_again_until_the_end(tmp_path, monkeypatch, scratch, name):
    """Whoever catches it and goes on does not get a clip with a hole."""
    real, calls = encode.encoder, []

    def failing(*args):
        made = real(*args)
        add = made.add

        def second(frames):
            calls.append(len(frames))
            if len(calls) == 2:
                raise OSError(28, "No space left on device")
            add(frames)

        made.add = second
        return made

    monkeypatch.setattr(encode, "encoder", failing)
    told: list[OutputError] = []
    with ClipWriter(f"{tmp_path}/{name}", 8) as writer:
        for _ in range(12):
            try:
                writer.write(clip(1))
            except OutputError as error:
                told.append(error)
        assert len(told) >= 12 - 2 - ClipWriter.AHEAD
        for _ in range(2):
            assert code_of(OutputError, writer.finish, RECIPE) == "E-OUTPUT-WRITE"
    assert {error.code for error in told} == {"E-OUTPUT-WRITE"}
    assert all("No space left" in str(error) for error in told)
    assert left_in(tmp_path) | left_in(scratch) == set()


def test_a_failure_is_told_by_the_next_call(tmp_path, monkeypatch):
    def add(self, frames):
        failed.set()
        raise OSError(28, "No space left on device")

    failed = threading.Event()
    monkeypatch.setattr(encode.Film, "add", add)
    with ClipWriter(tmp_path / "x.mp4", 8) as writer:
        writer.write(clip(1))
        assert failed.wait(20)
        while not writer._waiting[0].done():
            time.sleep(0.001)
        assert code_of(OutputError, writer.write, clip(1)) == "E-OUTPUT-WRITE"


def test_an_interrupt_while_the_thread_works_leaves_nothing(tmp_path, monkeypatch, scratch):
    """Parts that wait are given up; the one at work ends first."""
    begun, done = threading.Event(), []
    real = encode.Film.add

    def add(self, frames):
        begun.set()
        time.sleep(0.2)
        real(self, frames)
        done.append(len(frames))

    monkeypatch.setattr(encode.Film, "add", add)

    def interrupted():
        with ClipWriter(tmp_path / "x.mp4", 8) as writer:
            for _ in range(3):
                writer.write(clip(1))
            assert begun.wait(20)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == [1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]
    assert left_in(tmp_path) | left_in(scratch) == set()


@pytest.mark.parametrize("name", ["x.mp4", "x.gif", "x/"])
def test_an_array_may_be_filled_anew(tmp_path, name):
    frames, hand = clip(6), np.empty((1, 64, 96, 3), np.uint8)
    with ClipWriter(f"{tmp_path}/{name}", 8) as writer:
        for frame in frames:
            hand[0] = frame
            writer.write(hand)
        hand[:] = 0
        written = writer.finish()
    whole = write_clip(frames, f"{tmp_path}/whole/" if name == "x/" else tmp_path / f"whole-{name}", 8)
    assert np.array_equal(read_clip(written)[0], read_clip(whole)[0])


def test_the_options_are_those_of_the_whole(tmp_path):
    for name, options in (("x.mp4", {"quality": 1}), ("x.webm", {"bitrate": 40_000}), ("x.webp", {"quality": 2})):
        whole = write_clip(clip(6), tmp_path / f"whole-{name}", 8, **options)
        best = write_clip(clip(6), tmp_path / f"best-{name}", 8, quality=10)
        with ClipWriter(tmp_path / name, 8, sidecar=False, **options) as writer:
            writer.write(clip(6)[:2])
            writer.write(clip(6)[2:])
            written = writer.finish(RECIPE)
        assert np.array_equal(read_clip(written)[0], read_clip(whole)[0])
        assert not np.array_equal(read_clip(written)[0], read_clip(best)[0])
        assert read_recipe(written) == RECIPE
        assert not sidecar_of(written).exists()


def test_used_only_inside_its_block_until_finish(tmp_path):
    writer = ClipWriter(tmp_path / "x.mp4", 8, overwrite=True)
    assert code_of(InputError, writer.write, clip(1)) == "E-OUTPUT-CLOSED"
    with writer:
        writer.write(clip(2))
        assert code_of(InputError, writer.finish, {"no": "scheme"}) == "E-RECIPE-VALUE"
        writer.write(clip(1))  # a recipe that was refused ends nothing
        writer.finish(RECIPE)
        for call in (lambda: writer.write(clip(1)), writer.finish):
            assert code_of(InputError, call) == "E-OUTPUT-CLOSED"
    assert code_of(InputError, writer.write, clip(1)) == "E-OUTPUT-CLOSED"
    assert len(read_clip(tmp_path / "x.mp4")[0]) == 3


def test_a_missing_place_for_temporary_files_has_a_code(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert code_of(OutputError, ClipWriter(tmp_path / "x.mp4", 8).__enter__) == "E-OUTPUT-WRITE"


def test_refused_before_any_frame(tmp_path):
    write_clip(clip(1), tmp_path / "old.mp4", 8)
    assert code_of(OutputError, ClipWriter, tmp_path / "old.mp4", 8) == "E-OUTPUT-EXISTS"
    assert code_of(InputError, ClipWriter, tmp_path / "x.avi", 8) == "E-OUTPUT-SUFFIX"
    assert code_of(OutputError, ClipWriter, tmp_path / "no" / "x.mp4", 8) == "E-OUTPUT-FOLDER"
    assert code_of(InputError, ClipWriter, tmp_path / "x.gif", 80) == "E-OUTPUT-FPS"
    assert code_of(InputError, ClipWriter, tmp_path / "x.mp4", 8, enlarge=0) == "E-ENLARGE"
    assert code_of(InputError, ClipWriter, tmp_path / "x.mp4", 8, quality=11) == "E-OUTPUT-QUALITY"
    assert code_of(InputError, ClipWriter, tmp_path / "x.gif", 8, bitrate=9000) == "E-OUTPUT-QUALITY"
    assert left_in(tmp_path) == {"old.mp4"}


@pytest.mark.parametrize("name", ["x.mp4", "x.gif"])
def test_frames_that_do_not_fit_are_refused(tmp_path, name):
    with ClipWriter(tmp_path / name, 8) as writer:
        writer.write(clip(1))
        assert code_of(InputError, writer.write, clip(1, 98)) == "E-FRAMES-SHAPE"
        assert code_of(InputError, writer.write, clip(1).astype(np.int64)) == "E-FRAMES-RANGE"
        assert code_of(InputError, writer.write, clip(1).astype(np.float32)) == "E-FRAMES-RANGE"
        assert code_of(InputError, writer.write, clip(1)[:0]) == "E-FRAMES-EMPTY"
    with ClipWriter(tmp_path / name, 8) as writer:
        assert code_of(InputError, writer.finish) == "E-FRAMES-EMPTY"


def test_enlarged(tmp_path):
    with ClipWriter(tmp_path / "x.mp4", 8, enlarge=3) as writer:
        writer.write(clip(2, 32, 16))
        writer.finish()
    assert (probe(tmp_path / "x.mp4").width, probe(tmp_path / "x.mp4").height) == (96, 48)
