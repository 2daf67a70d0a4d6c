"""PNDM: Liu, Ren, Lin and Zhao, Pseudo numerical methods for diffusion models on manifolds, arXiv 2202.09778.

A run begins either with three Runge-Kutta steps of four evaluations each (PRK, equation 13), or, as Stable Diffusion
does it (`skip_prk_steps`), with one step that is made twice: by Euler, then again with the mean of the noise found at
both ends. Linear multistep (PLMS, equation 12) follows. Predictions are combined first and then applied by the
transfer of equation 11.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vivant.config import only
from vivant.errors import InputError
from vivant.solvers.schedule import (
    BETAS,
    SPACINGS,
    Betas,
    Carry,
    Noise,
    Numbers,
    Spacing,
    Step,
    Update,
    alphas_cumprod,
    check_choice,
    diffuse,
    refuse_custom,
    refuse_eta,
    scalars,
    spaced,
    to_eps,
    to_x0,
)

Role = Literal["first", "again", "multistep", "prk0", "prk1", "prk2", "prk3"]


class Transfer(NamedTuple):
    """Equation 11: x_next = keep x - push eps / rest, from a state with these alpha and sigma."""

    alpha: float
    sigma: float
    keep: float
    push: float
    rest: float


class Past(NamedTuple):
    """Earlier outputs, newest first; the state at the start of the group; the weighted sum inside the group."""

    outputs: tuple[Tensor, ...] = ()
    start: Tensor | None = None
    total: Tensor | float = 0.0


@dataclass(frozen=True, kw_only=True)
class PNDMStep(Step):
    """What a step is for, and its transfer.

    `transfer` starts where the step's group started, which for the later evaluations of a Runge-Kutta group and for
    the step made again is not the state that enters. `fresh` starts from the state that enters; it takes over in a
    run that begins inside a group, and None waits at this level for the next group.
    """

    role: Role
    transfer: Transfer
    fresh: Transfer | None


@dataclass(frozen=True)
class PNDM:
    """The fields of PNDMScheduler."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: Betas = only(*BETAS)
    trained_betas: tuple[float, ...] | None = None
    skip_prk_steps: bool = False
    set_alpha_to_one: bool = False
    prediction_type: Literal["epsilon", "v_prediction"] = only("epsilon", "v_prediction")
    timestep_spacing: Spacing = only(*SPACINGS)
    steps_offset: int = 0

    order: ClassVar[int] = 1
    uses_eta: ClassVar[bool] = False
    add_noise = staticmethod(diffuse)

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
    ) -> tuple[PNDMStep, ...]:
        """N + 1 steps for `num_steps` N with `skip_prk_steps`, N + 9 without (then N is at least 4)."""
        check_choice(num_steps, timesteps, sigmas)
        refuse_custom(self, timesteps=timesteps, sigmas=sigmas)
        values = spaced(self.timestep_spacing, self.num_train_timesteps, num_steps, self.steps_offset)
        told = [int(t) for t in values.round()]
        plan = (_without_prk if self.skip_prk_steps else _with_prk)(told, self.num_train_timesteps // len(told))
        abar = self.signal
        final = torch.tensor(1.0) if self.set_alpha_to_one else abar[0]
        steps = []
        for i, (role, t, start, end) in enumerate(plan):
            alpha, sigma, level = scalars(abar[t])
            abar_end = abar[end] if end >= 0 else final
            steps.append(
                PNDMStep(
                    index=i,
                    t=t,
                    alpha=alpha,
                    sigma=sigma,
                    level=level,
                    level_next=scalars(abar_end).level,
                    role=role,
                    transfer=_transfer(abar[start], abar_end),
                    fresh=_transfer(abar[t], abar_end) if role == "prk2" else None,
                )
            )
        return tuple(steps)

    def init_sigma(self, schedule: Sequence[Step]) -> float:
        """1: variance-preserving."""
        return 1.0

    def step(
        self,
        output: Float[Tensor, "*shape"],
        step: PNDMStep,
        x: Float[Tensor, "*shape"],
        carry: Carry,
        noise: Noise,
        eta: float = 0.0,
    ) -> Update:
        """Combine the outputs as the step's role asks, and transfer; `carry` is a `Past`."""
        refuse_eta(self, eta)
        x0 = to_x0(output, x, step.alpha, step.sigma, self.prediction_type)
        past = Past(*(carry or ()))
        outputs = (output, *past.outputs)[:4]
        if step.role in ("first", "prk0"):
            return Update(self._moved(x, output, step.transfer), x0, Past(outputs, x, 1 / 6 * output))
        if step.role == "multistep":
            return Update(self._moved(x, _multistep(outputs), step.transfer), x0, Past(outputs))
        if past.start is None:
            return Update(x if step.fresh is None else self._moved(x, output, step.fresh), x0, carry)
        if step.role == "again":
            mean = (output + past.outputs[0]) / 2
            return Update(self._moved(past.start, mean, step.transfer), x0, Past(past.outputs))
        if step.role == "prk3":
            mean = past.total + 1 / 6 * output
            return Update(self._moved(past.start, mean, step.transfer), x0, Past(past.outputs))
        total = past.total + 1 / 3 * output
        return Update(self._moved(past.start, output, step.transfer), x0, Past(past.outputs, past.start, total))

    def _moved(self, x: Tensor, output: Tensor, by: Transfer) -> Tensor:
        """Equation 11 with a network's output, or a mixture of outputs."""
        # parity: test_pndm_converts_velocities_after_mixing. The reference mixes the outputs of several timesteps and
        # converts the mixture at one of them, which is exact for epsilon only.
        eps = to_eps(output, x, by.alpha, by.sigma, self.prediction_type)
        return by.keep * x - by.push * eps / by.rest


def _without_prk(told: list[int], stride: int) -> list[tuple[Role, int, int, int]]:
    """Role, timestep told, and where the transfer starts and ends, for every evaluation."""
    # parity: test_pndm_strides_by_whole_timesteps, as DDIM: a stride below is not the next timestep with linspace.
    plan: list[tuple[Role, int, int, int]] = [("first", told[0], told[0], told[0] - stride)]
    if len(told) > 1:
        plan.append(("again", told[1], told[1] + stride, told[1]))
    plan.extend(("multistep", t, t, t - stride) for t in told[1:])
    return plan


def _with_prk(told: list[int], stride: int) -> list[tuple[Role, int, int, int]]:
    """As `_without_prk`, with three Runge-Kutta groups that lead over the first three strides."""
    if len(told) < 4:
        raise InputError(
            "E-SOLVER-STEPS",
            f"{len(told)} steps are too few for PNDM's Runge-Kutta start.",
            "It takes 4 or more.",
            "Take more steps, or set skip_prk_steps=True.",
        )
    half = stride // 2
    plan: list[tuple[Role, int, int, int]] = []
    for start, end in pairwise(told[:4]):
        middle = end + half
        plan.append(("prk0", start, start, start - half))
        plan.append(("prk1", middle, start, middle))
        plan.append(("prk2", middle, start, middle - half))
        plan.append(("prk3", end, start, end))
    plan.extend(("multistep", t, t, t - stride) for t in told[3:])
    return plan


def _transfer(abar: Tensor, abar_end: Tensor) -> Transfer:
    """The scalars of equation 11 between two states."""
    alpha, sigma, _ = scalars(abar)
    rest = abar * (1 - abar_end) ** 0.5 + (abar * (1 - abar) * abar_end) ** 0.5
    return Transfer(alpha, sigma, ((abar_end / abar) ** 0.5).item(), (abar_end - abar).item(), rest.item())


def _multistep(past: tuple[Tensor, ...]) -> Tensor:
    """Adams-Bashforth of the order that the history allows, newest output first (equation 12)."""
    if len(past) == 1:
        return past[0]
    if len(past) == 2:
        return (3 * past[0] - past[1]) / 2
    if len(past) == 3:
        return (23 * past[0] - 16 * past[1] + 5 * past[2]) / 12
    return 1 / 24 * (55 * past[0] - 59 * past[1] + 37 * past[2] - 9 * past[3])
