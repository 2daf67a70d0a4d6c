"""The run of PIA: draws, starts, FreeInit for every solver, the picture's channels, guidance by the picture."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from tiny_pia import FRAMES, HEIGHT, WIDTH, by_hand, picture, pipeline, run, seeded, unet, vae
from tolerances import Tolerance, assert_parity, relative_l2
from vivant import schedulers
from vivant.errors import InputError, VivantWarning
from vivant.freeinit import FreeInit, last_signal_timestep, low_pass, reinitialise, renoise
from vivant.guidance import cfg, cfg_image
from vivant.pia import generate as module
from vivant.pia.affinity import NAMES, curve
from vivant.pia.conditioning import encode_still
from vivant.pia.generate import schedules, timesteps
from vivant.pipelines.pia import PIAPipeline
from vivant.request import PIARequest
from vivant.rng import Rng
from vivant.solvers.schedule import Step
from vivant.vae.image import DiagonalGaussian

SAME = Tolerance(peak=1e-5, l2=1e-5)
# Those of CogVideoX do not take PIA's noise schedule.
SOLVERS = sorted(name for name in schedulers.SCHEDULERS if not name.startswith("CogVideoX"))
DRAWING = {"DDPMScheduler", "DPMSolver2SAncestralScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"}
BIG = {"num_frames": 8, "height": 128, "width": 192}


def scheduler(name: str, **changes: Any) -> schedulers.Scheduler:
    """PIA's noise schedule; PNDM as Stable Diffusion has it."""
    return schedulers.SCHEDULERS[name].from_config({**tiny.SCHEDULER, "skip_prk_steps": True, **changes})


@pytest.fixture
def pipe() -> PIAPipeline:
    return pipeline()


@dataclass
class Recorded:
    """What the loop was given, iteration by iteration, and what it gave back."""

    starts: list[Tensor] = field(default_factory=list)
    plans: list[Sequence[Step]] = field(default_factory=list)
    results: list[Tensor] = field(default_factory=list)


@pytest.fixture
def recorded(monkeypatch) -> Recorded:
    record, real = Recorded(), module.run

    def loop(state: Any, plan: Any, step: Any, on_step: Any) -> Any:
        record.starts.append(state.x.clone())
        record.plans.append(plan)
        final = real(state, plan, step, on_step)
        record.results.append(final.x)
        return final

    monkeypatch.setattr(module, "run", loop)
    return record


@pytest.fixture
def draws(monkeypatch) -> list[Tensor]:
    """Every draw of a run, in order."""
    seen: list[Tensor] = []
    normal = Rng.normal

    def drawn(self: Rng, shape: Any, device: Any = "cpu") -> Tensor:
        seen.append(normal(self, shape, device))
        return seen[-1]

    monkeypatch.setattr(Rng, "normal", drawn)
    return seen


@pytest.fixture
def inputs(monkeypatch, pipe) -> list[Tensor]:
    """What the network is shown; it answers at once, with latents that shrink. For runs without guidance."""
    seen: list[Tensor] = []
    monkeypatch.setattr(pipe.unet, "predict", lambda x, t, text: seen.append(x) or 0.9 * x[:, :4])
    return seen


def shown(pipe: PIAPipeline, **changes: Any) -> Tensor:
    """A run without guidance."""
    return run(pipe, guidance_scale=1.0, negative_prompt=None, **changes)


# --------------------------------------------------------------------------------------------------------- draws

