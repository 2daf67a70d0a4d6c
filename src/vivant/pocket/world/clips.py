"""The world as data sets: captioned clips that are the same whenever and wherever they are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import UInt8

from vivant.pocket.world.captions import caption, photo_caption
from vivant.pocket.world.painter import render
from vivant.pocket.world.photo import PHOTO_MOTIONS, move_over
from vivant.pocket.world.sampling import sample_scene
from vivant.pocket.world.scene import MAGNITUDES, Magnitude, Motion, Scene, Style

Split = Literal["train", "held out"]
SPLITS: tuple[Split, ...] = get_args(Split)
Photo = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Clip:
    """A captioned clip; `scene` is None for a photo."""

    pixels: UInt8[np.ndarray, "f h w 3"]
    caption: str
    scene: Scene | None


def photo_clip(
    photo: Photo,
    rng: np.random.Generator,
    motion: Motion | None,
    num_frames: int,
    size: int | tuple[int, int],
    magnitude: Magnitude | None = None,
) -> Clip:
    """The camera moving over a random piece of a photo; a clip of one frame is captioned as a still.

    Args:
        motion: a motion of the camera or "still"; None draws one, and so does None for the magnitude.
        size: pixels of a side, or (height, width).

    Raises:
        ValueError: the motion is one of things.
    """
    motion = motion or PHOTO_MOTIONS[int(rng.integers(len(PHOTO_MOTIONS)))]
    magnitude = magnitude or MAGNITUDES[int(rng.integers(len(MAGNITUDES)))]
    pixels = move_over(photo, rng, motion, magnitude, num_frames, size)
    return Clip(pixels, photo_caption(motion, magnitude, rng, with_motion=num_frames > 1), None)


@dataclass(frozen=True)
class DrawnClips:
    """A data set of clips, drawn when they are read.

    Attributes:
        num: how many clips it has.
        num_frames: frames of a clip; one makes stills, whose captions tell no motion.
        size: pixels of a side, or (height, width).
        style: the style of all of them, or None for both evenly. Otherwise equal sets differ in nothing else.
        split: "train" and "held out" have no scene in common.
        photos: pictures that some of the clips show instead of a scene; give each split its own.
        photo_share: how many of the clips that is, where there are photos.
    """

    num: int
    num_frames: int
    size: int | tuple[int, int]
    style: Style | None = None
    split: Split = "train"
    photos: Sequence[Photo] = ()
    photo_share: float = 0.25

    def __len__(self) -> int:
        return self.num

    def scene(self, index: int) -> Scene | None:
        """What clip `index` shows; None if that is a photo. It depends on the split and the index alone."""
        if not 0 <= index < self.num:
            raise IndexError(f"There are {self.num} clips; {index} is none of them.")
        rng = np.random.default_rng([SPLITS.index(self.split), index, 0x5CE7E])
        shows_photo = bool(rng.random() < self.photo_share)
        return None if shows_photo and self.photos else sample_scene(rng, style=self.style)

    def read(self, index: int, rng: np.random.Generator) -> Clip:
        """Clip `index`; `rng` chooses the words and, among photos, the photo, its piece and the motion."""
        scene = self.scene(index)
        if scene is None:
            return photo_clip(self.photos[int(rng.integers(len(self.photos)))], rng, None, self.num_frames, self.size)
        words = caption(scene, rng, with_motion=self.num_frames > 1)
        return Clip(render(scene, self.num_frames, self.size), words, scene)
