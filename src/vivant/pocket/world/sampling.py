"""Scenes drawn at random."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float32

from vivant.pocket.world.grounds import GROUNDS, Ground
from vivant.pocket.world.motion import camera, course
from vivant.pocket.world.scene import (
    CAMERA_MOTIONS,
    COLOURS,
    MAGNITUDES,
    MOTIONS,
    SIZES,
    STYLES,
    TONES,
    Colour,
    Magnitude,
    Motion,
    Scene,
    Size,
    Style,
    Thing,
    Tone,
)
from vivant.pocket.world.shapes import KINDS, Kind

# Grounds that are too near to a colour for the eye, beside the one that has its name.
TOO_NEAR: dict[Colour, tuple[Tone, ...]] = {
    "orange": ("yellow",),
    "pink": ("purple",),
    "purple": ("blue",),
    "blue": ("purple",),
    "white": ("yellow",),
}
NIGHT_TONES: tuple[Tone, ...] = ("blue", "green", "purple")
COMPANY = 0.35  # the share of scenes with a second thing
MAX_LEAN = 0.2  # radians
NUM_TRIES = 256  # places that are tried at once
NUM_LOOKS = 13  # moments at which a place is tried

T = TypeVar("T")
Places = Float32[np.ndarray, "n 2"]


def stands_out(colour: Colour, tone: Tone) -> bool:
    """Whether a thing of this colour is seen at once on a ground of this tone."""
    return tone != colour and tone not in TOO_NEAR.get(colour, ())


def sample_scene(
    rng: np.random.Generator,
    *,
    style: Style | None = None,
    ground: Ground | None = None,
    tone: Tone | None = None,
    kind: Kind | None = None,
    colour: Colour | None = None,
    size: Size | None = None,
    motion: Motion | None = None,
    magnitude: Magnitude | None = None,
    has_second: bool | None = None,
) -> Scene:
    """A random scene in which the main thing stays in the picture; what is given is kept.

    Every choice is drawn evenly, and drawn even if its result is given: from one seed, `style="paper"` and
    `style="neon"` are the same scene. A given tone may be that of the thing's colour; a drawn one never is.

    Args:
        has_second: whether there is a second thing; about one scene in three has one.
    """
    style = _pick(rng, STYLES, style)
    motion = _pick(rng, MOTIONS, motion)
    magnitude = _pick(rng, MAGNITUDES, magnitude)
    kind = _pick(rng, KINDS, kind)
    colour = _pick(rng, COLOURS, colour)
    size = _pick(rng, SIZES[1:], size)  # tiny is for what keeps the main thing company
    # Without a pattern behind it, a thing that the camera passes would look like one that moves.
    ground = _pick(rng, GROUNDS[1:] if motion in CAMERA_MOTIONS else GROUNDS, ground)
    tones = NIGHT_TONES if ground == "night" else TONES
    tone = _pick(rng, [tone for tone in tones if stands_out(colour, tone)], tone)
    phase = (float(rng.random()), float(rng.random()))
    main = _facing(rng, motion, Thing(kind, colour, size, angle=_lean(rng)))
    main = _placed(main, _kept_inside(rng, main, motion, magnitude))
    scene = Scene(style, ground, tone, phase, main, None, motion, magnitude)
    drawn = bool(rng.random() < COMPANY)
    return replace(scene, second=_company(rng, scene)) if (drawn if has_second is None else has_second) else scene


def _pick(rng: np.random.Generator, options: Sequence[T], given: T | None = None) -> T:
    """One of the options, unless one is given."""
    drawn = options[int(rng.integers(len(options)))]
    return drawn if given is None else given


def _lean(rng: np.random.Generator) -> float:
    return float(rng.uniform(-MAX_LEAN, MAX_LEAN))


def _facing(rng: np.random.Generator, motion: Motion, thing: Thing) -> Thing:
    """Looking where it goes, or to either side."""
    faces_left = bool(rng.random() < 0.5)
    return replace(thing, faces_left=motion == "left" if motion in ("left", "right") else faces_left)


def _placed(thing: Thing, place: Float32[np.ndarray, " 2"]) -> Thing:
    return replace(thing, x=float(place[0]), y=float(place[1]))


def _kept_inside(
    rng: np.random.Generator, thing: Thing, motion: Motion, magnitude: Magnitude
) -> Float32[np.ndarray, " 2"]:
    """A place for the main thing from which it never leaves the picture, or leaves it least."""
    places = _places(rng, 0.85)
    way, view = course(motion, magnitude, NUM_LOOKS), camera(motion, magnitude, NUM_LOOKS)
    x, y = view.to_picture(places[:, :1] + way.x, places[:, 1:] + way.y)
    reach = 1.04 * thing.radius * way.scale * view.zoom
    out = np.max(np.maximum(np.abs(x), np.abs(y)) + reach - 1, axis=1)
    return places[np.argmin(np.maximum(out, 0))]


def _company(rng: np.random.Generator, scene: Scene) -> Thing:
    """A second thing, tiny, of another kind and colour, out of the main thing's way as far as there is room."""
    main = scene.main
    kinds: list[Kind] = [kind for kind in KINDS if kind != main.kind]
    colours: list[Colour] = [c for c in COLOURS if c != main.colour and stands_out(c, scene.tone)]
    kind, colour = _pick(rng, kinds), _pick(rng, colours)
    thing = Thing(kind, colour, "tiny", angle=_lean(rng), faces_left=bool(rng.random() < 0.5))
    places = _places(rng, 1 - thing.radius)
    way = course(scene.motion, scene.magnitude, NUM_LOOKS)
    gap = np.hypot(places[:, :1] - main.x - way.x, places[:, 1:] - main.y - way.y) - main.radius * way.scale
    covered = np.max(thing.radius - gap, axis=1)
    return _placed(thing, places[np.argmin(np.maximum(covered, 0))])


def _places(rng: np.random.Generator, limit: float) -> Places:
    # The mean of two draws: more often near the middle.
    return rng.uniform(-limit, limit, (2, NUM_TRIES, 2)).mean(0).astype(np.float32)
