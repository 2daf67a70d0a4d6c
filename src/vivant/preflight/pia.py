"""What of PIA can be refused before any tensor is read: models that do not go together, parameters, pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch

from vivant.config import load_json, read
from vivant.errors import InputError, LoadError
from vivant.hub.repo import MODEL, Source, locate
from vivant.media.still import Still, natural_size
from vivant.pia.assemble import check_family, check_together, two_adapters
from vivant.pia.config import MotionAdapterConfig, UNet2DConditionConfig, UNetMotionConfig, check_frames
from vivant.pia.generate import schedules
from vivant.pia.motion import MotionAdapter
from vivant.pia.windows import LENGTH, Windows, windows
from vivant.pipelines import components as parts
from vivant.pipelines.declared import check_complete
from vivant.pipelines.pia import PIAPipeline
from vivant.preflight.inputs import check_recorded, check_seeds, check_used, drawn_seed, read_keyframes, read_stills
from vivant.preflight.repository import check_files, check_weights, is_consisid, is_local, origin_of
from vivant.request import NEGATIVE_PROMPT, PIARequest, batch_size, texts
from vivant.schedulers import DDIMScheduler
from vivant.solvers.schedule import Solver
from vivant.vae.image import AutoencoderKLConfig

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
class Limits:
    """What the networks set bounds to.

    Attributes:
        num_frames: positions of the motion modules.
        num_text_layers: layers of the text encoder.
    """

    num_frames: int
    num_text_layers: int


@dataclass(frozen=True)
class Models:
    """A base and an adapter that go together, as their configurations say.

    Attributes:
        base: where the base is.
        adapter: where the motion adapter is; None when the base holds its modules already.
        base_folder: the base, or its snapshot in the hub cache.
        adapter_folder: the same for the adapter.
        limits: see there.
    """

    base: Source
    adapter: Source | None
    base_folder: Path
    adapter_folder: Path | None
    limits: Limits

    @classmethod
    def find(
        cls,
        base: str | Path,
        motion_adapter: str | Path | None = None,
        *,
        variant: str | None = None,
        revision: str | None = None,
        adapter_revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Locate both and check them by their small files; of a hub repository only those are fetched.

        Arguments are those of `vivant.Animator.from_pretrained`.

        Raises:
            LoadError: what is missing, unreadable or of another family.
            InputError: E-ADAPTER-FIT, E-ADAPTER-NOT-PIA, E-ADAPTER-TWICE, E-BASE-INPAINTING, E-CONFIG-….
        """
        place = Source(base, None, variant, revision, cache_dir, local_files_only, token)
        configs = [f"{name}/config.json" for name in ("unet", "vae", "text_encoder")]
        folder = locate(place, ["model_index.json", *configs])
        index = parts.read_index(PIAPipeline, folder)
        listed = parts.entries(index)
        if is_consisid(listed):
            raise LoadError(
                "E-REPO-FAMILY",
                f"{base} holds ConsisID, which films a person.",
                "PIA animates pictures with Stable Diffusion 1.5.",
                "Use `vivant portrait` or vivant.Portrait for it.",
            )
        # Without those that are listed as None: prompts are texts here, so that the text encoder is needed too.
        check_complete(PIAPipeline, {name: entry for name, entry in listed.items() if entry}, {}, base)
        check_family(folder, index)
        read(AutoencoderKLConfig, load_json(folder / "vae" / "config.json"))
        if is_local(place):
            check_files(folder, listed, variant, ("text_encoder", "unet", "vae"))
        layers = _text_layers(load_json(folder / "text_encoder" / "config.json"))
        unet = load_json(folder / "unet" / "config.json")

        entry = listed["unet"]
        if entry is not None and entry.class_name == "UNetMotionModel":
            if motion_adapter is not None:
                raise two_adapters(base)
            settings, _ = read(UNetMotionConfig, unet)
            check_together(settings, None)
            return cls(place, None, folder, None, Limits(settings.motion_max_seq_length, layers))

        beside = replace(place, source=motion_adapter or PIA_ADAPTER, revision=adapter_revision)
        adapter_folder = locate(beside, ["config.json"])
        adapter, _ = read(MotionAdapterConfig, load_json(adapter_folder / "config.json"))
        check_together(read(UNet2DConditionConfig, unet)[0], adapter)
        if is_local(beside):
            check_weights(adapter_folder, variant, MODEL)
        limits = Limits(adapter.motion_max_seq_length, layers)
        return cls(place, beside, folder, adapter_folder, limits)

    def read_adapter(self, dtype: torch.dtype) -> tuple[MotionAdapter | None, tuple[str, ...]]:
        """The adapter and notes about it; in its plain weights where it lacks the variant, as components of the base.

        Raises:
            LoadError: as `MotionAdapter.from_pretrained`.
        """
        if self.adapter is None:
            return None, ()
        source = self.adapter.source
        place = {name: value for name, value in vars(self.adapter).items() if name != "source"}
        try:
            return MotionAdapter.from_pretrained(source, **place, dtype=dtype), ()
        except LoadError as error:
            if error.code != "E-WEIGHTS-VARIANT" or self.adapter.variant is None:
                raise
        note = f'motion_adapter has no variant "{self.adapter.variant}"; its plain weights were read.'
        place["variant"] = None
        return MotionAdapter.from_pretrained(source, **place, dtype=dtype), (note,)

    def origins(self) -> dict[str, Any]:
        """Where both come from, for a recipe: hub ids with commits; of local folders and shipped models the name."""
        adapter = None
        if self.adapter is not None and self.adapter_folder is not None:
            adapter = origin_of(self.adapter, self.adapter_folder)
        return {
            "base": origin_of(self.base, self.base_folder),
            "motion_adapter": adapter,
            "variant": self.base.variant,
        }


