"""A small PIA in memory: components filled by the rule, and what a call needs beside them."""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

import tiny
import tiny_repo
from vivant.pia.affinity import curve
from vivant.pia.motion import MotionAdapter
from vivant.pia.unet import UNet2DConditionModel, UNetMotionModel
from vivant.pipelines.pia import PIAPipeline
from vivant.schedulers import DDIMScheduler
from vivant.text.clip import load_tokenizer
from vivant.vae.image import AutoencoderKL

FRAMES, HEIGHT, WIDTH = 3, 48, 80


@cache
def base() -> UNet2DConditionModel:
    """The base UNet, the same object at every call."""
    return tiny.fill(UNet2DConditionModel.from_config(tiny.UNET2D))


@cache
def adapter() -> MotionAdapter:
    """The motion adapter, likewise."""
    return tiny.fill(MotionAdapter.from_config(tiny.ADAPTER))


@cache
def vae() -> AutoencoderKL:
    """The autoencoder, likewise."""
    return tiny.fill(AutoencoderKL.from_config(tiny.VAE))


@cache
def _text() -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp())
    tiny_repo.write_tokenizer(folder)
    return {"text_encoder": tiny_repo.text_encoder(), "tokenizer": load_tokenizer(folder)}


@cache
def unet(numerics: str = "diffusers") -> UNetMotionModel:
    """The assembled network, the same object at every call."""
    return UNetMotionModel.from_unet2d(base(), adapter(), numerics=numerics)


def pipeline(scheduler: Any = None, **parts: Any) -> PIAPipeline:
    """A new pipeline around the shared components, quiet; those in `parts` replace them."""
    scheduler = scheduler or DDIMScheduler.from_config(tiny.SCHEDULER)
    unet().disable_freeu()
    given = {"vae": vae(), **_text(), "unet": unet(), "scheduler": scheduler, **parts}
    pipe = PIAPipeline(**given)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(seed: int = 5, num: int = 1) -> torch.Tensor:
    """Pictures of the clip's size in [0, 1]."""
    return torch.rand(num, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 3) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


def arguments(**changes: Any) -> dict[str, Any]:
    """Arguments of a short call that returns latents."""
    return {
        "image": picture(),
        "prompt": "a cat in a field",
        "negative_prompt": "dark, sketches",
        "num_frames": FRAMES,
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": 2,
        "output_type": "latent",
        "generator": seeded(),
        **changes,
    }


def run(pipe: PIAPipeline, **changes: Any) -> Any:
    """The frames of such a call."""
    return pipe(**arguments(**changes)).frames


@torch.no_grad()
def by_hand(
    pipe: PIAPipeline, combine: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor], num_steps: int
) -> torch.Tensor:
    """What `run` should give, from public parts alone, one evaluation at a time.

    Args:
        pipe: a pipeline with a scheduler that does not draw.
        combine: from the step and the predictions with neither picture nor prompt, with the negative prompt, and with
            the prompt, to the one that the scheduler gets.
        num_steps: denoising steps.
    """
    generator = seeded()
    x = torch.randn(1, 4, FRAMES, HEIGHT // 8, WIDTH // 8, generator=generator)
    still = pipe.vae.encode(picture() * 2 - 1).latent_dist.sample(generator) * pipe.vae.config.scaling_factor
    mask = torch.tensor(curve(0, FRAMES)).reshape(1, 1, FRAMES, 1, 1).expand(-1, -1, -1, *x.shape[3:])
    seen = torch.cat([mask, still[:, :, None].expand_as(x)], dim=1)
    positive, negative = pipe.encode_prompt("a cat in a field", negative_prompt="dark, sketches")
    assert negative is not None
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(num_steps)
    for i, t in enumerate(scheduler.timesteps):
        views = ((torch.zeros_like(seen), negative), (seen, negative), (seen, positive))
        outputs = [pipe.unet(torch.cat([x, view], dim=1), t, text).sample for view, text in views]
        x = scheduler.step(combine(i, *outputs), t, x).prev_sample
    return x
