"""Paint on planes of float colour: covering, glowing, and edges of one soft pixel."""

import numpy as np
from jaxtyping import Float32

from vivant.pocket.world.distance import Field

Picture = Float32[np.ndarray, "3 f i j"]
"""Red, green and blue of some frames, 0 to 1."""
RGB = tuple[float, float, float]
Density = Float32[np.ndarray, "f2 1 1"]
"""Pixels for one unit of length, in each frame or in all of them."""

SOFTNESS = 1.3  # of edges, in pixels


def rgb(code: str) -> RGB:
    """A colour from its six hexadecimal digits."""
    red, green, blue = bytes.fromhex(code)
    return red / 255, green / 255, blue / 255


def mix(one: RGB, other: RGB, share: float) -> RGB:
    """The way from one colour to another; beyond it for shares above 1."""
    red, green, blue = (a + share * (b - a) for a, b in zip(one, other, strict=True))
    return red, green, blue


def coverage(distance: Field, density: Density) -> Field:
    """How much of each pixel a shape covers, 0 to 1."""
    return np.clip(0.5 - distance * (density / SOFTNESS), 0, 1)


def fading(distance: Field, reach: float) -> Field:
    """1 up to the edge of a shape and 0 from `reach` on, smoothly."""
    return np.clip(1 - distance / reach, 0, 1) ** 2


def cover(picture: Picture, amount: Field, colour: RGB) -> None:
    """Put opaque paint on a picture."""
    for plane, value in zip(picture, colour, strict=True):
        plane += amount * (value - plane)


def light_up(picture: Picture, amount: Field, colour: RGB) -> None:
    """Add light to a picture; what is bright already gains less."""
    for plane, value in zip(picture, colour, strict=True):
        plane += (amount * value) * (1 - plane)


def fill(amount: Field, low: RGB, high: RGB) -> Picture:
    """A new picture between two colours: `low` where the amount is 0, `high` where it is 1."""
    return np.stack([a + amount * (b - a) for a, b in zip(low, high, strict=True)])