def _text_layers(config: Mapping[str, Any]) -> int:
    """Layers of a text encoder, whose configuration may lie inside that of a whole CLIP; 12 is the class's default."""
    inner = config.get("text_config")
    return int({**config, **(inner if isinstance(inner, dict) else {})}.get("num_hidden_layers", 12))


def check_request(
    parameters: Mapping[str, Any],
    prompt: Any,
    stills: Sequence[Still],
    solver: Solver,
    limits: Limits | None = None,
    keyframes: Mapping[int, Sequence[Still]] = MappingProxyType({}),
) -> PIARequest:
    """The request with everything decided: size, negative prompt, and seeds that can be repeated.

    Args:
        parameters: fields of `PIARequest` but for the keyframes. The negative prompt defaults to PIA's own where
            guidance reads one, the size to that of the first picture with its longer side at most 512.
        prompt: its prompt.
        stills: the pictures.
        solver: what will sample.
        limits: what the networks allow, where that is known yet. A clip that is longer is made in windows, unless
            `parameters` say otherwise.
        keyframes: the pictures for the request's keyframes.

    Raises:
        InputError: for every parameter that cannot be honoured, or that would be ignored.
    """
    request = PIARequest.build(**{**parameters, "prompt": prompt, "keyframes": tuple(keyframes)})
    check_used(request, solver)
    if "negative_prompt" not in parameters and request.needs_negative:
        request = replace(request, negative_prompt=NEGATIVE_PROMPT)
    if limits is not None:
        if "windows" not in parameters and request.num_frames > limits.num_frames:
            request = replace(request, windows=Windows(min(LENGTH, limits.num_frames)))
        check_frames(request.num_frames, limits.num_frames, request.windows)
        if request.clip_skip is not None and request.clip_skip >= limits.num_text_layers:
            raise InputError(
                "E-CLIP-SKIP",
                f"clip_skip={request.clip_skip} is not possible.",
                f"The text encoder has {limits.num_text_layers} layers.",
                f"Give 0 to {limits.num_text_layers - 1}, or None.",
            )
    batch = batch_size(
        image=len(stills),
        prompt=request.num_prompts,
        negative_prompt=len(texts(request.negative_prompt)),
        **{f"picture at frame {frame}": len(pictures) for frame, pictures in keyframes.items()},
    )
    check_seeds(request, batch * request.num_videos_per_prompt)
    schedules(solver, request)
    check_recorded(request)
    return _decided(request, stills[0])


def _decided(request: PIARequest, still: Still) -> PIARequest:
    width, height = natural_size(still.image)
    return replace(
        request,
        height=request.height or height,
        width=request.width or width,
        seed=drawn_seed(request.seed),
    )


def check_animate(
    image: Any,
    prompt: Any,
    *,
    limits: Limits | None = None,
    keyframes: Mapping[int, Any] | None = None,
    **parameters: Any,
) -> PIARequest:
    """Refuse bad input before anything heavy is loaded: parameters and pictures.

    Args:
        image: as for `vivant.Animator.animate`.
        prompt: likewise.
        limits: of the models, see `Models.find`.
        keyframes: as for `vivant.Animator.animate`.
        parameters: the other fields of `vivant.request.PIARequest`.

    Returns:
        The request as `Animator.animate` will read it.
    """
    stills, further = read_stills(image), read_keyframes(keyframes)
    return check_request(parameters, prompt, stills, DDIMScheduler(**SCHEDULER).solver, limits, further)


def describe_windows(request: PIARequest) -> str | None:
    """A note about a clip that is made in windows."""
    num = len(windows(request.num_frames, request.windows))
    if request.windows is None or num == 1:
        return None
    return f"{request.num_frames} frames are made in {num} windows of {request.windows.length}, which are blended."
