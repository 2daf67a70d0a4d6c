"""The loop: order, counting, and what a hook can do."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from vivant.denoise import State, run
from vivant.errors import Cancelled

START = State(i=-1, x=torch.zeros(3))


def push(state: State, t: float) -> State:
    """A step that leaves a trace of its order in x, and counts in carry."""
    return replace(state, x=10 * state.x + t, carry=(state.carry or 0) + 1)


def test_steps_are_folded_in_order():
    end = run(START, (1.0, 2.0, 3.0), push)
    assert end.x.tolist() == [123.0] * 3
    assert (end.i, end.carry) == (2, 3)
    assert START.x.tolist() == [0.0] * 3
    assert START.carry is None


def test_an_empty_schedule_returns_the_start():
    assert run(START, (), push) is START


def test_the_hook_sees_every_finished_step_once():
    seen: list[tuple[int, float]] = []

    def watch(state: State) -> State:
        seen.append((state.i, state.x[0].item()))
        return state

    run(START, (1.0, 2.0, 3.0), push, watch)
    assert seen == [(0, 1.0), (1, 12.0), (2, 123.0)]


def test_what_the_hook_returns_is_what_the_next_step_and_the_caller_see():
    def halve_guidance(state: State) -> State:
        return replace(state, x=state.x + 0.5, guidance=state.guidance / 2)

    used: list[float] = []

    def step(state: State, t: float) -> State:
        used.append(state.guidance)
        return push(state, t)

    end = run(replace(START, guidance=8.0), (1.0, 2.0), step, halve_guidance)
    assert used == [8.0, 4.0]
    assert end.guidance == 2.0
    assert end.x.tolist() == [17.5] * 3


def test_a_step_cannot_change_the_count():
    end = run(START, (1.0, 2.0), lambda state, t: replace(push(state, t), i=77))
    assert end.i == 1


def test_cancelling_stops_before_the_next_step():
    made: list[float] = []

    def step(state: State, t: float) -> State:
        made.append(t)
        return push(state, t)

    def cancel_after_two(state: State) -> State:
        if state.i == 1:
            raise Cancelled("E-CANCELLED", "The caller asked to stop.")
        return state

    with pytest.raises(Cancelled):
        run(START, (1.0, 2.0, 3.0, 4.0), step, cancel_after_two)
    assert made == [1.0, 2.0]


def test_a_state_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        START.i = 3  # pyright: ignore[reportAttributeAccessIssue]
