"""Trajectory consistency distillation: Zheng et al., arXiv 2402.19159, algorithm 4 (strategic stochastic sampling).

A network so distilled jumps to any less noisy state. Each step jumps below the level of the next, by the share `eta`
(the paper's gamma) of its time, and returns to it with fresh noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vivant.config import only
from vivant.errors import InputError
from vivant.solvers.lcm import chosen_timesteps
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
    to_eps,
    to_x0,
)


@dataclass(frozen=True, kw_only=True)
class TCDStep(Step):
    """`t_next` is the timestep whose level the step leads to."""

    t_next: int
    is_last: bool


@dataclass(frozen=True)
class TCD:
    """The fields of TCDScheduler.

    The steps are a subset of the `original_inference_steps` that the network was distilled on, and the last leads to
    timestep 0, whatever `timestep_spacing`, `steps_offset`, `set_alpha_to_one` and `timestep_scaling` say;
    configurations of other schedulers carry those.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Betas = only(*BETAS, default="scaled_linear")
    trained_betas: tuple[float, ...] | None = None
    original_inference_steps: int = 50
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    prediction_type: Prediction = only(*PREDICTIONS)
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    timestep_spacing: Spacing = only(*SPACINGS)
    timestep_scaling: float = 10.0
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
        strength: float = 1.0,
    ) -> tuple[TCDStep, ...]:
        """The steps of a run, `strength` and custom timesteps as for `LCM.schedule`."""
        check_choice(num_steps, timesteps, sigmas)
        refuse_custom(self, sigmas=sigmas)
        told = [int(t) for t in chosen_timesteps(self, num_steps, timesteps, strength)]
        levels = [scalars(abar) for abar in self.signal[[*told, 0]]]
        steps = tuple(
            TCDStep(
                index=i,
                t=t,
                alpha=levels[i].alpha,
                sigma=levels[i].sigma,
                level=levels[i].level,
                level_next=levels[i + 1].level,
                t_next=t_next,
                is_last=i == len(told) - 1,
            )
            for i, (t, t_next) in enumerate(zip(told, [*told[1:], 0], strict=True))
        )
        check_signal(steps, self.prediction_type)
        return steps

    def init_sigma(self, schedule: Sequence[Step]) -> float:
        """1: variance-preserving."""
        return 1.0

    def step(
        self,
        output: Float[Tensor, "*shape"],
        step: TCDStep,
        x: Float[Tensor, "*shape"],
        carry: Carry,
        noise: Noise,
        eta: float = 0.0,
    ) -> Update:
        """A jump, and noise up to the next level except after the last. `eta` 0 is deterministic, 1 is LCM's way.

        Raises:
            InputError: E-SOLVER-ETA outside 0..1.
        """
        if not 0.0 <= eta <= 1.0:
            raise InputError("E-SOLVER-ETA", f"eta={eta} is outside 0 to 1.", "0 draws no noise, 1 the most.")
        x0 = kept_in_range(to_x0(output, x, step.alpha, step.sigma, self.prediction_type), self)
        eps = to_eps(output, x, step.alpha, step.sigma, self.prediction_type)
        below = int(torch.floor((1 - eta) * torch.tensor(step.t_next)))
        abar_next, abar_below = self.signal[[step.t_next, below]]  # on the processor, like all scalars
        alpha, sigma, _ = scalars(abar_below)
        x_next = alpha * x0 + sigma * eps
        if eta > 0 and not step.is_last:
            keep = abar_next / abar_below
            x_next = (keep**0.5).item() * x_next + ((1 - keep) ** 0.5).item() * noise()
        return Update(x_next, x0, None)
