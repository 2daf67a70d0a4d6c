"""DPM-Solver and DPM-Solver++, singlestep: Lu et al., arXiv 2206.00927 (algorithm 2) and 2211.01095 (algorithm 1).

Evaluations come in groups of one, two or three. Every one of a group leads on from the state in which the group
began: the first at order 1, the second at order 2 over both stretches, the third at order 3. With `sde-dpmsolver++`
and groups of two this is what others call DPM++ SDE, with `dpmsolver++` DPM++ 2S.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vivant.config import only
from vivant.solvers.ddpm import FIXED
from vivant.solvers.dpm import Algorithm, check_fields, predicted, track_of, weights_of
from vivant.solvers.schedule import (
    BETAS,
    PREDICTIONS,
    Betas,
    Carry,
    Noise,
    Numbers,
    Prediction,
    Step,
    Update,
    alphas_cumprod,
    check_choice,
    diffuse,
    refuse_custom,
    refuse_eta,
    upcast,
)
from vivant.solvers.sigmas import log_snr


class Stretch(NamedTuple):
    """From the start of a group to the end of a step: weights of the state, D0, D1, D2 and noise.

    `r0` and `r1` are where the newest prediction and the one before were made, as shares of the way in lambda.
    """

    x: float
    d0: float
    d1: float
    d2: float
    noise: float
    r0: float
    r1: float


@dataclass(frozen=True, kw_only=True)
class SinglestepStep(Step):
    """`stretches` by order, from 1 up to that of the step; a run that begins inside a group has only the lower."""

    stretches: tuple[Stretch, ...]


class Group(NamedTuple):
    """What a step leaves: the state in which its group began, and the group's predictions, newest first."""

    start: Tensor
    past: tuple[Tensor, ...]


