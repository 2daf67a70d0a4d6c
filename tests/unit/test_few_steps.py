"""Distilled models are known by their names, and their settings run a clip in as many evaluations as they say."""

from typing import Any

import pytest
import torch

import tiny_pia
from vivant.hub.header import Stored
from vivant.schedulers.few_steps import FewSteps, few_steps

KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
LORA = {f"unet.{KEY}.lora_A.weight": Stored("F16", (4, 768)), f"unet.{KEY}.lora_B.weight": Stored("F16", (320, 4))}
XL_LORA = {f"unet.{KEY}.lora_A.weight": Stored("F16", (4, 2048)), f"unet.{KEY}.lora_B.weight": Stored("F16", (640, 4))}
MOTION = {
    f"down_blocks.{i}.motion_modules.0.temporal_transformer.proj_in.weight": Stored("F16", (width, width))
    for i, width in enumerate((320, 640, 1280, 1280))
}
WHOLE = {"model.diffusion_model.input_blocks.0.0.weight": Stored("F16", (320, 4, 3, 3))}
TRAILING = {"timestep_spacing": "trailing"}
KNOWN: list[tuple[str, dict[str, Stored], FewSteps]] = [
    (
        "latent-consistency/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors",
        LORA,
        FewSteps("LCM-LoRA", "LCMScheduler", 4),
    ),
    ("~/models/LCM_LoRA_SD15.safetensors", LORA, FewSteps("LCM-LoRA", "LCMScheduler", 4)),
    ("lcm-lora-sd15_8steps.safetensors", LORA, FewSteps("LCM-LoRA", "LCMScheduler", 8)),
    ("h1t/TCD-SD15-LoRA/pytorch_lora_weights.safetensors", LORA, FewSteps("TCD-LoRA", "TCDScheduler", 4, eta=0.3)),
    (
        "AnimateLCM_sd15_t2v_lora.safetensors",
        LORA,
        FewSteps("AnimateLCM", "LCMScheduler", 6, 2.0, changes={"beta_schedule": "linear"}),
    ),
    (
        "wangfuyun/AnimateLCM/diffusion_pytorch_model.safetensors",
        MOTION,
        FewSteps("AnimateLCM", "LCMScheduler", 6, 2.0, changes={"beta_schedule": "linear"}),
    ),
    *(
        (
            f"ByteDance/AnimateDiff-Lightning/animatediff_lightning_{n}step_diffusers.safetensors",
            MOTION,
            FewSteps(
                "AnimateDiff-Lightning", "EulerDiscreteScheduler", n, changes={**TRAILING, "beta_schedule": "linear"}
            ),
        )
        for n in (1, 2, 4, 8)
    ),
    ("Hyper-SD15-1step-lora.safetensors", LORA, FewSteps("Hyper-SD", "TCDScheduler", 1, eta=1.0)),
    *(
        (
            f"Hyper-SD15-{n}steps-lora.safetensors",
            LORA,
            FewSteps("Hyper-SD", "DDIMScheduler", n, changes={**TRAILING, "clip_sample": False}),
        )
        for n in (2, 4, 8)
    ),
    *(
        (
            f"Hyper-SD15-{n}steps-CFG-lora.safetensors",
            LORA,
            FewSteps(
                "Hyper-SD, guidance preserved", "DDIMScheduler", n, 5.0, changes={**TRAILING, "clip_sample": False}
            ),
        )
        for n in (8, 12)
    ),
]
IDS = [name.rsplit("/", 1)[-1] for name, _, _ in KNOWN]
IDS[0], IDS[3], IDS[5] = "lcm", "tcd", "animatelcm"


@pytest.mark.parametrize(("name", "tensors", "wanted"), KNOWN, ids=IDS)
def test_published_files_are_known(name, tensors, wanted):
    assert few_steps(name, {}, tensors) == wanted
    *repo, file = name.split("/")
    assert few_steps(f"/cache/models--{'--'.join(repo)}/snapshots/0123abcd/{file}", {}, tensors) == wanted


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("detail.safetensors", LORA),
        ("/home/lcm/loras/detail.safetensors", LORA),  # somebody's name
        ("Hyper-SD15-4steps/detail.safetensors", LORA),
        ("lcm-lora-sdxl/pytorch_lora_weights.safetensors", XL_LORA),
        ("Hyper-SD15-4steps-lora.safetensors", XL_LORA),  # its name lies
        ("Hyper-SDXL-4steps-lora.safetensors", {}),
        ("Hyper-FLUX.1-dev-8steps-lora.safetensors", {}),
        ("ByteDance/Hyper-SD/Hyper-SD3-8steps-CFG-lora.safetensors", {}),
        ("stabilityai/sd-turbo", {}),
        ("dreamshaper_8LCM.safetensors", WHOLE),
        ("DreamShaper-LCM.safetensors", WHOLE),  # a whole model may want anything
        ("halcmyon.safetensors", LORA),
        ("v3_sd15_mm.ckpt", MOTION),
        ("white-lightning.safetensors", LORA),
        ("Hyper-SD15-4steps-lora.safetensors", MOTION),
    ],
)
def test_other_files_are_not(name, tensors):
    assert few_steps(name, {}, tensors) is None


@pytest.mark.parametrize("key", ["modelspec.title", "ss_output_name"])
def test_a_renamed_file_is_known_by_its_title(key):
    assert few_steps("fast.safetensors", {key: "Hyper-SD15-4steps-lora"}, LORA) == KNOWN[-4][2]
    assert few_steps("fast.safetensors", {"description": "faster than lcm"}, LORA) is None


def test_hostile_titles_cost_nothing():
    title = "\x1b[31m" + "lcm " * 10**6 + "9" * 10**6 + " steps"
    assert few_steps("a.safetensors", {"modelspec.title": title}, LORA) is None
    assert few_steps("lcm 99 steps", {}, LORA) == FewSteps("LCM-LoRA", "LCMScheduler", 4)
    assert few_steps("lcm 0 steps", {}, LORA) == FewSteps("LCM-LoRA", "LCMScheduler", 4)


def test_sentences():
    assert str(KNOWN[3][2]) == "TCD-LoRA wants TCDScheduler, 4 steps, guidance 1, eta 0.3."
    doubtful = few_steps("hyper-sd15-lora.safetensors", {}, LORA)
    assert str(doubtful) == (
        "Hyper-SD wants DDIMScheduler, 8 steps, guidance 1. Its name does not say for how many steps it is."
    )
    assert str(KNOWN[10][2]) == "Hyper-SD wants TCDScheduler, 1 step, guidance 1, eta 1."


@pytest.mark.parametrize("wanted", {str(w): w for _, _, w in KNOWN}.values(), ids=lambda w: f"{w.model}-{w.steps}")
def test_a_clip_takes_the_steps_that_were_promised(wanted):
    """On the PIA preset's configuration; guidance costs nothing where it is 1."""
    pipe: Any = tiny_pia.pipeline()
    pipe.scheduler = wanted.scheduler_for(pipe.scheduler.config)
    batches: list[int] = []
    hook = pipe.unet.conv_out.register_forward_pre_hook(lambda _, args: batches.append(len(args[0]) // tiny_pia.FRAMES))
    try:
        latents = tiny_pia.run(
            pipe,
            num_inference_steps=wanted.steps,
            guidance_scale=wanted.guidance,
            eta=wanted.eta,
            negative_prompt="dark" if wanted.guidance > 1 else None,
        )
    finally:
        hook.remove()
    assert torch.isfinite(latents).all()
    assert batches == [2 if wanted.guidance > 1 else 1] * wanted.steps
    assert pipe.scheduler.config.beta_schedule == "linear"
