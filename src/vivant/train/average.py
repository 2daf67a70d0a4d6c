"""The exponential average of the weights: what is sampled from and exported."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


def memory_at(step: int, limit: float) -> float:
    """How much of the average survives update `step`; little at first, so that the random start is forgotten."""
    return min(limit, (1 + step) / (10 + step))


@torch.no_grad()
def blend_(average: Mapping[str, Tensor], weights: Mapping[str, Tensor], step: int, limit: float) -> None:
    """average <- memory average + (1 - memory) weights, in place."""
    for name, value in average.items():
        value.lerp_(weights[name], 1 - memory_at(step, limit))


@contextmanager
@torch.no_grad()
def averaged(weights: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> Generator[None]:
    """The network with the average in place of its weights, for the time of the block."""
    own = {name: weights[name].detach().clone() for name in average}
    for name, value in average.items():
        weights[name].copy_(value)
    try:
        yield
    finally:
        for name, value in own.items():
            weights[name].copy_(value)
