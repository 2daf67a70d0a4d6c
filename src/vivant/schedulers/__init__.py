"""Schedulers as diffusers has them: thin stateful shells over the frozen solvers that the core uses.

Names, constructor keywords, `scheduler_config.json` and the protocol (`set_timesteps`, `scale_model_input`, `step`)
are those of diffusers. A subclass names its solver and has the `step` arguments of its namesake.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal, SupportsIndex, TypeVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from vivant.config import Config
from vivant.errors import InputError, warn
from vivant.rng import Rng
from vivant.schedulers.base import SCHEDULERS, S, Scheduler, SchedulerOutput
from vivant.solvers.cogvideox import (
    CogVideoXDDIM,
    CogVideoXDPM,
    CogVideoXDPMStep,
    Past,
    PortedCogVideoXDDIM,
    PortedCogVideoXDPM,
    half_log_snr,
)
from vivant.solvers.ddim import DDIM
from vivant.solvers.ddpm import DDPM
from vivant.solvers.dpm import DPMSolver
from vivant.solvers.dpm_ancestral import DPM2SAncestral
from vivant.solvers.dpm_singlestep import DPMSinglestep
from vivant.solvers.euler import Churn, Euler, EulerAncestral
from vivant.solvers.heun import Heun
from vivant.solvers.lcm import LCM
from vivant.solvers.lms import LMS
from vivant.solvers.pndm import PNDM
from vivant.solvers.schedule import Solver, betas, checked_count
from vivant.solvers.tcd import TCD
from vivant.solvers.unipc import UniPC

# abar at t = 500 of the schedule that PIA was trained with, and how far another may be from it. Scaled linear betas
# have 0.276; the default range of linear betas, 0.0001 to 0.02, has 0.078.
PIA_SIGNAL, PIA_TOLERANCE = 0.161, 0.01


def _noise(
    like: Tensor,
    generator: Generator | list[Generator] | None,
    given: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Callable[[], Tensor]:
    """Standard normal values like `like`: drawn, or those that were given."""
    dtype = dtype or like.dtype
    if given is None:
        rng = Rng.of(generator, len(like))
        return lambda: rng.normal(like.shape, like.device).to(dtype)
    if generator is not None:
        raise InputError("E-SCHEDULER-NOISE", "variance_noise and generator exclude each other.")
    return lambda: given.to(like.device, dtype)


def _never() -> Tensor:
    """The noise of a solver that does not draw."""
    raise AssertionError("a deterministic solver drew noise")


def _step_with_noise(
    self: Scheduler,
    model_output: Float[Tensor, "*shape"],
    timestep: int | float | Tensor,
    sample: Float[Tensor, "*shape"],
    generator: Generator | list[Generator] | None = None,
    return_dict: bool = True,
) -> SchedulerOutput | tuple[Tensor, ...]:
    """The next state; fresh noise comes from `generator`."""
    return self.advance(model_output, timestep, sample, return_dict, _noise(model_output, generator))


def _step_without_noise(
    self: Scheduler,
    model_output: Float[Tensor, "*shape"],
    timestep: int | float | Tensor,
    sample: Float[Tensor, "*shape"],
    return_dict: bool = True,
) -> SchedulerOutput | tuple[Tensor, ...]:
    """The next state."""
    return self.advance(model_output, timestep, sample, return_dict, _never)


class DDIMScheduler(Scheduler):
    """DDIM; the PIA preset."""

    solver_class = DDIM
    memoryless = True

    def step(
        self,
        model_output: Float[Tensor, "*shape"],
        timestep: int | float | Tensor,
        sample: Float[Tensor, "*shape"],
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generator | list[Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """The next state; `eta` 0 is deterministic, 1 is DDPM."""
        noise = _noise(model_output, generator, variance_noise)
        options = {"eta": eta, "rederive_eps": use_clipped_model_output}
        return self.advance(model_output, timestep, sample, return_dict, noise, **options)


class DDPMScheduler(Scheduler):
    """Ancestral sampling; also the forward process of training."""

    solver_class = DDPM
    memoryless = True
    step = _step_with_noise


class LCMScheduler(Scheduler):
    """For networks distilled into latent consistency models."""

    solver_class = LCM
    step = _step_with_noise

    def set_timesteps(  # pyright: ignore[reportIncompatibleMethodOverride]  # the arguments of its namesake
        self,
        num_inference_steps: SupportsIndex | None = None,
        device: str | torch.device | None = None,
        original_inference_steps: SupportsIndex | None = None,
        timesteps: Iterable[Any] | None = None,
        strength: float = 1.0,
    ) -> None:
        """Make the schedule of a run and forget the last run; give either a number or timesteps.

        Args:
            num_inference_steps: number of steps.
            device: where `timesteps` will be.
            original_inference_steps: the number that the network was distilled on, if not that of the configuration.
            timesteps: custom timesteps.
            strength: the share of the distilled steps (or of the custom timesteps) to use, the least noisy ones.

        Raises:
            InputError: E-SOLVER-… for a schedule that cannot be had, see `LCM.schedule`.
        """
        solver: Any = self.solver
        if original_inference_steps is not None:
            solver = replace(solver, original_inference_steps=operator.index(original_inference_steps))
        _begin_distilled(self, solver, num_inference_steps, device, timesteps, strength)


class TCDScheduler(Scheduler):
    """For networks distilled by trajectory consistency, Hyper-SD among them."""

    solver_class = TCD

    def set_timesteps(  # pyright: ignore[reportIncompatibleMethodOverride]  # the arguments of its namesake
        self,
        num_inference_steps: SupportsIndex | None = None,
        device: str | torch.device | None = None,
        original_inference_steps: SupportsIndex | None = None,
        timesteps: Iterable[Any] | None = None,
        strength: float = 1.0,
    ) -> None:
        """Make the schedule of a run, as `LCMScheduler.set_timesteps` does.

        Args:
            num_inference_steps, device, timesteps, strength: as there.
            original_inference_steps: if given, at least the number of steps: they are chosen from all timesteps of the
                training.

        Raises:
            InputError: E-SOLVER-… for a schedule that cannot be had, see `TCD.schedule`.
        """
        solver: Any = self.solver
        if original_inference_steps is not None:
            if num_inference_steps is not None:
                checked_count(operator.index(num_inference_steps), operator.index(original_inference_steps))
            solver = replace(solver, original_inference_steps=solver.num_train_timesteps)
        _begin_distilled(self, solver, num_inference_steps, device, timesteps, strength)

    def step(
        self,
        model_output: Float[Tensor, "*shape"],
        timestep: int | float | Tensor,
        sample: Float[Tensor, "*shape"],
        eta: float = 0.3,
        generator: Generator | list[Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """The next state; `eta`, the paper's gamma, is the share of fresh noise."""
        return self.advance(model_output, timestep, sample, return_dict, _noise(model_output, generator), eta=eta)


