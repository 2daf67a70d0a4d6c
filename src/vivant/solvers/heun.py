"""Heun's second-order method in sigma space: Karras et al., arXiv 2206.00364, algorithm 1.

Every sigma but the last costs two evaluations, which are two steps of the schedule: an Euler step, and its correction
by the slope found where it led. The last step, to sigma 0, is Euler alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from vivant.config import only
from vivant.solvers.schedule import (
    BETAS,
    PREDICTIONS,
    Betas,
    Carry,
    Noise,
    Numbers,
    Prediction,
    Spacing,
    Step,
    Update,
    alphas_cumprod,
    diffuse,
    refuse_eta,
)
from vivant.solvers.sigmas import curve_of, euler_init_sigma, euler_scalars, euler_track, euler_x0


@dataclass(frozen=True, kw_only=True)
class HeunStep(Step):
    """`corrects` marks the second evaluation; `delta` is the change of sigma of the pair."""

    corrects: bool
    delta: float


@dataclass(frozen=True)
class Heun:
    """The fields of HeunDiscreteScheduler."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Betas = only(*BETAS)
    trained_betas: tuple[float, ...] | None = None
    prediction_type: Prediction = only(*PREDICTIONS)
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = only(False, None)
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    timestep_spacing: Spacing = only("linspace", "leading", "trailing")
    steps_offset: int = 0

    order: ClassVar[int] = 2
    uses_eta: ClassVar[bool] = False
    add_noise = staticmethod(diffuse)

    def __post_init__(self):
        curve_of(self)  # refuses both

    @property
    def signal(self) -> Float[Tensor, " t"]:
        """abar of every training timestep."""
        return alphas_cumprod(self)

    def schedule(
        self,
        num_steps: int | None = None,
        *,
        timesteps: Numbers | None = None,
        sigmas: Numbers | None = None,
    ) -> tuple[HeunStep, ...]:
        """2 N - 1 steps for `num_steps` N; custom timesteps or sigmas name each level once."""
        told, levels = euler_track(
            self,
            self.signal,
            num_steps=num_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            curve=curve_of(self),
        )
        steps: list[HeunStep] = []
        for i, t in enumerate(told):
            if i > 0:
                delta = (levels[i] - levels[i - 1]).item()
                here = euler_scalars(levels[i], levels[i])
                steps.append(HeunStep(index=2 * i - 1, t=float(t), corrects=True, delta=delta, **here))
            delta = (levels[i + 1] - levels[i]).item()
            here = euler_scalars(levels[i], levels[i + 1])
            steps.append(HeunStep(index=2 * i, t=float(t), corrects=False, delta=delta, **here))
        return tuple(steps)

    def init_sigma(self, schedule: Sequence[Step]) -> float:
        """Standard deviation of the initial latents."""
        return euler_init_sigma(self, schedule)

    def step(
        self,
        output: Float[Tensor, "*shape"],
        step: HeunStep,
        x: Float[Tensor, "*shape"],
        carry: Carry,
        noise: Noise,
        eta: float = 0.0,
    ) -> Update:
        """The Euler half, or the correcting half; `carry` holds the state and the slope that the first half had."""
        refuse_eta(self, eta)
        x0 = euler_x0(output, x, step.sigma, self.prediction_type)
        if self.clip_sample:
            x0 = x0.clamp(-self.clip_sample_range, self.clip_sample_range)
        slope = (x - x0) / step.sigma
        if not step.corrects:
            return Update(x + slope * step.delta, x0, (x, slope))
        if carry is None:  # a run that begins here: the state is at this level, and there is nothing to correct
            return Update(x, x0, None)
        x_before, slope_before = carry
        return Update(x_before + (slope_before + slope) / 2 * step.delta, x0, None)
