"""The public schedulers against their namesakes in diffusers: protocol, configuration, files."""

import dataclasses
import inspect
import json
from typing import Any

import diffusers
import pytest
import torch

from stepping import stepper
from tiny import noise
from tolerances import assert_parity
from vivant.errors import InputError
from vivant.schedulers import SCHEDULERS, UnknownScheduler, as_scheduler

# What the oracle is about to drop, and what it does with NumPy, is not ours to fix.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]
SHAPE = (2, 4, 3, 5, 6)
LIN = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
SCALED = {**LIN, "beta_schedule": "scaled_linear"}
COSINE_KARRAS = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}
NAMES = sorted(SCHEDULERS.keys() - {"DPMSolver2SAncestralScheduler"})  # diffusers lacks it
# These compute as the reference on request only, with betas of one kind; test_cogvideox.py has the rest.
PORTED = {"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"}
NOISE = {name: SCALED if name in PORTED else LIN for name in NAMES}
PLAIN = {"DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler", *PORTED}
INEXACT = {"LMSDiscreteScheduler", "UniPCMultistepScheduler"}
UNSPACED = {"DPMSolverSinglestepScheduler"}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, dict(NOISE[name])) for name in NAMES),
    *(
        (name, {**NOISE[name], "timestep_spacing": "leading", "steps_offset": 1})
        for name in NAMES
        if name not in UNSPACED
    ),
    *(
        (name, {**NOISE[name], "timestep_spacing": "trailing", "prediction_type": "v_prediction"})
        for name in NAMES
        if name not in UNSPACED
    ),
    ("PNDMScheduler", {**LIN, "skip_prk_steps": True}),
    ("DPMSolverMultistepScheduler", {**LIN, "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    ("DPMSolverSinglestepScheduler", {**LIN, "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {**LIN, "use_karras_sigmas": True, "rescale_betas_zero_snr": True}),
    ("DDIMScheduler", {**LIN, "rescale_betas_zero_snr": True}),
]
TWINS = pytest.mark.parametrize(("name", "config"), VARIANTS, ids=str)


def twins(name: str, config: dict[str, Any]):
    ours = SCHEDULERS[name].from_config(config, compat="diffusers") if name in PORTED else SCHEDULERS[name](**config)
    return ours, getattr(diffusers, name)(**config)


def trajectory(scheduler: Any, start: int, seed: int = 5, **options: Any):
    """What a pipeline does: scale, ask the network, step. Returns all states and the generator's state."""
    generator = torch.Generator().manual_seed(seed)
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = generator
    x = noise(*SHAPE, seed=3) * scheduler.init_noise_sigma
    if start and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    states, step = [], stepper(scheduler)
    for i, t in enumerate(scheduler.timesteps[start:]):
        seen = scheduler.scale_model_input(x, t)
        output = 0.6 * torch.tanh(seen) + 0.4 * noise(*SHAPE, seed=50 + i)
        x = step(output, t, x, **options, return_dict=False)[0]
        states += [seen, x]
    return states, generator.get_state()


def same(name: str, ours: torch.Tensor, oracle: torch.Tensor) -> None:
    if name in INEXACT:
        assert_parity(ours, oracle)
    else:
        assert torch.equal(ours, oracle)


@TWINS
def test_a_run_as_pipelines_make_it(name, config):
    """Twice, because set_timesteps has to forget the first run."""
    ours, theirs = twins(name, config)
    for num_steps in (7, 5):
        ours.set_timesteps(num_steps, device="cpu")
        theirs.set_timesteps(num_steps, device="cpu")
        assert ours.timesteps.dtype == theirs.timesteps.dtype
        assert torch.equal(ours.timesteps, theirs.timesteps)
        assert ours.num_inference_steps == theirs.num_inference_steps
        assert float(ours.init_noise_sigma) == float(theirs.init_noise_sigma)
        if hasattr(theirs, "sigmas"):
            assert torch.equal(ours.sigmas, theirs.sigmas)
        (found, our_state), (expected, their_state) = (trajectory(s, 0) for s in (ours, theirs))
        for one, other in zip(found, expected, strict=True):
            same(name, one, other)
        assert torch.equal(our_state, their_state), "another number of random draws"


@TWINS
def test_constants(name, config):
    ours, theirs = twins(name, config)
    assert ours.order == theirs.order
    assert len(ours) == len(theirs) == 1000
    assert torch.equal(ours.betas, theirs.betas)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)