def _begin_distilled(
    scheduler: LCMScheduler | TCDScheduler,
    solver: Any,
    num_steps: SupportsIndex | None,
    device: str | torch.device | None,
    timesteps: Iterable[Any] | None,
    strength: float,
) -> None:
    """Take up the schedule that a distilled network's solver makes of a number of steps or of timesteps."""
    count = None if num_steps is None else operator.index(num_steps)
    told = None if timesteps is None else [float(t) for t in timesteps]
    schedule = solver.schedule(count, timesteps=told, strength=strength)
    scheduler.begin(schedule, count or len(told or ()), device)


class EulerAncestralDiscreteScheduler(Scheduler):
    """Euler with fresh noise at every step."""

    solver_class = EulerAncestral
    spaced_by_sigma = exploding = True
    step = _step_with_noise


class DPMSolver2SAncestralScheduler(Scheduler):
    """DPM++ 2S a of k-diffusion, which diffusers lacks; two evaluations a step, fresh noise after each."""

    solver_class = DPM2SAncestral
    spaced_by_sigma = exploding = True
    step = _step_with_noise


class HeunDiscreteScheduler(Scheduler):
    """Heun's method; two evaluations a step."""

    solver_class = Heun
    spaced_by_sigma = exploding = True
    step = _step_without_noise


class PNDMScheduler(Scheduler):
    """Pseudo numerical methods; what Stable Diffusion 1.5 ships with."""

    solver_class = PNDM
    returns_clean = False
    step = _step_without_noise


