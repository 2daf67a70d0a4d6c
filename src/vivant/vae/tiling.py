"""Tiles: where they lie, and how neighbours are joined. Pure geometry, used by the autoencoders of pictures and videos.

Tiles start every `stride` on the latent grid and are `tile` long, so each shares ``tile - stride`` with the next. In
the shared part the later tile fades in linearly. A tile at the end of an axis is cut short.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vivant.errors import InputError


@dataclass(frozen=True)
class Tiling:
    """When and how an autoencoder works in tiles, along both axes or along one.

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
            raise InputError("E-TILING", f"The side of a tile, {size!r}, is not a number of pixels.")
        if not 0 <= overlap < 1:
            raise InputError("E-TILING", f"The overlap of tiles, {overlap!r}, is not in [0, 1).")

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
                f"Choose a multiple of {factor} for the side of a tile, or a smaller overlap.",
            )
        return Grid(tile, stride)


@dataclass(frozen=True)
class Grid:
    """Tiles along one axis, in latents: their length, the distance between them, and how many there are at most.

    Attributes:
        tile: length of a tile.
        stride: distance from the start of one tile to that of the next.
        num: number of tiles; as many as begin before the end of the axis if not given.
    """

    tile: int
    stride: int
    num: int | None = None

    @property
    def overlap(self) -> int:
        """How much a tile shares with the next."""
        return self.tile - self.stride

    def scaled(self, unit: int) -> "Grid":
        """The same tiles counted in parts of latents, such as their pixels."""
        return Grid(self.tile * unit, self.stride * unit, self.num)

    def spans(self, length: int, unit: int = 1) -> tuple[slice, ...]:
        """The tiles along an axis of `length` latents, in steps of `unit` (1 for latents, more for their pixels).

        The last may reach over the end; slicing cuts it short.
        # parity: it may also lie within the one before, as in diffusers (test_tiled_decode_equals_the_port).
        """
        starts = range(0, length, self.stride)[: self.num]
        return tuple(slice(i * unit, (i + self.tile) * unit) for i in starts)

    def fitted(self, length: int) -> "Grid":
        """Tiles of equal length for an axis of `length` latents, as few as would do if they shared nothing.

        They share what these share or a little more, so they are longer than these by at most that much. No tile is
        a thin rest, and none lies within another: less is computed twice.
        """
        num = -(-length // self.tile)
        if num == 1:
            return Grid(length, length, 1)
        tile = -(-(length + (num - 1) * self.overlap) // num)
        stride = -(-(length - tile) // (num - 1))
        return Grid(tile, stride, -(-(length - tile) // stride) + 1)


def ramps(extent: int) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Weights of the earlier and of the later tile over the shared part; the later begins 0, 1/n, … (n - 1)/n."""
    later = torch.arange(extent, dtype=torch.float64) / extent
    return (1 - later).float(), later.float()


def last(tile: Float[Tensor, "*shape"], extent: int, dim: int) -> Float[Tensor, "*other"]:
    """The last entries along an axis, which may be none; all of a shorter tile."""
    extent = min(extent, tile.shape[dim])
    return tile.narrow(dim, tile.shape[dim] - extent, extent)


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
    end = last(before, extent, dim)
    start = after.narrow(dim, 0, extent)
    # In float32 whatever the tiles are, rounded once; float32 tiles give diffusers' values to the last bit.
    start.copy_(end * falling + start * rising)
    return after


def join(
    tiles: Iterable[Float[Tensor, "..."]], num_rows: int, num_columns: int, down: Grid, across: Grid
) -> Float[Tensor, "..."]:
    """Join tiles; of those that are done only the edges that neighbours need stay in memory.

    Args:
        tiles: `(…, h, w)`, row after row; they are changed. Best given as they are computed.
        num_rows: number of rows.
        num_columns: number of tiles in a row.
        down: how they lie along the height, in the units of the result.
        across: how they lie along the width.
    """
    tile_after_tile = iter(tiles)
    lines: list[Tensor] = []
    above: list[Tensor] = []
    for i in range(num_rows):
        line: list[Tensor] = []
        lower_edges: list[Tensor] = []
        left = None
        for j in range(num_columns):
            tile = next(tile_after_tile)
            if down.overlap and above:
                fade(above[j], tile, down.overlap, dim=-2)
            if across.overlap and left is not None:
                fade(left, tile, across.overlap, dim=-1)
            left = last(tile, across.overlap, dim=-1).clone()
            lower_edges.append(last(tile, down.overlap, dim=-2).clone())
            height = down.stride if i < num_rows - 1 else None
            width = across.stride if j < num_columns - 1 else None
            line.append(tile[..., :height, :width].clone())
        above = lower_edges
        lines.append(torch.cat(line, dim=-1))
    return torch.cat(lines, dim=-2)
