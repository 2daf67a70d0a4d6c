"""What holds for every filter and every pair of clips."""

from typing import Any

import torch
from diffusers.pipelines.free_init_utils import FreeInitMixin
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import noise
from vivant.freeinit import DEFAULT_ORDER, METHODS, MIN_FREQUENCY, FreeInit, low_pass, reinitialise, renoise

patient = settings(deadline=None)  # a busy machine is no failure
sizes = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 11))
frequencies = st.one_of(st.just(0.0), st.floats(MIN_FREQUENCY, 1), st.sampled_from([0.1, 0.25, 0.5, 1.0]))
usual = st.sampled_from([0.1, 0.2, 0.25, 0.3, 0.5, 0.75, 1.0])


@patient
@given(size=sizes, method=st.sampled_from(METHODS), order=st.integers(1, 40), ds=frequencies, dt=frequencies)
def test_a_filter_lies_between_zero_and_one(size: tuple[int, int, int], method: Any, order: int, ds: float, dt: float):
    order = order if method == "butterworth" else DEFAULT_ORDER
    mask = low_pass(*size, FreeInit(3, False, method, order, ds, dt))
    assert mask.shape == size
    assert ((mask >= 0) & (mask <= 1)).all(), "also false for NaN"


@patient
@given(size=sizes, method=st.sampled_from(["butterworth", "gaussian", "ideal"]), ds=usual, dt=usual)
def test_a_filter_is_bit_equal_to_the_reference(size: tuple[int, int, int], method: Any, ds: float, dt: float):
    ours = low_pass(*size, FreeInit(method=method, spatial_stop_frequency=ds, temporal_stop_frequency=dt))
    assert torch.equal(ours, FreeInitMixin()._get_free_init_freq_filter(size, "cpu", method, 4, ds, dt))


@patient
@given(size=sizes, seed=st.integers(0, 99))
def test_a_filter_of_one_keeps_the_clip_and_one_of_zero_the_fresh_noise(size: tuple[int, int, int], seed: int):
    z_t, z_rand = noise(2, 3, *size, seed=seed), noise(2, 3, *size, seed=seed + 100)
    torch.testing.assert_close(reinitialise(z_t, z_rand, torch.ones(size)), z_t, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reinitialise(z_t, z_rand, torch.zeros(size)), z_rand, rtol=1e-5, atol=1e-5)


@patient
@given(size=sizes, method=st.sampled_from(METHODS), seed=st.integers(0, 99))
def test_a_clip_mixed_with_itself_is_itself(size: tuple[int, int, int], method: Any, seed: int):
    z = noise(1, 2, *size, seed=seed)
    torch.testing.assert_close(reinitialise(z, z, low_pass(*size, FreeInit(method=method))), z, rtol=1e-5, atol=1e-5)


@patient
@given(size=sizes, seed=st.integers(0, 99))
def test_batches_and_channels_do_not_mix(size: tuple[int, int, int], seed: int):
    z_t, z_rand = noise(2, 3, *size, seed=seed), noise(2, 3, *size, seed=seed + 100)
    mask = low_pass(*size, FreeInit())
    whole = reinitialise(z_t, z_rand, mask)
    part = reinitialise(z_t[1:, 2:].contiguous(), z_rand[1:, 2:].contiguous(), mask)
    torch.testing.assert_close(whole[1:, 2:], part, rtol=1e-5, atol=1e-5)


@patient
@given(abar=st.floats(0, 1), seed=st.integers(0, 99))
def test_renoising_is_linear_and_keeps_energy(abar: float, seed: int):
    z0, fresh = noise(1, 2, 3, 4, 5, seed=seed), noise(1, 2, 3, 4, 5, seed=seed + 100)
    zero = torch.zeros_like(z0)
    signal, rest = renoise(z0, zero, abar), renoise(zero, fresh, abar)
    torch.testing.assert_close(signal + rest, renoise(z0, fresh, abar))
    energy = (signal / z0).square().mean() + (rest / fresh).square().mean()
    torch.testing.assert_close(energy, torch.tensor(1.0))
