"""Training a text-to-image base: its UNet and text encoder together, and later its style alone, in full or by LoRA."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from vivant.config import dump_json
from vivant.errors import InputError
from vivant.media.sheet import grid
from vivant.pia.layers import ResnetBlock, SpatialTransformer
from vivant.pia.unet import UNet2DConditionModel
from vivant.pipelines.components import entry_of, save_component
from vivant.preflight.models import SCHEDULER
from vivant.schedulers import DDIMScheduler
from vivant.text.clip import encode
from vivant.train import lora
from vivant.train.diffusion import Noise, add_noise, draw_eps, draw_timesteps, eps_loss, signal, weight
from vivant.train.loop import checkpoint_blocks, trainable
from vivant.train.samples import Batch, Draws
from vivant.train.sampling import draw_stills
from vivant.train.vae import to_picture, to_unit
from vivant.vae.image import AutoencoderKL

if TYPE_CHECKING:
    from transformers import CLIPTextModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Repository:
    """The components of a base."""

    vae: AutoencoderKL
    text_encoder: "CLIPTextModel"
    tokenizer: "PreTrainedTokenizerBase"
    unet: UNet2DConditionModel

    def save(self, folder: Path, unet: UNet2DConditionModel | None = None) -> None:
        """Write a repository in the published layout; `unet` in place of the own one."""
        parts: dict[str, Any] = {
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "unet": unet or self.unet,
            "scheduler": DDIMScheduler(**SCHEDULER),
        }
        index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
        for name, part in parts.items():
            save_component(part, folder / name, None, "10GB")
            index[name] = ["transformers", "CLIPTokenizer"] if name == "tokenizer" else list(entry_of(part))
        dump_json(index, folder / "model_index.json")


@dataclass(frozen=True)
class BaseLoss:
    """What is learnt how.

    Attributes:
        noise: see `diffusion.Noise`.
        drop_text: part of the samples whose caption is emptied, for guidance.
        train_text: the text encoder learns too.
    """

    noise: Noise = Noise()
    drop_text: float = 0.1
    train_text: bool = True

    def __post_init__(self):
        check_part("drop_text", self.drop_text)


def check_part(name: str, value: float) -> None:
    """Refuse (E-TRAIN-SETTING) what is no part of a whole."""
    if not 0 <= value <= 1:
        raise InputError("E-TRAIN-SETTING", f"{name} is {value}; it must be 0 to 1.")


class BaseTask:
    """Predict the noise of captioned stills. With `rank` only a low-rank change of the UNet learns."""

    def __init__(
        self,
        parts: Repository,
        loss: BaseLoss,
        shown: Sequence[str],
        size: tuple[int, int],
        *,
        rank: lora.Rank | None = None,
        gradient_checkpointing: bool = False,
    ):
        if rank is not None and loss.train_text:
            raise InputError(
                "E-TRAIN-SETTING",
                "A low-rank change is of the UNet alone.",
                "",
                "Set train_text = false, or drop rank.",
            )
        self.parts, self.loss, self.shown, self.size, self.rank = parts, loss, shown, size, rank
        self.networks = (parts.vae, parts.text_encoder, parts.unet)
        self.abar = signal()
        for frozen in (parts.vae, parts.text_encoder):
            frozen.requires_grad_(False)
        if rank is None:
            self.weights = trainable(parts.unet, "unet.")
        else:
            self.weights = lora.attach(parts.unet.float(), rank)
        if loss.train_text:
            self.weights |= trainable(parts.text_encoder, "text_encoder.")
        parts.vae.chunk_size = 1 << 30
        if gradient_checkpointing:
            checkpoint_blocks(parts.unet, (ResnetBlock, SpatialTransformer))

    @staticmethod
    def prepare(clip: Any, rng: Any) -> dict[str, Any]:
        """The first frame, as pixels or as latents."""
        return still_of(clip, 0)

    def losses(self, batch: Batch, draws: Draws, dtype: torch.dtype) -> dict[str, Float[Tensor, " b"]]:
        """The weighed error of the noise of each still."""
        x0 = latents_of(batch, self.parts.vae, draws, dtype)[:, :, None]
        timesteps = draw_timesteps(draws, self.loss.noise)
        eps = draw_eps(draws, x0.shape[1:], self.loss.noise)
        kept = draws.uniform() >= self.loss.drop_text
        prompts = [text if keep else "" for text, keep in zip(batch["caption"], kept.tolist(), strict=True)]
        unet = self.parts.unet
        text = unet.read_text(encode(self.parts.tokenizer, self.parts.text_encoder, prompts).to(dtype))
        noisy = add_noise(x0, eps, timesteps, self.abar)
        predicted = unet.predict(noisy.to(dtype), timesteps, text)
        weights = weight(timesteps, self.abar, self.loss.noise)
        loss = eps_loss(predicted, eps, weights)
        return {"loss": loss, "high noise": _mean_where(loss, timesteps >= len(self.abar) // 2)}

    @torch.no_grad()
    def show(self, folder: Path, step: int) -> None:
        """The prompts of the recipe, always with the same noise."""
        parts = self.parts
        text = encode(parts.tokenizer, parts.text_encoder, [*self.shown, ""])
        z = draw_stills(parts.unet, text[:-1], text[-1:], self.size) / parts.vae.settings.scaling_factor
        pictures = [to_picture(image) for image in parts.vae.decode_tensor(z)]
        columns = min(8, len(pictures))
        grid(pictures, -(-len(pictures) // columns), columns, gap=2).save(folder / f"{step:08d}.png")

    def export(self, folder: Path) -> None:
        """A repository that every loader reads; with `rank` also the change alone, as `lora.safetensors`."""
        config = self.parts.unet.config
        if self.rank is None:
            state = {name: value.detach().clone() for name, value in self.parts.unet.state_dict().items()}
        else:
            state = lora.merged(self.parts.unet)
        self.parts.save(folder, UNet2DConditionModel.from_state(config, state))
        if self.rank is not None:
            lora.save(self.weights, self.rank, folder / "lora.safetensors")


def _mean_where(values: Float[Tensor, " b"], where: Tensor) -> Float[Tensor, " b"]:
    """Twice the values of one half of the noise levels and zero elsewhere: their mean over batches is that half's."""
    return torch.where(where, 2 * values.detach(), 0.0)


def still_of(clip: Any, frame: int) -> dict[str, Any]:
    """One frame of a clip of either kind."""
    if hasattr(clip, "mean"):
        return {"mean": clip.mean[frame], "deviation": clip.deviation[frame], "caption": clip.caption}
    return {"pixels": clip.pixels[frame], "caption": clip.caption}


def latents_of(batch: Batch, vae: AutoencoderKL, draws: Draws, dtype: torch.dtype) -> Float[Tensor, "b *f c h w"]:
    """Sampled latents of stills or clips, scaled, from pixels or from moments that were stored."""
    if "mean" in batch:
        return batch["mean"] + batch["deviation"] * draws.normal(batch["mean"].shape[1:])
    pixels = to_unit(batch["pixels"]).to(dtype)
    with torch.no_grad():
        moments = vae.encode_moments(pixels.flatten(0, -4)).float()
    mean, logvar = moments.unflatten(0, pixels.shape[:-3]).chunk(2, dim=-3)
    sampled = mean + torch.exp(0.5 * logvar.clamp(-30.0, 20.0)) * draws.normal(mean.shape[1:])
    return vae.settings.scaling_factor * sampled
