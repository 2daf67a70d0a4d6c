"""What may be called a result: neither black nor frozen."""

import numpy as np
import pytest

from vivant.media.checks import DARK, check_clip


def clip(seed: int = 1, low: int = 0, high: int = 256, num: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (num, 6, 10, 3), dtype=np.uint8)


def codes(frames: np.ndarray, **given: bool) -> list[str]:
    return [found.code for found in check_clip(frames, **given)]


def test_a_clip_that_moves_is_fine():
    assert codes(clip()) == []


def test_one_bright_value_is_enough_and_one_that_moves():
    frames = np.zeros((3, 6, 10, 3), np.uint8)
    frames[1, 2, 3, 0] = DARK + 1
    assert codes(frames) == []


@pytest.mark.parametrize("high", [1, DARK + 1])
def test_black(high):
    assert codes(clip(high=high)) == ["W-OUTPUT-BLACK"]


def test_a_black_picture_may_give_a_black_clip():
    assert codes(clip(high=1), picture_is_dark=True) == []
    assert codes(clip(high=1)[:1], picture_is_dark=True) == []


def test_frozen():
    frames = np.repeat(clip(num=1), 4, axis=0)
    assert codes(frames) == ["W-OUTPUT-FROZEN"]
    assert codes(frames, picture_is_dark=True) == ["W-OUTPUT-FROZEN"]
    frames[3, 0, 0, 0] ^= 1
    assert codes(frames) == []


def test_a_clip_of_one_frame_is_not_frozen():
    assert codes(clip(num=1)) == []


def test_a_finding_reads_as_a_sentence():
    (found,) = check_clip(clip(high=1))
    assert str(found).startswith("[W-OUTPUT-BLACK] All frames are black.")
