"""Names that a file system can hardly hold, or not at all, and errors that hide no other."""

import errno
from pathlib import Path

import numpy as np
import pytest

from vivant.errors import LoadError, OutputError
from vivant.media.atomic import replacing, replacing_folder
from vivant.media.recipe import read_recipe, sidecar_of
from vivant.media.video import check_output, probe, read_clip, write_clip

FRAMES = np.random.default_rng(5).integers(0, 256, (2, 16, 24, 3), np.uint8)
LONGEST = 255  # bytes in a name, on every common file system
CAT = "🐈".encode()


def name_of(num_bytes: int, suffix: str) -> str:
    """A name of this many bytes, most of them in characters of four."""
    cats, rest = divmod(num_bytes - len(suffix), len(CAT))
    return "x" * rest + "🐈" * cats + suffix


@pytest.mark.parametrize("suffix", [".gif", ".mp4", "/"])
def test_the_longest_names_can_be_written_with_a_recipe_beside(tmp_path, suffix):
    name = name_of(LONGEST - len(".json") + (suffix == "/"), suffix)
    path = write_clip(FRAMES, f"{tmp_path}/{name}", 8, recipe={"vivant": 1})
    assert read_recipe(sidecar_of(path)) == {"vivant": 1}
    assert probe(path).num_frames == 2
    write_clip(FRAMES, f"{tmp_path}/{name}", 8, recipe={"vivant": 1}, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_name_that_is_all_suffix_can_be_written(tmp_path):
    path = write_clip(FRAMES, f"{tmp_path}/x.{'y' * 240}/", 8)
    assert probe(path).num_frames == 2


@pytest.mark.parametrize("suffix", [".gif", "/"])
@pytest.mark.parametrize("num_bytes", [LONGEST - len(".json") + 2, LONGEST + 2])
def test_longer_names_are_refused_before_the_work_and_at_it(tmp_path, suffix, num_bytes):
    path = f"{tmp_path}/{name_of(num_bytes, suffix)}"
    for refuse in (
        lambda: check_output(path),
        lambda: write_clip(FRAMES, path, 8, recipe={"vivant": 1}),
        lambda: write_clip(FRAMES, path + "/y.gif", 8),
    ):
        with pytest.raises(OutputError) as caught:
            refuse()
        assert caught.value.code in ("E-OUTPUT-WRITE", "E-OUTPUT-FOLDER")
    assert list(tmp_path.iterdir()) == []


def test_longer_names_cannot_be_read(tmp_path):
    for read in (probe, read_clip, read_recipe):
        for suffix in (".gif", ".json"):
            with pytest.raises(LoadError) as caught:
                read(tmp_path / name_of(LONGEST + 1, suffix))
            assert caught.value.code == "E-CLIP-MISSING"
    path = write_clip(FRAMES, tmp_path / name_of(LONGEST, ".gif"), 8)
    with pytest.raises(LoadError) as caught:
        read_recipe(path)
    assert caught.value.code == "E-RECIPE-NONE"


@pytest.mark.parametrize("name", ["", ".", "./", "..", "a/..", "/"])
def test_an_output_has_a_name_of_its_own(tmp_path, monkeypatch, name):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    for refuse in (check_output, lambda path: write_clip(FRAMES, path, 8, recipe={"vivant": 1})):
        with pytest.raises(ValueError, match="E-OUTPUT-SUFFIX"):
            refuse(name)


@pytest.mark.parametrize("folder", [".", "./", "../frames", "x/.."])
def test_a_folder_is_read_by_any_of_its_names(tmp_path, monkeypatch, folder):
    frames = write_clip(FRAMES, f"{tmp_path}/frames/", 8, recipe={"vivant": 1, "where": "inside"})
    (frames / "x").mkdir()
    monkeypatch.chdir(frames)
    assert read_recipe(folder)["where"] == "inside"
    write_clip(FRAMES, f"{tmp_path}/bare/", 8)
    monkeypatch.chdir(tmp_path / "bare")
    with pytest.raises(LoadError, match=r"bare carries no recipe, and there is no bare\.json beside"):
        read_recipe(".")


def test_the_root_has_no_recipe():
    assert sidecar_of("/") == Path("/.json")


def test_what_went_wrong_is_said_and_not_that_cleaning_up_went_wrong_too(tmp_path, monkeypatch):
    def denied(self, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", denied)
    with pytest.raises(OutputError, match="No space left"), replacing(tmp_path / "a.gif", overwrite=False):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a.gif", overwrite=False):
        raise KeyboardInterrupt


def test_a_folder_that_cannot_be_looked_at_is_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "frames").mkdir()

    def denied(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", denied)
    with (
        pytest.raises(OutputError, match="E-OUTPUT-WRITE"),
        replacing_folder(tmp_path / "frames", overwrite=True, ours="*"),
    ):
        pytest.fail("was given a folder")
