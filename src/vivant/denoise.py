"""The only sampling loop: a fold of `step` over a schedule, watched and steered by one hook."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from vivant.errors import InputError

Step = TypeVar("Step")


@dataclass(frozen=True)
class State:
    """Everything that changes from step to step.

    Attributes:
        i: index of the step that was made, from 0.
        x: the noisy latents.
        x0: the clean latents as the last step predicted them, for previews; None before the first one.
        carry: what the solver remembers between steps (earlier predictions); None before the first one.
        conditioning: what the model looks at (text, picture, mask); a hook may exchange it on the way.
        guidance: the guidance scales of the coming step; a hook may exchange them too.
    """

    i: int
    x: Float[Tensor, "..."]
    x0: Float[Tensor, "..."] | None = None
    carry: Any = None
    conditioning: Any = None
    guidance: Any = None


StepFn = Callable[[State, Step], State]
OnStep = Callable[[State], State]


def keep(state: State) -> State:
    """The hook that does nothing."""
    return state


def run(state: State, schedule: Sequence[Step], step: StepFn[Step], on_step: OnStep = keep) -> State:
    """Denoise: apply `step` for every entry of `schedule`.

    Progress, preview and callbacks are hooks that return the state; a hook that changes something returns
    `dataclasses.replace(state, …)`; one that stops the run raises `Cancelled`, and no further step is made.

    Args:
        state: the start; its `i` is not read.
        schedule: one entry for every step, as the solver made it.
        step: from a state and an entry to the next state; `i` is counted here.
        on_step: called after every step; its result is what the next step sees.
    """
    for i, t in enumerate(schedule):
        state = on_step(replace(step(state, t), i=i))
    return state


def check_latents(latents: object, shape: Sequence[int]) -> None:
    """Refuse (E-LATENTS-SHAPE) latents from outside that are not of this run's shape."""
    if not isinstance(latents, Tensor) or tuple(latents.shape) != tuple(shape):
        found = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise InputError(
            "E-LATENTS-SHAPE",
            f"latents are {found}; this run needs a tensor of the shape {tuple(shape)}.",
            "Latents are an eighth as wide and high as the frames.",
        )
