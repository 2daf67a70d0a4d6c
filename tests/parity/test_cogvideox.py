"""The samplers of CogVideoX against diffusers: bit for bit on request, and correct by default."""

import inspect
import itertools
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from stepping import stepper
from tiny import noise
from tolerances import TRAJECTORY, assert_parity, relative_l2
from vivant.errors import VivantWarning
from vivant.schedulers import SCHEDULERS
from vivant.solvers.schedule import PREDICTIONS, SPACINGS, Solver

# What the oracle is about to drop, and what it does with NumPy, is not ours to fix.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]
DDIM, DPM = "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"
SHAPE = (2, 3, 4, 5, 6)
# The published configuration of ConsisID.
GOLDEN = Path(__file__).parents[1] / "golden" / "configs.json"
CONSISID = {k: v for k, v in json.loads(GOLDEN.read_text())["consisid_scheduler"].items() if k != "inferred"}
PLAIN = {**CONSISID, "rescale_betas_zero_snr": False}
# The data types of the state and of what the network says. The pipeline of the reference mixes them.
DTYPES = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "mixed": (torch.bfloat16, torch.float32),
}
both = pytest.mark.parametrize("name", [DDIM, DPM])


def pair(name: str, config: dict[str, Any]):
    """Ours as the reference computes it, and the reference."""
    return SCHEDULERS[name].from_config(config, compat="diffusers"), getattr(diffusers, name).from_config(config)


def network(x: Tensor, index: int, dtype: torch.dtype) -> Tensor:
    """A smooth function of the state with a part that no solver can foresee."""
    return (0.6 * torch.tanh(x.float()) + 0.8 * noise(*SHAPE, seed=100 + index)).to(dtype)


def shell_run(scheduler: Any, num_steps: int, dtypes: tuple[torch.dtype, torch.dtype], predict: Any = network):
    """As pipelines do it: every state, every predicted sample where there is one, and the generator's state."""
    scheduler.set_timesteps(num_steps)
    generator, step = torch.Generator().manual_seed(5), stepper(scheduler)
    draws = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    x, found = (noise(*SHAPE, seed=3) * scheduler.init_noise_sigma).to(dtypes[0]), []
    for i, t in enumerate(scheduler.timesteps):
        output = predict(scheduler.scale_model_input(x, t), i, dtypes[1])
        result = step(output, t, x, **draws, return_dict=False)
        found += result
        x = result[0].to(dtypes[0])
    return found, generator.get_state()


def core_run(solver: Solver, num_steps: int, dtypes: tuple[torch.dtype, torch.dtype], draw: Any = None):
    """As the loop of the core does it."""
    generator, carry = torch.Generator().manual_seed(5), None
    draw = draw or (lambda: torch.randn(SHAPE, generator=generator).to(dtypes[0]))
    x, found = noise(*SHAPE, seed=3).to(dtypes[0]), []
    for i, step in enumerate(solver.schedule(num_steps)):
        x, clean, carry = solver.step(network(x, i, dtypes[1]), step, x, carry, draw)
        found += [x, clean]
        x = x.to(dtypes[0])
    return found, generator.get_state()


