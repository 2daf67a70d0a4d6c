"""Optical flow and what is read from it, on drawn clips whose motion is known."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from vivant.evaluate.clips import Measures
from vivant.evaluate.figures import Figure, markdown
from vivant.evaluate.flow import Motion, consistency, decibels, measure, psnr
from vivant.pocket.world import STYLES, photo_clip, render, sample_scene

F, SIZE, NUM = 8, 64, 6


def drawn(motion: str, magnitude: str = "moderate", num: int = NUM) -> list[np.ndarray]:
    scenes = [
        sample_scene(np.random.default_rng([i, 31]), style=STYLES[i % 2], motion=motion, magnitude=magnitude)
        for i in range(num)
    ]
    return [render(scene, F, SIZE) for scene in scenes]


def photo() -> np.ndarray:
    """Soft noise: texture everywhere, and none of it regular."""
    noise = np.random.default_rng(3).normal(size=(220, 260, 3))
    soft = ndimage.gaussian_filter(noise, (3, 3, 0))
    return (127 + 45 * soft / soft.std()).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("motion", ["left", "right", "up", "down"])
def test_the_direction_of_a_thing(motion):
    assert [measure(clip, "moving").direction for clip in drawn(motion)] == [motion] * NUM


@pytest.mark.parametrize("motion", ["growing", "shrinking"])
def test_growing_and_shrinking(motion):
    assert [measure(clip, "moving").growth for clip in drawn(motion)] == [motion] * NUM


@pytest.mark.parametrize("motion", ["zoom in", "zoom out", "pan left", "pan right", "turn"])
def test_the_camera(motion):
    clips = [photo_clip(photo(), np.random.default_rng(i), motion, F, SIZE, "moderate").pixels for i in range(NUM)]
    assert [measure(clip, "all").camera for clip in clips] == [motion] * NUM


def test_numbers_are_those_of_the_motion():
    """A pan of 0.6 halves of a side; a zoom by 1.45; a turn of 25 degrees."""
    found = {
        motion: measure(photo_clip(photo(), np.random.default_rng(1), motion, F, SIZE, "moderate").pixels, "all")
        for motion in ("pan right", "zoom in", "turn")
    }
    assert found["pan right"].x == pytest.approx(-0.3, abs=0.01)
    assert found["pan right"].way == pytest.approx(0.3, abs=0.01)
    assert found["zoom in"].zoom == pytest.approx(math.log(1.45), abs=0.02)
    assert found["turn"].turn == pytest.approx(math.radians(25), abs=0.02)
    assert abs(found["turn"].y) < 0.02
    assert abs(found["zoom in"].turn) < 0.02


def test_larger_motions_measure_larger():
    for motion in ("left", "growing", "zoom in"):
        ways = [
            np.mean([measure(clip, "all").way for clip in drawn(motion, m)]) for m in ("small", "moderate", "large")
        ]
        assert ways[0] < 0.8 * ways[1] < 0.8 * 0.8 * ways[2]


def test_a_still_does_not_move():
    frames = np.stack([photo()[:SIZE, :SIZE]] * 3)
    assert measure(frames, "moving") == Motion(0, 0, 0, 0, 0)
    assert measure(frames, "all").way < 1e-3
    assert consistency(frames) == pytest.approx(58.9, abs=0.1)


def test_consistency_forgives_what_moves_and_nothing_else():
    pan = photo_clip(photo(), np.random.default_rng(0), "pan right", F, SIZE, "small").pixels
    flicker = pan.astype(float) * np.where(np.arange(F) % 2, 0.9, 1.1)[:, None, None, None]
    flickering = flicker.clip(0, 255).astype(np.uint8)
    assert psnr(pan[1], pan[0]) < 20
    assert consistency(pan) > 36
    assert consistency(flickering) < 24


def test_decibels():
    assert decibels(1.0) == pytest.approx(20 * math.log10(255))
    assert decibels(0.0) == decibels(1 / 12)
    a = np.zeros((4, 5, 3), np.uint8)
    assert psnr(a, a + 255) == 0
    assert psnr(a, a + np.uint8(5)) == pytest.approx(20 * math.log10(255 / 5))


def test_measures_of_a_clip():
    frames = np.stack([np.full((16, 20, 3), v, np.uint8) for v in (100, 110, 130)])
    found = Measures.of(frames, frames[0] + np.uint8(2), cond_frame=1)
    assert found.fidelity == pytest.approx(20 * math.log10(255 / 8))
    assert found.similarity == pytest.approx(np.mean([20 * math.log10(255 / d) for d in (2, 8, 28)]))
    assert found.closure == pytest.approx(20 * math.log10(255 / 30))
    assert found.motion < 1e-3


def test_names_of_motions():
    for x, y in product((-0.3, 0.3), (-0.1, 0.1)):
        assert Motion(x, y, 0, 0, 0).direction == ("left" if x < 0 else "right")
        assert Motion(y, x, 0, 0, 0).direction == ("up" if x < 0 else "down")
    assert Motion(0.1, 0, 0.02, 0, 0).camera == "pan left"  # the picture goes right
    assert Motion(0.01, 0, 0.3, 0, 0).camera == "zoom in"
    assert Motion(0.01, 0, -0.3, 0, 0).camera == "zoom out"
    assert Motion(0, 0, 0.1, -0.3, 0).camera == "turn"


# ----------------------------------------------------------------------------------------------------- figures


def test_a_share_has_wilsons_interval():
    found = Figure.share("right", [True] * 90 + [False] * 10, asked=0.9, chance=0.25)
    assert (found.value, found.num, found.met) == (0.9, 100, True)
    assert found.low == pytest.approx(0.8256, abs=1e-4)  # tabulated
    assert found.high == pytest.approx(0.9448, abs=1e-4)
    assert Figure.share("all", [True] * 10).high == 1
    assert Figure.share("none", [False] * 10, asked=0.1).met is False


def test_a_mean_has_an_interval():
    found = Figure.mean("dB", [1.0, 2.0, 3.0, 6.0], "dB")
    assert found.value == 3
    assert found.high - found.value == pytest.approx(1.96 * np.std([1, 2, 3, 6], ddof=1) / 2)
    assert Figure.mean("one", [1.0], "dB").to_json()["low"] is None


def test_tables_say_what_is_not_met():
    text = markdown([Figure.share("a", [True, False], asked=0.9), Figure.mean("b", [1.0, 2.0], "dB")])
    assert text.splitlines()[0] == "| measure | value | 95 % interval | clips | asked |"
    assert "90 % (not met)" in text
    assert "| b | 1.5 dB |" in text
