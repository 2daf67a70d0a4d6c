"""What all solvers share: the protocol, the noise schedule, its discretisation, and what a network's output means.

A state is ``x = alpha x0 + sigma noise``. Variance-preserving solvers keep alpha^2 + sigma^2 = 1 (alpha^2 is `abar`
of DDPM); the solvers that think in sigma keep alpha = 1 and shrink what the network sees. All scalars are computed
here once, in float32 on the CPU with the operations of the reference, and travel as Python floats: no step waits for
a device, and float32 results agree with the reference to the last bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, pi
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vivant.errors import InputError

Betas = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Prediction = Literal["epsilon", "sample", "v_prediction"]
Spacing = Literal["leading", "linspace", "trailing"]
BETAS, PREDICTIONS, SPACINGS = get_args(Betas), get_args(Prediction), get_args(Spacing)

Noise = Callable[[], Tensor]
Numbers = Sequence[int | float]
Carry = tuple[Any, ...] | None


@dataclass(frozen=True, kw_only=True)
class Step:
    """One evaluation of the network and the update that follows; solvers add their own scalars.

    Attributes:
        index: place in the whole schedule; a slice of a schedule keeps it.
        t: the timestep that the network is told.
        alpha: factor of the clean sample in the state that enters this step.
        sigma: factor of the noise in that state.
        level: noise over signal, sigma / alpha (infinite where no signal is left).
        level_next: the level that the step leads to; 0 is the clean sample.
        norm: the standard deviation of the state, by which it is divided before the network sees it.
    """

    index: int
    t: int | float
    alpha: float
    sigma: float
    level: float
    level_next: float
    norm: float = 1.0

    def model_input(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The state as the network sees it. Divides: ``x * (1 / norm)`` rounds differently from the reference."""
        return x if self.norm == 1.0 else x / self.norm


class Update(NamedTuple):
    """The next state, the clean sample as predicted by this step, and what the next step has to remember."""

    x: Float[Tensor, "..."]
    x0: Float[Tensor, "..."]
    carry: Carry


@runtime_checkable
class Solver(Protocol):
    """What the sampling loop needs. A solver is frozen; its fields are those of the scheduler_config.json.

    `order` counts the steps that one of the N requested steps costs at most, so a truncated run starts at step
    ``order * k``. `uses_eta` says whether `eta` means anything.
    """

    order: ClassVar[int]
    uses_eta: ClassVar[bool]

    @property
    def signal(self) -> Float[Tensor, " t"]:
        """abar of every training timestep."""
        ...

    def schedule(
        self,
        num_steps: int | None = None,
        *,
        timesteps: Numbers | None = None,
        sigmas: Numbers | None = None,
    ) -> tuple[Step, ...]:
        """The steps of a run, noisiest first. Any slice of it is a schedule too, begun with `carry` None."""
        ...

    def init_sigma(self, schedule: Sequence[Step]) -> float:
        """Standard deviation of the initial latents: they are standard normal noise times this."""
        ...

    def step(
        self,
        output: Float[Tensor, "*shape"],
        step: Any,
        x: Float[Tensor, "*shape"],
        carry: Carry,
        noise: Noise,
        eta: float = 0.0,
    ) -> Update:
        """From the network's `output` at `step` and the state `x` to the next state.

        `noise` draws standard normal values of the shape of `x`; it is called only when they are needed.
        """
        ...

    def add_noise(
        self, x0: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], step: Step
    ) -> Float[Tensor, "*shape"]:
        """The state that enters `step`, for a start in the middle of a schedule."""
        ...


def diffuse(x0: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], step: Step) -> Float[Tensor, "*shape"]:
    """The state that enters `step`: alpha x0 + sigma noise, rounded once."""
    return (step.alpha * upcast(x0) + step.sigma * upcast(noise)).to(x0.dtype)


# ------------------------------------------------------------------------------------------- the noise schedule


@runtime_checkable
class NoiseSchedule(Protocol):
    """The fields that name a noise schedule."""

    @property
    def num_train_timesteps(self) -> int: ...
    @property
    def beta_start(self) -> float: ...
    @property
    def beta_end(self) -> float: ...
    @property
    def beta_schedule(self) -> Betas: ...
    @property
    def trained_betas(self) -> tuple[float, ...] | None: ...


