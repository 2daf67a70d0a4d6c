"""Fixtures of the command line: small models on disk, an empty folder with a photo, and commands run in it."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from skimage import data as photos

import tiny_consisid
import tiny_repo
import vivant.api.animator
import vivant.api.portrait
import vivant.hub.load
from commands import ADAPTER_ID, BASE_ID, CONSISID_ID, SMALL, Ran, Vivant
from vivant.cli import main
from vivant.consisid.conditioning import Face
from vivant.consisid.identity_file import save_identity

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


def _load_once(owner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that were loaded in one test are taken from memory in the next, unless weights are watched."""
    real, read_file = owner.from_pretrained, vivant.hub.load.read_file

    def from_pretrained(*args: Any, **options: Any) -> Any:
        if vivant.hub.load.read_file is not read_file:
            return real(*args, **options)
        key = repr((args, sorted(options.items())))
        if key not in LOADED:
            LOADED[key] = real(*args, **options)
        return LOADED[key]

    monkeypatch.setattr(owner, "from_pretrained", from_pretrained)


@pytest.fixture
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are loaded once a session."""
    _load_once(vivant.api.animator.Animator, monkeypatch)
    _load_once(vivant.api.portrait.Portrait, monkeypatch)


@pytest.fixture
def animate(vivant_: Vivant, models: Path, loaded_once: None) -> Vivant:
    """Runs `vivant animate` on the photo with the small models; later options win over earlier ones."""
    fixed = ["--base", str(models / "base"), "--motion-adapter", str(models / "adapter"), *SMALL]

    def run(*args: str, photo: str = "photo.png", prompt: str = "cat in a field", output: str | None = "a.mp4") -> Ran:
        outputs = [] if output is None else ["-o", output]
        return vivant_("animate", photo, prompt, *fixed, *outputs, *args)

    return run


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ConsisID, a hub cache that holds it, and two faces with their identities."""
    folder = tmp_path_factory.mktemp("faces")
    tiny_consisid.pipeline().save_pretrained(folder / "consisid")
    tiny_repo.into_cache(folder / "cache", CONSISID_ID, folder / "consisid")
    people: Any = tiny_consisid.face(2)
    for i, name in enumerate(("anna", "ben")):
        face = Face(people["id_cond"][i, None], tuple(hidden[i, None] for hidden in people["id_vit_hidden"]))
        save_identity(face, folder / f"{name}.safetensors")
        Image.fromarray(photos.astronaut()[:, 40 * i :]).resize((64, 64)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def portrait(vivant_: Vivant, faces: Path, tmp_path: Path, loaded_once: None) -> Vivant:
    """Runs `vivant portrait` with the small ConsisID on a face that lies in the folder; later options win."""
    (tmp_path / "photo.png").unlink()
    for name in ("anna.png", "anna.safetensors"):
        (tmp_path / name).write_bytes((faces / name).read_bytes())
    fixed = ["--model", str(faces / "consisid"), "--steps", "2", "--seed", "7", "--dtype", "float32"]

    def run(
        *args: str,
        photo: str = "anna.png",
        identity: str = "anna.safetensors",
        prompt: str = "a sea",
        output: str | None = "a.mp4",
    ) -> Ran:
        outputs = [] if output is None else ["-o", output]
        return vivant_("portrait", photo, prompt, "--identity", identity, *fixed, *outputs, *args)

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
