"""One call each: `Animator` makes a clip of a picture, and `Result` is what comes back."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from os import PathLike
from pathlib import Path
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
from vivant.hub.model import pick_dtype
from vivant.media.checks import DARK, Finding, check_clip
from vivant.media.frames import enlarged, frames_hash
from vivant.media.output import to_bytes
from vivant.media.recipe import image_digest
from vivant.media.video import write_clip
from vivant.pia.compile import compile_unet
from vivant.pia.config import Numerics, check_numerics
from vivant.pia.decode import decode
from vivant.pia.generate import schedules, timesteps
from vivant.pipelines.pia import PIAPipeline
from vivant.preflight import SCHEDULER, Limits, Models, check_request, read_stills
from vivant.schedulers import DDIMScheduler


@dataclass(frozen=True)
class Progress:
    """Where a run is: shown after every step.

    Attributes:
        step: steps made, over all FreeInit iterations.
        total: steps of the run.
        seconds: since the run began, text and picture included.
        latents: the clean latents as predicted so far, `b 4 f h w`, for a preview.
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
        recipe = {**self.recipe, "clip": clip, "frames_hash": self.recipe["frames_hashes"][clip]}
        if enlarge != 1:
            recipe["enlarged"] = enlarge
        return write_clip(enlarged(self.clips[clip], enlarge), path, self.fps, recipe=recipe, overwrite=overwrite)


