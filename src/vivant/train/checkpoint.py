"""Checkpoints of a run: complete or not there, readable without running anything, enough to go on bit for bit.

A checkpoint is a folder named after the number of updates made. Nothing random is stored, since what is drawn for a
step is a function of the seed and the step (`samples.py`).
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vivant.config import dump_json, load_json
from vivant.errors import InputError, LoadError
from vivant.hub.load import check_keys, read_file
from vivant.media.atomic import replacing_folder
from vivant.train.settings import Settings

FILES = ("weights.safetensors", "average.safetensors", "mean.safetensors", "variance.safetensors")


@dataclass(frozen=True)
class Memory:
    """Everything of a run that changes from update to update, by the names of the trained tensors.

    Attributes:
        weights: the trained tensors.
        average: their exponential average; empty when none is kept.
        mean: AdamW's running mean of the gradients.
        variance: AdamW's running mean of their squares.
    """

    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    mean: dict[str, Tensor]
    variance: dict[str, Tensor]

    def tables(self) -> tuple[dict[str, Tensor], ...]:
        """In the order of `FILES`."""
        return self.weights, self.average, self.mean, self.variance


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints, oldest first; what was being written when a process died has another name."""
    found = [(int(path.name), path) for path in folder.glob("*") if path.name.isdecimal() and path.is_dir()]
    return sorted(found)


def write(folder: Path, step: int, memory: Memory, settings: Settings, recipe: Mapping[str, Any]) -> Path:
    """Write a checkpoint after `step` updates, then drop the oldest beyond `settings.keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{step:08d}"
    with replacing_folder(target, overwrite=True, ours="*.*") as temporary:
        for name, table in zip(FILES, memory.tables(), strict=True):
            save_file({key: value.detach().contiguous() for key, value in table.items()}, temporary / name)
        state = {"step": step, "settings": asdict(settings), "recipe": recipe, "torch": torch.__version__}
        dump_json(state, temporary / "run.json")
    for _, old in checkpoints(folder)[: -settings.keep]:
        shutil.rmtree(old)
    return target


def read(path: Path, memory: Memory, settings: Settings, recipe: Mapping[str, Any]) -> int:
    """Copy a checkpoint into `memory`, in place.

    Returns:
        The number of updates made.

    Raises:
        InputError: E-TRAIN-RESUME when the run was begun with other settings or another recipe.
        LoadError: when the files are damaged or of another network.
    """
    state = load_json(path / "run.json")
    try:
        step, before = int(state["step"]), Settings(**state["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError("E-JSON-BROKEN", f"{path / 'run.json'} does not describe a run: {error}.") from None
    different = [*settings.differences(before)]
    different += [name for name in recipe if _plain(recipe[name]) != _plain(state["recipe"].get(name))]
    if different:
        raise InputError(
            "E-TRAIN-RESUME",
            f"The run in {path.parent} was begun with other values of {', '.join(different)}.",
            "Going on with these would be another run, and nobody could make it again.",
            "Take the values of run.json there, or choose another output folder.",
        )
    for name, table in zip(FILES, memory.tables(), strict=True):
        stored = read_file(path / name)
        check_keys(stored, table, name.removesuffix(".safetensors"), str(path))
        with torch.no_grad():
            for key, value in table.items():
                value.copy_(stored[key])
    return step


def _plain(value: Any) -> str:
    """A value as it is after a way through a file: lists for tuples, keys in order."""
    return json.dumps(value, default=list, sort_keys=True)
