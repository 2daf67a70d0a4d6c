"""DPM-Solver and DPM-Solver++, multistep: Lu et al., arXiv 2206.00927 and arXiv 2211.01095.

`dpmsolver++` extrapolates predictions of the clean sample (2211.01095, algorithm 2 for order 2, appendix A for order
3), `dpmsolver` predictions of the noise (2206.00927), `sde-dpmsolver++` the former along the reverse SDE (2211.01095,
appendix D). In lambda = log(alpha / sigma) and h = lambda_next - lambda every update is a weighted sum of the state,
of the divided differences D0, D1, D2 of the predictions, and of noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vivant.config import only
from vivant.errors import InputError
from vivant.solvers.ddpm import FIXED
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
    check_choice,
    checked_count,
    diffuse,
    refuse_custom,
    refuse_eta,
    spaced,
    threshold,
    to_eps,
    to_x0,
    upcast,
    whole_timesteps,
)
from vivant.solvers.sigmas import (
    Track,
    at_timesteps,
    check_curve,
    curve_of,
    log_snr,
    sigma_table,
    to_timesteps,
    with_final,
)

Algorithm = Literal["dpmsolver++", "sde-dpmsolver++", "dpmsolver"]


class Weights(NamedTuple):
    """Weights of the state, of D0, of D1 at order 2 and 3, of D2, and of noise."""

    x: float
    d0: float
    d1_second: float
    d1_third: float
    d2: float
    noise: float


@dataclass(frozen=True, kw_only=True)
class DPMStep(Step):
    """`back` and `back2` are the two steps before this one, in lambda and in units of h (r0 and r1 of the paper)."""

    max_order: int
    weights: Weights
    back: float
    back2: float


@dataclass(frozen=True)
class DPMSolver:
    """The fields of DPMSolverMultistepScheduler."""

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
    lower_order_final: bool = True
    euler_at_final: bool = False
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = only(False, None)
    use_lu_lambdas: bool | None = only(False, None)
    use_flow_sigmas: bool | None = only(False, None)
    flow_shift: float | None = 1.0
    final_sigmas_type: Literal["zero", "sigma_min"] = only("zero", "sigma_min")
    lambda_min_clipped: float = -inf
    variance_type: str | None = only(*FIXED, default=None)
    timestep_spacing: Spacing = only("linspace", "leading", "trailing")
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
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
        return alphas_cumprod(self, zero_snr=self.rescale_betas_zero_snr, floor=True)

    def schedule(
        self,
        num_steps: int | None = None,
        *,
        timesteps: Numbers | None = None,
        sigmas: Numbers | None = None,
    ) -> tuple[DPMStep, ...]:
        """The steps of a run."""
        check_choice(num_steps, timesteps, sigmas)
        refuse_custom(self, sigmas=sigmas)
        # parity: test_every_option. What is not rounded here is cut off.
        rounds = bool(self.use_karras_sigmas) and self.beta_schedule != "squaredcos_cap_v2"
        told, levels = track_of(
            self, self.signal, num_steps, timesteps, self.timestep_spacing, self.steps_offset, rounds
        )
        return tuple(self._step(i, int(t), levels) for i, t in enumerate(told))

    def _step(self, i: int, t: int, levels: Float[Tensor, " n_plus_1"]) -> DPMStep:
        """The scalars of one step; weights of orders that it cannot have are 0."""
        alpha, sigma, lam = log_snr(levels[i])
        alpha_next, sigma_next, lam_next = log_snr(levels[i + 1])
        h = lam_next - lam
        # Differences over a step of no length, to which Karras sigmas and sigma_min lead, do not exist.
        order = min(self._max_order(i, len(levels) - 1), i + 1) if h > 0 else 1
        back = (lam - log_snr(levels[i - 1])[2]) / h if order > 1 else torch.tensor(1.0)
        back2 = (log_snr(levels[i - 1])[2] - log_snr(levels[i - 2])[2]) / h if order > 2 else torch.tensor(1.0)
        x, d0, d1, d2, noise = weights_of(self.algorithm_type, (alpha, sigma), (alpha_next, sigma_next), h)
        second = 0.5 * d0 if self.solver_type == "midpoint" else d1
        return DPMStep(
            index=i,
            t=t,
            alpha=alpha.item(),
            sigma=sigma.item(),
            level=levels[i].item(),
            level_next=levels[i + 1].item(),
            max_order=order,
            weights=Weights(
                x, d0, second if order > 1 else 0.0, d1 if order > 2 else 0.0, d2 if order > 2 else 0.0, noise
            ),
            back=back.item(),
            back2=back2.item(),
        )

    def _max_order(self, i: int, total: int) -> int:
        """The order to use at step `i` of `total`, were the history long enough."""
        few = self.lower_order_final and total < 15
        if i == total - 1 and (self.euler_at_final or few or self.final_sigmas_type == "zero"):
            return 1
        return min(2, self.solver_order) if i == total - 2 and few else self.solver_order

    def init_sigma(self, schedule: Sequence[Step]) -> float:
        """1: variance-preserving."""
        return 1.0

    def step(
        self,
        output: Float[Tensor, "*shape"],
        step: DPMStep,
        x: Float[Tensor, "*shape"],
        carry: Carry,
        noise: Noise,
        eta: float = 0.0,
    ) -> Update:
        """The update of the order that the history allows; `carry` holds earlier predictions, newest first.

        The SDE draws at every step, also at the last, where the noise has weight 0.
        """
        refuse_eta(self, eta)
        prediction, x0 = predicted(self, output, step, x)
        past = (prediction, *(carry or ()))[: self.solver_order]
        order = min(step.max_order, len(past))
        weights = step.weights
        x_next = weights.x * upcast(x) + weights.d0 * past[0]
        if order > 1:
            first, back, back2 = torch.tensor(1.0), torch.tensor(step.back), torch.tensor(step.back2)
            d1 = (first / back).item() * (past[0] - past[1])
            if order == 2:
                x_next = x_next + weights.d1_second * d1
            else:
                change = d1 - (first / back2).item() * (past[1] - past[2])
                d1 = d1 + (back / (back + back2)).item() * change
                x_next = x_next + weights.d1_third * d1 + weights.d2 * ((first / (back + back2)).item() * change)
        if self.algorithm_type == "sde-dpmsolver++":
            x_next = x_next + weights.noise * noise()
        return Update(x_next.to(x.dtype), x0, past)


@runtime_checkable
class DPMFields(Protocol):
    """The fields that both solvers of this family read alike."""

    @property
    def num_train_timesteps(self) -> int: ...
    @property
    def prediction_type(self) -> Prediction: ...
    @property
    def thresholding(self) -> bool: ...
    @property
    def dynamic_thresholding_ratio(self) -> float: ...
    @property
    def sample_max_value(self) -> float: ...
    @property
    def algorithm_type(self) -> Algorithm: ...
    @property
    def use_karras_sigmas(self) -> bool | None: ...
    @property
    def use_exponential_sigmas(self) -> bool | None: ...
    @property
    def final_sigmas_type(self) -> Literal["zero", "sigma_min"]: ...
    @property
    def lambda_min_clipped(self) -> float: ...


def check_fields(of: DPMFields) -> None:
    """Refuse (E-SOLVER-OPTIONS) fields that exclude each other."""
    curve_of(of)
    if of.algorithm_type == "dpmsolver" and of.final_sigmas_type == "zero":
        raise InputError(
            "E-SOLVER-OPTIONS",
            'algorithm_type="dpmsolver" cannot end on final_sigmas_type="zero".',
            "It predicts noise, of which nothing is left there.",
            'Set final_sigmas_type="sigma_min", or use dpmsolver++.',
        )


def track_of(
    of: DPMFields,
    abar: Float[Tensor, " t"],
    num_steps: int | None,
    timesteps: Numbers | None,
    spacing: Spacing,
    offset: int,
    rounds: bool,
) -> Track:
    """Timesteps and levels. Levels along a curve have their nearest timesteps, where several may coincide.

    Args:
        of: the solver.
        abar: its noise schedule.
        num_steps, timesteps: one of them.
        spacing: of the timesteps without a curve.
        offset: added to them.
        rounds: whether timesteps of a curve are rounded; otherwise they are cut off.
    """
    table, curve = sigma_table(abar), curve_of(of)
    check_curve(curve, timesteps)
    if curve is not None:
        levels = curve(table[-1].item(), table[0].item(), checked_count(num_steps, of.num_train_timesteps))
        told = to_timesteps(table, levels)
        told = told.round() if rounds else told
    elif timesteps is not None:
        told = whole_timesteps(timesteps, of.num_train_timesteps)
        levels = at_timesteps(table, told)
    else:  # `lambda_min_clipped` cuts off the noisiest ones
        log_snrs = torch.log(torch.sqrt(abar)) - torch.log(torch.sqrt(1 - abar))
        top = int((log_snrs >= of.lambda_min_clipped).sum())
        told = spaced(spacing, of.num_train_timesteps, num_steps, offset, top=top, drop_last=True).round()
        levels = at_timesteps(table, told)
    final = 0.0 if of.final_sigmas_type == "zero" else float(table[0])
    return Track(told.astype(np.int64), with_final(levels, final))


def predicted(of: DPMFields, output: Tensor, step: Step, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the algorithm extrapolates (the clean sample, or the noise), and the clean sample."""
    alpha, sigma = step.alpha, step.sigma
    if of.algorithm_type != "dpmsolver":
        x0 = _in_range(of, to_x0(output, x, alpha, sigma, of.prediction_type))
        return x0, x0
    eps = to_eps(output, x, alpha, sigma, of.prediction_type)
    x0 = _in_range(of, (x - sigma * eps) / alpha)
    return ((x - alpha * x0) / sigma if of.thresholding else eps), x0


