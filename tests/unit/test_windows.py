"""Clips in windows: the cut, its noise, the blend of predictions, and what a run with them keeps of one without."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.attention import FreeNoiseTransformerBlock
from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin
from torch import Tensor

import tiny
from tiny_pia import HEIGHT, WIDTH, picture, pipeline, run, seeded, unet
from tolerances import Tolerance, assert_parity, relative_l2
from vivant import schedulers
from vivant.errors import InputError, VivantWarning
from vivant.guidance import cfg
from vivant.pia import generate as module
from vivant.pia.affinity import curve
from vivant.pia.windows import Windows, repeated_noise, windows
from vivant.pipelines.pia import PIAPipeline
from vivant.rng import Rng

SAME = Tolerance(peak=1e-5, l2=1e-5)
LONG = 7
CUT = Windows(4, 2)
SOLVERS = sorted(name for name in schedulers.SCHEDULERS if not name.startswith("CogVideoX"))


@pytest.fixture
def pipe() -> PIAPipeline:
    return pipeline()


@pytest.fixture
def draws(monkeypatch) -> list[Tensor]:
    """Every draw of a run, in order."""
    seen: list[Tensor] = []
    normal = Rng.normal
    monkeypatch.setattr(Rng, "normal", lambda *args: seen.append(normal(*args)) or seen[-1])
    return seen


def evaluations(monkeypatch: Any, pipe: PIAPipeline) -> list[tuple[int, ...]]:
    """The shape of the input of every evaluation."""
    seen: list[tuple[int, ...]] = []
    predict = pipe.unet.predict
    monkeypatch.setattr(pipe.unet, "predict", lambda x, t, text: seen.append(tuple(x.shape)) or predict(x, t, text))
    return seen


# -------------------------------------------------------------------------------------------------------- the cut


@pytest.mark.parametrize(
    ("num_frames", "cut", "starts"),
    [
        (64, Windows(), [0, 8, 16, 24, 32, 40, 48]),
        (20, Windows(8, 3), [0, 3, 6, 9, 12]),
        (21, Windows(8, 3), [0, 3, 6, 9, 12, 13]),
        (16, Windows(8, 8), [0, 8]),
        (9, Windows(8), [0, 1]),
        (8, Windows(8), [0]),
        (3, Windows(8), [0]),
        (12, Windows(5), [0, 3, 6, 7]),
        (12, Windows(8, 4, closed=True), [0, 4, 8]),
        (64, None, [0]),
    ],
)
def test_where_windows_begin(num_frames: int, cut: Windows | None, starts: list[int]):
    assert [window.frames[0] for window in windows(num_frames, cut)] == starts


def test_closed_windows_go_over_the_end():
    assert windows(6, Windows(4, 2, closed=True))[-1].frames == (4, 5, 0, 1)


@pytest.mark.parametrize("length", [4, 5])
@pytest.mark.parametrize(("blend", "scheme"), [("pyramid", "pyramid"), ("uniform", "flat")])
@pytest.mark.parametrize("num_frames", [5, 9, 14])
def test_the_cut_is_that_of_the_port(length: int, blend: Any, scheme: str, num_frames: int):
    """There it is made inside the motion modules; here around the network."""
    block: Any = SimpleNamespace(context_length=length, context_stride=2)
    spans = FreeNoiseTransformerBlock._get_frame_indices(block, num_frames)
    if spans[-1][1] != num_frames:
        spans.append((num_frames - length, num_frames))
    shares = FreeNoiseTransformerBlock._get_frame_weights(block, length, scheme)
    found = windows(num_frames, Windows(length, 2, blend))
    assert [(window.frames[0], window.frames[-1] + 1) for window in found] == spans
    totals = [sum(shares[i - a] for a, b in spans if a <= i < b) for i in range(num_frames)]
    for window in found:
        assert window.weights == pytest.approx([shares[k] / totals[i] for k, i in enumerate(window.frames)])


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"length": 1}, "E-WINDOWS-LENGTH"),
        ({"length": 8.0}, "E-WINDOWS-LENGTH"),
        ({"stride": 0}, "E-WINDOWS-STRIDE"),
        ({"length": 8, "stride": 9}, "E-WINDOWS-STRIDE"),
        ({"stride": True}, "E-WINDOWS-STRIDE"),
        ({"weights": "gauss"}, "E-WINDOWS-WEIGHTS"),
        ({"noise": "same"}, "E-WINDOWS-NOISE"),
        ({"closed": 1}, "E-WINDOWS-CLOSED"),
    ],
)
@pytest.mark.unchecked
def test_settings_out_of_range_are_refused(values: dict[str, Any], code: str):
    with pytest.raises(InputError) as refusal:
        Windows(**values)
    assert refusal.value.code == code


# --------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize(("num_frames", "length", "stride"), [(20, 8, 4), (21, 8, 3), (18, 5, 5), (6, 5, 2)])
def test_repeated_noise_is_that_of_the_port(num_frames: int, length: int, stride: int):
    """With its own shuffles; it draws the noise of all frames, and so do we."""
    port: Any = SimpleNamespace(
        _free_noise_context_length=length,
        _free_noise_context_stride=stride,
        _free_noise_noise_type="shuffle_context",
        vae_scale_factor=8,
    )
    place: Any = {"dtype": torch.float32, "device": torch.device("cpu")}
    shape = 1, 4, num_frames, 24, 40
    theirs = AnimateDiffFreeNoiseMixin._prepare_latents_free_noise(port, *shape, **place, generator=seeded(5))
    generator, keys = seeded(5), torch.zeros(1, num_frames)
    noise = torch.randn(1, 4, num_frames, 3, 5, generator=generator)
    for start in range(length, num_frames, stride):
        order = torch.randperm(stride, generator=generator)
        keys[0, start - length + order] = torch.arange(stride).float()
    assert torch.equal(repeated_noise(noise, keys, Windows(length, stride)), theirs)


NOISE, POSTERIOR, SHUFFLE = (1, 4, LONG, HEIGHT // 8, WIDTH // 8), (1, 4, HEIGHT // 8, WIDTH // 8), (1, LONG)
REPEATED = Windows(4, 2, noise="freenoise")


@pytest.mark.parametrize(
    ("changes", "shapes"),
    [
        ({"windows": CUT}, [NOISE, POSTERIOR]),
        ({"windows": REPEATED}, [NOISE, POSTERIOR, SHUFFLE]),
        ({"windows": REPEATED, "strength": 0.5}, [NOISE, POSTERIOR, NOISE, SHUFFLE]),
        ({"windows": Windows(LONG, noise="freenoise")}, [NOISE, POSTERIOR]),
        ({"windows": REPEATED, "latents": torch.zeros(NOISE)}, [POSTERIOR]),
    ],
)
def test_the_draws_and_their_order(pipe, draws, changes, shapes):
    run(pipe, num_frames=LONG, **changes)
    assert [tuple(draw.shape) for draw in draws] == shapes


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_run_starts_from_the_repeated_noise(pipe, draws, monkeypatch, strength):
    starts: list[Tensor] = []
    real = module.run
    monkeypatch.setattr(module, "run", lambda state, *rest: starts.append(state.x) or real(state, *rest))
    pipe.enable_free_init(num_iters=2)
    run(pipe, num_frames=LONG, windows=REPEATED, strength=strength, num_inference_steps=2)
    *_, noise, shuffle, fresh = draws if strength < 1 else [draws[0], *draws[2:]]
    again = repeated_noise(noise, shuffle, REPEATED)
    assert not torch.equal(again, noise)
    fresh = repeated_noise(fresh, shuffle, REPEATED)
    assert torch.equal(fresh[:, :, 4:6].sum(2), fresh[:, :, :2].sum(2))
    if strength == 1:
        assert torch.equal(starts[0], again)
    seen: list[Tensor] = []
    mixed = module.reinitialise
    monkeypatch.setattr(module, "reinitialise", lambda z, new, low: seen.append(new) or mixed(z, new, low))
    draws.clear()
    run(pipe, num_frames=LONG, windows=REPEATED, strength=strength, num_inference_steps=2)
    assert torch.equal(seen[0], fresh)


# --------------------------------------------------------------------------------------------------------- blend


@torch.no_grad()
def by_hand(pipe: PIAPipeline, cut: Windows, image: float | None, scale: float) -> Tensor:
    """What a run should give, from public parts alone, one window at a time."""
    generator = seeded()
    x = torch.randn(NOISE, generator=generator)
    still = pipe.vae.encode(picture() * 2 - 1).latent_dist.sample(generator) * pipe.vae.config.scaling_factor
    mask = torch.tensor(curve(0, LONG)).reshape(1, 1, LONG, 1, 1).expand(-1, -1, -1, *x.shape[3:])
    seen = torch.cat([mask, still[:, :, None].expand_as(x)], dim=1)
    positive, negative = pipe.encode_prompt("a cat in a field", negative_prompt="dark, sketches")
    assert negative is not None
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(2)
    for t in scheduler.timesteps:
        total, count = torch.zeros_like(x), torch.zeros(LONG)
        for start in (0, 2, 3):
            part = slice(start, start + 4)
            shares = torch.ones(4) if cut.weights == "uniform" else torch.tensor([1.0, 2.0, 2.0, 1.0])
            views = ((torch.zeros_like(seen), negative), (seen, negative), (seen, positive))
            none, uncond, cond = (
                pipe.unet(torch.cat([x, view], dim=1)[:, :, part], t, text).sample for view, text in views
            )
            eps = cfg(uncond, cond, scale)
            if image is not None:
                eps = none + image * (uncond - none) + scale * (cond - uncond)
            total[:, :, part] += shares.reshape(4, 1, 1) * eps
            count[part] += shares
        x = scheduler.step(total / count.reshape(-1, 1, 1), t, x).prev_sample
    return x


@pytest.mark.parametrize("numerics", ["diffusers", "original"])
@pytest.mark.parametrize(("blend", "image"), [("pyramid", None), ("uniform", None), ("pyramid", 1.5)])
def test_a_frame_is_the_weighted_mean_of_its_windows(numerics, blend, image):
    pipe, cut = pipeline(unet=unet(numerics)), Windows(4, 2, blend)
    result = run(pipe, num_frames=LONG, windows=cut, image_guidance_scale=image, guidance_scale=3.5)
    assert_parity(result, by_hand(pipe, cut, image, 3.5), SAME)
    whole = run(pipe, num_frames=LONG, image_guidance_scale=image, guidance_scale=3.5)
    assert relative_l2(result, whole) > 1e-3


@pytest.mark.parametrize("cut", [Windows(LONG), Windows(LONG + 1, 2, "uniform", "freenoise", True)])
@pytest.mark.parametrize("changes", [{}, {"strength": 0.5}, {"image_guidance_scale": 2.0}])
def test_a_clip_that_fits_is_not_changed_by_a_bit(pipe, cut, changes):
    pipe.enable_free_init(num_iters=2)
    changes = {"num_frames": LONG, **changes}
    assert torch.equal(run(pipe, windows=cut, **changes), run(pipe, **changes))


def test_the_order_of_the_windows_does_not_matter(pipe, monkeypatch):
    cut, real = Windows(4, 1), module.windows
    forth = run(pipe, num_frames=LONG, windows=cut)
    monkeypatch.setattr(module, "windows", lambda *args: real(*args)[::-1])
    assert_parity(run(pipe, num_frames=LONG, windows=cut), forth, SAME)


def test_windows_come_one_by_one_and_the_text_is_read_once(pipe, monkeypatch):
    seen = evaluations(monkeypatch, pipe)
    reads: list[int] = []
    read = pipe.unet.read_text
    monkeypatch.setattr(pipe.unet, "read_text", lambda *args: reads.append(1) or read(*args))
    run(pipe, num_frames=LONG, windows=CUT, prompt_travel={5: "running"})
    assert seen == [(1, 9, 4, HEIGHT // 8, WIDTH // 8)] * (2 * 3)
    assert len(reads) == 1


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_sees_one_clip(name):
    config = {**tiny.SCHEDULER, "skip_prk_steps": True, "timestep_spacing": "linspace"}
    pipe = pipeline(schedulers.SCHEDULERS[name].from_config(config))
    changes = {"num_frames": LONG, "num_inference_steps": 3, "windows": CUT, "guidance_scale": 1.0}
    first, again = (run(pipe, negative_prompt=None, **changes) for _ in range(2))
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    # Blending is linear: windows of a network that looks at single frames give what the whole clip gives.
    pipe.unet.predict = lambda x, t, text: 0.9 * x[:, :4] + 0.1 * x[:, 4:5]
    try:
        cut = run(pipe, negative_prompt=None, **changes)
        assert_parity(cut, run(pipe, negative_prompt=None, **{**changes, "windows": None}), SAME)
    finally:
        del pipe.unet.predict


def test_several_clips_are_those_of_each(pipe):
    pipe.enable_free_init(num_iters=2)
    given = {"num_frames": LONG, "windows": REPEATED, "negative_prompt": "dark"}
    travel = ["running", "walking"]
    together = run(
        pipe, prompt=["a cat", "a field"], prompt_travel={5: travel}, generator=[seeded(0), seeded(1)], **given
    )
    for b, prompt in enumerate(["a cat", "a field"]):
        alone = run(pipe, prompt=prompt, prompt_travel={5: travel[b]}, generator=seeded(b), **given)
        assert_parity(together[b][None], alone, SAME)


@pytest.mark.parametrize("travel", [None, {4: "running"}])
def test_callbacks_see_the_whole_clip(pipe, travel):
    shapes: list[Any] = []

    def callback(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        shapes.append([tuple(tensors[name].shape[:3]) for name in ("latents", "prompt_embeds")])
        embeds = tensors["prompt_embeds"].clone()
        embeds[LONG + 5] += 1.0
        return {"prompt_embeds": embeds} if step == 0 else tensors

    given = {"num_frames": LONG, "windows": CUT, "prompt_travel": travel}
    names = ["latents", "prompt_embeds"]
    changed = run(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names, **given)
    assert shapes == [[(1, 4, LONG), (2 * LONG, 77, tiny.TEXT_DIM)]] * 2
    apart = (changed - run(pipe, **given)).abs().amax(dim=(0, 1, 3, 4))
    assert apart[5] > 1e-3
    assert apart[0] < 1e-6, "frame 0 is in no window with frame 5"


def test_the_result_does_not_depend_on_what_stays_in_memory(pipe):
    given = {"num_frames": LONG, "windows": CUT, "prompt_travel": {4: "running"}}
    resident = run(pipe, **given)
    with pytest.warns(VivantWarning, match="W-OFFLOAD-CPU"):
        pipe.enable_sequential_cpu_offload(device="cpu")
    assert torch.equal(run(pipe, **given), resident)


def test_longer_than_the_positions(pipe, monkeypatch):
    with pytest.raises(InputError, match=r"E-FRAMES-MAX.*33 frames.*Windows\(16\)"):
        run(pipe, num_frames=33)
    with pytest.raises(InputError, match=r"E-FRAMES-MAX.*Windows of 34 frames"):
        run(pipe, num_frames=50, windows=Windows(34))
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(pipe.unet, "predict", lambda x, t, text: seen.append(tuple(x.shape)) or 0.9 * x[:, :4])
    assert run(pipe, num_frames=64, windows=Windows(), guidance_scale=1.0, negative_prompt=None).shape[2] == 64
    assert {shape[2] for shape in seen} == {16}
