"""Pickles of tensors as safetensors beside them: written once, read instead from then on."""

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vivant.errors import LoadError, OutputError
from vivant.hub.repo import PICKLES

if TYPE_CHECKING:
    from torch import Tensor

NESTS = ("state_dict", "model", "module")
"""Names under which training programs store the tensors of a network."""


def beside(path: Path) -> Path:
    """Where the converted form of a pickle lies: the same name with another ending."""
    return path.with_suffix(".safetensors")


def converted(path: str | Path) -> Path:
    """The file to read for a pickle: its safetensors file if there is one that is not older, else itself.

    Where the pickle was deleted, the converted file stands for it. Other files are returned as they are.
    """
    path = Path(path)
    if path.suffix.lower() not in PICKLES:
        return path
    return beside(path) if _is_current(path) else path


def _is_current(path: Path) -> bool:
    target = beside(path)
    if not target.is_file():
        return False
    return not path.is_file() or target.stat().st_mtime_ns >= path.stat().st_mtime_ns


def write_converted(path: Path) -> Path | None:
    """Convert a pickle without running anything in it; None if that was done before.

    Tensors under one of `NESTS` come to the top, and what is beside them is left out. Of tensors that share memory each
    gets its own. The new file appears whole or not at all. It lies beside `path` itself, not beside what `path` links
    to: the hub's cache names the files that its links lead to by their content.

    Raises:
        LoadError: E-WEIGHTS-PICKLE for a pickle of more than tensors, E-WEIGHTS-BROKEN for a damaged one.
        OutputError: E-WEIGHTS-WRITE.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = beside(path)
    if _is_current(path) or target.is_symlink():  # a link is a published file, which stays as it is
        return None
    tensors = _apart(_tensors(path))
    temporary = target.with_name(f".vivant-{secrets.token_hex(6)}.safetensors")
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        os.replace(temporary, target)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise OutputError(
            "E-WEIGHTS-WRITE",
            f"{path.name} could not be converted: {error}.",
            f"{target} was not written.",
            "Check space and rights.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return target


def _tensors(path: Path) -> dict[str, "Tensor"]:
    """The tensors of a pickle, at its top or, beside the state of a training, under one of `NESTS`."""
    from torch import Tensor

    from vivant.hub.load import read_object

    content = read_object(path)
    tables = [content, *(content.get(name) for name in NESTS)] if isinstance(content, dict) else []
    for table in tables:
        if isinstance(table, dict) and table and all(isinstance(value, Tensor) for value in table.values()):
            return {str(name): value.detach() for name, value in table.items()}
    raise LoadError("E-WEIGHTS-PICKLE", f"{path} is not a table of tensors.", "", "Get it as .safetensors.")


def _apart(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The same values, each in row-major order in memory that holds nothing else: no views, no aliases."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        is_whole = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes
        result[name] = tensor if is_whole and storage.data_ptr() not in seen else tensor.clone().contiguous()
        seen.add(storage.data_ptr())
    return result
