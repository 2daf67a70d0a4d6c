"""What lies behind the things: nine grounds without end, so that a camera may go anywhere.

A ground is a plain colour and layers on top of it, each a signed distance like those of things. How a layer looks is
a matter of style.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int

from vivant.pocket.world.distance import Field, box, circle, length, union, wave

Ground = Literal["plain", "stripes", "dots", "checks", "rays", "hills", "sea", "night", "clouds"]
GROUNDS: tuple[Ground, ...] = get_args(Ground)


def layers(ground: Ground, x: Field, y: Field, phase: tuple[float, float]) -> list[Field]:
    """Signed distances of a ground's layers, from back to front.

    Args:
        x, y: points of the world; the picture shows about -1 to 1.
        phase: two numbers in [0, 1) that shift the pattern.
    """
    return _GROUNDS[ground](x, y, phase)


def _plain(x: Field, y: Field, phase: tuple[float, float]) -> list[Field]:
    return []


def _stripes(x: Field, y: Field, phase: tuple[float, float]) -> list[Field]:
    lean = 1 if phase[1] < 0.5 else -1
    return [wave((x + lean * y) * math.sqrt(0.5) + 0.5 * phase[0], 0.5) - 0.125]


def _dots(x: Field, y: Field, phase: tuple[float, float]) -> list[Field]:
    x, y = x + 0.5 * phase[0], y + 0.5 * phase[1]
    # Two lattices, the second on the middles of the first.
    return [np.minimum(length(wave(x, 0.5), wave(y, 0.5)), length(wave(x - 0.25, 0.5), wave(y - 0.25, 0.5))) - 0.09]


def _checks(x: Field, y: Field, phase: tuple[float, float]) -> list[Field]:
    a, b = wave(x + 0.8 * phase[0], 0.8) - 0.2, wave(y + 0.8 * phase[1], 0.8) - 0.2
    return [np.maximum(np.minimum(a, b), -np.maximum(a, b))]


def _rays(x: Field, y: Field, phase: tuple[float, float]) -> list[Field]:
    x, y = x - 0.8 * (phase[0] - 0.5), y - 0.9
    step = 2 * math.pi / 14
    angle = wave(np.arctan2(y, x) + step * phase[1], step) - step / 4
    return [length(x, y) * np.sin(angle)]


def _hills(x: Field, y: Field, phase: tuple[float, float]) -> list[Field]:
    return [
        _ridge(x, y, 0.08, 0.24, 2.1, phase[0]),
        _ridge(x, y, 0.42, 0.2, 2.6, phase[1]),
        _ridge(x, y, 0.76, 0.14, 3.1, phase[0] + phase[1]),
    ]


def _sea(x: Field, y: Field, phase: tuple[float, float]) -> list[Field]:
    rows = enumerate((0.16, 0.4, 0.66, 0.94))
    # Arcs that meet in tips, like waves cut from paper; each row a little larger and shifted.
    return [
        top - (0.1 + 0.02 * i) * np.abs(np.sin((5.6 - 0.5 * i) * (x + phase[0]) + 1.3 * i + phase[1])) - y
        for i, top in rows
    ]


def _night(x: Field, y: Field, phase: tuple[float, float]) -> list[Field]:
    return [_stars(x + phase[0], y + phase[1]), _ridge(x, y, 0.78, 0.1, 2.4, phase[0])]


def _clouds(x: Field, y: Field, phase: tuple[float, float]) -> list[Field]:
    return [_flock(x, y, 0.72, phase), _flock(x, y, 1.1, (phase[1], phase[0]))]


def _ridge(x: Field, y: Field, top: float, height: float, pace: float, phase: float) -> Field:
    """Everything below a line of two waves."""
    turn = 2 * math.pi * phase
    return top - height * (0.7 * np.sin(pace * x + turn) + 0.3 * np.sin(2.3 * pace * x + 2 * turn)) - y


def _stars(x: Field, y: Field) -> Field:
    """A star somewhere in each square of a lattice, some large and some small."""
    cell = 0.4
    i, j = np.floor(x / cell), np.floor(y / cell)
    across, along, size = _scatter(i.astype(np.int64), j.astype(np.int64))
    dx, dy = x - cell * (i + 0.25 + 0.5 * across), y - cell * (j + 0.25 + 0.5 * along)
    return length(dx, dy) - (0.018 + 0.03 * size * size)


def _scatter(i: Int[np.ndarray, "f i j"], j: Int[np.ndarray, "f i j"]) -> tuple[Field, Field, Field]:
    """Three numbers in [0, 1) that depend on a square of the lattice and on nothing else."""
    mixed = (i * 0x9E3779B1 + j * 0x85EBCA77) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    mixed ^= mixed >> 12
    a, b, c = (((mixed >> shift) & 0x3FF).astype(np.float32) / 1024 for shift in (0, 10, 20))
    return a, b, c


def _flock(x: Field, y: Field, size: float, phase: tuple[float, float]) -> Field:
    """Clouds in rows, every second row shifted by half a step."""
    x, y = x / size + 1.3 * phase[0], y / size + 0.8 * phase[1]
    row = np.rint(y / 0.8)
    x = x - 0.65 * np.mod(row, 2)
    x, y = x - 1.3 * np.rint(x / 1.3), y - 0.8 * row
    puffs = [circle(x, y, centre, radius) for centre, radius in (((-0.19, 0), 0.12), ((0, -0.07), 0.17))]
    return size * union([*puffs, circle(x, y, (0.2, 0.01), 0.11), box(x, y, (0, 0.06), (0.31, 0.06), 0.06)])


_GROUNDS: dict[Ground, Callable[[Field, Field, tuple[float, float]], list[Field]]] = {
    "plain": _plain,
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "rays": _rays,
    "hills": _hills,
    "sea": _sea,
    "night": _night,
    "clouds": _clouds,
}
