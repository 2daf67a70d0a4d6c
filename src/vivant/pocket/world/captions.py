"""Sentences about scenes, in few words."""

from collections.abc import Iterable
from string import ascii_lowercase
from typing import TypeVar

import numpy as np

from vivant.pocket.world.grounds import Ground
from vivant.pocket.world.scene import CAMERA_MOTIONS, COLOURS, TONES, Magnitude, Motion, Scene, Size, Style, Thing
from vivant.pocket.world.shapes import KINDS

T = TypeVar("T")
Phrases = tuple[str, ...]
"""Ways to say one thing. The first is the canonical one."""

STYLES: dict[Style, Phrases] = {
    "paper": ("paper cut", "cut from paper", "paper picture"),
    "neon": ("neon light", "in neon light", "neon picture"),
}
SIZES: dict[Size, Phrases] = {
    "tiny": ("tiny",),
    "small": ("small", "little"),
    "medium": ("medium",),
    "large": ("large", "big"),
}
BESIDE: Phrases = ("next to", "beside", "with")
GROUNDS: dict[Ground, Phrases] = {  # around the tone
    "plain": ("on plain {}", "on a plain {} ground"),
    "stripes": ("on {} stripes", "over {} stripes"),
    "dots": ("on {} dots", "over {} dots"),
    "checks": ("on {} checks", "over {} checks"),
    "rays": ("in front of {} rays", "over {} rays"),
    "hills": ("over {} hills", "in front of {} hills"),
    "sea": ("over a {} sea", "in front of a {} sea"),
    "night": ("in a {} night sky", "in a {} sky with stars"),
    "clouds": ("in a {} sky with clouds", "in a cloudy {} sky"),
}
MOTIONS: dict[Motion, Phrases] = {
    "still": ("standing still", "not moving", "at rest", "still"),
    "left": ("moving left", "moving to the left", "going left", "moves left"),
    "right": ("moving right", "moving to the right", "going right", "moves right"),
    "up": ("moving up", "rising", "going up", "moves up"),
    "down": ("moving down", "sinking", "going down", "moves down"),
    "growing": ("growing", "getting bigger", "grows"),
    "shrinking": ("shrinking", "getting smaller", "shrinks"),
    "clockwise": ("turning clockwise", "spinning clockwise", "rotating clockwise", "rotating"),
    "counterclockwise": ("turning counterclockwise", "spinning counterclockwise", "rotating counterclockwise"),
    "bouncing": ("bouncing", "jumping up and down", "bounces"),
    "zoom in": ("camera zooms in", "the camera zooms in", "the camera moves closer", "zoom in"),
    "zoom out": ("camera zooms out", "the camera zooms out", "the camera moves away", "zoom out"),
    "pan left": ("camera pans left", "the camera pans left", "the camera pans to the left", "pan left"),
    "pan right": ("camera pans right", "the camera pans right", "the camera pans to the right", "pan right"),
    "turn": ("camera turns", "the camera turns", "the camera rolls", "turn the camera"),
}
MAGNITUDES: dict[Magnitude, Phrases] = {"small": ("a little", "slightly"), "moderate": ("",), "large": ("a lot",)}
PHOTO: Phrases = ("a photo", "photo")
MOVING_PHOTO: Phrases = (*PHOTO, "a photo of a {}", "{}", "a {}", "")  # around a name
STILL_PHOTO: Phrases = ("not moving", "nothing moves")


def caption(scene: Scene, rng: np.random.Generator | None = None, *, with_motion: bool = True) -> str:
    """What a scene shows, in one sentence.

    Args:
        rng: chooses words and their order, and may leave out the size, the ground or how far the motion goes. Without
            it the sentence is canonical: always the same, in one order and with all of that.
        with_motion: False describes a still.
    """
    speaker = _Speaker(rng)
    main = speaker.thing(scene.main)
    beside = f"{speaker.say(BESIDE)} {speaker.thing(scene.second)}" if scene.second else ""
    ground = speaker.say(GROUNDS[scene.ground]).format(scene.tone) if speaker.mentions(0.85) else ""
    style = speaker.say(STYLES[scene.style])
    motion = speaker.motion(scene.motion, scene.magnitude) if with_motion else ""
    view, moving = (motion, "") if scene.motion in CAMERA_MOTIONS else ("", motion)
    clauses = speaker.say(
        (
            (_join((main, moving, beside, ground)), view, style),
            (style, _join((main, moving, beside, ground)), view),
            (view, _join((main, moving, beside, ground)), style),
            (ground, _join((main, moving, beside)), view, style),
        )
    )
    return _join(clauses, ", ")


def photo_caption(
    motion: Motion, magnitude: Magnitude, rng: np.random.Generator | None = None, *, with_motion: bool = True
) -> str:
    """The same for a photo over which the camera moves, or whose motion is "still".

    What it shows is not said, or said by a made-up word: users will name things that the models do not know, and those
    words should change nothing.
    """
    speaker = _Speaker(rng)
    if not with_motion:
        return speaker.say(PHOTO)
    photo = speaker.say(MOVING_PHOTO).format(speaker.name())
    moving = speaker.say(STILL_PHOTO) if motion == "still" else speaker.motion(motion, magnitude)
    return _join((photo, moving), ", ")


def vocabulary() -> tuple[str, ...]:
    """Every word that captions can contain but made-up ones, in alphabetical order."""
    tables = (STYLES, SIZES, GROUNDS, MOTIONS, MAGNITUDES)
    phrases = [phrase for table in tables for options in table.values() for phrase in options]
    words = " ".join([*phrases, *BESIDE, *MOVING_PHOTO, *STILL_PHOTO]).replace("{}", " ").split()
    return tuple(sorted({*words, *COLOURS, *TONES, *KINDS, "a", "an"}))


class _Speaker:
    """Chooses between ways to say things: by a generator, or without one always the first."""

    def __init__(self, rng: np.random.Generator | None):
        self._rng = rng

    def say(self, options: tuple[T, ...]) -> T:
        return options[0] if self._rng is None else options[int(self._rng.integers(len(options)))]

    def mentions(self, share: float) -> bool:
        """Whether to say something that need not be said."""
        return self._rng is None or bool(self._rng.random() < share)

    def thing(self, thing: Thing) -> str:
        size = self.say(SIZES[thing.size]) if self.mentions(0.75) else ""
        words = _join((size, thing.colour, thing.kind))
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    def name(self) -> str:
        """A word that nobody knows."""
        if self._rng is None:
            return ""
        return "".join(self._rng.choice(list(ascii_lowercase), int(self._rng.integers(3, 9))))

    def motion(self, motion: Motion, magnitude: Magnitude) -> str:
        far = self.say(MAGNITUDES[magnitude]) if motion != "still" and self.mentions(0.6) else ""
        return _join((self.say(MOTIONS[motion]), far))


def _join(pieces: Iterable[str], between: str = " ") -> str:
    return between.join(piece for piece in pieces if piece)
