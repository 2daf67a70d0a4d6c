"""Doubling a picture and convolving it, without computing on repeated pixels; used by UNets and autoencoders.

After nearest-neighbour doubling the nine taps of a 3x3 convolution fall on only four different pixels. Which four
depends on whether the row and the column of the result are even or odd: four phases, each a 2x2 convolution of the
small picture whose weights are sums of the original ones. That is 4/9 of the multiplications and a quarter of the
memory traffic, for the same numbers.
"""

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Phases = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def layout(dtype: torch.dtype) -> torch.memory_format:
    """The memory layout of activations: channels last for half precision, channels first for what is wider.

    Channels last is the faster one, but in it torch's group normalisation sums a picture pixel by pixel, which costs
    float32 up to two digits (test_large_pictures_keep_their_digits).
    """
    return torch.channels_last if dtype.itemsize < 4 else torch.contiguous_format


class Upsample(nn.Module):
    """Nearest-neighbour enlargement, as a rule doubling, then a 3x3 convolution."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(num_channels, num_channels, 3, padding=1)
        self._known: tuple[Tensor, tuple[object, ...], Phases] | None = None

    def forward(self, x: Float[Tensor, "n c h w"], size: tuple[int, int] | None = None) -> Float[Tensor, "n c i j"]:
        """`size` is that of the result; twice that of `x` if not given, and fastest then."""
        double = (2 * x.shape[2], 2 * x.shape[3])
        trains = torch.is_grad_enabled() and (x.requires_grad or self.conv.weight.requires_grad)
        compiling = torch.compiler.is_compiling()
        if trains or size not in (None, double) or (compiling and x.device.type != "cpu"):
            return self.conv(F.interpolate(x, size=size or double, mode="nearest"))
        # A compiler that freezes the weights sums them once; it cannot trace through the memory of `phases`.
        phases = sum_phases(self.conv.weight) if compiling else self.phases()
        return double_and_convolve(x, phases, self.conv.bias)

    @torch.no_grad()
    def phases(self) -> Phases:
        """The summed weights, computed anew when the weight was replaced, changed in place, moved or cast."""
        weight = self.conv.weight
        if weight.is_inference():  # such tensors do not count their changes
            return sum_phases(weight)
        state = (weight._version, weight.data_ptr(), weight.dtype, weight.device, _checksum(weight))
        if self._known is None or self._known[0] is not weight or self._known[1] != state:
            self._known = (weight, state, sum_phases(weight))
        return self._known[2]

    def _apply(self, *args: Any, **kwargs: Any) -> "Upsample":
        self._known = None  # casting to and fro may end at the same address with other values
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": None}  # copies and pickles carry the weight only


def _checksum(weight: Float[Tensor, "d c 3 3"]) -> int:
    """Sum of the squares of the weight's bits, in words that wrap around: little beside the convolution itself.

    Writing through `weight.data`, as code that averages weights does, is not counted in a tensor's version.
    """
    dense = weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
    flat = weight.as_strided((weight.numel(),), (1,)) if dense else weight.flatten()
    words = flat.numel() * flat.itemsize % 8 == 0 and flat.storage_offset() * flat.itemsize % 8 == 0
    bits = flat.view(torch.int64 if words else torch.uint8).long()
    return 0 if bits.is_meta else int((bits * bits).sum().item())


# The taps of three that meet the first and the second pixel, at an even and at an odd place. A result at 2i sees the
# doubled pixels 2i-1, 2i, 2i+1, which are i-1, i, i of the small picture; one at 2i+1 sees i, i, i+1.
_TAPS = (((0,), (1, 2)), ((0, 1), (2,)))


def sum_phases(weight: Float[Tensor, "d c 3 3"]) -> Phases:
    """The 2x2 weights of the phases [row parity][column parity], summed in float32 or wider, in `weight`'s dtype."""
    wide = torch.promote_types(weight.dtype, torch.float32)

    def phase(row: int, column: int) -> Float[Tensor, "d c 2 2"]:
        small = torch.empty_like(weight[:, :, :2, :2], memory_format=layout(weight.dtype))
        for i, j in product((0, 1), (0, 1)):
            taps = [weight[:, :, y, x].to(wide) for y, x in product(_TAPS[row][i], _TAPS[column][j])]
            small[:, :, i, j] = sum(taps[1:], taps[0])
        return small

    return (phase(0, 0), phase(0, 1)), (phase(1, 0), phase(1, 1))


def double_and_convolve(
    x: Float[Tensor, "n c h w"], phases: Phases, bias: Float[Tensor, " d"] | None
) -> Float[Tensor, "n d 2*h 2*w"]:
    """The convolution of the doubled picture, phase by phase."""
    n, _, h, w = x.shape
    shape = (n, phases[0][0].shape[0], 2 * h, 2 * w)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout(x.dtype))
    for row in (0, 1):
        for column in (0, 1):
            # Padding on all sides gives one row and one column more than a phase has; it starts at its parity.
            part = F.conv2d(x, phases[row][column], bias, padding=1)
            out[:, :, row::2, column::2] = part[:, :, row : row + h, column : column + w]
    return out
