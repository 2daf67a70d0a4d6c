"""Configurations: the JSON files of published checkpoints as frozen, checked values.

A component declares its fields as a frozen dataclass whose field names equal those of its JSON file. `read`
turns raw JSON into that dataclass and refuses what it cannot honour; `Config` is the immutable view that
users see as `.config`.
"""

import dataclasses
import difflib
import json
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from inspect import formatannotation
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from vivant.errors import InputError, LoadError

T = TypeVar("T")


class Config(Mapping[str, Any]):
    """Immutable mapping with attribute access, as diffusers' FrozenDict: ``c["x"]`` and ``c.x`` are the same."""

    def __init__(self, *args: Any, **values: Any):
        object.__setattr__(self, "_values", {k: _freeze(v) for k, v in dict(*args, **values).items()})

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __getattr__(self, key: str) -> Any:
        try:
            return self.__dict__["_values"][key]
        except KeyError:
            raise AttributeError(f"config has no field {key!r}") from None

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError("a config is immutable; build a new one with from_config(config, **changes)")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __reduce__(self):
        return Config, (dict(self._values),)

    def __repr__(self) -> str:
        return f"Config({self._values!r})"


def _freeze(value: Any) -> Any:
    """Lists become tuples, so that a config cannot be changed through a nested list."""
    return tuple(_freeze(v) for v in value) if isinstance(value, list | tuple) else value


def as_python(value: Any) -> Any:
    """NumPy's numbers as Python's, which JSON can hold; everything else, truth values included, as it is."""
    if isinstance(value, tuple):
        return tuple(as_python(v) for v in value)
    if isinstance(value, Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, Integral) else float(value)
    return value


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether it is a number that one can compute with: no truth value, no NaN, no infinity."""
    # NaN fails every comparison; a whole number can be too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def only(*allowed: Any, default: Any = ...) -> Any:
    """A dataclass field that JSON files carry but of which we implement just the `allowed` values."""
    return dataclasses.field(default=allowed[0] if default is ... else default, metadata={"allowed": allowed})


def read(cls: type[T], raw: Mapping[str, Any], *, keep_unknown: bool = False) -> tuple[T, Config]:
    """Check `raw` against the dataclass `cls`.

    Values have to be of the annotated types; a float that is whole counts as an int and becomes one (1000.0 is 1000).

    Args:
        cls: frozen dataclass whose fields equal the JSON fields.
        raw: the JSON object. Keys that start with ``_`` are metadata and never checked.
        keep_unknown: keep unknown fields instead of refusing non-null ones (schedulers read each other's files).

    Returns:
        The typed value, and the full `Config` (defaults filled in, unknown null fields and metadata kept).

    Raises:
        InputError: E-CONFIG-UNKNOWN for an unknown non-null field, E-CONFIG-VALUE for a value that is not implemented
            or of another type.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # pyright: ignore[reportArgumentType]
    known = {k: _freeze(v) for k, v in raw.items() if k in fields}
    unknown = {k: v for k, v in raw.items() if k not in fields}
    if not keep_unknown:
        for key, value in unknown.items():
            if value is not None and not key.startswith("_"):
                near = difflib.get_close_matches(key, fields, n=2)
                hint = f"Nearest known fields: {', '.join(near)}." if near else ""
                raise InputError(
                    "E-CONFIG-UNKNOWN",
                    f"The configuration of {_display(cls)} has the unknown field {key} = {value!r}.",
                    hint,
                    "Remove it, or set it to null if the checkpoint does not rely on it.",
                )
    for key, value in known.items():
        allowed = fields[key].metadata.get("allowed")
        if allowed is not None and value not in allowed:
            raise InputError(
                "E-CONFIG-VALUE",
                f"{_display(cls)} has {key} = {value!r}, which vivant does not implement.",
                f"Implemented: {', '.join(map(repr, allowed))}.",
                "Use a published checkpoint of this component.",
            )
    hints = get_type_hints(cls)
    for key, value in known.items():
        try:
            known[key] = _as(hints[key], value)
        except TypeError:
            kind = formatannotation(hints[key]).replace("tuple", "list")
            raise InputError(
                "E-CONFIG-VALUE", f"{_display(cls)} has {key} = {value!r}.", f"It must be {kind}."
            ) from None
    typed = cls(**known)
    values = {name: getattr(typed, name) for name in fields}
    return typed, Config({**values, **unknown})


def _as(kind: Any, value: Any) -> Any:
    """`value` as the annotation `kind` admits it, numbers as Python's; TypeError if it does not."""
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for option in options:
            with suppress(TypeError):
                return _as(option, value)
    elif origin is tuple:
        kinds = options[:1] * len(value) if options[-1] is ... else options
        if isinstance(value, tuple) and len(kinds) == len(value):
            return tuple(map(_as, kinds, value))
    elif kind in (int, float):  # of which a truth value is neither
        number = as_python(value)
        if type(number) is int or (type(number) is float and (kind is float or number.is_integer())):
            return int(number) if kind is int else number
    elif kind is Any or (value in options if origin is Literal else isinstance(value, origin or kind)):
        return value
    raise TypeError


def check_groups(name: str, num_groups: int, channels: tuple[int, ...]) -> None:
    """Refuse (E-CONFIG-VALUE) groups of a normalisation that do not divide every number of channels."""
    if num_groups < 1 or any(channel % num_groups for channel in channels):
        listed = ", ".join(map(str, channels))
        raise InputError(
            "E-CONFIG-VALUE", f"{name} = {num_groups} does not divide all of block_out_channels: {listed}."
        )


def _display(cls: type) -> str:
    return cls.__name__.removesuffix("Config")


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from disk, or say what is wrong with the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError("E-FILE-MISSING", f"{path.name} is missing in {path.parent}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LoadError("E-JSON-BROKEN", f"{path} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise LoadError("E-JSON-BROKEN", f"{path} holds a {type(value).__name__}, not an object.")
    return value


def dump_json(values: Mapping[str, Any], path: Path) -> None:
    """Write a JSON object the way published repositories do: sorted, two spaces, final newline.

    An older file is replaced in one step, so that a failure leaves it as it was.
    """
    text = json.dumps(dict(values), indent=2, sort_keys=True, default=list)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
