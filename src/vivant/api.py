"""One call each: `Animator` makes a clip of a picture, and `Result` is what comes back."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from secrets import randbits
from typing import Any, Self

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image

from vivant import __version__, placement
from vivant.denoise import State
from vivant.errors import Cancelled, InputError, OutputError
from vivant.hub.digest import weights_digest
from vivant.media.checks import Finding, check_clip
from vivant.media.frames import frames_hash
from vivant.media.recipe import image_digest
from vivant.media.still import natural_size, read_still
from vivant.media.video import check_output, write_clip
from vivant.pia.compile import compile_unet
from vivant.pia.config import Numerics
from vivant.pia.decode import decode, to_bytes
from vivant.pia.generate import schedules, timesteps
from vivant.pia.motion import MotionAdapter
from vivant.pipelines.pia import PIAPipeline
from vivant.request import NEGATIVE_PROMPT, PIARequest
from vivant.schedulers import DDIMScheduler

PIA_ADAPTER = "openmmlab/PIA-condition-adapter"
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""PIA's preset: the noise schedule that its motion modules were trained with."""


@dataclass(frozen=True)
class Progress:
    """Where a run is: shown after every step.

    Attributes:
        step: steps made, over all FreeInit iterations.
        total: steps of the run.
        seconds: since the first step began.
        latents: the clean latents as predicted so far, `b 4 f h w`, for a preview.
    """

    step: int
    total: int
    seconds: float
    latents: torch.Tensor

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
        dtype: data type of the weights, and why it was chosen.
        notes: what was fallen back to, left out or ignored.
        findings: what is wrong with the clips; empty is good.
    """

    seconds: dict[str, float]
    peak_memory: int | None
    device: str
    dtype: str
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

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
        recipe: request, hashes of models and picture, versions, hash of the frames; no paths.
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

    def save(self, path: str | PathLike[str], *, clip: int = 0, overwrite: bool = False) -> Path:
        """Write a clip: mp4, webm, gif, webp, apng, a contact sheet (png) or a folder of png, by the suffix.

        Raises:
            OutputError: E-OUTPUT-BAD for a black or frozen clip, E-OUTPUT-EXISTS rather than overwrite.
        """
        bad = check_clip(self.clips[clip], self.recipe["image"]["dark"])
        if bad:
            raise OutputError(
                "E-OUTPUT-BAD",
                f"The clip is not written: {bad[0].text}",
                "It would pass for a success.",
                "See result.report; vivant.media.video.write_clip(result.clips[0], …) writes it all the same.",
            )
        recipe = {**self.recipe, "clip": clip, "frames_hash": self.recipe["frames_hashes"][clip]}
        return write_clip(self.clips[clip], path, self.fps, recipe=recipe, overwrite=overwrite)


class Animator:
    """Animates pictures with one base model and PIA. Numerics are the original's, the scheduler is PIA's preset."""

    def __init__(self, pipeline: PIAPipeline, sources: dict[str, str], dtype_reason: str, load_seconds: float):
        self.pipeline = pipeline
        self._sources = sources
        self._dtype_reason = dtype_reason
        self._load_seconds = load_seconds
        self._digests: dict[str, str] = {}

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        motion_adapter: str | Path = PIA_ADAPTER,
        *,
        numerics: Numerics = "original",
        dtype: torch.dtype | None = None,
        device: str | None = None,
        compile: bool = False,
        variant: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Load a base model and the motion adapter.

        Args:
            base: folder or hub id of a Stable Diffusion 1.5 repository.
            motion_adapter: folder or hub id of PIA's motion adapter.
            numerics: ``"original"``, what the weights were trained with, or ``"diffusers"``.
            dtype: data type of the weights; by default bfloat16 where the processor has it natively.
            device: where to compute; the best accelerator if not given.
            compile: compile the network; the first step takes minutes, every further one is faster.
            variant: file variant of both, such as ``"fp16"``.
            revision: branch, tag or commit of the base.
            cache_dir: hub cache.
            local_files_only: never touch the network.
            token: hub token.
        """
        start = time.perf_counter()
        device = device or placement.best_device()
        reason = "as asked"
        if dtype is None:
            dtype, reason = placement.default_dtype(device)
        hub = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        adapter = MotionAdapter.from_pretrained(motion_adapter, dtype=dtype, variant=variant, **hub)
        pipeline = PIAPipeline.from_pretrained(
            base, motion_adapter=adapter, numerics=numerics, dtype=dtype, variant=variant, revision=revision, **hub
        )
        pipeline.scheduler = DDIMScheduler(**SCHEDULER)
        pipeline.to(device)
        if compile:
            compile_unet(pipeline.unet)
        sources = {"base": _name(base), "motion_adapter": _name(motion_adapter)}
        return cls(pipeline, sources, reason, time.perf_counter() - start)

    def animate(
        self,
        image: Any,
        prompt: str | Sequence[str] = "",
        *,
        progress: Callable[[Progress], None] | None = None,
        cancel: Callable[[], bool] | None = None,
        **parameters: Any,
    ) -> Result:
        """Make clips that start from `image`.

        Args:
            image: path, URL, PIL picture, array or tensor, or a list of such.
            prompt: what happens.
            progress: called after every step.
            cancel: asked after every step; True stops the run with `Cancelled`, and nothing is decoded.
            parameters: the other fields of `vivant.request.PIARequest`. The negative prompt defaults to PIA's own,
                the size to that of the picture with its longer side at most 512.

        Raises:
            InputError: for every parameter or picture that cannot be honoured, before anything is computed.
            OutputError: E-OUTPUT-NAN.
            Cancelled: E-CANCELLED.
        """
        stills = [read_still(source) for source in _listed(image)]
        request = PIARequest.build(**{"negative_prompt": NEGATIVE_PROMPT, **parameters, "prompt": prompt})
        request = self._completed(request, stills[0].image)
        total = len(timesteps(schedules(self.pipeline.scheduler.solver, request)))
        said = len(self.pipeline.notes)

        start = time.perf_counter()

        def on_step(state: State) -> State:
            if cancel is not None and cancel():
                raise Cancelled(
                    "E-CANCELLED", f"Stopped after step {state.i + 1} of {total}.", "The caller asked for it."
                )
            if progress is not None:
                shown = state.x if state.x0 is None else state.x0
                progress(Progress(state.i + 1, total, time.perf_counter() - start, shown))
            return state

        latents = self.pipeline.denoise(request, [s.image for s in stills], _generators(request.seed), on_step)
        middle = time.perf_counter()
        with placement.active(self.pipeline.vae, self.pipeline.memory) as vae:
            frames = torch.cat([to_bytes(part) for part in decode(vae, latents)])
        clips = tuple(rearrange(frames, "(b f) h w c -> b f h w c", f=request.num_frames).numpy())
        end = time.perf_counter()

        dark = max(np.asarray(s.image).max() for s in stills) <= 3
        report = Report(
            {"load": self._load_seconds, "denoise": middle - start, "decode": end - middle},
            placement.peak_memory(self.pipeline.memory.device),
            self.pipeline.memory.device,
            f"{str(self.pipeline.dtype).removeprefix('torch.')}: {self._dtype_reason}",
            (*(note for s in stills for note in s.notes), *self.pipeline.notes[said:]),
            tuple(finding for clip in clips for finding in check_clip(clip, dark)),
        )
        recipe = {
            "vivant": 1,
            "kind": "pia",
            "request": request.to_json(),
            "models": self._models(),
            "image": {
                "digests": [image_digest(s.image) for s in stills],
                "sizes": [list(s.image.size) for s in stills],
                "dark": bool(dark),
            },
            "frames_hashes": [frames_hash(clip) for clip in clips],
            "versions": {"vivant": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        }
        return Result(clips, request.fps, recipe, report)

    def _completed(self, request: PIARequest, image: Image.Image) -> PIARequest:
        """The request with everything decided: size, and seeds that can be repeated."""
        width, height = natural_size(image)
        seeds = request.seed if isinstance(request.seed, tuple) else (request.seed,)
        seeds = tuple(randbits(63) if seed == -1 else seed for seed in seeds)
        return replace(
            request,
            height=request.height or height,
            width=request.width or width,
            seed=seeds if isinstance(request.seed, tuple) else seeds[0],
        )

    def _models(self) -> dict[str, Any]:
        """What the result depends on besides the request; weights are hashed once, at the first clip."""
        pipeline = self.pipeline
        if not self._digests:
            parts = {"unet": pipeline.unet, "vae": pipeline.vae, "text_encoder": pipeline.text_encoder}
            self._digests = {name: weights_digest(part) for name, part in parts.items()}
        return {
            **self._sources,
            "weights": self._digests,
            "numerics": pipeline.numerics,
            "dtype": str(pipeline.dtype).removeprefix("torch."),
            "scheduler": {"_class_name": type(pipeline.scheduler).__name__, **dict(pipeline.scheduler.config)},
        }


def check_animate(
    image: Any, prompt: str, output: str | PathLike[str] | None = None, overwrite: bool = False, **parameters: Any
) -> PIARequest:
    """Refuse bad input before anything heavy is loaded: parameters, picture and output file.

    Returns:
        The request as `Animator.animate` would read it.
    """
    request = PIARequest.build(**{"negative_prompt": NEGATIVE_PROMPT, **parameters, "prompt": prompt})
    for source in _listed(image):
        read_still(source)
    if output is not None:
        check_output(output, overwrite=overwrite)
    return request


def _listed(image: Any) -> list[Any]:
    items = list(image) if isinstance(image, list | tuple) else [image]
    if not items:
        raise InputError(
            "E-IMAGE-NONE", "No picture was given.", "", "Give a path, a PIL picture, an array or a tensor."
        )
    return items


def _generators(seed: int | tuple[int, ...]) -> Any:
    if isinstance(seed, int):
        return torch.Generator().manual_seed(seed)
    return [torch.Generator().manual_seed(one) for one in seed]


def _name(source: str | Path) -> str:
    """A hub id as it is, of a folder only its name: a recipe holds no paths."""
    return Path(source).name if Path(source).exists() else str(source)
