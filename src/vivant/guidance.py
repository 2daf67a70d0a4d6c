"""Guidance: how several predictions of one step become one."""

import math

from jaxtyping import Float
from torch import Tensor


def cfg(uncond: Float[Tensor, "*axes"], text: Float[Tensor, "*axes"], scale: float) -> Float[Tensor, "*axes"]:
    """Classifier-free guidance: uncond + scale (text - uncond).

    Ho & Salimans 2022, arXiv 2207.12598, eq. 6, where scale is 1 + w.

    Args:
        uncond: prediction for the empty or negative prompt.
        text: prediction for the prompt.
        scale: strength; 0 is `uncond`, 1 is exactly `text`, more exaggerates the difference.
    """
    if scale == 1:
        return text
    return uncond + scale * (text - uncond)


def cfg_image(
    uncond: Float[Tensor, "*axes"],
    image: Float[Tensor, "*axes"],
    text: Float[Tensor, "*axes"],
    image_scale: float,
    text_scale: float,
) -> Float[Tensor, "*axes"]:
    """Separate guidance by the picture and by the prompt (InstructPix2Pix, arXiv 2211.09800, eq. 3).

    uncond + image_scale (image - uncond) + text_scale (text - image). With image_scale 1 it is `cfg(image, text,
    text_scale)`, which is what two evaluations give; with both scales 1 it is exactly `text`.

    Args:
        uncond: prediction with neither picture nor prompt.
        image: prediction with the picture alone.
        text: prediction with the picture and the prompt.
        image_scale: how strongly to follow the picture.
        text_scale: how strongly to follow the prompt; 1 follows it as it is, 0 not at all.
    """
    if image_scale == 1:
        return cfg(image, text, text_scale)
    return uncond + image_scale * (image - uncond) + text_scale * (text - image)


def dynamic_scale(scale: float, done: float, num_steps: int) -> float:
    """Guidance that falls from 1 + scale to 1 over a run, slowly first: composition early, nature late.

    As CogVideoX's dynamic guidance (arXiv 2408.06072): ``1 + scale (1 - cos(pi ((N - i) / N)^5)) / 2``.

    Args:
        scale: what is added to 1 at the start.
        done: i, steps made before this one. diffusers puts the timestep there instead, from 999 down to 0.
        num_steps: N.
    """
    return 1 + scale * (1 - math.cos(math.pi * ((num_steps - done) / num_steps) ** 5.0)) / 2
