"""dlib's recogniser (King 2017, dlib.net): 128 numbers, whose distance tells people apart.

A residual network of 29 convolutions, as dlib's example dnn_face_recognition_ex.cpp lays it out. The shipped weights
are those of face-api, which holds most of them in steps of a 256th of their range.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vivant.faces.align import least_squares, warp
from vivant.faces.network import Network

CHIP = 150
"""Pixels a side of what the network looks at."""
CHIP_POINTS = (
    *((47.5492, 46.5990), (100.4761, 46.5990), (74.0127, 76.5625)),
    *((50.4149, 103.0233), (97.6104, 103.0233)),
)
"""Eyes, nose and corners of the mouth there: dlib's mean face with the padding of 0.25 that it was trained with."""
MEAN = (122.782, 117.001, 104.298)
"""Of red, green and blue in the training pictures."""
SAME_PERSON = 0.55
"""Photos of one person are nearer than this, those of two people are not; measured in docs/small-faces.md."""
STAGES = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))
"""Channels and number of blocks, and whether the first one halves the sides."""
CODE, RANGE = ".code", ".range"
"""Names of a tensor's bytes, and of the step and the least value that they stand for."""


class Affine(nn.Module):
    """A factor and a shift for each channel: what a normalisation is once it has been trained."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def _conv(in_channels: int, channels: int, kernel: int, *, halves: bool) -> nn.Sequential:
    stride, padding = (2, 0) if halves else (1, kernel // 2)
    return nn.Sequential(nn.Conv2d(in_channels, channels, kernel, stride, padding), Affine(channels))


class Block(nn.Module):
    """Two convolutions beside a shortcut, which has no weights: it is pooled and gets empty channels."""

    def __init__(self, in_channels: int, channels: int, *, halves: bool):
        super().__init__()
        self.conv1 = _conv(in_channels, channels, 3, halves=halves)
        self.conv2 = _conv(channels, channels, 3, halves=False)
        self.halves = halves

    def forward(self, x: Float[Tensor, "b c i j"]) -> Float[Tensor, "b d h w"]:
        h = self.conv2(F.relu(self.conv1(x)))
        if self.halves:
            x = F.avg_pool2d(x, 2)
        # The convolution has no border and can come out a pixel smaller: then it is the one with an empty edge.
        h = F.pad(h, (0, x.shape[3] - h.shape[3], 0, x.shape[2] - h.shape[2]))
        return F.relu(h + F.pad(x, (0, 0, 0, 0, 0, h.shape[1] - x.shape[1])))


class DlibResNet(Network):
    """The recogniser."""

    SPACE = "dlib-128"
    """The name of what its embeddings can be compared with: those of the same space only."""

    def __init__(self):
        super().__init__()
        self.stem, before = _conv(3, STAGES[0][0], 7, halves=True), STAGES[0][0]
        self.stages = nn.ModuleList()
        for channels, num, halves in STAGES:
            rest = [Block(channels, channels, halves=False) for _ in range(num - 1)]
            self.stages.append(nn.Sequential(Block(before, channels, halves=halves), *rest))
            before = channels
        self.embedding = nn.Linear(before, 128, bias=False)

    @classmethod
    def sizes(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {}

    @classmethod
    def published_names(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, those that are stored as bytes in float32."""
        return {
            name.removesuffix(CODE): decoded(t, state[name.removesuffix(CODE) + RANGE]) if name.endswith(CODE) else t
            for name, t in state.items()
            if not name.endswith(RANGE)
        }

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        """
        Args:
            x: faces of `CHIP` pixels a side in RGB from 0 to 255, less `MEAN`, by 255.
        """
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2)
        for stage in self.stages:
            x = stage(x)
        return self.embedding(x.mean((2, 3)))

    def embed(self, photo: Float[Tensor, "3 h w"], points: Float[Tensor, "5 2"]) -> Float[Tensor, "1 e"]:
        """The embedding of a face in a photo (RGB, 0 to 255)."""
        x = (chip(photo, points) - photo.new_tensor(MEAN)[:, None, None]) / 255
        return self(x[None].to(self.device, self.dtype)).float().cpu()


def decoded(code: Tensor, bounds: Float[Tensor, "2"]) -> Tensor:
    """The numbers that bytes stand for."""
    step, least = bounds.double()
    return (code.double() * step + least).float()


def chip(photo: Float[Tensor, "3 i j"], points: Float[Tensor, "5 2"], size: int = CHIP) -> Float[Tensor, "3 h w"]:
    """A face out of a photo (RGB, 0 to 255) as dlib cuts it out; what is made smaller is made smooth before."""
    template = torch.tensor(CHIP_POINTS) * (size / CHIP)
    factor = abs(least_squares(points, template).a)
    if factor < 1:
        old = photo.shape[1:]
        new = [max(1, round(side * factor)) for side in old]
        photo = F.interpolate(photo[None], new, mode="bilinear", antialias=True)[0]
        scale = points.new_tensor([new[1] / old[1], new[0] / old[0]])
        points = (points + 0.5) * scale - 0.5
    return warp(photo, least_squares(points, template), size)
