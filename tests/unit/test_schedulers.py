"""Schedulers and solvers on their own: what is refused, what is warned about, what is kept."""

import json
import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch

from stepping import stepper
from tiny import SCHEDULER, noise
from vivant.errors import InputError, LoadError, VivantWarning
from vivant.schedulers import (
    SCHEDULERS,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
    UnknownScheduler,
    as_scheduler,
    pia_warnings,
    scheduler_class,
)
from vivant.solvers.ddim import DDIM
from vivant.solvers.dpm import DPMSolver
from vivant.solvers.euler import Euler, EulerAncestral
from vivant.solvers.heun import Heun
from vivant.solvers.lcm import LCM
from vivant.solvers.lms import LMS, lms_weights
from vivant.solvers.pndm import PNDM
from vivant.solvers.schedule import threshold
from vivant.solvers.unipc import UniPC

LIN = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
X = noise(2, 4, 3, 5, 6)
KINDS = [kind.solver_class for kind in SCHEDULERS.values()]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
each_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=lambda kind: kind.__name__)


def refused(code: str) -> Any:
    return pytest.raises(InputError, match=rf"^\[{code}\]")


# ----------------------------------------------------------------------------------------------- the noise schedule


def test_abar_of_the_published_schedules():
    """At t = 500: what PIA was trained with, what Stable Diffusion uses, what DDPM used."""
    assert DDIM(**LIN).signal[500].item() == pytest.approx(0.161, abs=5e-4)
    scaled = DDIM(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    assert scaled.signal[500].item() == pytest.approx(0.276, abs=2e-3)
    assert DDIM().signal[500].item() == pytest.approx(0.078, abs=1e-3)


@pytest.mark.parametrize(
    "fields",
    [
        {"trained_betas": (0.1, 0.2)},
        {"trained_betas": ()},
        {"trained_betas": (0.1, float("nan"), 0.2), "num_train_timesteps": 3},
        {"trained_betas": (0.1, 1.5, 0.2), "num_train_timesteps": 3},
        {"beta_end": 1.2},
        {"beta_start": -0.1},
    ],
    ids=str,
)
def test_betas_that_are_no_noise_schedule(fields):
    with refused("E-SOLVER-BETAS"):
        DDIM(**fields).schedule(2)


def test_trained_betas_may_be_an_array():
    values = np.linspace(0.01, 0.2, 20)
    scheduler = DDIMScheduler(trained_betas=values, num_train_timesteps=20)
    assert torch.equal(scheduler.betas, torch.tensor(values, dtype=torch.float32))


# ---------------------------------------------------------------------------------------------------- the schedule


@each_kind
@pytest.mark.parametrize("num_steps", [0, -3, 1001, True])
def test_numbers_of_steps_that_cannot_be(kind, num_steps):
    with refused("E-SOLVER-STEPS"):
        kind().schedule(num_steps)


@each_kind
def test_a_schedule_is_asked_for_in_one_way(kind):
    for ways in ({}, {"num_steps": 4, "timesteps": [3, 2]}, {"timesteps": [3], "sigmas": [1.0, 0.0]}):
        with refused("E-SOLVER-SCHEDULE"):
            kind().schedule(**ways)


@pytest.mark.parametrize(
    ("kind", "num_steps", "offset"),
    [(DDIM, 1000, 1), (Euler, 1000, 1), (PNDM, 1000, 1), (DPMSolver, 1000, 0), (DPMSolver, 999, 1), (UniPC, 1000, 0)],
)
def test_leading_timesteps_that_leave_the_training(kind, num_steps, offset):
    """1000 steps shifted by one begin at t = 1000; DPM-Solver and UniPC need a stride more than there are steps."""
    with refused("E-SOLVER-STEPS"):
        kind(timestep_spacing="leading", steps_offset=offset).schedule(num_steps)


def test_too_few_steps_for_runge_kutta():
    with refused("E-SOLVER-STEPS"):
        PNDM().schedule(3)
    assert len(PNDM().schedule(4)) == 13
    assert len(PNDM(skip_prk_steps=True).schedule(3)) == 4


@pytest.mark.parametrize("kind", [DDIM, Euler, DPMSolver, LCM], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("timesteps", [[], [5, 5], [5, 9], [1000, 3], [3, -1], [float("nan")]], ids=str)
def test_timesteps_that_are_no_schedule(kind, timesteps):
    with refused("E-SOLVER-TIMESTEPS"):
        kind().schedule(timesteps=timesteps)


def test_fractions_are_for_solvers_that_interpolate():
    with refused("E-SOLVER-TIMESTEPS"):
        DDIM().schedule(timesteps=[500.5, 3])
    assert Euler().schedule(timesteps=[500.5, 3])[0].t == 500.5


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 2.0], [2.0, -1.0], [float("inf"), 0.0], [1.0, 1.0]], ids=str)
def test_sigmas_that_are_no_schedule(sigmas):
    with refused("E-SOLVER-SIGMAS"):
        Euler().schedule(sigmas=sigmas)


