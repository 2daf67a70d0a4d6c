"""What a call gives beside its request: prompts, encoded by a pipeline's text encoder, and pictures at frames."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vivant.config import as_python
from vivant.errors import InputError
from vivant.prompts import Prompts, broadcast, travelling
from vivant.request import PIARequest, texts


def encoded(
    pipeline: Any, request: PIARequest, batch: int, embeds: Tensor | None, negative_embeds: Tensor | None
) -> Prompts:
    """Prompts for every clip, or where they travel for every frame of every clip.

    Args:
        pipeline: whose `encode_prompt` embeds them, all at once.
        request: what is asked for.
        batch: number of prompts; clips are `num_videos_per_prompt` times as many.
        embeds: embeddings in place of the request's prompts.
        negative_embeds: the same for its negative prompts.
    """
    stops = request.prompts_at
    prompts, negatives = texts(request.prompt), texts(request.negative_prompt)
    travels = embeds is None and len(stops) > 1
    if travels:
        prompts = [one_of(text, b) for b in range(batch) for text in stops.values()]
        negatives = [one_of(negatives, b) for b in range(batch) for _ in stops]
        negative_embeds = None if negative_embeds is None else broadcast(negative_embeds, batch, len(stops))
    elif embeds is None:
        (prompts,) = map(texts, stops.values())
    positive, negative = pipeline.encode_prompt(
        prompts if embeds is None else None,
        do_classifier_free_guidance=request.needs_negative,
        negative_prompt=negatives if negative_embeds is None else None,
        prompt_embeds=embeds,
        negative_prompt_embeds=negative_embeds,
        clip_skip=request.clip_skip,
        prompt_syntax=request.prompt_syntax,
    )
    num = request.num_videos_per_prompt
    if travels:
        return travelling(positive, negative, tuple(stops), request.num_frames, num)
    return Prompts(broadcast(positive, batch, num), None if negative is None else broadcast(negative, batch, num))


def one_of(value: Any, b: int) -> str:
    """The text for prompt b, of one for all or one for each."""
    several = texts(value)
    return several[b % len(several)]


def check_travel(request: PIARequest, embeds: Tensor | None) -> None:
    """Refuse (E-PROMPT-TWICE) embeddings in place of prompts that travel."""
    if request.prompt_travel is not None and embeds is not None:
        raise InputError(
            "E-PROMPT-TWICE",
            "Both prompt_travel and prompt_embeds are given.",
            "",
            "Give one of them; prompts for every frame can be given by a callback.",
        )


def frames_of(keyframes: Mapping[int, Any] | None) -> tuple[int, ...]:
    """The frames that pictures are given for, in rising order (E-KEYFRAME)."""
    frames = tuple(keyframes) if isinstance(keyframes, Mapping) else keyframes
    if frames is None:
        return ()
    if not isinstance(frames, tuple) or not all(type(as_python(frame)) is int for frame in frames):
        raise InputError(
            "E-KEYFRAME", f"Pictures are given for {frames!r}.", "", "Give pictures by the numbers of frames: {24: …}."
        )
    return tuple(sorted(frames))


def check_keyframes(request: PIARequest, keyframes: Mapping[int, Any] | None) -> list[tuple[int, Any]]:
    """The pictures in the order of their frames; refuse (E-KEYFRAME) those that are not the request's."""
    frames = frames_of(keyframes)
    if frames != request.keyframes:
        raise InputError(
            "E-KEYFRAME",
            f"There are pictures for the frames {list(frames)}, and the keyframes are {list(request.keyframes)}.",
            "",
            "Give one for each.",
        )
    return [(frame, (keyframes or {})[frame]) for frame in frames]
