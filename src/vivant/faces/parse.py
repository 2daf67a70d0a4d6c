"""BiSeNet (Yu et al., arXiv 1808.00897): which part of a face each pixel is."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vivant.faces.network import Network

LABELS = (
    *("background", "skin", "left brow", "right brow", "left eye", "right eye", "glasses", "left ear", "right ear"),
    *("earring", "nose", "mouth", "upper lip", "lower lip", "neck", "necklace", "cloth", "hair", "hat"),
)
"""What the published network tells apart (CelebAMask-HQ, Lee et al., arXiv 1907.11922)."""


class ConvBNReLU(nn.Module):
    """A convolution without bias, normalised and rectified."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return F.relu(self.bn(self.conv(x)))


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut (He et al., arXiv 1512.03385)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, x: Float[Tensor, "b c i j"]) -> Float[Tensor, "b d h w"]:
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        return F.relu(h + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """Features at an eighth, a sixteenth and a thirty-second of the size."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(BasicBlock(width, width, 1), BasicBlock(width, width, 1))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(BasicBlock(2 * width, 4 * width, 2), BasicBlock(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(BasicBlock(4 * width, 8 * width, 2), BasicBlock(8 * width, 8 * width, 1))

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor, Tensor]:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer1(F.max_pool2d(x, 3, 2, 1))
        eighth = self.layer2(x)
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


def mean_of(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
    """The mean over the picture."""
    return x.mean((2, 3), keepdim=True)


class AttentionRefinement(nn.Module):
    """Features weighted by what the picture as a whole makes of their channels."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = ConvBNReLU(in_channels, out_channels)
        self.conv_atten = nn.Conv2d(out_channels, out_channels, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(out_channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        x = self.conv(x)
        return x * self.bn_atten(self.conv_atten(mean_of(x))).sigmoid()


class ContextPath(nn.Module):
    """What a pixel is, seen from further and further away."""

    def __init__(self, width: int):
        super().__init__()
        self.resnet = ResNet18(width)
        self.arm16 = AttentionRefinement(4 * width, 2 * width)
        self.arm32 = AttentionRefinement(8 * width, 2 * width)
        self.conv_head32 = ConvBNReLU(2 * width, 2 * width)
        self.conv_head16 = ConvBNReLU(2 * width, 2 * width)
        self.conv_avg = ConvBNReLU(8 * width, 2 * width, kernel=1)

    def forward(self, x: Float[Tensor, "b 3 i j"]) -> tuple[Tensor, Tensor]:
        """The features at an eighth of the size, and those of the context at the same size."""
        eighth, sixteenth, last = self.resnet(x)
        context = self.arm32(last) + self.conv_avg(mean_of(last))
        context = self.conv_head32(F.interpolate(context, sixteenth.shape[2:], mode="nearest"))
        context = self.arm16(sixteenth) + context
        return eighth, self.conv_head16(F.interpolate(context, eighth.shape[2:], mode="nearest"))


class FeatureFusion(nn.Module):
    """Both paths as one."""

    def __init__(self, channels: int):
        super().__init__()
        self.convblk = ConvBNReLU(channels, channels, kernel=1)
        self.conv1 = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(channels // 4, channels, 1, bias=False)

    def forward(self, near: Float[Tensor, "b c h w"], far: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        x = self.convblk(torch.cat([near, far], dim=1))
        return x + x * self.conv2(F.relu(self.conv1(mean_of(x)))).sigmoid()


class Head(nn.Module):
    """Features to labels."""

    def __init__(self, in_channels: int, channels: int, num_labels: int):
        super().__init__()
        self.conv = ConvBNReLU(in_channels, channels)
        self.conv_out = nn.Conv2d(channels, num_labels, 1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b l h w"]:
        return self.conv_out(self.conv(x))


class BiSeNet(Network):
    """Face parsing; the published one (``parsing_bisenet.pth``) knows `LABELS`.

    Args:
        width: channels of the first convolution.
        num_labels: parts to tell apart.
    """

    def __init__(self, width: int = 64, num_labels: int = len(LABELS)):
        super().__init__()
        self.cp = ContextPath(width)
        self.ffm = FeatureFusion(4 * width)
        self.conv_out = Head(4 * width, 4 * width, num_labels)
        # Only training reads these two; published files hold them.
        self.conv_out16 = Head(2 * width, width, num_labels)
        self.conv_out32 = Head(2 * width, width, num_labels)

    @classmethod
    def sizes(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            "width": len(state["cp.resnet.conv1.weight"]),
            "num_labels": len(state["conv_out.conv_out.weight"]),
        }

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b l h w"]:
        """Logits of the labels.

        Args:
            x: aligned faces of 512x512 pixels, normalised by ImageNet's means and deviations.
        """
        logits = self.conv_out(self.ffm(*self.cp(x)))
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)

    def labels(self, x: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b h w"]:
        """Indices into `LABELS`."""
        return self(x).argmax(1)
