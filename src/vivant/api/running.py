"""What `Animator` and `Portrait` have in common: where they run, how a run is watched, and what is said of it."""

import operator
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from math import inf
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from vivant import __version__, placement
from vivant.api.result import Progress, Report, Result
from vivant.denoise import OnStep, State
from vivant.errors import Cancelled
from vivant.hub.digest import weights_digest
from vivant.hub.model import pick_dtype
from vivant.media.checks import DARK, check_clip
from vivant.media.frames import frames_hash
from vivant.media.recipe import image_digest
from vivant.media.still import Still
from vivant.pipelines.base import DiffusionPipeline
from vivant.pipelines.consisid.pipeline_consisid import ConsisIDPipeline
from vivant.pipelines.pia import PIAPipeline
from vivant.placement import Residency
from vivant.request import ConsisIDRequest, PIARequest
from vivant.schedulers import Scheduler

Cancel = Callable[[], bool]


@dataclass(frozen=True)
class Loaded:
    """How a pipeline was loaded.

    Attributes:
        origins: where its models come from, for the recipe.
        dtype_reason: why its weights have their data type.
        seconds: how long it took.
    """

    origins: Mapping[str, Any]
    dtype_reason: str
    seconds: float


def place(device: str | None, dtype: torch.dtype | None) -> tuple[str, torch.dtype, str]:
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


def settle(pipeline: DiffusionPipeline, device: str, residency: Residency) -> None:
    """Put a pipeline on its device, or only what is used of it."""
    match residency:
        case "resident":
            pipeline.to(device)
        case "component":
            pipeline.enable_model_cpu_offload(device=device)
        case "layer":
            pipeline.enable_sequential_cpu_offload(device=device)


def generators(seed: int | Sequence[int]) -> Any:
    """One generator of noise, or one for each clip."""
    if isinstance(seed, int):
        return torch.Generator().manual_seed(seed)
    return [torch.Generator().manual_seed(one) for one in seed]


class Digests:
    """Content hashes of networks; each is hashed at the first call that needs it, and again once it was changed.

    LoRA and learned words exchange parameters, so other parameters mean other content.
    """

    def __init__(self):
        self._known: dict[str, tuple[list[torch.nn.Parameter], torch.dtype, str]] = {}

    def of(self, pipeline: DiffusionPipeline, names: Sequence[str]) -> dict[str, str]:
        """The hashes of components."""
        for name in names:
            part = getattr(pipeline, name)
            known, release = self._known.get(name), pipeline.memory.residency != "resident"
            held = list(part.parameters())
            if known is None or known[1] != part.dtype or not _are(known[0], held):
                self._known[name] = (held, part.dtype, weights_digest(part, release))
        return {name: self._known[name][2] for name in names}


def _are(known: Sequence[object], held: Sequence[object]) -> bool:
    return len(known) == len(held) and all(map(operator.is_, known, held))


def watching(
    total: int, start: float, device: str, progress: Callable[[Progress], None] | None, cancel: Cancel | None
) -> OnStep:
    """The hook that tells of every step and asks whether to go on."""

    def on_step(state: State) -> State:
        if cancel is not None and cancel():
            raise Cancelled("E-CANCELLED", f"Stopped after step {state.i + 1} of {total}.", "The caller asked for it.")
        if progress is not None:
            shown = state.x if state.x0 is None else state.x0
            held = placement.peak_memory(device)
            progress(Progress(state.i + 1, total, time.perf_counter() - start, shown, held))
        return state

    return on_step


@dataclass
class Notes:
    """What a pipeline noted before a run, and during it."""

    standing: list[str]
    said: list[str] = field(default_factory=list)


@contextmanager
def noting(pipeline: DiffusionPipeline) -> Generator[Notes]:
    """Keep the notes of one run apart from those of the pipeline's life."""
    notes, pipeline.notes = Notes(pipeline.notes), []
    try:
        yield notes
    finally:
        notes.said, pipeline.notes = pipeline.notes, notes.standing


def finished(
    pipeline: PIAPipeline | ConsisIDPipeline,
    loaded: Loaded,
    kind: str,
    request: PIARequest | ConsisIDRequest,
    stills: Sequence[Still],
    clips: tuple[UInt8[np.ndarray, "f h w 3"], ...],
    *,
    models: Mapping[str, Any],
    seconds: Mapping[str, float],
    notes: Notes,
    keyframes: Sequence[Sequence[Still]] = (),
    picture_prompts: Sequence[Still] = (),
    more: Mapping[str, Any] = {},
    attention: str = "",
) -> Result:
    """The result of a run.

    Args:
        pipeline: what made it.
        loaded: how that was loaded.
        kind: of recipe.
        request: what was asked for, everything decided.
        stills: the pictures.
        clips: the frames.
        models: what the result depends on besides the request, beside the origins.
        seconds: duration of the stages.
        notes: what was said.
        keyframes: the pictures of every keyframe.
        picture_prompts: those of IP-Adapters.
        more: further fields of the recipe.
        attention: see `Report`.
    """
    device, dtype = pipeline.memory.device, str(pipeline.dtype).removeprefix("torch.")
    seen = [stills[i // request.num_videos_per_prompt % len(stills)].image for i in range(len(clips))]
    every = [*stills, *(still for group in keyframes for still in group), *picture_prompts]
    dark = [int(np.asarray(picture).max()) <= DARK for picture in seen]
    report = Report(
        {"load": loaded.seconds, **seconds},
        placement.peak_memory(device),
        device,
        pipeline.memory.residency,
        f"{dtype}: {loaded.dtype_reason}",
        tuple(dict.fromkeys([*notes.standing, *(note for s in every for note in s.notes), *notes.said])),
        tuple(finding for clip, is_dark in zip(clips, dark, strict=True) for finding in check_clip(clip, is_dark)),
        attention,
    )
    recipe = {
        "vivant": 1,
        "kind": kind,
        "request": request.to_json(),
        "models": {
            **loaded.origins,
            **models,
            "dtype": dtype,
            "scheduler": recorded(pipeline.scheduler),
        },
        "device": device,
        "image": {
            **_known(stills),
            "dark": dark,
            **({"keyframes": [_known(group) for group in keyframes]} if keyframes else {}),
            **({"picture_prompts": _known(picture_prompts)} if picture_prompts else {}),
        },
        **more,
        "frames_hashes": [frames_hash(clip) for clip in clips],
        "versions": {"vivant": __version__, **{name: version(name) for name in ("torch", "transformers")}},
    }
    return Result(clips, request.fps, recipe, report)


def recorded(scheduler: Scheduler) -> dict[str, Any]:
    """A scheduler as a recipe holds it: what its solver reads, but for infinite defaults, which JSON lacks."""
    # What only other schedulers read is in its configuration too, and is nothing to this one.
    defaults = {field.name: field.default for field in fields(scheduler.solver_class)}
    read = {name: value for name, value in scheduler.config.items() if name in defaults}
    kept = {name: value for name, value in read.items() if value not in (inf, -inf) or value != defaults[name]}
    return {"_class_name": type(scheduler).__name__, **kept}


def _known(stills: Sequence[Still]) -> dict[str, Any]:
    """What a recipe holds of pictures: by which they are known again."""
    return {
        "digests": [image_digest(still.image) for still in stills],
        "sizes": [list(still.image.size) for still in stills],
    }