@TWINS
def test_before_there_is_a_schedule(name, config):
    """Programs ask `hasattr(scheduler, "sigmas")`. Heun and LMS of the reference count spacings in already."""
    spacing = ("timestep_spacing", "steps_offset") if name in ("HeunDiscreteScheduler", "LMSDiscreteScheduler") else ()
    ours, theirs = twins(name, {field: value for field, value in config.items() if field not in spacing})
    for _ in range(2):
        assert hasattr(ours, "sigmas") == hasattr(theirs, "sigmas")
        assert float(ours.init_noise_sigma) == float(theirs.init_noise_sigma)
        if hasattr(theirs, "sigmas"):
            assert torch.equal(ours.sigmas, theirs.sigmas.float())
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(7)


@pytest.mark.parametrize(
    "run",
    [
        {"num_inference_steps": 4, "original_inference_steps": 20},
        {"num_inference_steps": 4, "original_inference_steps": 30, "strength": 0.55},
        {"num_inference_steps": 5, "strength": 0.3},
        {"timesteps": [949, 499, 49], "original_inference_steps": 20},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_steps_of_distilled_networks(name, run):
    ours, theirs = twins(name, {})
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(**run)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert ours.num_inference_steps == theirs.num_inference_steps
    for one, other in zip(trajectory(ours, 0)[0], trajectory(theirs, 0)[0], strict=True):
        assert torch.equal(one, other)
    assert ours.config.original_inference_steps == 50


def test_steps_beyond_those_that_tcd_is_said_to_be_distilled_on():
    ours, theirs = twins("TCDScheduler", {})
    with pytest.raises(ValueError, match="original_inference_steps"):
        theirs.set_timesteps(30, original_inference_steps=20)
    with pytest.raises(InputError, match="E-SOLVER-STEPS"):
        ours.set_timesteps(30, original_inference_steps=20)


def test_reference_ends_custom_timesteps_of_lcm_in_noise():
    """With a strength it takes the last of them for one in the middle."""
    ours, theirs = twins("LCMScheduler", {})
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(timesteps=[999, 759, 499, 259, 19], strength=0.7)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist() == [499, 259, 19]
    t, x = ours.timesteps[-1], noise(*SHAPE)
    for scheduler in (ours, theirs):
        scheduler.set_begin_index(2)
    (x_next, clean), (their_next, their_clean) = (s.step(x, t, x, return_dict=False) for s in (ours, theirs))
    assert torch.equal(clean, their_clean)
    assert torch.equal(x_next, clean)
    assert not torch.equal(their_next, their_clean)


def test_reference_tells_no_clean_sample_of_tcd():
    """What it gives beside the next state is the state below it; a preview of the clip needs the clean one."""
    ours, theirs = twins("TCDScheduler", {})
    x = noise(*SHAPE)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(4)
    t = ours.timesteps[1]
    found = ours.step(x, t, x, eta=0.0)
    their = theirs.step(x, t, x, eta=0.0)
    assert not hasattr(their, "pred_original_sample")
    assert torch.equal(found.prev_sample, their.pred_noised_sample)
    abar = theirs.alphas_cumprod[t]
    assert_parity(found.pred_original_sample, (x - (1 - abar) ** 0.5 * x) / abar**0.5)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"PNDMScheduler", "LMSDiscreteScheduler"}))
def test_begin_index(name):
    ours, theirs = twins(name, NOISE[name])
    start = 3 * ours.order
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(8)
    for one, other in zip(trajectory(ours, start)[0], trajectory(theirs, start)[0], strict=True):
        same(name, one, other)


@pytest.mark.parametrize("name", sorted(set(NAMES) - PLAIN))
def test_a_run_begun_in_the_middle_finds_its_step(name):
    """Without set_begin_index, the first timestep says where."""
    ours, theirs = twins(name, LIN)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(8)
    t, x = ours.timesteps[3 * ours.order], noise(*SHAPE)
    assert torch.equal(ours.scale_model_input(x, t), theirs.scale_model_input(x, t))
    draws = [{}, {}]
    if "generator" in inspect.signature(ours.step).parameters:
        draws = [{"generator": torch.Generator().manual_seed(1)} for _ in range(2)]
    pairs = [s.step(x, t, x, **draw).prev_sample for s, draw in zip((ours, theirs), draws, strict=True)]
    if name != "LMSDiscreteScheduler":  # see test_reference_loses_its_way_after_a_truncated_start
        same(name, *pairs)


