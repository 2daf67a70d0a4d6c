"""How much of each frame is the picture: the mask coefficients that PIA is trained with.

Read from the original program (open-mmlab/PIA, animatediff/data/dataset.py and utils/util.py): the difference of two
frames is the mean absolute difference of their hue, saturation and value; relative to the largest difference that the
data set has at the same distance in time, it becomes an affinity between 0.2 and 1.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

SPREAD = 0.8
"""Affinity of the frame itself less that of the most different frame: the original's range 0.2 to 1."""
ABOVE = 0.95
"""A difference beyond the data set's largest counts as this part of it, as in the original."""


def to_hsv(pixels: UInt8[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Hue in degrees, saturation in [0, 1], value in [0, 255]: the units of the original's conversion."""
    rgb = pixels.astype(np.float32)
    value, low = rgb.max(-1), rgb.min(-1)
    span = value - low
    safe = np.where(span > 0, span, 1)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    hue = np.select(
        [value == red, value == green],
        [60 * (green - blue) / safe, 120 + 60 * (blue - red) / safe],
        240 + 60 * (red - green) / safe,
    )
    hue = np.where(span > 0, hue % 360, 0)
    return np.stack([hue, span / np.where(value > 0, value, 1), value], axis=-1)


def differences(pixels: UInt8[np.ndarray, "f h w 3"]) -> Float[np.ndarray, "f f"]:
    """The difference of every pair of frames: mean over pixels and over hue, saturation and value, alike in weight."""
    hsv = to_hsv(pixels).reshape(len(pixels), -1)
    return np.stack([np.abs(hsv - frame).mean(axis=1) for frame in hsv]).astype(np.float32)


def statistics(clips: Iterable[Float[np.ndarray, "f f"]], largest: float = 1.0) -> Float[np.ndarray, "f 2"]:
    """The smallest and the largest difference in a data set, for every distance between frames.

    Args:
        clips: `differences` of every clip.
        largest: the part of the differences that are no larger than what counts as the largest. At 1 one odd clip
            decides over all.
    """
    found = [[np.diagonal(pairs, k) for k in range(len(pairs))] for pairs in clips]
    if not found:
        raise ValueError("There are no clips to take statistics from.")
    distances = [np.concatenate(of_clips) for of_clips in zip(*found, strict=True)]
    return np.array([[values.min(), np.quantile(values, largest)] for values in distances], dtype=np.float32)


def coefficients(
    pairs: Float[Tensor, "b f f"], cond_frames: Int[Tensor, " b"], table: Float[Tensor, "g 2"]
) -> Float[Tensor, "b f"]:
    """The affinity of every frame to its clip's condition frame, 1 for that frame itself.

    Args:
        pairs: `differences` of each clip.
        cond_frames: the frame that is shown to the network as the picture.
        table: `statistics` of the data set, for at least as many frames.
    """
    num, device = pairs.shape[1], pairs.device
    score = pairs[torch.arange(len(pairs), device=device), cond_frames]
    distance = (torch.arange(num, device=device) - cond_frames[:, None]).abs()
    low, high = table.to(device)[distance].unbind(-1)
    score = torch.where(score > high, ABOVE * high, score.maximum(low))
    affinity = 1 - SPREAD * score / (high + 1e-10)
    return affinity.scatter(1, cond_frames[:, None], 1.0)
