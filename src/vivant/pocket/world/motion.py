"""Where the main thing and the camera are in each frame.

A motion is even and ends after a given way, so that a clip of more frames is finer, not longer. Its first frame is
always the scene as it was described.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from vivant.pocket.world.distance import Field, View
from vivant.pocket.world.scene import Magnitude, Motion, Thing

Frames = Float32[np.ndarray, " f"]
Lengths = Float32[np.ndarray, "f 1 1"]

TRAVEL: dict[Magnitude, float] = {"small": 0.3, "moderate": 0.6, "large": 0.95}  # halves of the picture's shorter side
HOP: dict[Magnitude, float] = {"small": 0.3, "moderate": 0.55, "large": 0.85}  # the same, from the top to the floor
GROWTH: dict[Magnitude, float] = {"small": 1.2, "moderate": 1.45, "large": 1.7}  # of lengths
SPIN: dict[Magnitude, float] = {"small": 30.0, "moderate": 60.0, "large": 110.0}  # degrees
ROLL: dict[Magnitude, float] = {"small": 12.0, "moderate": 25.0, "large": 45.0}  # degrees
NUM_HOPS = 1.5  # down, up, and down again
SQUASH = 0.2  # how much of its height a thing loses when it lands

Direction = tuple[int, int]
DIRECTIONS: dict[Motion, Direction] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Course:
    """How a thing differs from the scene's description in each frame.

    Attributes:
        x, y: how far it has moved, to the right and down.
        scale: its size, relative.
        angle: how far it has turned, in radians clockwise.
        squash: its height, relative; it stays on its floor.
    """

    x: Frames
    y: Frames
    scale: Frames
    angle: Frames
    squash: Frames

    def unit(self, thing: Thing) -> Lengths:
        """How long the thing's own unit is in the world."""
        return _each_frame(thing.radius * self.scale)

    def to_thing(self, thing: Thing, x: View, y: View) -> tuple[Field, Field]:
        """Points of the world as the thing sees them: in its own unit from its middle, upright and facing right."""
        unit, squash = self.unit(thing), _each_frame(self.squash)
        x = (x - _each_frame(thing.x + self.x)) / unit
        y = ((y - _each_frame(thing.y + self.y)) / unit - (1 - squash)) / squash
        angle = _each_frame(thing.angle + self.angle)
        cos, sin = np.cos(angle), np.sin(angle)
        x, y = x * cos + y * sin, y * cos - x * sin
        return -x if thing.faces_left else x, y


@dataclass(frozen=True)
class Camera:
    """What the camera shows in each frame.

    Attributes:
        x: the point of the world in the middle of the picture (its y is always 0).
        zoom: how much larger everything is.
        roll: how far the picture has turned, in radians clockwise.
    """

    x: Frames
    zoom: Frames
    roll: Frames

    @property
    def is_fixed(self) -> bool:
        """Whether all frames show the same piece of the world."""
        return all(bool(np.all(values == values[0])) for values in (self.x, self.zoom, self.roll))

    def to_world(
        self, x: Float32[np.ndarray, "h w"], y: Float32[np.ndarray, "h w"]
    ) -> tuple[Float32[np.ndarray, "f h w"], Float32[np.ndarray, "f h w"]]:
        """The points of the world that are at the points x, y of the picture."""
        cos, sin = (_each_frame(v / self.zoom) for v in (np.cos(self.roll), np.sin(self.roll)))
        return x * cos + y * sin + _each_frame(self.x), y * cos - x * sin

    def to_picture(
        self, x: Float32[np.ndarray, "n f"], y: Float32[np.ndarray, "n f"]
    ) -> tuple[Float32[np.ndarray, "n f"], Float32[np.ndarray, "n f"]]:
        """Where the points x, y of the world are in the picture."""
        cos, sin = np.cos(self.roll) * self.zoom, np.sin(self.roll) * self.zoom
        x = x - self.x
        return x * cos - y * sin, x * sin + y * cos


def course(motion: Motion, magnitude: Magnitude, num_frames: int) -> Course:
    """The way of the main thing; it stays where it is while the camera moves."""
    s = _progress(num_frames)
    none, one = np.zeros_like(s), np.ones_like(s)
    match motion:
        case "left" | "right" | "up" | "down":
            x, y = DIRECTIONS[motion]
            return Course(x * TRAVEL[magnitude] * s, y * TRAVEL[magnitude] * s, one, none, one)
        case "growing":
            return Course(none, none, GROWTH[magnitude] ** s, none, one)
        case "shrinking":
            return Course(none, none, GROWTH[magnitude] ** -s, none, one)
        case "clockwise":
            return Course(none, none, one, math.radians(SPIN[magnitude]) * s, one)
        case "counterclockwise":
            return Course(none, none, one, math.radians(SPIN[magnitude]) * -s, one)
        case "bouncing":
            # A ball thrown again and again: parabolas, of which the first is entered at its top.
            hop = (0.5 + NUM_HOPS * s) % 1
            height = HOP[magnitude] * 4 * hop * (1 - hop)
            landing = np.maximum(1 - height / 0.15, 0)
            return Course(none, HOP[magnitude] - height, one, none, 1 - SQUASH * landing)
        case _:
            return Course(none, none, one, none, one)


def camera(motion: Motion, magnitude: Magnitude, num_frames: int) -> Camera:
    """The way of the camera; it stays where it is while the main thing moves."""
    s = _progress(num_frames)
    none, one = np.zeros_like(s), np.ones_like(s)
    match motion:
        case "zoom in":
            return Camera(none, GROWTH[magnitude] ** s, none)
        case "zoom out":
            return Camera(none, GROWTH[magnitude] ** -s, none)
        case "pan left":
            return Camera(-TRAVEL[magnitude] * s, one, none)
        case "pan right":
            return Camera(TRAVEL[magnitude] * s, one, none)
        case "turn":
            return Camera(none, one, math.radians(ROLL[magnitude]) * s)
        case _:
            return Camera(none, one, none)


def _progress(num_frames: int) -> Frames:
    """0 in the first frame, 1 in the last."""
    return np.linspace(0, 1, num_frames, dtype=np.float32)


def _each_frame(values: Frames) -> Lengths:
    """One value a frame, ready to meet fields."""
    return values[:, None, None]
