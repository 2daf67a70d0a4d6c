"""UniPC: Zhao et al., UniPC: a unified predictor-corrector framework, arXiv 2302.04867.

A predictor of order p (UniP, equation 8) extrapolates through the differences of earlier predictions; once the
network has seen the result, a corrector of order p (UniC, equation 3) makes the previous step again with that
knowledge, at no further evaluation. The weights solve the small linear system of theorem 3.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal

import numpy as np
import torch
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
    check_choice,
    checked_count,
    diffuse,
    refuse_custom,
    refuse_eta,
    spaced,
    threshold,
    to_eps,
    to_x0,
)
from vivant.solvers.sigmas import Track, at_timesteps, curve_of, log_snr, sigma_table, to_timesteps, with_final


@dataclass(frozen=True)
class Formula:
    """x_next = keep x - base m0 - push (sum_k weights_k (m_k - m0) / ratios_k [+ weights_p (m_next - m0)]).

    m0 is the prediction where the step starts, m_k the one k steps earlier at the ratio r_k of the paper, and m_next
    the one where it ends, which only a corrector has.
    """

    keep: float
    base: float
    push: float
    ratios: tuple[float, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class UniPCStep(Step):
    """Formulas by order: of this step, and of the step before made again; no corrector where it is disabled."""

    max_order: int
    predictors: tuple[Formula, ...]
    correctors: tuple[Formula, ...]


@dataclass(frozen=True)
class UniPC:
    """The fields of UniPCMultistepScheduler."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: Betas = only(*BETAS)
    trained_betas: tuple[float, ...] | None = None
    solver_order: int = 2
    prediction_type: Prediction = only(*PREDICTIONS)
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    predict_x0: bool = True
    solver_type: Literal["bh2", "bh1"] = only("bh2", "bh1")
    lower_order_final: bool = True
    disable_corrector: tuple[int, ...] = ()
    solver_p: None = only(None)
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = only(False, None)
    use_flow_sigmas: bool | None = only(False, None)
    flow_shift: float | None = 1.0
    timestep_spacing: Spacing = only("linspace", "leading", "trailing")
    steps_offset: int = 0
    final_sigmas_type: Literal["zero", "sigma_min"] = only("zero", "sigma_min")
    rescale_betas_zero_snr: bool = False
    use_dynamic_shifting: bool | None = only(False, None)
    time_shift_type: Literal["exponential"] = only("exponential")
    sigma_min: float | None = None
    sigma_max: float | None = None
    shift_terminal: None = only(None)

    order: ClassVar[int] = 1
    uses_eta: ClassVar[bool] = False
    add_noise = staticmethod(diffuse)

    def __post_init__(self):
        curve_of(self)  # refuses both
        if not self.predict_x0 and self.final_sigmas_type == "zero":
            raise InputError(
                "E-SOLVER-OPTIONS",
                'predict_x0=False cannot end on final_sigmas_type="zero".',
                "It extrapolates noise, of which nothing is left there.",
                'Set final_sigmas_type="sigma_min", or predict_x0=True.',
            )
        if not self.predict_x0 and self.thresholding:
            raise InputError(
                "E-SOLVER-OPTIONS",
                "thresholding works on predicted samples, which predict_x0=False does not extrapolate.",
                "",
                "Set predict_x0=True or thresholding=False.",
            )
        if self.solver_order < 1:
            raise InputError(
                "E-SOLVER-OPTIONS", f"solver_order={self.solver_order} is not an order.", "", "Use 2 or 3."
            )

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
    ) -> tuple[UniPCStep, ...]:
        """The steps of a run."""
        check_choice(num_steps, timesteps, sigmas)
        refuse_custom(self, timesteps=timesteps, sigmas=sigmas)
        told, levels = self._track(checked_count(num_steps, self.num_train_timesteps))
        return tuple(self._step(i, int(t), levels) for i, t in enumerate(told))

    def _track(self, num_steps: int) -> Track:
        """Timesteps and levels. Levels along a curve have their nearest timesteps, where several may coincide."""
        table = sigma_table(self.signal)
        curve = curve_of(self)
        if curve is not None:
            high = table[-1].item() if self.sigma_max is None else self.sigma_max
            levels = curve(high, table[0].item() if self.sigma_min is None else self.sigma_min, num_steps)
            told = to_timesteps(table, levels)
            # parity: test_every_option. What is not rounded here is cut off below.
            told = told.round() if self.use_karras_sigmas else told
            smallest = levels[-1]
        else:
            told = spaced(
                self.timestep_spacing, self.num_train_timesteps, num_steps, self.steps_offset, drop_last=True
            ).round()
            levels = at_timesteps(table, told)
            smallest = table[0]
        final = 0.0 if self.final_sigmas_type == "zero" else float(smallest)
        return Track(told.astype(np.int64), with_final(levels, final))

    def _step(self, i: int, t: int, levels: Float[Tensor, " n_plus_1"]) -> UniPCStep:
        """The scalars of one step."""
        alpha, sigma, lam = log_snr(levels[i])
        h = (log_snr(levels[i + 1])[2] - lam).item()
        total = len(levels) - 1
        order = min(self.solver_order, total - i) if self.lower_order_final else self.solver_order
        if not 0 < abs(h) < inf:  # differences over a step of no or infinite length do not exist
            order = 1
        order = min(order, i + 1)
        corrected = i > 0 and i - 1 not in self.disable_corrector
        return UniPCStep(
            index=i,
            t=t,
            alpha=alpha.item(),
            sigma=sigma.item(),
            level=levels[i].item(),
            level_next=levels[i + 1].item(),
            max_order=order,
            predictors=tuple(self._formula(levels, i, p, corrects=False) for p in range(1, order + 1)),
            correctors=tuple(
                self._formula(levels, i - 1, p, corrects=True) for p in range(1, min(self.solver_order, i) + 1)
            )
            if corrected
            else (),
        )

    def _formula(self, levels: Float[Tensor, " n_plus_1"], start: int, order: int, *, corrects: bool) -> Formula:
        """Theorem 3.1 for the step that starts at `levels[start]`."""
        alpha, sigma, lam = log_snr(levels[start])
        alpha_next, sigma_next, lam_next = log_snr(levels[start + 1])
        h = lam_next - lam
        signed = -h if self.predict_x0 else h
        growth = torch.expm1(signed)
        bound = signed if self.solver_type == "bh1" else growth  # B(h)
        ratios = [(log_snr(levels[start - k])[2] - lam) / h for k in range(1, order)]
        keep, factor = (sigma_next / sigma, alpha_next) if self.predict_x0 else (alpha_next / alpha, sigma_next)
        weights = _weights(ratios, signed, growth, bound, corrects=corrects)
        return Formula(
            keep=keep.item(),
            base=(factor * growth).item(),
            push=(factor * bound).item(),
            ratios=tuple(r.item() for r in ratios),
            weights=weights,
        )

    def init_sigma(self, schedule: Sequence[Step]) -> float:
        """1: variance-preserving."""
        return 1.0

    def step(
        self,
        output: Float[Tensor, "*shape"],
        step: UniPCStep,
        x: Float[Tensor, "*shape"],
        carry: Carry,
        noise: Noise,
        eta: float = 0.0,
    ) -> Update:
        """Correct the state that came in, then predict the next.

        `carry` is (earlier predictions, newest first; the state they led from; the order of that step).
        """
        refuse_eta(self, eta)
        x0 = to_x0(output, x, step.alpha, step.sigma, self.prediction_type)
        if self.thresholding:
            x0 = threshold(x0, self.dynamic_thresholding_ratio, self.sample_max_value)
        newest = x0 if self.predict_x0 else to_eps(output, x, step.alpha, step.sigma, self.prediction_type)
        past, x_before, order_before = carry or ((), x, 0)
        if past and step.correctors:
            x = _applied(step.correctors[order_before - 1], x_before, past, newest)
        past = (newest, *past)[: self.solver_order]
        order = min(step.max_order, len(past))
        x_next = _applied(step.predictors[order - 1], x, past)
        return Update(x_next.to(x.dtype), x0, (past, x, order))


