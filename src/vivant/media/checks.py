"""Is this a result that may be called one? Black and frozen clips are found here, before they pass for success."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

DARK = 3
"""A clip with no value above this, out of 255, is black."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a clip: a stable code and a sentence."""

    code: str
    text: str

    def __str__(self) -> str:
        return f"[{self.code}] {self.text}"


def check_clip(frames: UInt8[np.ndarray, "f h w 3"], picture_is_dark: bool = False) -> tuple[Finding, ...]:
    """What is wrong with a clip: W-OUTPUT-BLACK, W-OUTPUT-FROZEN, or nothing.

    Args:
        frames: the decoded clip.
        picture_is_dark: the condition picture is itself black, so a black clip is what was asked for.
    """
    found: list[Finding] = []
    if int(frames.max()) <= DARK:
        if not picture_is_dark:
            found.append(Finding("W-OUTPUT-BLACK", "All frames are black. Half precision may have overflowed."))
    elif len(frames) > 1 and bool((frames == frames[:1]).all()):
        found.append(Finding("W-OUTPUT-FROZEN", "All frames are equal: nothing moves. Ask for more motion or steps."))
    return tuple(found)
