"""Causal convolution of videos in chunks (CogVideoX, Yang et al., arXiv 2408.06072, section 2.1).

No frame sees a later one. A video is worked through a few frames at a time; between these chunks a convolution needs
the last two frames that it saw. Before the first chunk stands its first frame, repeated.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

T = TypeVar("T")

Parts = Iterable[tuple[slice, Tensor]]
"""A tensor in parts along its channels: which ones, and these."""

HISTORY = 2
"""Frames before a frame that a convolution of three taps sees."""

NORMALISED_AT_ONCE = 256 * 2**20
"""Bytes of activations beyond which groups are normalised a few at a time."""


def layout(x: Tensor) -> torch.memory_format:
    """The memory layout of activations: channels last in half precision, like `vivant.upsample.layout`.

    Without kernels for half precision torch convolves channels first, and copies what comes in another layout.
    """
    is_half = x.dtype.itemsize < 4 and (x.device.type != "cpu" or has_kernels(x.dtype))
    return torch.channels_last_3d if is_half else torch.contiguous_format


@cache
def has_kernels(dtype: torch.dtype) -> bool:
    """Whether torch's library for processors convolves in this half precision on this one."""
    question = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype, "")
    try:
        return bool(getattr(torch.ops.mkldnn, question)())
    except (AttributeError, RuntimeError):  # builds without oneDNN, and versions that do not offer the question
        return False


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


class GroupNorm(nn.GroupNorm):
    """Group normalisation, of all channels or of some whole groups."""

    def forward(self, x: Float[Tensor, "b c f h w"], channels: slice = slice(None)) -> Float[Tensor, "b d f h w"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, bias = self.weight[channels], self.bias[channels]
        num_groups = len(weight) * self.num_groups // self.num_channels
        return F.group_norm(x[:, channels], num_groups, weight, bias, self.eps)

    def parts(self, x: Float[Tensor, "b c f h w"]) -> Parts:
        """`x` normalised, of large ones some groups after the other: the convolution's window takes each at once, so
        that no second copy of all of them is ever held."""
        yield from ((channels, self(x, channels)) for channels in self.split(x))

    def split(self, x: Float[Tensor, "b c f h w"]) -> list[slice]:
        """Channels of equally many groups, as few parts as `NORMALISED_AT_ONCE` allows."""
        least = x.nbytes / NORMALISED_AT_ONCE
        num = next((n for n in range(1, self.num_groups) if self.num_groups % n == 0 and n >= least), self.num_groups)
        each = self.num_channels // num
        return [slice(start, start + each) for start in range(0, self.num_channels, each)]


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
        if weight.shape[1] > still.shape[1] == self.conv.in_channels:
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
        self, conv: CausalConv3d, x: Float[Tensor, "b c f h w"], normed: Parts | None = None
    ) -> Float[Tensor, "b d k h w"]:
        """What `conv` is to see after the frames before it: `x`, or SiLU of what it is `normed` to; a still perhaps
        twice, see `_still`.

        Args:
            conv: the convolution.
            x: frames. With `normed` only its shape counts.
            normed: `x` normalised, its channels in order; see `GroupNorm.parts`.
        """
        before = self._frames.pop(conv, None)
        if before is None and x.shape[2] == 1:
            window = x if normed is None else _still(x, normed)
            ending = window[:, : x.shape[1]].expand(-1, -1, HISTORY, -1, -1)
        else:
            window = _joined(before, x, normed)
            ending = window[:, :, -HISTORY:]
        if not self.is_last:
            self._frames[conv] = ending.clone()  # a view would keep the whole window
        return window


def _still(x: Float[Tensor, "b c 1 h w"], normed: Parts) -> Float[Tensor, "b d 1 h w"]:
    """SiLU of what a picture is normalised to; in half precision twice, as `summed_over_time` reads it."""
    if torch.is_grad_enabled() or x.dtype.itemsize >= 4:
        return _activated(normed)
    b, c, _, h, w = x.shape
    twice = torch.empty((b, 2 * c, 1, h, w), dtype=x.dtype, device=x.device, memory_format=layout(x))
    for channels, part in normed:
        torch.ops.aten.silu.out(part, out=twice[:, channels])
        twice[:, channels.start + c : channels.stop + c] = twice[:, channels]
        del part  # before the next one is computed
    return twice


def _activated(normed: Parts) -> Float[Tensor, "b c f h w"]:
    return torch.cat([F.silu(part) for _, part in normed], dim=1)


def _joined(
    before: Float[Tensor, "b c k h w"] | None, x: Float[Tensor, "b c f h w"], normed: Parts | None
) -> Float[Tensor, "b c n h w"]:
    """`before`, or the first frame as often, and then the rest. SiLU writes to its place; gradients forbid that."""
    if torch.is_grad_enabled():
        x = x if normed is None else _activated(normed)
        return torch.cat([x[:, :, :1].expand(-1, -1, HISTORY, -1, -1) if before is None else before, x], dim=2)
    b, c, f, h, w = x.shape
    window = torch.empty((b, c, HISTORY + f, h, w), dtype=x.dtype, device=x.device, memory_format=layout(x))
    place = window[:, :, HISTORY:]
    if normed is None:
        place.copy_(x)
    else:
        for channels, part in normed:
            torch.ops.aten.silu.out(part, out=place[:, channels])
            del part  # before the next one is computed
    window[:, :, :HISTORY] = place[:, :, :1] if before is None else before
    return window
