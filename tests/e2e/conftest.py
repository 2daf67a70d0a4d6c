"""Fixtures of the command line: small models on disk, an empty folder with a photo, and commands run in it."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from skimage import data as photos

import tiny_repo
import vivant.api.animator
import vivant.hub.load
from commands import ADAPTER_ID, BASE_ID, SMALL, Ran, Vivant
from vivant.cli import main

LOADED: dict[Any, Any] = {}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, an adapter, a hub cache that holds both, and a photo."""
    folder = tmp_path_factory.mktemp("models")
    tiny_repo.write_base(folder / "base")
    tiny_repo.write_adapter(folder / "adapter")
    tiny_repo.into_cache(folder / "cache", BASE_ID, folder / "base")
    tiny_repo.into_cache(folder / "cache", ADAPTER_ID, folder / "adapter")
    Image.fromarray(photos.astronaut()).resize((96, 80)).save(folder / "photo.png")
    return folder


@pytest.fixture
def vivant_(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Vivant:
    """Runs a command line in an empty folder that holds `photo.png`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes((models / "photo.png").read_bytes())

    def run(*args: str) -> Ran:
        capfd.readouterr()
        code = main(list(args))
        return Ran(code, *capfd.readouterr())

    return run


@pytest.fixture
def loaded_once(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that were loaded in one test are taken from memory in the next, unless weights are watched."""
    real, read_file = vivant.api.animator.Animator.from_pretrained, vivant.hub.load.read_file

    def from_pretrained(*args: Any, **options: Any) -> Any:
        if vivant.hub.load.read_file is not read_file:
            return real(*args, **options)
        key = (*args, *sorted(options.items(), key=str))
        if key not in LOADED:
            LOADED[key] = real(*args, **options)
        return LOADED[key]

    monkeypatch.setattr(vivant.api.animator.Animator, "from_pretrained", from_pretrained)


@pytest.fixture
def animate(vivant_: Vivant, models: Path, loaded_once: None) -> Vivant:
    """Runs `vivant animate` on the photo with the small models; later options win over earlier ones."""
    fixed = ["--base", str(models / "base"), "--motion-adapter", str(models / "adapter"), *SMALL]

    def run(*args: str, photo: str = "photo.png", prompt: str = "cat in a field", output: str | None = "a.mp4") -> Ran:
        outputs = [] if output is None else ["-o", output]
        return vivant_("animate", photo, prompt, *fixed, *outputs, *args)

    return run


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Reading weights fails the test; the list tells whether it was tried."""
    tried: list[Path] = []

    def refuse(path: Path) -> Any:
        tried.append(path)
        raise AssertionError("weights were read")

    monkeypatch.setattr(vivant.hub.load, "read_file", refuse)
    return tried
