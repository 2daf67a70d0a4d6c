"""Clips of people as ConsisID's training reads them: latents of the clip and of a picture of the face, and the face.

The networks that see faces never change, and neither does the autoencoder. So all of this can be computed once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from vivant.faces.encoders import GREY, Encoders
from vivant.pocket.avatars import Filmed
from vivant.train.latents import read_stored, store
from vivant.train.samples import Source, collate
from vivant.train.vae import to_unit
from vivant.vae.video import AutoencoderKLCogVideoX

TOGETHER = 16
"""Clips that are encoded together."""
HALF = ("mean", "deviation", "picture_mean", "picture_deviation", "id_cond", "hidden")
"""What is stored in bfloat16."""


@dataclass(frozen=True, eq=False)
class Seen:
    """How clips and faces are seen: by networks that stay as they are."""

    vae: AutoencoderKLCogVideoX
    encoders: Encoders

    @torch.no_grad()
    def moments(
        self, videos: Float[Tensor, "b 3 f i j"]
    ) -> tuple[Float[Tensor, "b g c h w"], Float[Tensor, "b g c h w"]]:
        """Mean and deviation of scaled latents."""
        moments = self.vae.encode_moments(videos.to(self.vae.device, self.vae.dtype)).float().cpu()
        mean, logvar = rearrange(moments, "b (two c) f h w -> two b f c h w", two=2)
        scale = self.vae.settings.scaling_factor
        return scale * mean, scale * torch.exp(0.5 * logvar.clamp(-30.0, 20.0))

    def face(
        self, crop: UInt8[np.ndarray, "h w 3"], portrait: UInt8[np.ndarray, "p p 3"]
    ) -> tuple[Float[Tensor, " e"], Float[Tensor, "d n c"]]:
        """Identity and hidden states of an aligned face, as `Encoders.encode_pixels` finds them in a photo.

        Args:
            crop: white around the face.
            portrait: as the recogniser sees it.
        """
        picture = _planes(crop) / 255
        grey = (picture * picture.new_tensor(GREY)[:, None, None]).sum(0, keepdim=True).expand(3, -1, -1)
        seen = self.encoders.see(grey)
        pooled = seen.pooled / seen.pooled.norm(dim=1, keepdim=True)
        embedding = self.encoders.arcface.embed_crop(_planes(portrait))
        return torch.cat([embedding, pooled], dim=1)[0], torch.cat(list(seen.hidden))

    def clips(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Everything that a loss reads of some clips, given what `raw` reads of each, stacked."""
        mean, deviation = self.moments(rearrange(to_unit(batch["pixels"]), "b f c h w -> b c f h w"))
        picture = self.moments(rearrange(to_unit(batch["crop"]), "b c h w -> b c 1 h w"))
        faces = [self.face(*face) for face in zip(batch["crop"].numpy(), batch["portrait"].numpy(), strict=True)]
        return {
            "mean": mean,
            "deviation": deviation,
            "picture_mean": picture[0],
            "picture_deviation": picture[1],
            "mask": shrunk(batch["face"], mean.shape[1], self.vae.factor),
            "id_cond": torch.stack([identity for identity, _ in faces]),
            "hidden": torch.stack([hidden for _, hidden in faces]),
        }


def raw(clip: Filmed) -> dict[str, Any]:
    """A clip and its face as arrays."""
    return {
        "pixels": clip.pixels,
        "crop": clip.crop,
        "portrait": clip.portrait,
        "face": clip.face,
        "caption": clip.caption,
    }


def _planes(pixels: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 h w"]:
    return rearrange(torch.from_numpy(pixels).float(), "h w c -> c h w")


def shrunk(mask: Bool[Tensor, "b f i j"], num_latents: int, factor: int) -> Float[Tensor, "b g h w"]:
    """How much of each latent is face: the first frame's by itself, the mean of the others' in equal groups."""
    parts = reduce(mask.float(), "b f (h p) (w q) -> b f h w", "mean", p=factor, q=factor)
    rest = (
        reduce(parts[:, 1:], "b (g k) h w -> b g h w", "mean", g=num_latents - 1) if num_latents > 1 else parts[:, 1:]
    )
    return torch.cat([parts[:, :1], rest], dim=1)


@dataclass(frozen=True)
class People:
    """A folder written by `encode_people`, as a source."""

    folder: Path
    num: int

    def __len__(self) -> int:
        return self.num

    def read(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """What is stored of clip `index`, by the names of `Seen.clips`, and its caption."""
        tensors, caption = read_stored(self.folder, index)
        return {**tensors, "caption": caption}


def encode_people(
    source: Source,
    seen: Seen,
    folder: Path,
    what: Mapping[str, Any],
    *,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> People:
    """Encode every clip of a source once, as `vivant.train.latents.encode`."""

    def encoded(group: Sequence[Filmed]) -> dict[str, Tensor]:
        samples = [raw(clip) for clip in group]
        batches = [collate(samples[i : i + TOGETHER]) for i in range(0, len(samples), TOGETHER)]
        parts = [seen.clips(batch) for batch in batches]
        tensors = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
        return {name: value.bfloat16() if name in HALF else value.half() for name, value in tensors.items()}

    store(source, folder, what, _as_it_is, encoded, on_clip=on_clip)
    return People(folder, len(source))


def _as_it_is(clip: Any) -> Any:
    return clip
