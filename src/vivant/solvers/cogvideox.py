"""The samplers of CogVideoX (Yang et al., arXiv 2408.06072), which ConsisID uses: DDIM, and an SDE solver of order 2.

Both share a noise schedule in float64 whose signal-to-noise ratio is divided by `snr_shift_scale`. DDIM is equation 12
of Song et al. (arXiv 2010.02502) with eta 0, as a weighted sum of the state and the clean sample. The other is
SDE-DPM-Solver++(2M) of Lu et al. (arXiv 2211.01095, appendix D) in lambda = log(alpha / sigma).

Each has a twin that computes as diffusers does. There a step leads ``1000 // N`` timesteps down, which is not the
next entry of the schedule where N does not divide 1000; the SDE solver draws twice for a step of order 2 and discards
the first; and `clip_sample` is never read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vivant.config import only
from vivant.errors import InputError
from vivant.solvers.schedule import (
    PREDICTIONS,
    SPACINGS,
    Carry,
    Noise,
    Numbers,
    Prediction,
    Spacing,
    Step,
    Update,
    betas,
    check_choice,
    check_signal,
    diffuse,
    refuse_custom,
    refuse_eta,
    scalars,
    spaced,
    to_x0,
    without_terminal_signal,
)


class Past(NamedTuple):
    """The clean sample as the step before predicted it, and lambda of the state that it saw."""

    x0: Float[Tensor, "..."]
    lam: float


@dataclass(frozen=True, kw_only=True)
class CogVideoXDDIMStep(Step):
    """x_next = `from_x` x + `from_x0` x0."""

    from_x: float
    from_x0: float


@dataclass(frozen=True, kw_only=True)
class CogVideoXDPMStep(Step):
    """x_next = `from_x` x + `from_x0` x0 + `std` noise, where a `multistep` extrapolates x0 over `h` from `lam`."""

    from_x: float
    from_x0: float
    std: float
    lam: float
    h: float
    multistep: bool


@dataclass(frozen=True)
class CogVideoXDDIM:
    """The fields of CogVideoXDDIMScheduler.

    `clip_sample` defaults to True as in the reference: right for pixels in [-1, 1], harmful for latents.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["scaled_linear"] = only("scaled_linear")
    trained_betas: None = only(None)
    clip_sample: bool = True
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    prediction_type: Prediction = only(*PREDICTIONS)
    clip_sample_range: float = 1.0
    sample_max_value: float = 1.0
    timestep_spacing: Spacing = only(*SPACINGS)
    rescale_betas_zero_snr: bool = False
    snr_shift_scale: float = 3.0

    order: ClassVar[int] = 1
    uses_eta: ClassVar[bool] = False
    compat: ClassVar[bool] = False
    add_noise = staticmethod(diffuse)

    def __post_init__(self):
        _check_shift(self.snr_shift_scale)

    @property
    def signal(self) -> Float[Tensor, " t"]:
        """abar of every training timestep, float64."""
        return _signal(self)

    def schedule(
        self,
        num_steps: int | None = None,
        *,
        timesteps: Numbers | None = None,
        sigmas: Numbers | None = None,
    ) -> tuple[CogVideoXDDIMStep, ...]:
        """The steps of a run; each leads to the next, the last to the clean sample or to abar_0."""
        check_choice(num_steps, timesteps, sigmas)
        refuse_custom(self, timesteps=timesteps, sigmas=sigmas)
        steps = tuple(_ddim_step(leg) for leg in _legs(self, num_steps))
        check_signal(steps, self.prediction_type)
        return steps

    def init_sigma(self, schedule: Sequence[Step]) -> float:
        """1: variance-preserving."""
        return 1.0

    def step(
        self,
        output: Float[Tensor, "*shape"],
        step: CogVideoXDDIMStep,
        x: Float[Tensor, "*shape"],
        carry: Carry,
        noise: Noise,
        eta: float = 0.0,
    ) -> Update:
        """Deterministic; where the clean sample is clipped, the direction follows it."""
        refuse_eta(self, eta)
        alpha, sigma, from_x, from_x0 = _factors(self, step.alpha, step.sigma, step.from_x, step.from_x0)
        x0 = _clipped(self, to_x0(output, x, alpha, sigma, self.prediction_type))
        return Update(from_x * x + from_x0 * x0, x0, None)


