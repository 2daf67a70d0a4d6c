"""Motion tables, names and numbers against the reference, and everything that is refused."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.deprecated.pia.pipeline_pia import RANGE_list, prepare_mask_coef_by_statistics

from vivant.errors import InputError
from vivant.pia.affinity import NAMES, TABLES, curve, from_original, parse

LOOPS = range(3, 6)


def test_the_tables_are_those_of_the_port():
    assert [list(table) for table in TABLES.values()] == RANGE_list
    names = [f"{kind}:{size}" for kind in ("animate", "loop", "style") for size in ("small", "moderate", "large")]
    assert list(NAMES) == names


@pytest.mark.parametrize("scale", range(9))
def test_numbers_mean_what_they_mean_in_the_port(scale: int):
    assert list(curve(scale, 16)) == prepare_mask_coef_by_statistics(16, 0, scale)
    assert curve(NAMES[scale], 16) == curve(scale, 16)


@pytest.mark.parametrize("scale", [scale for scale in range(9) if scale not in LOOPS])
def test_rows_that_do_not_loop_are_those_of_the_port_at_every_length_and_frame(scale: int):
    for num_frames in range(1, 33):
        for cond_frame in range(num_frames):
            wanted = prepare_mask_coef_by_statistics(num_frames, cond_frame, scale)
            assert list(curve(scale, num_frames, cond_frame)) == wanted


@pytest.mark.parametrize("scale", LOOPS)
def test_loops_are_the_row_stretched(scale: int):
    table = RANGE_list[scale]
    assert curve(scale, 2) == (1.0, 1.0)
    assert curve(scale, 1) == (1.0,)
    assert list(curve(scale, 31)[::2]) == table
    middle = curve(scale, 31)[1::2]
    assert middle == pytest.approx([(a + b) / 2 for a, b in pairwise(table)])
    assert curve(scale, 4) == pytest.approx((1.0, table[5], table[10], 1.0))


def test_a_loop_turns_with_the_frame_of_the_picture():
    start = curve("loop:large", 16)
    turned = curve("loop:large", 16, cond_frame=4)
    assert turned[4] == 1.0
    assert turned[4:] == start[:12]
    assert turned[:5] == start[11:]
    assert curve("loop:large", 16, cond_frame=15) == start


@pytest.mark.parametrize("values", [[0, 0.25, 1], (0.0, 0.25, 1.0), np.array([0, 0.25, 1]), torch.tensor([0, 0.25, 1])])
def test_a_free_curve_is_taken_as_it_is(values: Any):
    assert parse(values) == (0.0, 0.25, 1.0)
    assert curve(parse(values), 3) == (0.0, 0.25, 1.0)


def test_numpy_values_are_numbers_too():
    assert parse(np.int64(3)) == "loop:small"
    assert parse([np.float32(0.5), np.int64(1)]) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("scale", "name"),
    [
        *enumerate(NAMES[:6]),
        *zip((6, 7, 8), ("style:large", "style:moderate", "style:small"), strict=True),
        *zip((-1, -2, -3), ("style:small", "style:moderate", "style:large"), strict=True),
    ],
)
def test_the_numbering_of_the_original(scale: int, name: str):
    assert from_original(scale) == name


@pytest.mark.parametrize("scale", [9, -4, True])
def test_numbers_that_the_original_lacks_are_refused(scale: int):
    with pytest.raises(InputError, match="E-MOTION-ORIGINAL"):
        from_original(scale)


@pytest.mark.parametrize(
    "number", [True, False, -1, -4, 9, 2.5, 2.0, math.nan, math.inf, np.float32(1.5), np.bool_(True)]
)
def test_other_numbers_are_refused(number: object):
    with pytest.raises(InputError, match=r"E-MOTION-NUMBER.*0 animate:small.*8 style:large"):
        parse(number)


def test_a_number_of_the_original_is_explained():
    with pytest.raises(InputError, match="this is style:large"):
        parse(-3)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("animate:smal", "Nearest: animate:small"),
        ("lop:lrge", "Nearest: loop:large"),
        ("Loop:Large", "Nearest: loop:large"),
        ("style", "Nearest: style:small, style:moderate, style:large"),
        ("moderate", "Nearest: animate:moderate, loop:moderate, style:moderate"),
        ("", "Motions: animate:small.*style:large"),
        ("zzz", "Motions: animate:small.*style:large"),
        ("3", "Motions: animate:small"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, hint: str):
    with pytest.raises(InputError, match=f"E-MOTION-NAME.*{hint}"):
        parse(name)


@pytest.mark.parametrize(
    "values", [[], [0.5, 1.1], [-0.01], [math.nan], [True, 0.5], ["0.5"], [[0.5]], [None], np.ones((2, 2)), [math.inf]]
)
def test_curves_that_are_no_affinities_are_refused(values: object):
    with pytest.raises(InputError, match="E-MOTION-CURVE"):
        parse(values)


def test_a_curve_of_another_length_is_refused():
    with pytest.raises(InputError, match=r"E-MOTION-CURVE.*2 values.*5 frames"):
        curve([0.5, 0.5], 5)


@pytest.mark.parametrize("motion", [None, {"a": 1}, b"\x00\x01", {0.5}, object()])
def test_other_things_are_no_motion(motion: object):
    with pytest.raises(InputError, match="E-MOTION-TYPE"):
        parse(motion)


@pytest.mark.parametrize("num_frames", [0, -1, True])
def test_clips_without_frames_are_refused(num_frames: int):
    with pytest.raises(InputError, match="E-MOTION-FRAMES"):
        curve(0, num_frames)


@pytest.mark.parametrize("cond_frame", [-1, 5, True])
def test_frames_outside_the_clip_are_refused(cond_frame: int):
    with pytest.raises(InputError, match=r"E-MOTION-COND-FRAME.*0 to 4"):
        curve(0, 5, cond_frame)


def test_a_free_curve_takes_no_frame():
    with pytest.raises(InputError, match=r"E-MOTION-COND-FRAME.*no effect"):
        curve([0.5, 0.5, 0.5], 3, cond_frame=1)
