"""What a photo shows of faces, before anything large is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw

from vivant.faces.align import shrunken
from vivant.faces.encoders import LONG_EDGE, pixels_of
from vivant.faces.found import Box, Choice, Detector, Found, choose, scaled
from vivant.faces.quality import Grade, Quality, grades, measure

CHOSEN, OTHER = (0, 160, 60), (230, 120, 0)


@dataclass(frozen=True, eq=False)
class Checked:
    """One photo.

    Attributes:
        size: width and height of the upright photo, in pixels.
        faces: from left to right, in its pixels.
        chosen: index of the one that is meant; None without faces.
        quality: how well it is seen; None likewise.
        grades: what will hurt; empty is good.
    """

    size: tuple[int, int]
    faces: tuple[Found, ...]
    chosen: int | None
    quality: Quality | None
    grades: tuple[Grade, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; boxes and points in whole tenths of a pixel."""
        return {
            "width": self.size[0],
            "height": self.size[1],
            "faces": [
                {
                    "box": [round(side, 1) for side in face.box],
                    "score": round(face.score, 3),
                    "points": [[round(value, 1) for value in point] for point in face.points.tolist()],
                }
                for face in self.faces
            ],
            "chosen": self.chosen,
            "quality": None if self.quality is None else {k: round(v, 2) for k, v in self.quality._asdict().items()},
            "grades": [{"code": grade.code, "text": grade.text, "hint": grade.hint} for grade in self.grades],
        }


@torch.no_grad()
def check(image: Image.Image, detector: Detector, choice: Choice | None = None) -> Checked:
    """Find the faces of an upright RGB photo and grade the one that is meant.

    Args:
        image: the photo.
        detector: what finds them.
        choice: which one is meant; the largest if nobody says so.

    Raises:
        InputError: E-FACE-CHOICE.
    """
    whole = pixels_of(image)
    photo = shrunken(whole, LONG_EDGE)
    factor = whole.shape[2] / photo.shape[2]
    seen = sorted(detector.faces_in(photo), key=lambda face: face.center)
    if not seen:
        return Checked(image.size, (), None, None, grades((), None, choice is not None))
    wanted = scaled(choice, 1 / factor) if isinstance(choice, tuple) else "largest" if choice is None else choice
    meant = choose(seen, wanted, photo.shape[2], photo.shape[1])
    quality = measure(photo, meant)
    quality = quality._replace(size=quality.size * factor)
    faces = tuple(Found(scaled(face.box, factor), face.score, face.points * factor) for face in seen)
    return Checked(image.size, faces, seen.index(meant), quality, grades(faces, quality, choice is not None))


def drawn(image: Image.Image, checked: Checked) -> Image.Image:
    """The photo with its faces: boxes, points, numbers; green the one that is meant, orange the others."""
    picture = image.copy()
    draw = ImageDraw.Draw(picture)
    line = max(2, round(max(picture.size) / 300))
    for i, face in enumerate(checked.faces):
        colour = CHOSEN if i == checked.chosen else OTHER
        draw.rectangle(face.box, outline=colour, width=line)
        for x, y in face.points.tolist():
            draw.ellipse((x - line, y - line, x + line, y + line), fill=colour)
        draw.text((face.box[0] + line, face.box[1] + line), str(i), fill=colour, font_size=10 * line)
    return picture


def summary(checked: Checked) -> Sequence[str]:
    """For people: a line of what was found, and one for each complaint."""
    if checked.chosen is None or checked.quality is None:
        return [f"{grade.text} [{grade.code}] {grade.hint}" for grade in checked.grades]
    quality, box = checked.quality, _whole(checked.faces[checked.chosen].box)
    num = len(checked.faces)
    found = f"{num} face{'s' if num > 1 else ''}; number {checked.chosen} at {','.join(map(str, box))}"
    measured = f"{quality.size:.0f} pixels, turned {abs(quality.yaw):.0f} degrees, blur {quality.blur:.2f}"
    return [f"{found}: {measured}.", *(f"{grade.text} [{grade.code}] {grade.hint}" for grade in checked.grades)]


def _whole(box: Box) -> tuple[int, ...]:
    return tuple(round(side) for side in box)