def check(name: str, config: dict[str, Any], num_steps: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """States, predictions, data types and draws are the same to the last bit, in the shell and in the core."""
    ours, theirs = pair(name, config)
    expected, their_state = shell_run(theirs, num_steps, dtypes)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    for found, our_state in (shell_run(ours, num_steps, dtypes), core_run(ours.solver, num_steps, dtypes)):
        assert len(found) == len(expected) == 2 * num_steps
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert one.dtype == other.dtype
            assert one.isfinite().all()
            assert torch.equal(one, other), f"entry {i} of {config}"
        assert torch.equal(our_state, their_state), "another number of random draws"
    assert ours.timesteps.dtype == theirs.timesteps.dtype
    assert torch.equal(ours.timesteps, theirs.timesteps)


# ------------------------------------------------------------------------------------------ with compat="diffusers"


# One linspace step starts at the clean end there, see test_solvers.py.
WAYS = [(s, n) for s in SPACINGS for n in (50, 30, 7, 3, 1) if (s, n) != ("linspace", 1)]


@both
@pytest.mark.parametrize(("spacing", "num_steps"), WAYS)
@pytest.mark.parametrize("dtypes", DTYPES)
def test_runs_in_compat_are_those_of_the_reference(name, spacing, num_steps, dtypes):
    """Whole runs with every prediction and noise schedule; clip_sample is on, and ignored as there."""
    ran = 0
    for prediction, shift, zero in itertools.product(PREDICTIONS, (1.0, 3.0), (False, True)):
        if prediction == "epsilon" and zero and spacing != "leading":
            continue  # see test_epsilon_from_pure_noise_is_refused
        options = {"prediction_type": prediction, "snr_shift_scale": shift, "rescale_betas_zero_snr": zero}
        check(name, {"timestep_spacing": spacing, **options}, num_steps, DTYPES[dtypes])
        ran += 1
    assert ran >= 10


@both
@pytest.mark.parametrize(
    "options",
    [
        {"set_alpha_to_one": False},
        {"set_alpha_to_one": False, "timestep_spacing": "leading"},
        {"set_alpha_to_one": False, "timestep_spacing": "linspace"},
        {"steps_offset": 1, "timestep_spacing": "leading"},
        {"num_train_timesteps": 500, "clip_sample_range": 0.3, "clip_sample": True},
        {"beta_start": 0.0001, "beta_end": 0.02},
    ],
    ids=str,
)
@pytest.mark.parametrize("num_steps", [8, 11])
def test_every_option_in_compat(name, options, num_steps):
    check(name, {**CONSISID, **options}, num_steps, DTYPES["float32"])


@both
def test_one_generator_for_each_clip(name):
    ours, theirs = pair(name, CONSISID)
    results = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(6)
        generators, step, x = [torch.Generator().manual_seed(i) for i in (1, 2)], stepper(scheduler), noise(*SHAPE)
        for t in scheduler.timesteps[:3]:
            x = step(torch.tanh(x), t, x, generator=generators).prev_sample
        results.append(x)
    assert torch.equal(*results)


def test_any_noisier_timestep_may_be_the_one_before():
    """The caller says at which timestep the earlier prediction was made; steps may be left out."""
    ours, theirs = pair(DPM, PLAIN)
    x, output, old = (noise(*SHAPE, seed=seed) for seed in range(3))
    found = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
        t, results = scheduler.timesteps[5], []
        for back in (scheduler.timesteps[2], scheduler.timesteps[4], 777):
            generator = torch.Generator().manual_seed(1)
            results.append(scheduler.step(output, old, t, back, x, generator=generator)[0])
        found.append(torch.stack(results))
    assert torch.equal(*found)
    assert not torch.equal(found[0][0], found[0][1])


def test_the_last_step_asks_for_no_timestep_before():
    """It is of order 1, so that what is known of the step before does not matter; nor does it at the first."""
    for scheduler in pair(DPM, CONSISID):
        scheduler.set_timesteps(5)
        x, old, t = noise(*SHAPE), noise(*SHAPE, seed=1), scheduler.timesteps[-1]
        x_next, clean = scheduler.step(x, old, t, None, x)
        assert torch.equal(x_next, clean)


# ---------------------------------------------------------------------------------------------------- by default


@both
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500, 1000])
def test_schedules_equal_those_of_the_reference_where_the_steps_divide_the_training(name, spacing, num_steps):
    config = {**CONSISID, "timestep_spacing": spacing}
    ours, ported = (SCHEDULERS[name].from_config(config, **how).solver for how in ({}, {"compat": "diffusers"}))
    assert ours.schedule(num_steps) == ported.schedule(num_steps)


@both
@pytest.mark.parametrize("num_steps", [50, 8])
def test_runs_equal_those_of_the_reference_where_the_steps_divide_the_training(name, num_steps):
    """With the noise that it uses, which is the last that it draws for a step."""
    ours, ported = (SCHEDULERS[name].from_config(CONSISID, **how).solver for how in ({}, {"compat": "diffusers"}))
    drawn: list[Tensor] = []
    generator = torch.Generator().manual_seed(5)
    expected, _ = core_run(
        ported,
        num_steps,
        DTYPES["float32"],
        lambda: drawn.append(torch.randn(SHAPE, generator=generator)) or drawn[-1],
    )
    assert len(drawn) == (0 if name == DDIM else 2 * num_steps - 2)
    used = iter([drawn[0], *drawn[2:-1:2], drawn[-1]] if drawn else [])
    found, _ = core_run(ours, num_steps, DTYPES["float32"], lambda: next(used))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert next(used, None) is None, "some noise was left over"


