"""Frames of clips in the forms that callers ask for."""

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from vivant.errors import InputError, OutputError
from vivant.media.checks import Finding, check_clip

OutputType = Literal["pil", "np", "pt", "latent"]


def check_output_type(output_type: object) -> None:
    """Refuse (E-OUTPUT-TYPE) a form that frames cannot be given."""
    if output_type not in get_args(OutputType):
        raise InputError(
            "E-OUTPUT-TYPE", f"output_type is {output_type!r}.", "", f"Use {', '.join(get_args(OutputType))}."
        )


def check_finite(values: Tensor, what: str) -> None:
    """Refuse (E-OUTPUT-NAN) to hand on what a run made of numbers that broke."""
    if not torch.isfinite(values).all():
        raise OutputError(
            "E-OUTPUT-NAN",
            f"{what} hold NaN or infinity.",
            "Half precision overflowed, or weights or inputs are broken.",
            "Run in float32 or bfloat16, or check the model files.",
        )


def to_bytes(frames: Float[Tensor, "f 3 i j"]) -> UInt8[Tensor, "f i j 3"]:
    """Frames as a picture file holds them: rounded to 0..255, channels last."""
    return rearrange((frames * 255).round().to(torch.uint8), "f c h w -> f h w c")


def collect(
    parts: Iterable[Float[Tensor, "_ 3 i j"]], num_frames: int, output_type: OutputType
) -> tuple[Any, list[Finding]]:
    """Frames of several clips in one of diffusers' forms, and what is wrong with them.

    Args:
        parts: what `decode` yields.
        num_frames: length of each clip.
        output_type: ``"pil"``, ``"np"`` or ``"pt"``.
    """
    exact, rounded = [], []
    for part in parts:
        rounded.append(to_bytes(part))
        if output_type != "pil":
            exact.append(part)
    clips = rearrange(torch.cat(rounded), "(b f) i j c -> b f i j c", f=num_frames).numpy()
    findings = [finding for clip in clips for finding in check_clip(clip)]
    if output_type == "pil":
        return [[Image.fromarray(frame) for frame in clip] for clip in clips], findings
    frames = rearrange(torch.cat(exact), "(b f) c i j -> b f c i j", f=num_frames)
    return (frames if output_type == "pt" else rearrange(frames, "b f c i j -> b f i j c").numpy()), findings
