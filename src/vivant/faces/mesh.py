"""MediaPipe's face mesh (Kartynnik et al., arXiv 1907.06724): 468 points on a face, and the parts between them."""

from collections.abc import Mapping
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vivant.faces.align import least_squares, warp
from vivant.faces.network import Network
from vivant.faces.parse import LABELS

SIDE = 192
"""Pixels a side of what the network looks at."""
SIDE_POINTS = (
    *((70.7, 69.6), (121.3, 69.6), (96.0, 96.7)),
    *((74.4, 121.0), (117.6, 121.0)),
)
"""Eyes, nose and corners of the mouth there: where CenterFace's points of five portraits lie, in the mean and on both
sides alike, when the picture is half as large again as the square around the mesh. So MediaPipe cuts it out."""
NUM_POINTS = 468
STAGES = ((16, 2, False), (32, 3, True), (64, 3, True), (128, 3, True), (128, 3, True))
"""Channels and number of blocks, and whether the first one halves the sides."""
NARROW = 32

OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
LIPS = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
UPPER_LIP = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191, 78)
MOUTH = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
PARTS = (
    ("skin", OVAL),
    ("left brow", (70, 63, 105, 66, 107, 55, 65, 52, 53, 46)),
    ("right brow", (300, 293, 334, 296, 336, 285, 295, 282, 283, 276)),
    ("left eye", (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7)),
    ("right eye", (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249)),
    ("nose", (168, 122, 196, 236, 198, 49, 48, 64, 98, 97, 2, 326, 327, 294, 278, 279, 420, 456, 419, 351)),
    ("lower lip", LIPS),
    ("upper lip", UPPER_LIP),
    ("mouth", MOUTH),
)
"""Outlines of the parts by numbers of points, later ones before earlier ones. Left and right are those of the photo."""


class Block(nn.Module):
    """Each channel convolved by itself, then all together, beside a pooled shortcut that gets empty channels."""

    def __init__(self, in_channels: int, channels: int, *, halves: bool):
        super().__init__()
        self.halves, self.more = halves, channels - in_channels
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, 1 + halves, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, channels, 1)
        self.act = nn.PReLU(channels)

    def forward(self, x: Float[Tensor, "b c i j"]) -> Float[Tensor, "b d h w"]:
        h = self.pointwise(self.depthwise(_bordered(x, halves=self.halves)))
        x = F.max_pool2d(x, 2) if self.halves else x
        return self.act(h + F.pad(x, (0, 0, 0, 0, 0, self.more)))


def _bordered(x: Float[Tensor, "b c i j"], *, halves: bool) -> Float[Tensor, "b c h w"]:
    """The picture with an empty border; a step of two starts in its first pixel, as TensorFlow's does."""
    before = 0 if halves else 1
    return F.pad(x, (before, 1, before, 1))


def _head(channels: int, num: int, results: int) -> nn.Sequential:
    """Some numbers of a whole picture, which is six places wide and high."""
    rest = [Block(channels, channels, halves=False) for _ in range(num - 1)]
    narrow = [nn.Conv2d(channels, NARROW, 1), nn.PReLU(NARROW), Block(NARROW, NARROW, halves=False)]
    return nn.Sequential(Block(channels, channels, halves=True), *rest, *narrow, nn.Conv2d(NARROW, results, 3))


class Mesh(NamedTuple):
    """What the network says of pictures.

    Attributes:
        points: x, y and depth, in pixels of the picture; what is nearer has less depth.
        scores: probability that there is a face.
    """

    points: Float[Tensor, "b n 3"]
    scores: Float[Tensor, " b"]


class FaceMesh(Network):
    """The network, without its second look at eyes and lips."""

    def __init__(self):
        super().__init__()
        before = STAGES[0][0]
        self.stem, self.act = nn.Conv2d(3, before, 3, 2), nn.PReLU(before)
        blocks: list[Block] = []
        for channels, num, halves in STAGES:
            blocks.append(Block(before, channels, halves=halves))
            blocks += [Block(channels, channels, halves=False) for _ in range(num - 1)]
            before = channels
        self.blocks = nn.Sequential(*blocks)
        self.mesh, self.presence = _head(before, 3, 3 * NUM_POINTS), _head(before, 1, 1)

    @classmethod
    def sizes(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {}

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Mesh:
        """
        Args:
            x: faces of `SIDE` pixels a side in RGB from 0 to 1.
        """
        x = self.blocks(self.act(self.stem(_bordered(x, halves=True))))
        points = rearrange(self.mesh(x), "b (n xyz) 1 1 -> b n xyz", xyz=3)
        return Mesh(points, rearrange(self.presence(x), "b 1 1 1 -> b").sigmoid())

    def points_of(self, photo: Float[Tensor, "3 h w"], points: Float[Tensor, "5 2"]) -> Float[Tensor, "n 2"]:
        """The points of a face in a photo (RGB, 0 to 255), in its pixels, from the five that a detector found."""
        to_crop = least_squares(points, torch.tensor(SIDE_POINTS))
        x = warp(photo, to_crop, SIDE) / 255
        seen = self(x[None].to(self.device, self.dtype)).points[0, :, :2]
        return to_crop.inverse.apply(seen.float().cpu())


def parse(mesh: Float[Tensor, "n 2"], height: int, width: int) -> Int[Tensor, "h w"]:
    """Which part of the face each pixel is, as indices into `vivant.faces.parse.LABELS`.

    Hair, ears and neck have no points: they are background, as everything else around the face.
    """
    labels: Int[Tensor, "h w"] = torch.zeros(height, width, dtype=torch.long)
    for name, outline in PARTS:
        labels[inside(mesh[list(outline)], height, width)] = LABELS.index(name)
    return labels


def inside(outline: Float[Tensor, "n 2"], height: int, width: int) -> Bool[Tensor, "h w"]:
    """The pixels inside a closed line: those from which a ray to the right crosses it an odd number of times."""
    columns = torch.arange(width, dtype=torch.float64)
    odd: Bool[Tensor, "h w"] = torch.zeros(height, width, dtype=torch.bool)
    for (x0, y0), (x1, y1) in zip(outline.tolist(), outline.roll(-1, 0).tolist(), strict=True):
        first, last = (min(max(ceil(y), 0), height) for y in sorted((y0, y1)))
        if first < last:
            rows = torch.arange(first, last, dtype=torch.float64)
            crossing = x0 + (rows - y0) * (x1 - x0) / (y1 - y0)
            odd[first:last] ^= columns < crossing[:, None]
    return odd
