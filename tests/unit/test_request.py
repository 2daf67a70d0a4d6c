"""Requests: one frozen value that checks itself and survives JSON."""

import dataclasses
import inspect
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from vivant.errors import InputError
from vivant.freeinit import FreeInit
from vivant.pia.affinity import curve
from vivant.pia.freeu import FreeU
from vivant.pia.windows import Windows
from vivant.pipelines.pia import PIAPipeline
from vivant.request import MAX_FRAMES, MAX_SIDE, PIARequest, batch_size, texts

FULL = PIARequest(
    prompt=["a cat", "🐈 قطة"],
    prompt_travel={2: ["a dog", "🐕"], 1: "a bird"},
    negative_prompt=("dark",),
    motion=[0.0, 0.5, 1.0],
    keyframes=[2, 1],
    num_frames=3,
    windows=Windows(2, 1, "uniform", "freenoise", True),
    height=64,
    width=96,
    fit="pad",
    num_inference_steps=7,
    guidance_scale=2,
    image_guidance_scale=1.5,
    strength=0.5,
    eta=1.0,
    clip_skip=2,
    prompt_syntax="plain",
    num_videos_per_prompt=2,
    seed=[0, 2**63, 2**64 - 1, 5],
    free_init=FreeInit(2, True, "gaussian"),
    freeu=FreeU(0.9, 0.2, 1.2, 1.4),
    fps=12.5,
)


def test_defaults_are_pia_s():
    request = PIARequest()
    assert (request.num_frames, request.num_inference_steps, request.guidance_scale) == (16, 25, 7.5)
    assert (request.motion, request.cond_frame, request.strength, request.eta) == ("animate:small", 0, 1.0, 0.0)
    assert request.affinity == curve("animate:small", 16)


@pytest.mark.parametrize("request_", [PIARequest(), FULL])
def test_json_and_back(request_):
    text = json.dumps(request_.to_json(), allow_nan=False)
    assert PIARequest.from_json(json.loads(text)) == request_
    assert set(json.loads(text)) == {f.name for f in dataclasses.fields(PIARequest)}


def test_every_field_of_the_full_request_differs_from_its_default():
    defaults = {f.name: f.default for f in dataclasses.fields(PIARequest)}
    same = [name for name, value in vars(FULL).items() if value == defaults[name]]
    assert same == ["cond_frame"]  # a free curve takes none


def test_the_facade_and_the_request_share_their_words():
    """What `PIAPipeline.__call__` takes is a field, another form of one, or not part of a request."""
    fields = {f.name for f in dataclasses.fields(PIARequest)}
    other_forms = {"motion_scale", "generator", "prompt_embeds", "negative_prompt_embeds", "latents", "image"}
    unfinished = {"ip_adapter_image", "ip_adapter_image_embeds", "cross_attention_kwargs"}
    output = {"output_type", "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs", "self"}
    called = set(inspect.signature(PIAPipeline.__call__).parameters)
    assert called - fields == other_forms | unfinished | output
    assert fields - called == {"seed", "fps", "free_init", "freeu"}


