"""Training ConsisID by the recipe of the original (arXiv 2411.17440, section 3.3; PKU-YuanGroup/ConsisID, train.py).

Clips of a person, a sentence that says what happens, and the face: as a picture, whose latents stand beside those of
the first frame; as an identity; and as what a vision transformer sees of it. The picture may be another one than a
frame of the clip (cross-face), which the data decide. The network predicts the velocity at a random timestep of
CogVideoX's schedule; the original writes the same loss as that of the clean sample, weighed by 1 / (1 - abar). Half of
the clips count where the face is only (dynamic mask loss).

Beyond the original the face is dropped for some clips, so that it can be measured what it does, and a small text
encoder may learn along. The original blurs pictures of faces with a little noise, which is left out.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vivant.consisid.conditioning import Face
from vivant.consisid.decode import decode
from vivant.consisid.generate import Given, Parts, generate
from vivant.consisid.transformer import Block, ConsisIDTransformer3DModel, check_identity
from vivant.errors import InputError
from vivant.faces.encoders import FOLDER
from vivant.media.sheet import grid
from vivant.pipelines.consisid.pipeline_consisid import ConsisIDPipeline
from vivant.placement import MemoryPolicy
from vivant.prompts import Prompts
from vivant.request import ConsisIDRequest
from vivant.rng import Rng
from vivant.schedulers import CogVideoXDPMScheduler
from vivant.text.t5 import encode
from vivant.train.base import check_part
from vivant.train.loop import checkpoint_blocks, trainable
from vivant.train.people import Seen, raw
from vivant.train.samples import Batch, Draws
from vivant.train.vae import to_picture, to_unit
from vivant.train.video_vae import check_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, T5EncoderModel

SCHEDULER: Mapping[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "snr_shift_scale": 1.0,
    "timestep_spacing": "trailing",
}
"""The published scheduler of ConsisID."""


@dataclass(frozen=True)
class ConsisidLoss:
    """What is learnt how. The defaults are those of the original where it has them.

    Attributes:
        mask: part of the clips that count where face and hair are only.
        drop_text: part of the clips whose sentence is emptied, for guidance.
        drop_face: part of the clips whose picture, identity and hidden states are zero.
        drop_picture: part of the other clips of which the picture alone is zero, so that the identity is needed.
        skew: draw the timestep T (1 - u^skew) for uniform u: 1 draws all alike, and beyond it high noise levels come
            more often.
        train_text: the text encoder learns too.
        guidance: of the sheets of samples.
    """

    mask: float = 0.5
    drop_text: float = 0.1
    drop_face: float = 0.0
    drop_picture: float = 0.0
    skew: float = 1.0
    train_text: bool = False
    guidance: float = 6.0

    def __post_init__(self):
        for name in ("mask", "drop_text", "drop_face", "drop_picture"):
            check_part(name, getattr(self, name))
        if self.skew < 1:
            raise InputError("E-TRAIN-SETTING", f"skew is {self.skew}; it must be 1 or more.")


def new_transformer(**config: Any) -> ConsisIDTransformer3DModel:
    """A network with random weights whose blocks change nothing yet: their gates are zero, and so is the result.

    A table of places, where it has one, holds sines and cosines; it does not learn.
    """
    network = ConsisIDTransformer3DModel(**config)
    table, c = network.patch_embed.pos_embedding, network.settings
    if table is not None:
        table[0, c.max_text_seq_length :] = waves(c.grid, c.num_channels)
    for name, p in network.named_parameters():
        if name.startswith("proj_out.") or re.fullmatch(r".*(norm1|norm2|norm_out)\.linear\.(weight|bias)", name):
            torch.nn.init.zeros_(p)
    return network


def waves(grid: tuple[int, int, int], num_channels: int) -> Float[Tensor, "n c"]:
    """Sines and cosines of frame, row and column, a third of the channels each; what remains is zero."""
    half = num_channels // 6
    speeds = 100 ** -(torch.arange(half) / half)
    axes = torch.meshgrid(*(torch.arange(side).float() for side in grid), indexing="ij")
    angles = torch.cat([axis[..., None] * speeds for axis in axes], dim=-1).flatten(0, 2)
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    return F.pad(table, (0, num_channels - table.shape[1]))


@dataclass(frozen=True, eq=False)
class Repository:
    """The components of a ConsisID.

    Attributes:
        faces: the folder that holds `face_encoder`.
    """

    seen: Seen
    text_encoder: "T5EncoderModel"
    tokenizer: "PreTrainedTokenizerBase"
    transformer: ConsisIDTransformer3DModel
    faces: Path

    def save(self, folder: Path) -> None:
        """Write a repository in the published layout, that of its face encoders included."""
        scheduler = CogVideoXDPMScheduler.from_config(SCHEDULER)
        parts = (self.tokenizer, self.text_encoder, self.seen.vae, self.transformer)
        ConsisIDPipeline(*parts, scheduler).save_pretrained(folder)
        shutil.copytree(self.faces / FOLDER, folder / FOLDER, dirs_exist_ok=True)


def check_fits(parts: Repository, face: Face, size: tuple[int, int], num_frames: int) -> None:
    """Refuse (E-TRAIN-SETTING, E-IDENTITY-SHAPE) parts and clips that were not made for each other.

    Args:
        face: as the encoders give it.
        size: height and width of the clips in pixels.
        num_frames: their length.
    """
    c, vae = parts.transformer.settings, parts.seen.vae
    latents = vae.settings.latent_channels
    wanted = {
        "in_channels": 2 * latents,
        "out_channels": latents,
        "sample_height": size[0] // vae.factor,
        "sample_width": size[1] // vae.factor,
        "sample_frames": num_frames,
        "temporal_compression_ratio": vae.settings.temporal_compression_ratio,
        "is_train_face": True,
    }
    for name, value in wanted.items():
        if getattr(c, name) != value:
            text = (
                f"The transformer has {name} = {getattr(c, name)}; with this autoencoder and these clips it is {value}."
            )
            raise InputError("E-TRAIN-SETTING", text)
    check_identity(c, face.id_cond, face.id_vit_hidden)


@dataclass(frozen=True, eq=False)
class Shown:
    """What a row of the sheets of samples is made of."""

    crop: Float[Tensor, "1 3 h w"]
    face: Face
    prompt: str


class ConsisidTask:
    """Predict the velocity of captioned clips of people whose faces are known.

    Args:
        parts: of which the transformer learns, and perhaps the text encoder.
        loss: how.
        shown: for the sheets of samples.
        num_frames: length of the shown clips.
    """

    def __init__(
        self,
        parts: Repository,
        loss: ConsisidLoss,
        shown: Sequence[Shown],
        num_frames: int,
        *,
        gradient_checkpointing: bool = False,
    ):
        check_length(parts.seen.vae, num_frames)
        self.parts, self.loss, self.shown, self.num_frames = parts, loss, shown, num_frames
        self.solver = CogVideoXDPMScheduler.from_config(SCHEDULER).solver
        self.abar = self.solver.signal.float()
        parts.seen.vae.requires_grad_(False)
        parts.text_encoder.requires_grad_(False)
        self.networks = (parts.seen.vae, parts.text_encoder, parts.transformer)
        self.weights = trainable(parts.transformer, "transformer.")
        if loss.train_text:
            # T5's table of words stands there under two names.
            learning = trainable(parts.text_encoder, "text_encoder.")
            self.weights |= {name: p for name, p in learning.items() if not name.endswith("embed_tokens.weight")}
        if gradient_checkpointing:
            checkpoint_blocks(parts.transformer, (Block,))

    @staticmethod
    def prepare(clip: Any, rng: Any) -> dict[str, Any]:
        """What is stored of a clip, or the clip itself."""
        return clip if isinstance(clip, dict) else raw(clip)

    def losses(self, batch: Batch, draws: Draws, dtype: torch.dtype) -> dict[str, Float[Tensor, " b"]]:
        """The error of the velocity of each clip."""
        loss, network = self.loss, self.parts.transformer
        if "pixels" in batch:
            seen = self.parts.seen.clips({name: v.cpu() if isinstance(v, Tensor) else v for name, v in batch.items()})
            batch = {**batch, **{name: value.to(draws.device) for name, value in seen.items()}}
        x0 = batch["mean"] + batch["deviation"] * draws.normal(batch["mean"].shape[1:])
        picture = batch["picture_mean"] + batch["picture_deviation"] * draws.normal(batch["picture_mean"].shape[1:])
        timesteps = draw_timesteps(draws, loss.skew, len(self.abar))
        eps = draws.normal(x0.shape[1:])
        says = draws.uniform() >= loss.drop_text
        is_masked = draws.uniform() < loss.mask
        knows = draws.uniform() >= loss.drop_face
        shows = knows & (draws.uniform() >= loss.drop_picture)
        prompts = [text if said else "" for text, said in zip(batch["caption"], says.tolist(), strict=True)]
        words, _ = encode(self.parts.tokenizer, self.parts.text_encoder, prompts, network.settings.max_text_seq_length)
        noisy, velocity = diffused(x0, eps, self.abar.to(x0.device)[timesteps])
        inputs = torch.cat([noisy, beside(picture * shows.view(-1, 1, 1, 1, 1), x0.shape[1])], dim=2)
        known = knows.view(-1, 1)
        hidden = (batch["hidden"] * known[:, :, None, None]).unbind(1)
        predicted = network.predict(
            inputs,
            network.read_text(words),
            network.modulate(timesteps.float()),
            network.place(x0.shape[1], *x0.shape[3:]),
            network.read_identity(batch["id_cond"] * known, hidden),
        )
        errors = (predicted.float() - velocity).square()
        whole, face = errors.flatten(1).mean(1), masked_mean(errors, batch["mask"])
        return {"loss": torch.where(is_masked, face, whole), "whole": whole.detach(), "face": face.detach()}

    @torch.no_grad()
    def show(self, folder: Path, step: int) -> None:
        """A row for each person: the picture, then the clip, made as a user's is."""
        if not self.shown:
            return
        rows: list[Any] = []
        for row in self.shown:
            frames = self.film(row.crop, row.face, row.prompt, step)
            rows += [to_picture(row.crop[0]), *(to_picture(frame * 2 - 1) for frame in frames)]
        grid(rows, len(self.shown), self.num_frames + 1, gap=2).save(folder / f"{step:08d}.png")

    @torch.no_grad()
    def film(
        self, crop: Float[Tensor, "1 3 h w"], face: Face, prompt: str, seed: int, num_steps: int = 25
    ) -> Float[Tensor, "f 3 h w"]:
        """A clip of a person, 0 to 1."""
        parts, length = self.parts, self.parts.transformer.settings.max_text_seq_length
        text, _ = encode(parts.tokenizer, parts.text_encoder, [prompt, ""], length)
        positive, negative = text.split(1)
        request = ConsisIDRequest(
            prompt=(prompt,),
            num_frames=self.num_frames,
            height=crop.shape[2],
            width=crop.shape[3],
            num_inference_steps=num_steps,
            guidance_scale=self.loss.guidance,
            max_sequence_length=length,
        )
        memory = MemoryPolicy(str(parts.transformer.device))
        run = Parts(parts.seen.vae, parts.transformer, self.solver, memory)
        given = Given(crop, Prompts(positive, negative), face)
        latents = generate(run, request, given, Rng.of(torch.Generator().manual_seed(seed), 1))
        return torch.cat(list(decode(parts.seen.vae, latents, self.num_frames)))

    def export(self, folder: Path) -> None:
        """A repository that every loader reads."""
        self.parts.save(folder)