class Animator:
    """Animates pictures with one base model and PIA. Numerics are the original's, the scheduler is PIA's preset."""

    def __init__(
        self, pipeline: PIAPipeline, origins: Mapping[str, Any], dtype_reason: str, load_seconds: float, compiled: bool
    ):
        self.pipeline = pipeline
        self.compiled = compiled
        self._origins = origins
        self._dtype_reason = dtype_reason
        self._load_seconds = load_seconds
        self._digests: dict[str, tuple[torch.nn.Module, torch.dtype, str]] = {}

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        motion_adapter: str | Path | None = None,
        *,
        numerics: Numerics = "original",
        dtype: torch.dtype | None = None,
        device: str | None = None,
        compile: bool = False,
        variant: str | None = None,
        revision: str | None = None,
        adapter_revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Load a base model and the motion adapter.

        Args:
            base: folder or hub id of a Stable Diffusion 1.5 repository.
            motion_adapter: folder or hub id of PIA's motion adapter; openmmlab/PIA-condition-adapter if not given,
                unless `base` holds motion modules itself (as `PIAPipeline.save_pretrained` writes it).
            numerics: ``"original"``, what the weights were trained with, or ``"diffusers"``.
            dtype: data type of the weights; by default bfloat16 where the processor has it natively.
            device: where to compute; the best accelerator if not given.
            compile: compile the network; the first step takes minutes, every further one is faster.
            variant: file variant of both, such as ``"fp16"``; what lacks it is read in its plain weights, with a note.
            revision: branch, tag or commit of the base.
            adapter_revision: branch, tag or commit of the adapter.
            cache_dir: hub cache.
            local_files_only: never touch the network.
            token: hub token.

        Raises:
            LoadError: what is missing, unreadable or of another family; most of it before any tensor is read.
            InputError: E-DEVICE, E-DTYPE, E-NUMERICS, and models that do not go together.
        """
        start = time.perf_counter()
        check_numerics(numerics)
        device, dtype, reason = _place(device, dtype)
        hub: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        hub["variant"] = variant
        models = Models.find(base, motion_adapter, revision=revision, adapter_revision=adapter_revision, **hub)
        adapter, notes = models.read_adapter(dtype)
        parts: dict[str, Any] = {} if adapter is None else {"motion_adapter": adapter}
        pipeline = PIAPipeline.from_pretrained(base, numerics=numerics, dtype=dtype, revision=revision, **hub, **parts)
        pipeline.notes += notes
        pipeline.scheduler = DDIMScheduler(**SCHEDULER)
        pipeline.to(device)
        if compile:
            compile_unet(pipeline.unet)
        return cls(pipeline, models.origins(), reason, time.perf_counter() - start, compile)

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
            parameters: the other fields of `vivant.request.PIARequest`. The negative prompt defaults to PIA's own
                where guidance reads one, the size to that of the picture with its longer side at most 512.

        Raises:
            InputError: for every parameter or picture that cannot be honoured, before anything is computed.
            OutputError: E-OUTPUT-NAN.
            Cancelled: E-CANCELLED.
        """
        stills = read_stills(image)
        solver = self.pipeline.scheduler.solver
        request = check_request(parameters, prompt, stills, solver, self._limits)
        total = len(timesteps(schedules(solver, request)))
        start = time.perf_counter()

        def on_step(state: State) -> State:
            if cancel is not None and cancel():
                raise Cancelled(
                    "E-CANCELLED", f"Stopped after step {state.i + 1} of {total}.", "The caller asked for it."
                )
            if progress is not None:
                shown = state.x if state.x0 is None else state.x0
                held = placement.peak_memory(self.pipeline.memory.device)
                progress(Progress(state.i + 1, total, time.perf_counter() - start, shown, held))
            return state

        standing, self.pipeline.notes = self.pipeline.notes, []
        try:
            latents = self.pipeline.denoise(request, [s.image for s in stills], _generators(request.seed), on_step)
        finally:
            said, self.pipeline.notes = self.pipeline.notes, standing
        middle = time.perf_counter()
        with placement.active(self.pipeline.vae, self.pipeline.memory) as vae:
            frames = torch.cat([to_bytes(part) for part in decode(vae, latents)])
        clips = tuple(rearrange(frames, "(b f) h w c -> b f h w c", f=request.num_frames).numpy())
        end = time.perf_counter()

        seen = [stills[i // request.num_videos_per_prompt % len(stills)].image for i in range(len(clips))]
        dark = [int(np.asarray(picture).max()) <= DARK for picture in seen]
        report = Report(
            {"load": self._load_seconds, "denoise": middle - start, "decode": end - middle},
            placement.peak_memory(self.pipeline.memory.device),
            self.pipeline.memory.device,
            f"{str(self.pipeline.dtype).removeprefix('torch.')}: {self._dtype_reason}",
            tuple(dict.fromkeys([*standing, *(note for s in stills for note in s.notes), *said])),
            tuple(finding for clip, is_dark in zip(clips, dark, strict=True) for finding in check_clip(clip, is_dark)),
        )
        recipe = {
            "vivant": 1,
            "kind": "pia",
            "request": request.to_json(),
            "models": self._models(),
            "device": self.pipeline.memory.device,
            "image": {
                "digests": [image_digest(s.image) for s in stills],
                "sizes": [list(s.image.size) for s in stills],
                "dark": dark,
            },
            "frames_hashes": [frames_hash(clip) for clip in clips],
            "versions": {"vivant": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        }
        return Result(clips, request.fps, recipe, report)

    @property
    def _limits(self) -> Limits:
        encoder: Any = self.pipeline.text_encoder
        return Limits(self.pipeline.unet.settings.motion_max_seq_length, encoder.config.num_hidden_layers)

    def weights(self) -> dict[str, str]:
        """Content hashes of the networks; each is hashed once, at the first call that needs it."""
        pipeline = self.pipeline
        for name in ("unet", "vae", "text_encoder"):
            part = getattr(pipeline, name)
            known = self._digests.get(name)
            if known is None or known[0] is not part or known[1] != part.dtype:
                self._digests[name] = part, part.dtype, weights_digest(part)
        return {name: digest for name, (_, _, digest) in self._digests.items()}

    def _models(self) -> dict[str, Any]:
        """What the result depends on besides the request."""
        pipeline = self.pipeline
        scheduler = {k: v for k, v in pipeline.scheduler.config.items() if not k.startswith("_")}
        return {
            **self._origins,
            "weights": self.weights(),
            "numerics": pipeline.numerics,
            "dtype": str(pipeline.dtype).removeprefix("torch."),
            "compiled": self.compiled,
            "scheduler": {"_class_name": type(pipeline.scheduler).__name__, **scheduler},
        }


def _generators(seed: int | Sequence[int]) -> Any:
    if isinstance(seed, int):
        return torch.Generator().manual_seed(seed)
    return [torch.Generator().manual_seed(one) for one in seed]


def _place(device: str | None, dtype: torch.dtype | None) -> tuple[str, torch.dtype, str]:
    """Device and data type, both tried, and why this type."""
    reason = "as asked"
    if device is not None:
        placement.check_place(device, torch.float32)
    device = device or placement.best_device()
    dtype = pick_dtype(dtype, None)
    if dtype is None:
        dtype, reason = placement.default_dtype(device)
    placement.check_place(device, dtype)
    return device, dtype, reason
