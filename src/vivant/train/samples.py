"""Which sample is the n-th of a run, and what is drawn for it: pure functions of the seed and of n.

Nothing here remembers anything. A run that is resumed, cut into smaller parts or spread over several processes sees
the same samples with the same noise, because both depend on the sample's place in the run and on nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vivant.train.settings import Settings

Batch = Mapping[str, Any]
"""Tensors with the samples along their first axis, and tuples of texts; `n` holds the samples' places in the run."""


@runtime_checkable
class Clip(Protocol):
    """A captioned clip; a still is a clip of one frame."""

    @property
    def pixels(self) -> UInt8[np.ndarray, "f h w 3"]: ...
    @property
    def caption(self) -> str: ...


@runtime_checkable
class Source(Protocol):
    """A data set. `read` depends on nothing but its arguments, so that any process may read any clip at any time."""

    def __len__(self) -> int: ...

    def read(self, index: int, rng: np.random.Generator) -> Any:
        """Clip `index`, a `Clip` or its latents, with random choices (crop, start) by `rng`."""
        ...


@runtime_checkable
class Prepare(Protocol):
    """From a clip to what a loss reads: named tensors and texts of one sample. Runs in the reading processes."""

    def __call__(self, clip: Any, rng: np.random.Generator) -> dict[str, Any]: ...


@lru_cache(maxsize=2)
def _permutation(num: int, seed: int, epoch: int) -> Int[np.ndarray, " num"]:
    return np.random.default_rng([seed, epoch, 0x0DE5]).permutation(num)


def index_of(n: int, num: int, seed: int) -> int:
    """Which of `num` clips is the n-th sample of a run: every epoch is a permutation of its own."""
    epoch, place = divmod(n, num)
    return int(_permutation(num, seed, epoch)[place])


def numpy_rng(seed: int, n: int) -> np.random.Generator:
    """What reading and preparing sample n draws from."""
    return np.random.default_rng([seed, n, 0xDA7A])


class Draws:
    """What a loss draws for the samples of a batch: a generator for each, so that the cut does not matter.

    Values are drawn on the CPU, so that a seed means the same on every device.
    """

    def __init__(self, seed: int, places: Sequence[int], device: str = "cpu"):
        self.device = device
        states = (np.random.SeedSequence([seed, n, 0x1055]).generate_state(2) for n in places)
        self._generators = [torch.Generator().manual_seed(int(a) << 31 ^ int(b)) for a, b in states]

    def normal(self, shape: Sequence[int]) -> Float[Tensor, "..."]:
        """Standard normal values, `shape` for each sample."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self._generators]).to(self.device)

    def uniform(self) -> Float[Tensor, " b"]:
        """A number in [0, 1) for each sample."""
        return torch.cat([torch.rand(1, generator=g) for g in self._generators]).to(self.device)

    def integers(self, high: int) -> Int[Tensor, " b"]:
        """A whole number below `high` for each sample."""
        return torch.cat([torch.randint(high, (1,), generator=g) for g in self._generators]).to(self.device)


@dataclass(frozen=True)
class _Samples(Dataset[dict[str, Any]]):
    """The run as torch's reading processes see it: sample n at index n."""

    source: Source
    prepare: Prepare
    seed: int

    def __getitem__(self, n: int) -> dict[str, Any]:
        rng = numpy_rng(self.seed, n)
        clip = self.source.read(index_of(n, len(self.source), self.seed), rng)
        return {"n": n, **self.prepare(clip, rng)}


def collate(items: Sequence[dict[str, Any]]) -> Batch:
    """Samples of one kind as a batch: tensors stacked, texts in tuples, numbers as tensors."""
    batch: dict[str, Any] = {}
    for name, first in items[0].items():
        values = [item[name] for item in items]
        if isinstance(first, Tensor):
            batch[name] = torch.stack(values)
        elif isinstance(first, np.ndarray):
            batch[name] = torch.from_numpy(np.stack(values))
        else:
            batch[name] = tuple(values) if isinstance(first, str) else torch.tensor(values)
    return batch


def parts_of(step: int, settings: Settings, rank: int = 0, world: int = 1) -> list[list[int]]:
    """The places of one update's samples that a process handles, cut into micro-batches."""
    mine = list(range(step * settings.batch + rank, (step + 1) * settings.batch, world))
    size = settings.micro_batch or max(1, len(mine))
    return [mine[i : i + size] for i in range(0, len(mine), size)]


def batches(
    source: Source, prepare: Prepare, settings: Settings, first_step: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Micro-batch after micro-batch from `first_step` to the end of the run, read ahead by worker processes."""
    steps = range(first_step, settings.steps)
    order = [part for step in steps for part in parts_of(step, settings, rank, world)]
    loader = DataLoader(
        _Samples(source, prepare, settings.seed),
        batch_sampler=order,
        num_workers=settings.workers,
        collate_fn=collate,
        worker_init_fn=_one_thread if settings.workers else None,
        prefetch_factor=4 if settings.workers else None,
    )
    yield from loader


def _one_thread(_: int) -> None:
    """Reading processes leave the cores to the network."""
    torch.set_num_threads(1)
