"""What holds for every cut of a clip into windows, for FreeNoise, and for prompts that travel."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vivant.pia.windows import BLENDS, Windows, repeated_noise, windows
from vivant.prompts import travelling

patient = settings(deadline=None)


@st.composite
def cuts(draw: st.DrawFn) -> Windows:
    """Settings of windows."""
    length = draw(st.integers(2, 40))
    stride = draw(st.none() | st.integers(1, length))
    return Windows(length, stride, draw(st.sampled_from(BLENDS)), closed=draw(st.booleans()))


@patient
@given(st.integers(1, 200), cuts())
def test_every_frame_is_covered_and_its_weights_sum_to_one(num_frames: int, cut: Windows):
    found = windows(num_frames, cut)
    totals = Counter[int]()
    for window in found:
        assert len(window.frames) == len(window.weights) == min(num_frames, cut.length)
        assert len(set(window.frames)) == len(window.frames)
        assert all((b - a) % num_frames == 1 for a, b in pairwise(window.frames)), "neighbours stay neighbours"
        assert min(window.weights) > 0
        totals.update(dict(zip(window.frames, window.weights, strict=True)))
    assert sorted(totals) == list(range(num_frames))
    assert list(totals.values()) == pytest.approx([1.0] * num_frames)


@patient
@given(st.integers(2, 200), cuts())
def test_windows_overlap_as_asked_and_only_closed_ones_go_round(num_frames: int, cut: Windows):
    starts = [window.frames[0] for window in windows(num_frames, cut)]
    assert all(0 < b - a <= cut.step for a, b in pairwise(starts))
    round_ = [w for w in windows(num_frames, cut) if w.frames[-1] < w.frames[0]]
    if num_frames <= cut.length:
        assert starts == [0]
    elif cut.closed:
        assert round_ or cut.step == cut.length
        assert num_frames - starts[-1] <= cut.step
    else:
        assert not round_
        assert starts[-1] == num_frames - cut.length


@patient
@given(st.integers(1, 90), cuts(), st.integers(1, 3), st.integers(0, 2**32))
def test_repeated_noise_is_that_of_the_first_window_shuffled_within_strides(
    num_frames: int, cut: Windows, batch: int, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.arange(batch * num_frames).float().reshape(batch, 1, num_frames, 1, 1)
    found = repeated_noise(numbers, torch.randn(batch, num_frames, generator=generator), cut)[:, 0, :, 0, 0]
    length, stride = cut.length, cut.step
    for b in range(batch):
        frames = (found[b] - b * num_frames).long().tolist()
        assert frames[:length] == list(range(min(length, num_frames)))
        for start in range(length, num_frames, stride):
            earlier, here = frames[start - length : start - length + stride], frames[start : start + stride]
            assert not Counter(here) - Counter(earlier)
            assert len(here) == stride or start + stride > num_frames


@patient
@given(st.data(), st.integers(1, 40), st.integers(1, 3), st.integers(1, 2))
def test_prompts_between_two_stops_lie_on_the_line_between_them(
    data: st.DataObject, num_frames: int, batch: int, num_videos: int
):
    stops = sorted(data.draw(st.sets(st.integers(0, num_frames - 1), min_size=1)))
    keyed = torch.randn(batch, len(stops), 3, 2, generator=torch.Generator().manual_seed(1))
    prompts = travelling(keyed.flatten(0, 1), None, stops, num_frames, num_videos)
    assert prompts.num_clips(num_frames) == batch * num_videos
    rows = prompts.positive.reshape(batch, num_videos, num_frames, 3, 2)
    for k, stop in enumerate(stops):
        assert torch.equal(rows[:, :, stop], keyed[:, None, k].expand_as(rows[:, :, stop]))
    assert (rows[:, :, : stops[0]] == keyed[:, None, None, 0]).all()
    assert (rows[:, :, stops[-1] :] == keyed[:, None, None, -1]).all()
    for (k, a), b in zip(enumerate(stops), stops[1:], strict=False):
        for i in range(a, b):
            share = (i - a) / (b - a)
            wanted = (1 - share) * keyed[:, k] + share * keyed[:, k + 1]
            torch.testing.assert_close(rows[:, 0, i], wanted)
            assert torch.equal(rows[:, 0, i], rows[:, -1, i])