@dataclass(frozen=True)
class DPMSinglestep:
    """The fields of DPMSolverSinglestepScheduler.

    A number of steps that `solver_order` does not divide, or a last sigma of 0, needs lower orders at the end; such a
    run has them whatever `lower_order_final` says.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: Betas = only(*BETAS)
    trained_betas: tuple[float, ...] | None = None
    solver_order: int = only(1, 2, 3, default=2)
    prediction_type: Prediction = only(*PREDICTIONS)
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    algorithm_type: Algorithm = only("dpmsolver++", "sde-dpmsolver++", "dpmsolver")
    solver_type: Literal["midpoint", "heun"] = only("midpoint", "heun")
    lower_order_final: bool = False
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = only(False, None)
    use_flow_sigmas: bool | None = only(False, None)
    flow_shift: float | None = 1.0
    final_sigmas_type: Literal["zero", "sigma_min"] = only("zero", "sigma_min")
    lambda_min_clipped: float = -inf
    variance_type: str | None = only(*FIXED, default=None)
    use_dynamic_shifting: bool | None = only(False, None)
    time_shift_type: Literal["exponential"] = only("exponential")

    order: ClassVar[int] = 1
    uses_eta: ClassVar[bool] = False
    add_noise = staticmethod(diffuse)

    def __post_init__(self):
        check_fields(self)

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
    ) -> tuple[SinglestepStep, ...]:
        """The steps of a run: one evaluation each."""
        check_choice(num_steps, timesteps, sigmas)
        refuse_custom(self, sigmas=sigmas)
        # parity: test_every_option. What is not rounded here is cut off.
        rounds = bool(self.use_karras_sigmas)
        told, levels = track_of(self, self.signal, num_steps, timesteps, "linspace", 0, rounds)
        orders = self._orders(len(told))
        return tuple(
            self._step(i, int(t), order, levels) for i, (t, order) in enumerate(zip(told, orders, strict=True))
        )

    def _orders(self, total: int) -> list[int]:
        """The order of every step: whole groups, and at the end smaller ones."""
        order, ends_clean = self.solver_order, self.final_sigmas_type == "zero"
        whole, rest = divmod(total, order)
        if order == 1:
            return [1] * total
        if not (self.lower_order_final or rest or ends_clean):
            return [*range(1, order + 1)] * whole
        # Two groups for the last steps, so that the very last is short: a whole number of groups gives one of them up.
        if rest == 0:
            last = [*range(1, order), 1]
            whole -= 1
        else:
            last = [*range(1, rest + 1)]
        orders = [*range(1, order + 1)] * whole + last
        return [*orders[:-1], 1] if ends_clean else orders

    def _step(self, i: int, t: int, order: int, levels: Float[Tensor, " n_plus_1"]) -> SinglestepStep:
        """The scalars of one step, from every state in which its group can have begun."""
        alpha, sigma, _ = log_snr(levels[i])
        return SinglestepStep(
            index=i,
            t=t,
            alpha=alpha.item(),
            sigma=sigma.item(),
            level=levels[i].item(),
            level_next=levels[i + 1].item(),
            stretches=tuple(self._stretch(levels[i + 1 - k : i + 2]) for k in range(1, order + 1)),
        )

    def _stretch(self, levels: Float[Tensor, " order_plus_1"]) -> Stretch:
        """The way over these levels, of which the first is where the group began."""
        order = len(levels) - 1
        alpha, sigma, start = log_snr(levels[0])
        alpha_end, sigma_end, end = log_snr(levels[-1])
        h = end - start
        r0 = (log_snr(levels[-2])[2] - start) / h if order > 1 else torch.tensor(1.0)
        r1 = (log_snr(levels[-3])[2] - start) / h if order > 2 else torch.tensor(1.0)
        x, d0, d1, d2, noise = weights_of(self.algorithm_type, (alpha, sigma), (alpha_end, sigma_end), h)
        if order == 2 and self.solver_type == "midpoint":
            d1 = 0.5 * d0
        has_d2 = order == 3 and self.solver_type == "heun"
        return Stretch(x, d0, d1 if order > 1 else 0.0, d2 if has_d2 else 0.0, noise, r0.item(), r1.item())

    def init_sigma(self, schedule: Sequence[Step]) -> float:
        """1: variance-preserving."""
        return 1.0

    def step(
        self,
        output: Float[Tensor, "*shape"],
        step: SinglestepStep,
        x: Float[Tensor, "*shape"],
        carry: Carry,
        noise: Noise,
        eta: float = 0.0,
    ) -> Update:
        """From the start of the group to the next level; `carry` is a `Group`. The SDE draws at every step."""
        refuse_eta(self, eta)
        prediction, x0 = predicted(self, output, step, x)
        group = Group(x, (prediction,))
        if len(step.stretches) > 1 and carry is not None:
            begun = Group(*carry)
            group = Group(begun.start, (prediction, *begun.past))
        stretch = step.stretches[len(group.past) - 1]
        x_next = stretch.x * upcast(group.start) + stretch.d0 * group.past[-1]
        if len(group.past) > 1:
            d1, d2 = self._differences(group.past, stretch)
            x_next = x_next + stretch.d1 * d1
            if stretch.d2:
                x_next = x_next + stretch.d2 * d2
        if self.algorithm_type == "sde-dpmsolver++":
            x_next = x_next + stretch.noise * noise()
        return Update(x_next.to(x.dtype), x0, group)

    def _differences(self, past: tuple[Tensor, ...], stretch: Stretch) -> tuple[Tensor, Tensor]:
        """D1 and, at order 3, D2 of a group's predictions, newest first."""
        one, r0, r1 = torch.tensor(1.0), torch.tensor(stretch.r0), torch.tensor(stretch.r1)
        late = (one / r0).item() * (past[0] - past[-1])
        if len(past) == 2 or self.solver_type == "midpoint":
            return late, late
        early = (one / r1).item() * (past[1] - past[2])
        d1 = (stretch.r0 * early - stretch.r1 * late) / (r0 - r1).item()
        return d1, 2.0 * (late - early) / (r0 - r1).item()