@TWINS
def test_add_noise(name, config):
    """On the schedule for each sample its own level; for the plain solvers anywhere in the training."""
    ours, theirs = twins(name, config)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(6)
    x0, eps = noise(*SHAPE, seed=1), noise(*SHAPE, seed=2)
    on_schedule, anywhere = ours.timesteps[[0, -1]], torch.tensor([17, 763])
    if name in PORTED:  # the reference rounds abar to float32 before it takes the roots
        for t in (on_schedule, anywhere):
            assert_parity(ours.add_noise(x0, eps, t), theirs.add_noise(x0, eps, t))
        return
    assert torch.equal(ours.add_noise(x0, eps, on_schedule), theirs.add_noise(x0, eps, on_schedule))
    if name in PLAIN:
        assert torch.equal(ours.add_noise(x0, eps, anywhere), theirs.add_noise(x0, eps, anywhere))
    else:
        for scheduler in (ours, theirs):
            scheduler.set_begin_index(2)
        wanted = ours.timesteps[[2, 2]]
        assert torch.equal(ours.add_noise(x0, eps, wanted), theirs.add_noise(x0, eps, wanted))


def test_reference_cannot_noise_off_the_schedule():
    """FreeInit noises to the last timestep of the training, which leading spacing does not visit."""
    x0, eps, t = noise(*SHAPE, seed=1), noise(*SHAPE, seed=2), torch.tensor([999, 999])
    ours, theirs = twins("EulerDiscreteScheduler", {**LIN, "timestep_spacing": "leading"})
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(6)
    with pytest.raises(IndexError):
        theirs.add_noise(x0, eps, t)
    assert_parity(
        ours.add_noise(x0, eps, t), x0 + eps * ((1 - theirs.alphas_cumprod[-1]) / theirs.alphas_cumprod[-1]) ** 0.5
    )

    ours, theirs = twins("DPMSolverMultistepScheduler", {**LIN, "timestep_spacing": "leading"})
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(6)
    assert_parity(theirs.add_noise(x0, eps, t), theirs.add_noise(x0, eps, theirs.timesteps[[-1, -1]]))
    abar = theirs.alphas_cumprod[-1]
    assert_parity(ours.add_noise(x0, eps, t), abar**0.5 * x0 + (1 - abar) ** 0.5 * eps)


def test_reference_rounds_the_scalars_of_noise():
    """In bfloat16 to three digits, and after every operation; here the sum is rounded once."""
    x0, eps, t = noise(*SHAPE, seed=1).bfloat16(), noise(*SHAPE, seed=2).bfloat16(), torch.tensor([40, 700])
    ours, theirs = twins("DDIMScheduler", LIN)
    exact = ours.add_noise(x0.float(), eps.float(), t)
    assert torch.equal(ours.add_noise(x0, eps, t), exact.bfloat16())
    error, their_error = (s.add_noise(x0, eps, t).float().sub(exact).norm() for s in (ours, theirs))
    assert their_error > 1.5 * error


def test_timesteps_that_karras_sigmas_share():
    """The first two steps are told the same timestep at different levels; the step that is due decides."""
    ours, theirs = twins("DPMSolverMultistepScheduler", COSINE_KARRAS)
    x0, eps = noise(*SHAPE, seed=1), noise(*SHAPE, seed=2)
    for i in (0, 1):
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(6)
            scheduler.set_begin_index(i)
        t = ours.timesteps[[i, i]]
        assert t.tolist() == ours.timesteps[:2].tolist()
        assert torch.equal(ours.add_noise(x0, eps, t), theirs.add_noise(x0, eps, t))


