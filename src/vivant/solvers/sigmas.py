"""The parametrisation by sigma: noise over signal (Karras et al., arXiv 2206.00364), and schedules made in it.

The solvers of the Euler family keep the state as ``x = x0 + sigma noise``; DPM-Solver++ and UniPC keep a
variance-preserving state but choose their steps by the same sigma.
"""

from collections.abc import Callable, Sequence
from math import log
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vivant.errors import InputError
from vivant.solvers.schedule import Numbers, Prediction, Spacing, Step, check_choice, checked_timesteps, spaced

RHO = 7.0


class Track(NamedTuple):
    """Timesteps (n) and sigmas (n + 1, float32): the level at each timestep, and the one that the last leads to."""

    timesteps: np.ndarray
    sigmas: Float[Tensor, " n_plus_1"]


@runtime_checkable
class SigmaSolver(Protocol):
    """The fields by which every solver of the Euler family spaces its steps."""

    @property
    def num_train_timesteps(self) -> int: ...
    @property
    def timestep_spacing(self) -> Spacing: ...
    @property
    def steps_offset(self) -> int: ...


def sigma_table(abar: Float[Tensor, " t"]) -> np.ndarray:
    """sigma of every training timestep, float32."""
    return (((1 - abar) / abar) ** 0.5).numpy()