NOISE, POSTERIOR = (1, 4, FRAMES, HEIGHT // 8, WIDTH // 8), (1, 4, HEIGHT // 8, WIDTH // 8)


@pytest.mark.parametrize(
    ("changes", "name", "shapes"),
    [
        ({}, "DDIMScheduler", [NOISE, POSTERIOR]),
        ({"strength": 0.5}, "DDIMScheduler", [NOISE, POSTERIOR, NOISE]),
        ({"latents": torch.zeros(NOISE)}, "DDIMScheduler", [POSTERIOR]),
        ({"latents": torch.zeros(NOISE), "strength": 0.5}, "DDIMScheduler", [POSTERIOR]),
        ({"eta": 0.5}, "DDIMScheduler", [NOISE, POSTERIOR, NOISE, NOISE]),
        ({}, "EulerAncestralDiscreteScheduler", [NOISE, POSTERIOR, NOISE, NOISE]),
        ({"num_videos_per_prompt": 2}, "DDIMScheduler", [(2, *NOISE[1:]), POSTERIOR]),
    ],
)
def test_the_draws_and_their_order(pipe, draws, changes, name, shapes):
    pipe.scheduler = scheduler(name)
    run(pipe, **changes)
    assert [tuple(draw.shape) for draw in draws] == shapes


def test_freeinit_draws_once_for_every_further_iteration(pipe, draws):
    pipe.enable_free_init(num_iters=3)
    run(pipe)
    assert [tuple(draw.shape) for draw in draws] == [NOISE, POSTERIOR, NOISE, NOISE]


def test_clips_of_one_prompt_share_the_picture_unless_each_has_its_generator(pipe, inputs):
    shown(pipe, num_videos_per_prompt=2)
    assert torch.equal(inputs[0][0, 5:], inputs[0][1, 5:])
    shown(pipe, num_videos_per_prompt=2, generator=[seeded(0), seeded(1)])
    assert not torch.equal(inputs[-1][0, 5:], inputs[-1][1, 5:])
    shown(pipe, image=picture(num=2), num_videos_per_prompt=2)
    first, second, third, fourth = inputs[-1][:, 5:]
    assert torch.equal(first, second)
    assert torch.equal(third, fourth)
    assert not torch.equal(second, third)


# ---------------------------------------------------------------------------------------------------- strength


@pytest.mark.parametrize("name", SOLVERS)
def test_strength_starts_every_solver_from_the_noised_picture(pipe, inputs, recorded, draws, name):
    pipe.scheduler = scheduler(name, timestep_spacing="linspace" if name == "LCMScheduler" else "leading")
    shown(pipe, strength=0.5, num_inference_steps=6)
    (start,), (plan,) = recorded.starts, recorded.plans
    still = inputs[0][:, 5:]
    assert torch.equal(start, plan[0].alpha * still + plan[0].sigma * draws[2])
    assert plan[0].index == 3 * pipe.scheduler.order
    assert len(plan) == len(inputs) == pipe.num_timesteps
    assert plan[0].t < 600


@pytest.mark.parametrize(("steps", "strength", "left"), [(10, 1.0, 10), (10, 0.99, 9), (10, 0.1, 1), (3, 0.5, 1)])
def test_strength_keeps_the_last_steps(steps, strength, left):
    request = PIARequest(num_inference_steps=steps, strength=strength)
    solver = scheduler("DDIMScheduler").solver
    (plan,) = schedules(solver, request)
    assert plan == solver.schedule(steps)[steps - left :]
    assert timesteps([plan]).tolist() == [step.t for step in plan]


def test_given_latents_change_their_type_and_place_in_one_step(pipe):
    """Where a device has no float64, moving before converting fails."""
    moves: list[tuple[Any, ...]] = []

    class Latents(Tensor):
        """Remembers the first journey."""

        def to(self, *args: Any, **kwargs: Any) -> Tensor:
            moves.append((*args, *kwargs.values()))
            return self.as_subclass(Tensor).to(*args, **kwargs)

    noise = torch.randn(1, 4, FRAMES, HEIGHT // 8, WIDTH // 8, generator=seeded(9))
    given = noise.double().as_subclass(Latents)
    assert torch.equal(run(pipe, latents=given), run(pipe, latents=noise))
    assert moves == [("cpu", torch.float32)]


def test_strength_without_a_step_is_refused():
    solver = scheduler("DDIMScheduler").solver
    with pytest.raises(InputError, match="E-STRENGTH-STEPS"):
        schedules(solver, PIARequest(num_inference_steps=9, strength=0.1))
    coarse = FreeInit(num_iters=3, use_fast_sampling=True)
    plans = schedules(solver, PIARequest(num_inference_steps=4, strength=0.5, free_init=coarse))
    assert [len(plan) for plan in plans] == [1, 1, 2]


# ------------------------------------------------------------------------------------------ FreeInit, every solver


def unit_start(plan: Sequence[Step], spread: float) -> float:
    """The standard deviation of the state that enters a plan, around clean latents of the given spread."""
    return (plan[0].alpha ** 2 * spread**2 + plan[0].sigma ** 2) ** 0.5


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", SOLVERS)
def test_freeinit_starts_every_iteration_at_the_noise_of_its_solver(pipe, inputs, recorded, name, spacing):
    """Where the port has 47 instead of 25 (Euler), 1.9 instead of 1 (DPM++, UniPC), or an IndexError."""
    pipe.scheduler = scheduler(name, timestep_spacing=spacing)
    pipe.enable_free_init(num_iters=3)
    result = shown(pipe, num_inference_steps=3, image=torch.rand(3, 128, 192), **BIG)
    assert torch.isfinite(result).all()
    assert len(recorded.starts) == 3
    for start, plan in zip(recorded.starts, recorded.plans, strict=True):
        assert plan == recorded.plans[0]
        assert float(start.std()) == pytest.approx(unit_start(plan, 1.0), rel=0.05)
        assert abs(float(start.mean())) < 0.05 * float(start.std())
    assert relative_l2(recorded.starts[1], recorded.starts[0]) > 0.1
    assert relative_l2(recorded.starts[2], recorded.starts[1]) > 0.1


@pytest.mark.parametrize("name", SOLVERS)
def test_freeinit_with_strength_keeps_the_start(pipe, inputs, recorded, draws, name):
    """Every iteration is shortened, and starts from the result before it at the level of its first step."""
    pipe.scheduler = scheduler(name, timestep_spacing="linspace" if name == "LCMScheduler" else "leading")
    pipe.enable_free_init(num_iters=3)
    result = shown(pipe, strength=0.5, num_inference_steps=6, image=torch.rand(3, 128, 192), **BIG)
    assert torch.isfinite(result).all()
    mask = low_pass(8, 16, 24, FreeInit())
    noise, fresh = draws[2], iter(d for d in draws[3:] if d.shape == draws[2].shape)
    clean = inputs[0][:, 5:]
    for k, (start, plan, result) in enumerate(zip(recorded.starts, recorded.plans, recorded.results, strict=True)):
        assert plan[0].index > 0
        assert float(start.std()) == pytest.approx(unit_start(plan, float(clean.std())), rel=0.05)
        mixed = (start - plan[0].alpha * clean) / plan[0].sigma
        if k == 0:
            torch.testing.assert_close(mixed, noise, atol=1e-4, rtol=0)
        elif name not in DRAWING:  # no draws in between
            torch.testing.assert_close(mixed, reinitialise(noise, next(fresh), mask), atol=1e-4, rtol=0)
        clean = result


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", SOLVERS)
def test_freeinit_on_the_network_is_finite_and_repeats_itself(pipe, name, fast):
    pipe.scheduler = scheduler(name, timestep_spacing="linspace")
    pipe.enable_free_init(num_iters=2, use_fast_sampling=fast)
    first, again = (run(pipe, num_inference_steps=2) for _ in range(2))
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert not torch.equal(first, run(pipe, num_inference_steps=2, generator=seeded(4)))


def test_freeinit_of_one_iteration_is_the_plain_run(pipe):
    for changes in ({}, {"strength": 0.5}):
        pipe.disable_free_init()
        plain = run(pipe, **changes)
        pipe.enable_free_init(num_iters=1)
        assert torch.equal(run(pipe, **changes), plain)


def test_freeinit_of_several_clips_is_that_of_each(pipe):
    pipe.enable_free_init(num_iters=2)
    given = {"prompt": ["a cat", "running"], "negative_prompt": "dark"}
    together = run(pipe, generator=[seeded(0), seeded(1)], **given)
    for b in range(2):
        alone = run(pipe, prompt=given["prompt"][b], negative_prompt="dark", generator=seeded(b))
        assert_parity(together[b][None], alone, SAME)


def test_freeinit_takes_a_share_of_the_steps_when_fast(pipe, recorded):
    pipe.enable_free_init(num_iters=3, use_fast_sampling=True)
    run(pipe, num_inference_steps=5)
    assert [len(plan) for plan in recorded.plans] == [1, 3, 5]


@pytest.mark.parametrize("settings", [FreeInit(3, False, "gaussian"), FreeInit(2, False, "butterworth", 2, 0.5, 0.3)])
def test_freeinit_noises_the_result_with_its_own_noise(pipe, recorded, draws, settings):
    """arXiv 2312.07537, equations 3 to 5, with the settings that were given."""
    pipe.enable_free_init(*(getattr(settings, name) for name in settings.__dataclass_fields__))
    run(pipe)
    solver = pipe.scheduler.solver
    mask = low_pass(*draws[0].shape[2:], settings)
    for k in range(1, settings.num_iters):
        noised = renoise(recorded.results[k - 1], draws[0], float(solver.signal[-1]))
        torch.testing.assert_close(recorded.starts[k], reinitialise(noised, draws[1 + k], mask))


def test_freeinit_does_something_on_a_schedule_without_terminal_signal(pipe, recorded, draws):
    """At the last timestep the result is lost; the last one with signal is taken."""
    pipe.scheduler = scheduler(
        "DDIMScheduler", rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    pipe.enable_free_init(num_iters=2)
    with pytest.warns(VivantWarning, match="W-SOLVER-BETAS"):
        result = run(pipe)
    assert torch.isfinite(result).all()
    signal = pipe.scheduler.solver.signal
    assert signal[-1] == 0
    abar = float(signal[last_signal_timestep(signal)])
    mask = low_pass(*draws[0].shape[2:], FreeInit())
    without = reinitialise(draws[0], draws[2], mask)
    noised = renoise(recorded.results[0], draws[0], abar)
    torch.testing.assert_close(recorded.starts[1], reinitialise(noised, draws[2], mask))
    # The result counts with sqrt(0.001) = 0.03; at the step just before the last it would count with 0.0003.
    assert relative_l2(recorded.starts[1], without) > 1e-3


# ----------------------------------------------------------------------------------------- the picture's channels


@pytest.mark.parametrize("num_frames", range(2, 33))
def test_loops_close_in_the_mask_that_the_network_sees(pipe, inputs, num_frames):
    embeds = torch.zeros(1, 77, tiny.TEXT_DIM)
    given = {"prompt": None, "prompt_embeds": embeds}
    for motion in (name for name in NAMES if name.startswith("loop:")):
        shown(pipe, num_frames=num_frames, num_inference_steps=1, motion=motion, **given)
        mask = inputs[-1][0, 4]
        assert mask.shape == (num_frames, HEIGHT // 8, WIDTH // 8)
        assert torch.equal(mask[0], torch.ones_like(mask[0]))
        assert torch.equal(mask[0], mask[-1])
        if num_frames > 2:
            assert mask[1:-1].max() < 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"motion_scale": 2}, (1.0, 0.8, 0.7, 0.7, 0.7)),
        ({"motion": "style:large"}, (0.5, 0.2, 0.2, 0.2, 0.2)),
        ({"motion": "animate:large", "cond_frame": 3}, (0.7, 0.7, 0.8, 1.0, 0.8)),
        ({"motion": [0, 0.25, 1, 0.5, 0.125]}, (0, 0.25, 1, 0.5, 0.125)),
        ({"motion": "loop:large", "cond_frame": 2}, curve("loop:large", 5, 2)),
    ],
)
def test_the_network_sees_mask_and_picture_on_every_frame(pipe, inputs, changes, expected):
    shown(pipe, num_frames=5, num_videos_per_prompt=2, **changes)
    for x in inputs:
        assert x.shape == (2, 9, 5, HEIGHT // 8, WIDTH // 8)
        assert torch.equal(x[:, 4], torch.tensor(expected).reshape(1, 5, 1, 1).expand_as(x[:, 4]))
        assert torch.equal(x[:, 5:], x[:, 5:, :1].expand_as(x[:, 5:]))
    assert relative_l2(inputs[0][:, 5:], torch.zeros_like(inputs[0][:, 5:]) + 1e-9) > 1


def test_the_picture_is_its_scaled_posterior(pipe, inputs, draws):
    shown(pipe)
    posterior = pipe.vae.encode(picture() * 2 - 1).latent_dist
    still = (posterior.mean + posterior.std * draws[1]) * 0.18215
    assert_parity(inputs[0][:, 5:, 0], still, SAME)


@torch.no_grad()
def test_the_picture_is_sampled_in_float32_by_networks_in_half_precision():
    """The reference samples what it then rounds, with the type of the weights."""
    autoencoder, pixels = deepcopy(vae()).bfloat16(), 2 * picture() - 1
    still = encode_still(autoencoder, pixels, 1, Rng.of(torch.Generator().manual_seed(5), 1))
    posterior = autoencoder.encode(pixels.bfloat16()).latent_dist
    wide = DiagonalGaussian(posterior.parameters.float()).sample(torch.Generator().manual_seed(5))
    narrow = posterior.sample(torch.Generator().manual_seed(5))
    assert still.dtype == torch.float32
    assert torch.equal(still, wide * autoencoder.config.scaling_factor)
    assert narrow.dtype == torch.bfloat16
    assert relative_l2(narrow, wide) > 1e-3


# -------------------------------------------------------------------------------------------------------- guidance


@pytest.mark.parametrize("numerics", ["diffusers", "original"])
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0, 3.5])
def test_guidance_is_its_formula(numerics, scale):
    """At 1 and below the conditional prediction alone."""
    pipe = pipeline(unet=unet(numerics))
    changes = {} if scale > 1 else {"negative_prompt": None}
    guided = run(pipe, guidance_scale=scale, **changes)
    manual = by_hand(pipe, lambda i, none, uncond, text: cfg(uncond, text, scale) if scale > 1 else text, 2)
    assert_parity(guided, manual, SAME)


