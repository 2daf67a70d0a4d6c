"""FreeU against the reference, and the scales that must change nothing."""

import math

import pytest
import torch
from diffusers.utils.torch_utils import apply_freeu
from jaxtyping import TypeCheckError

from tiny import noise
from tolerances import assert_parity
from vivant.errors import InputError
from vivant.pia.freeu import FreeU, freeu

SCALES = FreeU(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("size", [(8, 16), (6, 10), (7, 9), (2, 5), (1, 4), (3, 1), (1, 1)])
def test_freeu_equals_the_reference(size: tuple[int, int], index: int, dtype: torch.dtype):
    hidden, skip = noise(2, 5, *size, seed=1).to(dtype), (noise(2, 4, *size, seed=2) + 0.5).to(dtype)
    wanted = apply_freeu(index, hidden.clone(), skip.clone(), s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    scales = SCALES.stage(index)
    assert scales is not None
    ours = freeu(hidden, skip, *scales)
    assert torch.equal(ours[0], wanted[0])
    assert ours[1].dtype == dtype
    assert_parity(ours[1], wanted[1], dtype)


def test_inputs_are_not_changed():
    hidden, skip = noise(2, 5, 6, 10, seed=1), noise(2, 4, 6, 10, seed=2)
    before = hidden.clone(), skip.clone()
    freeu(hidden, skip, 0.2, 1.4)
    assert torch.equal(hidden, before[0])
    assert torch.equal(skip, before[1])


def test_only_the_first_half_of_the_channels_grows():
    ours, _ = freeu(torch.ones(1, 5, 2, 2), torch.ones(1, 1, 2, 2), 1.0, 3.0)
    assert ours[0, :, 0, 0].tolist() == [3, 3, 1, 1, 1]


def test_the_mean_is_low_and_a_checkerboard_is_not():
    board = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float()[None, None] * 2 - 1
    flat = torch.full((1, 1, 8, 8), 5.0)
    _, skip = freeu(board, board + flat, 0.2, 1.0)
    torch.testing.assert_close(skip, board + 0.2 * flat)


def test_scale_one_changes_nothing():
    hidden, skip = noise(2, 5, 6, 10, seed=1), noise(2, 4, 6, 10, seed=2)
    ours = freeu(hidden, skip, 1.0, 1.0)
    assert torch.equal(ours[0], hidden)
    assert torch.equal(ours[1], skip)


def test_only_the_first_two_stages_have_scales():
    assert [SCALES.stage(index) for index in range(4)] == [(0.9, 1.2), (0.2, 1.4), None, None]


@pytest.mark.parametrize("field", ["s1", "s2", "b1", "b2"])
@pytest.mark.parametrize("value", [0.0, -0.5, math.nan, math.inf, pytest.param(10**400, id="10**400")])
def test_scales_that_are_no_scale_are_refused(field: str, value: float | int):
    with pytest.raises(InputError, match=f"E-FREEU-SCALE.*{field}"):
        FreeU(**{"s1": 0.9, "s2": 0.2, "b1": 1.2, "b2": 1.4, field: value})


@pytest.mark.parametrize("value", [True, "0.9", None])
def test_scales_of_another_type_are_refused(value: object):
    # With run-time shape checking on, the checker is first.
    with pytest.raises((InputError, TypeCheckError)):
        FreeU(s1=value, s2=0.2, b1=1.2, b2=1.4)  # pyright: ignore[reportArgumentType]
