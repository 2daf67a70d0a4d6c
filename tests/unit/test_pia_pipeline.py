"""PIAPipeline: its arguments, batches and outputs, beyond what the port can show."""

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tiny
from tiny_pia import FRAMES, HEIGHT, WIDTH, arguments, base, picture, pipeline, run, seeded, unet, vae
from tolerances import Tolerance, assert_parity, relative_l2
from vivant.errors import InputError, OutputError, VivantWarning
from vivant.pia.freeu import FreeU
from vivant.pipelines.pia import PIAPipeline
from vivant.request import PIARequest
from vivant.schedulers import DDIMScheduler, EulerDiscreteScheduler, UnknownScheduler
from vivant.text.clip import encode
from vivant.vae.image import AutoencoderKL

SAME = Tolerance(peak=1e-5, l2=1e-5)
SHAPE = (4, FRAMES, HEIGHT // 8, WIDTH // 8)
PROMPTS = ["a cat", "a field in the photo", "running"]
NEGATIVES = ["dark", "the photo of a field", "walking"]


@pytest.fixture
def pipe() -> PIAPipeline:
    return pipeline()


def euler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler.from_config(tiny.SCHEDULER)


# ---------------------------------------------------------------------------------------------------- batches


def test_clip_b_n_k_is_the_single_run_with_its_generator(pipe):
    """Every generator of the list makes its own clip, whatever else is in the batch."""
    n = 2
    together = run(
        pipe,
        image=picture(num=2),
        prompt=PROMPTS[:2],
        negative_prompt=NEGATIVES[:2],
        num_videos_per_prompt=n,
        generator=[seeded(s) for s in range(4)],
    )
    assert together.shape == (4, *SHAPE)
    for b in range(2):
        for k in range(n):
            given = {"image": picture(num=2)[b], "prompt": PROMPTS[b], "negative_prompt": NEGATIVES[b]}
            alone = run(pipe, generator=seeded(b * n + k), **given)
            assert_parity(together[b * n + k][None], alone, SAME)
    assert min(relative_l2(together[i], together[j]) for i in range(4) for j in range(i)) > 0.05


@pytest.mark.parametrize("counts", [(1, 3, 1), (3, 1, 1), (1, 1, 3), (3, 3, 1), (1, 3, 3)])
def test_pictures_prompts_and_negatives_broadcast(pipe, counts):
    images, prompts, negatives = counts
    given = {"num_inference_steps": 1}
    together = run(
        pipe,
        image=picture(num=3)[:images],
        prompt=PROMPTS[:prompts],
        negative_prompt=NEGATIVES[:negatives],
        generator=[seeded(s) for s in range(3)],
        **given,
    )
    for b in range(3):
        own = {
            "image": picture(num=3)[b % images],
            "prompt": PROMPTS[b % prompts],
            "negative_prompt": NEGATIVES[b % negatives],
        }
        assert_parity(together[b][None], run(pipe, generator=seeded(b), **own, **given), SAME)


@pytest.mark.parametrize("num", [2, 3, 4])
def test_strength_with_several_prompts(pipe, num):
    """Where the port crashes (2 and 3 prompts) or is silently wrong (4)."""
    pictures, prompts = picture(num=num), [*PROMPTS, "photo"][:num]
    given = {"strength": 0.5, "num_inference_steps": 4}
    together = run(pipe, image=pictures, prompt=prompts, generator=[seeded(s) for s in range(num)], **given)
    for b in range(num):
        assert_parity(
            together[b][None], run(pipe, image=pictures[b], prompt=prompts[b], generator=seeded(b), **given), SAME
        )


def test_one_generator_draws_for_the_whole_batch(pipe):
    """The first noise is (b, …) in one draw: clip 0 of two has that of a single clip, clip 1 what follows it."""
    generator = seeded()
    noise = torch.randn(2, *SHAPE, generator=generator)
    given = {"prompt": PROMPTS[:2], "num_inference_steps": 1}
    assert torch.equal(run(pipe, latents=noise, generator=generator, **given), run(pipe, **given))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"image": picture(num=2), "prompt": PROMPTS}, "E-BATCH"),
        ({"image": picture(num=2), "negative_prompt": NEGATIVES}, "E-BATCH"),
        ({"prompt": PROMPTS[:2], "negative_prompt": NEGATIVES}, "E-BATCH"),
        ({"prompt": []}, "E-PROMPT-TYPE"),
        ({"image": []}, "E-IMAGE-NONE"),
        ({"prompt": PROMPTS, "generator": [seeded()] * 2}, "E-GENERATORS"),
        ({"num_videos_per_prompt": 2, "generator": [seeded()]}, "E-GENERATORS"),
        ({"generator": 7}, "E-GENERATORS"),
        ({"num_videos_per_prompt": 0}, "E-NUM-VIDEOS"),
        ({"strength": 0}, "E-STRENGTH"),
        ({"strength": 1.01}, "E-STRENGTH"),
        ({"strength": float("nan")}, "E-STRENGTH"),
        ({"strength": 0.4}, "E-STRENGTH-STEPS"),
        ({"eta": 2.0}, "E-ETA"),
        ({"guidance_scale": float("inf")}, "E-GUIDANCE"),
        ({"image_guidance_scale": -1}, "E-GUIDANCE"),
        ({"num_inference_steps": 0}, "E-STEPS"),
        ({"num_frames": 33}, "E-FRAMES-MAX"),
        ({"num_frames": 0}, "E-FRAMES"),
        ({"height": 0}, "E-SIZE"),
        ({"width": 100}, "E-SIZE"),
        ({"clip_skip": 3}, "E-CLIP-SKIP"),
        ({"clip_skip": -1}, "E-CLIP-SKIP"),
        ({"motion_scale": 9}, "E-MOTION-NUMBER"),
        ({"motion_scale": 1.5}, "E-MOTION-NUMBER"),
        ({"motion": "animate:small", "motion_scale": 2}, "E-MOTION-TWICE"),
        ({"cond_frame": FRAMES}, "E-MOTION-COND-FRAME"),
        ({"fit": "fill"}, "E-FIT"),
        ({"output_type": "gif"}, "E-OUTPUT-TYPE"),
        ({"output_type": None}, "E-OUTPUT-TYPE"),
        ({"ip_adapter_image": picture()}, "E-IP-ADAPTER"),
        ({"ip_adapter_image_embeds": [torch.zeros(1, 1, 8)]}, "E-IP-ADAPTER"),
        ({"cross_attention_kwargs": {"scale": 1.0, "gligen": {}}}, "E-CROSS-ATTENTION"),
        ({"cross_attention_kwargs": {1: 2}}, "E-CROSS-ATTENTION"),
        ({"cross_attention_kwargs": {1: 2, "gligen": {}}}, "E-CROSS-ATTENTION"),
        ({"cross_attention_kwargs": ["scale"]}, "E-CROSS-ATTENTION"),
        ({"prompt": None}, "E-PROMPT-NONE"),
        *(({name: 5}, "E-PROMPT-TYPE") for name in ("prompt", "negative_prompt")),
        *(({name: {"a": "b"}}, "E-PROMPT-TYPE") for name in ("prompt", "negative_prompt")),
        ({"prompt_embeds": torch.zeros(1, 77, tiny.TEXT_DIM)}, "E-PROMPT-TWICE"),
        ({"negative_prompt_embeds": torch.zeros(1, 77, tiny.TEXT_DIM)}, "E-PROMPT-TWICE"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 77, 8)}, "E-PROMPT-EMBEDS-SHAPE"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 9, tiny.TEXT_DIM)}, "E-PROMPT-EMBEDS-SHAPE"),
        ({"prompt": None, "prompt_embeds": 5}, "E-PROMPT-EMBEDS-SHAPE"),
        ({"prompt": None, "prompt_embeds": torch.tensor(1.0)}, "E-PROMPT-EMBEDS-SHAPE"),
        ({"negative_prompt": None, "negative_prompt_embeds": 5}, "E-PROMPT-EMBEDS-SHAPE"),
        ({"latents": torch.zeros(2, *SHAPE)}, "E-LATENTS-SHAPE"),
        ({"latents": torch.zeros(1, 4, 6, 10)}, "E-LATENTS-SHAPE"),
        ({"latents": np.zeros((1, *SHAPE))}, "E-LATENTS-SHAPE"),
        ({"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["mask"]}, "E-CALLBACK-INPUTS"),
        ({"callback_on_step_end": 5}, "E-CALLBACK-TYPE"),
    ],
)
@pytest.mark.unchecked
def test_refused_before_anything_is_drawn_or_predicted(pipe, monkeypatch, changes, code):
    monkeypatch.setattr(pipe.unet, "predict", None)
    given = arguments(**changes)
    before = seeded().get_state()
    with pytest.raises(InputError) as refusal:
        pipe(**given)
    assert refusal.value.code == code
    if isinstance(given["generator"], torch.Generator):
        assert torch.equal(given["generator"].get_state(), before)