def shown_of(seen: Seen, clip: Any) -> Shown:
    """A row of the sheets from a clip of the data."""
    identity, hidden = seen.face(clip.crop, clip.portrait)
    return Shown(
        to_unit(torch.from_numpy(clip.crop)[None]),
        Face(identity[None], tuple(states[None] for states in hidden)),
        clip.caption,
    )


def draw_timesteps(draws: Draws, skew: float, num: int) -> Int[Tensor, " b"]:
    """The noise level of every clip, see `ConsisidLoss.skew`."""
    return (num * (1 - draws.uniform() ** skew)).long().clamp(max=num - 1)


def diffused(
    x0: Float[Tensor, "b f c h w"], eps: Float[Tensor, "b f c h w"], abar: Float[Tensor, " b"]
) -> tuple[Float[Tensor, "b f c h w"], Float[Tensor, "b f c h w"]]:
    """Noisy latents, alpha x0 + sigma eps, and their velocity, alpha eps - sigma x0 (arXiv 2202.00512, appendix D)."""
    alpha, sigma = (level.sqrt().view(-1, 1, 1, 1, 1) for level in (abar, 1 - abar))
    return alpha * x0 + sigma * eps, alpha * eps - sigma * x0


def beside(picture: Float[Tensor, "b k c h w"], num_latents: int) -> Float[Tensor, "b f c h w"]:
    """Latents of the face's picture on the first frame, and zeros after it."""
    return F.pad(picture, (0, 0, 0, 0, 0, 0, 0, num_latents - picture.shape[1]))


def masked_mean(errors: Float[Tensor, "b f c h w"], mask: Float[Tensor, "b f h w"]) -> Float[Tensor, " b"]:
    """The mean of each clip's errors where the mask is 1; where there is no face at all, that of all."""
    weights = repeat(mask, "b f h w -> b f c h w", c=errors.shape[2]).flatten(1)
    seen: Bool[Tensor, " b"] = weights.sum(1) > 0
    weights = torch.where(seen[:, None], weights, 1.0)
    return (rearrange(errors, "b f c h w -> b (f c h w)") * weights).sum(1) / weights.sum(1)
