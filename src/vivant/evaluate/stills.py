"""How well an autoencoder reconstructs, and how well a base follows its text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vivant.evaluate.recogniser import Answers, Recogniser, truth
from vivant.pocket.world import DrawnClips, Scene, Style, caption
from vivant.text.clip import encode
from vivant.train.base import Repository
from vivant.train.sampling import draw_stills
from vivant.train.vae import to_bytes, to_unit
from vivant.vae.image import AutoencoderKL

GUIDANCE = 5.0
NUM_STEPS = 25


@torch.no_grad()
def reconstruction(vae: AutoencoderKL, pixels: UInt8[Tensor, "n h w 3"]) -> Float[Tensor, " n"]:
    """PSNR of every picture in dB after encoding to the most likely latents and decoding, in bytes of RGB."""
    mean, _ = vae.encode_moments(to_unit(pixels).to(vae.dtype)).chunk(2, dim=1)
    seen = to_bytes(vae.decode_tensor(mean))
    error = (seen.float() - pixels.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / error)


@dataclass(frozen=True)
class TextControl:
    """Shares of pictures, 0 to 1, in which the recogniser sees what the text says.

    Attributes:
        kind, colour, style: each alone.
        both: kind and colour at once.
        num: how many pictures.
    """

    kind: float
    colour: float
    both: float
    style: float
    num: int

    @classmethod
    def of(cls, answers: Answers, scenes: Sequence[Scene]) -> "TextControl":
        """Compare answers with what was to be seen."""
        wanted = [truth(scene) for scene in scenes]
        right = {
            name: getattr(answers, name).cpu() == torch.tensor([said[name] for said in wanted])
            for name in Answers._fields
        }
        shares = {name: value.float().mean().item() for name, value in right.items()}
        return cls(**shares, both=(right["kind"] & right["colour"]).float().mean().item(), num=len(scenes))


def held_out(style: Style, num: int = 200) -> list[Scene]:
    """Scenes that training never draws."""
    source = DrawnClips(num, 1, 64, style=style, split="held out")
    scenes = [source.scene(i) for i in range(num)]
    return [scene for scene in scenes if scene is not None]


@torch.no_grad()
def draw(parts: Repository, scenes: Sequence[Scene], size: int = 64, batch: int = 50) -> UInt8[Tensor, "n h w 3"]:
    """What a base draws for the canonical captions of scenes, scene i from seed i."""
    side = size // parts.vae.factor
    pictures: list[Tensor] = []
    for first in range(0, len(scenes), batch):
        prompts = [caption(scene, with_motion=False) for scene in scenes[first : first + batch]]
        text = encode(parts.tokenizer, parts.text_encoder, [*prompts, ""])
        seeds = range(first, first + len(prompts))
        z = draw_stills(
            parts.unet, text[:-1], text[-1:], (side, side), num_steps=NUM_STEPS, guidance=GUIDANCE, seeds=seeds
        )
        pictures.append(to_bytes(parts.vae.decode_tensor(z / parts.vae.settings.scaling_factor)))
    return torch.cat(pictures)


def judge(recogniser: Recogniser, pixels: UInt8[Tensor, "n h w 3"], scenes: Sequence[Scene]) -> TextControl:
    """What the recogniser says of pictures that are to show the given scenes."""
    return TextControl.of(recogniser.answers(to_unit(pixels)), scenes)
