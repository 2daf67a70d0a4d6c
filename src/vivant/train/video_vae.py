"""Training an autoencoder of videos: AutoencoderKLCogVideoX at any size."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from vivant.errors import InputError
from vivant.media.sheet import grid
from vivant.train.loop import checkpoint_blocks, trainable
from vivant.train.samples import Batch, Clip, Draws
from vivant.train.vae import VaeLoss, gradient_difference, to_picture, to_unit
from vivant.vae.video import AutoencoderKLCogVideoX, ResnetBlock, SpatialResnetBlock


@dataclass(frozen=True)
class VideoVaeLoss(VaeLoss):
    """Weights of what is minimised, and how much of each clip is seen.

    Attributes:
        crop: pixels a side of the random square that is seen of a clip; 0 shows all. Smaller squares are more clips in
            the same time, but the norms see less than they will.
    """

    crop: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.crop < 0:
            raise InputError("E-TRAIN-SETTING", f"crop is {self.crop}; it must be 0 or more.")


def check_length(vae: AutoencoderKLCogVideoX, num_frames: int) -> None:
    """Refuse (E-TRAIN-SETTING) clips that are not as long after decoding as they were: those of 8k + 1 frames are."""
    each = 2 * vae.settings.temporal_compression_ratio
    if (num_frames - 1) % each:
        text = f"num_frames is {num_frames}; this autoencoder gives {each}k + 1 frames and no other number."
        raise InputError("E-TRAIN-SETTING", text, "", f"Use {num_frames // each * each + 1}.")


class VideoVaeTask:
    """Reconstruct clips through sampled latents."""

    def __init__(
        self,
        vae: AutoencoderKLCogVideoX,
        loss: VideoVaeLoss,
        shown: UInt8[Tensor, "k f h w 3"],
        *,
        gradient_checkpointing: bool = False,
    ):
        check_length(vae, shown.shape[1])
        self.vae, self.loss, self.shown = vae, loss, rearrange(to_unit(shown), "k f c h w -> k c f h w")
        self.networks, self.weights = (vae,), trainable(vae)
        self.prepare = self._prepare
        if gradient_checkpointing:
            checkpoint_blocks(vae, (ResnetBlock, SpatialResnetBlock))

    def _prepare(self, clip: Clip, rng: Any) -> dict[str, Any]:
        """The clip or a square of it."""
        pixels, side = clip.pixels, self.loss.crop
        if side:
            top, left = (int(rng.integers(max(0, size - side) + 1)) for size in pixels.shape[1:3])
            pixels = pixels[:, top : top + side, left : left + side]
        return {"pixels": pixels}

    def losses(self, batch: Batch, draws: Draws, dtype: torch.dtype) -> dict[str, Float[Tensor, " b"]]:
        """Reconstruction and divergence of each clip."""
        x = rearrange(to_unit(batch["pixels"]), "b f c h w -> b c f h w")
        mean, logvar = self.vae.encode_moments(x.to(dtype)).float().chunk(2, dim=1)
        logvar = logvar.clamp(-30.0, 20.0)
        z = mean + torch.exp(0.5 * logvar) * draws.normal(mean.shape[1:])
        y = self.vae.decode_tensor(z.to(dtype)).float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
        absolute, squared = (y - x).abs(), (y - x).square()
        parts = {name: value.flatten(1).mean(1) for name, value in (("l1", absolute), ("l2", squared), ("kl", kl))}
        made, given = (rearrange(video, "b c f h w -> (b f) c h w") for video in (y, x))
        edges = gradient_difference(made, given).unflatten(0, (len(x), -1)).mean(1)
        loss = parts["l1"] + self.loss.squared * parts["l2"] + self.loss.gradient * edges + self.loss.kl * parts["kl"]
        psnr = -10 * torch.log10(parts["l2"].detach() / 4)
        return {"loss": loss, **parts, "edges": edges, "psnr": psnr}

    @torch.no_grad()
    def show(self, folder: Path, step: int) -> None:
        """Clips above, reconstructions of their most likely latents below each."""
        rows: list[Any] = []
        for clip in self.shown:
            seen = self.vae.decode_tensor(self._latents(clip[None]))[0].float()
            rows += [to_picture(frame) for film in (clip, seen) for frame in film.unbind(1)]
        grid(rows, 2 * len(self.shown), self.shown.shape[2], gap=2).save(folder / f"{step:08d}.png")

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Write the network; `scaling_factor` gives the latents of what is shown a standard deviation of one."""
        scale = round(1 / self._latents(self.shown).std().item(), 5)
        state = {name: value.detach().clone() for name, value in self.vae.state_dict().items()}
        AutoencoderKLCogVideoX.from_state({**self.vae.config, "scaling_factor": scale}, state).save_pretrained(folder)

    def _latents(self, x: Float[Tensor, "k 3 f i j"]) -> Float[Tensor, "k c g h w"]:
        return self.vae.encode_moments(x.to(self.vae.device)).chunk(2, dim=1)[0]
