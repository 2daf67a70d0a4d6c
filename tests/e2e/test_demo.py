"""`make demo`, smaller: its models are readable, its files are what was asked for, and it says what they are."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from sources import ROOT
from vivant.media.recipe import read_recipe
from vivant.media.video import read_clip


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, told to be quick."""
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OUT", tmp_path / "out")
    for name, value in (("SIZE", 64), ("FRAMES", 3), ("STEPS", 1), ("FPS", 8)):
        monkeypatch.setattr(module, name, value)
    return module


def test_the_demo(demo: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    demo.main()
    said = capfd.readouterr().out
    assert "random" in said.splitlines()[0]
    for name in ("demo.mp4", "demo.gif"):
        assert f"{tmp_path / 'out' / name}: 64 x 64, 3 frames, 8 a second." in said
        frames, fps = read_clip(tmp_path / "out" / name)
        assert (frames.shape, fps) == ((3, 64, 64, 3), 8)
        assert frames.std() > 5
    assert read_recipe(tmp_path / "out" / "demo.gif")["request"]["motion"] == "loop:large"


def test_the_demo_notices_a_wrong_file(demo: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        demo, "probe", lambda path: type("Info", (), {"width": 1, "height": 1, "num_frames": 1, "fps": 1})
    )
    monkeypatch.setattr(demo, "write_models", lambda folder: None)
    monkeypatch.setattr(demo, "animate", lambda models, outputs: None)
    with pytest.raises(SystemExit, match="is not what was asked for"):
        demo.main()


def test_the_photo_has_its_notice():
    assert "examples/astronaut.jpg" in (ROOT / "THIRD_PARTY_NOTICES").read_text(encoding="utf-8")
    assert (ROOT / "examples" / "astronaut.jpg").stat().st_size < 50_000
