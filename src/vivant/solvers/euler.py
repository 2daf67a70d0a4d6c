"""Euler and its ancestral variant in sigma space: Karras et al., arXiv 2206.00364, algorithms 1 and 2 without Heun."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal

import torch
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
    upcast,
)
from vivant.solvers.sigmas import curve_of, euler_init_sigma, euler_scalars, euler_track, euler_x0


@dataclass(frozen=True)
class Churn:
    """Noise added before a step (algorithm 2): S_churn, S_tmin, S_tmax and S_noise of the paper; none by default."""

    amount: float = 0.0
    sigma_from: float = 0.0
    sigma_to: float = inf
    noise: float = 1.0


@dataclass(frozen=True, kw_only=True)
class EulerStep(Step):
    """`delta` is the change of sigma, `total` the number of steps of the whole schedule."""

    delta: float
    total: int


@dataclass(frozen=True)
class Euler:
    """The fields of EulerDiscreteScheduler."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: Betas = only(*BETAS)
    trained_betas: tuple[float, ...] | None = None
    prediction_type: Prediction = only(*PREDICTIONS)
    interpolation_type: Literal["linear"] = only("linear")
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = only(False, None)
    sigma_min: float | None = None
    sigma_max: float | None = None
    timestep_spacing: Spacing = only("linspace", "leading", "trailing")
    timestep_type: Literal["discrete"] = only("discrete")
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    final_sigmas_type: Literal["zero", "sigma_min"] = only("zero", "sigma_min")

    order: ClassVar[int] = 1
    uses_eta: ClassVar[bool] = False
    add_noise = staticmethod(diffuse)

    def __post_init__(self):
        curve_of(self)  # refuses both

    @property
    def signal(self) -> Float[Tensor, " t"]:
        """abar of every training timestep."""
        return alphas_cumprod(self, zero_snr=self.rescale_betas_zero_snr, floor=True)

    def schedule(
        self,
        num_steps: int | None = None,
        *,
        timesteps: Numbers | None = None,
        sigmas: Numbers | None = None,
    ) -> tuple[EulerStep, ...]:
        """The steps of a run. Custom timesteps may be fractions; custom sigmas include the final one."""
        told, levels = euler_track(
            self,
            self.signal,
            num_steps=num_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            curve=curve_of(self),
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
            end_on_sigma_min=self.final_sigmas_type == "sigma_min",
        )
        return tuple(
            EulerStep(
                index=i,
                t=float(t),
                delta=(levels[i + 1] - levels[i]).item(),
                total=len(told),
                **euler_scalars(levels[i], levels[i + 1]),
            )
            for i, t in enumerate(told)
        )

    def init_sigma(self, schedule: Sequence[Step]) -> float:
        """Standard deviation of the initial latents."""
        return euler_init_sigma(self, schedule)

    def step(
        self,
        output: Float[Tensor, "*shape"],
        step: EulerStep,
        x: Float[Tensor, "*shape"],
        carry: Carry,
        noise: Noise,
        eta: float = 0.0,
        *,
        churn: Churn = Churn(),
    ) -> Update:
        """x + (x - x0) / sigma (sigma_next - sigma), in float32. `noise` is drawn only when `churn` asks for it."""
        refuse_eta(self, eta)
        state = upcast(x)
        stirred, delta = step.sigma, step.delta
        share = min(churn.amount / step.total, 2**0.5 - 1)
        if share > 0 and churn.sigma_from <= step.sigma <= churn.sigma_to:
            sigma = torch.tensor(step.sigma)
            higher = sigma * (share + 1)
            state = state + noise() * churn.noise * ((higher**2 - sigma**2) ** 0.5).item()
            stirred, delta = higher.item(), (torch.tensor(step.level_next) - higher).item()
        x0 = euler_x0(output, state, step.sigma, self.prediction_type, shift=stirred)
        return Update((state + (state - x0) / stirred * delta).to(x.dtype), x0, None)


@dataclass(frozen=True, kw_only=True)
class AncestralStep(Step):
    """`delta` is the change of sigma of the deterministic part, `sigma_up` the noise added after it."""

    delta: float
    sigma_up: float


@dataclass(frozen=True)
class EulerAncestral:
    """The fields of EulerAncestralDiscreteScheduler."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: Betas = only(*BETAS)
    trained_betas: tuple[float, ...] | None = None
    prediction_type: Prediction = only(*PREDICTIONS)
    timestep_spacing: Spacing = only("linspace", "leading", "trailing")
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False

    order: ClassVar[int] = 1
    uses_eta: ClassVar[bool] = False
    add_noise = staticmethod(diffuse)

    @property
    def signal(self) -> Float[Tensor, " t"]:
        """abar of every training timestep."""
        return alphas_cumprod(self, zero_snr=self.rescale_betas_zero_snr, floor=True)

    def schedule(
        self,
        num_steps: int | None = None,
        *,
        timesteps: Numbers | None = None,
        sigmas: Numbers | None = None,
    ) -> tuple[AncestralStep, ...]:
        """The steps of a run. Custom timesteps may be fractions; custom sigmas include the final one."""
        told, levels = euler_track(self, self.signal, num_steps=num_steps, timesteps=timesteps, sigmas=sigmas)
        return tuple(_ancestral(i, float(t), levels[i], levels[i + 1]) for i, t in enumerate(told))

    def init_sigma(self, schedule: Sequence[Step]) -> float:
        """Standard deviation of the initial latents."""
        return euler_init_sigma(self, schedule)

    def step(
        self,
        output: Float[Tensor, "*shape"],
        step: AncestralStep,
        x: Float[Tensor, "*shape"],
        carry: Carry,
        noise: Noise,
        eta: float = 0.0,
    ) -> Update:
        """An Euler step to a lower sigma than the next, then noise up to it. Noise is drawn at every step."""
        refuse_eta(self, eta)
        state = upcast(x)
        x0 = euler_x0(output, state, step.sigma, self.prediction_type)
        x_next = state + (state - x0) / step.sigma * step.delta
        return Update((x_next + noise() * step.sigma_up).to(x.dtype), x0, None)


def ancestral(sigma: Float[Tensor, ""], sigma_next: Float[Tensor, ""]) -> tuple[Tensor, Tensor]:
    """Split the way to `sigma_next`: where to step to below it, and the noise that from there restores its variance."""
    up = (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
    return (sigma_next**2 - up**2).clamp(min=0) ** 0.5, up  # rounding may leave less than nothing


def _ancestral(index: int, t: float, sigma: Tensor, sigma_next: Tensor) -> AncestralStep:
    """The scalars of one step."""
    down, up = ancestral(sigma, sigma_next)
    return AncestralStep(
        index=index,
        t=t,
        delta=(down - sigma).item(),
        sigma_up=up.item(),
        **euler_scalars(sigma, sigma_next),
    )
