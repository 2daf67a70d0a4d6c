"""How well a photo shows a face, and what is wrong with it: cheap, and before any large model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vivant.faces.align import CROP_POINTS, least_squares, warp
from vivant.faces.found import Found

SMALL = 112
"""Pixels a side of the face below which a recogniser has to invent."""
PROFILE = 45.0
"""Degrees of turning beyond which one side of the face is not seen."""
TILTED = 45.0
"""Degrees of tilting beyond which detectors miss faces."""
BLURRED = 0.6
"""See `blur`. Portraits have 0.25 to 0.42; blurred by a fiftieth of the face's width they have 0.62 and more."""
MARGIN = 0.02
"""How far a face has to be from the edge of the photo, in parts of its size: boxes do not reach beyond what is seen."""

MODEL_POINTS = (
    *((-3.15, 2.63, 3.47), (3.15, 2.63, 3.47), (0.0, -1.13, 7.48)),
    *((-2.46, -4.34, 4.28), (2.46, -4.34, 4.28)),
)
"""Eyes, nose and corners of the mouth in centimetres, up and towards the camera: MediaPipe's canonical face model."""


class Quality(NamedTuple):
    """What was measured of a face.

    Attributes:
        size: the shorter side of its box, in pixels of the photo.
        yaw: how far it is turned to the side, in degrees; positive towards the right of the photo.
        roll: how far it is tilted to a shoulder, in degrees; 0 is upright, positive clockwise.
        blur: 0 is sharp, 1 has no detail; see `blur`.
        margin: how far its box is from the nearest edge of the photo, in parts of its size; negative beyond it.
    """

    size: float
    yaw: float
    roll: float
    blur: float
    margin: float


@dataclass(frozen=True)
class Grade:
    """Something that will hurt.

    Attributes:
        code: stays the same over versions.
        text: what it is.
        hint: what to do about it.
    """

    code: str
    text: str
    hint: str


def measure(photo: Float[Tensor, "3 h w"], face: Found) -> Quality:
    """What a photo (RGB, 0 to 255) shows of a face."""
    height, width = photo.shape[1:]
    left, top, right, bottom = face.box
    size = max(min(face.width, face.height), 1e-6)
    margin = min(left, top, width - right, height - bottom) / size
    return Quality(size, *turns(face.points), blur(photo, face), margin)


def turns(points: Float[Tensor, "5 2"]) -> tuple[float, float]:
    """How far a face is turned to the side and tilted, in degrees, from its points seen from afar."""
    model = torch.tensor(MODEL_POINTS, dtype=torch.float64)
    model = model - model.mean(0)
    seen = points.double() * torch.tensor([1.0, -1.0])
    camera = torch.linalg.lstsq(model, seen - seen.mean(0)).solution.T  # 2 3: where each axis of the face goes
    up, forward = camera[:, 1], camera[:, 2]
    across = torch.stack([up[1], -up[0]]) / up.norm().clamp(min=1e-12)
    scale = torch.linalg.svdvals(camera)[0].clamp(min=1e-12)
    yaw, roll = ((across @ forward) / scale).clamp(-1, 1).asin(), torch.atan2(up[0], up[1])
    return torch.rad2deg(yaw).item(), torch.rad2deg(roll).item()


def blur(photo: Float[Tensor, "3 h w"], face: Found) -> float:
    """How little a face changes when it is blurred more (Crété et al. 2007), 0 to 1.

    It is looked at in the pixels that it has, at most 256 a side: an enlarged small face is not called blurred twice.
    """
    side = int(min(max(face.width, face.height, 32.0), 256.0))
    points = torch.tensor(CROP_POINTS) * (side / 512)
    crop = warp(photo, least_squares(face.points, points), side)
    weights = crop.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    inner = side // 5
    grey = (crop * weights).sum(0)[inner:-inner, inner:-inner]
    return max(_blur_along(grey), _blur_along(grey.T.contiguous()))


def _blur_along(grey: Float[Tensor, "h w"], taps: int = 9) -> float:
    """The share of the differences between neighbours in a row that stays when the row is blurred."""
    smooth = F.avg_pool1d(grey[:, None], taps, 1, taps // 2, count_include_pad=False)[:, 0]
    sharp, dull = (x.diff(dim=1).abs() for x in (grey, smooth))
    return 1 - ((sharp - dull).clamp(min=0).sum() / sharp.sum().clamp(min=1e-6)).item()


def grades(faces: Sequence[Found], quality: Quality | None, is_chosen: bool) -> tuple[Grade, ...]:
    """What is wrong with a photo.

    Args:
        faces: all that were found.
        quality: of the face that is meant; None if there is none.
        is_chosen: whether somebody said which face is meant.
    """
    if quality is None:
        return (Grade("E-FACE-NONE", "No face was found.", "Use a photo that shows it upright and from the front."),)
    found: list[Grade] = []
    if len(faces) > 1 and not is_chosen:
        hint = "Say which one with --face, or cut the photo."
        found.append(Grade("W-FACE-SEVERAL", f"{len(faces)} faces were found; the largest is taken.", hint))
    if quality.size < SMALL:
        hint = f"Use a photo in which it has at least {SMALL}."
        found.append(Grade("W-FACE-SMALL", f"The face is {quality.size:.0f} pixels wide.", hint))
    if abs(quality.yaw) > PROFILE:
        hint = "Use a photo from the front."
        found.append(Grade("W-FACE-PROFILE", f"The face is turned {abs(quality.yaw):.0f} degrees to the side.", hint))
    if abs(quality.roll) > TILTED:
        text = f"The face is tilted by {abs(quality.roll):.0f} degrees."
        found.append(Grade("W-FACE-TILTED", text, "Turn the photo so that the face is upright."))
    if quality.blur > BLURRED:
        found.append(Grade("W-FACE-BLURRED", "The face is blurred.", "Use a sharper photo."))
    if quality.margin < MARGIN:
        text = "The edge of the photo cuts the face off."
        found.append(Grade("W-FACE-CUT", text, "Use a photo with some room around the face."))
    return tuple(found)
