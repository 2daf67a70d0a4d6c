"""FreeInit against the reference, and where it deliberately differs."""

import math
from typing import Any

import pytest
import torch
from diffusers.pipelines.free_init_utils import FreeInitMixin
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from jaxtyping import TypeCheckError

from tiny import noise
from vivant.errors import InputError, VivantWarning
from vivant.freeinit import (
    METHODS,
    MIN_SIGNAL,
    FreeInit,
    fft_device,
    last_signal_timestep,
    low_pass,
    reinitialise,
    renoise,
)

ORACLE = FreeInitMixin()
SHAPE = (2, 4, 5, 6, 10)


def oracle_filter(f: int, h: int, w: int, settings: FreeInit) -> torch.Tensor:
    return ORACLE._get_free_init_freq_filter(
        (f, h, w),
        "cpu",
        settings.method,
        settings.order,
        settings.spatial_stop_frequency,
        settings.temporal_stop_frequency,
    )


@pytest.mark.parametrize("frequencies", [(0.25, 0.25), (0.5, 0.5), (0.2, 0.7), (1.0, 0.1)])
@pytest.mark.parametrize("size", [(16, 8, 12), (5, 6, 10), (1, 7, 3), (9, 1, 5)])
@pytest.mark.parametrize("method", ["butterworth", "gaussian", "ideal"])
def test_low_pass_is_bit_equal(method: Any, size: tuple[int, int, int], frequencies: tuple[float, float]):
    ds, dt = frequencies
    settings = FreeInit(method=method, spatial_stop_frequency=ds, temporal_stop_frequency=dt)
    ours = low_pass(*size, settings)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, oracle_filter(*size, settings))


def test_low_pass_is_bit_equal_with_another_order():
    settings = FreeInit(order=2)
    ours = low_pass(5, 6, 10, settings)
    assert torch.equal(ours, oracle_filter(5, 6, 10, settings))
    assert not torch.equal(ours, low_pass(5, 6, 10, FreeInit()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("frequencies", [(0.0, 0.25), (0.25, 0.0)])
def test_a_stop_frequency_of_zero_lets_nothing_pass(method: Any, frequencies: tuple[float, float]):
    ds, dt = frequencies
    settings = FreeInit(method=method, spatial_stop_frequency=ds, temporal_stop_frequency=dt)
    assert low_pass(5, 6, 10, settings).count_nonzero() == 0


def test_the_filters_have_their_middle_at_one_half_of_every_axis():
    for method in METHODS:
        mask = low_pass(4, 8, 16, FreeInit(method=method, temporal_stop_frequency=0.5))  # pyright: ignore[reportArgumentType]
        assert mask[2, 4, 8] == 1 == mask.max()
        assert mask[0, 0, 0] < 0.01


def test_box_is_the_block_of_the_original():
    # f // 2 * 0.5 = 2 frames and h // 2 * 0.5 = 3 lines to each side; the width uses the number of lines too.
    mask = low_pass(9, 12, 20, FreeInit(method="box", spatial_stop_frequency=0.5, temporal_stop_frequency=0.5))
    wanted = torch.zeros(9, 12, 20)
    wanted[2:6, 3:9, 7:13] = 1
    assert torch.equal(mask, wanted)
    narrow = low_pass(9, 12, 5, FreeInit(method="box", spatial_stop_frequency=0.5, temporal_stop_frequency=0.5))
    assert narrow.sum() == 4 * 6 * 5, "too narrow for the block"


@pytest.mark.parametrize("size", [SHAPE, (1, 4, 16, 8, 8), (1, 2, 7, 9, 5)])
def test_reinitialise_is_bit_equal(size: tuple[int, int, int, int, int]):
    z_t, z_rand = noise(*size, seed=1), noise(*size, seed=2)
    mask = low_pass(*size[2:], FreeInit())
    ours = reinitialise(z_t, z_rand, mask)
    assert torch.equal(ours, ORACLE._apply_freq_filter(z_t, z_rand, mask))


def test_reinitialise_keeps_the_slow_part_of_the_first_and_the_fast_part_of_the_second():
    slow = torch.full((1, 1, 4, 8, 8), 3.0)
    fast = ((-1.0) ** torch.arange(8)).expand(1, 1, 4, 8, 8)
    mask = low_pass(4, 8, 8, FreeInit())
    torch.testing.assert_close(reinitialise(slow + fast, fast - slow, mask), slow + fast, rtol=0, atol=1e-3)
    torch.testing.assert_close(reinitialise(fast - slow, slow - fast, mask), -slow - fast, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reinitialise_works_in_float32_and_returns_the_dtype_of_the_clip(dtype: torch.dtype):
    z_t, z_rand = noise(*SHAPE, seed=1).to(dtype), noise(*SHAPE, seed=2)
    mask = low_pass(*SHAPE[2:], FreeInit())
    ours = reinitialise(z_t, z_rand, mask)
    assert torch.equal(ours, reinitialise(z_t.float(), z_rand, mask).to(dtype))


def test_the_transform_leaves_devices_that_lack_it():
    assert fft_device(torch.device("mps")).type == "cpu"
    assert fft_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert fft_device(torch.device("cpu")).type == "cpu"


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
def test_renoise_and_reinitialise_equal_an_iteration_of_the_reference(beta_schedule: str):
    class Port(FreeInitMixin):
        scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=beta_schedule)

    port = Port()
    port.enable_free_init()
    initial, result = noise(*SHAPE, seed=1), noise(*SHAPE, seed=2)
    port._apply_free_init(initial, 0, 10, torch.device("cpu"), torch.float32, torch.Generator().manual_seed(5))
    wanted, _ = port._apply_free_init(
        result, 1, 10, torch.device("cpu"), torch.float32, torch.Generator().manual_seed(5)
    )
    abar = port.scheduler.alphas_cumprod
    z_t = renoise(result, initial, float(abar[last_signal_timestep(abar)]))
    ours = reinitialise(z_t, noise(*SHAPE, seed=5), low_pass(*SHAPE[2:], FreeInit()))
    torch.testing.assert_close(ours, wanted, rtol=0, atol=2e-6)


def test_renoise_keeps_the_variance():
    z0, fresh = noise(2, 4, 16, 32, 32, seed=1), noise(2, 4, 16, 32, 32, seed=2)
    for abar in (0.0, 0.3, 0.9, 1.0):
        assert renoise(z0, fresh, abar).std().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(renoise(z0, fresh, 1.0), z0)
    assert torch.equal(renoise(z0, fresh, 0.0), fresh)
    assert renoise(z0.bfloat16(), fresh, 0.5).dtype == torch.float32


def test_renoising_is_at_the_last_training_step_of_ordinary_schedules():
    for beta_schedule in ("linear", "scaled_linear"):
        abar = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=beta_schedule).alphas_cumprod
        assert last_signal_timestep(abar) == 999
    # The default schedule of the reference ends at 4e-5: little, but what it was made for.
    assert last_signal_timestep(DDIMScheduler().alphas_cumprod.tolist()) == 999


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_renoising_is_before_the_end_of_a_schedule_that_ends_in_pure_noise(scheduler: type):
    abar = scheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    ).alphas_cumprod
    t = last_signal_timestep(abar)
    assert abar[t] >= MIN_SIGNAL > abar[t + 1]
    z0, initial = torch.ones(SHAPE), noise(*SHAPE)
    assert torch.equal(renoise(z0, initial, 0.0), initial), "at the last step re-noising would lose the clip"
    assert (renoise(z0, initial, float(abar[t])) - initial).mean() > 0.02


