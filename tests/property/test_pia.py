"""What holds for every run of PIA: repetition, guidance, chunks, batches, and requests from anywhere."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
from tiny_pia import pipeline, run, seeded, vae
from tolerances import Tolerance, assert_parity
from vivant import schedulers
from vivant.errors import InputError
from vivant.media.output import collect
from vivant.media.pictures import pictures
from vivant.pia.affinity import NAMES
from vivant.pia.decode import decode
from vivant.prompts import Prompts, join_prompts, split_prompts
from vivant.request import PIARequest

few = settings(max_examples=10, deadline=None)
patient = settings(deadline=None)
SAME = Tolerance(peak=1e-5, l2=1e-5)


def scheduler(name: str) -> schedulers.Scheduler:
    return schedulers.SCHEDULERS[name].from_config({**tiny.SCHEDULER, "skip_prk_steps": True})


@st.composite
def runs(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A solver, and arguments of a short run."""
    num_frames = draw(st.integers(1, 4))
    # The samplers of CogVideoX do not take PIA's noise schedule.
    solvers = sorted(name for name in schedulers.SCHEDULERS if not name.startswith("CogVideoX"))
    return draw(st.sampled_from(solvers)), {
        "num_frames": num_frames,
        "num_inference_steps": draw(st.integers(2, 3)),
        "motion": draw(st.sampled_from(NAMES)),
        "cond_frame": draw(st.integers(0, num_frames - 1)),
        "strength": draw(st.sampled_from([1.0, 0.6])),
        "guidance_scale": draw(st.sampled_from([1.0, 3.0])),
        "image_guidance_scale": draw(st.sampled_from([None, 1.5])),
        "prompt": draw(st.text(max_size=8)),
        "negative_prompt": None,
    }


@few
@given(runs(), st.integers(0, 2**64 - 1), st.booleans())
def test_a_run_repeats_itself_bit_by_bit_at_every_step(call: tuple[str, dict[str, Any]], seed: int, refined: bool):
    name, changes = call
    pipe = pipeline(scheduler(name))
    if refined:
        pipe.enable_free_init(num_iters=2)
    trajectories: list[list[Tensor]] = []
    for _ in range(2):
        states: list[Tensor] = []
        trajectories.append(states)

        def watch(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any], states: Any = states) -> Any:
            states.append(tensors["latents"])
            return tensors

        result = run(pipe, generator=seeded(seed), callback_on_step_end=watch, **changes)
        assert torch.equal(states[-1], result)
    first, second = trajectories
    assert len(first) == len(second) == pipe.num_timesteps
    assert all(torch.equal(a, b) and torch.isfinite(a).all() for a, b in zip(first, second, strict=True))


@few
@given(runs(), st.floats(0, 1))
def test_guidance_of_one_and_less_is_the_conditional_prediction(call: tuple[str, dict[str, Any]], scale: float):
    """The network reads the prompt alone, whatever the scale."""
    name, changes = call
    plain = {**changes, "guidance_scale": 1.0, "image_guidance_scale": None}
    pipe = pipeline(scheduler(name))
    embeds = pipe.encode_prompt("a cat")[0]
    given = {**plain, "prompt": None, "prompt_embeds": embeds}
    expected = run(pipe, **given)
    rows: list[int] = []
    read = pipe.unet.read_text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.unet, "read_text", lambda text, per: rows.append(len(text)) or read(text, per))
        assert torch.equal(run(pipe, **{**given, "guidance_scale": scale}), expected)
    assert rows == [1]
    both = run(pipe, **{**given, "guidance_scale": 3.0, "negative_prompt_embeds": embeds})
    assert_parity(both, expected, Tolerance(peak=1e-3, l2=1e-3))  # a difference of nothing, exaggerated


