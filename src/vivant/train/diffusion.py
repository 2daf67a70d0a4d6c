"""Noise and loss of diffusion training, as the samplers will undo them: x = alpha x0 + sigma eps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vivant.errors import InputError
from vivant.preflight import SCHEDULER
from vivant.solvers.ddim import DDIM
from vivant.train.samples import Draws


@dataclass(frozen=True)
class Noise:
    """How training adds noise.

    Attributes:
        offset: weight of a constant added to the noise of every channel, so that mean colours are learnt at high
            noise levels too, where a linear schedule still shows a little of them.
        snr_limit: weigh a sample's loss by min(SNR, limit) / SNR (arXiv 2303.09556, eq. 5 for eps); 0 weighs all alike.
        error: whose error is minimised: that of the noise, ``"eps"``, or of the velocity, ``"v"`` (arXiv 2202.00512),
            which is (SNR + 1) / SNR times as large. By the noise the highest levels, where the text decides what
            moves, count almost nothing.
    """

    offset: float = 0.0
    snr_limit: float = 0.0
    error: Literal["eps", "v"] = "eps"

    def __post_init__(self):
        for name in ("offset", "snr_limit"):
            if getattr(self, name) < 0:
                raise InputError("E-TRAIN-SETTING", f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if self.error not in ("eps", "v"):
            raise InputError("E-TRAIN-SETTING", f"error is {self.error!r}.", "", "Use eps or v.")


_preset: dict[str, Any] = SCHEDULER
PRESET = DDIM(**_preset)
"""DDIM with PIA's schedule: what samples a network is what it was trained for."""


def signal() -> Float[Tensor, " t"]:
    """abar of every timestep, by the preset."""
    return PRESET.signal


def draw_eps(draws: Draws, shape: Sequence[int], noise: Noise) -> Float[Tensor, "b c f h w"]:
    """The noise of every sample, `shape` for each, with its offset."""
    eps = draws.normal(shape)
    return eps + noise.offset * draws.normal((shape[0], 1, 1, 1)) if noise.offset else eps


def add_noise(
    x0: Float[Tensor, "b c f h w"],
    eps: Float[Tensor, "b c f h w"],
    timesteps: Int[Tensor, " b"],
    abar: Float[Tensor, " t"],
) -> Float[Tensor, "b c f h w"]:
    """The noisy latents of each clip at its own timestep, the same for all its frames."""
    level = abar.to(x0.device)[timesteps].view(-1, 1, 1, 1, 1)
    return level.sqrt() * x0 + (1 - level).sqrt() * eps


def weight(timesteps: Int[Tensor, " b"], abar: Float[Tensor, " t"], noise: Noise) -> Float[Tensor, " b"]:
    """What each sample's squared error of the noise counts."""
    abar = abar.to(timesteps.device)
    snr = abar[timesteps] / (1 - abar[timesteps])
    counted = snr + 1 if noise.error == "v" else snr
    return (counted.clamp(max=noise.snr_limit) if noise.snr_limit else counted) / snr


def eps_loss(
    predicted: Float[Tensor, "b c f h w"], eps: Float[Tensor, "b c f h w"], weights: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Mean squared error of the predicted noise, for each sample, weighed."""
    return weights * (predicted.float() - eps).square().flatten(1).mean(dim=1)
