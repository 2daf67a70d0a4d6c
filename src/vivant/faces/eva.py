"""The visual tower of EVA02-CLIP (Fang et al., arXiv 2303.11331, and Sun et al., arXiv 2303.15389).

ConsisID reads two things of it: the pooled embedding of the picture, and what lies between its blocks at five depths.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vivant.attention import attend
from vivant.faces.network import Network, num_blocks

HEAD = 64
"""Channels of an attention head."""
TRAINED_GRID = 16
"""Patches a side before the tower was trained on at larger pictures; its rotary positions are stretched from there."""
NUM_DEPTHS = 5
EPS = 1e-6


class Seen(NamedTuple):
    """What the tower makes of pictures.

    Attributes:
        pooled: one embedding for each picture, not normalised.
        hidden: tokens after one, two, … five sixths of the blocks, the class token first.
    """

    pooled: Float[Tensor, "b e"]
    hidden: tuple[Float[Tensor, "b n c"], ...]


class Attention(nn.Module):
    """Self-attention with rotary positions, normalised before its last projection. Keys have no bias."""

    def __init__(self, width: int):
        super().__init__()
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.inner_attn_ln = nn.LayerNorm(width, eps=EPS)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n c"], places: Float[Tensor, "2 m d"]) -> Float[Tensor, "b n c"]:
        q = turned(F.linear(x, self.q_proj.weight, self.q_bias), places)
        k = turned(self.k_proj(x), places)
        v = F.linear(x, self.v_proj.weight, self.v_bias)
        x = attend(q, k, v, x.shape[-1] // HEAD)
        return self.proj(self.inner_attn_ln(x))


def turned(x: Float[Tensor, "b n c"], places: Float[Tensor, "2 m d"]) -> Float[Tensor, "b n c"]:
    """Each pair of neighbouring channels turned by the angle of its place; the class token has none."""
    token, patches = x[:, :1], x[:, 1:]
    pairs = rearrange(patches, "b m (h d p) -> b m h d p", d=HEAD // 2, p=2)
    cos, sin = rearrange(places, "two m (d p) -> two m 1 d p", p=2)
    across = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1)
    return torch.cat([token, rearrange(pairs * cos + across * sin, "b m h d p -> b m (h d p)")], dim=1)


def rotary_places(grid: int) -> Float[Tensor, "2 m d"]:
    """Cosines and sines for `grid` x `grid` patches, half of a head's channels for the row and half for the column."""
    speeds = 10000 ** -(torch.arange(0, HEAD // 2, 2) / (HEAD // 2))
    angles = (torch.arange(grid) / grid * TRAINED_GRID)[:, None] * speeds
    angles = angles.repeat_interleave(2, dim=1)
    both = torch.cat(torch.broadcast_tensors(angles[:, None], angles[None]), dim=-1).flatten(0, 1)
    return torch.stack([both.cos(), both.sin()])


class SwiGLU(nn.Module):
    """The gated feed-forward of Shazeer (arXiv 2002.05202), normalised before its last projection."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(width, hidden)
        self.ffn_ln = nn.LayerNorm(hidden, eps=EPS)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


class Block(nn.Module):
    """Attention and feed-forward, each beside a shortcut."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = SwiGLU(width, hidden)

    def forward(self, x: Float[Tensor, "b n c"], places: Float[Tensor, "2 m d"]) -> Float[Tensor, "b n c"]:
        x = x + self.attn(self.norm1(x), places)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Pictures to tokens."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x: Float[Tensor, "b 3 i j"]) -> Float[Tensor, "b m c"]:
        return rearrange(self.proj(x), "b c h w -> b (h w) c")


class EvaVisual(Network):
    """The visual tower; the published one is EVA02-CLIP-L/14 at 336 pixels.

    Args:
        width: channels of a token, a multiple of 64.
        depth: number of blocks, a multiple of 6.
        hidden: channels inside the feed-forward.
        patch: pixels a side of a token.
        grid: tokens a side of a picture.
        embedding: channels of the pooled embedding.
    """

    PREFIX = "visual."

    def __init__(self, width: int, depth: int, hidden: int, patch: int, grid: int, embedding: int):
        super().__init__()
        if width % HEAD or depth % (NUM_DEPTHS + 1):
            raise ValueError(f"width {width} is no multiple of {HEAD}, or depth {depth} none of {NUM_DEPTHS + 1}")
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.patch_embed = PatchEmbed(width, patch)
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, embedding)
        self.patch, self.grid = patch, grid

    @classmethod
    def sizes(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        width, _, patch, _ = state["patch_embed.proj.weight"].shape
        return {
            "width": width,
            "depth": num_blocks(state, "blocks."),
            "hidden": len(state["blocks.0.mlp.w1.bias"]),
            "patch": patch,
            "grid": round((state["pos_embed"].shape[1] - 1) ** 0.5),
            "embedding": len(state["head.bias"]),
        }

    @classmethod
    def published_names(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Without the tables of positions, which files hold once for each block; they are computed."""
        named = super().published_names(state)
        return {name: tensor for name, tensor in named.items() if ".rope." not in f".{name}"}

    @property
    def size(self) -> int:
        """Pixels a side of a picture."""
        return self.patch * self.grid

    def forward(self, x: Float[Tensor, "b 3 i j"]) -> Seen:
        """
        Args:
            x: pictures of `size` x `size`, normalised by CLIP's means and deviations.
        """
        places = rotary_places(self.grid).to(x)
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        hidden: list[Tensor] = []
        each = len(self.blocks) // (NUM_DEPTHS + 1)
        for i, block in enumerate(self.blocks):
            if i and i % each == 0:
                hidden.append(x)
            x = block(x, places)
        return Seen(self.head(self.norm(x)[:, 0]), tuple(hidden))
