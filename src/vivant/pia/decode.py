"""From latents to frames, a few at a time."""

from collections.abc import Iterator

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vivant.media.output import check_finite
from vivant.vae.image import AutoencoderKL


def decode(vae: AutoencoderKL, latents: Float[Tensor, "b c f h w"]) -> Iterator[Float[Tensor, "k 3 i j"]]:
    """Frames in [0, 1], float32 on the CPU, clip after clip, in parts of the autoencoder's chunk size.

    Raises:
        OutputError: E-OUTPUT-NAN for latents (before anything is decoded) or frames that are not finite.
    """
    check_finite(latents, "The denoised latents")
    z = rearrange(latents, "b c f h w -> (b f) c h w").to(vae.device, vae.dtype) / vae.settings.scaling_factor
    for part in z.split(max(1, vae.chunk_size)):
        with torch.no_grad():
            frames = vae.decode_tensor(part).float()
        check_finite(frames, "The decoded frames")
        yield (frames / 2 + 0.5).clamp(0, 1).cpu()
