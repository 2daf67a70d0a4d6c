"""The things of the world: sixteen kinds, each a few shapes on top of each other, about one unit in radius.

Every kind faces right. All parts of a thing are shades of its one colour but for small dark ones, such as wheels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from vivant.pocket.world.distance import Field, box, circle, crescent, ellipse, heart, polygon, segment, union

Kind = Literal[
    "ball", "square", "triangle", "star", "heart", "moon", "flower", "house",
    "tree", "mushroom", "fish", "butterfly", "boat", "car", "rocket", "balloon",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
Ink = Literal["body", "shade", "light", "dark"]


@dataclass(frozen=True)
class Part:
    """One shape of a thing: its signed distance in the thing's own unit, and which of the thing's inks fills it."""

    distance: Field
    ink: Ink = "body"


def parts(kind: Kind, x: Field, y: Field) -> list[Part]:
    """What a thing is made of, from back to front, at the points x, y (in radii from its middle)."""
    return _KINDS[kind](x, y)


def outline(kind: Kind, x: Field, y: Field) -> Field:
    """Signed distance to the thing as a whole."""
    return union(part.distance for part in parts(kind, x, y))


def _ball(x: Field, y: Field) -> list[Part]:
    # The stripe of a beach ball, without which nobody could see it spin.
    return [Part(circle(x, y, (0, 0), 0.92)), Part(ellipse(x, y, (0, 0), (0.34, 0.92)), "light")]


def _square(x: Field, y: Field) -> list[Part]:
    return [Part(box(x, y, (0, 0), (0.76, 0.76), 0.1))]


def _triangle(x: Field, y: Field) -> list[Part]:
    return [Part(polygon(x, y, ((0, -0.82), (0.84, 0.6), (-0.84, 0.6)), 0.08))]


def _star(x: Field, y: Field) -> list[Part]:
    tips = tuple(
        (radius * math.sin(math.pi * i / 5), -radius * math.cos(math.pi * i / 5))
        for i, radius in enumerate((0.92, 0.42) * 5)
    )
    return [Part(polygon(x, y, tips, 0.06))]


def _heart(x: Field, y: Field) -> list[Part]:
    size = 1.62
    return [Part(heart(x / size, y / size - 0.54) * size)]


def _moon(x: Field, y: Field) -> list[Part]:
    # Its tips a little up: the cosine and sine of 18 degrees.
    return [Part(crescent(0.95 * x - 0.31 * y, 0.31 * x + 0.95 * y, 0.92, 0.46, 0.72))]


def _flower(x: Field, y: Field) -> list[Part]:
    turns = [2 * math.pi * i / 6 for i in range(6)]
    petals = union(circle(x, y, (0.56 * math.sin(turn), -0.56 * math.cos(turn)), 0.36) for turn in turns)
    return [Part(petals), Part(circle(x, y, (0, 0), 0.3), "light")]


def _house(x: Field, y: Field) -> list[Part]:
    return [
        Part(box(x, y, (0.42, -0.55), (0.11, 0.3)), "dark"),
        Part(box(x, y, (0, 0.36), (0.62, 0.5), 0.03)),
        Part(polygon(x, y, ((0, -0.82), (0.82, -0.1), (-0.82, -0.1)), 0.06), "shade"),
        Part(box(x, y, (-0.22, 0.54), (0.17, 0.32), 0.03), "dark"),
        Part(box(x, y, (0.28, 0.34), (0.18, 0.18), 0.03), "light"),
    ]


def _tree(x: Field, y: Field) -> list[Part]:
    return [
        Part(box(x, y, (0, 0.76), (0.14, 0.22), 0.03), "dark"),
        Part(polygon(x, y, ((0, -0.1), (0.72, 0.6), (-0.72, 0.6)), 0.05), "shade"),
        Part(polygon(x, y, ((0, -0.5), (0.58, 0.16), (-0.58, 0.16)), 0.05)),
        Part(polygon(x, y, ((0, -0.88), (0.44, -0.28), (-0.44, -0.28)), 0.05), "shade"),
    ]


def _mushroom(x: Field, y: Field) -> list[Part]:
    cap = np.maximum(ellipse(x, y, (0, 0.08), (0.95, 0.95)), y - 0.1)
    spots = [circle(x, y, centre, size) for centre, size in (((-0.45, -0.2), 0.16), ((0.08, -0.5), 0.18))]
    return [
        Part(box(x, y, (0, 0.45), (0.3, 0.45), 0.16), "light"),
        Part(cap),
        Part(union([*spots, circle(x, y, (0.5, -0.12), 0.15)]), "light"),
    ]


def _fish(x: Field, y: Field) -> list[Part]:
    return [
        Part(polygon(x, y, ((-0.3, 0), (-0.9, -0.46), (-0.76, 0), (-0.9, 0.46)), 0.05), "shade"),
        Part(polygon(x, y, ((-0.2, -0.3), (0.1, -0.62), (0.4, -0.3)), 0.05), "shade"),
        Part(ellipse(x, y, (0.18, 0), (0.74, 0.48))),
        Part(polygon(x, y, ((0.12, 0.06), (-0.22, -0.1), (-0.22, 0.22)), 0.04), "shade"),
        Part(circle(x, y, (0.56, -0.12), 0.1), "dark"),
    ]


def _butterfly(x: Field, y: Field) -> list[Part]:
    side = np.abs(x)
    return [
        Part(segment(side, y, (0, -0.4), (0.24, -0.84), 0.045), "dark"),
        Part(ellipse(side, y, (0.4, 0.42), (0.36, 0.4)), "shade"),
        Part(ellipse(side, y, (0.52, -0.26), (0.46, 0.44))),
        Part(circle(side, y, (0.58, -0.3), 0.17), "light"),
        Part(segment(x, y, (0, -0.42), (0, 0.6), 0.1), "dark"),
    ]


def _boat(x: Field, y: Field) -> list[Part]:
    return [
        Part(segment(x, y, (0, -0.88), (0, 0.4), 0.045), "dark"),
        Part(polygon(x, y, ((0.12, -0.82), (0.12, 0.16), (0.76, 0.16)), 0.04)),
        Part(polygon(x, y, ((-0.12, -0.58), (-0.12, 0.16), (-0.6, 0.16)), 0.04), "light"),
        Part(polygon(x, y, ((-0.88, 0.38), (0.88, 0.38), (0.56, 0.8), (-0.56, 0.8)), 0.06), "shade"),
    ]


def _car(x: Field, y: Field) -> list[Part]:
    wheels = union(circle(x, y, (side, 0.46), 0.25) for side in (-0.5, 0.5))
    hubs = union(circle(x, y, (side, 0.46), 0.1) for side in (-0.5, 0.5))
    return [
        Part(polygon(x, y, ((-0.58, 0.0), (-0.4, -0.46), (0.2, -0.46), (0.52, 0.0)), 0.08)),
        Part(box(x, y, (0, 0.2), (0.96, 0.28), 0.14)),
        Part(polygon(x, y, ((-0.46, -0.08), (-0.34, -0.38), (-0.14, -0.38), (-0.14, -0.08)), 0.02), "light"),
        Part(polygon(x, y, ((0.04, -0.08), (0.04, -0.38), (0.16, -0.38), (0.36, -0.08)), 0.02), "light"),
        Part(wheels, "dark"),
        Part(hubs, "light"),
    ]


def _rocket(x: Field, y: Field) -> list[Part]:
    side = np.abs(x)
    # A lens, the overlap of two discs, with its lower tip cut off.
    hull = np.maximum(circle(side, y, (-0.74, -0.04), 1.14), y - 0.56)
    return [
        Part(ellipse(x, y, (0, 0.62), (0.17, 0.34)), "light"),
        Part(polygon(side, y, ((0.2, 0.1), (0.6, 0.5), (0.56, 0.76), (0.16, 0.54)), 0.04), "shade"),
        Part(hull),
        Part(circle(x, y, (0, -0.2), 0.2), "light"),
    ]


def _balloon(x: Field, y: Field) -> list[Part]:
    return [
        Part(segment(x, y, (0, 0.45), (0, 0.96), 0.045), "dark"),
        Part(polygon(x, y, ((0, 0.44), (0.12, 0.6), (-0.12, 0.6)), 0.03), "shade"),
        Part(ellipse(x, y, (0, -0.24), (0.66, 0.74))),
        Part(ellipse(x, y, (-0.26, -0.48), (0.12, 0.2)), "light"),
    ]


_KINDS: dict[Kind, Callable[[Field, Field], list[Part]]] = {
    "ball": _ball,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "moon": _moon,
    "flower": _flower,
    "house": _house,
    "tree": _tree,
    "mushroom": _mushroom,
    "fish": _fish,
    "butterfly": _butterfly,
    "boat": _boat,
    "car": _car,
    "rocket": _rocket,
    "balloon": _balloon,
}
