"""The samplers of CogVideoX on their own: their noise schedule, whose behaviour they have, and what they refuse."""

import json
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stepping import stepper
from tiny import noise
from vivant.errors import InputError, VivantWarning
from vivant.schedulers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from vivant.solvers.cogvideox import CogVideoXDDIM, CogVideoXDPM, PortedCogVideoXDDIM, PortedCogVideoXDPM

# As ConsisID was published.
GOLDEN = Path(__file__).parents[1] / "golden" / "configs.json"
CONSISID = {k: v for k, v in json.loads(GOLDEN.read_text())["consisid_scheduler"].items() if k != "inferred"}
FIELDS = {key: value for key, value in CONSISID.items() if not key.startswith("_")}
SHAPE = (2, 3, 4, 5, 6)
X = noise(*SHAPE)
each = pytest.mark.parametrize("scheduler", [CogVideoXDDIMScheduler, CogVideoXDPMScheduler], ids=lambda c: c.__name__)
each_kind = pytest.mark.parametrize("kind", [CogVideoXDDIM, CogVideoXDPM], ids=lambda kind: kind.__name__)


def refused(code: str) -> Any:
    return pytest.raises(InputError, match=rf"^\[{code}\]")


# ----------------------------------------------------------------------------------------------- the noise schedule


@each_kind
def test_the_shift_divides_the_ratio_of_signal_to_noise(kind):
    plain, shifted = kind(snr_shift_scale=1.0).signal, kind(snr_shift_scale=3.0).signal
    assert plain.dtype == shifted.dtype == torch.float64
    ratios = [abar / (1 - abar) for abar in (plain, shifted)]
    torch.testing.assert_close(ratios[0] / ratios[1], torch.full((1000,), 3.0, dtype=torch.float64))
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert plain[500].item() == pytest.approx(np.prod(1 - beta[:501]), rel=1e-12)


@each_kind
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_rescaled_schedule_ends_in_pure_noise(kind, shift):
    plain, rescaled = (kind(snr_shift_scale=shift, rescale_betas_zero_snr=zero).signal for zero in (False, True))
    assert rescaled[-1] == 0.0
    assert rescaled[0].item() == pytest.approx(plain[0].item(), rel=1e-12)
    assert (rescaled[1:] < rescaled[:-1]).all()


@each_kind
@pytest.mark.parametrize("shift", [0.0, -1.0, float("inf"), float("nan")])
def test_shifts_that_are_no_factor(kind, shift):
    with refused("E-SOLVER-OPTIONS"):
        kind(snr_shift_scale=shift)


@each
@pytest.mark.parametrize("fields", [{"beta_schedule": "linear"}, {"trained_betas": [0.1] * 1000}], ids=str)
def test_other_noise_schedules_are_refused(scheduler, fields):
    with refused("E-CONFIG-VALUE"):
        scheduler(**fields)
    with refused("E-CONFIG-VALUE"):
        scheduler.from_config(DDIMScheduler(**{"beta_schedule": "linear", **fields}).config)


@each_kind
def test_schedules_are_asked_for_by_number(kind):
    for custom in ({"timesteps": [999, 500]}, {"sigmas": [9.0, 0.0]}):
        with refused("E-SOLVER-CUSTOM"):
            kind().schedule(**custom)


@each_kind
def test_epsilon_from_pure_noise_is_refused(kind):
    fields = {**FIELDS, "prediction_type": "epsilon"}
    with refused("E-SOLVER-ZERO-SNR"):
        kind(**fields).schedule(5)
    assert kind(**{**fields, "timestep_spacing": "leading"}).schedule(5)


# ---------------------------------------------------------------------------------------------------------- a step


@each_kind
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
def test_every_weight_is_a_number(kind, num_steps):
    """From pure noise, whose lambda is -infinity, to the clean sample, whose lambda is infinity."""
    for step in kind(**FIELDS).schedule(num_steps):
        values = {name: value for name, value in vars(step).items() if name not in ("level", "lam", "h")}
        assert all(type(value) in (int, float, bool) and isfinite(value) for value in values.values())


def test_the_first_and_the_last_step_are_of_order_1():
    schedule = CogVideoXDPM(**FIELDS).schedule(6)
    assert [step.multistep for step in schedule] == [False, True, True, True, True, False]
    assert [step.from_x == 0.0 for step in schedule] == [True, False, False, False, False, True]
    assert schedule[-1].std == 0.0


def test_a_slice_begins_at_order_1_and_goes_on_at_order_2():
    solver = CogVideoXDPM(**FIELDS)
    first, second = solver.schedule(6)[2:4]
    x, x0, carry = solver.step(X, first, X, None, lambda: X)
    assert torch.equal(x, first.from_x * X + first.from_x0 * x0 + first.std * X)
    old = x0
    x_next, x0, _ = solver.step(X, second, x, carry, lambda: X)
    ratio = (second.lam - first.lam) / second.h
    ahead = x0 + (x0 - old) / (2 * ratio)
    torch.testing.assert_close(x_next, second.from_x * x + second.from_x0 * ahead + second.std * X)
    assert not torch.allclose(x_next, second.from_x * x + second.from_x0 * x0 + second.std * X, atol=1e-3)


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_scalars_are_not_rounded_to_half_precision(kind, dtype):
    solver, x = kind(**{**FIELDS, "prediction_type": "sample"}), X.to(dtype)
    step, zero = solver.schedule(30)[10], torch.zeros(SHAPE, dtype=dtype)
    found = solver.step(zero, step, x, None, lambda: zero).x
    assert found.dtype == dtype
    assert torch.equal(found, (step.from_x * x.float()).to(dtype))


