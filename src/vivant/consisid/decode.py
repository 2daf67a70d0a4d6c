"""From latents to frames, as the autoencoder makes them ready."""

from collections.abc import Iterator

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vivant.media.output import check_finite
from vivant.vae.video import AutoencoderKLCogVideoX


def decode(
    vae: AutoencoderKLCogVideoX, latents: Float[Tensor, "b f c h w"], num_frames: int
) -> Iterator[Float[Tensor, "k 3 i j"]]:
    """Frames in [0, 1], float32 on the CPU, video after video, in parts as they are ready.

    Args:
        vae: the autoencoder.
        latents: as the run made them.
        num_frames: of each video; those after them are not handed out.

    Raises:
        OutputError: E-OUTPUT-NAN for latents (before anything is decoded) or frames that are not finite.
    """
    check_finite(latents, "The denoised latents")
    z = rearrange(latents, "b f c h w -> b c f h w").to(vae.device, vae.dtype) / vae.settings.scaling_factor
    for video in z.split(1):
        left = num_frames
        for part in vae.decode_frames(video):
            frames = rearrange(part.float(), "1 c f i j -> f c i j")[:left]
            check_finite(frames, "The decoded frames")
            left -= len(frames)
            yield (frames / 2 + 0.5).clamp(0, 1).cpu()