@pytest.mark.parametrize(("image", "text"), [(2.0, 4.0), (0.0, 4.0), (3.0, 1.0), (1.5, 0.5), (0.0, 0.0)])
def test_image_guidance_is_its_formula(pipe, image, text):
    """Below 1 the scale of the text is 1, as it is without guidance by the picture."""
    guided = run(pipe, guidance_scale=text, image_guidance_scale=image)
    scale = max(text, 1)
    manual = by_hand(pipe, lambda i, none, uncond, cond: none + image * (uncond - none) + scale * (cond - uncond), 2)
    assert_parity(guided, manual, SAME)


def test_image_guidance_of_one_is_plain_guidance(pipe):
    assert_parity(run(pipe, image_guidance_scale=1.0), run(pipe), SAME)
    alone = run(pipe, image_guidance_scale=1.0, guidance_scale=1.0)
    assert_parity(alone, run(pipe, guidance_scale=1.0, negative_prompt=None), SAME)
    zero, one, two = (torch.full((1, 2), float(i)) for i in range(3))
    assert torch.equal(cfg_image(zero, one, two, 1.0, 4.0), cfg(one, two, 4.0))


def test_image_guidance_of_a_batch(pipe):
    given = {"image_guidance_scale": 2.0, "negative_prompt": ["dark", "walking"]}
    together = run(pipe, image=picture(num=2), generator=[seeded(0), seeded(1)], **given)
    for b in range(2):
        own = {**given, "negative_prompt": given["negative_prompt"][b]}
        assert_parity(together[b][None], run(pipe, image=picture(num=2)[b], generator=seeded(b), **own), SAME)


def test_a_hook_may_change_the_state(pipe):
    """`on_step` of `denoise` is the core's own hook: what it returns is what the next step sees."""
    request = PIARequest(prompt="a cat", num_frames=FRAMES, height=HEIGHT, width=WIDTH, num_inference_steps=2)
    seen: list[tuple[int, Any]] = []

    def hook(state: Any) -> Any:
        seen.append((state.i, None if state.x0 is None else state.x0.shape))
        return replace(state, x=state.x * 0.5)

    plain = pipe.denoise(request, picture(), seeded())
    changed = pipe.denoise(request, picture(), seeded(), hook)
    assert seen == [(0, plain.shape), (1, plain.shape)]
    assert relative_l2(changed, plain) > 0.1
