"""One call for a step of any scheduler, ours or the reference's."""

import inspect
from collections.abc import Callable
from typing import Any

from vivant.schedulers import SchedulerOutput


def stepper(scheduler: Any) -> Callable[..., Any]:
    """`scheduler.step` as most have it.

    CogVideoXDPMScheduler wants its last prediction and timestep handed back, which this does for the whole run.
    """
    if "timestep_back" not in inspect.signature(scheduler.step).parameters:
        return scheduler.step
    past: list[Any] = [None, None]

    def step(output: Any, t: Any, x: Any, return_dict: bool = True, **options: Any) -> Any:
        found = scheduler.step(output, past[0], t, past[1], x, **options, return_dict=False)
        past[:] = found[1], t
        return SchedulerOutput(*found) if return_dict else found

    return step
