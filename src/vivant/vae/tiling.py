"""Tiles: where they lie, and how neighbours are joined. Pure geometry, used by the autoencoders of pictures and clips.

Tiles start every `stride` on the latent grid and are `tile` long, so each shares ``tile - stride`` with the next. In
the shared part the later tile fades in linearly. A tile at the end of an axis is cut short.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vivant.errors import InputError


@dataclass(frozen=True)
class Tiling:
    """When and how an autoencoder works in tiles.

    Attributes:
        tile_sample_min_size: side of a tile in pixels. What is no larger in both directions is not cut.
        tile_overlap_factor: the part of a tile that it shares with its neighbour, in [0, 1).

    Raises:
        InputError: E-TILING when these make no tiles.
    """

    tile_sample_min_size: int = 512
    tile_overlap_factor: float = 0.25

    def __post_init__(self):
        size, overlap = self.tile_sample_min_size, self.tile_overlap_factor
        if not isinstance(size, int) or size < 1:
            raise InputError("E-TILING", f"tile_sample_min_size={size!r} is not a number of pixels.")
        if not 0 <= overlap < 1:
            raise InputError("E-TILING", f"tile_overlap_factor={overlap!r} is not in [0, 1).")

    def grid(self, factor: int) -> "Grid":
        """The tiles in latents, each of which is `factor` pixels wide.

        Raises:
            InputError: E-TILING when the tile does not consist of whole latents, or nothing but overlap is left.
        """
        tile, rest = divmod(self.tile_sample_min_size, factor)
        stride = int(tile * (1 - self.tile_overlap_factor))
        if rest or stride < 1:
            raise InputError(
                "E-TILING",
                f"Tiles of {self.tile_sample_min_size} pixels that share {self.tile_overlap_factor:.0%} do not work.",
                f"A latent is {factor} pixels wide; a tile must hold a whole number of them and advance by one.",
                f"Choose a multiple of {factor} for tile_sample_min_size, or a smaller tile_overlap_factor.",
            )
        return Grid(tile, stride)


@dataclass(frozen=True)
class Grid:
    """Tile length and distance between tiles, in latents."""

    tile: int
    stride: int

    @property
    def overlap(self) -> int:
        """How much a tile shares with the next."""
        return self.tile - self.stride

    def spans(self, length: int, unit: int = 1) -> tuple[slice, ...]:
        """The tiles along an axis of `length` latents, in steps of `unit` (1 for latents, more for their pixels).

        The last may reach over the end; slicing cuts it short.
        # parity: it may also lie within the one before, as in diffusers (test_tiled_decode_equals_the_port).
        """
        return tuple(slice(i * unit, (i + self.tile) * unit) for i in range(0, length, self.stride))


def ramps(extent: int) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Weights of the earlier and of the later tile over the shared part; the later begins 0, 1/n, … (n - 1)/n."""
    later = torch.arange(extent, dtype=torch.float64) / extent
    return (1 - later).float(), later.float()


def fade(
    before: Float[Tensor, "*shape"], after: Float[Tensor, "*other"], extent: int, dim: int
) -> Float[Tensor, "*other"]:
    """`after` with its first entries along `dim` faded in from the last entries of `before`, in place.

    Args:
        before: the tile above or to the left.
        after: the tile to change.
        extent: number of entries shared; fewer where a tile is shorter.
        dim: the axis, negative.
    """
    extent = min(extent, before.shape[dim], after.shape[dim])
    falling, rising = (weight.to(after.device).reshape(-1, *[1] * (-dim - 1)) for weight in ramps(extent))
    end = before.narrow(dim, before.shape[dim] - extent, extent)
    start = after.narrow(dim, 0, extent)
    # In float32 whatever the tiles are, rounded once; float32 tiles give diffusers' values to the last bit.
    start.copy_(end * falling + start * rising)
    return after


def join(
    compute: Callable[[slice, slice], Float[Tensor, "..."]],
    rows: Sequence[slice],
    columns: Sequence[slice],
    stride: int,
    overlap: int,
) -> Float[Tensor, "..."]:
    """Compute tile after tile and join them; of finished tiles only the edges that neighbours need stay in memory.

    Args:
        compute: from a row span and a column span to a tile `(…, h, w)` that may be changed.
        rows: spans along the height, from top to bottom.
        columns: spans along the width, from left to right.
        stride: what a tile contributes along either axis, in the units of the result.
        overlap: what neighbours share, in the same units.
    """
    lines: list[Tensor] = []
    above: list[Tensor] = []
    for row in rows:
        line: list[Tensor] = []
        lower_edges: list[Tensor] = []
        left = None
        for j, column in enumerate(columns):
            tile = compute(row, column)
            if overlap and above:
                fade(above[j], tile, overlap, dim=-2)
            if overlap and left is not None:
                fade(left, tile, overlap, dim=-1)
            left = tile[..., -overlap:].clone()
            lower_edges.append(tile[..., -overlap:, :].clone())
            line.append(tile[..., :stride, :stride].clone())
        above = lower_edges
        lines.append(torch.cat(line, dim=-1))
    return torch.cat(lines, dim=-2)
