"""RetinaFace (Deng et al., arXiv 1905.00641): boxes of faces and five points in each."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vivant.faces.found import Found, found
from vivant.faces.network import Network, num_blocks

STRIDES = (8, 16, 32)
ANCHORS = ((16, 32), (64, 128), (256, 512))
"""Sides of the two square anchors at each place, for each stride, in pixels."""
VARIANCES = (0.1, 0.2)
"""What offsets of centres and logarithms of sides are multiplied by (Liu et al., arXiv 1512.02325)."""
MEAN = (104, 117, 123)
"""Of blue, green and red in the training pictures."""
THRESHOLD = 0.97
"""The score of a face, as ConsisID asks for it."""
EXPANSION = 4


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut (He et al., arXiv 1512.03385), the middle one with the stride."""

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, x: Float[Tensor, "b c i j"]) -> Float[Tensor, "b d h w"]:
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(h))
        return F.relu(h + (x if self.downsample is None else self.downsample(x)))


def _level(in_channels: int, width: int, num: int, stride: int) -> nn.Sequential:
    rest = [Bottleneck(EXPANSION * width, width, 1) for _ in range(num - 1)]
    return nn.Sequential(Bottleneck(in_channels, width, stride), *rest)


class Body(nn.Module):
    """A ResNet's features at an eighth, a sixteenth and a thirty-second of the size."""

    def __init__(self, width: int, depths: tuple[int, int, int, int]):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _level(width, width, depths[0], 1)
        self.layer2 = _level(EXPANSION * width, 2 * width, depths[1], 2)
        self.layer3 = _level(EXPANSION * 2 * width, 4 * width, depths[2], 2)
        self.layer4 = _level(EXPANSION * 4 * width, 8 * width, depths[3], 2)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor, Tensor]:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer1(F.max_pool2d(x, 3, 2, 1))
        eighth = self.layer2(x)
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


