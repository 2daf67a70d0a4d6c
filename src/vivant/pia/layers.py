"""The layers of the Stable Diffusion 1.5 UNet, over the frames of a clip.

Activations are `(b f) c h w`; annotations call that first axis `bf`. In half precision they lie channels-last in memory
(see `vivant.upsample.layout`), where the token view `(b f) (h w) c` and the clip view `b c (f h) w` cost nothing, so
that normalising over a frame or over a clip is the same operation.

A batch axis may arrive smaller than that of the text: with guidance both halves see the same picture, and all that
lies before the first text attention is computed once. `spread` copies at the point where they part.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from vivant.attention import attend


class PictureKeysValues(NamedTuple):
    """What an attention reads of pictures beside the text: one entry per clip, the values times their strength.

    The mask says how much of it reaches each position of a frame.
    """

    keys: Float[Tensor, "b m c"]
    values: Float[Tensor, "b m c"]
    mask: Float[Tensor, "p 1"] | None = None


class KeysValues(NamedTuple):
    """What an attention reads of the text: one entry per clip, or one per frame (`(b f)`); and of pictures, if any."""

    keys: Float[Tensor, "b m c"]
    values: Float[Tensor, "b m c"]
    per_frame: bool = False
    pictures: tuple[PictureKeysValues, ...] = ()

    def num_rows(self, num_frames: int) -> int:
        """Length of the `(b f)` axis that this text belongs to."""
        return self.keys.shape[0] * (1 if self.per_frame else num_frames)

    def of_frames(self, frames: Sequence[int], num_frames: int) -> Self:
        """What some frames of every clip of `num_frames` read; what whole clips read is for all of them."""
        if not self.per_frame:
            return self
        keys, values = (
            rearrange(rearrange(x, "(b f) m c -> b f m c", f=num_frames)[:, list(frames)], "b f m c -> (b f) m c")
            for x in (self.keys, self.values)
        )
        return self._replace(keys=keys, values=values)


def spread(x: Float[Tensor, "n ..."], num: int) -> Float[Tensor, "m ..."]:
    """Repeat the batch axis as whole blocks until it has `num` entries, keeping the memory layout."""
    if x.shape[0] == num:
        return x
    assert num % x.shape[0] == 0, f"{num} entries are not whole blocks of {x.shape[0]}"
    return torch.cat([x] * (num // x.shape[0]))


def normalise(norm: nn.GroupNorm, x: Float[Tensor, "bf c h w"], num_frames: int) -> Float[Tensor, "bf c h w"]:
    """Group normalisation with statistics over `num_frames` frames together: 1 is per frame, f is per clip."""
    if num_frames == 1:
        return norm(x)
    clip = norm(rearrange(x, "(b f) c h w -> b c (f h) w", f=num_frames))
    return rearrange(clip, "b c (f h) w -> (b f) c h w", f=num_frames)


class TimeEmbedding(nn.Module):
    """Sinusoidal timestep (cosine half first), then a two-layer perceptron."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.num_channels = num_channels
        self.linear_1 = nn.Linear(num_channels, 4 * num_channels)
        self.linear_2 = nn.Linear(4 * num_channels, 4 * num_channels)

    def forward(self, timesteps: Int[Tensor, " b"] | Float[Tensor, " b"]) -> Float[Tensor, "b t"]:
        half = self.num_channels // 2
        index = torch.arange(half, dtype=torch.float32, device=timesteps.device)
        angles = timesteps[:, None].float() * torch.exp(-math.log(10000) / half * index)
        table = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(table)))


