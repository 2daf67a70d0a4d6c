"""A drawn world: captioned pictures that move, to train small models on.

A `Scene` says everything about a clip; `render` paints it, `caption` describes it, and `DrawnClips` is a data set of
random ones. Nothing here needs torch.
"""

from vivant.pocket.world.captions import caption, photo_caption, vocabulary
from vivant.pocket.world.clips import SPLITS, Clip, DrawnClips, Split, photo_clip
from vivant.pocket.world.grounds import GROUNDS, Ground
from vivant.pocket.world.painter import mask, render
from vivant.pocket.world.photo import PHOTO_MOTIONS
from vivant.pocket.world.sampling import sample_scene
from vivant.pocket.world.scene import (
    CAMERA_MOTIONS,
    COLOURS,
    MAGNITUDES,
    MOTIONS,
    SIZES,
    STYLES,
    TONES,
    CameraMotion,
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

__all__ = [
    "CAMERA_MOTIONS",
    "COLOURS",
    "GROUNDS",
    "KINDS",
    "MAGNITUDES",
    "MOTIONS",
    "PHOTO_MOTIONS",
    "SIZES",
    "SPLITS",
    "STYLES",
    "TONES",
    "CameraMotion",
    "Clip",
    "Colour",
    "DrawnClips",
    "Ground",
    "Kind",
    "Magnitude",
    "Motion",
    "Scene",
    "Size",
    "Split",
    "Style",
    "Thing",
    "Tone",
    "caption",
    "mask",
    "photo_caption",
    "photo_clip",
    "render",
    "sample_scene",
    "vocabulary",
]
