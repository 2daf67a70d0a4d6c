"""A drawn world of people: avatars of many traits, what they do in clips, and pictures of them.

`AvatarClips` is a data set of clips, each with another picture of the same person and a sentence that tells what
happens, what the person wears and what is behind; who it is stands in the picture only.
"""

from vivant.pocket.avatars.clips import (
    PORTRAIT,
    AvatarClips,
    Filmed,
    aligned,
    cut_out,
    photograph,
    sample_setting,
    square,
)
from vivant.pocket.avatars.figure import PARTS, Painted, Setting, paint, view
from vivant.pocket.avatars.pose import ACTIONS, Action, Pose, act, places, sample_still, still
from vivant.pocket.avatars.sentences import sentence, vocabulary
from vivant.pocket.avatars.traits import TRAITS, Avatar, Split, sample_avatar

__all__ = [
    "ACTIONS",
    "PARTS",
    "PORTRAIT",
    "TRAITS",
    "Action",
    "Avatar",
    "AvatarClips",
    "Filmed",
    "Painted",
    "Pose",
    "Setting",
    "Split",
    "act",
    "aligned",
    "cut_out",
    "paint",
    "photograph",
    "places",
    "sample_avatar",
    "sample_setting",
    "sample_still",
    "sentence",
    "square",
    "still",
    "view",
    "vocabulary",
]