def test_reference_skips_the_first_step_when_karras_timesteps_coincide():
    """Its rule for equal timesteps, the second counts, is for runs that begin in the middle."""
    ours, theirs = twins(
        "DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}
    )
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(6)
    assert ours.timesteps[0] == ours.timesteps[1]
    with pytest.raises(IndexError):
        trajectory(theirs, 0)
    theirs.set_timesteps(6)
    theirs.set_begin_index(0)
    for one, other in zip(trajectory(ours, 0)[0], trajectory(theirs, 0)[0], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", sorted(set(NAMES) - PORTED))
def test_generators_given_noise_and_tuples(name):
    ours, theirs = twins(name, LIN)
    parameters = inspect.signature(theirs.step).parameters
    x = noise(*SHAPE)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(6)
    eta = {"eta": 0.8} if "eta" in parameters else {}

    def first(scheduler: Any, **options: Any):
        scheduler.set_timesteps(6)
        t = scheduler.timesteps[0]
        scheduler.scale_model_input(x, t)
        return scheduler.step(x, t, x, **eta, **options)

    if "generator" in parameters:
        several = [[torch.Generator().manual_seed(i) for i in (1, 2)] for _ in range(2)]
        same(name, first(ours, generator=several[0]).prev_sample, first(theirs, generator=several[1]).prev_sample)
    else:
        same(name, first(ours).prev_sample, first(theirs).prev_sample)
    if "variance_noise" in parameters:
        given = {"variance_noise": noise(*SHAPE, seed=9)}
        assert torch.equal(first(ours, **given).prev_sample, first(theirs, **given).prev_sample)
    assert len(first(ours, return_dict=False)) == len(first(theirs, return_dict=False))


@pytest.mark.parametrize("order", [1, 2])
def test_extra_arguments_of_step(order):
    ours, theirs = twins("LMSDiscreteScheduler", LIN)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(6)
    for one, other in zip(trajectory(ours, 0, order=order)[0], trajectory(theirs, 0, order=order)[0], strict=True):
        assert_parity(one, other)
    ours, theirs = twins("EulerDiscreteScheduler", LIN)
    churn = {"s_churn": 5.0, "s_tmin": 0.2, "s_tmax": 9.0, "s_noise": 1.01}
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(6)
    for one, other in zip(trajectory(ours, 0, **churn)[0], trajectory(theirs, 0, **churn)[0], strict=True):
        assert torch.equal(one, other)
    ours, theirs = twins("DDIMScheduler", LIN)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(6)
    clipped = {"use_clipped_model_output": True, "eta": 0.5}
    for one, other in zip(trajectory(ours, 0, **clipped)[0], trajectory(theirs, 0, **clipped)[0], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "CogVideoXDDIMScheduler"])
def test_steps_without_history_come_in_any_order(name):
    ours, theirs = twins(name, NOISE[name])
    x = noise(*SHAPE)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(6)
    for i in (4, 1, 5, 1):
        t = ours.timesteps[i]
        seeds = [torch.Generator().manual_seed(i) for _ in range(2)]
        assert torch.equal(
            ours.step(x, t, x, generator=seeds[0]).prev_sample, theirs.step(x, t, x, generator=seeds[1]).prev_sample
        )


@pytest.mark.parametrize("name", NAMES)
def test_arguments_have_the_names_order_and_defaults_of_the_reference(name):
    ours, theirs = SCHEDULERS[name], getattr(diffusers, name)
    for method in ("step", "add_noise"):
        found, expected = (inspect.signature(getattr(cls, method)).parameters.values() for cls in (ours, theirs))
        assert [(p.name, p.default) for p in found] == [(p.name, p.default) for p in expected]
    if name in ("LCMScheduler", "TCDScheduler"):  # these have steps of their own
        assert list(inspect.signature(ours.set_timesteps).parameters) == list(
            inspect.signature(theirs.set_timesteps).parameters
        )
    wanted = {p.name: p.default for p in list(inspect.signature(theirs.__init__).parameters.values())[1:]}
    fields = {f.name: f.default for f in dataclasses.fields(ours.solver_class)}
    if name == "UniPCMultistepScheduler":
        wanted["disable_corrector"] = ()
    assert fields == wanted
    assert list(fields) == list(wanted), "positional arguments of the solver would differ"


# --------------------------------------------------------------------------------------------------- configuration

CHOSEN: dict[str, dict[str, Any]] = {
    "CogVideoXDDIMScheduler": {"snr_shift_scale": 1.0, "clip_sample_range": 2.0},
    "CogVideoXDPMScheduler": {"snr_shift_scale": 1.0, "timestep_spacing": "trailing"},
    "DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "DDPMScheduler": {"variance_type": "fixed_large", "thresholding": True},
    "DPMSolverMultistepScheduler": {"solver_type": "heun", "solver_order": 3, "use_karras_sigmas": True},
    "DPMSolverSinglestepScheduler": {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "use_karras_sigmas": True},
    "EulerAncestralDiscreteScheduler": {"timestep_spacing": "trailing"},
    "EulerDiscreteScheduler": {
        "interpolation_type": "linear",
        "use_karras_sigmas": True,
        "timestep_spacing": "leading",
    },
    "HeunDiscreteScheduler": {"clip_sample": True, "clip_sample_range": 2.0},
    "LCMScheduler": {"original_inference_steps": 40, "timestep_scaling": 5.0},
    "LMSDiscreteScheduler": {"use_karras_sigmas": True},
    "PNDMScheduler": {"skip_prk_steps": True, "steps_offset": 1},
    "TCDScheduler": {"original_inference_steps": 40, "set_alpha_to_one": False},
    "UniPCMultistepScheduler": {"solver_type": "bh1", "disable_corrector": [0], "predict_x0": True},
}


