"""Whether files of weights are sound: whole, of the hash that they should have, and without a NaN or an infinity.

A safetensors file is read once from its beginning to its end, in pieces, for both its hash and its numbers. A pickle
is hashed likewise, and its tensors, which torch maps where the format allows that, are looked through in pieces.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vivant.config import load_json
from vivant.errors import InputError, LoadError, VivantError
from vivant.hub.catalogue import cached_hash, git_hash, regular, walk
from vivant.hub.header import flat, read_header
from vivant.hub.load import broken, is_safetensors, read_object, shards
from vivant.hub.repo import WEIGHT_FILES

Progress = Callable[[str, int], None]
"""Called with a file's name and the number of its bytes that were read since the last call."""
PIECE = 4 * 1024 * 1024
_INDEX = ".index.json"
_HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{10}")


class Bits(NamedTuple):
    """How a type of numbers is laid out: words of so many bytes, and which bits are exponent and fraction."""

    width: int
    exponent: int
    fraction: int


FLOATS: Mapping[str, Bits] = {
    "F64": Bits(8, 0x7FF0_0000_0000_0000, 0x000F_FFFF_FFFF_FFFF),
    "F32": Bits(4, 0x7F80_0000, 0x007F_FFFF),
    "F16": Bits(2, 0x7C00, 0x03FF),
    "BF16": Bits(2, 0x7F80, 0x007F),
    "F8_E5M2": Bits(1, 0x7C, 0x03),
    # It has no infinity: all bits set are the one NaN of either sign, which makes the fraction part of the exponent.
    "F8_E4M3": Bits(1, 0x7F, 0x7F),
}
"""IEEE 754's binary types, bfloat16, and the two of arXiv 2209.05433 (OCP FP8)."""


class NotFinite(NamedTuple):
    """A tensor with numbers that are none, and how many of them."""

    name: str
    nan: int
    infinite: int


@dataclass(frozen=True)
class Sound:
    """What was found out about one file.

    Attributes:
        path: the file.
        size: its bytes.
        sha256: of all of them; None if it could not be read, or is an index of other files.
        tensors: how many there are.
        not_finite: those with a NaN or an infinity.
        expected: the hash that it was compared with.
        problems: everything that is wrong, worst first.
    """

    path: Path
    size: int = 0
    sha256: str | None = None
    tensors: int = 0
    not_finite: tuple[NotFinite, ...] = ()
    expected: str | None = None
    problems: tuple[VivantError, ...] = field(default_factory=tuple[VivantError, ...])


def _unseen(name: str, count: int) -> None:
    """Progress that nobody looks at."""


def checked_hash(text: str) -> str:
    """A sha256 as hexadecimal digits, or its first ten, by which people call models (AutoV2).

    Raises:
        InputError: E-VERIFY-SHA256.
    """
    value = text.strip().lower().removeprefix("sha256:")
    if not _HASH.fullmatch(value):
        raise InputError(
            "E-VERIFY-SHA256",
            f"{text[:80]!r} is not a sha256.",
            "It has 64 hexadecimal digits; its first ten will do.",
            "Copy it from the page of the model.",
        )
    return value


def files_of(paths: Iterable[Path]) -> list[Path]:
    """The files to look into: those that are named, and in folders all files of weights and indexes of shards.

    Raises:
        LoadError: E-FILE-MISSING for a path that is not there, E-VERIFY-NONE for a folder without models.
    """
    found: list[Path] = []
    for path in paths:
        if not os.path.lexists(path):
            raise LoadError("E-FILE-MISSING", f"There is no file or folder {path}.", "", "Check the path.")
        inside = list(_inside(path)) if os.path.isdir(path) else [path]
        if not inside:
            raise LoadError("E-VERIFY-NONE", f"{path} holds no files of weights.", "", "Check the path.")
        found += inside
    once: dict[str, Path] = {}
    for path in found:
        once.setdefault(os.path.realpath(path), path)
    return list(once.values())


def _inside(folder: Path) -> Iterator[Path]:
    for found in walk(folder):
        if not os.path.isdir(found):
            yield found
            continue
        for here, folders, names in os.walk(found):  # repositories hold no links to folders
            folders.sort()
            yield from (Path(here, n) for n in sorted(names) if Path(n).suffix.lower() in WEIGHT_FILES or _is_index(n))


def _is_index(name: str) -> bool:
    return ".index." in name and name.endswith(".json")


def check(path: Path, sha256: str | None = None, progress: Progress = _unseen) -> Sound:
    """Read one file and say what is wrong with it; nothing is raised for that.

    Args:
        path: a file of weights, or an index of shards.
        sha256: what its hash should be, see `checked_hash`. A file in the hub's cache is compared with the hub's too.
        progress: see there.
    """
    try:
        size = regular(path).st_size
        if _is_index(path.name):
            return _checked_index(path, size)
        return _checked(path, size, sha256 or cached_hash(path), progress)
    except VivantError as error:
        return Sound(path, expected=sha256, problems=(error,))
    except OSError as error:
        return Sound(path, expected=sha256, problems=(broken(path, error),))


def file_hash(path: Path, progress: Progress = _unseen) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    digest = _Digest(None)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            progress(path.name, len(piece))
    return digest.sha256()