class UniPCMultistepScheduler(Scheduler):
    """The unified predictor-corrector."""

    solver_class = UniPC
    spaced_by_sigma = True
    translations: ClassVar = {"solver_type": {"midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}}
    returns_clean = False
    step = _step_without_noise


class EulerDiscreteScheduler(Scheduler):
    """Euler in sigma space."""

    solver_class = Euler
    spaced_by_sigma = exploding = True

    def step(
        self,
        model_output: Float[Tensor, "*shape"],
        timestep: int | float | Tensor,
        sample: Float[Tensor, "*shape"],
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generator | list[Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """The next state; `s_…` are the churn of Karras et al., algorithm 2."""
        churn = Churn(s_churn, s_tmin, s_tmax, s_noise)
        noise = _noise(model_output, generator)
        return self.advance(model_output, timestep, sample, return_dict, noise, churn=churn)


class LMSDiscreteScheduler(Scheduler):
    """Linear multistep in sigma space."""

    solver_class = LMS
    spaced_by_sigma = exploding = True

    def step(
        self,
        model_output: Float[Tensor, "*shape"],
        timestep: int | float | Tensor,
        sample: Float[Tensor, "*shape"],
        order: int = 4,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """The next state; `order` is the number of slopes to use, 1 to 4."""
        return self.advance(model_output, timestep, sample, return_dict, _never, max_order=order)


class DPMSolverMultistepScheduler(Scheduler):
    """DPM-Solver++ and its relatives."""

    solver_class = DPMSolver
    spaced_by_sigma = True
    translations: ClassVar = {
        "solver_type": {"bh1": "midpoint", "bh2": "midpoint", "logrho": "midpoint"},
        "algorithm_type": {"deis": "dpmsolver++"},
    }
    returns_clean = False

    def step(
        self,
        model_output: Float[Tensor, "*shape"],
        timestep: int | float | Tensor,
        sample: Float[Tensor, "*shape"],
        generator: Generator | list[Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """The next state; noise is used by sde-dpmsolver++ only, and drawn in float32."""
        noise = _noise(model_output, generator, variance_noise, torch.float32)
        return self.advance(model_output, timestep, sample, return_dict, noise)


class DPMSolverSinglestepScheduler(Scheduler):
    """DPM-Solver++ in groups of evaluations that start from the same state; DPM++ SDE of other programs."""

    solver_class = DPMSinglestep
    spaced_by_sigma = True
    translations: ClassVar = DPMSolverMultistepScheduler.translations
    returns_clean = False
    step = _step_with_noise


C = TypeVar("C", bound="_CogVideoXScheduler")


class _CogVideoXScheduler(Scheduler):
    """What the samplers of CogVideoX share: a noise schedule in float64, and the choice of whose behaviour to have."""

    memoryless = True
    ported_class: ClassVar[type[Any]]

    @classmethod
    def from_config(cls: type[C], config: Any, *, compat: Literal["diffusers"] | None = None, **changes: Any) -> C:
        """As for every scheduler.

        Args:
            config: as for every scheduler.
            compat: ``"diffusers"`` computes as diffusers does, bit for bit: see docs/differences.md. It is no part of
                `.config` and of files.
            changes: as for every scheduler.

        Raises:
            InputError: E-COMPAT for another `compat`; otherwise as for every scheduler.
        """
        if compat not in (None, "diffusers"):
            raise InputError("E-COMPAT", f"compat is {compat!r}.", "", 'Give None or "diffusers".')
        scheduler = super().from_config(config, **changes)
        if compat:
            scheduler._solver = cls.ported_class(**vars(scheduler.solver))
        return scheduler

    @cached_property
    def betas(self) -> Float[Tensor, " t"]:
        """Variances of the forward process, before the signal-to-noise ratio is shifted and rescaled; float64."""
        solver: Any = self.solver
        return betas(solver, dtype=torch.float64)

    def _say_unused(self, eta: float, use_clipped_model_output: bool, variance_noise: Tensor | None) -> None:
        """Warn about arguments that change nothing: the reference has them and never reads them."""
        name = type(self).__name__
        if eta:
            warn("W-ETA-IGNORED", f"eta={eta} has no meaning for {name}; it is ignored.", stacklevel=3)
        for argument, given in (
            ("use_clipped_model_output", use_clipped_model_output),
            ("variance_noise", variance_noise is not None),
        ):
            if given:
                warn("W-SCHEDULER-ARGUMENT", f"{name} has no use for {argument}; it is ignored.", stacklevel=3)


class CogVideoXDDIMScheduler(_CogVideoXScheduler):
    """DDIM with the noise schedule of CogVideoX; deterministic."""

    solver_class = CogVideoXDDIM
    ported_class = PortedCogVideoXDDIM

    def step(
        self,
        model_output: Float[Tensor, "*shape"],
        timestep: int | float | Tensor,
        sample: Float[Tensor, "*shape"],
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generator | list[Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """The next state. Nothing is drawn; `eta`, `use_clipped_model_output`, `variance_noise` are warned about."""
        self._say_unused(eta, use_clipped_model_output, variance_noise)
        return self.advance(model_output, timestep, sample, return_dict, _never)


class CogVideoXDPMScheduler(_CogVideoXScheduler):
    """SDE-DPM-Solver++ of order 2 with the noise schedule of CogVideoX; what ConsisID ships with."""

    solver_class = CogVideoXDPM
    ported_class = PortedCogVideoXDPM

    def step(
        self,
        model_output: Float[Tensor, "*shape"],
        old_pred_original_sample: Float[Tensor, "*shape"] | None,
        timestep: int | float | Tensor,
        timestep_back: int | float | Tensor | None,
        sample: Float[Tensor, "*shape"],
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generator | list[Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = False,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """The next state, and the clean sample as this step predicts it, to be handed to the next step.

        Args:
            model_output: what the network said.
            old_pred_original_sample: the clean sample as the step before predicted it; None makes a step of order 1.
            timestep: an entry of `timesteps`.
            timestep_back: the timestep of the step before.
            sample: the state.
            eta, use_clipped_model_output: no effect, of which a warning tells.
            generator: source of the noise.
            variance_noise: the noise itself, instead; no effect with `compat`, of which a warning tells.
            return_dict: return `SchedulerOutput` instead of a tuple of its fields.

        Raises:
            InputError: E-SCHEDULER-TIMESTEP if `timestep` is not in the schedule, or `timestep_back` is needed and not
                a noisier timestep of the training; E-SCHEDULER-NOISE, E-GENERATORS.
        """
        ported = isinstance(self.solver, PortedCogVideoXDPM)
        self._say_unused(eta, use_clipped_model_output, variance_noise if ported else None)
        noise = _noise(sample, generator, None if ported else variance_noise)
        self._carry = self._past(old_pred_original_sample, timestep, timestep_back)
        return self.advance(model_output, timestep, sample, return_dict, noise)

    def _past(
        self, x0: Tensor | None, timestep: int | float | Tensor, timestep_back: int | float | Tensor | None
    ) -> Past | None:
        """What the step before left, which the caller keeps."""
        step = self._schedule[self._current(timestep)]
        assert isinstance(step, CogVideoXDPMStep)
        if x0 is None or not step.multistep:
            return None
        back = -1.0 if timestep_back is None else float(timestep_back)
        if not step.t < back < len(self) or back != int(back):
            raise InputError(
                "E-SCHEDULER-TIMESTEP",
                f"timestep_back={timestep_back} is not a timestep before {step.t}.",
                "old_pred_original_sample was predicted at a noisier one, and its place in time is needed.",
                "Pass the entry of scheduler.timesteps before this one.",
            )
        return Past(x0, half_log_snr(self.alphas_cumprod[int(back)]).item())


class UnknownScheduler(Scheduler):
    """A scheduler that vivant lacks: it carries its configuration until it is replaced, and refuses to be used."""

    def __init__(self, **values: Any):
        self._config = Config(values)
        self._forget()

    @classmethod
    def from_config(cls: type[S], config: Any, **changes: Any) -> S:
        """Keep the whole configuration."""
        return cls(**{**config, **changes})

    @property
    def solver(self) -> Solver:
        """Refuse.

        Raises:
            InputError: E-SCHEDULER-UNKNOWN.
        """
        raise InputError(
            "E-SCHEDULER-UNKNOWN",
            f"vivant has no {self.config.get('_class_name', 'scheduler of this kind')}.",
            f"It has {', '.join(SCHEDULERS)}.",
            "Replace it: pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config).",
        )


def scheduler_class(name: str) -> type[Scheduler]:
    """The class of this name; `UnknownScheduler` where there is none."""
    return SCHEDULERS.get(name, UnknownScheduler)


def as_scheduler(scheduler: Any) -> Scheduler:
    """Ours, from ours or from a scheduler object of diffusers, which is read through its class name and `.config`.

    Raises:
        InputError: E-SCHEDULER-TYPE for anything else.
    """
    if isinstance(scheduler, Scheduler):
        return scheduler
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise InputError(
            "E-SCHEDULER-TYPE",
            f"A {type(scheduler).__name__} is not a scheduler.",
            "",
            "Give one of vivant.schedulers, for example DDIMScheduler.from_config(pipe.scheduler.config).",
        )
    name = type(scheduler).__name__
    return scheduler_class(name).from_config({**config, "_class_name": name})


def pia_warnings(solver: Solver) -> list[str]:
    """What makes this solver unfit for PIA: messages that begin with their code.

    W-SOLVER-CLIP: predicted latents are clipped or thresholded. W-SOLVER-BETAS: not the noise schedule of the training.
    """
    messages = []
    for option in ("clip_sample", "thresholding"):
        if getattr(solver, option, False):
            messages.append(
                f"[W-SOLVER-CLIP] {option}=True limits predicted latents as if they were pixels, which spoils the "
                f"clip. Set {option}=False."
            )
    abar = solver.signal[len(solver.signal) // 2].item()
    if abs(abar - PIA_SIGNAL) > PIA_TOLERANCE:
        messages.append(
            f"[W-SOLVER-BETAS] PIA was trained with linear betas from 0.00085 to 0.012, whose abar(500) is "
            f"{PIA_SIGNAL}; here it is {abar:.3f}, which makes clips grey and drifting. "
            'Set beta_schedule="linear", beta_start=0.00085, beta_end=0.012.'
        )
    return messages