def _conv_bn(in_channels: int, out_channels: int, kernel: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class Pyramid(nn.Module):
    """Features of all three sizes, the coarser ones added to the finer (Lin et al., arXiv 1612.03144)."""

    def __init__(self, in_channels: tuple[int, int, int], channels: int):
        super().__init__()
        self.output1, self.output2, self.output3 = (_conv_bn(num, channels, kernel=1) for num in in_channels)
        self.merge1 = _conv_bn(channels, channels)
        self.merge2 = _conv_bn(channels, channels)

    def forward(self, features: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        eighth, sixteenth, last = (
            F.relu(output(x)) for output, x in zip((self.output1, self.output2, self.output3), features, strict=True)
        )
        sixteenth = sixteenth + F.interpolate(last, sixteenth.shape[2:], mode="nearest")
        sixteenth = F.relu(self.merge2(sixteenth))
        eighth = eighth + F.interpolate(sixteenth, eighth.shape[2:], mode="nearest")
        return F.relu(self.merge1(eighth)), sixteenth, last


class Context(nn.Module):
    """Surroundings of three widths side by side (SSH, Najibi et al., arXiv 1708.03979)."""

    def __init__(self, channels: int):
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.conv3X3 = _conv_bn(channels, half)
        self.conv5X5_1 = _conv_bn(channels, quarter)
        self.conv5X5_2 = _conv_bn(quarter, quarter)
        self.conv7X7_2 = _conv_bn(quarter, quarter)
        self.conv7x7_3 = _conv_bn(quarter, quarter)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        five = F.relu(self.conv5X5_1(x))
        seven = F.relu(self.conv7X7_2(five))
        return F.relu(torch.cat([self.conv3X3(x), self.conv5X5_2(five), self.conv7x7_3(seven)], dim=1))


class AnchorHead(nn.Module):
    """So many numbers for each anchor."""

    def __init__(self, channels: int, each: int):
        super().__init__()
        self.conv1x1 = nn.Conv2d(channels, 2 * each, 1)
        self.each = each

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n k"]:
        return rearrange(self.conv1x1(x), "b (a k) h w -> b (h w a) k", k=self.each)


class Offsets(NamedTuple):
    """What the network says of each anchor, those of the finest stride first.

    Attributes:
        boxes: centre and sides, relative to the anchor.
        scores: probabilities of no face and of a face.
        points: five points, relative to the anchor.
    """

    boxes: Float[Tensor, "b n 4"]
    scores: Float[Tensor, "b n 2"]
    points: Float[Tensor, "b n 10"]


class RetinaFace(Network):
    """The detector; the published one (``detection_Resnet50_Final.pth``) stands on ResNet-50.

    Args:
        width: channels of the first convolution.
        depths: blocks of the body's four levels.
        channels: channels of the pyramid.
    """

    PREFIX = "module."

    def __init__(self, width: int = 64, depths: tuple[int, int, int, int] = (3, 4, 6, 3), channels: int = 256):
        super().__init__()
        self.body = Body(width, depths)
        self.fpn = Pyramid((8 * width, 16 * width, 32 * width), channels)
        self.ssh1, self.ssh2, self.ssh3 = (Context(channels) for _ in STRIDES)
        self.ClassHead = nn.ModuleList(AnchorHead(channels, 2) for _ in STRIDES)
        self.BboxHead = nn.ModuleList(AnchorHead(channels, 4) for _ in STRIDES)
        self.LandmarkHead = nn.ModuleList(AnchorHead(channels, 10) for _ in STRIDES)

    @classmethod
    def sizes(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            "width": len(state["body.conv1.weight"]),
            "depths": tuple(num_blocks(state, f"body.layer{i}.") for i in range(1, 5)),
            "channels": len(state["fpn.merge1.0.weight"]),
        }

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Offsets:
        """
        Args:
            x: pictures in BGR from 0 to 255, less `MEAN`.
        """
        levels = self.fpn(self.body(x))
        features = [context(level) for context, level in zip((self.ssh1, self.ssh2, self.ssh3), levels, strict=True)]
        boxes, scores, points = (
            torch.cat([head(x) for head, x in zip(heads, features, strict=True)], dim=1)
            for heads in (self.BboxHead, self.ClassHead, self.LandmarkHead)
        )
        return Offsets(boxes, scores.softmax(-1), points)

    def faces_in(self, photo: Float[Tensor, "3 h w"], threshold: float = THRESHOLD) -> list[Found]:
        """The faces in a photo (RGB, 0 to 255), the surest first."""
        x = photo.flip(0) - photo.new_tensor(MEAN)[:, None, None]
        seen = Offsets(*(part[0].float().cpu() for part in self(x[None].to(self.device, self.dtype))))
        places = anchors(*photo.shape[1:])
        centers, sides = places[:, :2], places[:, 2:]
        middle = centers + seen.boxes[:, :2] * VARIANCES[0] * sides
        half = sides * (seen.boxes[:, 2:] * VARIANCES[1]).exp() / 2
        points = rearrange(seen.points, "n (k two) -> n k two", two=2) * VARIANCES[0] * sides[:, None]
        boxes = torch.cat([middle - half, middle + half], dim=1)
        return found(boxes, seen.scores[:, 1], centers[:, None] + points, threshold)


def anchors(height: int, width: int) -> Float[Tensor, "n 4"]:
    """Centres (x, y) and sides of all anchors for a picture of so many pixels, in pixels."""
    levels: list[Tensor] = []
    for stride, sides in zip(STRIDES, ANCHORS, strict=True):
        rows, columns = (torch.arange(-(-side // stride)) for side in (height, width))
        y, x, side = torch.meshgrid(rows, columns, torch.tensor(sides), indexing="ij")
        levels.append(torch.stack([(x + 0.5) * stride, (y + 0.5) * stride, side, side], dim=-1).reshape(-1, 4))
    return torch.cat(levels)
