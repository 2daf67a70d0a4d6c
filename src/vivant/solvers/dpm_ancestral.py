"""DPM-Solver++(2S) with ancestral noise: what k-diffusion and A1111 call DPM++ 2S a (`sample_dpmpp_2s_ancestral`).

Lu et al., arXiv 2211.01095, algorithm 1 with the middle of a step as its second evaluation, from each level to one
below the next (Karras et al., arXiv 2206.00364, as Euler ancestral does), from where fresh noise leads back up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vivant.config import only
from vivant.solvers.euler import ancestral
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
from vivant.solvers.sigmas import (
    curve_of,
    euler_init_sigma,
    euler_scalars,
    euler_track,
    euler_x0,
    sigma_table,
    to_timesteps,
)

Role = Literal["alone", "first", "second"]


@dataclass(frozen=True, kw_only=True)
class AncestralPairStep(Step):
    """An evaluation that makes a step alone, or one of a pair that makes a step together.

    `keep` of the state stays, the rest becomes the clean sample's. For the second of a pair that is the state in which
    the pair began; a run that begins there has `keep_alone` of the state that enters.
    """

    role: Role
    keep: float
    keep_alone: float
    sigma_up: float


@dataclass(frozen=True)
class DPM2SAncestral:
    """The fields of DPMSolver2SAncestralScheduler, with the names that they have in others."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: Betas = only(*BETAS)
    trained_betas: tuple[float, ...] | None = None
    prediction_type: Prediction = only(*PREDICTIONS)
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    timestep_spacing: Spacing = only("linspace", "leading", "trailing")
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False

    order: ClassVar[int] = 2
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
    ) -> tuple[AncestralPairStep, ...]:
        """2 N - 1 steps for `num_steps` N: the last, to the clean sample, is one evaluation."""
        abar = self.signal
        table = sigma_table(abar)
        told, levels = euler_track(
            self, abar, num_steps=num_steps, timesteps=timesteps, sigmas=sigmas, curve=curve_of(self)
        )
        levels = levels.double()  # float32 would lose the small difference of two squares that is stepped to
        steps: list[AncestralPairStep] = []
        for i, t in enumerate(told):
            start, end = levels[i], levels[i + 1]
            down, up = ancestral(start, end)
            middle = (start * down) ** 0.5
            if middle > 0:
                t_middle = float(to_timesteps(table, middle.reshape(1).numpy())[0])
                steps.append(_step("first", len(steps), float(t), (start, middle), middle / start))
                steps.append(_step("second", len(steps), t_middle, (middle, end), down / start, down / middle, up))
            else:  # nothing but fresh noise is left of the state, or nothing at all
                steps.append(_step("alone", len(steps), float(t), (start, end), down / start, up=up))
        return tuple(steps)

    def init_sigma(self, schedule: Sequence[Step]) -> float:
        """Standard deviation of the initial latents."""
        return euler_init_sigma(self, schedule)

    def step(
        self,
        output: Float[Tensor, "*shape"],
        step: AncestralPairStep,
        x: Float[Tensor, "*shape"],
        carry: Carry,
        noise: Noise,
        eta: float = 0.0,
    ) -> Update:
        """Half a pair, or all of a step that is alone; `carry` holds the state in which a pair began.

        Noise is drawn once a pair, and not for the clean sample.
        """
        refuse_eta(self, eta)
        state = upcast(x)
        x0 = euler_x0(output, state, step.sigma, self.prediction_type)
        start, keep = state, step.keep
        if step.role == "second":
            start, keep = (carry[0], step.keep) if carry is not None else (state, step.keep_alone)
        x_next = keep * start + (1.0 - keep) * x0
        if step.sigma_up > 0:
            x_next = x_next + step.sigma_up * noise()
        return Update(x_next.to(x.dtype), x0, (state,) if step.role == "first" else None)


_NONE = torch.tensor(0.0)


def _step(
    role: Role,
    index: int,
    t: float,
    levels: tuple[Tensor, Tensor],
    keep: Tensor,
    keep_alone: Tensor = _NONE,
    up: Tensor = _NONE,
) -> AncestralPairStep:
    """The scalars of one evaluation, which leads from one level to the other."""
    return AncestralPairStep(
        index=index,
        t=t,
        role=role,
        keep=keep.item(),
        keep_alone=keep_alone.item(),
        sigma_up=up.item(),
        **euler_scalars(*levels),
    )
