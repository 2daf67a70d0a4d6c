"""Several processes, one run: each handles its share of a batch, and gradients are summed."""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from vivant.placement import best_device, check_place


@dataclass(frozen=True)
class Processes:
    """Who this process is. `torchrun --nproc-per-node 2 -m vivant.cli train …` starts several."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """One process writes files and speaks."""
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Add the tensors of all processes, in place, in one message."""
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined(device: str = "auto") -> Generator[Processes]:
    """The processes that torchrun started, each with its own card where there are cards; one alone without it.

    Raises:
        InputError: E-DEVICE for a device that is not there.
    """
    device = best_device() if device == "auto" else device
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    check_place(device, torch.float32)
    if world == 1:
        yield Processes(device=device)
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Processes(dist.get_rank(), world, device)
    finally:
        dist.destroy_process_group()
