"""The protocol that all schedulers share: configuration, the schedule of a run, and the bookkeeping of its steps."""

import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, SupportsIndex, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from vivant.config import Config, dump_json, load_json, read
from vivant.errors import InputError, warn
from vivant.solvers.schedule import Solver, Step, betas, scalars, upcast
from vivant.solvers.sigmas import at_timesteps, sigma_table

CONFIG_NAME = "scheduler_config.json"

S = TypeVar("S", bound="Scheduler")


class SchedulerOutput(NamedTuple):
    """The next state, and the clean sample as this step predicts it."""

    prev_sample: Float[Tensor, "..."]
    pred_original_sample: Float[Tensor, "..."]

    @property
    def denoised(self) -> Float[Tensor, "..."]:
        """The name that LCMScheduler has for the predicted clean sample."""
        return self.pred_original_sample


SCHEDULERS: dict[str, type["Scheduler"]] = {}
"""Every scheduler that has a solver, by the name that configuration files give it."""


class Scheduler:
    """What all schedulers share. A subclass names its solver and the extra arguments of its `step`.

    Keywords are the fields of the solver, which are those of the scheduler_config.json.

    Raises:
        InputError: E-CONFIG-UNKNOWN for an unknown field, E-CONFIG-VALUE for a value that is not implemented,
            E-SOLVER-OPTIONS for values that contradict each other.
    """

    solver_class: ClassVar[type[Any]]
    # Values of the same field in other schedulers' files, and what they stand for here.
    translations: ClassVar[Mapping[str, Mapping[Any, Any]]] = {}
    # Each step stands alone, so steps are found by their timestep and may come in any order.
    memoryless: ClassVar[bool] = False
    # Steps are spaced by noise over signal, so there are `sigmas`.
    spaced_by_sigma: ClassVar[bool] = False
    # The state is x0 + sigma noise rather than variance-preserving.
    exploding: ClassVar[bool] = False
    # `step(..., return_dict=False)` also returns the predicted clean sample.
    returns_clean: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        if "solver_class" in vars(cls):
            SCHEDULERS[cls.__name__] = cls

    def __init__(self, **values: Any):
        self._adopt(values, keep_unknown=False)

    def _adopt(self, raw: Mapping[str, Any], *, keep_unknown: bool) -> None:
        """Become the scheduler of the configuration `raw`, without a schedule."""
        values = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in raw.items()}
        for key, meaning in self.translations.items():
            if key in values:
                values[key] = meaning.get(values[key], values[key])
        self._solver, config = read(self.solver_class, values, keep_unknown=keep_unknown)
        defaults = [field.name for field in dataclasses.fields(self.solver_class) if field.name not in values]
        self._config = Config({**config, "_class_name": type(self).__name__, "_use_default_values": defaults})
        self._forget()

    def _forget(self) -> None:
        """No schedule, no history."""
        self.num_inference_steps: int | None = None
        self._schedule: tuple[Step, ...] = ()
        self._timesteps: Tensor | None = None
        self._restart()

    def _restart(self) -> None:
        """The beginning of the schedule, without history."""
        self._carry, self.step_index, self.begin_index = None, None, None

    # ----------------------------------------------------------------------------------------------- configuration

    @property
    def solver(self) -> Solver:
        """The frozen solver that does the arithmetic."""
        return self._solver

    @property
    def config(self) -> Config:
        """Every field, also those that only other schedulers use; immutable."""
        return self._config

    @classmethod
    def from_config(cls: type[S], config: Any, **changes: Any) -> S:
        """Build from the configuration of this or any other scheduler, ours or diffusers'.

        Fields that the other scheduler had left at its defaults take the defaults of this one. Fields that this one
        lacks are kept in `.config`, so that nothing is lost on the way back.

        Args:
            config: a scheduler's `.config`, or the content of a scheduler_config.json.
            changes: fields to set; each must be a field of some scheduler. Those of others only are carried along
                like the configuration's, with a warning W-SCHEDULER-FIELD.

        Raises:
            InputError: E-SCHEDULER-CONFIG if `config` is no mapping; otherwise as the constructor.
        """
        if not isinstance(config, Mapping):
            raise InputError(
                "E-SCHEDULER-CONFIG",
                f"from_config needs a configuration, not a {type(config).__name__}.",
                "",
                "Give scheduler.config or a dictionary; files are read by from_pretrained.",
            )
        unknown = sorted(changes.keys() - _fields(*SCHEDULERS.values()))
        if unknown:
            raise InputError("E-CONFIG-UNKNOWN", f"No scheduler has the field {', '.join(unknown)}.")
        scheduler = cls.__new__(cls)
        scheduler._adopt({**_chosen(config), **changes}, keep_unknown=True)
        # These have warnings of their own, wherever they come from.
        zero_snr, snr_shift = "rescale_betas_zero_snr", "snr_shift_scale"
        foreign = sorted(changes.keys() - _fields(cls) - {zero_snr, snr_shift})
        if foreign:
            warn("W-SCHEDULER-FIELD", f"{cls.__name__} has no {', '.join(foreign)}; setting it has no effect.")
        if scheduler.config.get(zero_snr) and zero_snr not in _fields(cls):
            warn(
                "W-SCHEDULER-ZERO-SNR",
                f"{cls.__name__} has no zero-terminal-SNR schedule; rescale_betas_zero_snr has no effect on it.",
            )
        shift = scheduler.config.get(snr_shift, 1)
        if shift not in (None, 1) and snr_shift not in _fields(cls):
            warn(
                "W-SCHEDULER-SNR-SHIFT",
                f"{cls.__name__} cannot shift its noise schedule; snr_shift_scale={shift} has no effect on it.",
            )
        return scheduler

    @classmethod
    def from_pretrained(
        cls: type[S],
        pretrained_model_name_or_path: str | Path,
        subfolder: str | None = None,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **changes: Any,
    ) -> S:
        """Read scheduler_config.json from a folder or a hub repository; `changes` as in `from_config`.

        Raises:
            LoadError: E-REPO-…, E-FILE-MISSING or E-JSON-BROKEN for what cannot be found or read.
            InputError: E-ARG-VALUE for a keyword about loading that would be ignored; otherwise as `from_config`.
        """
        from vivant.hub.keywords import without_loading
        from vivant.hub.repo import Source, locate

        changes = without_loading(changes)
        source = Source(
            pretrained_model_name_or_path,
            subfolder,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        return cls.from_config(load_json(locate(source, [CONFIG_NAME]) / CONFIG_NAME), **changes)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write scheduler_config.json into a folder, which is made if need be."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        dump_json({k: v for k, v in self.config.items() if k != "_use_default_values"}, folder / CONFIG_NAME)

    def __repr__(self) -> str:
        fields = (f"{k}={v!r}" for k, v in self.config.items() if not k.startswith("_"))
        return f"{type(self).__name__}({', '.join(fields)})"

    # ------------------------------------------------------------------------------------------------ the schedule

    @property
    def order(self) -> int:
        """Entries of `timesteps` per requested step."""
        return self.solver.order

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    @cached_property
    def betas(self) -> Float[Tensor, " t"]:
        """Variances of the forward process."""
        solver: Any = self.solver
        return betas(solver, zero_snr=getattr(solver, "rescale_betas_zero_snr", False))

    @cached_property
    def alphas_cumprod(self) -> Float[Tensor, " t"]:
        """abar of every training timestep."""
        return self.solver.signal

    def set_timesteps(
        self,
        num_inference_steps: SupportsIndex | None = None,
        device: str | torch.device | None = None,
        timesteps: Iterable[Any] | None = None,
        sigmas: Iterable[Any] | None = None,
    ) -> None:
        """Make the schedule of a run and forget the last run; give exactly one of a number, timesteps and sigmas.

        Raises:
            InputError: E-SOLVER-… for a schedule that cannot be had, see `Solver.schedule`.
        """
        count = None if num_inference_steps is None else operator.index(num_inference_steps)
        told = None if timesteps is None else [float(t) for t in timesteps]
        levels = None if sigmas is None else [float(s) for s in sigmas]
        schedule = self.solver.schedule(count, timesteps=told, sigmas=levels)
        self.begin(schedule, count or (len(told) if told is not None else len(levels or ()) - 1), device)

    def begin(self, schedule: tuple[Step, ...], num_steps: int, device: str | torch.device | None) -> None:
        """Take up a schedule of `num_steps` requested steps and forget the last run."""
        self._schedule, self.num_inference_steps = schedule, num_steps
        self._restart()
        dtype = torch.int64 if isinstance(self._schedule[0].t, int) else torch.float32
        self._timesteps = torch.tensor([step.t for step in self._schedule], dtype=dtype, device=device)

    @property
    def timesteps(self) -> Tensor:
        """The timesteps to give to the network, noisiest first; before `set_timesteps` all those of the training."""
        return torch.arange(len(self)).flip(0) if self._timesteps is None else self._timesteps

    @property
    def sigmas(self) -> Float[Tensor, " n"]:
        """Noise over signal at each of the timesteps, and after the last.

        Before `set_timesteps` those of the training: noisiest first and down to 0 where the state is x0 + sigma noise,
        otherwise in the order of the training, as in the reference.

        Raises:
            AttributeError: from schedulers that space their steps by time, which `hasattr` tells apart.
        """
        if not self.spaced_by_sigma:
            raise AttributeError(f"{type(self).__name__} has no sigmas: it spaces its steps by time")
        if self._schedule:
            return torch.tensor([*(step.level for step in self._schedule), self._schedule[-1].level_next])
        table = torch.from_numpy(sigma_table(self.alphas_cumprod))
        if not self.exploding:
            return table
        noisiest, later = table.flip(0).tensor_split([1])
        return torch.cat([noisiest, later.repeat_interleave(self.order), torch.zeros(1)])

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial latents; before `set_timesteps` at the last timestep of the training."""
        if not self.exploding:
            return 1.0
        return self.solver.init_sigma(self._schedule or self.solver.schedule(sigmas=[self.sigmas[0].item(), 0.0]))

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the run at this entry of `timesteps`."""
        self.begin_index = begin_index

    def _steps(self) -> tuple[Step, ...]:
        """The schedule, or an error that says how to get one."""
        if not self._schedule:
            raise InputError(
                "E-SCHEDULER-UNSET",
                f"{type(self).__name__} has no schedule yet.",
                "",
                "Call set_timesteps(num_inference_steps) first.",
            )
        return self._schedule

    def _find(self, timestep: int | float | Tensor) -> int | None:
        """Where a timestep is in the schedule.

        Steps that share a timestep are the two ends of a pair (Heun, PNDM), of which a run that begins there wants
        the second, or were rounded together (Karras sigmas). The step that is due comes before that rule, and so does
        the first of all.
        """
        value = float(timestep)
        found = [i for i, step in enumerate(self._steps()) if step.t == value]
        due = self.begin_index if self.step_index is None else self.step_index
        return next((i for i in (due, 0) if i in found), found[min(1, len(found) - 1)] if found else None)

    def _is_index(self, timestep: int | float | Tensor) -> bool:
        """A whole number where timesteps are fractions: somebody passed the index of the loop."""
        whole = not (timestep.is_floating_point() if isinstance(timestep, Tensor) else isinstance(timestep, float))
        return whole and isinstance(self._steps()[0].t, float)

    def _current(self, timestep: int | float | Tensor | None) -> int:
        """The index of the step that is due."""
        steps = self._steps()
        if self.step_index is None or self.memoryless:
            index = None if timestep is None or self._is_index(timestep) else self._find(timestep)
            if self.begin_index is not None and not self.memoryless:
                index = self.begin_index
            if index is None:
                raise InputError(
                    "E-SCHEDULER-TIMESTEP",
                    f"timestep={timestep} is not in the schedule.",
                    f"It begins with {', '.join(f'{step.t:g}' for step in steps[:3])}; an index is not a timestep.",
                    "Pass the entries of scheduler.timesteps as they are.",
                )
            self.step_index = index
        if not 0 <= self.step_index < len(steps):
            raise InputError(
                "E-SCHEDULER-STEP",
                f"Step {self.step_index + 1} was asked of a schedule of {len(steps)} steps.",
                "",
                "Call set_timesteps before every run.",
            )
        return self.step_index

    # ---------------------------------------------------------------------------------------------------- sampling

    def scale_model_input(
        self, sample: Float[Tensor, "*shape"], timestep: int | float | Tensor | None = None
    ) -> Float[Tensor, "*shape"]:
        """The state as the network sees it."""
        if not self.exploding:
            return sample
        return self._steps()[self._current(timestep)].model_input(sample)

    def advance(
        self,
        output: Tensor,
        timestep: int | float | Tensor,
        sample: Tensor,
        return_dict: bool,
        noise: Callable[[], Tensor],
        **options: Any,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """One step of the solver, and the bookkeeping."""
        index = self._current(timestep)
        update = self.solver.step(output, self._schedule[index], sample, self._carry, noise, **options)
        self._carry, self.step_index = update.carry, index + 1
        result = SchedulerOutput(update.x, update.x0)
        return result if return_dict else tuple(result) if self.returns_clean else (update.x,)

    def add_noise(
        self,
        original_samples: Float[Tensor, "b ..."],
        noise: Float[Tensor, "b ..."],
        timesteps: Tensor,
    ) -> Float[Tensor, "b ..."]:
        """Clean samples, noised to the level of one timestep each; computed in float32 or wider and rounded once.

        A timestep of the current schedule has the level that the schedule gives it; any other has that of the
        training.

        Raises:
            InputError: E-SCHEDULER-TIMESTEP outside the training.
        """
        pairs = [self._factors(t) for t in timesteps.reshape(-1).tolist()]
        x0, shape = upcast(original_samples), (-1, *[1] * (original_samples.ndim - 1))
        alpha, sigma = (x0.new_tensor(column).reshape(shape) for column in zip(*pairs, strict=True))
        return (alpha * x0 + sigma * noise).to(original_samples.dtype)

    def _factors(self, t: int | float) -> tuple[float, float]:
        """alpha and sigma at a timestep."""
        index = self._find(t) if self._schedule else None
        if index is not None:
            return self._schedule[index].alpha, self._schedule[index].sigma
        if not 0 <= t <= len(self) - 1 or (not self.exploding and t != int(t)):
            raise InputError(
                "E-SCHEDULER-TIMESTEP",
                f"timestep={t} is not one of the training.",
                f"They go from 0 to {len(self) - 1}.",
            )
        if self.exploding:
            return 1.0, float(at_timesteps(sigma_table(self.alphas_cumprod), torch.tensor([t]).numpy())[0])
        return scalars(self.alphas_cumprod[int(t)])[:2]


def _chosen(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration that somebody chose: without those that are its scheduler's defaults."""
    origin = SCHEDULERS.get(str(config.get("_class_name")))
    own = {f.name: f.default for f in dataclasses.fields(origin.solver_class)} if origin else {}
    defaults = [k for k in config.get("_use_default_values", ()) if k not in own or config.get(k) == own[k]]
    return {k: v for k, v in config.items() if k not in defaults and k != "_use_default_values"}


def _fields(*kinds: type[Scheduler]) -> set[str]:
    """The fields of schedulers."""
    return {field.name for kind in kinds for field in dataclasses.fields(kind.solver_class)}