@dataclass(frozen=True)
class PortedCogVideoXDDIM(CogVideoXDDIM):
    """The same as diffusers computes it: whole strides, and no clipping."""

    compat: ClassVar[bool] = True


@dataclass(frozen=True)
class CogVideoXDPM:
    """The fields of CogVideoXDPMScheduler; the same as those of CogVideoXDDIMScheduler."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["scaled_linear"] = only("scaled_linear")
    trained_betas: None = only(None)
    clip_sample: bool = True
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    prediction_type: Prediction = only(*PREDICTIONS)
    clip_sample_range: float = 1.0
    sample_max_value: float = 1.0
    timestep_spacing: Spacing = only(*SPACINGS)
    rescale_betas_zero_snr: bool = False
    snr_shift_scale: float = 3.0

    order: ClassVar[int] = 1
    uses_eta: ClassVar[bool] = False
    compat: ClassVar[bool] = False
    add_noise = staticmethod(diffuse)

    def __post_init__(self):
        _check_shift(self.snr_shift_scale)

    @property
    def signal(self) -> Float[Tensor, " t"]:
        """abar of every training timestep, float64."""
        return _signal(self)

    def schedule(
        self,
        num_steps: int | None = None,
        *,
        timesteps: Numbers | None = None,
        sigmas: Numbers | None = None,
    ) -> tuple[CogVideoXDPMStep, ...]:
        """The steps of a run; each leads to the next, the last, at order 1, to the clean sample or to abar_0."""
        check_choice(num_steps, timesteps, sigmas)
        refuse_custom(self, timesteps=timesteps, sigmas=sigmas)
        steps = tuple(_dpm_step(leg) for leg in _legs(self, num_steps))
        check_signal(steps, self.prediction_type)
        return steps

    def init_sigma(self, schedule: Sequence[Step]) -> float:
        """1: variance-preserving."""
        return 1.0

    def step(
        self,
        output: Float[Tensor, "*shape"],
        step: CogVideoXDPMStep,
        x: Float[Tensor, "*shape"],
        carry: Carry,
        noise: Noise,
        eta: float = 0.0,
    ) -> Update:
        """Order 2 where there is a step before, else order 1; `carry` is a `Past`.

        Noise is drawn once at every step, also at the last, where it may have weight 0.
        """
        refuse_eta(self, eta)
        alpha, sigma, from_x, from_x0, std = _factors(self, step.alpha, step.sigma, step.from_x, step.from_x0, step.std)
        x0 = _clipped(self, to_x0(output, x, alpha, sigma, self.prediction_type))
        drawn, ahead = noise(), x0
        if step.multistep and carry is not None:
            past = Past(*carry)
            if self.compat:
                # parity: test_runs_in_compat_are_those_of_the_reference. It draws for order 1 first, then again.
                drawn = noise()
            weight = 1 / (2 * ((step.lam - past.lam) / step.h))
            new, old = _factors(self, 1 + weight, weight)
            ahead = new * x0 - old * past.x0
        return Update(from_x * x + from_x0 * ahead + std * drawn, x0, Past(x0, step.lam))


@dataclass(frozen=True)
class PortedCogVideoXDPM(CogVideoXDPM):
    """The same as diffusers computes it: whole strides, a draw that is discarded, and no clipping."""

    compat: ClassVar[bool] = True


# ------------------------------------------------------------------------------------------ what the two have in common


_Sampler = CogVideoXDDIM | CogVideoXDPM


class _Leg(NamedTuple):
    """One step of the way: from timestep `t` at `abar` to `abar_next`, which is the `end` or another timestep's."""

    i: int
    t: int
    abar: Tensor
    abar_next: Tensor
    end: bool


def _check_shift(scale: float) -> None:
    """Refuse (E-SOLVER-OPTIONS) a `snr_shift_scale` by which nothing can be divided."""
    if not 0 < scale < inf:
        raise InputError(
            "E-SOLVER-OPTIONS",
            f"snr_shift_scale={scale} is no factor.",
            "The signal-to-noise ratio is divided by it.",
            "Give a number above 0; 1 changes nothing.",
        )


