"""Signed distances to plain shapes, negative inside: edges that are exact wherever, and however large, they are drawn.

After Inigo Quilez, "2D distance functions", https://iquilezles.org/articles/distfunctions2d. x grows to the right and
y downwards, as in pictures. Lengths are in the unit of the coordinates.
"""

import math
from collections.abc import Iterable
from functools import reduce

import numpy as np
from jaxtyping import Float32

Point = tuple[float, float]
Field = Float32[np.ndarray, "f i j"]
"""One value for each pixel: f frames of a region of i x j pixels."""
View = Float32[np.ndarray, "v i j"]
"""The same for each view of the world: one view for all frames, or one a frame."""


def length(x: Field, y: Field) -> Field:
    """Distance from the origin."""
    return np.sqrt(x * x + y * y)


def circle(x: Field, y: Field, centre: Point, radius: float) -> Field:
    """Distance to a disc."""
    return length(x - centre[0], y - centre[1]) - radius


def box(x: Field, y: Field, centre: Point, half: Point, rounding: float = 0.0) -> Field:
    """Distance to an upright rectangle with half sizes `half`, whose corners have the radius `rounding`."""
    across = np.abs(x - centre[0]) - (half[0] - rounding)
    along = np.abs(y - centre[1]) - (half[1] - rounding)
    outside = length(np.maximum(across, 0), np.maximum(along, 0))
    return outside + np.minimum(np.maximum(across, along), 0) - rounding


def ellipse(x: Field, y: Field, centre: Point, half: Point) -> Field:
    """Distance to an upright ellipse with half axes `half`, exact on its edge and to first order next to it."""
    a, b = (x - centre[0]) / half[0], (y - centre[1]) / half[1]
    level = length(a, b)
    slope = length(a / half[0], b / half[1])
    return level * (level - 1) / np.maximum(slope, 1e-6)


def segment(x: Field, y: Field, start: Point, end: Point, radius: float) -> Field:
    """Distance to a line with round ends, 2 x `radius` thick."""
    return np.sqrt(_squared(x, y, start, end)) - radius


def polygon(x: Field, y: Field, points: tuple[Point, ...], rounding: float = 0.0) -> Field:
    """Distance to a polygon; `rounding` grows it by that much and rounds its corners."""
    nearest = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for start, end in zip(points, points[1:] + points[:1], strict=True):
        nearest = np.minimum(nearest, _squared(x, y, start, end))
        rise = end[1] - start[1]
        if rise:
            # A ray to the right crosses the border an odd number of times from inside.
            passes = (y >= start[1]) != (y >= end[1])
            inside ^= passes & (x - start[0] < (y - start[1]) * ((end[0] - start[0]) / rise))
    nearest = np.sqrt(nearest)
    return np.where(inside, -nearest, nearest) - rounding


def heart(x: Field, y: Field) -> Field:
    """Distance to a heart of height 1.1 that stands with its tip on the origin."""
    x, y = np.abs(x), -y
    lobe = length(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    diagonal = np.maximum(x + y, 0) / 2
    nearest = np.minimum(x * x + (y - 1) ** 2, (x - diagonal) ** 2 + (y - diagonal) ** 2)
    return np.where(x + y > 1, lobe, np.sqrt(nearest) * np.sign(x - y))


def crescent(x: Field, y: Field, radius: float, shift: float, cut: float) -> Field:
    """Distance to a disc around the origin without the disc of radius `cut` that lies `shift` to the right."""
    y = np.abs(y)
    tip_x = (radius**2 - cut**2 + shift**2) / (2 * shift)
    tip_y = math.sqrt(radius**2 - tip_x**2)
    by_the_tip = x * tip_y - y * tip_x > shift * np.maximum(tip_y - y, 0)
    arcs = np.maximum(length(x, y) - radius, cut - length(x - shift, y))
    return np.where(by_the_tip, length(x - tip_x, y - tip_y), arcs)


def union(fields: Iterable[Field]) -> Field:
    """Distance to whichever is nearest."""
    return reduce(np.minimum, fields)


def wave(x: Field, period: float) -> Field:
    """Distance from the nearest multiple of `period`: what repeats a shape without end."""
    return np.abs(x - period * np.rint(x / period))


def _squared(x: Field, y: Field, start: Point, end: Point) -> Field:
    """Squared distance from a line between two points."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    x, y = x - start[0], y - start[1]
    share = np.clip((x * dx + y * dy) / (dx * dx + dy * dy), 0, 1)
    return (x - dx * share) ** 2 + (y - dy * share) ** 2