def test_fast_sampling_takes_a_growing_share_of_the_steps():
    fast = FreeInit(num_iters=3, use_fast_sampling=True)
    assert [fast.num_steps(k, 25) for k in range(3)] == [8, 16, 25]
    assert [fast.num_steps(k, 1) for k in range(3)] == [1, 1, 1]
    assert [FreeInit(num_iters=3).num_steps(k, 25) for k in range(3)] == [25, 25, 25]


def test_fast_sampling_counts_like_the_reference_and_without_its_rounding():
    for num_iters in range(1, 6):
        fast = FreeInit(num_iters=num_iters, use_fast_sampling=True)
        for steps in range(1, 200):
            for k in range(num_iters):
                assert fast.num_steps(k, steps) == max(1, int(steps / num_iters * (k + 1)))
    assert int(61 / 7 * 7) == 60
    assert FreeInit(num_iters=7, use_fast_sampling=True).num_steps(6, 61) == 61


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("E-FREEINIT-ITERATIONS", {"num_iters": 0}),
        ("E-FREEINIT-ITERATIONS", {"num_iters": -3}),
        ("E-FREEINIT-ITERATIONS", {"num_iters": True}),
        ("E-FREEINIT-ORDER", {"order": 0.0}),
        ("E-FREEINIT-ORDER", {"order": math.nan}),
        ("E-FREEINIT-ORDER", {"order": 10**400}),
        ("E-FREEINIT-FREQUENCY", {"spatial_stop_frequency": -0.1}),
        ("E-FREEINIT-FREQUENCY", {"spatial_stop_frequency": 1e-9}),
        ("E-FREEINIT-FREQUENCY", {"temporal_stop_frequency": 1.1}),
        ("E-FREEINIT-FREQUENCY", {"temporal_stop_frequency": math.nan}),
        ("E-FREEINIT-FREQUENCY", {"temporal_stop_frequency": 10**400}),
    ],
)
def test_settings_out_of_range_are_refused(code: str, values: dict[str, Any]):
    with pytest.raises(InputError, match=code):
        FreeInit(**values)


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("E-FREEINIT-ITERATIONS", {"num_iters": 2.5}),
        ("E-FREEINIT-FAST", {"use_fast_sampling": 1}),
        ("E-FREEINIT-METHOD", {"method": "sharp"}),
        ("E-FREEINIT-ORDER", {"order": "4"}),
        ("E-FREEINIT-FREQUENCY", {"spatial_stop_frequency": None}),
        ("E-FREEINIT-FREQUENCY", {"temporal_stop_frequency": True}),
    ],
)
def test_settings_of_another_type_are_refused(code: str, values: dict[str, Any]):
    # With run-time shape checking on, the checker is first.
    with pytest.raises((InputError, TypeCheckError)) as error:
        FreeInit(**values)
    assert isinstance(error.value, TypeCheckError) or error.value.code == code


def test_an_order_for_a_filter_without_one_warns():
    with pytest.warns(VivantWarning, match="W-FREEINIT-ORDER"):
        FreeInit(method="gaussian", order=2)
