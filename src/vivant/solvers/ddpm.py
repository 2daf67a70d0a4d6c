"""DDPM: Ho, Jain and Abbeel, Denoising diffusion probabilistic models, arXiv 2006.11239."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vivant.config import only
from vivant.solvers.schedule import (
    BETAS,
    PREDICTIONS,
    SPACINGS,
    Betas,
    Carry,
    Noise,
    Numbers,
    Prediction,
    Spacing,
    Step,
    Update,
    alphas_cumprod,
    check_choice,
    check_signal,
    diffuse,
    kept_in_range,
    refuse_custom,
    refuse_eta,
    scalars,
    spaced,
    to_x0,
    whole_timesteps,
)

Variance = Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"]
FIXED = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", None)
"""Variances that the network does not predict; None, which other solvers write, is fixed_small."""


@dataclass(frozen=True, kw_only=True)
class DDPMStep(Step):
    """Equation 7: the mean is `from_x0` x0 + `from_x` x, the standard deviation `std`."""

    from_x0: float
    from_x: float
    std: float


@dataclass(frozen=True)
class DDPM:
    """The fields of DDPMScheduler. Predicted variances (learned, learned_range) are refused."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: Betas = only(*BETAS)
    trained_betas: tuple[float, ...] | None = None
    variance_type: Variance | None = only(*FIXED)
    clip_sample: bool = True
    prediction_type: Prediction = only(*PREDICTIONS)
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    clip_sample_range: float = 1.0
    sample_max_value: float = 1.0
    timestep_spacing: Spacing = only(*SPACINGS)
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False

    order: ClassVar[int] = 1
    uses_eta: ClassVar[bool] = False
    add_noise = staticmethod(diffuse)

    @property
    def signal(self) -> Float[Tensor, " t"]:
        """abar of every training timestep."""
        return alphas_cumprod(self, zero_snr=self.rescale_betas_zero_snr)

    def schedule(
        self,
        num_steps: int | None = None,
        *,
        timesteps: Numbers | None = None,
        sigmas: Numbers | None = None,
    ) -> tuple[DDPMStep, ...]:
        """The steps of a run; each leads to the next timestep, the last to the clean sample."""
        check_choice(num_steps, timesteps, sigmas)
        refuse_custom(self, sigmas=sigmas)
        if timesteps is not None:
            told = whole_timesteps(timesteps, self.num_train_timesteps)
        else:
            values = spaced(self.timestep_spacing, self.num_train_timesteps, num_steps, self.steps_offset)
            told = values.round().astype(np.int64)
        abar = self.signal
        ends = [*(abar[int(t)] for t in told[1:]), torch.tensor(1.0)]
        large = self.variance_type in ("fixed_large", "fixed_large_log")
        logarithm = self.variance_type == "fixed_small_log"
        steps = tuple(
            _step(i, int(t), abar[int(t)], end, large=large, logarithm=logarithm)
            for i, (t, end) in enumerate(zip(told, ends, strict=True))
        )
        check_signal(steps, self.prediction_type)
        return steps

    def init_sigma(self, schedule: Sequence[Step]) -> float:
        """1: variance-preserving."""
        return 1.0

    def step(
        self,
        output: Float[Tensor, "*shape"],
        step: DDPMStep,
        x: Float[Tensor, "*shape"],
        carry: Carry,
        noise: Noise,
        eta: float = 0.0,
    ) -> Update:
        """Draw from the posterior of equation 6; noise is drawn at every step but that at t = 0."""
        refuse_eta(self, eta)
        x0 = kept_in_range(to_x0(output, x, step.alpha, step.sigma, self.prediction_type), self)
        mean = step.from_x0 * x0 + step.from_x * x
        return Update(mean + step.std * noise() if step.t > 0 else mean, x0, None)


def _step(index: int, t: int, abar: Tensor, abar_next: Tensor, *, large: bool, logarithm: bool) -> DDPMStep:
    """The scalars of one step between two timesteps that need not be neighbours."""
    alpha, sigma, level = scalars(abar)
    keep = abar / abar_next
    beta = 1 - keep
    small = torch.clamp((1 - abar_next) / (1 - abar) * beta, min=1e-20)
    std = beta**0.5 if large else torch.exp(0.5 * torch.log(small)) if logarithm else small**0.5
    return DDPMStep(
        index=index,
        t=t,
        alpha=alpha,
        sigma=sigma,
        level=level,
        level_next=scalars(abar_next).level,
        from_x0=(abar_next**0.5 * beta / (1 - abar)).item(),
        from_x=(keep**0.5 * (1 - abar_next) / (1 - abar)).item(),
        std=std.item(),
    )