# ---------------------------------------------------------------------------------------------------- latents


def test_given_latents_take_the_place_of_the_first_draw(pipe):
    generator = seeded()
    noise = torch.randn(1, *SHAPE, generator=generator)
    assert torch.equal(run(pipe, latents=noise, generator=generator), run(pipe))
    assert not torch.equal(run(pipe, latents=noise * 0.5, generator=seeded()), run(pipe))


def test_given_latents_are_the_noise_of_strength(pipe):
    generator, picture_only = seeded(), seeded()
    torch.randn(1, *SHAPE, generator=generator)
    picture_only.set_state(generator.get_state())
    torch.randn(1, 4, *SHAPE[2:], generator=generator)  # the posterior of the picture
    second = torch.randn(1, *SHAPE, generator=generator)
    assert torch.equal(run(pipe, strength=0.5, latents=second, generator=picture_only), run(pipe, strength=0.5))


# ------------------------------------------------------------------------------------- arguments that do little


def test_eta_of_a_solver_without_it_warns_once_and_is_noted():
    pipe = pipeline(euler())
    with pytest.warns(VivantWarning, match="W-ETA-IGNORED"):
        first = run(pipe, eta=0.5)
    again = run(pipe, eta=0.5)  # a second warning would be an error here
    assert torch.equal(first, run(pipe))
    assert torch.equal(first, again)
    assert sum("W-ETA-IGNORED" in note for note in pipe.notes) == 1


