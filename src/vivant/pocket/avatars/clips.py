"""Avatars as a data set: what they do in clips, and another picture of the same person beside each clip."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from vivant.faces.align import ARCFACE, ARCFACE_POINTS, CROP, CROP_POINTS, robust
from vivant.pocket.avatars.figure import PARTS, Painted, Setting, paint, view
from vivant.pocket.avatars.pose import ACTIONS, Action, Pose, act, places, sample_still
from vivant.pocket.avatars.sentences import sentence
from vivant.pocket.avatars.traits import Avatar, Split, sample_avatar
from vivant.pocket.world.grounds import GROUNDS, Ground
from vivant.pocket.world.scene import COLOURS, TONES

SPLITS: tuple[Split, ...] = ("train", "held out")
KEPT = tuple(PARTS.index(part) for part in ("face", "hair"))
"""What of a crop stays; the rest is white, as ConsisID's parser leaves it."""
NIGHTS = ("blue", "green", "purple")
SHAKE = 0.02
"""How far the points of crops are off, in halves of the head's height: detectors are not exact."""
Template = Literal["crop", "recogniser"]


def sample_setting(rng: np.random.Generator, *, has_light: bool = False) -> Setting:
    """Somewhere, in any clothes; with `has_light` in coloured light from a side, as photos have it."""
    ground: Ground = GROUNDS[int(rng.integers(len(GROUNDS)))]
    tones = NIGHTS if ground == "night" else TONES
    tone, shirt = tones[int(rng.integers(len(tones)))], COLOURS[int(rng.integers(len(COLOURS)))]
    phase = (float(rng.random()), float(rng.random()))
    gain, tint, side = rng.uniform(0.85, 1.1), rng.uniform(0.95, 1.05, 3), rng.uniform(-0.15, 0.15)
    if not has_light:
        return Setting(ground, tone, shirt, phase)
    red, green, blue = (float(gain * value) for value in tint)
    return Setting(ground, tone, shirt, phase, (red, green, blue), float(side))


def square(avatar: Avatar, pose: Pose, setting: Setting, size: int) -> Painted:
    """A clip or photo of `size` x `size` pixels."""
    return paint(avatar, pose, setting, *view(size))


def photograph(avatar: Avatar, size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """A photo from the front of `size` x `size` pixels, in light as photos have it."""
    return square(avatar, sample_still(rng, in_front=True), sample_setting(rng, has_light=True), size).pixels[0]


def aligned(
    avatar: Avatar, pose: Pose, setting: Setting, size: int, template: Template, rng: np.random.Generator | None = None
) -> Painted:
    """One frame, seen as networks of faces see it: turned and scaled by five points, which `rng` shakes.

    Args:
        template: where the points go: those of ConsisID's crop, or of its recogniser's picture.
    """
    points = places(pose, avatar.eye_gap)[0]
    if rng is not None:
        points = points + SHAKE * float(pose.scale[0]) * rng.standard_normal(points.shape)
    side, goal = (CROP, CROP_POINTS) if template == "crop" else (ARCFACE, ARCFACE_POINTS)
    to_crop = robust(torch.from_numpy(points), torch.tensor(goal))
    along = (torch.arange(size, dtype=torch.float64) + 0.5) * (side / size) - 0.5
    down, across = torch.meshgrid(along, along, indexing="ij")
    x, y = to_crop.inverse.apply(torch.stack([across, down], dim=-1)).float().unbind(-1)
    return paint(avatar, pose, setting, x.numpy()[None], y.numpy()[None], abs(to_crop.a) * size / side)


def cut_out(painted: Painted) -> UInt8[np.ndarray, "h w 3"]:
    """The first frame, white but for face and hair."""
    kept = np.isin(painted.labels[0], KEPT)
    return np.where(kept[..., None], painted.pixels[0], np.uint8(255))


@dataclass(frozen=True)
class Filmed:
    """A clip of a person, and what is known of the person beforehand.

    Attributes:
        pixels: the clip.
        caption: what happens.
        face: where face and hair are in every frame.
        crop: the aligned face in another picture, white around it.
        portrait: the same picture as the recogniser sees it.
        avatar: who it is.
        action: what the avatar does.
        setting: where.
    """

    pixels: UInt8[np.ndarray, "f h w 3"]
    caption: str
    face: Bool[np.ndarray, "f h w"]
    crop: UInt8[np.ndarray, "h w 3"]
    portrait: UInt8[np.ndarray, "p p 3"]
    avatar: Avatar
    action: Action
    setting: Setting


PORTRAIT = 56
"""Pixels a side of what the small recogniser sees."""


@dataclass(frozen=True)
class AvatarClips:
    """A data set of clips, drawn when they are read. "train" and "held out" have no avatar in common.

    Attributes:
        num: how many clips.
        num_frames: frames of a clip.
        size: pixels of a side.
        split: which people.
        crosses: part of the clips whose picture of the person is another one than a frame of the clip: of another
            pose, expression, light and place (the cross-face of ConsisID, arXiv 2411.17440, section 3.3).
    """

    num: int
    num_frames: int = 9
    size: int = 64
    split: Split = "train"
    crosses: float = 0.5

    def __len__(self) -> int:
        return self.num

    def read(self, index: int, rng: np.random.Generator) -> Filmed:
        """Clip `index`; `rng` chooses the words and the picture of the person."""
        if not 0 <= index < self.num:
            raise IndexError(f"There are {self.num} clips; {index} is none of them.")
        fixed = np.random.default_rng([SPLITS.index(self.split), index, 0xFACE])
        avatar = sample_avatar(fixed, self.split)
        action = ACTIONS[int(fixed.integers(len(ACTIONS)))]
        setting, pose = sample_setting(fixed), act(action, self.num_frames, fixed)
        film = square(avatar, pose, setting, self.size)
        if rng.random() < self.crosses:
            still, place = sample_still(rng), sample_setting(rng, has_light=True)
        else:
            still, place = frame(pose, int(rng.integers(self.num_frames))), setting
        crop = cut_out(aligned(avatar, still, place, self.size, "crop", rng))
        portrait = aligned(avatar, still, place, PORTRAIT, "recogniser", rng).pixels[0]
        words = sentence(action, setting, rng)
        return Filmed(film.pixels, words, np.isin(film.labels, KEPT), crop, portrait, avatar, action, setting)


def frame(pose: Pose, index: int) -> Pose:
    """One frame of a pose."""
    return Pose(**{name: getattr(pose, name)[index : index + 1] for name in Pose.__dataclass_fields__})
