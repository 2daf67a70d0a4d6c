"""Who an avatar is: traits that stay in every picture of it, whatever it does and wherever it is."""

import zlib
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Literal, TypeVar, get_args

import numpy as np

Skin = Literal["porcelain", "peach", "sand", "olive", "bronze", "brown", "ebony"]
HairColour = Literal["black", "brown", "ginger", "blond", "white", "blue", "green", "pink", "purple"]
HairShape = Literal["bald", "short", "parted", "spiky", "curly", "bob", "long", "bun"]
EyeColour = Literal["brown", "blue", "green", "grey"]
HeadShape = Literal["oval", "round", "square", "pointed"]
Brows = Literal["thin", "thick", "joined"]
Nose = Literal["small", "long", "wide"]
Lips = Literal["pale", "red"]
Glasses = Literal["none", "round", "square", "dark"]
Beard = Literal["none", "moustache", "goatee", "full"]
Cheeks = Literal["plain", "freckles", "rosy"]

T = TypeVar("T")
Split = Literal["train", "held out"]
HELD_OUT = 8
"""One of so many combinations of traits is kept from training."""


TRAITS: Mapping[str, tuple[str, ...]] = {
    "skin": get_args(Skin),
    "hair_colour": get_args(HairColour),
    "hair": get_args(HairShape),
    "eyes": get_args(EyeColour),
    "head": get_args(HeadShape),
    "brows": get_args(Brows),
    "nose": get_args(Nose),
    "lips": get_args(Lips),
    "glasses": get_args(Glasses),
    "beard": get_args(Beard),
    "cheeks": get_args(Cheeks),
}
"""Every trait and what it can be, in the order of `Avatar.names`."""


@dataclass(frozen=True)
class Avatar:
    """A person of the drawn world: a combination of traits, and two proportions."""

    skin: Skin
    hair_colour: HairColour
    hair: HairShape
    eyes: EyeColour
    head: HeadShape
    brows: Brows
    nose: Nose
    lips: Lips
    glasses: Glasses
    beard: Beard
    cheeks: Cheeks
    width: float = 0.8
    """Half of the head, where half its height is 1."""
    eye_gap: float = 0.34
    """From the middle of the face to the middle of an eye."""

    @property
    def names(self) -> tuple[str, ...]:
        """The traits, without the proportions."""
        return astuple(self)[:-2]

    @property
    def indices(self) -> tuple[int, ...]:
        """Of each trait, which of `TRAITS` it is."""
        return tuple(options.index(name) for options, name in zip(TRAITS.values(), self.names, strict=True))

    @property
    def split(self) -> Split:
        """Training or held out: no combination of traits is in both."""
        return "held out" if zlib.crc32("/".join(self.names).encode()) % HELD_OUT == 0 else "train"


def sample_avatar(rng: np.random.Generator, split: Split | None = None) -> Avatar:
    """A random person, every trait drawn evenly; glasses and beards are as often absent as there."""
    while True:
        avatar = Avatar(
            skin=_one(rng, get_args(Skin)),
            hair_colour=_one(rng, get_args(HairColour)),
            hair=_one(rng, get_args(HairShape)),
            eyes=_one(rng, get_args(EyeColour)),
            head=_one(rng, get_args(HeadShape)),
            brows=_one(rng, get_args(Brows)),
            nose=_one(rng, get_args(Nose)),
            lips=_one(rng, get_args(Lips)),
            glasses=_or_none(rng, get_args(Glasses)),
            beard=_or_none(rng, get_args(Beard)),
            cheeks=_one(rng, get_args(Cheeks)),
            width=float(rng.uniform(0.72, 0.86)),
            eye_gap=float(rng.uniform(0.31, 0.37)),
        )
        if split is None or avatar.split == split:
            return avatar


def _one(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    return options[int(rng.integers(len(options)))]


def _or_none(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    """The first option half of the time."""
    rest = _one(rng, options[1:])
    return options[0] if rng.random() < 0.5 else rest