def betas(of: NoiseSchedule, *, zero_snr: bool = False, dtype: torch.dtype = torch.float32) -> Float[Tensor, " t"]:
    """The variances beta_t of the forward process.

    Args:
        of: a solver, or anything with the five fields.
        zero_snr: rescale so that the last timestep is pure noise (Lin et al., arXiv 2305.08891, algorithm 1).
        dtype: in which they are computed and returned.

    Raises:
        InputError: E-SOLVER-BETAS where these betas do not make a noise schedule.
    """
    num, start, end = of.num_train_timesteps, of.beta_start, of.beta_end
    if of.trained_betas is not None:
        values = torch.tensor(of.trained_betas, dtype=dtype)
    elif of.beta_schedule == "linear":
        values = torch.linspace(start, end, num, dtype=dtype)
    elif of.beta_schedule == "scaled_linear":
        values = torch.linspace(start**0.5, end**0.5, num, dtype=dtype) ** 2
    else:  # Nichol and Dhariwal, arXiv 2102.09672, equation 17
        cosine = [cos((i / num + 0.008) / 1.008 * pi / 2) ** 2 for i in range(num + 1)]
        ratios = [min(1 - late / early, 0.999) for early, late in pairwise(cosine)]
        values = torch.tensor(ratios, dtype=dtype)
    if values.shape != (num,) or not bool(((values >= 0) & (values < 1)).all()):
        raise InputError(
            "E-SOLVER-BETAS",
            f"The betas do not make a noise schedule of num_train_timesteps={num} steps.",
            f"{len(values)} values from {_extreme(values, min)} to {_extreme(values, max)} were given or computed; "
            "each must be in [0, 1).",
            "Check beta_start, beta_end and trained_betas.",
        )
    return zero_terminal_snr(values) if zero_snr else values


def _extreme(values: Tensor, pick: Callable[[list[float]], float]) -> str:
    """The smallest or largest value for a message."""
    return f"{pick(values.tolist()):g}" if len(values) else "none"


def zero_terminal_snr(values: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """Betas whose last abar is 0 and whose first is unchanged (arXiv 2305.08891, algorithm 1)."""
    abar = without_terminal_signal(torch.cumprod(1.0 - values, dim=0))
    return 1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])