def test_eta_of_ddim_acts(pipe):
    assert relative_l2(run(pipe, eta=1.0), run(pipe)) > 0.01


def test_a_negative_prompt_without_guidance_warns_once_and_changes_nothing(pipe):
    with pytest.warns(VivantWarning, match="W-NEGATIVE-UNUSED"):
        first = run(pipe, guidance_scale=1.0)
    again = run(pipe, guidance_scale=0.3)
    assert torch.equal(first, run(pipe, guidance_scale=1.0, negative_prompt=None))
    assert torch.equal(first, again)
    assert sum("W-NEGATIVE-UNUSED" in note for note in pipe.notes) == 1


def test_a_negative_prompt_that_is_not_read_has_no_say(pipe):
    """Neither in the size of the batch, nor in the notes when it is empty."""
    given = {"guidance_scale": 1.0, "num_inference_steps": 1}
    plain = run(pipe, negative_prompt=None, **given)
    assert torch.equal(run(pipe, negative_prompt="", **given), plain)
    assert pipe.notes == []
    with pytest.warns(VivantWarning, match="W-NEGATIVE-UNUSED"):
        several = run(pipe, negative_prompt=NEGATIVES, **given)
    assert torch.equal(several, plain)
    embeds = torch.zeros(3, 77, tiny.TEXT_DIM)
    assert torch.equal(run(pipe, negative_prompt=None, negative_prompt_embeds=embeds, **given), plain)


def test_cross_attention_scale_is_for_layers_that_are_not_there(pipe):
    plain = run(pipe, cross_attention_kwargs={"scale": 1.0})
    with pytest.warns(VivantWarning, match="W-LORA-NONE"):
        scaled = run(pipe, cross_attention_kwargs={"scale": 0.5})
    assert torch.equal(plain, scaled)
    assert pipe.cross_attention_kwargs == {"scale": 0.5}