def at_timesteps(table: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
    """sigma at timesteps that may be fractions, float64."""
    return np.interp(timesteps, np.arange(len(table)), table)


def to_timesteps(table: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """The (fractional) timesteps at which the training saw these sigmas; inverse of `at_timesteps`, in log sigma."""
    logs, wanted = np.log(table), np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(logs, wanted, side="right") - 1, 0, len(logs) - 2)
    weight = np.clip((logs[low] - wanted) / (logs[low] - logs[low + 1]), 0, 1)
    return (1 - weight) * low + weight * (low + 1)


def karras(sigma_max: float, sigma_min: float, num_steps: int) -> np.ndarray:
    """Sigmas evenly spaced in sigma^(1/7) (arXiv 2206.00364, equation 5), float64."""
    ends = sigma_max ** (1 / RHO), sigma_min ** (1 / RHO)
    return (ends[0] + np.linspace(0, 1, num_steps) * (ends[1] - ends[0])) ** RHO


def exponential(sigma_max: float, sigma_min: float, num_steps: int) -> np.ndarray:
    """Sigmas evenly spaced in log sigma, float64."""
    return np.exp(np.linspace(log(sigma_max), log(sigma_min), num_steps))


Curve = Callable[[float, float, int], np.ndarray]
"""From the ends of a schedule and a number of steps to its sigmas."""


@runtime_checkable
class Curved(Protocol):
    """The fields that say along which curve sigmas are spaced."""

    @property
    def use_karras_sigmas(self) -> bool | None: ...
    @property
    def use_exponential_sigmas(self) -> bool | None: ...


def curve_of(of: Curved) -> Curve | None:
    """`karras` or `exponential`; None where the timesteps decide.

    Raises:
        InputError: E-SOLVER-OPTIONS for both.
    """
    if of.use_karras_sigmas and of.use_exponential_sigmas:
        raise InputError("E-SOLVER-OPTIONS", "use_karras_sigmas and use_exponential_sigmas exclude each other.")
    return karras if of.use_karras_sigmas else exponential if of.use_exponential_sigmas else None


def check_curve(curve: Curve | None, timesteps: Numbers | None) -> None:
    """Refuse custom timesteps where a curve decides; E-SOLVER-SCHEDULE."""
    if curve is not None and timesteps is not None:
        raise InputError("E-SOLVER-SCHEDULE", f"Custom timesteps and use_{curve.__name__}_sigmas exclude each other.")


def with_final(sigmas: np.ndarray, final: float) -> Float[Tensor, " n_plus_1"]:
    """The sigmas and the one that they lead to, float32."""
    return torch.from_numpy(np.append(sigmas, final).astype(np.float32))


def euler_track(
    of: SigmaSolver,
    abar: Float[Tensor, " t"],
    *,
    num_steps: int | None,
    timesteps: Numbers | None,
    sigmas: Numbers | None,
    curve: Curve | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    end_on_sigma_min: bool = False,
) -> Track:
    """The schedule of a solver of the Euler family; timesteps are float32 and may be fractions.

    Args:
        of: the solver.
        abar: its noise schedule.
        num_steps, timesteps, sigmas: exactly one of them; custom sigmas include the final one.
        curve: space the sigmas between the schedule's ends along it.
        sigma_min, sigma_max: other ends for it.
        end_on_sigma_min: lead to the smallest sigma of the training instead of 0.

    Raises:
        InputError: E-SOLVER-SCHEDULE, E-SOLVER-STEPS, E-SOLVER-TIMESTEPS, E-SOLVER-SIGMAS.
    """
    check_choice(num_steps, timesteps, sigmas)
    table = sigma_table(abar)
    if sigmas is not None:
        given = _checked_sigmas(sigmas)
        return Track(to_timesteps(table, given[:-1]).astype(np.float32), torch.from_numpy(given))
    if timesteps is not None:
        check_curve(curve, timesteps)
        told = checked_timesteps(timesteps, of.num_train_timesteps)
    else:
        told = spaced(of.timestep_spacing, of.num_train_timesteps, num_steps, of.steps_offset)
    told = told.astype(np.float32)
    levels = at_timesteps(table, told)
    if curve is not None:
        high = levels[0].item() if sigma_max is None else sigma_max
        levels = curve(high, levels[-1].item() if sigma_min is None else sigma_min, len(told))
        told = to_timesteps(table, levels).astype(np.float32)
    return Track(told, with_final(levels, float(table[0]) if end_on_sigma_min else 0.0))


def _checked_sigmas(sigmas: Numbers) -> np.ndarray:
    """Custom sigmas as float32."""
    values = np.asarray([float(s) for s in sigmas], dtype=np.float32)
    if len(values) < 2 or not np.isfinite(values).all() or (np.diff(values) >= 0).any() or values[-1] < 0:
        raise InputError(
            "E-SOLVER-SIGMAS",
            "The custom sigmas are not a schedule.",
            "They must be at least two, fall strictly and end at 0 or above; the last is where the run ends.",
        )
    return values


def euler_scalars(sigma: Float[Tensor, ""], sigma_next: Float[Tensor, ""]) -> dict[str, float]:
    """The common fields of a step whose state is x0 + sigma noise."""
    return {
        "alpha": 1.0,
        "sigma": sigma.item(),
        "level": sigma.item(),
        "level_next": sigma_next.item(),
        "norm": ((sigma**2 + 1) ** 0.5).item(),
    }


def euler_init_sigma(of: SigmaSolver, schedule: Sequence[Step]) -> float:
    """Standard deviation of initial latents: sigma, and with `leading` also the sample's own unit variance."""
    sigma = torch.tensor(schedule[0].level)
    return (sigma if of.timestep_spacing in ("linspace", "trailing") else (sigma**2 + 1) ** 0.5).item()


def euler_x0(
    output: Float[Tensor, "*shape"],
    x: Float[Tensor, "*shape"],
    level: float,
    prediction: Prediction,
    *,
    shift: float | None = None,
) -> Float[Tensor, "*shape"]:
    """The clean sample that a network's output implies, at the state x0 + level noise.

    Args:
        output: what the network said.
        x: the state (not yet divided by its norm).
        level: sigma of that state.
        prediction: what the network was trained to say.
        shift: a larger sigma to which noise was added after the network had seen the state; epsilon only.
    """
    if prediction == "epsilon":
        return x - (level if shift is None else shift) * output
    if prediction == "sample":
        return output
    sigma = torch.tensor(level)
    return output * (-sigma / (sigma**2 + 1) ** 0.5).item() + x / (sigma**2 + 1).item()


def log_snr(level: Float[Tensor, ""]) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, sigma and lambda = log(alpha / sigma) of a variance-preserving state with this noise over signal."""
    alpha = 1 / (level**2 + 1) ** 0.5
    sigma = level * alpha
    return alpha, sigma, torch.log(alpha) - torch.log(sigma)
