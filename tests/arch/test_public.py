"""What people import: the names, where they live, and what the import costs."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vivant
from sources import modules

NAMES = [
    "Animator",
    "AutoencoderKL",
    "AutoencoderKLCogVideoX",
    "Cancelled",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "ConsisIDPipeline",
    "ConsisIDRequest",
    "ConsisIDTransformer3DModel",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolver2SAncestralScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DiffusionPipeline",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FreeInit",
    "HeunDiscreteScheduler",
    "InputError",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "LoadError",
    "MemoryPolicy",
    "MissingPackage",
    "MotionAdapter",
    "OutputError",
    "PIAPipeline",
    "PIAPipelineOutput",
    "PIARequest",
    "PNDMScheduler",
    "Portrait",
    "Result",
    "TCDScheduler",
    "UNet2DConditionModel",
    "UNetMotionModel",
    "UniPCMultistepScheduler",
    "VivantError",
    "VivantWarning",
]
# Where diffusers has them, with one package name for the other.
PATHS = [
    ("vivant.callbacks", "MultiPipelineCallbacks"),
    ("vivant.callbacks", "PipelineCallback"),
    ("vivant.pipelines.pia", "PIAPipelineOutput"),
    ("vivant.schedulers", "EulerDiscreteScheduler"),
    ("vivant.utils", "export_to_gif"),
    ("vivant.utils", "export_to_video"),
    ("vivant.utils", "load_image"),
]


def declared() -> dict[str, str]:
    """The imports that type checkers and editors see: name -> module."""
    tree = next(module for module in modules() if module.name == "vivant").tree
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    rows = [(n.module, *n.names) for n in block.body if isinstance(n, ast.ImportFrom)]
    assert all(alias.asname == alias.name for _, alias in rows), "only `as` makes a name public to type checkers"
    return {alias.name: module or "" for module, alias in rows}


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_public_names_are_frozen():
    assert list(vivant.__all__) == NAMES
    assert set(NAMES) <= set(dir(vivant))


def test_type_checkers_see_the_same_names_in_the_same_places():
    assert declared() == vivant._HOMES


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_what_its_module_defines(name: str):
    value = getattr(vivant, name)
    assert value.__name__ == name
    assert value.__module__ == vivant._HOMES[name]
    assert getattr(vivant, name) is value


def test_other_names_do_not_exist():
    with pytest.raises(AttributeError, match="StableDiffusionPipeline"):
        _ = vivant.StableDiffusionPipeline


@pytest.mark.parametrize(("module", "name"), PATHS)
def test_import_paths_of_diffusers(module: str, name: str):
    assert getattr(importlib.import_module(module), name).__name__ == name


def seconds(command: list[str]) -> float:
    """Processor time of a process that has to succeed; unlike wall time it does not count its neighbours."""
    before = os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return used or after.elapsed - before.elapsed  # Windows does not count children


def test_the_import_is_quick_and_light():
    code = "import time; t = time.process_time(); import vivant; print(time.process_time() - t)"
    assert min(float(fresh(code)) for _ in range(5)) < 0.3
    heavy = "torch", "numpy", "transformers", "PIL", "av", "typer", "rich"
    assert fresh(f"import vivant, sys; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_the_command_line_answers_quickly():
    command = Path(sys.executable).with_name("vivant")
    assert min(seconds([str(command), "--help"]) for _ in range(5)) < 0.5