@pytest.mark.parametrize(
    ("kind", "custom"),
    [
        (PNDM, {"timesteps": [3, 2]}),
        (UniPC, {"timesteps": [3, 2]}),
        *((kind, {"sigmas": [1.0, 0.0]}) for kind in (DDIM, DPMSolver, LCM, PNDM, UniPC)),
    ],
)
def test_custom_schedules_that_a_solver_does_not_take(kind, custom):
    with refused("E-SOLVER-CUSTOM"):
        kind().schedule(**custom)


@pytest.mark.parametrize("kind", [Euler, Heun, LMS, DPMSolver], ids=lambda kind: kind.__name__)
def test_karras_sigmas_and_timesteps_exclude_each_other(kind):
    with refused("E-SOLVER-SCHEDULE"):
        kind(use_karras_sigmas=True).schedule(timesteps=[3, 2])


@pytest.mark.parametrize("kind", [DDIM, Euler, EulerAncestral, LMS, Heun, DPMSolver], ids=lambda kind: kind.__name__)
def test_custom_timesteps_like_the_default_give_the_default(kind):
    """The last step of DDIM is the only one that may differ: it ends on the clean sample."""
    options = {"set_alpha_to_one": True} if kind is DDIM else {}
    solver = kind(timestep_spacing="leading", steps_offset=1, **options)
    plain = solver.schedule(8)
    told = list(dict.fromkeys(step.t for step in plain))
    assert solver.schedule(timesteps=told) == plain


@pytest.mark.parametrize("kind", [Euler, EulerAncestral, LMS, Heun], ids=lambda kind: kind.__name__)
def test_custom_sigmas_like_the_default_give_the_default(kind):
    plain = kind().schedule(8)
    levels = list(dict.fromkeys([step.level for step in plain] + [plain[-1].level_next]))
    custom = kind().schedule(sigmas=levels)
    assert [step.level for step in custom] == [step.level for step in plain]
    assert [step.t for step in custom] == pytest.approx([step.t for step in plain], abs=0.01)


def test_lcm_says_when_the_network_does_not_know_a_timestep():
    with pytest.warns(VivantWarning, match=r"\[W-SOLVER-LCM\].*500"):
        LCM().schedule(timesteps=[999, 500])
    with refused("E-SOLVER-STEPS"):
        LCM(original_inference_steps=10).schedule(11)
    with refused("E-SOLVER-OPTIONS"):
        LCM(original_inference_steps=2000).schedule(4)
    for strength in (0.0, 1.1, float("nan"), 0.01):
        with refused("E-STRENGTH"):
            LCM().schedule(4, strength=strength)
    with refused("E-STRENGTH"):
        LCM().schedule(timesteps=[999, 19], strength=0.4)


def test_lms_weights_integrate_polynomials_exactly():
    """Order 1 is Euler; order k is exact for slopes of degree k - 1."""
    sigmas = np.array([14.0, 9.0, 5.5, 3.0, 1.0])
    for order in (1, 2, 3, 4):
        weights = lms_weights(sigmas, order)
        nodes = sigmas[-order - 1 : -1][::-1]
        for degree in range(order):
            wanted = (1.0 ** (degree + 1) - 3.0 ** (degree + 1)) / (degree + 1)
            assert float(np.dot(weights, nodes**degree)) == pytest.approx(wanted, rel=1e-9)


# ---------------------------------------------------------------------------------------------------------- options