def test_clip_skip_reaches_both_prompts(pipe):
    def embeds(text: str, skip: int | None) -> torch.Tensor:
        return encode(pipe.tokenizer, pipe.text_encoder, [text], skip)

    def given(skip: int | None, negative_skip: int | None) -> torch.Tensor:
        both = {"prompt_embeds": embeds("a cat", skip), "negative_prompt_embeds": embeds("dark", negative_skip)}
        return run(pipe, prompt=None, negative_prompt=None, **both)

    skipped = run(pipe, prompt="a cat", negative_prompt="dark", clip_skip=1)
    assert torch.equal(skipped, given(1, 1))
    assert not torch.equal(skipped, given(1, None))
    assert not torch.equal(skipped, given(None, 1))
    assert torch.equal(run(pipe, prompt="a cat", negative_prompt="dark"), given(None, None))
    with pytest.warns(VivantWarning, match="W-CLIP-SKIP-UNUSED"):
        run(pipe, prompt=None, prompt_embeds=embeds("a cat", 1), clip_skip=1)
    ready = {"prompt": None, "prompt_embeds": embeds("a cat", None), "negative_prompt": None}
    run(pipe, **ready, prompt_syntax="weighted")  # for the negative prompt it is read
    with pytest.warns(VivantWarning, match="W-PROMPT-SYNTAX-UNUSED"):
        run(pipe, **ready, negative_prompt_embeds=embeds("dark", None), prompt_syntax="weighted")


def test_an_unfit_noise_schedule_warns_once():
    pipe = pipeline(DDIMScheduler.from_config({**tiny.SCHEDULER, "beta_schedule": "scaled_linear"}))
    with pytest.warns(VivantWarning, match="W-SOLVER-BETAS"):
        run(pipe)
    run(pipe)
    pipe.scheduler = DDIMScheduler.from_config({**tiny.SCHEDULER, "clip_sample": True})
    with pytest.warns(VivantWarning, match="W-SOLVER-CLIP"):
        run(pipe)


def test_a_scheduler_that_is_missing_refuses_on_use(pipe):
    pipe.scheduler = UnknownScheduler.from_config({**tiny.SCHEDULER, "_class_name": "DEISMultistepScheduler"})
    with pytest.raises(InputError, match="E-SCHEDULER-UNKNOWN"):
        run(pipe)


# ---------------------------------------------------------------------------------------------------- outputs


def test_sizes_come_from_the_network_by_default(pipe):
    frames = run(pipe, height=None, width=None, num_frames=None, num_inference_steps=1)
    assert frames.shape == (1, 4, 16, 8, 8)


def test_forms_of_the_output(pipe):
    result = pipe(**arguments())
    assert torch.equal(result[0], result.frames)
    assert torch.equal(result["frames"], result.frames)
    (unpacked,) = result
    assert torch.equal(unpacked, result.to_tuple()[0])
    with pytest.raises(KeyError):
        result["videos"]
    plain = pipe(**arguments(return_dict=False))
    assert type(plain) is tuple
    assert len(plain) == 1
    assert torch.equal(plain[0], result.frames)


def test_kinds_of_frames_agree(pipe):
    given = {"prompt": PROMPTS[:2], "num_videos_per_prompt": 2}
    pt, arrays, pil = (run(pipe, output_type=kind, **given) for kind in ("pt", "np", "pil"))
    assert pt.shape == (4, FRAMES, 3, HEIGHT, WIDTH)
    assert pt.min() >= 0
    assert pt.max() <= 1
    assert arrays.shape == (4, FRAMES, HEIGHT, WIDTH, 3)
    assert np.array_equal(arrays, pt.permute(0, 1, 3, 4, 2).numpy())
    assert [len(clip) for clip in pil] == [FRAMES] * 4
    assert all(isinstance(frame, Image.Image) and frame.size == (WIDTH, HEIGHT) for clip in pil for frame in clip)
    assert np.array_equal(np.stack([np.stack(clip) for clip in pil]), (arrays * 255).round().astype(np.uint8))


