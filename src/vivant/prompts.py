"""Encoded prompts: their shapes, and the form in which diffusers shows them to callbacks."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from vivant.errors import InputError
from vivant.request import check_text


@dataclass(frozen=True, eq=False)
class Prompts:
    """Encoded prompts. Compared by identity: another value means that keys and values are computed anew.

    Attributes:
        positive: one entry for each clip, or for each frame of each clip when `per_frame`.
        negative: the same for the negative prompt; None without guidance.
        per_frame: whether frames have prompts of their own, as PIA's may.
    """

    positive: Float[Tensor, "b m d"]
    negative: Float[Tensor, "b m d"] | None = None
    per_frame: bool = False

    def num_clips(self, num_frames: int) -> int:
        """How many clips of that many frames these prompts are for."""
        return self.positive.shape[0] // (num_frames if self.per_frame else 1)

    def stacked(self, num_evaluations: int) -> Float[Tensor, "n m d"]:
        """The text of every evaluation: the positive prompt comes last."""
        if num_evaluations == 1:
            return self.positive
        if self.negative is None:
            raise InputError(
                "E-GUIDANCE-NEGATIVE",
                "Guidance needs the encoded negative prompt, and there is none.",
                "",
                "Return both halves of prompt_embeds, or switch guidance off with it.",
            )
        return torch.cat([self.negative] * (num_evaluations - 1) + [self.positive])


def join_prompts(prompts: Prompts, num_frames: int) -> Float[Tensor, "n m d"]:
    """Prompts in the form that diffusers shows to callbacks: negative before positive, repeated for every frame."""
    stacked = prompts.stacked(1 if prompts.negative is None else 2)
    return stacked if prompts.per_frame else stacked.repeat_interleave(num_frames, dim=0)


def split_prompts(embeds: Float[Tensor, "n m d"], batch: int, num_frames: int) -> Prompts:
    """The inverse of `join_prompts`; the negative half and the repetition over frames may be missing.

    Rows that are the same for every frame of a clip become one row again, which is cheaper to read.

    Raises:
        InputError: E-PROMPT-EMBEDS-SHAPE when the number of rows fits nothing.
    """
    rows = embeds.shape[0]
    per_frame = rows in (2 * batch * num_frames, batch * num_frames) and num_frames > 1
    clips = rows // num_frames if per_frame else rows
    if clips not in (batch, 2 * batch):
        raise InputError(
            "E-PROMPT-EMBEDS-SHAPE",
            f"prompt_embeds has {rows} rows for {batch} clips of {num_frames} frames.",
            "",
            f"Give {batch} or {2 * batch} rows (negative first), or as many for every frame.",
        )
    if per_frame:
        frames = rearrange(embeds, "(b f) m d -> b f m d", f=num_frames)
        if (frames == frames[:, :1]).all():
            embeds, per_frame = frames[:, 0], False
    if clips == batch:
        return Prompts(embeds, None, per_frame)
    negative, positive = embeds.chunk(2)
    return Prompts(positive, negative, per_frame)


def exchange_negative(prompts: Prompts, negative: Float[Tensor, "n m d"], num_frames: int) -> Prompts:
    """The same prompts with another negative one: a row for each clip, or for each row of the positive prompts.

    Raises:
        InputError: E-PROMPT-EMBEDS-SHAPE when the rows fit neither.
    """
    rows = prompts.positive.shape[0]
    if prompts.per_frame and negative.shape[0] * num_frames == rows:
        negative = negative.repeat_interleave(num_frames, dim=0)
    if negative.shape != prompts.positive.shape:
        raise InputError(
            "E-PROMPT-EMBEDS-SHAPE",
            f"negative_prompt_embeds has the shape {tuple(negative.shape)}.",
            f"The prompt has {tuple(prompts.positive.shape)}.",
            "Give one row for each clip.",
        )
    return replace(prompts, negative=negative)


def broadcast(embeds: Float[Tensor, "k m d"], batch: int, num_videos: int) -> Float[Tensor, "b m d"]:
    """Rows for every clip: one row is for all prompts, and every prompt is repeated for its videos."""
    return embeds.expand(batch, -1, -1).repeat_interleave(num_videos, dim=0)


def travelling(
    positive: Float[Tensor, "n m d"],
    negative: Float[Tensor, "n m d"] | None,
    stops: Sequence[int],
    num_frames: int,
    num_videos: int,
) -> Prompts:
    """Prompts for every frame: interpolated between two stops, constant before the first and after the last.

    Args:
        positive: embeddings of the prompts of every clip at every stop, `(b k) m d`.
        negative: the same for the negative prompt; only that at the first stop is read.
        stops: k frames in rising order.
        num_frames: length of the clips.
        num_videos: clips for each prompt.
    """
    keyed = repeat(positive, "(b k) m d -> (b v) k m d", k=len(stops), v=num_videos)
    lower = [max(bisect_right(stops, i) - 1, 0) for i in range(num_frames)]
    upper = [min(bisect_right(stops, i), len(stops) - 1) for i in range(num_frames)]
    legs = [(i - stops[a], stops[b] - stops[a]) for i, (a, b) in enumerate(zip(lower, upper, strict=True))]
    share = torch.tensor([done / leg if leg else 0.0 for done, leg in legs], device=keyed.device).to(keyed.dtype)
    between = torch.lerp(keyed[:, lower], keyed[:, upper], rearrange(share, "f -> f 1 1"))
    frames = rearrange(between, "b f m d -> (b f) m d")
    if negative is None:
        return Prompts(frames, None, per_frame=True)
    first = rearrange(negative, "(b k) m d -> b k m d", k=len(stops))[:, 0]
    return Prompts(frames, repeat(first, "b m d -> (b v f) m d", v=num_videos, f=num_frames), per_frame=True)


def check_prompts(prompt: object, negative: object, embeds: Tensor | None, negative_embeds: Tensor | None) -> None:
    """Refuse prompts that are given twice or not at all, or are no text.

    Raises:
        InputError: E-PROMPT-TWICE, E-PROMPT-NONE, E-PROMPT-TYPE or E-PROMPT-TEXT.
    """
    for name, text, ready in (("prompt", prompt, embeds), ("negative_prompt", negative, negative_embeds)):
        if text is not None and ready is not None:
            raise InputError("E-PROMPT-TWICE", f"Both {name} and {name}_embeds are given.", "", "Give one of them.")
        if text is not None:
            check_text(name, text)
    if prompt is None and embeds is None:
        raise InputError("E-PROMPT-NONE", "There is no prompt.", "", "Give prompt or prompt_embeds.")


def check_embeds(embeds: Tensor | None, negative_embeds: Tensor | None, num_channels: int) -> None:
    """Refuse embeddings that the network cannot read, or that differ in length.

    Args:
        embeds: of the prompts, or None.
        negative_embeds: of the negative prompts, or None.
        num_channels: what the network reads for every token.

    Raises:
        InputError: E-PROMPT-EMBEDS-SHAPE.
    """
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[2] != num_channels:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                "E-PROMPT-EMBEDS-SHAPE",
                f"{name} is {found}.",
                f"It is a tensor of three axes: prompts, tokens, and {num_channels} channels.",
                "Encode the prompt with the text encoder of this base model.",
            )
    if len({value.shape[1] for value in given.values()}) > 1:
        shapes = " and ".join(f"{name} {tuple(value.shape)}" for name, value in given.items())
        raise InputError(
            "E-PROMPT-EMBEDS-SHAPE",
            f"{shapes} differ in length.",
            "",
            "Encode both with the same text encoder to the same number of tokens.",
        )
