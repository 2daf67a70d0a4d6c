"""The training loop: the only one. What is learnt comes from a `Task`, in numbers for each sample.

Gradients of a batch are those of the mean loss of its samples. However the batch is cut into micro-batches or shared
among processes, they are the same sum, since every sample brings its own noise (`samples.Draws`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vivant.compiling import compiling
from vivant.errors import InputError, OutputError
from vivant.placement import default_dtype
from vivant.train.average import averaged, blend_
from vivant.train.checkpoint import Memory, checkpoints, read, write
from vivant.train.log import Log
from vivant.train.processes import Processes
from vivant.train.samples import Batch, Draws, Prepare, Source, batches, parts_of
from vivant.train.settings import Settings, learning_rate


@runtime_checkable
class Task(Protocol):
    """What one kind of training has to say.

    Attributes:
        networks: all networks that a step computes with, trained or not.
        weights: the tensors to train, by the names under which checkpoints keep them.
        prepare: from a clip to a sample.
    """

    networks: Sequence[nn.Module]
    weights: Mapping[str, nn.Parameter]
    prepare: Prepare

    def losses(self, batch: Batch, draws: Draws, dtype: torch.dtype) -> dict[str, Float[Tensor, " b"]]:
        """Numbers for each sample: `loss`, which is minimised, and others to be logged."""
        ...

    def show(self, folder: Path, step: int) -> None:
        """Write a sheet of samples of the network as it is now."""
        ...

    def export(self, folder: Path) -> None:
        """Write the network in its published layout."""
        ...


@dataclass(frozen=True)
class Progress:
    """Where a run is. `values` are the means of the last line of the log."""

    step: int
    total: int
    seconds: float
    first_step: int
    values: Mapping[str, float]

    @property
    def remaining(self) -> float:
        """Seconds to the last step at the present pace."""
        return self.seconds / max(1, self.step - self.first_step) * (self.total - self.step)


def autocast_dtype(settings: Settings, device: str) -> torch.dtype:
    """In what the products of a run are computed."""
    if settings.precision == "auto":
        dtype, _ = default_dtype(device)
        return torch.float32 if dtype == torch.float16 else dtype
    return torch.bfloat16 if settings.precision == "bfloat16" else torch.float32


def optimiser(task: Task, settings: Settings) -> torch.optim.AdamW:
    """AdamW; what has one axis (biases, norms) is not pulled to zero."""
    matrices = [p for p in task.weights.values() if p.ndim > 1]
    vectors = [p for p in task.weights.values() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    betas, lr = (settings.beta1, settings.beta2), settings.learning_rate
    adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, eps=settings.epsilon)
    for p in task.weights.values():  # from the start, so that a checkpoint can be read into it
        adam.state[p] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return adam


def gradients(
    task: Task, parts: list[Batch], settings: Settings, dtype: torch.dtype, processes: Processes
) -> dict[str, float]:
    """Leave the gradients of the batch's mean loss in the weights, and return the means of all numbers."""
    sums: dict[str, Tensor] = {}
    device = processes.device
    for part in parts:
        draws = Draws(settings.seed, part["n"].tolist(), device)
        batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in part.items()}
        kind = torch.device(device).type
        with torch.autocast(kind, dtype) if dtype != torch.float32 else nullcontext():
            values = task.losses(batch, draws, dtype)
        (values["loss"].sum() / settings.batch).backward()
        for name, value in values.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach().float().sum()
    processes.sum_([p.grad for p in task.weights.values() if p.grad is not None])
    processes.sum_(list(sums.values()))
    return {name: value.item() / settings.batch for name, value in sums.items()}


