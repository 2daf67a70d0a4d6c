"""Random draws. The order in which a run draws is part of its contract, so all draws go through one value."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vivant.errors import InputError


@dataclass(frozen=True)
class Rng:
    """Standard normal draws from one generator for the whole batch, or from one generator for each entry.

    Values are drawn in float32 on the generator's own device (the CPU if there is none), so that a seed gives the
    same noise on every device and in every precision. Half-precision draws of torch are these values rounded.
    """

    generators: tuple[torch.Generator, ...] = ()
    per_entry: bool = False

    @classmethod
    def of(cls, source: "torch.Generator | Sequence[torch.Generator] | None", batch: int) -> "Rng":
        """From diffusers' `generator` argument; a list needs one generator for each of the `batch` clips.

        Raises:
            InputError: E-GENERATORS when the list has another length.
        """
        if source is None:
            return cls()
        if isinstance(source, torch.Generator):
            return cls((source,))
        if not isinstance(source, list | tuple) or not all(isinstance(g, torch.Generator) for g in source):
            raise InputError(
                "E-GENERATORS",
                f"generator is {source!r}.",
                "Noise is drawn from torch.Generator.",
                "Give torch.Generator().manual_seed(7), or a list with one for each clip.",
            )
        if len(source) != batch:
            raise InputError(
                "E-GENERATORS",
                f"{len(source)} generators were given for {batch} clips.",
                "A list holds one generator for each clip, prompts times videos per prompt.",
                f"Give {batch} generators, or a single one.",
            )
        return cls(tuple(source), per_entry=True)

    def normal(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Float[Tensor, "..."]:
        """One draw of `shape`; with a generator for each entry, one draw of `(1, …)` from each, stacked."""
        if self.per_entry:
            return torch.cat([_draw((1, *shape[1:]), g) for g in self.generators]).to(device)
        return _draw(tuple(shape), self.generators[0] if self.generators else None).to(device)


def _draw(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
