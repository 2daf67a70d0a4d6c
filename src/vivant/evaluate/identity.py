"""How much the person in clips is the person in a photo.

With antelopev2 the mean similarity is FaceSim-Arc (ConsisID, arXiv 2411.17440), but for the details of its program that
docs/evaluation.md lists.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from vivant.errors import InputError
from vivant.faces.antelope import DETECTOR, RECOGNISER, ArcFace, Scrfd
from vivant.faces.dlib import SAME_PERSON
from vivant.faces.encoders import pixels_of
from vivant.faces.found import Choice, Detector, Recogniser, choose
from vivant.faces.quality import Grade
from vivant.faces.small import SmallFaces
from vivant.media.decode import frames_in, probe
from vivant.media.still import Source, read_still


@dataclass(frozen=True, eq=False)
class Embedding:
    """What a recogniser makes of a face. It is compared within its space only."""

    space: str
    values: Float[Tensor, " e"]

    def similarity(self, other: "Embedding") -> float:
        """The cosine of the angle between two, -1 to 1.

        Raises:
            InputError: E-EVAL-SPACE for one of another space.
        """
        self._check(other)
        return F.cosine_similarity(self.values.double(), other.values.double(), dim=0).item()

    def distance(self, other: "Embedding") -> float:
        """How far two are apart; raises as `similarity`."""
        self._check(other)
        return (self.values.double() - other.values.double()).norm().item()

    def _check(self, other: "Embedding") -> None:
        if self.space != other.space:
            raise InputError(
                "E-EVAL-SPACE",
                f"An embedding of {self.space} is compared with one of {other.space}.",
                "Two recognisers' numbers have nothing to do with each other.",
                "Embed both faces by the same recogniser.",
            )


class Near(NamedTuple):
    """How near a face is to the person; the distance is None in a space in which only directions count."""

    similarity: float
    distance: float | None

    @property
    def away(self) -> float:
        """What is least for the nearest face."""
        return -self.similarity if self.distance is None else self.distance


@dataclass(frozen=True, eq=False)
class Stack:
    """What finds and compares faces.

    Attributes:
        detector: finds them.
        recogniser: embeds them.
        same_person: two faces of one person are nearer than this; None where only directions count and nobody has
            said which of them are one person's.
    """

    detector: Detector
    recogniser: Recogniser
    same_person: float | None

    @classmethod
    def shipped(cls) -> Self:
        """The small networks that ship with the package."""
        small = SmallFaces()
        return cls(small.detector, small.recogniser, SAME_PERSON)

    @classmethod
    def antelope(cls, folder: Path) -> Self:
        """antelopev2.

        Args:
            folder: holds `scrfd_10g_bnkps.onnx` and `glintr100.onnx`.

        Raises:
            MissingPackage: E-FACE-ONNX.
            LoadError: E-FACE-MODEL.
        """
        return cls(Scrfd(folder / DETECTOR), ArcFace(folder / RECOGNISER), None)

    @property
    def space(self) -> str:
        """Name of the space of its embeddings."""
        return self.recogniser.SPACE

    @torch.no_grad()
    def person(self, photo: Source, choice: Choice = "largest") -> Embedding:
        """The person in a photo.

        Raises:
            InputError: E-IMAGE-…, E-FACE-NONE, E-FACE-CHOICE.
        """
        pixels = pixels_of(read_still(photo).image)
        face = choose(self.detector.faces_in(pixels), choice, pixels.shape[2], pixels.shape[1])
        return self._embed(pixels, face.points)

    @torch.no_grad()
    def nearest(self, person: Embedding, frame: UInt8[np.ndarray, "h w 3"]) -> Near | None:
        """The face of a frame that is nearest to a person; None if there is no face."""
        pixels = rearrange(torch.from_numpy(frame.astype(np.float32)), "h w c -> c h w")
        faces = [self._embed(pixels, face.points) for face in self.detector.faces_in(pixels)]
        near = [
            Near(face.similarity(person), None if self.same_person is None else face.distance(person)) for face in faces
        ]
        return min(near, key=lambda one: one.away, default=None)

    def _embed(self, photo: Float[Tensor, "3 h w"], points: Float[Tensor, "5 2"]) -> Embedding:
        return Embedding(self.space, self.recogniser.embed(photo, points)[0])


@dataclass(frozen=True)
class Spread:
    """Of the frames with a face."""

    mean: float
    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """None without values."""
        if not values:
            return None
        return cls(float(np.mean(values)), float(np.median(values)), min(values), max(values))

    def written(self) -> str:
        """For people."""
        return f"{self.mean:.3f} ({self.min:.3f} to {self.max:.3f}, median {self.median:.3f})"


@dataclass(frozen=True)
class Likeness:
    """What was found in one clip. Those of two spaces say nothing about each other.

    Attributes:
        space: in which the faces were compared.
        file: the clip.
        frames: how many frames were looked at.
        faces: in how many of them a face was found; all that follows is of these, and of the face in each that is
            nearest to the person.
        similarity: cosine to the person.
        distance: to the person; None in a space in which only directions count.
        same_person: the share in which it is the same person; None where no threshold is stated.
        farthest: number of the frame, from 0, that is least like the person: by distance where there is one.
    """

    space: str
    file: str
    frames: int
    faces: int
    similarity: Spread | None
    distance: Spread | None
    same_person: float | None
    farthest: int | None

    @property
    def share(self) -> float:
        """Of the frames, those with a face."""
        return self.faces / self.frames

    @property
    def grades(self) -> tuple[Grade, ...]:
        """What is to be complained of; empty is good."""
        if self.faces:
            return ()
        hint = "Is there a person in it, upright and not too small?"
        return (Grade("W-EVAL-NO-FACE", "No face was found in any frame.", hint),)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**asdict(self), "share": self.share, "grades": [asdict(grade) for grade in self.grades]}

    def summary(self) -> str:
        """For people."""
        if self.similarity is None:
            return " ".join(f"{grade.text} [{grade.code}] {grade.hint}" for grade in self.grades)
        parts = [f"similarity {self.similarity.written()}"]
        if self.distance is not None:
            parts.append(f"distance {self.distance.written()}")
        parts.append(f"a face in {100 * self.share:.0f} % of {self.frames} frames")
        if self.same_person is not None:
            parts.append(f"the same person in {100 * self.same_person:.0f} % of these")
        return f"{'; '.join(parts)}; least like in frame {self.farthest} ({self.space})."


def likeness(stack: Stack, person: Embedding, file: str, every: int = 1) -> Likeness:
    """Compare the person in a clip; one frame at a time is in memory.

    Args:
        stack: what finds and compares faces.
        person: whom to look for.
        file: the clip, or a folder of PNG frames.
        every: look at one frame of so many, the first among them.

    Raises:
        InputError: E-EVAL-EVERY, E-EVAL-SPACE.
        LoadError: a clip that cannot be read.
    """
    check_every(every)
    num, seen = 0, dict[int, Near]()
    for number, frame in enumerate(frames_in(file)):
        if number % every:
            continue
        num += 1
        near = stack.nearest(person, frame)
        if near is not None:
            seen[number] = near
    distances = [near.distance for near in seen.values() if near.distance is not None]
    same = stack.same_person
    return Likeness(
        space=stack.space,
        file=file,
        frames=num,
        faces=len(seen),
        similarity=Spread.of([near.similarity for near in seen.values()]),
        distance=Spread.of(distances),
        same_person=None if same is None or not seen else sum(d < same for d in distances) / len(seen),
        farthest=max(seen, key=lambda number: seen[number].away, default=None),
    )


def check_every(every: int) -> None:
    """Refuse (E-EVAL-EVERY) what is no number of frames."""
    if every < 1:
        raise InputError("E-EVAL-EVERY", f"One frame of {every} cannot be looked at.", "", "Give 1 or more.")


def check_clips(files: Sequence[str]) -> None:
    """Refuse (E-CLIP-…) clips that cannot be read, before any work."""
    for file in files:
        probe(file)
