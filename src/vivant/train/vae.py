"""Training an autoencoder of pictures: AutoencoderKL at any size."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from vivant.errors import InputError
from vivant.media.sheet import grid
from vivant.train.loop import checkpoint_blocks, trainable
from vivant.train.samples import Batch, Clip, Draws
from vivant.vae.image import Attention, AutoencoderKL, ResnetBlock


@dataclass(frozen=True)
class VaeLoss:
    """Weights of what is minimised, beside the mean absolute difference of pixels in [-1, 1].

    Attributes:
        squared: of the mean squared difference, which is what PSNR measures.
        gradient: of the absolute difference of neighbouring pixels' differences at full, half and quarter size: edges.
        kl: of the divergence of the latents from a standard normal distribution, for each latent.
    """

    squared: float = 1.0
    gradient: float = 0.5
    kl: float = 1e-4

    def __post_init__(self):
        if min(self.squared, self.gradient, self.kl) < 0:
            raise InputError("E-TRAIN-SETTING", "Weights of a loss must be 0 or more.")


class VaeTask:
    """Reconstruct single frames through sampled latents."""

    def __init__(
        self,
        vae: AutoencoderKL,
        loss: VaeLoss,
        shown: Float[Tensor, "k 3 h w"],
        *,
        gradient_checkpointing: bool = False,
    ):
        self.vae, self.loss, self.shown = vae, loss, shown
        self.networks, self.weights = (vae,), trainable(vae)
        vae.chunk_size = 1 << 30  # a batch as a whole
        if gradient_checkpointing:
            checkpoint_blocks(vae, (ResnetBlock, Attention))

    @staticmethod
    def prepare(clip: Clip, rng: Any) -> dict[str, Any]:
        """One random frame."""
        return {"pixels": clip.pixels[int(rng.integers(len(clip.pixels)))]}

    def losses(self, batch: Batch, draws: Draws, dtype: torch.dtype) -> dict[str, Float[Tensor, " b"]]:
        """Reconstruction and divergence of each picture."""
        x = to_unit(batch["pixels"])
        mean, logvar = self.vae.encode_moments(x.to(dtype)).float().chunk(2, dim=1)
        logvar = logvar.clamp(-30.0, 20.0)
        z = mean + torch.exp(0.5 * logvar) * draws.normal(mean.shape[1:])
        y = self.vae.decode_tensor(z.to(dtype)).float()
        absolute, squared = ((y - x).abs(), (y - x).square())
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
        parts = {name: value.flatten(1).mean(1) for name, value in (("l1", absolute), ("l2", squared), ("kl", kl))}
        edges = gradient_difference(y, x)
        loss = parts["l1"] + self.loss.squared * parts["l2"] + self.loss.gradient * edges + self.loss.kl * parts["kl"]
        psnr = -10 * torch.log10(parts["l2"].detach() / 4)
        return {"loss": loss, **parts, "edges": edges, "psnr": psnr}

    @torch.no_grad()
    def show(self, folder: Path, step: int) -> None:
        """Pictures above, reconstructions of their most likely latents below."""
        seen = self.vae.decode_tensor(self._latents()).float()
        pictures = [to_picture(image) for image in (*self.shown, *seen)]
        grid(pictures, 2, len(self.shown), gap=2).save(folder / f"{step:08d}.png")

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Write the network; `scaling_factor` gives the latents of what is shown a standard deviation of one."""
        scale = round(1 / self._latents().std().item(), 5)
        state = {name: value.detach().clone() for name, value in self.vae.state_dict().items()}
        AutoencoderKL.from_state({**self.vae.config, "scaling_factor": scale}, state).save_pretrained(folder)

    def _latents(self) -> Float[Tensor, "k c h w"]:
        return self.vae.encode_moments(self.shown.to(self.vae.device)).chunk(2, dim=1)[0]


def to_unit(pixels: UInt8[Tensor, "... h w 3"]) -> Float[Tensor, "... 3 h w"]:
    """Bytes as the autoencoder reads them, in [-1, 1]."""
    return rearrange(pixels, "... h w c -> ... c h w").float() / 127.5 - 1


def to_picture(x: Float[Tensor, "3 h w"]) -> Image.Image:
    """What the autoencoder gives, as a picture."""
    return Image.fromarray(to_bytes(x).cpu().contiguous().numpy())


def to_bytes(x: Float[Tensor, "... 3 h w"]) -> UInt8[Tensor, "... h w 3"]:
    """The inverse of `to_unit`, clipped and rounded."""
    values = (x.float() / 2 + 0.5).clamp(0, 1) * 255
    return rearrange(values.round().to(torch.uint8), "... c h w -> ... h w c")


def gradient_difference(
    y: Float[Tensor, "b c h w"], x: Float[Tensor, "b c h w"], num_scales: int = 3
) -> Float[Tensor, " b"]:
    """Mean absolute difference of the slopes of two pictures, over sizes that halve: what a blur loses."""
    total = torch.zeros(len(x), device=x.device)
    difference = y - x
    for scale in range(num_scales):
        if scale:
            difference = F.avg_pool2d(difference, 2)
        for dim in (-1, -2):
            total = total + difference.diff(dim=dim).abs().flatten(1).mean(1) / (2 * num_scales)
    return total
