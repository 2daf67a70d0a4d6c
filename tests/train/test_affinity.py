"""Affinities of the training clips against their formulas, written out slowly."""

import colorsys

import numpy as np
import pytest
import torch

from vivant.train.affinity import ABOVE, SPREAD, coefficients, differences, statistics, to_hsv


def clip(num_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 3, 5, 3), dtype=np.uint8)


def test_hsv_is_the_one_of_the_books():
    pixels = np.concatenate([clip(7).reshape(-1, 3), [[0, 0, 0], [9, 9, 9], [255, 0, 255], [0, 255, 255]]])
    ours = to_hsv(pixels.astype(np.uint8))
    for rgb, (hue, saturation, value) in zip(pixels, ours, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(float(c) / 255 for c in rgb))
        assert (hue, saturation, value) == pytest.approx((360 * h, s, 255 * v), abs=2e-3)


def test_the_difference_of_frames_is_the_mean_over_pixels_and_channels():
    pixels = clip(4)
    hsv = to_hsv(pixels)
    pairs = differences(pixels)
    for i in range(4):
        for j in range(4):
            assert pairs[i, j] == pytest.approx(np.abs(hsv[i] - hsv[j]).mean(), rel=1e-5)
    assert pairs[0, 1] > 10


def test_statistics_are_the_extremes_at_every_distance():
    clips = [differences(clip(5, seed)) for seed in range(3)]
    table = statistics(clips)
    for distance in range(5):
        found = [pairs[i, i + distance] for pairs in clips for i in range(5 - distance)]
        assert table[distance] == pytest.approx([min(found), max(found)], rel=1e-5)


def test_affinity_by_hand():
    """Within the range, above it, below it, and the picture itself."""
    pairs = torch.zeros(1, 4, 4)
    pairs[0, 1] = torch.tensor([3.0, 0.0, 50.0, 1.0])
    table = torch.tensor([[0.0, 0.0], [1.0, 10.0], [2.0, 20.0], [0.0, 99.0]])
    affinity = coefficients(pairs, torch.tensor([1]), table)[0]
    assert affinity.tolist() == pytest.approx([1 - SPREAD * 0.3, 1.0, 1 - SPREAD * ABOVE, 1 - SPREAD * 2 / 20])


def test_every_clip_has_its_own_picture():
    pairs = torch.from_numpy(np.stack([differences(clip(5, seed)) for seed in range(3)]))
    table = torch.from_numpy(statistics(list(pairs.numpy()))).float()
    frames = torch.tensor([0, 3, 4])
    together = coefficients(pairs, frames, table)
    for i, frame in enumerate(frames):
        alone = coefficients(pairs[i : i + 1], frame[None], table)
        assert torch.equal(together[i], alone[0])
        assert together[i, frame] == 1
        assert together[i].min() >= 1 - SPREAD - 1e-6
        assert (together[i] < 0.95).sum() == 4


def test_no_clips_have_no_statistics():
    with pytest.raises(ValueError, match="no clips"):
        statistics([])


def test_what_counts_as_largest_can_be_less_than_the_largest():
    """Nine clips like each other and an odd one: it decides at 1, and not at 0.8."""
    clips = [np.array([[0, i], [i, 0]], np.float32) for i in (*range(1, 10), 1000)]
    assert statistics(clips)[1].tolist() == [1, 1000]
    assert statistics(clips, 0.8)[1, 1] < 10
    assert statistics(clips, 0.5)[1, 1] == 5.5