def without_terminal_signal(abar: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """abar whose last value is 0 and whose first is unchanged; the roots keep their proportions."""
    root = abar.sqrt()
    first, last = root[0], root[-1]
    return ((root - last) * (first / (first - last))) ** 2


def alphas_cumprod(of: NoiseSchedule, *, zero_snr: bool = False, floor: bool = False) -> Float[Tensor, " t"]:
    """abar_t = prod(1 - beta), float32.

    Args:
        of: as in `betas`.
        zero_snr: as in `betas`.
        floor: with `zero_snr`, end in 2^-24 (sigma 4096) rather than 0, for solvers that divide by abar.
    """
    abar = torch.cumprod(1.0 - betas(of, zero_snr=zero_snr), dim=0)
    if zero_snr and floor:
        abar[-1] = 2**-24
    return abar


# ------------------------------------------------------------------------------------------------ discretisation


def check_choice(num_steps: int | None, timesteps: Numbers | None, sigmas: Numbers | None) -> None:
    """A schedule is asked for by exactly one of a number of steps, timesteps and sigmas.

    Raises:
        InputError: E-SOLVER-SCHEDULE.
    """
    given = [
        name
        for name, value in (("num_steps", num_steps), ("timesteps", timesteps), ("sigmas", sigmas))
        if value is not None
    ]
    if len(given) != 1:
        raise InputError(
            "E-SOLVER-SCHEDULE",
            f"A schedule needs exactly one of num_steps, timesteps and sigmas, not {' and '.join(given) or 'none'}.",
        )


def refuse_custom(solver: object, **given: Numbers | None) -> None:
    """Refuse a kind of custom schedule that a solver has no meaning for.

    Raises:
        InputError: E-SOLVER-CUSTOM.
    """
    for name, value in given.items():
        if value is not None:
            raise InputError(
                "E-SOLVER-CUSTOM",
                f"{type(solver).__name__} takes no custom {name}.",
                "",
                "Give a number of steps, or use the Euler solver, which takes both timesteps and sigmas.",
            )


def refuse_eta(solver: object, eta: float) -> None:
    """Refuse `eta` where the method has no such parameter.

    Raises:
        InputError: E-SOLVER-ETA.
    """
    if eta != 0.0:
        raise InputError(
            "E-SOLVER-ETA",
            f"eta={eta} has no meaning for {type(solver).__name__}.",
            "Only DDIM and TCD have this parameter.",
            "Leave eta at 0, or use DDIM.",
        )


def checked_count(num_steps: int | None, num_train: int) -> int:
    """A number of steps between one and one for every timestep of the training.

    Raises:
        InputError: E-SOLVER-STEPS.
    """
    if not isinstance(num_steps, int) or isinstance(num_steps, bool) or not 1 <= num_steps <= num_train:
        raise InputError(
            "E-SOLVER-STEPS",
            f"num_steps={num_steps!r} is not a number of steps.",
            f"The model knows {num_train} timesteps.",
            f"Give a whole number from 1 to {num_train}.",
        )
    return num_steps


def spaced(
    spacing: Spacing,
    num_train: int,
    num_steps: int | None,
    offset: int,
    *,
    top: int | None = None,
    drop_last: bool = False,
) -> np.ndarray:
    """Timesteps of a run, noisiest first, by the names of Lin et al. (arXiv 2305.08891, table 2).

    Args:
        spacing: `leading` counts in whole strides from 0, `trailing` in strides down from the end, `linspace` goes
            from end to end and is not rounded.
        num_train: number of training timesteps.
        num_steps: number of timesteps wanted.
        offset: added to `leading` timesteps.
        top: begin below this timestep rather than below `num_train`.
        drop_last: space one more and drop the last, for solvers that end on the clean sample (not for `trailing`).

    Raises:
        InputError: E-SOLVER-STEPS when that many steps cannot be had from this spacing.
    """
    num_steps = checked_count(num_steps, num_train)
    top = num_train if top is None else top
    count = num_steps + drop_last
    if spacing == "linspace":
        # One step starts from noise, where the reference, which counts from 0 upwards, would start at t = 0.
        values = np.linspace(0, top - 1, count)[::-1] if count > 1 else np.array([top - 1.0])
    elif spacing == "leading":
        values = np.arange(count)[::-1] * (top // count) + float(offset)
    else:
        # The slice removes the timestep -1 that rounding in arange adds for some numbers of steps, 61 among them.
        values = np.arange(top, 0, -num_train / num_steps)[:num_steps].round() - 1.0
    if drop_last and spacing != "trailing":
        values = values[:-1]
    if values[0] > num_train - 1 or values[-1] < 0 or (np.diff(values) >= 0).any():
        raise InputError(
            "E-SOLVER-STEPS",
            f"{num_steps} steps with {spacing} spacing and steps_offset={offset} do not fit the {num_train} timesteps "
            "of the training.",
            f"They would go from {values[0]:g} to {values[-1]:g}.",
            "Take fewer steps, or another timestep_spacing.",
        )
    return values


def checked_timesteps(timesteps: Numbers, num_train: int) -> np.ndarray:
    """Custom timesteps as float64, noisiest first.

    Raises:
        InputError: E-SOLVER-TIMESTEPS unless they fall strictly and lie in the training range.
    """
    values = np.asarray([float(t) for t in timesteps], dtype=np.float64)
    inside = len(values) > 0 and bool(((values >= 0) & (values <= num_train - 1)).all())
    if not inside or (np.diff(values) >= 0).any():
        raise InputError(
            "E-SOLVER-TIMESTEPS",
            "The custom timesteps are not a schedule.",
            f"They must fall strictly from step to step, within {num_train - 1} to 0.",
            "Sort them from noisy to clean and remove repetitions.",
        )
    return values


def whole_timesteps(timesteps: Numbers, num_train: int) -> np.ndarray:
    """Custom timesteps of a solver that knows only those of the training, as int64.

    Raises:
        InputError: E-SOLVER-TIMESTEPS, also for a fraction.
    """
    values = checked_timesteps(timesteps, num_train)
    if (values % 1 != 0).any():
        raise InputError(
            "E-SOLVER-TIMESTEPS",
            "The custom timesteps hold a fraction.",
            "This solver knows only the timesteps of the training.",
            "Round them, or use the Euler solver.",
        )
    return values.astype(np.int64)


# ---------------------------------------------------------------------------------- what the network's output means


class Scalars(NamedTuple):
    """alpha, sigma and level of a variance-preserving state with the given abar."""

    alpha: float
    sigma: float
    level: float


def scalars(abar: Float[Tensor, ""]) -> Scalars:
    """sqrt(abar), sqrt(1 - abar) and sqrt((1 - abar) / abar), in float32."""
    return Scalars((abar**0.5).item(), ((1 - abar) ** 0.5).item(), (((1 - abar) / abar) ** 0.5).item())


def check_signal(steps: Sequence[Step], prediction: Prediction) -> None:
    """Refuse to recover a clean sample from pure noise by a prediction of that noise.

    Raises:
        InputError: E-SOLVER-ZERO-SNR.
    """
    if prediction == "epsilon" and any(step.alpha == 0.0 for step in steps):
        raise InputError(
            "E-SOLVER-ZERO-SNR",
            "The schedule begins at pure noise, where predicting the noise says nothing about the sample.",
            "rescale_betas_zero_snr needs prediction_type v_prediction or sample at the last timestep.",
            'Set rescale_betas_zero_snr=False, or timestep_spacing="leading".',
        )


def to_x0(
    output: Float[Tensor, "*shape"],
    x: Float[Tensor, "*shape"],
    alpha: float | Float[Tensor, ""],
    sigma: float | Float[Tensor, ""],
    prediction: Prediction,
) -> Float[Tensor, "*shape"]:
    """The clean sample that a network's output implies, at a variance-preserving state."""
    if prediction == "epsilon":
        return (x - sigma * output) / alpha
    if prediction == "sample":
        return output
    return alpha * x - sigma * output


def to_eps(
    output: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], alpha: float, sigma: float, prediction: Prediction
) -> Float[Tensor, "*shape"]:
    """The noise that a network's output implies, at a variance-preserving state."""
    if prediction == "epsilon":
        return output
    if prediction == "sample":
        return (x - alpha * output) / sigma
    return alpha * output + sigma * x


@runtime_checkable
class Clipping(Protocol):
    """The fields that say how a predicted clean sample is kept in range."""

    @property
    def thresholding(self) -> bool: ...
    @property
    def dynamic_thresholding_ratio(self) -> float: ...
    @property
    def sample_max_value(self) -> float: ...
    @property
    def clip_sample(self) -> bool: ...
    @property
    def clip_sample_range(self) -> float: ...


def kept_in_range(x0: Float[Tensor, "b ..."], of: Clipping) -> Float[Tensor, "b ..."]:
    """`x0` thresholded or clipped as the solver's fields say; thresholding comes first."""
    if of.thresholding:
        return threshold(x0, of.dynamic_thresholding_ratio, of.sample_max_value)
    return x0.clamp(-of.clip_sample_range, of.clip_sample_range) if of.clip_sample else x0


def threshold(x0: Float[Tensor, "b ..."], ratio: float, limit: float) -> Float[Tensor, "b ..."]:
    """Dynamic thresholding (Saharia et al., arXiv 2205.11487, section 2.3): clip at a percentile and divide by it.

    Args:
        x0: predicted clean samples; each is treated on its own.
        ratio: the quantile of |x0| to clip at, at least 1.
        limit: and at most this.
    """
    flat = rearrange(upcast(x0), "b ... -> b (...)")
    bound = torch.quantile(flat.abs(), ratio, dim=1, keepdim=True).clamp(min=1, max=limit)
    return (flat.clamp(-bound, bound) / bound).reshape(x0.shape).to(x0.dtype)


def upcast(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half precision as float32; anything wider as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
