"""Long clips of the small model that ships: do windows show seams, and does the motion turn where the prompt does?

    python benchmarks/windows.py [CLIPS]

makes clips of 64 frames of held-out scenes with the seeds 0, 1, … and writes `results/windows.json`. Against windows
stands what has seams for sure: clips of one window's length, made each for itself and put one after the other.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from harness import RESULTS
from PIL import Image

from vivant import pocket
from vivant.api.animator import Animator
from vivant.evaluate.figures import Figure
from vivant.evaluate.pocket import DIRECTIONS, Case, drawn
from vivant.evaluate.seams import OPPOSITE, borders, changes, unusual, went
from vivant.pia.windows import Windows

FRAMES, STEPS, TURN = 64, 10, (24, 40)
LENGTH = pocket.SETTINGS["num_frames"]  # what its motion was trained with
CUT = Windows(LENGTH)
CUTS: Mapping[str, Windows] = {
    "pyramid, fresh noise": CUT,
    "pyramid, FreeNoise": Windows(LENGTH, noise="freenoise"),
    "uniform, fresh noise": Windows(LENGTH, weights="uniform"),
}


def make(animator: Animator, cases: Sequence[Case], **settings: Any) -> list[np.ndarray]:
    """The clips of cases."""
    request = {**pocket.SETTINGS, "motion": "animate:large", "num_inference_steps": STEPS, **settings}
    request.setdefault("seed", tuple(case.seed for case in cases))
    pictures, prompts = [Image.fromarray(case.picture) for case in cases], [case.prompt for case in cases]
    return list(animator.animate(pictures, prompts, **request).clips)


def naive(animator: Animator, cases: Sequence[Case]) -> list[np.ndarray]:
    """Clips of single windows one after the other."""
    parts = [
        make(animator, cases, num_frames=CUT.length, seed=tuple(1000 * k + case.seed for case in cases))
        for k in range(FRAMES // CUT.length)
    ]
    return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]


def seams(clips: Sequence[np.ndarray], places: Sequence[int]) -> dict[str, Any]:
    """Figures about places in clips."""
    found = [unusual(clip, places) for clip in clips]
    at = np.array([changes(clip)[[place - 1 for place in places]].mean() for clip in clips])
    all_ = np.array([changes(clip).mean() for clip in clips])
    share = Figure.share("unusual", [one for clip in found for one in clip])
    return {
        "places": sum(map(len, found)),
        "share beyond 95 % of the other frames": share.value,
        "interval": [share.low, share.high],
        "change at the places, of the mean change": float((at / all_).mean()),
    }


def turning(clips: Sequence[np.ndarray], cases: Sequence[Case]) -> dict[str, Any]:
    """Figures about the direction before and after the turn."""
    before = [went(clip, 0, TURN[0], case.move) for clip, case in zip(clips, cases, strict=True)]
    after = [went(clip, TURN[0], FRAMES - 8, OPPOSITE[case.move]) for clip, case in zip(clips, cases, strict=True)]
    return {
        "before, in the first direction, sides": [round(value, 3) for value in before],
        "after, in the opposite direction, sides": [round(value, 3) for value in after],
        "right before": float(np.mean([value > 0 for value in before])),
        "right after": float(np.mean([value > 0 for value in after])),
        "mean before": float(np.mean(before)),
        "mean after": float(np.mean(after)),
    }


def main(num: int) -> None:
    """Make the clips, measure and write."""
    torch.set_num_threads(1)
    animator = Animator.from_pretrained(pocket.base(), pocket.motion(), device="cpu")
    cases = drawn("paper", DIRECTIONS, num, tag=2)
    opposite = [case.prompt.replace(f"moving {case.move}", f"moving {OPPOSITE[case.move]}") for case in cases]
    travel = {TURN[0]: [case.prompt for case in cases], TURN[1]: opposite}
    settings = {
        "clips": num,
        "frames": FRAMES,
        "window": LENGTH,
        "steps": STEPS,
        "motion": "animate:large",
        "turn": list(TURN),
    }
    result: dict[str, Any] = {"settings": settings, "seams": {}, "travel": {}}

    def note(kind: str, name: str, value: dict[str, Any], start: float) -> None:
        result[kind][name] = value
        print(f"{kind}, {name}: {json.dumps(value)} ({time.perf_counter() - start:.0f} s)", flush=True)
        RESULTS.joinpath("windows.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    start = time.perf_counter()
    pieces = range(CUT.length, FRAMES, CUT.length)
    note("seams", "independent clips, one after the other", seams(naive(animator, cases), list(pieces)), start)
    for name, cut in CUTS.items():
        start = time.perf_counter()
        clips = make(animator, cases, num_frames=FRAMES, windows=cut)
        note("seams", name, seams(clips, borders(FRAMES, cut)), start)
        if cut == CUT:
            note("travel", "one prompt", turning(clips, cases), start)
    start = time.perf_counter()
    clips = make(animator, cases, num_frames=FRAMES, windows=CUT, prompt_travel=travel)
    note("travel", "the opposite direction later", turning(clips, cases), start)
    note("seams", "with the opposite direction later", seams(clips, borders(FRAMES, CUT)), start)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
