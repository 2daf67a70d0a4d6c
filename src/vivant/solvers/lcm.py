"""Latent consistency sampling: Luo et al., Latent consistency models, arXiv 2310.04378.

A distilled network jumps to the clean sample; several steps alternate such jumps with fresh noise (multistep
consistency sampling, algorithm 1 of Song et al., arXiv 2303.01469).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vivant.config import only
from vivant.errors import InputError, warn
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
    checked_count,
    diffuse,
    kept_in_range,
    refuse_custom,
    refuse_eta,
    scalars,
    to_x0,
    whole_timesteps,
)

SIGMA_DATA = 0.5


@dataclass(frozen=True, kw_only=True)
class LCMStep(Step):
    """Boundary scalings of the consistency function, and the state that fresh noise makes for the next step."""

    c_skip: float
    c_out: float
    alpha_next: float
    sigma_next: float
    is_last: bool


@dataclass(frozen=True)
class LCM:
    """The fields of LCMScheduler.

    The steps are a subset of the `original_inference_steps` that the network was distilled on, whatever
    `timestep_spacing`, `steps_offset` and `set_alpha_to_one` say; configurations of other schedulers carry those.
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
        strength: float = 1.0,
    ) -> tuple[LCMStep, ...]:
        """The steps of a run. Custom timesteps off the distilled ones are taken with a warning, W-SOLVER-LCM.

        With a `strength` below 1 the steps are chosen from that share of the distilled ones, the least noisy; of custom
        timesteps it is the share that is run.
        """
        check_choice(num_steps, timesteps, sigmas)
        refuse_custom(self, sigmas=sigmas)
        told = chosen_timesteps(self, num_steps, timesteps, strength)
        abar = self.signal
        steps = tuple(self._step(i, told, abar) for i in range(len(told)))
        check_signal(steps, self.prediction_type)
        return steps

    def _step(self, index: int, told: np.ndarray, abar: Tensor) -> LCMStep:
        """The scalars of one step; the boundary condition is that of section 4.1."""
        t, is_last = int(told[index]), index == len(told) - 1
        alpha, sigma, level = scalars(abar[t])
        following = scalars(abar[int(told[index + 1])]) if not is_last else None
        scaled = torch.tensor(t) * self.timestep_scaling
        return LCMStep(
            index=index,
            t=t,
            alpha=alpha,
            sigma=sigma,
            level=level,
            level_next=following.level if following else 0.0,
            c_skip=(SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)).item(),
            c_out=(scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5).item(),
            alpha_next=following.alpha if following else 1.0,
            sigma_next=following.sigma if following else 0.0,
            is_last=is_last,
        )

    def init_sigma(self, schedule: Sequence[Step]) -> float:
        """1: variance-preserving."""
        return 1.0

    def step(
        self,
        output: Float[Tensor, "*shape"],
        step: LCMStep,
        x: Float[Tensor, "*shape"],
        carry: Carry,
        noise: Noise,
        eta: float = 0.0,
    ) -> Update:
        """The consistency function, then fresh noise up to the next level except at the last step."""
        refuse_eta(self, eta)
        raw = kept_in_range(to_x0(output, x, step.alpha, step.sigma, self.prediction_type), self)
        x0 = step.c_out * raw + step.c_skip * x
        return Update(x0 if step.is_last else step.alpha_next * x0 + step.sigma_next * noise(), x0, None)


@runtime_checkable
class Distilled(Protocol):
    """The fields of a network that was distilled on few timesteps."""

    @property
    def num_train_timesteps(self) -> int: ...
    @property
    def original_inference_steps(self) -> int: ...


def chosen_timesteps(of: Distilled, num_steps: int | None, timesteps: Numbers | None, strength: float) -> np.ndarray:
    """The timesteps of a run, from those of the distillation or custom; noisiest first.

    Raises:
        InputError: E-SOLVER-OPTIONS, E-SOLVER-STEPS, E-SOLVER-TIMESTEPS, E-STRENGTH.
    """
    known = _distilled(of)
    if timesteps is None:
        known = _last(known, strength)
        num_steps = checked_count(num_steps, len(known))
        return known[np.floor(np.linspace(0, len(known), num_steps, endpoint=False)).astype(np.int64)]
    told = whole_timesteps(timesteps, of.num_train_timesteps)
    strange = sorted({int(t) for t in told} - {int(t) for t in known})
    if strange:
        listed = ", ".join(map(str, strange[:6]))
        warn("W-SOLVER-LCM", f"The network was not distilled on the timesteps {listed}.", stacklevel=4)
    return _last(told, strength)


def _distilled(of: Distilled) -> np.ndarray:
    """The timesteps that the network was distilled on, noisiest first."""
    count = of.original_inference_steps
    if not 1 <= count <= of.num_train_timesteps:
        raise InputError(
            "E-SOLVER-OPTIONS",
            f"original_inference_steps={count} does not fit {of.num_train_timesteps} training timesteps.",
        )
    return np.arange(count, 0, -1) * (of.num_train_timesteps // count) - 1


def _last(timesteps: np.ndarray, share: float) -> np.ndarray:
    """The last of some timesteps, a share of them rounded down; E-STRENGTH where that is none, or more than all."""
    count = int(len(timesteps) * share) if 0 < share <= 1 else 0
    if count == 0:
        raise InputError(
            "E-STRENGTH",
            f"strength={share} is no share of {len(timesteps)} timesteps.",
            "",
            "Use more than 0, up to 1.",
        )
    return timesteps[-count:]
