"""How a head is held and what it does, frame by frame."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Float32

Action = Literal["nod", "shake", "look left", "look right", "smile", "talk", "wave"]
ACTIONS: tuple[Action, ...] = get_args(Action)
Track = Float32[np.ndarray, " f"]
"""One number a frame."""

YAW, PITCH = 0.55, 0.45
"""How far heads turn in clips, in radians."""


@dataclass(frozen=True)
class Pose:
    """A head over f frames.

    Attributes:
        yaw: turned towards the right of the picture, in radians.
        pitch: turned down.
        roll: tilted clockwise.
        smile: 0 to 1.
        opening: of the mouth, 0 to 1.
        closing: of the eyes, 0 to 1.
        hand: how far a waving hand is to the right of its middle, in head units; nan shows none.
        x: middle of the head, in halves of the picture's shorter side from its middle.
        y: the same, downwards.
        scale: half the head's height, in the same unit.
    """

    yaw: Track
    pitch: Track
    roll: Track
    smile: Track
    opening: Track
    closing: Track
    hand: Track
    x: Track
    y: Track
    scale: Track


def still(**changes: float) -> Pose:
    """One frame from the front, but for what is given."""
    values = dict.fromkeys(Pose.__dataclass_fields__, 0.0) | {"hand": np.nan, "scale": 0.55} | changes
    return Pose(**{name: np.full(1, value, np.float32) for name, value in values.items()})


def act(action: Action, num_frames: int, rng: np.random.Generator | None = None) -> Pose:
    """A head that does something, from the first to the last frame; place, size and bearing by `rng`."""
    t = np.linspace(0, 1, num_frames, dtype=np.float64)
    there = np.clip(t / 0.75, 0, 1)
    eased = there * there * (3 - 2 * there)
    none = np.zeros(num_frames)
    jitter = np.zeros(5) if rng is None else rng.uniform(-1, 1, 5)
    tracks = dict.fromkeys(Pose.__dataclass_fields__, none) | {"hand": none + np.nan}
    moved: dict[Action, dict[str, np.ndarray]] = {
        "nod": {"pitch": PITCH * np.sin(2 * np.pi * t)},
        "shake": {"yaw": YAW * np.sin(2 * np.pi * t)},
        "look left": {"yaw": -YAW * eased},
        "look right": {"yaw": YAW * eased},
        "smile": {"smile": eased},
        "talk": {"opening": np.sin(2 * np.pi * t) ** 2},
        "wave": {"hand": 0.32 * np.sin(2 * np.pi * t)},
    }
    tracks |= moved[action]
    tracks["yaw"] = tracks["yaw"] + 0.08 * jitter[0]
    tracks["pitch"] = tracks["pitch"] + 0.06 * jitter[1]
    tracks["x"], tracks["y"] = none + 0.07 * jitter[2], none - 0.08 + 0.05 * jitter[3]
    tracks["scale"] = none + 0.56 + 0.04 * jitter[4]
    return Pose(**{name: value.astype(np.float32) for name, value in tracks.items()})


def sample_still(rng: np.random.Generator, *, in_front: bool = False) -> Pose:
    """A head as photos show it: turned, tilted, of any expression and size; with `in_front` about from the front."""
    far = 0.5 if in_front else 1.0
    values = {
        "yaw": rng.uniform(-0.5, 0.5) * far,
        "pitch": rng.uniform(-0.3, 0.3) * far,
        "roll": rng.uniform(-0.25, 0.25) * far,
        "smile": rng.choice([0.0, rng.random()]),
        "opening": rng.choice([0.0, 0.0, rng.random()]),
        "closing": rng.choice([0.0, 0.0, 0.0, 1.0]),
        "x": rng.uniform(-0.25, 0.25),
        "y": rng.uniform(-0.2, 0.1),
        "scale": rng.uniform(0.35, 0.62),
    }
    return still(**{name: float(value) for name, value in values.items()})


def places(pose: Pose, eye_gap: float) -> Float[np.ndarray, "f 5 2"]:
    """Eyes, nose and corners of the mouth, each from left to right, in the unit of `Pose.x`."""
    points = np.array([(-eye_gap, EYES), (eye_gap, EYES), (0, NOSE), (-MOUTH_WIDTH, MOUTH), (MOUTH_WIDTH, MOUTH)])
    u = BALL * np.sin(np.arcsin(points[None, :, 0] / BALL) + pose.yaw[:, None])
    v = BALL * np.sin(np.arcsin(points[None, :, 1] / BALL) + pose.pitch[:, None])
    cos, sin = np.cos(pose.roll)[:, None], np.sin(pose.roll)[:, None]
    turned = np.stack([cos * u - sin * v, sin * u + cos * v], axis=-1)
    return turned * pose.scale[:, None, None] + np.stack([pose.x, pose.y], axis=-1)[:, None]


BALL = 1.12
"""Radius of the ball on which the face lies, in halves of the head's height."""
EYES, NOSE, MOUTH, MOUTH_WIDTH = -0.06, 0.22, 0.52, 0.27
"""Where they are on the face."""
