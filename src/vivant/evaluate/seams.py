"""Whether a clip that was made in pieces shows where they meet, and whether it turns where its prompt does."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from vivant.evaluate.flow import measure
from vivant.pia.windows import Windows, windows
from vivant.pocket.world import Motion

Frames = UInt8[np.ndarray, "f h w 3"]
UNUSUAL = 0.95
OPPOSITE: dict[Motion, Motion] = {"left": "right", "right": "left", "up": "down", "down": "up"}


def borders(num_frames: int, cut: Windows) -> list[int]:
    """Frames at which a window begins, or that follow the end of one."""
    cuts = windows(num_frames, cut)
    places = {window.frames[0] for window in cuts} | {window.frames[-1] + 1 for window in cuts}
    return sorted(places - {0, num_frames})


def changes(frames: Frames) -> Float[np.ndarray, " n"]:
    """How much every frame but the first differs from the one before: mean absolute difference in levels of 255."""
    return np.abs(np.diff(frames.astype(np.float64), axis=0)).mean(axis=(1, 2, 3))


def unusual(frames: Frames, places: Sequence[int]) -> list[bool]:
    """For frames of a clip whether they differ from the one before by more than 95 % of the other frames do.

    Without seams that is so for 5 % of them.
    """
    found, chosen = changes(frames), np.zeros(len(frames) - 1, dtype=bool)
    chosen[[place - 1 for place in places]] = True
    return (found[chosen] > np.quantile(found[~chosen], UNUSUAL)).tolist()


def went(frames: Frames, first: int, last: int, move: Motion) -> float:
    """How far what moves in a clip goes from one frame to another in a direction; in the picture's shorter sides.

    Between the two frames alone, since over many frames the errors of small flows add up.

    Raises:
        MissingPackage: E-EXTRA-EVAL without OpenCV.
    """
    found = measure(frames[[first, last]], "moving")
    return {"left": -found.x, "right": found.x, "up": -found.y, "down": found.y}[move]
