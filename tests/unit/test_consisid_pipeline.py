"""What `ConsisIDPipeline` does where diffusers fails or differs; whole runs against it are in tests/parity."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
import tiny_consisid as small
from tolerances import TRAJECTORY, assert_parity
from vivant import attention, guidance
from vivant.callbacks import SDCFGCutoffCallback
from vivant.consisid.conditioning import Guidance
from vivant.consisid.generate import num_generated
from vivant.consisid.identity import LocalFacialExtractor
from vivant.errors import InputError, VivantWarning
from vivant.guidance import dynamic_scale
from vivant.pipelines.consisid.pipeline_consisid import ConsisIDPipeline
from vivant.pipelines.consisid.pipeline_output import ConsisIDPipelineOutput
from vivant.text import t5

pytestmark = pytest.mark.filterwarnings("ignore:.*W-OFF-SIZE")


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def people(num):
    """Different faces, and their pictures."""
    images = [Image.fromarray((tiny.noise(40, 70, 3, seed=30 + i).sigmoid() * 255).byte().numpy()) for i in range(num)]
    return {"image": images, **small.face(num)}


def person(given, i):
    """One of them."""
    return {
        "image": given["image"][i],
        "id_cond": given["id_cond"][i, None],
        "id_vit_hidden": [hidden[i, None] for hidden in given["id_vit_hidden"]],
    }


# Batches


def test_people_prompts_and_videos_are_never_mixed():
    given, prompts = people(2), ["a sea", "a park"]
    together = small.asked(**given, prompt=prompts, num_videos_per_prompt=2, generator=seeds(1, 2, 3, 4))
    frames = small.pipeline()(**together).frames
    assert frames.shape == (4, 9, 3, 48, 80)
    for b in range(2):
        for k in range(2):
            alone = small.asked(**person(given, b), prompt=prompts[b], generator=seeds(1 + 2 * b + k))
            assert_parity(frames[2 * b + k, None], small.pipeline()(**alone).frames, TRAJECTORY)


def test_one_of_each_serves_all():
    given, prompts = people(2), ["a sea", "a park"]
    one = small.pipeline()(**small.asked(prompt=prompts, generator=seeds(1, 2))).frames
    for b, prompt in enumerate(prompts):
        alone = small.pipeline()(**small.asked(prompt=prompt, generator=seeds(1 + b))).frames
        assert_parity(one[b, None], alone, TRAJECTORY)
    several = small.pipeline()(**small.asked(**given, generator=seeds(1, 2))).frames
    assert_parity(
        several[1, None], small.pipeline()(**small.asked(**person(given, 1), generator=seeds(2))).frames, TRAJECTORY
    )


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"prompt": ["a", "b"], **people(3)}, "E-BATCH"),
        ({"generator": seeds(1, 2)}, "E-GENERATORS"),
        ({"height": 40, "width": 80}, "E-SIZE"),
        ({"num_frames": 0}, "E-FRAMES"),
        ({"id_cond": None}, "E-IDENTITY-NONE"),
        ({"id_cond": None, "id_vit_hidden": None}, "E-IDENTITY-NONE"),
        ({"id_cond": torch.zeros(1, 13)}, "E-IDENTITY-SHAPE"),
        ({"id_vit_hidden": small.face(1)["id_vit_hidden"][:1]}, "E-IDENTITY-SHAPE"),
        ({"latents": torch.zeros(1, 2, 4, 6, 10)}, "E-LATENTS-SHAPE"),
        ({"prompt": None}, "E-PROMPT-NONE"),
        ({"prompt_embeds": torch.zeros(1, 7, 28)}, "E-PROMPT-TWICE"),
        pytest.param({"output_type": "video"}, "E-OUTPUT-TYPE", marks=pytest.mark.unchecked),
        ({"attention_kwargs": {"gligen": 1}}, "E-CROSS-ATTENTION"),
        ({"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["image"]}, "E-CALLBACK-INPUTS"),
        pytest.param({"use_dynamic_cfg": 1}, "E-PARAM-TYPE", marks=pytest.mark.unchecked),
        ({"max_sequence_length": 0}, "E-PROMPT-LENGTH"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_anything_is_computed(changes, code, monkeypatch):
    pipe = small.pipeline()
    monkeypatch.setattr(t5, "encode", lambda *_: pytest.fail("the text encoder ran"))
    with pytest.raises(InputError) as refused:
        pipe(**small.asked(**changes))
    assert refused.value.code == code


# Frames and sizes


@pytest.mark.parametrize("num_frames", [1, 5, 8, 9, 12, 13])
def test_as_many_frames_as_asked(num_frames):
    frames = small.pipeline()(**small.asked(num_frames=num_frames, num_inference_steps=1)).frames
    assert frames.shape == (1, num_frames, 3, 48, 80)
    assert [num_generated(n) for n in (1, 2, 9, 10, 13, 17, 49)] == [1, 9, 9, 17, 17, 17, 49]


def test_the_first_frames_of_what_is_made_are_returned():
    longer = small.pipeline()(**small.asked(num_frames=9)).frames
    assert torch.equal(small.pipeline()(**small.asked(num_frames=6)).frames, longer[:, :6])


@pytest.mark.filterwarnings("default:.*W-OFF-SIZE")
def test_other_sizes_are_made_with_a_warning():
    pipe = small.pipeline()
    with pytest.warns(VivantWarning, match=r"W-OFF-SIZE.*9 frames of 64 x 32.*9 of 48 x 80"):
        frames = pipe(**small.asked(height=64, width=32, num_inference_steps=1)).frames
    assert frames.shape == (1, 9, 3, 64, 32)
    assert any("W-OFF-SIZE" in note for note in pipe.notes)
    pipe.transformer.off_size = "zero"
    try:
        other = pipe(**small.asked(height=64, width=32, num_inference_steps=1)).frames
    finally:
        del pipe.transformer.off_size
    assert not torch.allclose(frames, other, atol=1e-3)


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
def test_every_form_of_output(kind):
    out = small.pipeline()(**small.asked(output_type=kind, num_inference_steps=1))
    assert isinstance(out, ConsisIDPipelineOutput)
    assert out["frames"] is out.frames is out[0] is out.to_tuple()[0]
    if kind == "pil":
        assert [len(video) for video in out.frames] == [9]
        assert out.frames[0][0].size == (80, 48)
    else:
        shapes = {"np": (1, 9, 48, 80, 3), "pt": (1, 9, 3, 48, 80), "latent": (1, 3, 4, 6, 10)}
        assert out.frames.shape == shapes[kind]
    (plain,) = small.pipeline()(**small.asked(output_type=kind, num_inference_steps=1, return_dict=False))
    assert type(plain) is type(out.frames)


@pytest.mark.parametrize("mode", ["RGBA", "L", "array", "tensor", "list"])
def test_every_way_to_give_a_picture(mode):
    image = small.asked()["image"]
    expected = image
    if mode in ("RGBA", "L"):
        given = image.convert(mode)
        expected = given.convert("RGB")
    elif mode == "array":
        given = np.asarray(image)
    elif mode == "tensor":
        given = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    else:
        given = [image]
    call = {"num_inference_steps": 1, "output_type": "latent"}
    found = small.pipeline()(**small.asked(image=given, **call)).frames
    assert torch.equal(found, small.pipeline()(**small.asked(image=expected, **call)).frames)


# Guidance


def test_dynamic_guidance_falls_smoothly():
    scales = [dynamic_scale(6.0, i, 50) for i in range(50)]
    assert scales[:3] == pytest.approx([7.0, 6.86, 6.51], abs=5e-3)
    assert scales == sorted(scales, reverse=True)
    assert scales[-1] == pytest.approx(1.0, abs=1e-5)
    port = [Guidance(6.0, True, 50, by_timestep=True).at(i, t) for i, t in enumerate((999, 979, 959))]
    assert port == pytest.approx([2.29, 2.54, 6.97], abs=5e-3)
    assert Guidance(6.0, False, 50).at(3, 500) == 6.0


def test_a_run_falls_from_its_first_step(monkeypatch):
    scales = []
    monkeypatch.setattr(guidance, "cfg", lambda without, text, scale: scales.append(scale) or text)
    small.pipeline()(**small.asked(use_dynamic_cfg=True))
    assert scales == [dynamic_scale(6.0, i, 3) for i in range(3)]


def test_guidance_drops_the_text_alone():
    without = small.pipeline()(**small.asked(guidance_scale=0.0)).frames
    same = small.pipeline()(**small.asked(guidance_scale=1.0)).frames
    assert torch.equal(without, same)
    other = {"id_cond": 2 * small.face(1)["id_cond"]}
    assert not torch.allclose(without, small.pipeline()(**small.asked(guidance_scale=1.0, **other)).frames, atol=1e-4)
    with pytest.warns(VivantWarning, match="W-NEGATIVE-UNUSED"):
        small.pipeline()(**small.asked(guidance_scale=1.0, negative_prompt="a park"))


def test_guidance_may_be_switched_off_on_the_way():
    evaluations = []
    pipe = small.pipeline()
    real = pipe.transformer.predict

    def counted(x, text, *rest):
        evaluations.append(len(text))
        return real(x, text, *rest)

    pipe.transformer.predict = counted
    try:
        pipe(**small.asked(callback_on_step_end=SDCFGCutoffCallback(cutoff_step_index=0)))
    finally:
        del pipe.transformer.predict
    assert evaluations == [2, 1, 1]


# Work that is done once


def test_the_face_is_read_once_a_run_and_the_empty_prompt_once_a_pipeline(monkeypatch):
    reads, encoded = [], []
    real_read, real_encode = LocalFacialExtractor.forward, t5.encode
    monkeypatch.setattr(LocalFacialExtractor, "forward", lambda self, *args: reads.append(1) or real_read(self, *args))
    monkeypatch.setattr(t5, "encode", lambda *args: encoded.append(list(args[2])) or real_encode(*args))
    pipe = small.pipeline()
    first = pipe(**small.asked()).frames
    assert (len(reads), encoded) == (1, [[""], ["a sea"]])
    again = pipe(**small.asked()).frames
    assert (len(reads), encoded) == (2, [[""], ["a sea"], ["a sea"]])
    assert torch.equal(first, again)
    pipe(**small.asked(max_sequence_length=6))
    assert encoded[3:] == [[""], ["a sea"]]
    pipe(**small.asked(prompt="a park", negative_prompt="a sea"))
    assert encoded[5:] == [["a park", "a sea"]]


def test_a_callback_may_exchange_the_prompt():
    park, _ = small.pipeline().encode_prompt("a park", max_sequence_length=7)

    def exchange(pipe, step, timestep, tensors):
        negative = tensors["prompt_embeds"][:1]
        return {"prompt_embeds": torch.cat([negative, park])} if step == 0 else tensors

    call = {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"], "output_type": "latent"}
    changed = small.pipeline()(**small.asked(callback_on_step_end=exchange, **call)).frames
    assert not torch.allclose(changed, small.pipeline()(**small.asked(output_type="latent")).frames, atol=1e-3)


def test_the_state_stays_in_float32():
    seen = []
    pipe = ConsisIDPipeline(**small.text_parts(), **half(), scheduler=small.pipeline().scheduler)
    pipe.set_progress_bar_config(disable=True)
    pipe.denoise(
        *request_and_face(pipe), on_step=lambda state: seen.append(state.x.dtype) or replace(state), prompt_embeds=None
    )
    assert set(seen) == {torch.float32}
    pipe = ConsisIDPipeline(**small.text_parts(), **half(), scheduler=pipe.scheduler, compat="diffusers")
    pipe.set_progress_bar_config(disable=True)
    seen.clear()
    pipe.denoise(*request_and_face(pipe), on_step=lambda state: seen.append(state.x.dtype) or replace(state))
    assert set(seen) == {torch.bfloat16}


def half():
    """Copies of the networks in bfloat16."""
    parts = small.parts()
    return {name: type(part).from_state(part.config, part.state_dict(), torch.bfloat16) for name, part in parts.items()}


def request_and_face(pipe):
    from vivant.consisid.conditioning import Face
    from vivant.request import ConsisIDRequest

    face = small.face(1)
    request = ConsisIDRequest(prompt="a sea", num_frames=9, num_inference_steps=2, max_sequence_length=7)
    return request, small.asked()["image"], Face(face["id_cond"], tuple(face["id_vit_hidden"]))


# Prompts


def test_encode_prompt():
    pipe = small.pipeline()
    positive, negative = pipe.encode_prompt(["a sea", "a park"], num_videos_per_prompt=2, max_sequence_length=7)
    assert positive.shape == negative.shape == (4, 7, small.TEXT_DIM)
    assert torch.equal(positive[0], positive[1])
    assert torch.equal(negative[0], negative[3])
    tokenizer, encoder = small.text_parts()["tokenizer"], small.text_parts()["text_encoder"]
    ids = tokenizer(["a sea"], padding="max_length", max_length=7, return_tensors="pt").input_ids
    assert_parity(positive[:1], encoder(ids).last_hidden_state)
    assert pipe.encode_prompt("a sea", do_classifier_free_guidance=False, max_sequence_length=7)[1] is None
    bare = ConsisIDPipeline(None, None, **small.parts(), scheduler=pipe.scheduler)
    with pytest.raises(InputError) as refused:
        bare.encode_prompt("a sea")
    assert refused.value.code == "E-TEXT-ENCODER"


# Files


def test_a_repository_is_written_and_read(tmp_path):
    pipe = small.pipeline()
    pipe.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    again = ConsisIDPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again(**small.asked()).frames, pipe(**small.asked()).frames)
    ported = ConsisIDPipeline.from_pretrained(tmp_path, compat="diffusers")
    assert ported.compat == "diffusers"
    assert type(ported.scheduler) is type(pipe.scheduler)
    asked = small.asked(num_inference_steps=7)
    assert not torch.equal(again(**asked).frames, ported(**asked).frames)


@pytest.mark.unchecked
def test_an_unknown_compat_is_refused():
    parts = {**small.text_parts(), **small.parts(), "scheduler": small.pipeline().scheduler}
    with pytest.raises(InputError, match="E-COMPAT"):
        ConsisIDPipeline(**parts, compat="original")


def test_attention_by_a_kernel_of_choice(monkeypatch):
    network = small.pipeline().transformer
    assert network.attention_kernel(2, 52) == "torch sdpa"
    network.set_attention_backend("torch sdpa")
    for backend in ("sage", "flash 3", "no such"):
        with pytest.raises(InputError, match="E-ATTENTION-KERNEL"):
            network.set_attention_backend(backend)
    seen = []
    real = attention.choose
    monkeypatch.setattr(attention, "choose", lambda facts, name=None: seen.append(name) or real(facts, name))
    with torch.no_grad():
        network(small.latents(), small.text(), 500, **small.face())
        network.reset_attention_backend()
        network(small.latents(), small.text(), 500, **small.face())
    assert seen == ["torch sdpa"] * 4 + [None] * 4