def _weights(
    ratios: list[Tensor], signed: Tensor, growth: Tensor, bound: Tensor, *, corrects: bool
) -> tuple[float, ...]:
    """The weights of the differences: solve R rho = b (theorem 3.1), or 1/2 where that is known to do as well."""
    order = len(ratios) + 1
    if order == 1:
        return (0.5,) if corrects else ()
    if order == 2 and not corrects:
        return (0.5,)
    nodes = torch.stack([*ratios, torch.ones(())])
    rows, right = [], []
    phi, factorial = growth / signed - 1, 1
    for k in range(1, order + 1):
        rows.append(torch.pow(nodes, k - 1))
        right.append(phi * factorial / bound)
        factorial *= k + 1
        phi = phi / signed - 1 / factorial
    matrix, vector = torch.stack(rows), torch.stack(right)
    if not corrects:  # the predictor does not know the difference at the end of its step
        matrix, vector = matrix[:-1, :-1], vector[:-1]
    return tuple(torch.linalg.solve(matrix, vector).tolist())


def _applied(by: Formula, x: Tensor, past: tuple[Tensor, ...], ahead: Tensor | None = None) -> Tensor:
    """The formula on predictions, newest first; `ahead` is the prediction at the end of the step."""
    start = past[0]
    terms = [
        weight * ((earlier - start) / ratio)
        for weight, earlier, ratio in zip(by.weights, past[1:], by.ratios, strict=False)
    ]
    if ahead is not None:
        terms.append(by.weights[-1] * (ahead - start))
    x_next = by.keep * x - by.base * start
    return x_next - by.push * sum(terms) if terms else x_next
