"""What moves in a clip, and how: dense optical flow between neighbouring frames, and the simplest motion that fits it.

Flow is OpenCV's dense inverse search (Kroeger et al. 2016, arXiv 1603.03590). tests/unit/test_flow.py compares what it
says with drawn clips, whose motion is known.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vivant.errors import MissingPackage

Frames = UInt8[np.ndarray, "f h w 3"]
Flow = Float[np.ndarray, "h w 2"]
Camera = Literal["zoom in", "zoom out", "pan left", "pan right", "turn"]
NOTICEABLE = 0.1
"""Pixels from one frame to the next; less is noise."""
MOVING = 0.25
"""What moves at least this part as fast as the fastest pixel belongs to the thing that moves."""
AGREE = 1.0
"""Pixels by which flow there and back may differ where the same thing is seen in both frames."""
FLOOR = 1 / 12
"""Mean squared error of rounding to whole levels; nothing counts as closer than that (58.9 dB)."""


@dataclass(frozen=True)
class Motion:
    """How a clip moves from its first frame to its last.

    Attributes:
        x, y: how far to the right and down, in the picture's shorter sides.
        zoom: logarithm of how much larger things become.
        turn: radians clockwise.
        way: how far the mean pixel goes, forth and back both counted, in the picture's shorter sides: the magnitude.
    """

    x: float
    y: float
    zoom: float
    turn: float
    way: float

    @property
    def direction(self) -> Literal["left", "right", "up", "down"]:
        """Where it goes above all."""
        if abs(self.x) > abs(self.y):
            return "left" if self.x < 0 else "right"
        return "up" if self.y < 0 else "down"

    @property
    def growth(self) -> Literal["growing", "shrinking"]:
        """Whether things become larger."""
        return "growing" if self.zoom > 0 else "shrinking"

    @property
    def camera(self) -> Camera:
        """The camera move that carries the picture farthest; what a camera pans to comes from the other side."""
        # Zoom and turn carry a pixel by its distance from the middle: root of 1/6 of the side of a square on average.
        far = 6**-0.5
        way: dict[Camera, float] = {
            "zoom in": self.zoom * far,
            "zoom out": -self.zoom * far,
            "pan left": self.x,
            "pan right": -self.x,
            "turn": abs(self.turn) * far,
        }
        return max(way, key=lambda name: way[name])


def measure(frames: Frames, region: Literal["all", "moving"]) -> Motion:
    """The motion of a clip: of all of the picture, as a camera's, or of what moves in it.

    From frame to frame the flow is fitted by least squares with a shift, a zoom and a turn about the region's middle;
    their sums over the clip are the result.

    Raises:
        MissingPackage: E-EXTRA-EVAL without OpenCV.
    """
    height, width = frames.shape[1:3]
    side = min(height, width)
    total, way = np.zeros(4), 0.0
    for there, _ in flows(frames, back=False):
        length = np.hypot(there[..., 0], there[..., 1])
        way += float(length.mean()) / side
        inside = np.full_like(length, True, dtype=bool)
        if region == "moving":
            inside = (length > NOTICEABLE) & (length > MOVING * length.max())
        if inside.any():
            total += _fit(there, inside)
    x, y, zoom, turn = (float(value) for value in total)
    return Motion(x / side, y / side, zoom, turn, way)


def consistency(frames: Frames) -> float:
    """How well every frame is the one before carried along by the flow, in dB (PSNR over all frames).

    Pixels count where the flow there and the flow back agree, so that what appears or is covered does not.

    Raises:
        MissingPackage: E-EXTRA-EVAL without OpenCV.
    """
    cv = opencv()
    errors: list[float] = []
    height, width = frames.shape[1:3]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for (before, after), (there, back) in zip(pairwise(frames), flows(frames), strict=True):
        at_x, at_y = x + back[..., 0], y + back[..., 1]
        carried, returned = (cv.remap(f, at_x, at_y, cv.INTER_LINEAR, borderMode=cv.BORDER_REPLICATE)
                             for f in (before, there))  # fmt: skip
        inside = (at_x >= 0) & (at_x <= width - 1) & (at_y >= 0) & (at_y <= height - 1)
        same = inside & (np.hypot(*np.moveaxis(returned + back, -1, 0)) < AGREE)
        if same.any():
            errors.append(float(((carried.astype(np.float64) - after) ** 2)[same].mean()))
    return decibels(float(np.mean(errors))) if errors else 0.0


def psnr(a: UInt8[np.ndarray, "*n"], b: UInt8[np.ndarray, "*n"]) -> float:
    """Peak signal-to-noise ratio of two pictures or clips in dB; at most 58.9, the error of rounding."""
    return decibels(float(((a.astype(np.float64) - b) ** 2).mean()))


def decibels(squared_error: float) -> float:
    """A mean squared error of levels from 0 to 255 as PSNR."""
    return 10 * float(np.log10(255**2 / max(squared_error, FLOOR)))


def flows(frames: Frames, *, back: bool = True) -> Iterator[tuple[Flow, Flow]]:
    """Flow from each frame to the next and, if wanted, the way back; in pixels, x before y."""
    grey = [opencv().cvtColor(np.ascontiguousarray(frame), opencv().COLOR_RGB2GRAY) for frame in frames]
    search = _search()
    for before, after in pairwise(grey):
        there = search.calc(before, after, None)
        yield there, search.calc(after, before, None) if back else there


def _fit(flow: Flow, inside: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "4"]:
    """Shift, zoom and turn that fit the flow of a region best, about the region's middle."""
    y, x = np.nonzero(inside)
    vx, vy = flow[y, x].astype(np.float64).T
    dx, dy = x - x.mean(), y - y.mean()
    spread = max(float((dx**2 + dy**2).sum()), 1e-9)
    return np.array([vx.mean(), vy.mean(), (dx * vx + dy * vy).sum() / spread, (dx * vy - dy * vx).sum() / spread])


@lru_cache(maxsize=1)
def _search() -> Any:
    cv = opencv()
    search = cv.DISOpticalFlow_create(cv.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)  # down to single pixels: the clips may be small
    return search


def opencv() -> Any:
    """OpenCV, which only measuring needs."""
    try:
        import cv2
    except ImportError:
        raise MissingPackage(
            "E-EXTRA-EVAL", "Measuring motion needs OpenCV.", "It is not installed.", "pip install 'vivant[eval]'"
        ) from None
    return cv2
