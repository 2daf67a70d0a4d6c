"""Linear multistep (Adams-Bashforth over uneven steps) in sigma space, as in k-diffusion.

The slope dx/dsigma of Karras et al., arXiv 2206.00364, equation 3, is interpolated through up to four earlier slopes
by Lagrange polynomials and integrated to the next sigma.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vivant.config import only
from vivant.errors import InputError
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

MAX_ORDER = 4


@dataclass(frozen=True, kw_only=True)
class LMSStep(Step):
    """`weights[k - 1]` holds the k weights of order k, that of the newest slope first."""

    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class LMS:
    """The fields of LMSDiscreteScheduler."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: Betas = only(*BETAS)
    trained_betas: tuple[float, ...] | None = None
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = only(False, None)
    prediction_type: Prediction = only(*PREDICTIONS)
    timestep_spacing: Spacing = only("linspace", "leading", "trailing")
    steps_offset: int = 0

    order: ClassVar[int] = 1
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
    ) -> tuple[LMSStep, ...]:
        """The steps of a run. Custom timesteps may be fractions; custom sigmas include the final one."""
        told, levels = euler_track(
            self,
            self.signal,
            num_steps=num_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            curve=curve_of(self),
        )
        sigma = levels.double().numpy()
        return tuple(
            LMSStep(
                index=i,
                t=float(t),
                weights=tuple(lms_weights(sigma[: i + 2], order) for order in range(1, min(i + 1, MAX_ORDER) + 1)),
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
        step: LMSStep,
        x: Float[Tensor, "*shape"],
        carry: Carry,
        noise: Noise,
        eta: float = 0.0,
        *,
        max_order: int = MAX_ORDER,
    ) -> Update:
        """x plus the integral of the interpolated slope; `carry` holds the earlier slopes, newest first.

        The order is what the slopes at hand allow, also after a start in the middle of a schedule.

        Raises:
            InputError: E-SOLVER-ORDER unless `max_order` is 1 to 4.
        """
        refuse_eta(self, eta)
        if max_order not in range(1, MAX_ORDER + 1):
            raise InputError("E-SOLVER-ORDER", f"order={max_order} is not an order of LMS.", "It goes from 1 to 4.")
        x0 = euler_x0(output, x, step.sigma, self.prediction_type)
        slopes = ((x - x0) / step.sigma, *(carry or ()))[:max_order]
        terms = (weight * slope for weight, slope in zip(step.weights[len(slopes) - 1], slopes, strict=True))
        return Update(x + sum(terms), x0, slopes)


def lms_weights(sigmas: np.ndarray, order: int) -> tuple[float, ...]:
    """Integrals of the Lagrange polynomials through the last `order` sigmas but one, up to the last sigma.

    Gauss's rule with two nodes is exact for the cubics that occur.
    """
    *before, end = sigmas[-order - 1 :].tolist()
    nodes, middle, half = before[::-1], (before[-1] + end) / 2, (end - before[-1]) / 2

    def basis(k: int, tau: float) -> float:
        return prod(((tau - node) / (nodes[k] - node) for j, node in enumerate(nodes) if j != k), start=1.0)

    spots = middle - half / 3**0.5, middle + half / 3**0.5
    return tuple(half * sum(basis(k, tau) for tau in spots) for k in range(order))
