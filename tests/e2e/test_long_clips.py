"""Clips of the shipped model that are longer than it was made for: no seams, and a turn where the prompt says so."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from vivant import pocket
from vivant.api.animator import Animator
from vivant.evaluate.pocket import DIRECTIONS, drawn
from vivant.evaluate.seams import OPPOSITE, borders, changes, unusual, went
from vivant.pia.windows import Windows

FRAMES, CUT, NUM = 32, Windows(8), 4
CASES = drawn("paper", DIRECTIONS, NUM, tag=2)


@pytest.fixture(scope="module")
def animator() -> Animator:
    return Animator.from_pretrained(pocket.base(), pocket.motion(), device="cpu")


def make(animator: Animator, **settings: Any) -> tuple[np.ndarray, ...]:
    pictures, prompts = [Image.fromarray(case.picture) for case in CASES], [case.prompt for case in CASES]
    request = {**pocket.SETTINGS, "seed": tuple(range(NUM)), "motion": "animate:large", "num_inference_steps": 5}
    return animator.animate(pictures, prompts, **{**request, **settings}).clips


def test_windows_have_no_seams_and_the_motion_turns_with_the_prompt(animator):
    """Few clips; benchmarks/windows.py makes more."""
    opposite = [case.prompt.replace(f"moving {case.move}", f"moving {OPPOSITE[case.move]}") for case in CASES]
    travel = {12: [case.prompt for case in CASES], 20: opposite}
    clips = make(animator, num_frames=FRAMES, windows=CUT, prompt_travel=travel)
    assert np.mean([unusual(clip, borders(FRAMES, CUT)) for clip in clips]) < 0.25
    before = [went(clip, 0, 10, case.move) for clip, case in zip(clips, CASES, strict=True)]
    after = [went(clip, 10, 26, OPPOSITE[case.move]) for clip, case in zip(clips, CASES, strict=True)]
    assert np.mean(before) > 0.015
    assert np.mean(after) > 0.03  # without the second prompt it is 0.00


def test_clips_one_after_the_other_have_seams(animator):
    """That the measure can fail."""
    parts = [make(animator, num_frames=8, seed=tuple(100 * k + b for b in range(NUM))) for k in range(FRAMES // 8)]
    clips = [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
    found = np.mean([unusual(clip, range(8, FRAMES, 8)) for clip in clips])
    assert found > 0.7


def test_borders_are_where_windows_begin_or_end():
    assert borders(20, Windows(8)) == [4, 8, 12, 16]
    assert borders(19, Windows(8)) == [4, 8, 11, 12, 16]
    assert borders(8, Windows(8)) == []


def test_a_jump_is_unusual():
    frames = np.zeros((9, 4, 4, 3), np.uint8)
    frames[4:] = 100
    assert changes(frames).tolist() == [0, 0, 0, 100, 0, 0, 0, 0]
    assert unusual(frames, [4, 6]) == [True, False]
