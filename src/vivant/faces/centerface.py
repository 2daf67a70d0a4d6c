"""CenterFace (Xu et al., arXiv 1911.03599): faces as points of a heat map, with a box and five landmarks each."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vivant.faces.found import Found, found
from vivant.faces.network import Network

STRIDE = 4
"""Pixels of the picture per place of the maps."""
LONG_EDGE = 640
"""Pixels of the longer side that is looked at, at most."""
MULTIPLE = 32
THRESHOLD = 0.5
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, number of blocks and stride of the stages (MobileNetV2, Sandler et al., arXiv 1801.04381)."""
SEEN = (1, 2, 4)
"""The stages that the pyramid reads beside the last one."""
CHANNELS = 24


class Inverted(nn.Module):
    """More channels, each convolved by itself, and fewer channels again."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int):
        super().__init__()
        width = expansion * in_channels
        self.expand = nn.Conv2d(in_channels, width, 1) if expansion > 1 else None
        self.depthwise = nn.Conv2d(width, width, 3, stride, 1, groups=width)
        self.project = nn.Conv2d(width, channels, 1)
        self.shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Float[Tensor, "b c i j"]) -> Float[Tensor, "b d h w"]:
        h = x if self.expand is None else F.relu(self.expand(x))
        h = self.project(F.relu(self.depthwise(h)))
        return x + h if self.shortcut else h


class Maps(NamedTuple):
    """What the network says of each place.

    Attributes:
        scores: probability that the middle of a face is here.
        sides: logarithms of height and width, in strides.
        offsets: of the middle from here, down and to the right, in strides.
        points: five points, down and to the right of the box's upper left corner, as parts of its sides.
    """

    scores: Float[Tensor, "b 1 h w"]
    sides: Float[Tensor, "b 2 h w"]
    offsets: Float[Tensor, "b 2 h w"]
    points: Float[Tensor, "b 10 h w"]


class CenterFace(Network):
    """The detector. Its normalisations are folded into the convolutions before them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.stages, widths, before = nn.ModuleList(), list[int](), 32
        for expansion, channels, num, stride in STAGES:
            first = Inverted(before, channels, expansion, stride)
            rest = [Inverted(channels, channels, expansion, 1) for _ in range(num - 1)]
            self.stages.append(nn.Sequential(first, *rest))
            widths.append(channels)
            before = channels
        self.last = nn.Conv2d(before, CHANNELS, 1)
        self.laterals = nn.ModuleList(nn.Conv2d(widths[i], CHANNELS, 1) for i in SEEN)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, 2) for _ in SEEN)
        self.merge = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.scores, self.sides, self.offsets, self.points = (nn.Conv2d(CHANNELS, num, 1) for num in (1, 2, 2, 10))

    @classmethod
    def sizes(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {}

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Maps:
        """
        Args:
            x: pictures in RGB from 0 to 255, whose sides are multiples of `MULTIPLE`.
        """
        x, levels = F.relu(self.stem(x)), list[Tensor]()
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        x = F.relu(self.last(x))
        for i, lateral, up in reversed(list(zip(SEEN, self.laterals, self.ups, strict=True))):
            x = F.relu(up(x)) + F.relu(lateral(levels[i]))
        x = F.relu(self.merge(x))
        return Maps(self.scores(x).sigmoid(), self.sides(x), self.offsets(x), self.points(x))

    def faces_in(self, photo: Float[Tensor, "3 h w"], threshold: float = THRESHOLD) -> list[Found]:
        """The faces in a photo (RGB, 0 to 255), the surest first."""
        x, scale = fitted(photo)
        x = x[None].to(self.device, self.dtype, memory_format=torch.channels_last)  # in half the time
        scores, sides, offsets, points = (rearrange(part[0].float().cpu(), "k h w -> (h w) k") for part in self(x))
        rows, columns = (torch.arange(side // STRIDE) for side in x.shape[2:])
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2)
        middle, sides = (places + offsets + 0.5) * STRIDE, sides.exp() * STRIDE
        corner = middle - sides / 2
        points = corner[:, None] + rearrange(points, "n (k two) -> n k two", two=2) * sides[:, None]
        boxes = torch.cat([corner.flip(1), (corner + sides).flip(1)], dim=1) / scale.repeat(2)
        return found(boxes, scores[:, 0], points.flip(-1) / scale, threshold)


def fitted(photo: Float[Tensor, "3 i j"]) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "2"]]:
    """The photo as the network takes it: not too large, black to the right and below; and by what x and y grew."""
    height, width = photo.shape[1:]
    factor = min(1.0, LONG_EDGE / max(height, width))
    rows, columns = (max(1, round(side * factor)) for side in (height, width))
    if factor < 1:
        photo = F.interpolate(photo[None], (rows, columns), mode="bilinear", antialias=True)[0]
    photo = F.pad(photo, (0, -columns % MULTIPLE, 0, -rows % MULTIPLE))
    return photo, torch.tensor([columns / width, rows / height])
