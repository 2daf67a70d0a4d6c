"""Results of benchmarks: every number with the machine that it was measured on."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sources import ROOT


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """benchmarks/harness.py, writing into an empty folder."""
    spec = importlib.util.spec_from_file_location("harness", ROOT / "benchmarks" / "harness.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "harness", module)  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_a_section_keeps_the_machine_that_it_was_measured_on(harness: ModuleType, tmp_path: Path):
    first, second = {"processor": "slow"}, {"processor": "quick"}
    harness.add("pia", {"eager": {"seconds": 2}, "memory": {"peak": 5}}, first)
    written = harness.add("pia", {"eager": {"seconds": 1}}, second)
    assert written == tmp_path / "pia.json"
    assert json.loads(written.read_text()) == {
        "eager": {"machine": second, "seconds": 1},
        "memory": {"machine": first, "peak": 5},
    }


def test_the_stored_sections_say_where_they_were_measured():
    stored = json.loads((ROOT / "benchmarks" / "results" / "pia.json").read_text(encoding="utf-8"))
    assert {"eager", "compiled", "float32", "assembly", "memory of a whole run"} <= stored.keys()
    for name, section in stored.items():
        assert {"processor", "threads", "torch", "rates bf16"} <= section["machine"].keys(), name
