"""Where a token lies: the rotary embedding of queries and keys, and the learned table added to the tokens.

CogVideoX (arXiv 2408.06072, section 2.2): a head's channels are split among time (2/8), height and width (3/8 each),
and rotated in pairs (RoFormer, arXiv 2104.09864, equation 34).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Complex, Float
from torch import Tensor

THETA = 10_000.0
OffSize = Literal["interpolate", "zero"]
Rotary = Complex[Tensor, "n p"]
"""A turn in the plane for every pair of channels of every token, as a complex number of length one."""


def crop_region(grid: tuple[int, int], base: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a grid lies in the one trained on when it is scaled to fit and centred.

    Args:
        grid: rows and columns of tokens.
        base: those of the training.

    Returns:
        Row and column of the first corner, and of the last.
    """
    (height, width), (base_height, base_width) = grid, base
    if height / width > base_height / base_width:
        rows, columns = base_height, round(base_height / height * width)
    else:
        rows, columns = round(base_width / width * height), base_width
    top, left = round((base_height - rows) / 2), round((base_width - columns) / 2)
    return (top, left), (top + rows, left + columns)


def _line(start: int, stop: int, num: int, device: torch.device) -> Float[Tensor, " n"]:
    """`num` positions from `start` on. `stop` is scaled before the start is added: so the model was trained."""
    return torch.linspace(start, stop * (num - 1) / num, num, device=device, dtype=torch.float32)


def _angles(positions: Float[Tensor, " n"], num_channels: int) -> Float[Tensor, "n p"]:
    index = torch.arange(0, num_channels, 2, device=positions.device, dtype=torch.float32)
    return torch.outer(positions, 1.0 / THETA ** (index / num_channels))


def rotary_table(num_channels: int, grid: tuple[int, int, int], base: tuple[int, int], device: torch.device) -> Rotary:
    """Turns for a grid of tokens.

    Args:
        num_channels: of a head, a multiple of 16.
        grid: latent frames, rows, columns.
        base: rows and columns of the training, onto which other sizes are laid.
        device: where.
    """
    num_frames, height, width = grid
    (top, left), (bottom, right) = crop_region((height, width), base)
    time = _angles(torch.arange(num_frames, device=device, dtype=torch.float32), num_channels // 4)
    rows = _angles(_line(top, bottom, height, device), num_channels // 8 * 3)
    columns = _angles(_line(left, right, width, device), num_channels // 8 * 3)
    angles = torch.cat(
        [
            time[:, None, None].expand(-1, height, width, -1),
            rows[None, :, None].expand(num_frames, -1, width, -1),
            columns[None, None].expand(num_frames, height, -1, -1),
        ],
        dim=-1,
    )
    angles = rearrange(angles, "f h w p -> (f h w) p")
    return torch.complex(angles.cos(), angles.sin())


def rotate(x: Float[Tensor, "b n k d"], rotary: Rotary) -> Float[Tensor, "b n k d"]:
    """Turn neighbouring channels of every head as a point in the plane; in float32, which is returned."""
    pairs = rearrange(x.float(), "b n k (p two) -> b n k p two", two=2)
    turned = torch.view_as_real(torch.view_as_complex(pairs) * rotary[:, None])
    return rearrange(turned, "b n k p two -> b n k (p two)")


def fit_table(
    table: Float[Tensor, "n c"], trained: tuple[int, int, int], grid: tuple[int, int, int], off_size: OffSize
) -> Float[Tensor, "m c"]:
    """The learned table of the video's tokens for another grid.

    Shorter clips read the first frames. Other sizes, and longer clips, read it interpolated along the axes that
    differ, or not at all.

    Args:
        table: one row a token of the grid trained on.
        trained: that grid: latent frames, rows, columns.
        grid: the one asked for.
        off_size: what to do off the training size.
    """
    if grid[1:] == trained[1:] and grid[0] <= trained[0]:
        return table[: grid[0] * grid[1] * grid[2]]
    if off_size == "zero":
        return table.new_zeros(grid[0] * grid[1] * grid[2], table.shape[1])
    num_frames = min(grid[0], trained[0])
    volume = rearrange(table, "(f h w) c -> 1 c f h w", f=trained[0], h=trained[1])[:, :, :num_frames].float()
    volume = F.interpolate(volume, size=grid, mode="trilinear", align_corners=False)
    return rearrange(volume, "1 c f h w -> (f h w) c").to(table.dtype)
