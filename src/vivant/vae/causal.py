"""Causal convolution of videos in chunks (CogVideoX, Yang et al., arXiv 2408.06072, section 2.1).

No frame sees a later one. A video is worked through a few frames at a time; between these chunks a convolution needs
the last two frames that it saw. Before the first chunk stands its first frame, repeated.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

T = TypeVar("T")

HISTORY = 2
"""Frames before a frame that a convolution of three taps sees."""


def layout(dtype: torch.dtype) -> torch.memory_format:
    """The memory layout of activations: channels last in half precision, like `vivant.upsample.layout`."""
    return torch.channels_last_3d if dtype.itemsize < 4 else torch.contiguous_format


def chunks(num_frames: int, size: int) -> tuple[slice, ...]:
    """Parts of `size` frames. The first takes what is left over as well; what is shorter than two parts is one."""
    num = max(num_frames // size, 1)
    first = num_frames - (num - 1) * size
    return (slice(0, first), *(slice(start, start + size) for start in range(first, num_frames, size)))


def in_turn(streams: Sequence[Iterator[T]]) -> Iterator[tuple[T, ...]]:
    """The k-th results of all streams together, computed one stream after the other.

    All but the last run to their end first, since what a stream remembers between its results (`Past`) is much larger
    than the results are: only one stream is under way at any time.
    """
    *first, last = streams
    yield from zip(*[list(stream) for stream in first], last, strict=True)


class CausalConv3d(nn.Module):
    """A convolution of 3x3x3 taps: zeros lie around the picture, and along the time it reaches back only.

    Its input is a window, the frames to convolve after the `HISTORY` frames before them; see `Past.window`.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=(0, 1, 1))

    def forward(self, window: Float[Tensor, "b c k h w"]) -> Float[Tensor, "b d f h w"]:
        """A window of one frame is a still that has always been there: all taps in time see the same picture."""
        if window.shape[2] > 1:
            return self.conv(window)
        weight, still = summed_over_time(self.conv.weight), window[:, :, 0]
        if weight.shape[1] > self.conv.in_channels:
            still = torch.cat([still, still], dim=1)
        return F.conv2d(still, weight, self.conv.bias, padding=1).unsqueeze(2)


def summed_over_time(weight: Float[Tensor, "d c k y x"]) -> Float[Tensor, "d e y x"]:
    """What a convolution does to a still.

    In half precision the sum and, behind it along the channels, what rounding took from it: rounded alone it would add
    an error of its own, a tenth of the whole encoder's (test_half_precision_is_as_close_to_float32_as_the_port).
    """
    exact = weight.sum(2, dtype=torch.promote_types(weight.dtype, torch.float32))
    rounded = exact.to(weight.dtype)
    if weight.dtype == exact.dtype:
        return exact
    return torch.cat([rounded, (exact - rounded).to(weight.dtype)], dim=1)


class Past:
    """The last frames that each causal convolution saw, for the next chunk of the same video.

    A local value of the function that goes through the chunks, so that two runs never meet and one that is given up
    leaves nothing behind. It changes in place: frames are let go when they are read, so no layer's are held twice.

    Attributes:
        is_last: whether the present chunk is the last one, of which nothing needs to be kept.
    """

    def __init__(self):
        self.is_last = False
        self._frames: dict[CausalConv3d, Tensor] = {}

    def __len__(self) -> int:
        """The number of layers with frames of their own."""
        return len(self._frames)

    def window(
        self, conv: CausalConv3d, x: Float[Tensor, "b c f h w"], silu: bool = True
    ) -> Float[Tensor, "b c k h w"]:
        """What `conv` is to see: `x`, with SiLU unless `silu` is False, after the frames before it."""
        before = self._frames.pop(conv, None)
        if before is None and x.shape[2] == 1:
            window = F.silu(x) if silu else x
            ending = window.expand(-1, -1, HISTORY, -1, -1)
        else:
            window = _joined(before, x, silu)
            ending = window[:, :, -HISTORY:]
        if not self.is_last:
            self._frames[conv] = ending.clone()  # a view would keep the whole window
        return window


def _joined(
    before: Float[Tensor, "b c k h w"] | None, x: Float[Tensor, "b c f h w"], silu: bool
) -> Float[Tensor, "b c n h w"]:
    """`before`, or the first frame as often, and then `x`. SiLU writes to its place at once; gradients forbid that."""
    if torch.is_grad_enabled() and x.requires_grad:
        x = F.silu(x) if silu else x
        return torch.cat([x[:, :, :1].expand(-1, -1, HISTORY, -1, -1) if before is None else before, x], dim=2)
    b, c, f, h, w = x.shape
    window = torch.empty((b, c, HISTORY + f, h, w), dtype=x.dtype, device=x.device, memory_format=layout(x.dtype))
    place = window[:, :, HISTORY:]
    torch.ops.aten.silu.out(x, out=place) if silu else place.copy_(x)
    window[:, :, :HISTORY] = place[:, :, :1] if before is None else before
    return window