def other(name: str, **options: Any):
    """A sampler of the reference that computes the same by other means, and leads each step to the next."""
    if name == DDIM:  # with eta 0 it is Euler's method in sigma
        return diffusers.EulerDiscreteScheduler.from_config(PLAIN, **options)
    sde = {"algorithm_type": "sde-dpmsolver++", "lower_order_final": False, **options}
    return diffusers.DPMSolverMultistepScheduler.from_config(PLAIN, **sde)


@both
@pytest.mark.parametrize("num_steps", [30, 7, 16])
def test_every_step_leads_to_the_next(name, num_steps):
    """Where the steps do not divide the training: against other samplers of the reference, which are right there."""
    ours, theirs = SCHEDULERS[name].from_config(PLAIN), other(name)
    theirs.set_timesteps(num_steps)
    # Euler's state is x0 + sigma noise, which is larger by the root of 1 + sigma^2.
    sizes = [float(1 + s**2) ** 0.5 if name == DDIM else 1.0 for s in theirs.sigmas]
    generator, x, expected = torch.Generator().manual_seed(5), noise(*SHAPE, seed=3) * sizes[0], []
    for i, t in enumerate(theirs.timesteps):
        output = network(theirs.scale_model_input(x, t), i, torch.float32)
        x = theirs.step(output, t, x, generator=generator).prev_sample
        expected.append(x / sizes[i + 1])
    found, state = shell_run(ours, num_steps, DTYPES["float32"])
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    for one, wanted in zip(found[::2], expected, strict=True):
        assert_parity(one, wanted, TRAJECTORY)
    if name == DPM:
        assert torch.equal(state, generator.get_state()), "one draw a step"
    ported, _ = shell_run(pair(name, PLAIN)[0], num_steps, DTYPES["float32"])
    assert relative_l2(ported[-2], expected[-1]) > 1e-3, "the reference would pass too"


# --------------------------------------------------------------------- where the reference is wrong and we are not


def test_reference_leads_past_or_short_of_the_next_timestep():
    """In 10 of 30 steps the state is taken to a level that the network is not told; seven steps end in noise."""
    ours, ported = (SCHEDULERS[DPM].from_config(CONSISID, **how).solver for how in ({}, {"compat": "diffusers"}))
    for num_steps, num_wrong in ((30, 10), (50, 0)):
        assert all(a.level_next == b.level for a, b in itertools.pairwise(ours.schedule(num_steps)))
        steps = ported.schedule(num_steps)
        assert sum(a.level_next != b.level for a, b in itertools.pairwise(steps)) == num_wrong
    assert ported.schedule(7)[-1].level_next > 0.02
    assert ours.schedule(7)[-1].level_next == 0.0

    def knowing(x: Tensor, i: int, dtype: torch.dtype) -> Tensor:
        """What a network says that was told the level and knows the clean sample."""
        step = ours.schedule(7)[i]
        return (step.alpha * (x - step.alpha * clean) / step.sigma - step.sigma * clean).to(dtype)

    clean = noise(*SHAPE, seed=1)
    runs = [
        shell_run(s, 7, DTYPES["float32"], knowing)[0]
        for s in (SCHEDULERS[DPM].from_config(CONSISID), pair(DPM, CONSISID)[1])
    ]
    assert relative_l2(runs[0][-2], clean) < 1e-5
    assert relative_l2(runs[1][-2], clean) > 0.02


@both
def test_reference_draws_twice(name):
    """For every step of order 2, the first and the last being of order 1."""
    counts = {}
    for how, compat in (("ours", None), ("theirs", "diffusers")):
        drawn: list[Tensor] = []
        solver = SCHEDULERS[name].from_config(CONSISID, compat=compat).solver
        core_run(solver, 20, DTYPES["float32"], lambda d=drawn: d.append(noise(*SHAPE)) or d[-1])
        counts[how] = len(drawn)
    assert counts == ({"ours": 0, "theirs": 0} if name == DDIM else {"ours": 20, "theirs": 38})


