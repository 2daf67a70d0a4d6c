"""How a run trains, whatever it trains: a frozen value, read from the table `[training]` of a recipe."""

from dataclasses import dataclass, fields
from math import cos, pi
from typing import Literal, get_args

from vivant.errors import InputError

Decay = Literal["constant", "cosine"]
Precision = Literal["auto", "bfloat16", "float32"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Numbers of a run.

    Attributes:
        steps: updates of the weights.
        batch: samples of one update, over all processes.
        micro_batch: samples that go through the network together; the gradients of a batch are those of its samples,
            however it is cut. All of a process' share if None.
        learning_rate: of AdamW, after the warm-up.
        warmup: steps over which it rises from 0.
        decay: `cosine` falls to 0 at the last step.
        beta1: memory of AdamW's mean.
        beta2: memory of its variance.
        epsilon: its guard against division by zero.
        weight_decay: decoupled, on matrices and kernels only, not on biases and norms.
        clip_norm: longest gradient; 0 does not clip.
        ema: memory of the average of the weights, which is what is sampled from and exported; 0 keeps none. The
            average forgets its start quickly: its memory is at most (1 + step) / (10 + step).
        device: where to compute; ``"auto"`` is the best there is. Under torchrun every process has a card of its own.
        precision: of products and convolutions; weights, their averages and losses stay in float32.
        gradient_checkpointing: compute activations twice rather than keep them.
        seed: of everything that is drawn.
        workers: processes that read and prepare samples; 0 does it between steps.
        checkpoint_every: steps between checkpoints; there is always one at the end.
        keep: how many checkpoints to keep.
        sample_every: steps between sheets of samples; 0 makes none but at the end.
        log_every: steps between lines of the log; each is the mean over the steps since the one before.
        tensorboard: write curves for TensorBoard too.
    """

    steps: int
    batch: int
    micro_batch: int | None = None
    learning_rate: float = 1e-4
    warmup: int = 0
    decay: Decay = "constant"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.999
    device: str = "auto"
    precision: Precision = "auto"
    gradient_checkpointing: bool = False
    seed: int = 0
    workers: int = 1
    checkpoint_every: int = 500
    keep: int = 2
    sample_every: int = 500
    log_every: int = 10
    tensorboard: bool = False

    def __post_init__(self):
        positive = ("steps", "batch", "learning_rate", "epsilon", "checkpoint_every", "keep", "log_every")
        natural = ("warmup", "weight_decay", "clip_norm", "seed", "workers", "sample_every")
        for names, fits, wanted in (
            (positive, lambda v: v > 0, "greater than 0"),
            (natural, lambda v: v >= 0, "0 or more"),
            (("beta1", "beta2", "ema"), lambda v: 0 <= v < 1, "at least 0 and below 1"),
        ):
            for name in names:
                value = getattr(self, name)
                if not fits(value):
                    raise InputError("E-TRAIN-SETTING", f"{name} is {value!r}; it must be {wanted}.")
        if self.micro_batch is not None and not 0 < self.micro_batch <= self.batch:
            raise InputError("E-TRAIN-SETTING", f"micro_batch is {self.micro_batch}; it must be 1 to {self.batch}.")
        for name, kinds in (("decay", get_args(Decay)), ("precision", get_args(Precision))):
            if getattr(self, name) not in kinds:
                raise InputError(
                    "E-TRAIN-SETTING", f"{name} is {getattr(self, name)!r}.", "", f"Use {' or '.join(kinds)}."
                )

    def differences(self, other: "Settings") -> tuple[str, ...]:
        """Fields that a resumed run must share with its beginning, and does not.

        What only watches, saves or reads ahead may change, and how a batch is cut; `steps` may unless the learning
        rate depends on it.
        """
        free = {"checkpoint_every", "keep", "sample_every", "log_every", "tensorboard", "workers", "micro_batch"}
        free |= {"device", "gradient_checkpointing"} | ({"steps"} if self.decay == "constant" else set())
        names = (f.name for f in fields(self) if f.name not in free)
        return tuple(name for name in names if getattr(self, name) != getattr(other, name))


def learning_rate(settings: Settings, step: int) -> float:
    """The learning rate of the update with index `step`, from 0."""
    risen = min(1.0, (step + 1) / (settings.warmup + 1))
    if settings.decay == "constant":
        return settings.learning_rate * risen
    done = max(0.0, (step - settings.warmup) / max(1, settings.steps - settings.warmup))
    return settings.learning_rate * risen * (1 + cos(pi * done)) / 2
