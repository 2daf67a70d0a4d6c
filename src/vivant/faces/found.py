"""Faces that were found in a photo, and which one is meant."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vivant.errors import InputError

Box = tuple[float, float, float, float]
Choice = Literal["largest", "center"] | int | Box
"""One face of several: the largest, the most central, a number from left to right, or the one in a box."""

SAME = 0.3
"""Boxes that share at least so much of what they cover together are of one face."""


@dataclass(frozen=True, eq=False)
class Found:
    """One face.

    Attributes:
        box: left, top, right and bottom, in pixels of the photo; may reach beyond it.
        score: how sure the detector is, 0 to 1.
        points: eyes, nose and corners of the mouth, each from left to right in the photo.
    """

    box: Box
    score: float
    points: Float[Tensor, "5 2"]

    @property
    def width(self) -> float:
        """In pixels."""
        return self.box[2] - self.box[0]

    @property
    def height(self) -> float:
        """In pixels."""
        return self.box[3] - self.box[1]

    @property
    def area(self) -> float:
        """In pixels."""
        return self.width * self.height

    @property
    def center(self) -> tuple[float, float]:
        """Middle of the box."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@runtime_checkable
class Detector(Protocol):
    """What finds faces."""

    def faces_in(self, photo: Float[Tensor, "3 h w"]) -> list[Found]:
        """The faces in a photo (RGB, 0 to 255), the surest first."""
        ...


@runtime_checkable
class Recogniser(Protocol):
    """What tells faces apart, and the name of what its embeddings can be compared with."""

    @property
    def SPACE(self) -> str: ...

    def embed(self, photo: Float[Tensor, "3 h w"], points: Float[Tensor, "5 2"]) -> Float[Tensor, "1 e"]:
        """The embedding, not normalised, of a face in a photo (RGB, 0 to 255)."""
        ...


def overlap(a: Float[Tensor, "n 4"], b: Float[Tensor, "m 4"], pixel: float = 0.0) -> Float[Tensor, "n m"]:
    """What each two boxes share, as a part of what they cover together.

    Args:
        a: boxes.
        b: boxes.
        pixel: what their sides are longer than the differences of their ends: 1 if the last pixel counts.
    """
    a, b = a[:, None], b[None]
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + pixel).clamp(min=0)
    shared = shared.prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2] + pixel).prod(-1) for boxes in (a, b)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-12)


def found(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    points: Float[Tensor, "n 5 2"],
    threshold: float,
    pixel: float = 0.0,
) -> list[Found]:
    """The faces above a score, the surest first; of boxes that overlap by more than 0.4 only the surest stays.

    `pixel` is that of `overlap`.
    """
    sure = scores > threshold
    boxes, scores, points = boxes[sure], scores[sure], points[sure]
    order = scores.argsort(descending=True, stable=True)
    boxes, scores, points = boxes[order], scores[order], points[order]
    return [
        Found((float(left), float(top), float(right), float(bottom)), float(scores[i]), points[i])
        for i in distinct(overlap(boxes, boxes, pixel) > 0.4).tolist()
        for left, top, right, bottom in [boxes[i].tolist()]
    ]


def distinct(same: Bool[Tensor, "n n"]) -> Int[Tensor, " m"]:
    """Those that are the same as no earlier one that stays (non-maximum suppression)."""
    stays: Bool[Tensor, " n"] = torch.ones(len(same), dtype=torch.bool)
    for i in range(len(same)):
        if stays[i]:
            stays[i + 1 :] &= ~same[i, i + 1 :]
    return stays.nonzero()[:, 0]


def choose(faces: Sequence[Found], choice: Choice, width: int, height: int) -> Found:
    """The face that is meant.

    Args:
        faces: all that were found.
        choice: which; see `Choice`.
        width: of the photo, in pixels.
        height: of the photo, in pixels.

    Raises:
        InputError: E-FACE-NONE without faces, E-FACE-CHOICE for one that there is not.
    """
    if not faces:
        raise InputError(
            "E-FACE-NONE",
            "No face was found in the photo.",
            "",
            "Use a photo that shows the face upright, from the front, and at least 112 pixels wide.",
        )
    if choice == "largest":
        return max(faces, key=lambda face: face.area)
    if choice == "center":
        return min(faces, key=lambda face: _distance(face.center, (width / 2, height / 2)))
    if isinstance(choice, int) and not isinstance(choice, bool):
        return _numbered(faces, choice)
    if isinstance(choice, tuple) and len(choice) == 4:
        return _inside(faces, choice)
    raise InputError("E-FACE-CHOICE", f"{choice!r} is no face.", "", "Give 'largest', 'center', a number or a box.")


def _distance(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2


def _numbered(faces: Sequence[Found], number: int) -> Found:
    ordered = sorted(faces, key=lambda face: face.center)
    if not 0 <= number < len(ordered):
        raise InputError(
            "E-FACE-CHOICE",
            f"There is no face number {number}.",
            f"{len(ordered)} were found; they count from 0, from left to right.",
            "`vivant face check` draws them with their numbers.",
        )
    return ordered[number]


def _inside(faces: Sequence[Found], box: Box) -> Found:
    shared = overlap(torch.tensor([box], dtype=torch.float64), boxes_of(faces))[0]
    best = int(shared.argmax())
    if shared[best] < SAME:
        raise InputError(
            "E-FACE-CHOICE",
            f"No face is in the box {box}.",
            f"A box is left, top, right, bottom in pixels; the nearest face has {_rounded(faces[best].box)}.",
            "`vivant face check --json` prints the boxes.",
        )
    return faces[best]


def boxes_of(faces: Sequence[Found]) -> Float[Tensor, "n 4"]:
    """Their boxes."""
    return torch.tensor([face.box for face in faces], dtype=torch.float64).reshape(-1, 4)


def same_as(face: Found, others: Sequence[Found]) -> Found | None:
    """The same face as another detector found it; None where it did not."""
    if not others:
        return None
    shared = overlap(boxes_of([face]), boxes_of(others))[0]
    best = int(shared.argmax())
    return others[best] if shared[best] >= SAME else None


def scaled(box: Box, factor: float) -> Box:
    """The box in a photo so many times as large."""
    left, top, right, bottom = (side * factor for side in box)
    return left, top, right, bottom


def _rounded(box: Box) -> tuple[int, ...]:
    return tuple(round(value) for value in box)