def broken_vae(bias: float) -> AutoencoderKL:
    """One that decodes everything to the same colour."""
    broken = copy.deepcopy(vae())
    with torch.no_grad():
        broken.decoder.conv_out.weight.zero_()
        broken.decoder.conv_out.bias.fill_(bias)
    return broken


@pytest.mark.parametrize(("bias", "code"), [(0.2, "W-OUTPUT-FROZEN"), (-3.0, "W-OUTPUT-BLACK")])
@pytest.mark.parametrize("kind", ["pil", "pt"])
def test_frozen_and_black_clips_are_reported(bias, code, kind):
    pipe = pipeline(vae=broken_vae(bias))
    with pytest.warns(VivantWarning, match=code):
        run(pipe, output_type=kind, num_inference_steps=1)
    assert any(code in note for note in pipe.notes)


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
def test_broken_numbers_are_never_handed_out(pipe, kind):
    embeds = torch.full((1, 77, tiny.TEXT_DIM), float("nan"))
    given = {"prompt": None, "prompt_embeds": embeds, "output_type": kind, "num_inference_steps": 1}
    with pytest.raises(OutputError, match=r"E-OUTPUT-NAN.*latents"):
        run(pipe, **given)
    if kind != "latent":
        with pytest.raises(OutputError, match=r"E-OUTPUT-NAN.*frames"):
            run(pipeline(vae=broken_vae(float("nan"))), output_type=kind, num_inference_steps=1)


# --------------------------------------------------------------------------------------------------- pictures


def test_every_kind_of_picture_gives_the_same_clip(pipe):
    pixels = torch.randint(0, 256, (HEIGHT, WIDTH, 3), generator=seeded(), dtype=torch.uint8).numpy()
    floats = pixels.astype(np.float32) / 255
    tensor = torch.from_numpy(floats).permute(2, 0, 1)
    kinds: list[Any] = [Image.fromarray(pixels), pixels, [floats], tensor[None]]
    clips = [run(pipe, image=kind, num_inference_steps=1) for kind in kinds]
    assert all(torch.equal(clip, clips[0]) for clip in clips)
    assert not torch.equal(run(pipe, num_inference_steps=1), clips[0])


