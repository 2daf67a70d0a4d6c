"""DDIM: Song, Meng and Ermon, Denoising diffusion implicit models, arXiv 2010.02502."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vivant.config import only
from vivant.errors import InputError
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
    scalars,
    spaced,
    to_eps,
    to_x0,
    whole_timesteps,
)


@dataclass(frozen=True, kw_only=True)
class DDIMStep(Step):
    """`alpha_next` and `variance_next` (1 - abar) of the state that follows; `spread` is sigma_t at eta 1."""

    alpha_next: float
    variance_next: float
    spread: float


@dataclass(frozen=True)
class DDIM:
    """The fields of DDIMScheduler.

    `clip_sample` defaults to True as in the reference: right for pixels in [-1, 1], harmful for latents.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: Betas = only(*BETAS)
    trained_betas: tuple[float, ...] | None = None
    clip_sample: bool = True
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    prediction_type: Prediction = only(*PREDICTIONS)
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    clip_sample_range: float = 1.0
    sample_max_value: float = 1.0
    timestep_spacing: Spacing = only(*SPACINGS)
    rescale_betas_zero_snr: bool = False

    order: ClassVar[int] = 1
    uses_eta: ClassVar[bool] = True
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
    ) -> tuple[DDIMStep, ...]:
        """The steps of a run; custom timesteps lead from each to the next, and from the last to the clean sample."""
        check_choice(num_steps, timesteps, sigmas)
        refuse_custom(self, sigmas=sigmas)
        if timesteps is not None:
            told = whole_timesteps(timesteps, self.num_train_timesteps)
            after = np.append(told[1:], -1)
        else:
            values = spaced(self.timestep_spacing, self.num_train_timesteps, num_steps, self.steps_offset)
            told = values.round().astype(np.int64)
            # parity: test_ddim_strides_by_whole_timesteps. With linspace (and trailing, when the number of steps does
            # not divide the training's) the state is taken to the timestep one stride below, not to the next one.
            after = told - self.num_train_timesteps // len(told)
        abar = self.signal
        final = torch.tensor(1.0) if self.set_alpha_to_one else abar[0]
        steps = tuple(
            _step(i, int(t), abar[int(t)], abar[int(n)] if n >= 0 else final)
            for i, (t, n) in enumerate(zip(told, after, strict=True))
        )
        check_signal(steps, self.prediction_type)
        return steps

    def init_sigma(self, schedule: Sequence[Step]) -> float:
        """1: variance-preserving."""
        return 1.0

    def step(
        self,
        output: Float[Tensor, "*shape"],
        step: DDIMStep,
        x: Float[Tensor, "*shape"],
        carry: Carry,
        noise: Noise,
        eta: float = 0.0,
        *,
        rederive_eps: bool = False,
    ) -> Update:
        """Equation 12. `eta` 0 is deterministic, 1 is DDPM.

        Args:
            output, step, x, carry, noise: as in `Solver.step`.
            eta: 0 to 1.
            rederive_eps: take the direction from the clipped sample instead of the network's output.

        Raises:
            InputError: E-SOLVER-ETA outside 0..1.
        """
        if not 0.0 <= eta <= 1.0:
            raise InputError("E-SOLVER-ETA", f"eta={eta} is outside 0 to 1.", "0 is DDIM, 1 is DDPM.")
        x0 = kept_in_range(to_x0(output, x, step.alpha, step.sigma, self.prediction_type), self)
        if rederive_eps:
            eps = (x - step.alpha * x0) / step.sigma
        else:
            eps = to_eps(output, x, step.alpha, step.sigma, self.prediction_type)
        std = eta * torch.tensor(step.spread)
        direction = (step.variance_next - std**2) ** 0.5
        x_next = step.alpha_next * x0 + direction.item() * eps
        if eta > 0:
            x_next = x_next + std.item() * noise()
        return Update(x_next, x0, None)


def _step(index: int, t: int, abar: Tensor, abar_next: Tensor) -> DDIMStep:
    """The scalars of one step, from abar before and after it."""
    alpha, sigma, level = scalars(abar)
    alpha_next, _, level_next = scalars(abar_next)
    variance = (1 - abar_next) / (1 - abar) * (1 - abar / abar_next)  # equation 16
    return DDIMStep(
        index=index,
        t=t,
        alpha=alpha,
        sigma=sigma,
        level=level,
        level_next=level_next,
        alpha_next=alpha_next,
        variance_next=(1 - abar_next).item(),
        spread=(variance**0.5).item(),
    )
