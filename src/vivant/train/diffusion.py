"""Noise and loss of diffusion training, as the samplers will undo them: x = alpha x0 + sigma eps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from vivant.errors import InputError
from vivant.preflight.models import SCHEDULER
from vivant.solvers.ddim import DDIM
from vivant.train.samples import Draws


@dataclass(frozen=True)
class Noise:
    """How training adds noise.

    Attributes:
        offset: weight of a constant added to the noise of every channel, so that mean colours are learnt at high
            noise levels too, where a linear schedule still shows a little of them.
        snr_limit: weigh a sample's loss by min(SNR, limit) / SNR (arXiv 2303.09556, eq. 5 for eps); 0 weighs all alike.
        high: weigh it further by ((SNR + 1) / SNR) to this power, so that high noise levels, where the text decides
            what moves, count: 0 is the error of the noise, 1 that of the velocity (arXiv 2202.00512), and 0.5 has
            gradients of the same size at all levels.
        skew: draw the timestep T (1 - u^skew) for uniform u: 1 draws all alike, and beyond it high noise levels come
            more often.
    """

    offset: float = 0.0
    snr_limit: float = 0.0
    high: float = 0.0
    skew: float = 1.0

    def __post_init__(self):
        for name in ("offset", "snr_limit", "high"):
            if getattr(self, name) < 0:
                raise InputError("E-TRAIN-SETTING", f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if self.skew < 1:
            raise InputError("E-TRAIN-SETTING", f"skew is {self.skew}; it must be 1 or more.")


_preset: dict[str, Any] = SCHEDULER
PRESET = DDIM(**_preset)
"""DDIM with PIA's schedule: what samples a network is what it was trained for."""


def signal() -> Float[Tensor, " t"]:
    """abar of every timestep, by the preset."""
    return PRESET.signal


def draw_timesteps(draws: Draws, noise: Noise) -> Int[Tensor, " b"]:
    """The noise level of every sample."""
    num = len(PRESET.signal)
    if noise.skew == 1:
        return draws.integers(num)
    return (num * (1 - draws.uniform() ** noise.skew)).long().clamp(max=num - 1)


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
    counted = snr.clamp(max=noise.snr_limit) if noise.snr_limit else snr
    return counted / snr * (1 + 1 / snr) ** noise.high


def eps_loss(
    predicted: Float[Tensor, "b c f h w"], eps: Float[Tensor, "b c f h w"], weights: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Mean squared error of the predicted noise, for each sample, weighed."""
    return weights * (predicted.float() - eps).square().flatten(1).mean(dim=1)