def _signal(of: _Sampler) -> Float[Tensor, " t"]:
    """abar with the ratio abar / (1 - abar) divided by `snr_shift_scale`, then rescaled to end in 0 if so asked."""
    abar = torch.cumprod(1.0 - betas(of, dtype=torch.float64), dim=0)
    abar = abar / (of.snr_shift_scale + (1 - of.snr_shift_scale) * abar)
    return without_terminal_signal(abar) if of.rescale_betas_zero_snr else abar


def _legs(of: _Sampler, num_steps: int | None) -> list[_Leg]:
    """The way from the noisiest timestep to the end."""
    told = spaced(of.timestep_spacing, of.num_train_timesteps, num_steps, of.steps_offset).round().astype(np.int64)
    # parity: test_runs_in_compat_are_those_of_the_reference. One stride below is not always the next timestep, and
    # with trailing spacing not always below 0 at the end, so that a run may end in noise.
    after = told - of.num_train_timesteps // len(told) if of.compat else np.append(told[1:], -1)
    abar = _signal(of)
    final = torch.ones((), dtype=torch.float64) if of.set_alpha_to_one else abar[0]
    return [
        _Leg(i, int(t), abar[int(t)], final if n < 0 else abar[int(n)], bool(n < 0))
        for i, (t, n) in enumerate(zip(told, after, strict=True))
    ]


def _clipped(of: _Sampler, x0: Tensor) -> Tensor:
    """`x0` in range, if the fields say so."""
    # parity: test_clipping_is_honoured_unless_the_reference_is_asked_for. Its samplers never read these fields.
    clips = of.clip_sample and not of.compat
    return x0.clamp(-of.clip_sample_range, of.clip_sample_range) if clips else x0


def _factors(of: _Sampler, *values: float) -> tuple[float | Tensor, ...]:
    """The scalars of a step as they multiply states."""
    # parity: test_runs_in_compat_are_those_of_the_reference. Its scalars are tensors, which half precision on the CPU
    # rounds to its own type, and a number would not be. They stay on the CPU, where no device is waited for.
    return tuple(torch.tensor(value, dtype=torch.float64) for value in values) if of.compat else values


def half_log_snr(abar: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """lambda = log(alpha / sigma), half the logarithm of their squares' ratio; infinite without signal or noise."""
    return ((abar / (1 - abar)) ** 0.5).log()


def _ddim_step(leg: _Leg) -> CogVideoXDDIMStep:
    """The scalars of one step: the noise shrinks by sigma_next / sigma, and the sample keeps what is missing."""
    alpha, sigma, level = scalars(leg.abar)
    keep = ((1 - leg.abar_next) / (1 - leg.abar)) ** 0.5
    return CogVideoXDDIMStep(
        index=leg.i,
        t=leg.t,
        alpha=alpha,
        sigma=sigma,
        level=level,
        level_next=scalars(leg.abar_next).level,
        from_x=keep.item(),
        from_x0=(leg.abar_next**0.5 - leg.abar**0.5 * keep).item(),
    )


def _dpm_step(leg: _Leg) -> CogVideoXDPMStep:
    """The scalars of one step; from pure noise and to the clean sample h is infinite, and every weight finite."""
    alpha, sigma, level = scalars(leg.abar)
    lam = half_log_snr(leg.abar)
    h = half_log_snr(leg.abar_next) - lam
    return CogVideoXDPMStep(
        index=leg.i,
        t=leg.t,
        alpha=alpha,
        sigma=sigma,
        level=level,
        level_next=scalars(leg.abar_next).level,
        from_x=(((1 - leg.abar_next) / (1 - leg.abar)) ** 0.5 * (-h).exp()).item(),
        from_x0=-((-2 * h).expm1() * leg.abar_next**0.5).item(),
        std=((1 - leg.abar_next) ** 0.5 * (1 - (-2 * h).exp()) ** 0.5).item(),
        lam=lam.item(),
        h=h.item(),
        multistep=not leg.end and 0 < h.item() < inf,
    )
