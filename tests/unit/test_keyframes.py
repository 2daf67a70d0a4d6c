"""Several pictures at chosen frames, and prompts at chosen frames: what the network sees, and what is refused."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin
from torch import Tensor

import tiny
from tiny_pia import FRAMES, HEIGHT, WIDTH, picture, pipeline, run, seeded
from tolerances import Tolerance, assert_parity, relative_l2
from vivant.errors import InputError
from vivant.pia.affinity import TABLES, curve, nearest
from vivant.pipelines.pia import PIAPipeline
from vivant.prompts import travelling
from vivant.request import PIARequest
from vivant.rng import Rng

SAME = Tolerance(peak=1e-5, l2=1e-5)
POSTERIOR = (1, 4, HEIGHT // 8, WIDTH // 8)


@pytest.fixture
def pipe() -> PIAPipeline:
    return pipeline()


@pytest.fixture
def inputs(monkeypatch, pipe) -> list[Tensor]:
    """What the network is shown; it answers at once. For runs without guidance."""
    seen: list[Tensor] = []
    monkeypatch.setattr(pipe.unet, "predict", lambda x, t, text: seen.append(x) or 0.9 * x[:, :4])
    return seen


def shown(pipe: PIAPipeline, **changes: Any) -> Tensor:
    return run(pipe, guidance_scale=1.0, negative_prompt=None, num_frames=7, **changes)


# ------------------------------------------------------------------------------------------------------ keyframes


def test_of_two_pictures_equally_near_the_earlier_one_counts():
    assert nearest(7, (0, 4)) == (0, 0, 0, 1, 1, 1, 1)
    assert nearest(7, (4, 0)) == (1, 1, 1, 0, 0, 0, 0)
    assert nearest(9, (4, 0, 8)) == (1, 1, 1, 0, 0, 0, 0, 2, 2)
    assert nearest(3, (1,)) == (0, 0, 0)


def test_the_affinity_is_that_of_the_distance_to_the_nearest():
    row = TABLES["animate:large"]
    assert curve("animate:large", 7, 0, (4,)) == (1.0, row[1], row[2], row[1], 1.0, row[1], row[2])
    assert curve("animate:large", 7, 3, ()) == curve("animate:large", 7, 3)
    free = (0.1, 0.2, 0.3)
    assert curve(free, 3, 1, (2,)) == free
    with pytest.raises(InputError, match="E-MOTION-COND-FRAME"):
        curve(free, 3, 1)


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_every_frame_sees_its_picture(pipe, inputs, monkeypatch, strength):
    draws: list[Tensor] = []
    normal = Rng.normal
    monkeypatch.setattr(Rng, "normal", lambda *args: draws.append(normal(*args)) or draws[-1])
    pictures = [picture(seed) for seed in (5, 6, 7)]
    shown(
        pipe,
        image=pictures[0],
        cond_frame=3,
        keyframes={6: pictures[2], 0: pictures[1]},
        motion="animate:large",
        strength=strength,
    )
    noise = (1, 4, 7, HEIGHT // 8, WIDTH // 8)
    order = [noise, POSTERIOR, POSTERIOR, POSTERIOR, *([noise] if strength < 1 else [])]
    assert [tuple(draw.shape) for draw in draws] == order
    stills: list[Tensor] = []
    for given, draw in zip(pictures, draws[1:4], strict=True):  # the first picture, then keyframes as they come
        posterior = pipe.vae.encode(given * 2 - 1).latent_dist
        stills.append((posterior.mean + posterior.std * draw) * 0.18215)
    wanted = torch.stack([stills[k] for k in (1, 1, 0, 0, 0, 2, 2)], dim=2)
    assert_parity(inputs[0][:, 5:], wanted, SAME)
    mask = torch.tensor([1.0, 0.8, 0.8, 1.0, 0.8, 0.8, 1.0])
    assert torch.equal(inputs[0][:, 4], mask.reshape(1, 7, 1, 1).expand_as(inputs[0][:, 4]))
    if strength < 1:
        step = pipe.scheduler.solver.schedule(2)[1]
        assert_parity(inputs[0][:, :4], step.alpha * wanted + step.sigma * draws[4], SAME)


def test_one_picture_is_what_it_was(pipe):
    assert torch.equal(run(pipe, keyframes={}), run(pipe))
    again = run(pipe, keyframes={2: picture()})
    assert relative_l2(again, run(pipe)) > 1e-3, "its affinity and its draw"


def test_keyframes_of_a_batch(pipe, inputs):
    given = {"prompt": ["a", "b"], "generator": [seeded(0), seeded(1)]}
    shown(pipe, image=picture(num=2), keyframes={6: picture(8), 3: picture(9, num=2)}, **given)
    for b in range(2):
        alone = {"prompt": given["prompt"][b], "generator": seeded(b), "image": picture(num=2)[b]}
        shown(pipe, keyframes={6: picture(8), 3: picture(9, num=2)[b]}, **alone)
        assert_parity(inputs[0][b, 5:], inputs[-1][0, 5:], SAME)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"keyframes": {7: picture()}}, "E-KEYFRAME"),
        ({"keyframes": {0: picture()}}, "E-KEYFRAME"),
        ({"keyframes": {"3": picture()}}, "E-KEYFRAME"),
        ({"keyframes": [3]}, "E-KEYFRAME"),
        ({"keyframes": {3: picture()}, "motion": "loop:small"}, "E-KEYFRAME-LOOP"),
        ({"keyframes": {3: None}}, "E-IMAGE-NONE"),
        ({"keyframes": {3: picture(num=3)}, "prompt": ["a", "b"]}, "E-BATCH"),
        ({"prompt_travel": {7: "a"}}, "E-TRAVEL"),
        ({"prompt_travel": {3: ["a", "b", "c"]}, "prompt": ["a", "b"]}, "E-BATCH"),
        ({"prompt_travel": {3: "a"}, "prompt": None, "prompt_embeds": torch.zeros(1, 77, tiny.TEXT_DIM)}, "E-PROMPT-"),
    ],
)
@pytest.mark.unchecked
def test_refused_before_anything_is_drawn_or_predicted(pipe, inputs, changes, code):
    generator = seeded()
    before = generator.get_state()
    with pytest.raises(InputError, match=code):
        shown(pipe, generator=generator, **changes)
    assert not inputs
    assert torch.equal(generator.get_state(), before)


@pytest.mark.unchecked
def test_pictures_are_those_of_the_request(pipe):
    request = PIARequest(prompt="a", num_frames=FRAMES, keyframes=[2], height=HEIGHT, width=WIDTH)
    with pytest.raises(InputError, match="E-KEYFRAME"):
        pipe.denoise(request, picture(), keyframes={1: picture()})
    with pytest.raises(InputError, match="E-KEYFRAME"):
        pipe.denoise(request, picture())


# --------------------------------------------------------------------------------------------------------- travel


def test_travelling_prompts_are_those_of_the_port(pipe):
    """Which takes all prompts from one dictionary, and puts the last one at the last frame too."""
    port: Any = SimpleNamespace(encode_prompt=pipe.encode_prompt)
    port._check_inputs_free_noise = lambda *args: None
    port._free_noise_prompt_interpolation_callback = lambda *args: AnimateDiffFreeNoiseMixin._lerp(port, *args)
    travel = {0: "a cat", 4: "running", 6: "in a field"}
    theirs, _ = AnimateDiffFreeNoiseMixin._encode_prompt_free_noise(port, travel, 9, torch.device("cpu"), 1, False)
    positive, negative = pipe.encode_prompt(list(travel.values()), negative_prompt="dark")
    prompts = travelling(positive, negative, tuple(travel), 9, 1)
    assert_parity(prompts.positive, theirs, SAME)
    assert prompts.negative is not None
    assert torch.equal(prompts.negative, negative[:1].expand(9, -1, -1))


def test_one_prompt_at_several_frames_is_that_prompt(pipe):
    plain = run(pipe, guidance_scale=3.0)
    assert_parity(run(pipe, prompt_travel={2: "a cat in a field"}, guidance_scale=3.0), plain, SAME)
    assert torch.equal(run(pipe, prompt=None, prompt_travel={1: "a cat in a field"}, guidance_scale=3.0), plain)
    assert relative_l2(run(pipe, prompt_travel={2: "running"}, guidance_scale=3.0), plain) > 1e-4


def test_ready_negative_embeddings_travel_along(pipe):
    negatives = ["dark", "sketches"]
    _, negative = pipe.encode_prompt(["a", "b"], negative_prompt=negatives)
    changes = {"prompt": ["a cat", "a field"], "prompt_travel": {2: "running"}, "num_videos_per_prompt": 2}
    ready = run(pipe, negative_prompt=None, negative_prompt_embeds=negative, **changes)
    assert_parity(ready, run(pipe, negative_prompt=negatives, **changes), SAME)
