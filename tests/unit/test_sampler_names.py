"""The table of samplers by their A1111 names: every row is built, walked and run, and every other name is refused."""

import warnings
from dataclasses import fields
from typing import Any

import pytest
import torch

from tiny import noise
from vivant.api.running import recorded
from vivant.cli.recipes import scheduler_of
from vivant.errors import InputError
from vivant.media.recipe import decode_recipe, encode_recipe
from vivant.schedulers import SCHEDULERS, DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from vivant.schedulers.names import MODEL_FIELDS, NEAREST, SAMPLERS, named, names

SD15 = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
"""As the published repositories of Stable Diffusion 1.5 have it."""
SHAPE = (2, 4, 3, 5, 6)


@pytest.mark.parametrize("name", names())
def test_every_name_makes_a_sampler_that_runs(name):
    scheduler: Any = named(name, SD15)
    base = next(known for known in sorted(SAMPLERS, key=len, reverse=True) if name.startswith(known))
    row = SAMPLERS[base]
    schedule = name.removeprefix(base).strip()
    expected = {**row.fields, **(row.schedules[schedule] if schedule else {})}
    assert type(scheduler).__name__ == row.scheduler
    assert {key: scheduler.config[key] for key in expected} == expected
    assert set(expected) <= {f.name for f in fields(SCHEDULERS[row.scheduler].solver_class)}, "a field without effect"
    assert (scheduler.config.beta_schedule, scheduler.config.beta_start) == ("scaled_linear", 0.00085)
    assert not scheduler.config.get("clip_sample"), "latents are no pixels"
    solver, generator = scheduler.solver, torch.Generator().manual_seed(3)
    schedule, carry = solver.schedule(6), None
    x0, x = noise(*SHAPE, seed=1), noise(*SHAPE) * solver.init_sigma(solver.schedule(6))
    for step in schedule:
        eps = (x - step.alpha * x0) / step.sigma
        x, _, carry = solver.step(eps, step, x, carry, lambda: torch.randn(SHAPE, generator=generator))
    assert float((x - x0).norm() / x0.norm()) < 0.35, "a network that knows the answer leads there"


def test_no_two_names_are_the_same_sampler():
    """But for the two schedules that A1111 has under two names."""
    built = {name: named(name, SD15) for name in names() if not name.endswith(" Simple")}
    same = ("DPM++ SDE SGM Uniform", "DPM++ 2S SGM Uniform")  # groups are spaced like this anyway
    texts = [repr(scheduler) for name, scheduler in built.items() if name not in same]
    assert len(set(texts)) == len(texts) > 25


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("dpm++ 2m karras", "DPM++ 2M Karras"),
        ("  DPM++  SDE KARRAS ", "DPM++ SDE Karras"),
        ("k_euler_a", "Euler a"),
        ("euler_ancestral", "Euler a"),
        ("k_dpmpp_2m", "DPM++ 2M"),
        ("dpmpp_2m_sde_karras", "DPM++ 2M SDE Karras"),
        ("dpmpp_3m_sde_exponential", "DPM++ 3M SDE Exponential"),
        ("Euler SGMUniform", "Euler SGM Uniform"),
        ("lms normal", "LMS"),
        ("DPM++ 2M Uniform", "DPM++ 2M"),
        ("dpmpp_2s_ancestral_karras", "DPM++ 2S a Karras"),
        ("k_dpmpp_2s_a", "DPM++ 2S a"),
        ("uni_pc", "UniPC"),
        ("PNDM", "PLMS"),
        ("ddim", "DDIM"),
    ],
)
def test_spellings(spelling, name):
    assert repr(named(spelling, SD15)) == repr(named(name, SD15))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        *((name, nearest) for name, nearest in NEAREST.items()),
        ("DPM2 Karras", "Heun Karras"),
        ("dpm_2_ancestral", "Euler a"),
        ("DPM++ 2M SDE Polyexponential", "DPM++ 2M SDE Exponential"),
        ("Euler a Karras", "Euler a SGM Uniform"),
        ("LCM Karras", "LCM"),
        ("DPM++2M", "DPM++ 2M"),
        ("Euler Beta", "Euler Karras"),
        ("DPM++ 4M", "DPM++ 2M"),
    ],
)
def test_what_we_lack_is_refused_with_what_is_nearest(name, near):
    with pytest.raises(InputError) as error:
        named(name, SD15)
    assert error.value.code == "E-SAMPLER"
    assert near in error.value.why.removeprefix("Nearest: ").removesuffix(".").split(", ")


NOT_TEXT = pytest.mark.unchecked


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Karras",
        "a sampler \x1b[31m" + "x" * 10_000,
        pytest.param(None, marks=NOT_TEXT),
        pytest.param(3, marks=NOT_TEXT),
    ],
)
def test_no_name_at_all(name):
    with pytest.raises(InputError) as error:
        named(name, SD15)
    assert error.value.code == "E-SAMPLER"
    assert len(error.value.what) < 120
    assert "\x1b" not in str(error.value)


def test_a_name_means_the_same_whatever_sampler_was_there_before():
    one = named("DPM++ 2M SDE Heun Karras", SD15)
    two = named("DPM++ 2M Karras", one.config)
    assert repr(two) == repr(named("DPM++ 2M Karras", SD15))
    assert repr(named("Euler", two.config)) == repr(named("Euler", SD15))
    clipped = DDIMScheduler.from_config(
        {**SD15, "clip_sample": True, "thresholding": True, "prediction_type": "sample"}
    )
    assert repr(named("DDIM", clipped.config)) == repr(named("DDIM", {**SD15, "prediction_type": "sample"}))


def test_the_model_keeps_its_noise_schedule_also_where_that_is_a_default():
    """Euler's default betas are not LCM's; a configuration that leaves them out means Euler's."""
    euler = EulerDiscreteScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = named("LCM", euler.config)
    assert {key: found.config[key] for key in MODEL_FIELDS} == {key: euler.config[key] for key in MODEL_FIELDS}
    bare = named("LCM", {"_class_name": "EulerDiscreteScheduler"})
    assert (bare.config.beta_start, bare.config.beta_schedule) == (0.0001, "linear")
    assert named("LCM", {}).config.beta_start == 0.00085
    assert isinstance(named("PLMS", {"_class_name": "KDPM2DiscreteScheduler", **SD15}), PNDMScheduler)


@pytest.mark.parametrize("name", names())
def test_every_sampler_can_be_recorded_and_is_read_back(name: str):
    made = named(name, DDIMScheduler(beta_schedule="linear").config)
    text = encode_recipe({"vivant": 1, "scheduler": recorded(made)})
    again = scheduler_of(decode_recipe(text.encode(), "a recipe")["scheduler"])
    assert type(again) is type(made)
    assert again.solver == made.solver
