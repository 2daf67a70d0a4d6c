"""FreeU: better pictures by re-weighing the UNet's two inputs of an up stage (Si et al. 2023, arXiv 2309.11497)."""

import math
import sys
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from vivant.config import as_python
from vivant.errors import InputError


@dataclass(frozen=True)
class FreeU:
    """Scales of the first two up stages: s weakens the skip's low frequencies, b strengthens the backbone.

    Usual for Stable Diffusion 1.5: s1=0.9, s2=0.2, b1=1.2, b2=1.4.

    Raises:
        InputError: E-FREEU-SCALE for anything but positive numbers.
    """

    s1: float
    s2: float
    b1: float
    b2: float

    def __post_init__(self):
        for name in ("s1", "s2", "b1", "b2"):
            value = as_python(getattr(self, name))
            object.__setattr__(self, name, value)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
                raise InputError(
                    "E-FREEU-SCALE",
                    f"FreeU cannot use {name} = {value!r}.",
                    "The four scales are positive numbers, and 1 changes nothing.",
                    "Stable Diffusion 1.5 is usually run with s1=0.9, s2=0.2, b1=1.2, b2=1.4.",
                )

    def stage(self, index: int) -> tuple[float, float] | None:
        """(s, b) of the up stage `index`, counted from 0 at the lowest resolution; None where FreeU does nothing."""
        return {0: (self.s1, self.b1), 1: (self.s2, self.b2)}.get(index)


def freeu(
    hidden: Float[Tensor, "n c h w"], skip: Float[Tensor, "n k h w"], s: float, b: float
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k h w"]]:
    """Re-weigh the two inputs of a resnet of an up stage, before they are concatenated. Neither is changed in place.

    Args:
        hidden: backbone features; the first half of their channels is multiplied by `b`.
        skip: skip features; their lowest frequencies are multiplied by `s`, in float32 whatever their dtype.
    """
    half = hidden.shape[1] // 2
    backbone = torch.cat([hidden[:, :half] * b, hidden[:, half:]], dim=1)
    exact = skip.float()
    return backbone, (exact + (s - 1) * _lowest(exact)).to(skip.dtype)


def _lowest(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """The part of `x` in the frequencies {0, -1} x {0, -1}, that is a Fourier low-pass with threshold 1.

    parity: the window lacks +1, so its inverse transform is complex and the references keep the real part
    (test_freeu_equals_the_reference). With at most four frequencies two small products with real waves replace two
    Fourier transforms, which not every device has.
    """
    waves = _waves(x.shape[-2], x.shape[-1], x.device)
    weights = einsum(x, waves, "n c h w, wave h w -> n c wave") / (x.shape[-2] * x.shape[-1])
    return einsum(weights, waves, "n c wave, wave h w -> n c h w")


def _waves(h: int, w: int, device: torch.device) -> Float[Tensor, "waves h w"]:
    """Cosine and sine of every frequency that passes; along an axis of length 1 the frequency -1 is 0 again."""
    y = torch.arange(h, device=device)[:, None] * (2 * math.pi / h)
    x = torch.arange(w, device=device) * (2 * math.pi / w)
    phases = [i * y + j * x for i in range(min(h, 2)) for j in range(min(w, 2))]
    return torch.stack([wave(phase) for phase in phases for wave in (torch.cos, torch.sin)])
