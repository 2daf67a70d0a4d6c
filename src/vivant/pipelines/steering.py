"""Callbacks around a run: what they are shown of a state, and what they change."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch import dtype as Dtype

from vivant.callbacks import MultiPipelineCallbacks, PipelineCallback, bad_return, check_returned
from vivant.denoise import State, check_latents
from vivant.errors import InputError
from vivant.prompts import Prompts, check_embeds, exchange_negative, join_prompts, split_prompts

Callback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks
TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")
"""Names of what a callback may see and change."""


def callback_names(callback: Callback | None, names: Sequence[str] | None) -> Sequence[str]:
    """The tensors that a callback wants to see: those that it names itself, or those that the caller names.

    Raises:
        InputError: E-CALLBACK-TYPE, E-CALLBACK-INPUTS.
    """
    if callback is not None and not callable(callback):
        raise InputError(
            "E-CALLBACK-TYPE",
            f"callback_on_step_end is {callback!r}.",
            "",
            "Give a function or a PipelineCallback.",
        )
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        names = callback.tensor_inputs
    names = [] if names is None else names
    _check_names(names, "callback_on_step_end_tensor_inputs names")
    return names


def _check_names(names: Sequence[str], what: str) -> None:
    unknown = [name for name in names if name not in TENSORS]
    if unknown:
        raise InputError(
            "E-CALLBACK-INPUTS", f"{what} {', '.join(map(str, unknown))}.", "", f"Known: {', '.join(TENSORS)}."
        )


def called_back(
    pipeline: Any,
    callback: Callback,
    names: Sequence[str],
    state: State,
    t: Tensor,
    num_rows: int,
    num_channels: int,
    dtype: Dtype,
) -> State:
    """Show a state to a callback in diffusers' form, and read back what it changed, in place or not.

    Args:
        pipeline: whose run it is.
        callback: called with pipeline, step, timestep and tensors.
        names: of the tensors to show.
        state: after a step; its conditioning has `prompts`.
        t: timestep of that step.
        num_rows: rows of a prompt in the form shown.
        num_channels: of a prompt.
        dtype: in which latents are shown.

    Raises:
        InputError: E-CALLBACK-RETURN, E-CALLBACK-INPUTS, E-LATENTS-SHAPE, E-PROMPT-EMBEDS-SHAPE.
    """
    prompts: Prompts = state.conditioning.prompts
    kept: dict[str, Any] = {}
    for name in names:
        if name == "latents":
            kept[name] = state.x.to(dtype)
        else:
            kept[name] = join_prompts(prompts, num_rows) if name == "prompt_embeds" else prompts.negative
    shown = {name: None if value is None else value.clone() for name, value in kept.items()}
    returned = callback(pipeline, state.i, t, dict(shown))
    check_returned(callback, returned)
    _check_names(list(returned), "callback_on_step_end returned")
    new: dict[str, Any] = {
        name: value
        for name, value in {**shown, **returned}.items()
        if value is not shown.get(name) or (value is not None and not value.equal(kept[name]))
    }
    for name, value in new.items():
        if not isinstance(value, Tensor):
            raise bad_return(callback, f"{type(value).__name__} for {name}")
    if "latents" in new:
        check_latents(new["latents"], state.x.shape)
        state = replace(state, x=new["latents"].to(state.x))
    if "prompt_embeds" in new:
        prompts = split_prompts(new["prompt_embeds"], len(state.x), num_rows)
    if "negative_prompt_embeds" in new:
        prompts = exchange_negative(prompts, new["negative_prompt_embeds"], num_rows)
    if prompts is not state.conditioning.prompts:
        check_embeds(prompts.positive, prompts.negative, num_channels)
        state = replace(state, conditioning=replace(state.conditioning, prompts=prompts))
    return state