def train(
    task: Task,
    source: Source,
    settings: Settings,
    folder: Path,
    *,
    recipe: Mapping[str, Any] | None = None,
    resume: bool = False,
    processes: Processes | None = None,
    on_step: Callable[[Progress], None] = lambda at: None,
) -> Path:
    """Train, and export the result.

    Args:
        task: what is learnt.
        source: what it is learnt from.
        settings: numbers of the run.
        folder: gets `checkpoints/`, `log.csv`, `samples/` and, at the end, `export/`.
        recipe: what else makes this run what it is; a resumed run must agree.
        resume: go on from the newest checkpoint in `folder`, bit for bit.
        processes: who shares the work.
        on_step: called after every update; what it raises ends the run between two updates.

    Returns:
        The folder of the exported network.

    Raises:
        InputError: E-TRAIN-EXISTS where `folder` holds a run that is not to be resumed, E-TRAIN-RESUME.
        OutputError: E-TRAIN-NAN when the loss is no number any more; the last checkpoint is from before.
    """
    processes = processes or Processes()
    saved = checkpoints(folder / "checkpoints")
    if saved and not resume:
        raise InputError(
            "E-TRAIN-EXISTS",
            f"{folder} holds a run of {saved[-1][0]} steps.",
            "",
            "Resume it (--resume), or choose another output folder.",
        )
    if settings.batch < processes.world:
        raise InputError("E-TRAIN-SETTING", f"batch is {settings.batch}, less than one for each of the processes.")
    for network in task.networks:
        network.to(processes.device)
    adam, dtype = optimiser(task, settings), autocast_dtype(settings, processes.device)
    weights = {name: p.detach() for name, p in task.weights.items()}
    average = {name: p.clone() for name, p in weights.items()} if settings.ema else {}
    moments = [{name: adam.state[p][kind] for name, p in task.weights.items()} for kind in ("exp_avg", "exp_avg_sq")]
    memory, recipe, first = Memory(weights, average, *moments), recipe or {}, 0
    if saved:
        first = read(saved[-1][1], memory, settings, recipe)
        for p in task.weights.values():
            adam.state[p]["step"].fill_(first)
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder, first, settings.tensorboard) if processes.leads else None

    start, since, window = time.perf_counter(), time.perf_counter(), Means()
    stream = iter(batches(source, task.prepare, settings, first, processes.rank, processes.world))
    shown: dict[str, float] = {}
    for step in range(first, settings.steps):
        rate = learning_rate(settings, step)
        for group in adam.param_groups:
            group["lr"] = rate
        parts = [next(stream) for _ in parts_of(step, settings, processes.rank, processes.world)]
        values = gradients(task, parts, settings, dtype, processes)
        length = torch.nn.utils.get_total_norm([p.grad for p in task.weights.values() if p.grad is not None])
        if not length.isfinite():
            raise OutputError(
                "E-TRAIN-NAN",
                f"The gradient of step {step + 1} is not a number.",
                "The learning rate may be too high, or a sample is broken.",
                "Resume from the last checkpoint with a lower learning rate, in another output folder.",
            )
        if settings.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(list(task.weights.values()), settings.clip_norm, length)
        adam.step()
        adam.zero_grad(set_to_none=True)
        blend_(average, weights, step, settings.ema)

        done, ends = step + 1, step + 1 == settings.steps
        window.add({**values, "gradient": length.item(), "learning rate": rate})
        if done % settings.log_every == 0 or ends:
            now = time.perf_counter()
            shown, seconds = window.take(), now - since
            since = now
            if log is not None:
                log.write(done, {**shown, "seconds": seconds})
        if processes.leads and (done % settings.checkpoint_every == 0 or ends):
            write(folder / "checkpoints", done, memory, settings, recipe)
        if processes.leads and (ends or (settings.sample_every and done % settings.sample_every == 0)):
            (folder / "samples").mkdir(exist_ok=True)
            with averaged(weights, average):
                task.show(folder / "samples", done)
        on_step(Progress(done, settings.steps, time.perf_counter() - start, first, shown))
    exported = folder / "export"
    if processes.leads:
        with averaged(weights, average):
            task.export(exported)
    processes.wait()
    return exported


class Means:
    """Running means of named numbers, taken from time to time."""

    def __init__(self):
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Numbers of one update."""
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        means = {name: value / self._count for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        return means


def trainable(module: nn.Module, prefix: str = "") -> dict[str, nn.Parameter]:
    """All parameters of a module, made to learn, in float32."""
    module.float().requires_grad_(True)
    return {prefix + name: p for name, p in module.named_parameters()}


def checkpoint_blocks(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Gradient checkpointing: keep only the inputs of the given layers, and compute the rest anew on the way back."""
    from torch.utils.checkpoint import checkpoint

    for layer in module.modules():
        if isinstance(layer, kinds):
            forward = layer.forward
            layer.forward = lambda *args, _forward=forward: checkpoint(_forward, *args, use_reentrant=False)


def compile_blocks(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Compile the given layers for training; where nothing is learnt they run as they are written.

    Raises:
        MissingPackage: E-COMPILE where torch cannot compile, at the first step.
    """
    for layer in module.modules():
        if isinstance(layer, kinds):
            written, compiled = layer.forward, torch.compile(layer.forward, dynamic=False)

            def run(*args: Any, written: Any = written, compiled: Any = compiled) -> Any:
                if not torch.is_grad_enabled():
                    return written(*args)
                with compiling():
                    return compiled(*args)

            layer.forward = run
