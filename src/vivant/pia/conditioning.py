"""What PIA looks at and what does not change between steps: pictures, mask, prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from vivant.pia.picture_prompt import SeenPictures, beside
from vivant.pia.unet import Text, UNetMotionModel
from vivant.prompts import Prompts
from vivant.rng import Rng
from vivant.vae.image import AutoencoderKL, DiagonalGaussian


@dataclass(frozen=True)
class Guidance:
    """Scales of one step. Without an `image` scale it is classifier-free guidance by the text alone.

    Attributes:
        text: at 1 and below the prompt is followed as it is, with and without guidance by the picture.
        image: None is off.
    """

    text: float
    image: float | None = None

    @property
    def num_evaluations(self) -> int:
        """How often the network runs: text only 1; with guidance 2; with separate image guidance 3."""
        if self.image is not None:
            return 3
        return 2 if self.text > 1 else 1


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The picture as five channels beside the latents, and the prompts.

    Attributes:
        picture: mask (1) and latents of the picture (4) on every frame, in the network's data type.
        prompts: see `Prompts`.
    """

    picture: Float[Tensor, "b 5 f h w"]
    prompts: Prompts

    def of_frames(self, frames: Sequence[int]) -> Self:
        """The same for some frames. The prompts stay: their keys and values are taken apart, see `Text.of_frames`."""
        return replace(self, picture=self.picture[:, :, list(frames)])


def reader(unet: UNetMotionModel, pictures: SeenPictures | None = None) -> Callable[[Prompts, int], Text]:
    """Keys and values of prompts, computed once and again only when the prompts or the evaluations change.

    Those of `pictures`, which stay the same throughout, are put beside them.
    """

    @lru_cache(maxsize=1)
    def read(prompts: Prompts, num_evaluations: int) -> Text:
        text = unet.read_text(prompts.stacked(num_evaluations).to(unet.device, unet.dtype), prompts.per_frame)
        return text if pictures is None else beside(text, pictures, num_evaluations)

    return read


def encode_still(
    vae: AutoencoderKL, pixels: Float[Tensor, "k 3 i j"], batch: int, rng: Rng
) -> Float[Tensor, "b 4 h w"]:
    """Latents of the pictures: the posterior sampled with `rng`, times the scaling factor.

    Args:
        pixels: one picture or one for each prompt, RGB in [-1, 1].
        batch: number of clips; a multiple of k. Clips of one prompt share the encoding, and the sample too unless
            every clip has its own generator.
    """
    posterior = DiagonalGaussian(vae.encode_moments(pixels.to(vae.device, vae.dtype)).float())
    mean, deviation = posterior.mean, posterior.std
    if rng.per_entry:
        mean, deviation = (x.repeat_interleave(batch // x.shape[0], dim=0) for x in (mean, deviation))
    still = mean + deviation * rng.normal(mean.shape, mean.device)
    return still.repeat_interleave(batch // still.shape[0], dim=0) * vae.settings.scaling_factor


def stills_on_frames(stills: Sequence[Float[Tensor, "b c h w"]], nearest: Sequence[int]) -> Float[Tensor, "b c f h w"]:
    """On every frame the picture that is nearest to it; a view where there is only one.

    Args:
        stills: latents of the pictures.
        nearest: for every frame the index of its picture.
    """
    if len(stills) == 1:
        return rearrange(stills[0], "b c h w -> b c 1 h w").expand(-1, -1, len(nearest), -1, -1)
    return torch.stack(list(stills), dim=2)[:, :, list(nearest)]


def picture_channels(
    stills: Float[Tensor, "b 4 f h w"], affinity: Sequence[float], dtype: torch.dtype
) -> Float[Tensor, "b 5 f h w"]:
    """Mask and pictures: frame i of the mask holds how close frame i stays to its picture."""
    b, _, _, h, w = stills.shape
    mask = repeat(torch.tensor(affinity, device=stills.device), "f -> b 1 f h w", b=b, h=h, w=w)
    return torch.cat([mask, stills], dim=1).to(dtype)
