"""Key points of a face as a picture: what checkpoints with `is_kps` were trained to read on their second latent frame.

Five points (left eye, right eye, nose, left and right corner of the mouth) in colours of their own, each but the nose
joined to the nose by a thin ellipse in its colour, darker (ConsisID, arXiv 2411.17440, section 3.1; the drawing is that
of InstantID, arXiv 2401.07519).
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from vivant.errors import InputError

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
LIMBS = ((0, 2), (1, 2), (3, 2), (4, 2))
WIDTH, RADIUS, SHADE = 4, 10, 0.6


def read_points(points: Any) -> Float[np.ndarray, "b 5 2"]:
    """Points of one face `5 2` or of several `b 5 2`, x and y in pixels of the face's picture.

    Raises:
        InputError: E-KEY-POINTS for another shape, or numbers that are none.
    """
    try:
        found = np.asarray(points.tolist() if hasattr(points, "tolist") else points, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.ndim == 2:
        found = found[None]
    if found.ndim != 3 or found.shape[1:] != (5, 2) or not np.isfinite(found).all():
        raise InputError(
            "E-KEY-POINTS",
            f"kps_cond has the shape {tuple(found.shape)}.",
            "A face has five points of two coordinates: eyes, nose, corners of the mouth.",
            "Give 5 x 2 numbers, in pixels of the picture, for each face.",
        )
    return found


def draw_points(points: Float[np.ndarray, "5 2"], width: int, height: int) -> Image.Image:
    """The picture of one face's points.

    Raises:
        InputError: E-KEY-POINTS when none of them lies inside.
    """
    if not ((points >= 0) & (points < (width, height))).all(axis=1).any():
        raise InputError(
            "E-KEY-POINTS",
            f"No key point lies inside the picture of {width} x {height} pixels.",
            "They count pixels of the picture that is given, the aligned crop of the face.",
        )
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    for first, second in LIMBS:
        draw.polygon(_ellipse(points[first], points[second]), fill=tuple(int(c * SHADE) for c in COLOURS[first]))
    for (x, y), colour in zip(points.astype(int).tolist(), COLOURS, strict=True):
        draw.ellipse((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), fill=colour)
    return image


def _ellipse(first: Float[np.ndarray, " 2"], second: Float[np.ndarray, " 2"]) -> list[tuple[int, int]]:
    """Corners, a degree apart, of the ellipse between two points; whole numbers where the training had them."""
    x, y = (int(value) for value in (first + second) / 2)
    dx, dy = first - second
    angle, length = math.radians(int(math.degrees(math.atan2(dy, dx)))), int(math.hypot(dx, dy) / 2)
    turns = (math.radians(degree) for degree in range(361))
    ovals = ((length * math.cos(turn), WIDTH * math.sin(turn)) for turn in turns)
    cos, sin = math.cos(angle), math.sin(angle)
    return [(round(x + a * cos - b * sin), round(y + a * sin + b * cos)) for a, b in ovals]
