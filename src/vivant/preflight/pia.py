"""What a request of PIA can be refused for before any tensor is read: parameters and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from vivant.errors import InputError
from vivant.media.still import Still, natural_size
from vivant.pia.config import check_frames
from vivant.pia.generate import schedules
from vivant.pia.windows import LENGTH, Windows, windows
from vivant.preflight.inputs import check_recorded, check_seeds, check_used, drawn_seed, read_keyframes, read_stills
from vivant.preflight.models import Limits, scheduler_of
from vivant.request import NEGATIVE_PROMPT, PIARequest, batch_size, texts
from vivant.solvers.schedule import Solver


def check_request(
    parameters: Mapping[str, Any],
    prompt: Any,
    stills: Sequence[Still],
    solver: Solver,
    limits: Limits | None = None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
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
        defaults: fields that `parameters` need not have, in place of those of `PIARequest`; see `Models.defaults`.
        keyframes: the pictures for the request's keyframes.

    Raises:
        InputError: for every parameter that cannot be honoured, or that would be ignored.
    """
    request = PIARequest.build(**{**defaults, **parameters, "prompt": prompt, "keyframes": tuple(keyframes)})
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
    solver: Solver | None = None,
    limits: Limits | None = None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    keyframes: Mapping[int, Any] | None = None,
    **parameters: Any,
) -> PIARequest:
    """Refuse bad input before anything heavy is loaded: parameters and pictures.

    Args:
        image: as for `vivant.Animator.animate`.
        prompt: likewise.
        solver: what will sample; PIA's preset if not given.
        limits: of the models, see `Models.find`.
        defaults: see `check_request`.
        keyframes: as for `vivant.Animator.animate`.
        parameters: the other fields of `vivant.request.PIARequest`.

    Returns:
        The request as `Animator.animate` will read it.
    """
    stills, further = read_stills(image), read_keyframes(keyframes)
    solver = solver or scheduler_of(None).solver
    return check_request(parameters, prompt, stills, solver, limits, defaults, further)


def describe_windows(request: PIARequest) -> str | None:
    """A note about a clip that is made in windows."""
    num = len(windows(request.num_frames, request.windows))
    if request.windows is None or num == 1:
        return None
    return f"{request.num_frames} frames are made in {num} windows of {request.windows.length}, which are blended."
