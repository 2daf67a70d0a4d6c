"""What every solver must do whatever its options: a network that knows the noise leads to the clean sample."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tiny import noise
from vivant.schedulers import SCHEDULERS
from vivant.solvers.cogvideox import CogVideoXDDIM, CogVideoXDPM
from vivant.solvers.ddim import DDIM
from vivant.solvers.ddpm import DDPM
from vivant.solvers.dpm import DPMSolver
from vivant.solvers.dpm_ancestral import DPM2SAncestral
from vivant.solvers.dpm_singlestep import DPMSinglestep
from vivant.solvers.euler import Euler, EulerAncestral
from vivant.solvers.heun import Heun
from vivant.solvers.lcm import LCM
from vivant.solvers.lms import LMS
from vivant.solvers.pndm import PNDM
from vivant.solvers.schedule import BETAS, PREDICTIONS, SPACINGS, threshold, zero_terminal_snr
from vivant.solvers.sigmas import at_timesteps, exponential, karras, sigma_table, to_timesteps
from vivant.solvers.tcd import TCD
from vivant.solvers.unipc import UniPC

SHAPE = (2, 4, 3, 5, 6)
X0, EPS = noise(*SHAPE, seed=1), noise(*SHAPE, seed=2)
RANGE = {"beta_start": 0.00085, "beta_end": 0.012}


def no_noise():
    raise AssertionError("a deterministic solver drew noise")


def distance(x: torch.Tensor, target: torch.Tensor) -> float:
    return float((x - target).norm() / target.norm())


# Deterministic solvers whose steps connect: each leads to the level of the next. DDIM and PNDM do so with leading
# spacing (see their `parity` marks); the others with all.
EVERYWHERE = {"timestep_spacing": st.sampled_from(SPACINGS), "beta_schedule": st.sampled_from(BETAS[:2])}
LEADING = {"timestep_spacing": st.just("leading"), "beta_schedule": st.sampled_from(BETAS)}
CURVES = {"curve": st.sampled_from([{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}])}
FINAL = {"final_sigmas_type": st.sampled_from(["sigma_min", "zero"])}
ORDERS = {"lower_order_final": st.booleans(), "solver_order": st.integers(1, 3)}
SPACED = {"timestep_spacing": st.sampled_from(SPACINGS), "snr_shift_scale": st.floats(0.3, 4.0)}
DETERMINISTIC = {
    CogVideoXDDIM: {**SPACED, "clip_sample": st.just(False), "set_alpha_to_one": st.booleans()},
    DDIM: {**LEADING, "clip_sample": st.just(False), "steps_offset": st.integers(0, 1)},
    Euler: {**EVERYWHERE, **CURVES, **FINAL},
    Heun: {**EVERYWHERE, **CURVES},
    LMS: {**EVERYWHERE, **CURVES},
    PNDM: {**LEADING, "skip_prk_steps": st.booleans(), "set_alpha_to_one": st.just(True)},
    DPMSolver: {**EVERYWHERE, **CURVES, **FINAL, **ORDERS, "solver_type": st.sampled_from(["midpoint", "heun"])},
    DPMSinglestep: {
        **{key: choice for key, choice in EVERYWHERE.items() if key != "timestep_spacing"},
        **{**CURVES, **FINAL, **ORDERS, "solver_type": st.sampled_from(["midpoint", "heun"])},
    },
    UniPC: {**EVERYWHERE, **CURVES, **FINAL, **ORDERS, "solver_type": st.sampled_from(["bh1", "bh2"])},
}


@pytest.mark.parametrize("kind", DETERMINISTIC, ids=lambda kind: kind.__name__)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_true_noise_leads_along_a_straight_line_to_the_clean_sample(kind, data):
    """From any start, in any slice: every state on the way is the clean sample with that noise.

    The last is clean, or has the smallest noise of the training where the options say so.
    """
    options = data.draw(st.fixed_dictionaries(DETERMINISTIC[kind]))
    solver: Any = kind(**RANGE, **options.pop("curve", {}), **options)
    # PNDM's Runge-Kutta start halves the stride, which has to be even.
    num_steps = data.draw(st.sampled_from([4, 5, 10, 20, 50]) if kind is PNDM else st.integers(2, 30))
    schedule = solver.schedule(num_steps)
    start = data.draw(st.integers(0, len(schedule) - 1))
    x, carry = solver.add_noise(X0, EPS, schedule[start]), None
    for step in schedule[start:]:
        state = step.alpha * X0 + step.sigma * EPS
        assert distance(x, state) < 2e-5, f"off the line at step {step.index} of {len(schedule)}"
        x, x0, carry = solver.step(EPS, step, x, carry, no_noise)
        assert distance(x0, X0) < 2e-3  # (x - sigma eps) / alpha magnifies rounding where there is little signal
    size = 1.0 if schedule[-1].alpha == 1.0 else (1 + schedule[-1].level_next ** 2) ** 0.5  # of the state's parts
    assert distance(x, (X0 + schedule[-1].level_next * EPS) / size) < 2e-5


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    "solver",
    [
        CogVideoXDPM(clip_sample=False),
        CogVideoXDPM(clip_sample=False, timestep_spacing="trailing", snr_shift_scale=1.0),
        CogVideoXDPM(clip_sample=False, timestep_spacing="linspace", snr_shift_scale=0.5),
        DDIM(clip_sample=False, **RANGE),
        DDPM(clip_sample=False, **RANGE),
        DDPM(clip_sample=False, timestep_spacing="trailing", **RANGE),
        EulerAncestral(**RANGE),
        EulerAncestral(timestep_spacing="leading", **RANGE),
        DPM2SAncestral(**RANGE),
        DPM2SAncestral(timestep_spacing="leading", use_karras_sigmas=True, **RANGE),
        LCM(timestep_scaling=1000.0),
        TCD(),
        DPMSinglestep(algorithm_type="sde-dpmsolver++", **RANGE),
        DPMSinglestep(algorithm_type="sde-dpmsolver++", solver_order=3, use_karras_sigmas=True, **RANGE),
        DPMSolver(algorithm_type="sde-dpmsolver++", **RANGE),
        DPMSolver(algorithm_type="sde-dpmsolver++", solver_order=3, use_karras_sigmas=True, **RANGE),
    ],
    ids=lambda solver: f"{type(solver).__name__}-{getattr(solver, 'timestep_spacing', 'fixed')}",
)
def test_a_network_that_knows_the_answer_leads_to_it_through_fresh_noise(solver, prediction):
    """Stochastic solvers: whatever noise is in the state, the network tells it apart from the sample."""
    from dataclasses import replace

    solver = replace(solver, prediction_type=prediction)
    schedule = solver.schedule(8)
    generator, draws = torch.Generator().manual_seed(0), []

    def draw():
        draws.append(torch.randn(SHAPE, generator=generator))
        return draws[-1]

    x, carry = EPS * solver.init_sigma(schedule), None
    for step in schedule:
        eps = (x - step.alpha * X0) / step.sigma
        # Velocity belongs to the variance-preserving state, into which the others are scaled by their level.
        alpha, sigma = 1 / (1 + step.level**2) ** 0.5, step.level / (1 + step.level**2) ** 0.5
        output = {"epsilon": eps, "sample": X0, "v_prediction": alpha * eps - sigma * X0}[prediction]
        x, x0, carry = solver.step(output, step, x, carry, draw, eta=1.0 if solver.uses_eta else 0.0)
        assert distance(x0, X0) < 1e-3
    assert draws, "a stochastic solver drew nothing"
    # TCD ends at the least noisy timestep of the training, as it was distilled; the others on the clean sample.
    end = schedule[-1].level_next
    assert (end > 0) == isinstance(solver, TCD)
    assert distance(x, X0) < 1e-3 + 1.1 * end


@pytest.mark.parametrize("kind", [CogVideoXDDIM, CogVideoXDPM], ids=lambda kind: kind.__name__)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    num_steps=st.integers(1, 60),
    spacing=st.sampled_from(SPACINGS),
    shift=st.floats(0.3, 4.0),
    zero_snr=st.booleans(),
    ends_clean=st.booleans(),
)
def test_every_step_of_cogvideox_reaches_the_level_of_the_next(kind, num_steps, spacing, shift, zero_snr, ends_clean):
    """Signal and noise that a step leaves are those that the next one expects, from pure noise to the clean sample."""
    fields = {"timestep_spacing": spacing, "snr_shift_scale": shift, "rescale_betas_zero_snr": zero_snr}
    solver = kind(prediction_type="v_prediction", set_alpha_to_one=ends_clean, clip_sample=False, **fields)
    schedule = solver.schedule(num_steps)
    end = 1.0 if ends_clean else float(solver.signal[0])
    after = [(step.alpha, step.sigma) for step in schedule[1:]] + [(end**0.5, (1 - end) ** 0.5)]
    assert (schedule[0].alpha == 0.0) == (zero_snr and schedule[0].t == 999)
    generator, x, carry = torch.Generator().manual_seed(0), solver.add_noise(X0, EPS, schedule[0]), None
    for step, (alpha, sigma) in zip(schedule, after, strict=True):
        spread = getattr(step, "std", 0.0)
        assert step.from_x * step.alpha + step.from_x0 == pytest.approx(alpha, rel=1e-9)
        assert ((step.from_x * step.sigma) ** 2 + spread**2) ** 0.5 == pytest.approx(sigma, rel=1e-9, abs=1e-12)
        v = step.alpha * (x - step.alpha * X0) / step.sigma - step.sigma * X0
        x, x0, carry = solver.step(v, step, x, carry, lambda: torch.randn(SHAPE, generator=generator))
        assert distance(x0, X0) < 1e-4
        noisy = (x - alpha * X0).std()
        assert abs(noisy - sigma) < 0.1 * sigma + 1e-5
    assert distance(x, end**0.5 * X0) < 1e-4 + 2 * (1 - end) ** 0.5


@pytest.mark.parametrize("kind", [k.solver_class for k in SCHEDULERS.values()], ids=lambda kind: kind.__name__)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    num_steps=st.integers(4, 40),
    spacing=st.sampled_from(SPACINGS),
    offset=st.integers(0, 1),
    betas=st.sampled_from(BETAS),
)
@example(num_steps=4, spacing="linspace", offset=0, betas="squaredcos_cap_v2")
def test_schedules_fall_within_the_training(kind, num_steps, spacing, offset, betas):
    """Timesteps fall strictly (Heun and PNDM repeat some), levels too, indices count, and scalars are numbers."""
    betas = "scaled_linear" if kind in (CogVideoXDDIM, CogVideoXDPM) else betas
    options = {"timestep_spacing": spacing, "steps_offset": offset, "beta_schedule": betas, **RANGE}
    options = {key: value for key, value in options.items() if key in kind.__dataclass_fields__}
    solver = kind(**options)
    schedule = solver.schedule(num_steps)
    told, levels = [step.t for step in schedule], [step.level for step in schedule]
    assert [step.index for step in schedule] == list(range(len(schedule)))
    assert all(0 <= t <= 999 for t in told)
    # The middle of a step to a level below the next one may lie below that too, from where noise leads back up.
    assert kind is DPM2SAncestral or all(step.level_next <= step.level for step in schedule)
    if kind not in (PNDM, DPM2SAncestral):  # Runge-Kutta goes back and forth
        pairs = list(itertools.pairwise(zip(told, levels, strict=True)))
        assert all(a > b or (a == b and kind is Heun) for a, b in pairs)
    assert all(abs(step.norm**2 - step.alpha**2 - step.sigma**2) < 1e-3 * step.norm**2 for step in schedule)
    assert "nan" not in repr(schedule)
    assert hash(solver) == hash(kind(**options))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(low=st.floats(0.03, 1.0), high=st.floats(2.0, 20.0), count=st.integers(2, 60))
@pytest.mark.parametrize("curve", [karras, exponential], ids=lambda curve: curve.__name__)
def test_curves_fall_between_their_ends(curve, low, high, count):
    sigmas = curve(high, low, count)
    assert sigmas[0] == pytest.approx(high)
    assert sigmas[-1] == pytest.approx(low)
    assert (sigmas[1:] < sigmas[:-1]).all()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(t=st.lists(st.integers(0, 999), min_size=1, max_size=9), betas=st.sampled_from(BETAS[:2]))
def test_sigmas_and_timesteps_are_each_others_inverse(t, betas):
    table = sigma_table(Euler(beta_schedule=betas, **RANGE).signal)
    wanted = torch.tensor(t, dtype=torch.float64).numpy()
    assert abs(to_timesteps(table, at_timesteps(table, wanted)) - wanted).max() < 0.01


@settings(max_examples=30, deadline=None, derandomize=True)
@given(start=st.floats(1e-5, 1e-2), end=st.floats(0.011, 0.1), num=st.integers(20, 1000))
def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_level(start, end, num):
    plain = DDIM(beta_start=start, beta_end=end, num_train_timesteps=num)
    rescaled = DDIM(beta_start=start, beta_end=end, num_train_timesteps=num, rescale_betas_zero_snr=True)
    assert rescaled.signal[-1] == 0.0
    assert rescaled.signal[0].item() == pytest.approx(plain.signal[0].item(), rel=1e-5)
    assert (rescaled.signal[1:] <= rescaled.signal[:-1]).all()
    assert (zero_terminal_snr(torch.linspace(start, end, num)) <= 1).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(scale=st.floats(0.1, 20.0), ratio=st.floats(0.5, 1.0), limit=st.floats(1.0, 5.0))
def test_thresholding_leaves_samples_within_one(scale, ratio, limit):
    x = threshold(X0 * scale, ratio, limit)
    assert x.abs().max() <= 1.0
    assert torch.equal(threshold(X0[1:] * scale, ratio, limit), x[1:]), "one sample changed another"