def _checked(path: Path, size: int, expected: str | None, progress: Progress) -> Sound:
    """A file of weights."""
    header = read_header(path)  # lengths, offsets and overlaps are checked there
    known = git_hash(path)
    digest = _Digest(size if known else None)
    if is_safetensors(path):
        bad = list(_in_safetensors(path, digest, progress))
    else:
        bad = list(_in_pickle(path, size))
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
                progress(path.name, len(piece))
    problems: list[VivantError] = []
    if bad:
        listed = ", ".join(f"{one.name[:100]} ({_counted(one)})" for one in bad[:3])
        problems.append(
            LoadError(
                "E-VERIFY-FINITE",
                f"{len(bad)} of {len(header.tensors)} tensors of {path} hold numbers that are none: {listed}.",
                "A clip made with them would be black.",
                "Get the file again; if it is so at its source, tell its makers.",
            )
        )
    sha256 = digest.sha256()
    if not sha256.startswith(expected or "") or digest.git() != known:
        problems.append(
            LoadError(
                "E-VERIFY-HASH",
                f"{path} is another file than it should be: its sha256 is {sha256}.",
                f"It should be {expected}." if expected else f"Git's hash of it should be {known}.",
                "It was damaged or exchanged. Fetch it again.",
            )
        )
    return Sound(path, size, sha256, len(header.tensors), tuple(bad), expected, tuple(problems))


def _counted(one: NotFinite) -> str:
    counts = [f"{count:,} {what}" for count, what in ((one.nan, "NaN"), (one.infinite, "infinite")) if count]
    return ", ".join(counts)


class _Digest:
    """The sha256 of one file, and git's hash of it where its size is given."""

    def __init__(self, size: int | None):
        self._sha256 = hashlib.sha256()
        self._git = None if size is None else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

    def update(self, piece: bytes) -> None:
        self._sha256.update(piece)
        if self._git is not None:
            self._git.update(piece)

    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def git(self) -> str | None:
        return None if self._git is None else self._git.hexdigest()


def _in_safetensors(path: Path, digest: _Digest, progress: Progress) -> Generator[NotFinite]:
    """The tensors of a file, whose header was found to be sound, that are not finite; hashes every byte on the way."""

    def take(file: BinaryIO, count: int) -> bytes:
        piece = file.read(count)
        if len(piece) != count:
            raise broken(path, EOFError("it became shorter while it was read"))
        digest.update(piece)
        progress(path.name, count)
        return piece

    with path.open("rb") as file:
        length = take(file, 8)
        stored = json.loads(take(file, int.from_bytes(length, "little")))
        stored.pop("__metadata__", None)
        for name, entry in sorted(stored.items(), key=lambda item: item[1]["data_offsets"]):
            start, end = entry["data_offsets"]
            bits = FLOATS.get(entry["dtype"])
            nan = infinite = 0
            for here, after in pairwise([*range(start, end, PIECE), end]):
                piece = take(file, after - here)
                if bits is not None:
                    found = not_finite(np.frombuffer(piece, f"<u{bits.width}"), bits)
                    nan, infinite = nan + found[0], infinite + found[1]
            if nan or infinite:
                yield NotFinite(name, nan, infinite)
        while rest := file.read(PIECE):  # there is none in a file that safetensors takes
            digest.update(rest)


def not_finite(words: np.ndarray, bits: Bits) -> tuple[int, int]:
    """How many of these numbers, as unsigned words, are NaN and how many infinite."""
    exponent = words.dtype.type(bits.exponent)
    odd = words[(words & exponent) == exponent]
    nan = int(np.count_nonzero(odd & words.dtype.type(bits.fraction)))
    return nan, len(odd) - nan


def _in_pickle(path: Path, size: int) -> Generator[NotFinite]:
    """The tensors of a pickle that are not finite.

    Raises:
        LoadError: E-VERIFY-SIZE when they claim more than the file can hold: a tensor may repeat one number for ever.
    """
    left, seen = 2 * size, set[tuple[object, ...]]()
    for name, tensor in flat(read_object(path), path):
        try:
            if tensor.is_meta or tensor.layout != torch.strided:
                raise ValueError(f"{name[:100]} is no plain tensor")
            mark = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if mark in seen:  # the same tensor under another name
                continue
            seen.add(mark)
            left -= tensor.numel() * tensor.element_size()
            found = _not_finite(tensor) if left >= 0 else (0, 0)
        except Exception as error:  # quantised ones, for example, which nothing here could use
            raise broken(path, error) from None
        if left < 0:
            raise LoadError(
                "E-VERIFY-SIZE",
                f"The tensors of {path} claim more than the {size:,} bytes that it has.",
                f"{name[:100]} is one of them.",
                "Get it as .safetensors, and do not trust its source.",
            )
        if any(found):
            yield NotFinite(name, *found)


def _not_finite(tensor: Tensor) -> tuple[int, int]:
    """As `not_finite`, of a tensor, in pieces."""
    if not tensor.is_floating_point():
        return 0, 0
    nan = infinite = 0
    for piece in tensor.reshape(-1).split(PIECE // 4):
        plain: Any = piece.float() if piece.element_size() < 4 else piece
        nan += int(plain.isnan().sum())
        infinite += int(plain.isinf().sum())
    return nan, infinite


def _checked_index(path: Path, size: int) -> Sound:
    """An index of shards: every file is there, and holds what the index says, and nothing else."""
    files = shards(path.parent, path.name)
    table: Mapping[str, str] = load_json(path)["weight_map"]
    held = {name: file.name for file in files if regular(file) for name in read_header(file).tensors}
    wrong = sorted(name for name in table.keys() | held.keys() if table.get(name) != held.get(name))
    problems: tuple[VivantError, ...] = ()
    if wrong:
        problems = (
            LoadError(
                "E-WEIGHTS-SHARD",
                f"{path} does not describe the files beside it: {len(wrong)} tensors are elsewhere, or nowhere.",
                f"One is {wrong[0][:100]}.",
                "Download the repository again.",
            ),
        )
    return Sound(path, size, tensors=len(table), problems=problems)
