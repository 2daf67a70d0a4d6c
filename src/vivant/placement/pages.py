"""Giving memory of mapped files back (Linux): weights that lie in a file need not stay resident between their uses.

Weights read from safetensors in the file's own data type are views of a private mapping: their pages are read at the
first use and stay. `MADV_DONTNEED` lets go of them; the next use reads them again, from the system's cache of the file
as long as that has them. Nothing about a module changes. A page that was written to since is a copy that no file
holds, so it is never given back: `/proc/self/pagemap` tells these apart page by page.
"""

import ctypes
import mmap
import os
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor, nn

PAGEMAP = Path("/proc/self/pagemap")
MAPS = Path("/proc/self/maps")
PAGE = mmap.PAGESIZE
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))
Span = tuple[int, int]
"""First address, and the one after the last."""


def supported() -> bool:
    """Whether this system can give pages back."""
    return sys.platform == "linux" and PAGEMAP.exists() and hasattr(mmap, "MADV_DONTNEED")


def tensors_of(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Parameters and buffers on the CPU."""
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.device.type == "cpu" and tensor.numel():
                yield tensor


def spans(tensors: Iterable[Tensor]) -> list[Span]:
    """Where tensors lie, neighbours joined, in order of address."""
    found: list[Span] = []
    for start, end in sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors):
        # Between two tensors of a file lie a few bytes at most, so that the page of both belongs to both.
        if found and start - found[-1][1] < PAGE:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def give_back(places: Iterable[Span]) -> None:
    """Let go of the whole pages in these places that a file holds unchanged."""
    if not supported():
        return
    with PAGEMAP.open("rb", buffering=0) as file:
        for start, end in places:
            first, last = -(-start // PAGE), end // PAGE
            if last <= first:
                continue
            entries = np.frombuffer(os.pread(file.fileno(), 8 * (last - first), 8 * first), dtype=np.uint64)
            present, of_file = (entries & _PRESENT) != 0, (entries & _OF_FILE) != 0
            free = np.where(present, of_file, (entries & _SWAPPED) == 0)
            for run in _runs(free):
                _advise((first + run[0]) * PAGE, (run[1] - run[0]) * PAGE, mmap.MADV_DONTNEED)


def fetch(places: Iterable[Span]) -> None:
    """Have the system read the files of these places ahead; they do not become resident by it."""
    if not supported():
        return
    for start, end in places:
        first = start // PAGE * PAGE
        _advise(first, end - first, mmap.MADV_WILLNEED)


def _runs(flags: np.ndarray) -> Iterator[tuple[int, int]]:
    """Begin and end of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _advise(address: int, length: int, advice: int) -> None:
    """A hint: what the system makes of it decides about memory and not about results."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), ctypes.c_int(advice))


def in_memory(modules: Iterable[nn.Module]) -> tuple[int, int]:
    """Bytes of weights that lie in no file and so cannot be given back, and bytes of all."""
    if not supported():
        held = sum(tensor.nbytes for tensor in tensors_of(modules))
        return held, held
    starts, ends = [], []
    for line in MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/"):
            start, end = (int(number, 16) for number in fields[0].split("-"))
            starts.append(start)
            ends.append(end)
    held = total = 0
    for tensor in tensors_of(modules):
        i = bisect_right(starts, tensor.data_ptr()) - 1
        total += tensor.nbytes
        held += tensor.nbytes if i < 0 or tensor.data_ptr() >= ends[i] else 0
    return held, total