def public(config: Any) -> dict[str, Any]:
    """The fields, with lists as tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if not k.startswith("_")}


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("origin", NAMES)
def test_from_config_across_every_pair(origin, target):
    """From the reference's configuration and from ours, there and back."""
    our_origin, their_origin = twins(origin, {**SCALED, "prediction_type": "v_prediction", **CHOSEN[origin]})
    their_target = getattr(diffusers, target).from_config(their_origin.config)
    their_return = getattr(diffusers, origin).from_config(their_target.config)
    for config in (our_origin.config, their_origin.config):
        our_target = SCHEDULERS[target].from_config(config)
        assert public(our_target.config) == public(their_target.config)
        our_return = SCHEDULERS[origin].from_config(our_target.config)
        assert public(our_return.config) == public(their_return.config)
    for scheduler in (our_target, their_target):
        scheduler.set_timesteps(6)
    assert torch.equal(our_target.timesteps, their_target.timesteps)


def test_reference_reads_fields_that_a_scheduler_does_not_have():
    """DPM-Solver's Karras sigmas take the ends that a configuration of Euler left behind; here they have no effect."""
    origin = diffusers.EulerDiscreteScheduler(**LIN, sigma_min=0.1, use_karras_sigmas=True)
    ours = SCHEDULERS["DPMSolverMultistepScheduler"].from_config(origin.config)
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(origin.config)
    plain = diffusers.DPMSolverMultistepScheduler(**LIN, use_karras_sigmas=True)
    for scheduler in (ours, theirs, plain):
        scheduler.set_timesteps(6)
    assert ours.config.sigma_min == 0.1
    assert not torch.equal(ours.timesteps, theirs.timesteps)
    assert torch.equal(ours.timesteps, plain.timesteps)


@pytest.mark.parametrize(("origin", "target"), list(zip(NAMES, NAMES[3:] + NAMES[:3], strict=True)))
def test_files_travel_both_ways(origin, target, tmp_path):
    """A scheduler_config.json of one library, read by another class of the other."""
    our_origin, their_origin = twins(origin, {**SCALED, **CHOSEN[origin]})
    our_origin.save_pretrained(tmp_path / "ours")
    their_origin.save_pretrained(tmp_path / "theirs")
    written = json.loads((tmp_path / "ours" / "scheduler_config.json").read_text())
    expected = json.loads((tmp_path / "theirs" / "scheduler_config.json").read_text())
    expected.pop("_diffusers_version")
    assert written == expected
    ours = SCHEDULERS[target].from_pretrained(tmp_path / "theirs")
    theirs = getattr(diffusers, target).from_pretrained(tmp_path / "ours")
    assert public(ours.config) == public(theirs.config)


def test_changes_win_over_defaults_and_choices():
    their_origin = diffusers.PNDMScheduler(**LIN, skip_prk_steps=True)
    changes = {"timestep_spacing": "trailing", "beta_start": 0.001, "use_karras_sigmas": True}
    ours = SCHEDULERS["EulerDiscreteScheduler"].from_config(their_origin.config, **changes)
    theirs = diffusers.EulerDiscreteScheduler.from_config(their_origin.config, **changes)
    assert public(ours.config) == public(theirs.config)
    assert ours.config.skip_prk_steps is True


@pytest.mark.parametrize("name", NAMES)
def test_scheduler_objects_of_the_reference_are_read(name):
    theirs = getattr(diffusers, name)(**NOISE[name], **CHOSEN[name])
    ours = as_scheduler(theirs)
    assert type(ours) is SCHEDULERS[name]
    assert public(ours.config) == public(theirs.config)
    assert as_scheduler(ours) is ours


def test_scheduler_objects_that_we_lack_become_placeholders(tmp_path):
    theirs = diffusers.DEISMultistepScheduler(**LIN, solver_order=3)
    ours = as_scheduler(theirs)
    assert isinstance(ours, UnknownScheduler)
    with pytest.raises(InputError, match=r"E-SCHEDULER-UNKNOWN.*DEISMultistepScheduler.*DDIMScheduler"):
        ours.set_timesteps(5)
    ours.save_pretrained(tmp_path)
    assert public(diffusers.DEISMultistepScheduler.from_pretrained(tmp_path).config) == public(theirs.config)
    expected = diffusers.DPMSolverMultistepScheduler.from_config(theirs.config)
    found = SCHEDULERS["DPMSolverMultistepScheduler"].from_config(ours.config)
    assert public(found.config) == public(expected.config)
