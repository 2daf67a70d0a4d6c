"""What holds for every motion, length and frame."""

from itertools import pairwise

import pytest
import torch
from diffusers.pipelines.deprecated.pia.pipeline_pia import prepare_mask_coef_by_statistics
from hypothesis import given, settings
from hypothesis import strategies as st

from vivant.errors import InputError
from vivant.pia.affinity import NAMES, TABLES, curve, parse

patient = settings(deadline=None)  # a busy machine is no failure
LOOPS = [name for name in NAMES if name.startswith("loop:")]


@st.composite
def clips(draw: st.DrawFn) -> tuple[int, int]:
    """A number of frames, and one of them."""
    num_frames = draw(st.integers(1, 32))
    return num_frames, draw(st.integers(0, num_frames - 1))


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("num_frames", range(2, 33))
def test_loops_close_at_every_length(name: str, num_frames: int):
    values = curve(name, num_frames)
    assert values[0] == values[-1] == 1.0
    for cond_frame in range(num_frames):
        turned = curve(name, num_frames, cond_frame)
        assert turned[0] == turned[-1]
        assert turned[cond_frame] == 1.0
        # Turning moves values around and invents none.
        assert sorted(turned[:-1]) == sorted(values[:-1])


@patient
@given(name=st.sampled_from(NAMES), clip=clips())
def test_the_picture_has_the_first_affinity_of_the_table(name: str, clip: tuple[int, int]):
    num_frames, cond_frame = clip
    values = curve(name, num_frames, cond_frame)
    assert len(values) == num_frames
    assert values[cond_frame] == TABLES[name][0] == max(values)
    assert min(values) >= min(TABLES[name]) - 1e-12


@patient
@given(name=st.sampled_from([name for name in NAMES if name not in LOOPS]), clip=clips())
def test_the_further_from_the_picture_the_freer(name: str, clip: tuple[int, int]):
    num_frames, cond_frame = clip
    values = curve(name, num_frames, cond_frame)
    by_distance = sorted(range(num_frames), key=lambda i: abs(i - cond_frame))
    assert all(values[near] >= values[far] for near, far in pairwise(by_distance))


@patient
@given(scale=st.integers(0, 8), num_frames=st.integers(1, 32))
def test_the_float32_mask_is_that_of_the_port(scale: int, num_frames: int):
    ours = torch.tensor(curve(scale, num_frames))
    port = torch.tensor(prepare_mask_coef_by_statistics(num_frames, 0, scale))
    if NAMES[scale] in LOOPS and num_frames != 16:
        # The port's loops close at 16 frames only.
        assert num_frames == 1 or ours[-1] == 1.0
    else:
        assert torch.equal(ours, port)


@patient
@given(st.lists(st.floats(0, 1), min_size=1, max_size=32))
def test_a_free_curve_comes_back(values: list[float]):
    assert curve(values, len(values)) == tuple(values)


@patient
@given(st.one_of(st.text(), st.integers(), st.floats(), st.lists(st.floats()), st.none(), st.booleans(), st.binary()))
def test_everything_is_a_motion_or_an_error_with_a_code(value: object):
    try:
        named = parse(value)
    except InputError as error:
        refusal = error.code
    else:
        refusal = "E-MOTION-"
        assert named in TABLES if isinstance(named, str) else all(0 <= v <= 1 for v in named)
        assert parse(named) == named
    assert refusal.startswith("E-MOTION-")