@each
def test_arguments_without_effect_are_warned_about(scheduler):
    fresh = scheduler(**FIELDS)
    fresh.set_timesteps(4)
    plain = stepper(fresh)(X, fresh.timesteps[0], X, generator=torch.Generator().manual_seed(1)).prev_sample
    cases = [
        ("W-ETA-IGNORED", {"eta": 0.5}),
        ("W-SCHEDULER-ARGUMENT.*use_clipped_model_output", {"use_clipped_model_output": True}),
    ]
    if scheduler is CogVideoXDDIMScheduler:
        cases.append(("W-SCHEDULER-ARGUMENT.*variance_noise", {"variance_noise": X}))
    for code, given in cases:
        with pytest.warns(VivantWarning, match=code):
            result = stepper(fresh)(X, fresh.timesteps[0], X, generator=torch.Generator().manual_seed(1), **given)
        assert torch.equal(result.prev_sample, plain)


def test_noise_comes_from_one_source():
    fresh = CogVideoXDPMScheduler(**FIELDS)
    fresh.set_timesteps(4)
    with refused("E-SCHEDULER-NOISE"):
        fresh.step(X, None, 999, None, X, variance_noise=X, generator=torch.Generator())
    with refused("E-GENERATORS"):
        fresh.step(X, None, 999, None, X, generator=[torch.Generator()] * 3)


@pytest.mark.parametrize("back", [None, 499, 100, 1000, 700.5, torch.tensor(499)], ids=str)
def test_the_timestep_before_is_a_noisier_one_of_the_training(back):
    fresh = CogVideoXDPMScheduler(**FIELDS)
    fresh.set_timesteps(4)
    with refused("E-SCHEDULER-TIMESTEP"):
        fresh.step(X, X, 499, back, X)
    with refused("E-SCHEDULER-UNSET"):
        CogVideoXDPMScheduler(**FIELDS).step(X, X, 499, back, X)


def test_a_step_returns_a_tuple_unless_asked_otherwise():
    """The one scheduler of which this is so."""
    fresh = CogVideoXDPMScheduler(**FIELDS)
    fresh.set_timesteps(4)
    assert type(fresh.step(X, None, 999, None, X)) is tuple
    assert fresh.step(X, None, 999, None, X, return_dict=True).prev_sample.shape == SHAPE


# ---------------------------------------------------------------------------------------------------- configuration


@each
def test_compat_is_no_part_of_the_configuration(scheduler, tmp_path):
    ported, plain = (scheduler.from_config(CONSISID, compat=compat) for compat in ("diffusers", None))
    assert type(ported.solver) in (PortedCogVideoXDDIM, PortedCogVideoXDPM)
    assert type(plain.solver) is scheduler.solver_class
    assert ported.solver != plain.solver
    assert vars(ported.solver) == vars(plain.solver) == vars(scheduler(**FIELDS).solver)
    assert ported.config == plain.config
    assert "compat" not in repr(ported)
    assert scheduler.from_config(ported.config).solver == plain.solver
    ported.save_pretrained(tmp_path)
    assert "compat" not in json.loads((tmp_path / "scheduler_config.json").read_text())
    assert scheduler.from_pretrained(tmp_path).solver == plain.solver
    assert scheduler.from_pretrained(tmp_path, compat="diffusers").solver == ported.solver


@pytest.mark.unchecked
@each
def test_compat_is_with_diffusers_and_for_these_only(scheduler):
    with refused("E-COMPAT"):
        scheduler.from_config(CONSISID, compat="original")
    with refused("E-CONFIG-UNKNOWN"):
        scheduler(compat="diffusers")
    with refused("E-CONFIG-UNKNOWN"):
        DDIMScheduler.from_config(CONSISID, compat="diffusers")


def test_a_shift_is_not_dropped_silently():
    """A network that was trained at other levels than those it would be asked at."""
    source = {**CONSISID, "snr_shift_scale": 3.0}
    for target in (DDIMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler):
        with pytest.warns(VivantWarning, match=f"W-SCHEDULER-SNR-SHIFT.*{target.__name__}.*3.0"):
            carried = target.from_config(source)
        assert CogVideoXDDIMScheduler.from_config(carried.config).solver.snr_shift_scale == 3.0
        with pytest.warns(VivantWarning, match="W-SCHEDULER-SNR-SHIFT"):
            target.from_config(CONSISID, snr_shift_scale=2.0)
        assert target.from_config(CONSISID).config.snr_shift_scale == 1.0
        assert target.from_config(source, snr_shift_scale=1.0).config.snr_shift_scale == 1.0


@pytest.mark.parametrize("target", [HeunDiscreteScheduler, LMSDiscreteScheduler, PNDMScheduler])
def test_samplers_without_the_rescaled_schedule_say_so(target):
    with pytest.warns(VivantWarning, match="W-SCHEDULER-ZERO-SNR"):
        scheduler = target.from_config(CONSISID)
    assert scheduler.config.prediction_type == "v_prediction"