def test_it_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.fps = 3
    assert len({FULL, PIARequest(), PIARequest()}) == 2


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (4, "loop:moderate"),
        ("style:large", "style:large"),
        ([0, 0.5, 1], (0.0, 0.5, 1.0)),
        (np.array([0.0, 0.5, 1.0]), (0.0, 0.5, 1.0)),
        (torch.tensor([0.0, 0.5, 1.0]), (0.0, 0.5, 1.0)),
    ],
)
def test_a_motion_has_one_spelling(given, kept):
    request = PIARequest(motion=given, num_frames=3)
    assert request.motion == kept
    assert type(request.motion) is type(kept)
    assert PIARequest.from_json(json.loads(json.dumps(request.to_json()))) == request


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"prompt": 7}, "E-PROMPT-TYPE"),
        ({"prompt": []}, "E-PROMPT-TYPE"),
        ({"prompt": ["a", None]}, "E-PROMPT-TYPE"),
        ({"negative_prompt": b"x"}, "E-PROMPT-TYPE"),
        ({"prompt": "a\ud83d"}, "E-PROMPT-TEXT"),
        ({"num_frames": 0}, "E-FRAMES"),
        ({"num_frames": 2.0}, "E-FRAMES"),
        ({"num_frames": True}, "E-FRAMES"),
        ({"num_frames": MAX_FRAMES + 1}, "E-FRAMES"),
        ({"num_frames": 10**400}, "E-FRAMES"),
        ({"num_inference_steps": 0}, "E-STEPS"),
        ({"num_inference_steps": 1001}, "E-STEPS"),
        ({"num_videos_per_prompt": -1}, "E-NUM-VIDEOS"),
        ({"num_videos_per_prompt": 10**9}, "E-NUM-VIDEOS"),
        ({"height": 4}, "E-SIZE"),
        ({"height": 100}, "E-SIZE"),
        ({"width": MAX_SIDE + 8}, "E-SIZE"),
        ({"width": 64.0}, "E-SIZE"),
        ({"clip_skip": -1}, "E-CLIP-SKIP"),
        ({"guidance_scale": -1}, "E-GUIDANCE"),
        ({"guidance_scale": math.nan}, "E-GUIDANCE"),
        ({"guidance_scale": math.inf}, "E-GUIDANCE"),
        ({"guidance_scale": "7"}, "E-GUIDANCE"),
        ({"image_guidance_scale": -0.1}, "E-GUIDANCE"),
        ({"strength": 0}, "E-STRENGTH"),
        ({"strength": 0.0}, "E-STRENGTH"),
        ({"strength": -0.5}, "E-STRENGTH"),
        ({"strength": 1.0001}, "E-STRENGTH"),
        ({"strength": math.nan}, "E-STRENGTH"),
        ({"strength": True}, "E-STRENGTH"),
        ({"strength": 10**400}, "E-STRENGTH"),
        ({"eta": 1.5}, "E-ETA"),
        ({"fps": 0}, "E-FPS"),
        ({"fps": 1000}, "E-FPS"),
        ({"fit": "fill"}, "E-FIT"),
        ({"fit": ["crop"]}, "E-FIT"),
        ({"prompt_syntax": "a1111"}, "E-PROMPT-SYNTAX"),
        ({"prompt_syntax": None}, "E-PROMPT-SYNTAX"),
        ({"seed": -2}, "E-SEED"),
        ({"seed": 2**64}, "E-SEED"),
        ({"seed": 1.5}, "E-SEED"),
        ({"seed": None}, "E-SEED"),
        ({"seed": []}, "E-SEED"),
        ({"seed": [1, "2"]}, "E-SEED"),
        ({"free_init": {"num_iters": 2}}, "E-PARAM-TYPE"),
        ({"freeu": (1, 1, 1, 1)}, "E-PARAM-TYPE"),
        ({"free_init": FreeInit(num_iters=10**6)}, "E-FREEINIT-ITERATIONS"),
        ({"motion": "fast"}, "E-MOTION-NAME"),
        ({"motion": 9}, "E-MOTION-NUMBER"),
        ({"motion": -1}, "E-MOTION-NUMBER"),
        ({"motion": None}, "E-MOTION-TYPE"),
        ({"motion": [0.5]}, "E-MOTION-CURVE"),
        ({"cond_frame": 16}, "E-MOTION-COND-FRAME"),
        ({"keyframes": [16]}, "E-KEYFRAME"),
        ({"keyframes": [-1]}, "E-KEYFRAME"),
        ({"keyframes": [2, 2]}, "E-KEYFRAME"),
        ({"keyframes": [3], "cond_frame": 3}, "E-KEYFRAME"),
        ({"keyframes": [0.5]}, "E-KEYFRAME"),
        ({"keyframes": [[1]]}, "E-KEYFRAME"),
        ({"keyframes": 4}, "E-KEYFRAME"),
        ({"keyframes": [8], "motion": "loop:small"}, "E-KEYFRAME-LOOP"),
        ({"prompt_travel": {16: "a"}}, "E-TRAVEL"),
        ({"prompt_travel": {-1: "a"}}, "E-TRAVEL"),
        ({"prompt_travel": {"8": "a"}}, "E-TRAVEL"),
        ({"prompt_travel": [[8, "a"], [8, "b"]]}, "E-TRAVEL"),
        ({"prompt_travel": [[[8], "a"]]}, "E-TRAVEL"),
        ({"prompt_travel": "a"}, "E-TRAVEL"),
        ({"prompt_travel": {8: 1}}, "E-PROMPT-TYPE"),
        ({"prompt_travel": {8: None}}, "E-PROMPT-TYPE"),
        ({"prompt_travel": {8: "a\ud83d"}}, "E-PROMPT-TEXT"),
        ({"prompt_travel": {0: "a"}, "prompt": "b"}, "E-PROMPT-TWICE"),
        ({"prompt_travel": {8: ["a", "b"]}, "prompt": ["b", "c", "d"]}, "E-BATCH"),
        ({"windows": 16}, "E-PARAM-TYPE"),
        ({"motion": [0.5] * 16, "cond_frame": 2}, "E-MOTION-COND-FRAME"),
        ({"steps": 5}, "E-PARAM-UNKNOWN"),
    ],
)
def test_what_cannot_be_honoured_is_refused(values: dict[str, Any], code):
    with pytest.raises(InputError) as refusal:
        PIARequest.build(**values)
    assert refusal.value.code == code
    # The message names the field, or the thing that it is about.
    assert any(name in refusal.value.what for name in values)


