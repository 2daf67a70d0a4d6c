"""Where a face lies in a photo, and the photo turned and scaled so that it lies where networks expect it.

A similarity of the plane is z -> a z + b on complex numbers: `a` turns and scales, `b` shifts.
"""

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Int
from torch import Tensor

from vivant.errors import InputError

CROP = 512
CROP_POINTS = (
    *((192.98138, 239.94708), (318.90277, 240.1936), (256.63416, 314.01935)),
    *((201.26117, 371.41043), (313.08905, 371.15118)),
)
"""Eyes, nose and corners of the mouth in a crop of 512x512 pixels, as facexlib 0.3.0 has them for FFHQ."""
CROP_BORDER = (132, 133, 135)
"""RGB of what a crop shows beyond the photo, likewise."""
ARCFACE = 112
ARCFACE_POINTS = (
    *((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366)),
    *((41.5493, 92.3655), (70.7299, 92.2041)),
)
"""The same for crops of 112x112 pixels (Deng et al., arXiv 1801.07698)."""

OUTLIERS, CONFIDENCE = 0.45, 0.99
SHARPEST = 1e-3
"""The smallest distance that makes an outlier, in pixels of the crop."""
LOBES = 4


class Similarity(NamedTuple):
    """The map z -> a z + b from pixels of a photo to those of a crop; x is the real part, y the imaginary one."""

    a: complex
    b: complex

    def apply(self, points: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        """Points of the photo in the crop."""
        return as_points(as_numbers(points) * self.a + self.b).to(points.dtype)

    @property
    def inverse(self) -> "Similarity":
        """From the crop to the photo."""
        return Similarity(1 / self.a, -self.b / self.a)


def as_numbers(points: Float[Tensor, "*n 2"]) -> Complex[Tensor, "*n"]:
    """x plus i times y, in double precision."""
    return torch.view_as_complex(points.double().contiguous())


def as_points(numbers: Complex[Tensor, "*n"]) -> Float[Tensor, "*n 2"]:
    """(x, y) of complex numbers."""
    return torch.view_as_real(numbers)


def least_squares(points: Float[Tensor, "n 2"], template: Float[Tensor, "n 2"]) -> Similarity:
    """The similarity with the smallest sum of squared distances (Umeyama 1991, without reflections).

    Raises:
        InputError: E-FACE-POINTS when all points are one.
    """
    z, w = as_numbers(points), as_numbers(template)
    centre, target = z.mean(), w.mean()
    spread = (z - centre).abs().square().sum()
    if not spread > 0:
        raise InputError("E-FACE-POINTS", "The five points of the face are one.", "Nothing can be aligned by them.")
    a = ((z - centre).conj() * (w - target)).sum() / spread
    return Similarity(a.item(), (target - a * centre).item())


def robust(points: Float[Tensor, "n 2"], template: Float[Tensor, "n 2"]) -> Similarity:
    """The least squares of the points that agree with each other, as OpenCV's estimateAffinePartial2D with LMEDS.

    Of the similarities through two points the one with the smallest median distance tells which points agree
    (Rousseeuw 1984). OpenCV tries pairs drawn from a generator that always starts alike; so do we (`tried_pairs`).

    Raises:
        InputError: E-FACE-POINTS when all points are one.
    """
    points, template = points.float(), template.float()
    z, w = as_numbers(points), as_numbers(template)
    best, distances = torch.inf, None
    for i, j in tried_pairs(len(z)):
        if z[i] == z[j]:
            continue
        a = (w[i] - w[j]) / (z[i] - z[j])
        off = (a * (z - z[i]) + w[i] - w).abs().float()
        median = off.square().quantile(0.5).item()
        if median < best:
            best, distances = median, off
    if distances is None:
        return least_squares(points, template)
    limit = max(2.5 * 1.4826 * (1 + 5 / (len(z) - 2)) * best**0.5, SHARPEST)
    agree = distances <= limit
    return least_squares(points[agree], template[agree])


@cache
def tried_pairs(num: int) -> tuple[tuple[int, int], ...]:
    """Pairs out of `num` points, as OpenCV's multiply-with-carry generator draws them."""
    state = 2**64 - 1

    def draw() -> int:
        nonlocal state
        state = (state % 2**32) * 4164903690 + (state >> 32)
        return state % 2**32 % num

    pairs: list[tuple[int, int]] = []
    for _ in range(_num_tries()):
        i = j = draw()
        while i == j:
            j = draw()
        pairs.append((i, j))
    return tuple(pairs)


def _num_tries() -> int:
    """So many pairs hold with `CONFIDENCE` one without outliers (Fischler and Bolles 1981)."""
    missed = torch.tensor([1 - CONFIDENCE, 1 - (1 - OUTLIERS) ** 2], dtype=torch.float64).log()
    return round((missed[0] / missed[1]).item())


def warp(
    photo: Float[Tensor, "3 i j"], to_crop: Similarity, size: int, border: tuple[int, int, int] = (0, 0, 0)
) -> Float[Tensor, "3 h w"]:
    """A square of `size` pixels out of a photo (RGB, 0 to 255), read bilinearly, `border` beyond its edges."""
    height, width = photo.shape[1:]
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 2, indexing="ij")
    source = to_crop.inverse.apply(torch.stack([x, y], dim=-1))
    scale = torch.tensor([2 / width, 2 / height], dtype=torch.float64)
    grid = ((source + 0.5) * scale - 1).to(photo)
    edge = torch.tensor(border).to(photo)[:, None, None]
    # Beyond the picture grid_sample reads zeros.
    read = F.grid_sample((photo - edge)[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)
    return (read[0] + edge).round()


def shrunken(photo: Float[Tensor, "3 i j"], long_edge: int) -> Float[Tensor, "3 h w"]:
    """A photo (0 to 255) whose longer side is at most `long_edge`; smaller ones stay as they are.

    By a Lanczos kernel of four lobes that does not grow with the factor, as OpenCV's INTER_LANCZOS4.
    """
    factor = long_edge / max(photo.shape[1:])
    if factor >= 1:
        return photo
    height, width = (int(side * factor) for side in photo.shape[1:])
    rows, columns = (lanczos(side, new) for side, new in zip(photo.shape[1:], (height, width), strict=True))
    return (rows.to(photo) @ photo @ columns.to(photo).T).clamp(0, 255).round()


def lanczos(side: int, new: int) -> Float[Tensor, "n m"]:
    """The weights of `side` pixels in each of `new` ones; those beyond the edge repeat it."""
    places = (torch.arange(new, dtype=torch.float64) + 0.5) * side / new - 0.5
    taps = places.floor().long()[:, None] + torch.arange(1 - LOBES, LOBES + 1)
    off = places[:, None] - taps
    weights = torch.sinc(off) * torch.sinc(off / LOBES)
    table = torch.zeros(new, side, dtype=torch.float64)
    return table.scatter_add_(1, taps.clamp(0, side - 1), weights / weights.sum(1, keepdim=True))


def resized(photo: Float[Tensor, "3 i j"], size: tuple[int, int]) -> Float[Tensor, "3 h w"]:
    """A photo (0 to 255, whole numbers) in so many rows and columns, bilinearly.

    In whole numbers, as OpenCV's INTER_LINEAR, whose results are up to 0.75 from the exact ones: the ONNX files were
    trained and tested with it.
    """
    (top, bottom, *down), (left, right, *across) = (
        _neighbours(side, new) for side, new in zip(photo.shape[1:], size, strict=True)
    )
    pixels = photo.int()
    rows = (pixels[:, :, left] * across[0] + pixels[:, :, right] * across[1]) >> 4
    both = (rows[:, top] * down[0][:, None] >> 16) + (rows[:, bottom] * down[1][:, None] >> 16)
    return ((both + 2) >> 2).to(photo)


def _neighbours(side: int, new: int) -> tuple[Int[Tensor, " n"], ...]:
    """For each new pixel the two old ones that it lies between, and their weights in parts of 2048."""
    places = ((torch.arange(new, dtype=torch.float64) + 0.5) * (side / new) - 0.5).float().clamp(0, side - 1)
    before = places.floor()
    part = places - before
    weights = [(weight * 2048).round().int() for weight in (1 - part, part)]
    return before.long(), (before.long() + 1).clamp(max=side - 1), *weights