@each_kind
def test_eta_is_for_ddim(kind):
    solver = kind()
    step = solver.schedule(5)[0]
    if solver.uses_eta:
        for eta in (-0.1, 1.1, float("nan")):
            with refused("E-SOLVER-ETA"):
                solver.step(X, step, X, None, lambda: X, eta)
    else:
        with refused("E-SOLVER-ETA"):
            solver.step(X, step, X, None, lambda: X, 0.5)


@each_kind
def test_solvers_are_frozen_values(kind):
    solver = kind()
    with pytest.raises(FrozenInstanceError):
        solver.beta_start = 0.5
    assert solver == kind()
    assert solver != kind(beta_start=0.5)
    assert pickle.loads(pickle.dumps(solver)) == solver
    assert solver.schedule(5) == solver.schedule(5)


@each_kind
def test_a_step_changes_neither_state_nor_history(kind):
    solver = kind()
    schedule = solver.schedule(6)
    x, carry, before = X, None, []
    for step in schedule:
        before.append((x, x.clone()))
        x, _, carry = solver.step(torch.tanh(x), step, x, carry, lambda: X)
    assert all(torch.equal(kept, copy) for kept, copy in before)


@pytest.mark.parametrize(
    ("scheduler", "fields"),
    [
        (DDIMScheduler, {"beta_schedule": "exp"}),
        (DDIMScheduler, {"prediction_type": "flow_prediction"}),
        (DDIMScheduler, {"timestep_spacing": "random"}),
        (EulerDiscreteScheduler, {"use_beta_sigmas": True}),
        (EulerDiscreteScheduler, {"interpolation_type": "log_linear"}),
        (EulerDiscreteScheduler, {"timestep_type": "continuous"}),
        (PNDMScheduler, {"prediction_type": "sample"}),
        (DDPMScheduler, {"variance_type": "learned_range"}),
        (DPMSolverMultistepScheduler, {"use_lu_lambdas": True}),
        (DPMSolverMultistepScheduler, {"use_flow_sigmas": True}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver"}),
        (DPMSolverMultistepScheduler, {"solver_order": 4}),
        (DPMSolverMultistepScheduler, {"variance_type": "learned"}),
        (UniPCMultistepScheduler, {"solver_p": {"_class_name": "DDIMScheduler"}}),
        (UniPCMultistepScheduler, {"use_dynamic_shifting": True}),
    ],
    ids=str,
)
def test_options_that_are_not_implemented_are_refused(scheduler, fields):
    with refused("E-CONFIG-VALUE"):
        scheduler(**fields)
    with refused("E-CONFIG-VALUE"):
        scheduler.from_config(fields)


@pytest.mark.parametrize(
    ("scheduler", "fields"),
    [
        (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver"}),
        (UniPCMultistepScheduler, {"predict_x0": False}),
        (UniPCMultistepScheduler, {"predict_x0": False, "thresholding": True, "final_sigmas_type": "sigma_min"}),
        (UniPCMultistepScheduler, {"solver_order": 0}),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(scheduler, fields):
    with refused("E-SOLVER-OPTIONS"):
        scheduler(**fields)


def test_lms_has_four_orders():
    scheduler = LMSDiscreteScheduler()
    scheduler.set_timesteps(6)
    with refused("E-SOLVER-ORDER"):
        scheduler.step(X, scheduler.timesteps[0], X, order=5)


# ------------------------------------------------------------------------------------------------------- the shells


@each_scheduler
def test_a_scheduler_needs_a_schedule(scheduler):
    fresh = scheduler()
    assert fresh.timesteps.tolist() == list(range(999, -1, -1))
    with refused("E-SCHEDULER-UNSET"):
        stepper(fresh)(X, 999, X)
    if fresh.exploding:
        with refused("E-SCHEDULER-UNSET"):
            fresh.scale_model_input(X, 999)


@each_scheduler
def test_a_run_has_an_end(scheduler):
    fresh = scheduler()
    fresh.set_timesteps(4)
    step = stepper(fresh)
    for t in fresh.timesteps:
        step(X, t, X)
    if not fresh.memoryless:
        with refused("E-SCHEDULER-STEP"):
            step(X, fresh.timesteps[0], X)


@each_scheduler
def test_timesteps_that_are_not_in_the_schedule(scheduler):
    fresh = scheduler()
    fresh.set_timesteps(4)
    with refused("E-SCHEDULER-TIMESTEP"):
        stepper(fresh)(X, 123.4, X)
    with refused("E-SCHEDULER-TIMESTEP"):
        fresh.add_noise(X, X, torch.tensor([1000, 1001]))
    if fresh.exploding:
        with refused("E-SCHEDULER-TIMESTEP"):
            fresh.scale_model_input(X)


def test_the_index_of_a_loop_is_no_timestep():
    """0 is the index of the first step and, as a timestep, the last."""
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    assert scheduler.timesteps[-1] == 0.0
    for index in (0, torch.tensor(0)):
        with refused("E-SCHEDULER-TIMESTEP"):
            scheduler.step(X, index, X)


def test_noise_comes_from_one_source():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    t = scheduler.timesteps[0]
    with refused("E-SCHEDULER-NOISE"):
        scheduler.step(X, t, X, eta=1.0, generator=torch.Generator(), variance_noise=X)
    with refused("E-GENERATORS"):
        scheduler.step(X, t, X, eta=1.0, generator=[torch.Generator()] * 3)


def test_noise_is_added_sample_by_sample():
    scheduler = DDPMScheduler(**LIN)
    t, eps = torch.tensor([10, 900]), noise(*X.shape, seed=1)
    both = scheduler.add_noise(X, eps, t)
    for i in range(2):
        assert torch.equal(both[i : i + 1], scheduler.add_noise(X[i : i + 1], eps[i : i + 1], t[i : i + 1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_noise_is_added_in_float32_and_rounded_once(dtype):
    scheduler, x0, eps = DDPMScheduler(**LIN), X.to(dtype), noise(*X.shape, seed=1).to(dtype)
    t = torch.tensor([10, 900])
    exact = scheduler.add_noise(x0.float(), eps.float(), t)
    assert torch.equal(scheduler.add_noise(x0, eps, t), exact.to(dtype))
    for i, step in enumerate(scheduler.solver.schedule(timesteps=[900, 10])[::-1]):
        assert torch.equal(scheduler.solver.add_noise(x0, eps, step)[i], exact[i].to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_thresholds_are_found_in_float32(dtype):
    x0 = (3 * X).to(dtype)
    assert torch.equal(threshold(x0, 0.9, 2.0), threshold(x0.float(), 0.9, 2.0).to(dtype))


def test_a_number_of_steps_may_come_from_numpy():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(np.int64(4))
    assert len(scheduler.timesteps) == scheduler.num_inference_steps == 4


def test_timesteps_may_come_as_a_tensor():
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(timesteps=torch.tensor([900, 400, 10]))
    assert scheduler.num_inference_steps == 3
    scheduler.set_timesteps(sigmas=torch.tensor([9.0, 3.0, 1.0, 0.0]))
    assert scheduler.num_inference_steps == 3
    assert scheduler.sigmas.tolist() == [9.0, 3.0, 1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_states_advance_in_float32(dtype):
    """The Euler solvers and DPM-Solver round once, at the end, as the reference does; so is the noise of the SDE."""
    x, output, eps = (noise(*X.shape, seed=seed).to(dtype) for seed in range(3))
    euler = EulerDiscreteScheduler(prediction_type="sample")
    euler.set_timesteps(5)
    step: Any = euler.solver.schedule(5)[0]
    wide = x.float() + (x.float() - output) / step.sigma * step.delta
    assert torch.equal(euler.step(output, euler.timesteps[0], x).prev_sample, wide.to(dtype))

    step = EulerAncestral(prediction_type="sample").schedule(5)[0]
    wide = x.float() + (x.float() - output) / step.sigma * step.delta + eps * step.sigma_up
    found = EulerAncestral(prediction_type="sample").step(output, step, x, None, lambda: eps).x
    assert torch.equal(found, wide.to(dtype))

    dpm = DPMSolverMultistepScheduler(prediction_type="sample", algorithm_type="sde-dpmsolver++")
    dpm.set_timesteps(5)
    weights = dpm.solver.schedule(5)[0].weights
    exact = noise(*X.shape, seed=2)
    wide = weights.x * x.float() + weights.d0 * output + weights.noise * exact
    found = dpm.step(output, dpm.timesteps[0], x, generator=torch.Generator().manual_seed(2)).prev_sample
    assert torch.equal(found, wide.to(dtype))
    assert not torch.equal(found, (weights.x * x + weights.d0 * output + weights.noise * eps).to(dtype))


def test_repr_shows_the_fields():
    text = repr(DDIMScheduler(clip_sample=False))
    assert text.startswith("DDIMScheduler(")
    assert "clip_sample=False" in text
    assert "_use_default_values" not in text


# ---------------------------------------------------------------------------------------------------- configuration


def test_unknown_fields_are_refused_where_they_are_typed():
    with refused("E-CONFIG-UNKNOWN"):
        DDIMScheduler(beta_shedule="linear")
    with refused("E-CONFIG-UNKNOWN"):
        DDIMScheduler.from_config({}, beta_shedule="linear")
    with refused("E-SCHEDULER-CONFIG"):
        DDIMScheduler.from_config("folder")
    with refused("E-SCHEDULER-CONFIG"):
        DDIMScheduler.from_config(DDIMScheduler())


def test_fields_of_other_schedulers_are_kept():
    source = {**SCHEDULER, "skip_prk_steps": True, "a_field_of_the_future": 3, "_diffusers_version": "0.6.0"}
    with pytest.warns(VivantWarning, match="W-SCHEDULER-FIELD.*EulerDiscreteScheduler has no set_alpha_to_one;"):
        euler = EulerDiscreteScheduler.from_config(source, use_karras_sigmas=True, set_alpha_to_one=True)
    assert euler.config.skip_prk_steps is True
    assert euler.config.a_field_of_the_future == 3
    pndm = PNDMScheduler.from_config(euler.config)
    assert pndm.solver == PNDM(**LIN, skip_prk_steps=True, set_alpha_to_one=True, steps_offset=1)
    assert EulerDiscreteScheduler.from_config(pndm.config).config.use_karras_sigmas is True


def test_defaults_of_one_scheduler_do_not_become_choices_for_another():
    """The spacing of DDIM is leading by default, that of Euler linspace."""
    ddim = DDIMScheduler(**LIN)
    assert ddim.config.timestep_spacing == "leading"
    assert EulerDiscreteScheduler.from_config(ddim.config).config.timestep_spacing == "linspace"
    chosen = DDIMScheduler(**LIN, timestep_spacing="leading")
    assert EulerDiscreteScheduler.from_config(chosen.config).config.timestep_spacing == "leading"


def test_an_edited_copy_of_a_configuration_counts():
    """In diffusers this edit is lost: clip_sample still is in the list of fields left at their defaults."""
    edited = {**DDIMScheduler(**LIN).config, "clip_sample": False}
    assert DDIMScheduler.from_config(edited).config.clip_sample is False


def test_a_missing_field_takes_the_default_of_the_target():
    """Hence the clipping that W-SOLVER-CLIP is about."""
    lms = LMSDiscreteScheduler(**LIN)
    assert DDIMScheduler.from_config(lms.config).config.clip_sample is True


def test_configurations_are_immutable():
    scheduler = DDIMScheduler()
    with pytest.raises(AttributeError):
        scheduler.config.clip_sample = False
    assert scheduler.config["clip_sample"] is scheduler.config.clip_sample is True


@pytest.mark.parametrize("target", [PNDMScheduler, LMSDiscreteScheduler, HeunDiscreteScheduler])
def test_a_zero_snr_schedule_is_not_dropped_silently(target):
    source = DDIMScheduler(**LIN, rescale_betas_zero_snr=True).config
    with pytest.warns(VivantWarning, match="W-SCHEDULER-ZERO-SNR"):
        scheduler = target.from_config(source)
    assert scheduler.config.rescale_betas_zero_snr is True
    assert DDIMScheduler.from_config(scheduler.config).solver.signal[-1] == 0.0
    with pytest.warns(VivantWarning, match="W-SCHEDULER-ZERO-SNR"):
        target.from_config(LIN, rescale_betas_zero_snr=True)
    assert target.from_config(source, rescale_betas_zero_snr=False).config.rescale_betas_zero_snr is False


def test_files(tmp_path):
    scheduler = DDIMScheduler.from_config(SCHEDULER, clip_sample=False)
    scheduler.save_pretrained(tmp_path / "repo" / "scheduler")
    text = json.loads((tmp_path / "repo" / "scheduler" / "scheduler_config.json").read_text())
    assert text["_class_name"] == "DDIMScheduler"
    assert "_use_default_values" not in text
    for args in [(tmp_path / "repo", "scheduler"), (str(tmp_path / "repo" / "scheduler"),)]:
        assert DDIMScheduler.from_pretrained(*args).solver == scheduler.solver
    changed = EulerDiscreteScheduler.from_pretrained(tmp_path / "repo", subfolder="scheduler", beta_end=0.02)
    assert changed.config.beta_end == 0.02
    with pytest.raises(LoadError, match="E-FILE-MISSING"):
        DDIMScheduler.from_pretrained(tmp_path / "repo")
    (tmp_path / "repo" / "scheduler_config.json").write_text("{")
    with pytest.raises(LoadError, match="E-JSON-BROKEN"):
        DDIMScheduler.from_pretrained(tmp_path / "repo")


def test_infinity_survives_a_file(tmp_path):
    DPMSolverMultistepScheduler().save_pretrained(tmp_path)
    assert DPMSolverMultistepScheduler.from_pretrained(tmp_path).solver == DPMSolver()


# ------------------------------------------------------------------------------------------------ names, types, PIA


def test_a_scheduler_that_we_lack_carries_its_configuration(tmp_path):
    source = {"_class_name": "DEISMultistepScheduler", **LIN, "solver_order": 3, "algorithm_type": "deis"}
    kind = scheduler_class("DEISMultistepScheduler")
    assert kind is UnknownScheduler
    placeholder = kind.from_config(source)
    assert dict(placeholder.config) == source
    uses = [
        lambda: placeholder.set_timesteps(4),
        lambda: placeholder.solver,
        lambda: placeholder.order,
        lambda: placeholder.betas,
        lambda: placeholder.alphas_cumprod,
    ]
    for use in uses:
        with pytest.raises(InputError, match=r"E-SCHEDULER-UNKNOWN.*DEISMultistepScheduler.*EulerDiscreteScheduler"):
            use()
    assert not hasattr(placeholder, "sigmas")
    placeholder.save_pretrained(tmp_path)
    assert dict(UnknownScheduler.from_pretrained(tmp_path, a_field=1).config) == {**source, "a_field": 1}
    assert DDIMScheduler.from_config(placeholder.config).solver == DDIM(**LIN)
    assert DPMSolverMultistepScheduler.from_config(placeholder.config).config.algorithm_type == "dpmsolver++"


def test_every_scheduler_is_found_by_its_name():
    assert len(SCHEDULERS) == 15
    for name, kind in SCHEDULERS.items():
        assert scheduler_class(name) is kind
        assert kind.__name__ == name
    scheduler = EulerAncestralDiscreteScheduler()
    assert as_scheduler(scheduler) is scheduler


@pytest.mark.parametrize("thing", [None, "DDIMScheduler", DDIM(), {"_class_name": "DDIMScheduler"}], ids=repr)
def test_things_that_are_no_scheduler(thing):
    with refused("E-SCHEDULER-TYPE"):
        as_scheduler(thing)


@pytest.mark.parametrize(
    "name", [n for n, kind in SCHEDULERS.items() if kind.spaced_by_sigma and n != "EulerAncestralDiscreteScheduler"]
)
def test_noise_levels_lie_along_one_curve(name):
    with refused("E-SOLVER-OPTIONS"):
        SCHEDULERS[name](use_karras_sigmas=True, use_exponential_sigmas=True)
    if name != "UniPCMultistepScheduler":  # which takes no custom timesteps
        for curve in ("use_karras_sigmas", "use_exponential_sigmas"):
            scheduler = SCHEDULERS[name](**{curve: True})
            with refused("E-SOLVER-SCHEDULE"):
                scheduler.set_timesteps(timesteps=[900, 300])


def test_pia_is_warned_about_clipping_and_noise_schedules():
    assert pia_warnings(DDIM(**LIN, clip_sample=False)) == []
    assert pia_warnings(Euler(**LIN)) == []
    for fields in ({"clip_sample": True}, {"clip_sample": False, "thresholding": True}):
        (message,) = pia_warnings(DDIM(**LIN, **fields))
        assert message.startswith("[W-SOLVER-CLIP]")
    (message,) = pia_warnings(Euler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
    assert message.startswith("[W-SOLVER-BETAS]")
    assert "0.161" in message
    assert "0.27" in message
    assert len(pia_warnings(DDIM())) == 2, "linear betas in another range are another noise schedule"
    assert len(pia_warnings(LCM())) == 1
