"""What a file of weights holds, without reading its weights: names, shapes, data types, and the header's remarks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vivant.errors import LoadError
from vivant.hub.load import broken, is_safetensors, read_object

NESTED = 4
"""How deep tables in a pickle are looked into."""


class Stored(NamedTuple):
    """A tensor as it is stored: data type in the spelling of safetensors (``"F16"``), and shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """Everything about a file but the values.

    Attributes:
        tensors: name to type and shape. Tables inside a pickle's table are joined by dots, without the outer name
            `state_dict`.
        metadata: remarks of whoever wrote it; text from outside, never to be trusted.
    """

    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; empty where there is none of that name."""
        return self.tensors[name].shape if name in self.tensors else ()


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file, or the tables of a pickle, whose tensors are mapped where it allows that.

    Raises:
        LoadError: E-WEIGHTS-BROKEN for a damaged file, E-WEIGHTS-PICKLE for a pickle that holds more than data.
    """
    if not is_safetensors(path):
        return header_of(dict(flat(read_object(path), path)))
    try:
        with safe_open(path, framework="pt", device="cpu") as file:  # it checks lengths, offsets and overlaps
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            stored = {name: Stored(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
            return Header(stored, dict(file.metadata() or {}))
    except (SafetensorError, OSError, ValueError) as error:
        raise broken(path, error) from None


def header_of(tensors: Mapping[str, Tensor]) -> Header:
    """The header that a file of these tensors would have."""
    return Header({name: _stored(value) for name, value in tensors.items()}, {})


def flat(content: Any, path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a pickle's nested tables by their dotted names; what is no tensor is left aside.

    Raises:
        LoadError: E-WEIGHTS-PICKLE when there is no tensor at all.
    """
    inner = content.get("state_dict") if isinstance(content, dict) else None
    found = list(_leaves(inner if isinstance(inner, dict) else content, "", NESTED))
    if not found:
        raise LoadError("E-WEIGHTS-PICKLE", f"{path} is a pickle without tensors.", "", "Give a file of weights.")
    yield from found


def _leaves(content: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix.removesuffix("."), content.detach()
    elif isinstance(content, dict) and depth:
        for name, value in content.items():
            yield from _leaves(value, f"{prefix}{name}.", depth - 1)


_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def _stored(value: Tensor) -> Stored:
    name = str(value.dtype).removeprefix("torch.")
    return Stored(_DTYPES.get(name, name), tuple(value.shape))
