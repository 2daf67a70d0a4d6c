"""Callbacks in diffusers' protocol: called as ``callback(pipeline, step, timestep, tensors) -> tensors``."""

from collections.abc import Sequence
from typing import Any

from vivant.config import Config, as_python
from vivant.errors import InputError


class PipelineCallback:
    """Base of callbacks that act once, at a share or an index of the steps.

    Args:
        cutoff_step_ratio: share of the steps in [0, 1] after which to act.
        cutoff_step_index: index of the step at which to act; it wins over the ratio.
    """

    def __init__(self, cutoff_step_ratio: float | None = 1.0, cutoff_step_index: int | None = None):
        if cutoff_step_index is None and cutoff_step_ratio is None:
            raise InputError("E-CALLBACK-CUTOFF", "A callback needs cutoff_step_ratio or cutoff_step_index.")
        ratio, index = as_python(cutoff_step_ratio), as_python(cutoff_step_index)
        if ratio is not None and not (_is_number(ratio, int | float) and ratio <= 1):
            raise InputError("E-CALLBACK-CUTOFF", f"cutoff_step_ratio is {ratio!r}.", "", "Give 0 to 1.")
        if index is not None and not _is_number(index, int):
            what = f"cutoff_step_index is {index!r}."
            raise InputError("E-CALLBACK-CUTOFF", what, "", "Give a whole number, 0 or more.")
        self.config = Config(cutoff_step_ratio=ratio, cutoff_step_index=index)

    @property
    def tensor_inputs(self) -> list[str]:
        """Names of the tensors that `callback_fn` reads or writes."""
        raise NotImplementedError(f"{type(self).__name__} must name its tensor_inputs")

    def callback_fn(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]) -> Any:
        """What to do after a step; returns the tensors to go on with."""
        raise NotImplementedError(f"{type(self).__name__} must define callback_fn")

    def __call__(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]) -> Any:
        return self.callback_fn(pipeline, step_index, timestep, callback_kwargs)

    def cutoff_step(self, pipeline: Any) -> int:
        """The step at which to act, for the run that `pipeline` is in."""
        if self.config.cutoff_step_index is not None:
            return self.config.cutoff_step_index
        return int(pipeline.num_timesteps * self.config.cutoff_step_ratio)


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and value >= 0


class MultiPipelineCallbacks:
    """Several callbacks, one after the other."""

    def __init__(self, callbacks: Sequence[PipelineCallback]):
        self.callbacks = list(callbacks)

    @property
    def tensor_inputs(self) -> list[str]:
        """All tensors that one of the callbacks needs."""
        return [name for callback in self.callbacks for name in callback.tensor_inputs]

    def __call__(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]) -> Any:
        for callback in self.callbacks:
            callback_kwargs = callback(pipeline, step_index, timestep, callback_kwargs)
            check_returned(callback, callback_kwargs)
        return callback_kwargs


def check_returned(callback: Any, returned: object) -> None:
    """Refuse (E-CALLBACK-RETURN) what is no dictionary of tensors."""
    if not isinstance(returned, dict):
        raise bad_return(callback, type(returned).__name__)


def bad_return(callback: Any, found: str) -> InputError:
    """What to raise when a callback did not return what it should."""
    name = getattr(callback, "__name__", type(callback).__name__)
    return InputError(
        "E-CALLBACK-RETURN",
        f"The callback {name} returned {found}.",
        "",
        "Return the dictionary of tensors that it was given, changed or not.",
    )


class SDCFGCutoffCallback(PipelineCallback):
    """Switch guidance off after the cutoff: the remaining steps run the network once instead of twice."""

    @property
    def tensor_inputs(self) -> list[str]:
        """The prompts: their negative half is dropped."""
        return ["prompt_embeds"]

    def callback_fn(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]) -> Any:
        """Act at the cutoff, pass everything on otherwise."""
        if step_index == self.cutoff_step(pipeline) and pipeline.do_classifier_free_guidance:
            embeds = callback_kwargs["prompt_embeds"]
            callback_kwargs["prompt_embeds"] = embeds[len(embeds) // 2 :]
            pipeline._guidance_scale = 0.0
        return callback_kwargs
