"""What comes back from a run, and what is shown on the way."""

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from vivant.errors import InputError, OutputError
from vivant.media.checks import Finding, check_clip
from vivant.media.frames import enlarged
from vivant.media.video import write_clip
from vivant.placement import Residency


@dataclass(frozen=True)
class Progress:
    """Where a run is: shown after every step.

    Attributes:
        step: steps made, over all FreeInit iterations.
        total: steps of the run.
        seconds: since the run began, text and picture included.
        latents: the clean latents as predicted so far, for a preview: `b 4 f h w` of PIA, `b f 16 h w` of ConsisID.
        peak_memory: as in `Report`.
    """

    step: int
    total: int
    seconds: float
    latents: torch.Tensor
    peak_memory: int | None = None

    @property
    def remaining(self) -> float:
        """Seconds to the last step at the present pace."""
        return self.seconds / self.step * (self.total - self.step)


@dataclass(frozen=True)
class Report:
    """How a result came about.

    Attributes:
        seconds: duration of the stages ``load``, ``denoise`` (text and picture included) and ``decode``.
        peak_memory: most bytes that the process (or the accelerator) held so far; None where it cannot be asked.
        device: where it ran.
        residency: what of the models stayed in memory, see `vivant.placement.MemoryPolicy`.
        dtype: data type of the weights, and why it was chosen.
        notes: what was fallen back to, left out or ignored.
        findings: what is wrong with the clips; empty is good.
        attention: name of the kernel among the tokens of a video (`vivant.attention.KERNELS`); of `Portrait` only.
    """

    seconds: dict[str, float]
    peak_memory: int | None
    device: str
    residency: Residency
    dtype: str
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    attention: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        found = [{"code": f.code, "text": f.text} for f in self.findings]
        return {**self.__dict__, "notes": list(self.notes), "findings": found}


@dataclass(frozen=True)
class Result:
    """Clips, and everything needed to make them again.

    Attributes:
        clips: one array of frames for each clip, RGB.
        fps: frames a second.
        recipe: request, hashes of models and inputs, versions, hash of the frames; no paths, no face.
        report: see `Report`.
    """

    clips: tuple[UInt8[np.ndarray, "f h w 3"], ...]
    fps: float
    recipe: dict[str, Any] = field(repr=False)
    report: Report = field(repr=False)

    @property
    def frames(self) -> list[Image.Image]:
        """The frames of the first clip as pictures."""
        return [Image.fromarray(frame) for frame in self.clips[0]]

    def check(self, clip: int) -> None:
        """Refuse to hand out a clip as if it were well.

        Raises:
            InputError: E-CLIP-INDEX when there is no such clip.
            OutputError: E-OUTPUT-BAD for a black or frozen clip.
        """
        if clip not in range(len(self.clips)):
            raise InputError(
                "E-CLIP-INDEX", f"There is no clip {clip!r}.", "", f"Give a number from 0 to {len(self.clips) - 1}."
            )
        bad = check_clip(self.clips[clip], self.recipe["image"]["dark"][clip])
        if bad:
            raise OutputError(
                "E-OUTPUT-BAD",
                f"The clip is not written: {bad[0].text}",
                "It would pass for a success.",
                "See result.report; vivant.media.video.write_clip(result.clips[0], …) writes it all the same.",
            )

    def recipe_of(self, clip: int, enlarge: int = 1) -> dict[str, Any]:
        """The recipe that a file with this clip carries, enlarged so many times."""
        recipe = {**self.recipe, "clip": clip, "frames_hash": self.recipe["frames_hashes"][clip]}
        return recipe if enlarge == 1 else {**recipe, "enlarged": enlarge}

    def save(self, path: str | PathLike[str], *, clip: int = 0, overwrite: bool = False, enlarge: int = 1) -> Path:
        """Write a clip: mp4, webm, gif, webp, apng, a contact sheet (png) or a folder of png, by the suffix.

        Args:
            path: where to.
            clip: which.
            overwrite: replace a file that exists.
            enlarge: make every side that many times as long, for small clips on large screens.

        Raises:
            InputError: E-CLIP-INDEX when there is no such clip, E-ENLARGE.
            OutputError: E-OUTPUT-BAD for a black or frozen clip, E-OUTPUT-EXISTS rather than overwrite.
        """
        self.check(clip)
        recipe = self.recipe_of(clip, enlarge)
        return write_clip(enlarged(self.clips[clip], enlarge), path, self.fps, recipe=recipe, overwrite=overwrite)