@few
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_chunks_decode_to_the_whole(b: int, f: int, chunk: int, h: int, w: int, slicing: bool):
    network = vae()
    latents = tiny.noise(b, 4, f, h, w, seed=b + f)
    try:
        network.chunk_size = b * f
        whole = torch.cat(list(decode(network, latents)))
        network.chunk_size, network.use_slicing = chunk, slicing
        parts = list(decode(network, latents))
    finally:
        del network.chunk_size
        network.disable_slicing()
    assert [len(part) for part in parts] == [len(part) for part in torch.arange(b * f).split(chunk)]
    assert_parity(torch.cat(parts), whole, SAME)
    for kind, shape in (("pt", (b, f, 3, 8 * h, 8 * w)), ("np", (b, f, 8 * h, 8 * w, 3))):
        frames, _ = collect(parts, f, kind)
        assert frames.shape == shape
    clips, _ = collect(parts, f, "pil")
    exact = whole.reshape(b, f, 3, 8 * h, 8 * w)[-1, -1].permute(1, 2, 0) * 255
    assert np.abs(np.asarray(clips[-1][-1]) - exact.numpy()).max() <= 0.5 + 1e-2


@few
@given(st.integers(1, 3), st.integers(1, 2), st.data())
def test_every_clip_of_a_batch_is_its_single_run(num: int, videos: int, data: st.DataObject):
    prompts = data.draw(st.lists(st.text("abc ", max_size=5), min_size=num, max_size=num))
    pipe = pipeline()
    together = run(
        pipe,
        prompt=prompts,
        num_videos_per_prompt=videos,
        num_inference_steps=1,
        generator=[seeded(s) for s in range(num * videos)],
    )
    i = data.draw(st.integers(0, num * videos - 1))
    alone = run(pipe, prompt=prompts[i // videos], num_inference_steps=1, generator=seeded(i))
    assert_parity(together[i][None], alone, SAME)


@patient
@given(st.integers(1, 4), st.integers(1, 5), st.booleans(), st.booleans())
def test_prompts_come_back_from_what_callbacks_see(b: int, f: int, guided: bool, same: bool):
    rows = b if same else b * f
    positive = tiny.noise(rows, 3, 2, seed=1)
    negative = tiny.noise(rows, 3, 2, seed=2) if guided else None
    prompts = Prompts(positive, negative, per_frame=not same and f > 1)
    shown = join_prompts(prompts, f)
    assert shown.shape[0] == b * f * (1 + guided)
    back = split_prompts(shown, b, f)
    assert torch.equal(join_prompts(back, f), shown)
    assert (back.negative is not None) == guided
    assert back.per_frame == prompts.per_frame


@patient
@given(
    st.integers(16, 40),
    st.integers(16, 40),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from(["crop", "pad", "stretch"]),
)
def test_pictures_have_the_clip_s_size_and_range(i: int, j: int, h: int, w: int, how: Any):
    picture = np.random.default_rng(i * j).integers(0, 256, (i, j, 3), dtype=np.uint8)
    pixels = pictures([picture, picture / 255], 8 * h, 8 * w, how)
    assert pixels.shape == (2, 3, 8 * h, 8 * w)
    assert torch.equal(pixels[0], pixels[1])
    assert pixels.min() >= -1
    assert pixels.max() <= 1


numbers = st.one_of(st.integers(), st.floats(), st.just(10**400))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=5), st.sampled_from(NAMES)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
fields = st.sampled_from([*PIARequest.__dataclass_fields__, "steps"])
sub = st.fixed_dictionaries({}, optional=dict.fromkeys(("num_iters", "method", "order", "s1", "b2"), values))


@pytest.mark.unchecked
@patient
@given(st.dictionaries(fields, st.one_of(values, sub), max_size=4))
def test_anything_is_a_request_or_an_error_with_a_code(read: dict[str, Any]):
    try:
        request = PIARequest.from_json(read)
    except InputError:
        return
    text = json.dumps(request.to_json(), allow_nan=False)
    assert PIARequest.from_json(json.loads(text)) == request
    assert len(request.affinity) == request.num_frames