def test_a_picture_of_another_shape_is_fitted_as_asked(pipe):
    wide = Image.fromarray((picture()[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)).resize((200, 60))
    clips = [run(pipe, image=wide, fit=fit, num_inference_steps=1) for fit in ("crop", "pad", "stretch")]
    assert torch.equal(clips[0], run(pipe, image=wide, num_inference_steps=1))
    assert min(relative_l2(clips[i], clips[j]) for i in range(3) for j in range(i)) > 1e-3
    stretched = wide.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    assert torch.equal(clips[2], run(pipe, image=stretched, num_inference_steps=1))


# ------------------------------------------------------------------------------------------ switches and parts


def sizes_seen(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that a module is called with from now on."""
    seen: list[tuple[int, ...]] = []
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda x: seen.append(tuple(x.shape)) or forward(x))
    return seen


def test_vae_switches_act(pipe, monkeypatch):
    seen = sizes_seen(pipe.vae.decoder, monkeypatch)
    latents = run(pipe)

    def decoded() -> torch.Tensor:
        seen.clear()
        return run(pipe, output_type="pt")

    whole = decoded()
    assert [shape[0] for shape in seen] == [2, 1]
    pipe.enable_vae_slicing()
    sliced = decoded()
    assert [shape[0] for shape in seen] == [1, 1, 1]
    pipe.disable_vae_slicing()
    pipe.enable_vae_tiling()
    tiled = decoded()
    assert max(shape[3] for shape in seen) == 8 < latents.shape[-1]
    pipe.disable_vae_tiling()
    assert torch.equal(decoded(), whole)
    assert [shape[0] for shape in seen] == [2, 1]
    assert_parity(sliced, whole, SAME)
    assert 1e-3 < relative_l2(tiled, whole) < 0.5


@pytest.mark.parametrize("switch", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_without_an_accelerator_runs_on_the_cpu_and_says_so(pipe, switch):
    plain = run(pipe)
    with pytest.warns(VivantWarning, match="W-OFFLOAD-CPU"):
        getattr(pipe, switch)(device="cpu")
    getattr(pipe, switch)(device="cpu")
    assert torch.equal(run(pipe), plain)
    assert sum("W-OFFLOAD-CPU" in note for note in pipe.notes) == 1


def test_the_progress_bar_is_configured(pipe, capsys):
    run(pipe)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(desc="Moving", leave=True)
    run(pipe, num_inference_steps=3)
    shown = capsys.readouterr().err
    assert "Moving" in shown
    assert "3/3" in shown
    with pipe.progress_bar(total=2) as bar:
        bar.update(2)
    assert "2/2" in capsys.readouterr().err


def test_components_make_a_second_pipeline(pipe):
    plain = run(pipe)
    second = PIAPipeline(**pipe.components)
    third = PIAPipeline.from_pipe(pipe, scheduler=euler())
    for other in (second, third):
        other.set_progress_bar_config(disable=True)
        assert other.unet is pipe.unet
        assert other.vae is pipe.vae
    assert torch.equal(run(second), plain)
    assert type(third.scheduler) is EulerDiscreteScheduler
    assert type(pipe.scheduler) is DDIMScheduler
    third.scheduler = pipe.scheduler
    assert torch.equal(run(third), plain)
    assert pipe.components["motion_adapter"] is None


def test_components_in_place_of_those_on_disk(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    plain = run(pipe)
    same = PIAPipeline.from_pretrained(tmp_path)
    other = PIAPipeline.from_pretrained(tmp_path, unet=unet("original"), scheduler=euler())
    for loaded in (same, other):
        loaded.set_progress_bar_config(disable=True)
    assert torch.equal(run(same), plain)
    assert (same.numerics, other.numerics) == ("diffusers", "original")
    assert type(other.scheduler) is EulerDiscreteScheduler
    other.scheduler = same.scheduler
    assert relative_l2(run(other), plain) > 1e-3
    with pytest.raises(InputError, match="E-NUMERICS"):
        PIAPipeline.from_pretrained(tmp_path, unet=unet("original"), numerics="diffusers")


def test_a_base_without_motion_modules_needs_an_adapter():
    with pytest.raises(InputError, match="E-ADAPTER-NONE"):
        pipeline(unet=base())


def test_half_precision_in_place(pipe):
    plain = run(pipe, num_inference_steps=1)
    pipe = pipeline(**{name: copy.deepcopy(pipe.components[name]) for name in ("vae", "unet", "text_encoder")})
    assert pipe.to(torch.bfloat16) is pipe
    assert pipe.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == torch.bfloat16
    latents = run(pipe, num_inference_steps=1)
    assert latents.dtype == torch.bfloat16
    assert 1e-4 < relative_l2(latents, plain) < 0.05
    assert run(pipe, output_type="pt", num_inference_steps=1).dtype == torch.float32


def test_freeu_on_the_pipeline_or_on_the_network(pipe):
    plain = run(pipe)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    changed = run(pipe)
    pipe.disable_freeu()
    assert relative_l2(changed, plain) > 1e-3
    assert torch.equal(run(pipe), plain)
    pipe.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    assert torch.equal(run(pipe), changed)
    pipe.unet.disable_freeu()
    request = PIARequest(num_frames=FRAMES, height=HEIGHT, width=WIDTH, num_inference_steps=1, freeu=FreeU(1, 1, 2, 2))
    pipe.denoise(request, picture(), seeded())
    assert pipe.unet.freeu is None


def test_free_init_is_switched(pipe):
    assert not pipe.free_init_enabled
    pipe.enable_free_init()
    assert pipe.free_init_enabled
    given = {"num_inference_steps": 2}
    refined = run(pipe, **given)
    assert pipe.num_timesteps == 6
    pipe.disable_free_init()
    assert relative_l2(refined, run(pipe, **given)) > 0.05
    assert pipe.num_timesteps == 2
    with pytest.raises(InputError, match="E-FREEINIT-ITERATIONS"):
        pipe.enable_free_init(num_iters=0)


# ---------------------------------------------------------------------------------------------------- prompts


def test_encode_prompt_is_what_a_call_does(pipe):
    positive, negative = pipe.encode_prompt("a cat", negative_prompt="dark")
    assert positive.shape == negative.shape == (1, 77, tiny.TEXT_DIM)
    given = {"prompt": None, "negative_prompt": None}
    ready = run(pipe, prompt_embeds=positive, negative_prompt_embeds=negative, **given)
    assert torch.equal(ready, run(pipe, prompt="a cat", negative_prompt="dark"))
    assert pipe.encode_prompt("a cat", "cpu", 1, False)[1] is None


@pytest.mark.unchecked
@pytest.mark.parametrize("prompt", [5, {"a": "b"}, ["a", 5], b"a"])
def test_encode_prompt_of_what_is_no_text(pipe, prompt):
    with pytest.raises(InputError, match=r"E-PROMPT-TYPE.*prompt is"):
        pipe.encode_prompt(prompt)
    with pytest.raises(InputError, match=r"E-PROMPT-TYPE.*negative_prompt is"):
        pipe.encode_prompt("a cat", negative_prompt=prompt)


@pytest.mark.parametrize("names", [("text_encoder", "tokenizer"), ("text_encoder",), ("tokenizer",)])
def test_ready_embeddings_need_no_text_encoder(pipe, tmp_path, names):
    positive, negative = pipe.encode_prompt("a cat", negative_prompt="dark")
    ready = {"prompt": None, "negative_prompt": None, "prompt_embeds": positive}
    both = {**ready, "negative_prompt_embeds": negative}
    bare = pipeline(**dict.fromkeys(names))
    assert torch.equal(run(bare, **both), run(pipe, **both))
    assert torch.equal(run(bare, guidance_scale=1.0, **ready), run(pipe, guidance_scale=1.0, **ready))
    for given in ({}, ready):
        with pytest.raises(InputError, match="E-TEXT-ENCODER"):
            run(bare, **given)
    bare.save_pretrained(tmp_path)
    again = PIAPipeline.from_pretrained(tmp_path)
    assert [name for name, part in again.components.items() if part is None][: len(names)] == list(names)


def test_encode_prompt_repeats_and_broadcasts(pipe):
    positive, negative = pipe.encode_prompt(PROMPTS[:2], num_images_per_prompt=3)
    assert positive.shape == negative.shape == (6, 77, tiny.TEXT_DIM)
    assert torch.equal(positive[:3], positive[:1].expand(3, -1, -1))
    assert not torch.equal(positive[2], positive[3])
    positive, negative = pipe.encode_prompt("a cat", negative_prompt=NEGATIVES)
    assert positive.shape == negative.shape == (3, 77, tiny.TEXT_DIM)
    with pytest.raises(InputError, match="E-BATCH"):
        pipe.encode_prompt(PROMPTS[:2], negative_prompt=NEGATIVES)
    with pytest.raises(InputError, match="E-PROMPT-NONE"):
        pipe.encode_prompt(None)


def test_a_prompt_that_is_too_long_is_noted(pipe):
    with pytest.warns(VivantWarning, match="W-PROMPT-TRUNCATED"):
        run(pipe, prompt="cat " * 100, num_inference_steps=1)
    assert any("W-PROMPT-TRUNCATED" in note for note in pipe.notes)


@pytest.mark.parametrize("prompt", ["", "🐈 " * 5, "قطة في حقل", "ca\u0301t\n\t"])
def test_odd_prompts_work(pipe, prompt):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VivantWarning)
        assert torch.isfinite(run(pipe, prompt=prompt, num_inference_steps=1)).all()


def test_the_state_of_a_run_can_be_read(pipe):
    run(pipe, guidance_scale=4.0, clip_skip=1, image_guidance_scale=2.0)
    assert (pipe.guidance_scale, pipe.clip_skip, pipe.image_guidance_scale, pipe.num_timesteps) == (4.0, 1, 2.0, 2)
    assert pipe.do_classifier_free_guidance
    run(pipe, guidance_scale=1.0, negative_prompt=None)
    assert not pipe.do_classifier_free_guidance
    assert (pipe.clip_skip, pipe.image_guidance_scale) == (None, None)