@both
def test_clipping_is_honoured_unless_the_reference_is_asked_for(name):
    """It has the field and never reads it."""
    config = {**CONSISID, "clip_sample": True, "clip_sample_range": 0.5}
    ours = SCHEDULERS[name].from_config(config)
    found, _ = shell_run(ours, 6, DTYPES["float32"])
    expected, _ = shell_run(pair(name, config)[1], 6, DTYPES["float32"])
    unclipped, _ = shell_run(SCHEDULERS[name].from_config(CONSISID), 6, DTYPES["float32"])
    assert max(float(clean.abs().max()) for clean in found[1::2]) == 0.5
    assert min(float(clean.abs().max()) for clean in expected[1::2]) > 1.0
    assert torch.equal(found[1], unclipped[1].clamp(-0.5, 0.5))


def test_reference_forgets_return_dict_at_steps_of_order_1():
    ours, theirs = pair(DPM, CONSISID)
    for scheduler, kind in ((ours, "SchedulerOutput"), (theirs, "tuple")):
        scheduler.set_timesteps(5)
        x, t = noise(*SHAPE), scheduler.timesteps[0]
        assert type(scheduler.step(x, None, t, None, x, return_dict=True)).__name__ == kind


def test_reference_reads_no_noise_that_it_is_given():
    """Here it is used, except with compat, which says that it is not."""
    given, x = noise(*SHAPE, seed=9), noise(*SHAPE)
    ours, (ported, theirs) = SCHEDULERS[DPM].from_config(CONSISID), pair(DPM, CONSISID)
    drawn, results = noise(*SHAPE, seed=1), []
    for scheduler in (ours, ported, theirs):
        scheduler.set_timesteps(5)
    t = ours.timesteps[0]
    step: Any = ours.solver.schedule(5)[0]
    results.append(ours.step(x, None, t, None, x, variance_noise=given)[0])
    with pytest.warns(VivantWarning, match="W-SCHEDULER-ARGUMENT.*variance_noise"):
        results.append(
            ported.step(x, None, t, None, x, variance_noise=given, generator=torch.Generator().manual_seed(1))[0]
        )
    results.append(
        theirs.step(x, None, t, None, x, variance_noise=given, generator=torch.Generator().manual_seed(1))[0]
    )
    by_hand = [step.from_x * x + step.from_x0 * -x + step.std * eps for eps in (given, drawn, drawn)]
    for one, wanted in zip(results, by_hand, strict=True):
        assert_parity(one, wanted)
    assert torch.equal(results[1], results[2])


# ------------------------------------------------------------------------- the other samplers that ConsisID may have

OTHERS = [
    ("DDIMScheduler", {}),
    ("DDPMScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("LCMScheduler", {}),
    ("UniPCMultistepScheduler", {}),
]


@pytest.mark.parametrize(("name", "changes"), OTHERS, ids=str)
@pytest.mark.parametrize("num_steps", [30, 8])
def test_other_samplers_take_the_configuration(name, changes, num_steps):
    """v prediction, no terminal signal and trailing spacing survive the way through ours, from ours and from files."""
    origin = SCHEDULERS[DPM].from_config(CONSISID)
    theirs = getattr(diffusers, name).from_config(
        diffusers.CogVideoXDPMScheduler.from_config(CONSISID).config, **changes
    )
    expected, their_state = shell_run(theirs, num_steps, DTYPES["float32"])
    for config in (origin.config, CONSISID):
        ours = SCHEDULERS[name].from_config(config, **changes)
        solver: Any = ours.solver
        assert (solver.prediction_type, solver.timestep_spacing) == ("v_prediction", "trailing")
        assert solver.rescale_betas_zero_snr
        found, our_state = shell_run(ours, num_steps, DTYPES["float32"])
        assert torch.equal(ours.timesteps, theirs.timesteps)
        for one, wanted in zip(found, expected, strict=True):
            assert_parity(one, wanted)
        assert torch.equal(our_state, their_state)
        assert SCHEDULERS[DPM].from_config(ours.config).solver == origin.solver, "something was lost on the way"