def _in_range(of: DPMFields, x0: Tensor) -> Tensor:
    """`x0`, thresholded if the fields say so."""
    return threshold(x0, of.dynamic_thresholding_ratio, of.sample_max_value) if of.thresholding else x0


def weights_of(
    algorithm: Algorithm, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor], h: Tensor
) -> tuple[float, float, float, float, float]:
    """x, D0, D1 (Taylor form), D2 and noise of one way, from alpha and sigma at both its ends and its h."""
    (alpha, sigma), (alpha_end, sigma_end) = start, end
    if algorithm == "dpmsolver":
        weights = noise_weights(alpha_end / alpha, sigma_end, h)
    elif algorithm == "dpmsolver++":
        weights = sample_weights(sigma_end / sigma, alpha_end, h)
    else:
        weights = sde_weights(sigma_end / sigma, alpha_end, sigma_end, h)
    x, d0, d1, d2, noise = (weight.item() for weight in weights)
    return x, d0, d1, d2, noise


def sample_weights(keep: Tensor, alpha: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    """x, D0, D1 (Taylor form), D2, noise of dpmsolver++."""
    decay = torch.exp(-h) - 1.0
    return (
        keep,
        -alpha * decay,
        alpha * (decay / h + 1.0),
        -alpha * ((decay + h) / h**2 - 0.5),
        torch.zeros(()),
    )


def sde_weights(keep: Tensor, alpha: Tensor, sigma: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    """x, D0, D1 (Taylor form), D2, noise of sde-dpmsolver++."""
    gain = 1.0 - torch.exp(-2.0 * h)
    return (
        keep * torch.exp(-h),
        alpha * gain,
        alpha * (gain / (-2.0 * h) + 1.0),
        alpha * ((gain - 2.0 * h) / (2.0 * h) ** 2 - 0.5),
        sigma * torch.sqrt(gain),
    )


def noise_weights(keep: Tensor, sigma: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    """x, D0, D1 (Taylor form), D2, noise of dpmsolver."""
    growth = torch.exp(h) - 1.0
    return (
        keep,
        -sigma * growth,
        -sigma * (growth / h - 1.0),
        -sigma * ((growth - h) / h**2 - 0.5),
        torch.zeros(()),
    )