class ResnetBlock(nn.Module):
    """Two convolutions around the time embedding; `over_clip` decides the scope of its normalisation."""

    def __init__(
        self, in_channels: int, out_channels: int, time_channels: int, num_groups: int, eps: float, over_clip: bool
    ):
        super().__init__()
        self.over_clip = over_clip
        self.norm1 = nn.GroupNorm(num_groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = nn.GroupNorm(num_groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        else:
            self.conv_shortcut = None

    def forward(
        self, x: Float[Tensor, "bf c h w"], time: Float[Tensor, "k t"], num_frames: int
    ) -> Float[Tensor, "bf d h w"]:
        """`time` is already activated; k is 1 when all clips are at the same timestep."""
        scope = num_frames if self.over_clip else 1
        shift = self.time_emb_proj(time)
        h = F.silu(normalise(self.norm1, x, scope), inplace=True)
        if shift.shape[0] == 1 and not torch.compiler.is_compiling():
            # A shift that all share is a bias: one pass over memory less. A compiler fuses the sum by itself.
            h = F.conv2d(h, self.conv1.weight, self.conv1.bias + shift[0], padding=1)
        else:
            shift = shift.repeat_interleave(num_frames, dim=0)
            h = self.conv1(h) + spread(shift, h.shape[0])[:, :, None, None]
        h = F.silu(normalise(self.norm2, h, scope), inplace=True)
        return self.conv2(h) + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Multi-head attention without query, key and value biases. Keys and values may come from the text."""

    def __init__(self, num_channels: int, num_heads: int, context_channels: int | None = None):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(num_channels, num_channels, bias=False)
        self.to_k = nn.Linear(context_channels or num_channels, num_channels, bias=False)
        self.to_v = nn.Linear(context_channels or num_channels, num_channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(num_channels, num_channels)])

    def project(self, text: Float[Tensor, "b m d"], per_frame: bool) -> KeysValues:
        """Keys and values of a text, which does not change between steps."""
        return KeysValues(self.to_k(text), self.to_v(text), per_frame)

    def forward(self, x: Float[Tensor, "n p c"], text: KeysValues | None = None) -> Float[Tensor, "n p c"]:
        if text is None:
            return self.to_out[0](attend(self.to_q(x), self.to_k(x), self.to_v(x), self.num_heads))
        q = self.to_q(x)
        out = self._read(q, text.keys, text.values)
        for seen in text.pictures:
            read = self._read(q, seen.keys, seen.values)
            out = out + (read if seen.mask is None else read * seen.mask)
        return self.to_out[0](out)

    def _read(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        # All frames of a clip read the same: one long query per clip instead of one copy of the text per frame.
        num_frames = q.shape[0] // keys.shape[0]
        q = rearrange(q, "(b f) p c -> b (f p) c", f=num_frames)
        return rearrange(attend(q, keys, values, self.num_heads), "b (f p) c -> (b f) p c", f=num_frames)


FEED_FORWARD_ROWS = 1024
"""Tokens that go through a feed-forward together on a CPU, so that the eightfold wider middle stays in the cache."""


class GEGLU(nn.Module):
    """Gated linear unit with GELU (arXiv 2002.05202, eq. 6): half of the projection gates the other half."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.proj = nn.Linear(in_channels, 2 * out_channels)

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        hidden, gate = self.proj(x).chunk(2, dim=-1)
        return hidden * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU, then back; `net.1` is the place of a dropout in published files."""

    def __init__(self, num_channels: int):
        super().__init__()
        inner = 4 * num_channels
        self.net = nn.ModuleList([GEGLU(num_channels, inner), nn.Identity(), nn.Linear(inner, num_channels)])

    def forward(self, x: Float[Tensor, "n p c"]) -> Float[Tensor, "n p c"]:
        rows = rearrange(x, "n p c -> (n p) c")
        if x.device.type != "cpu" or rows.shape[0] <= FEED_FORWARD_ROWS:
            return self.net[2](self.net[0](x))
        size = 2 * FEED_FORWARD_ROWS if torch.compiler.is_compiling() else FEED_FORWARD_ROWS
        parts = [self.net[2](self.net[0](part)) for part in rows.split(size)]
        return torch.cat(parts).view(x.shape)


class SpatialBlock(nn.Module):
    """Self-attention over the positions of a frame, attention to the text, feed-forward."""

    def __init__(self, num_channels: int, num_heads: int, text_channels: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(num_channels)
        self.attn1 = Attention(num_channels, num_heads)
        self.norm2 = nn.LayerNorm(num_channels)
        self.attn2 = Attention(num_channels, num_heads, text_channels)
        self.norm3 = nn.LayerNorm(num_channels)
        self.ff = FeedForward(num_channels)

    def forward(self, x: Float[Tensor, "n p c"], text: KeysValues, num_frames: int) -> Float[Tensor, "m p c"]:
        x = x + self.attn1(self.norm1(x))
        x = spread(x, text.num_rows(num_frames))
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer over the positions of each frame. Its normalisation is per frame in both numerics."""

    def __init__(
        self, num_channels: int, num_heads: int, num_layers: int, text_channels: int, num_groups: int, linear: bool
    ):
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, num_channels, eps=1e-6)
        self.proj_in = nn.Linear(num_channels, num_channels) if linear else nn.Conv2d(num_channels, num_channels, 1)
        blocks = [SpatialBlock(num_channels, num_heads, text_channels) for _ in range(num_layers)]
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Linear(num_channels, num_channels) if linear else nn.Conv2d(num_channels, num_channels, 1)

    def project(self, text: Float[Tensor, "b m d"], per_frame: bool) -> tuple[KeysValues, ...]:
        """Keys and values of the text for every layer."""
        blocks = cast(Iterable[SpatialBlock], self.transformer_blocks)
        return tuple(block.attn2.project(text, per_frame) for block in blocks)

    def forward(
        self, x: Float[Tensor, "n c h w"], text: tuple[KeysValues, ...], num_frames: int
    ) -> Float[Tensor, "m c h w"]:
        tokens = rearrange(self.norm(x), "n c h w -> n (h w) c")
        tokens = F.linear(tokens, self.proj_in.weight.flatten(1), self.proj_in.bias)
        for block, keys_values in zip(self.transformer_blocks, text, strict=True):
            tokens = block(tokens, keys_values, num_frames)
        tokens = F.linear(tokens, self.proj_out.weight.flatten(1), self.proj_out.bias)
        return spread(x, tokens.shape[0]) + rearrange(tokens, "n (h w) c -> n c h w", h=x.shape[2])


class Downsample(nn.Module):
    """Halve height and width by a strided convolution."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(num_channels, num_channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c i j"]:
        return self.conv(x)