@pytest.mark.parametrize("values", [{"strength": 1}, {"guidance_scale": 0}, {"seed": -1}, {"seed": 0}, {"seed": 2**63}])
def test_the_limits_themselves_are_allowed(values):
    assert PIARequest.build(**values)


@pytest.mark.unchecked
def test_numbers_of_numpy_become_python_s():
    given = {
        "num_frames": np.int64(16),
        "height": np.uint16(64),
        "num_inference_steps": np.int32(7),
        "guidance_scale": np.float32(7.5),
        "strength": np.float64(0.5),
        "seed": [np.int64(3), 4],
        "motion": np.int64(2),
        "free_init": FreeInit(np.int64(2), spatial_stop_frequency=np.float32(0.5)),
        "freeu": FreeU(np.float32(0.5), np.int64(1), 1.25, np.float64(1.5)),
    }
    request = PIARequest(**given)
    plain = PIARequest(
        num_frames=16,
        height=64,
        num_inference_steps=7,
        guidance_scale=7.5,
        strength=0.5,
        seed=[3, 4],
        motion=2,
        free_init=FreeInit(2, spatial_stop_frequency=0.5),
        freeu=FreeU(0.5, 1, 1.25, 1.5),
    )
    assert request == plain
    assert repr(request) == repr(plain)  # equal numbers of NumPy would show themselves here
    assert json.dumps(request.to_json()) == json.dumps(plain.to_json())
    for name in ("num_frames", "guidance_scale", "seed"):
        for value in (np.bool_(True), True, np.array([1, 2])):
            with pytest.raises(InputError):
                PIARequest.build(**{name: value})


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="num_inference_steps"):
        PIARequest.build(inference_steps=5)


@pytest.mark.parametrize(
    "values",
    [
        [],
        None,
        {"free_init": 3},
        {"free_init": {"iters": 2}},
        {"freeu": {}},
        {"freeu": {"s1": 1, "s2": 1, "b1": 1}},
        {"free_init": {"method": "sharp"}},
    ],
)
def test_json_that_is_no_request_is_refused(values):
    with pytest.raises(InputError):
        PIARequest.from_json(values)


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_weight_beyond_all_numbers_is_refused_where_weights_are_read(name):
    text = f"a (cat:{'9' * 400})"
    with pytest.raises(InputError, match=r"E-PROMPT-WEIGHT.*'cat' is inf"):
        PIARequest(**{name: ["a dog", text]})
    with pytest.raises(InputError, match="E-PROMPT-WEIGHT"):
        PIARequest(prompt_travel={4: text})
    assert PIARequest(**{name: text, "prompt_syntax": "plain"})


def test_prompts_at_frames_have_one_spelling():
    travel = PIARequest(prompt="a", prompt_travel={np.int64(9): "c", 4: ["b", "d"]})
    assert travel.prompt_travel == ((4, ("b", "d")), (9, "c"))
    assert travel == PIARequest(prompt="a", prompt_travel=[(4, ("b", "d")), [9, "c"]])
    assert travel.prompts_at == {0: "a", 4: ("b", "d"), 9: "c"}
    assert travel.num_prompts == 2
    assert PIARequest(prompt_travel={4: "b"}).prompts_at == {4: "b"}
    assert PIARequest(prompt_travel={0: "", 4: "b"}).prompts_at == {0: "", 4: "b"}
    assert PIARequest(prompt_travel={}).prompt_travel is None
    assert PIARequest(prompt=["a", "b"]).prompts_at == {0: ("a", "b")}


def test_guidance_by_the_picture_reads_the_negative_prompt():
    assert PIARequest(guidance_scale=1.5).needs_negative
    assert not PIARequest(guidance_scale=1).needs_negative
    assert PIARequest(guidance_scale=1, image_guidance_scale=1.0).needs_negative


def test_texts_and_batches():
    assert texts(None) == [""]
    assert texts("a") == ["a"]
    assert texts(("a", "b")) == ["a", "b"]
    assert batch_size(image=1, prompt=1) == 1
    assert batch_size(image=1, prompt=3, negative_prompt=1) == 3
    with pytest.raises(InputError, match=r"E-BATCH.*2 x image, 3 x prompt"):
        batch_size(image=2, prompt=3)
