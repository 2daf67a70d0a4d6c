"""Whole runs of ConsisID against diffusers."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.consisid import pipeline_consisid as port
from PIL import Image

import tiny
import tiny_consisid as small
from tolerances import TRAJECTORY, assert_parity
from vivant.consisid.keypoints import draw_points

POINTS = [[18.0, 20.0], [40.0, 21.0], [29.0, 30.0], [20.0, 41.0], [38.0, 42.0]]


def port_pipeline(scheduler: str = "CogVideoXDPMScheduler", **changes):
    """diffusers' pipeline with our weights."""
    parts = small.parts(**changes)
    vae = diffusers.AutoencoderKLCogVideoX.from_config(small.VAE)
    vae.load_state_dict(parts["vae"].state_dict())
    transformer = diffusers.ConsisIDTransformer3DModel.from_config({**small.TRANSFORMER, **changes})
    transformer.load_state_dict(parts["transformer"].state_dict())
    solver = getattr(diffusers, scheduler).from_config(small.SCHEDULER)
    pipe = port.ConsisIDPipeline(**small.text_parts(), vae=vae.eval(), transformer=transformer.eval(), scheduler=solver)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def shared(**changes):
    """Arguments that both take."""
    return small.asked(height=48, width=80, **changes)


@pytest.mark.parametrize(
    "changes", [{}, {"use_dynamic_cfg": True}, {"guidance_scale": 1.0}, {"num_inference_steps": 7}]
)
@pytest.mark.parametrize("scheduler", ["CogVideoXDPMScheduler", "CogVideoXDDIMScheduler"])
def test_a_run_equals_the_port(scheduler, changes):
    theirs = port_pipeline(scheduler)
    ours = small.pipeline("diffusers")
    ours.scheduler = theirs.scheduler
    expected = theirs(**shared(**changes)).frames
    found = ours(**shared(**changes)).frames
    assert_parity(found, expected, TRAJECTORY)
    latents = theirs(**shared(**changes, output_type="latent")).frames
    assert_parity(ours(**shared(**changes, output_type="latent")).frames, latents, TRAJECTORY)


def test_key_points_stand_on_the_second_frame(monkeypatch):
    def drawn(image, points):
        return draw_points(np.array(points), *image.size)

    monkeypatch.setattr(port, "draw_kps", drawn)
    theirs = port_pipeline(is_kps=True)(**shared(kps_cond=POINTS, output_type="latent")).frames
    ours = small.pipeline("diffusers", is_kps=True)(**shared(kps_cond=POINTS, output_type="latent")).frames
    assert_parity(ours, theirs, TRAJECTORY)
    without = small.pipeline("diffusers", is_kps=True)(**shared(output_type="latent")).frames
    assert not torch.allclose(ours, without, atol=1e-2)


def test_key_points_are_drawn_as_by_the_port():
    points = np.array([[180.0, 200.0], [330.0, 205.0], [250.0, 290.0], [195.0, 370.0], [320.0, 380.0]])
    theirs = np.asarray(port.draw_kps(Image.new("RGB", (512, 480)), points), dtype=int)
    ours = np.asarray(draw_points(points, 512, 480), dtype=int)
    differs = (abs(ours - theirs).max(axis=2) > 8).sum()
    drawn = (theirs.max(axis=2) > 0).sum()
    assert drawn > 4000
    assert differs < 0.05 * drawn  # the edges of polygons and circles, which every library rounds differently


def test_given_latents_and_prompts_equal_the_port():
    embeds, negative = tiny.noise(1, 7, 28, seed=20), tiny.noise(1, 7, 28, seed=21)
    given = {"prompt": None, "prompt_embeds": embeds, "negative_prompt_embeds": negative}
    latents = tiny.noise(1, 3, 4, 6, 10, seed=22)
    expected = port_pipeline()(**shared(**given, latents=latents)).frames
    assert_parity(small.pipeline("diffusers")(**shared(**given, latents=latents)).frames, expected, TRAJECTORY)


def test_callbacks_see_and_change_what_the_port_s_do():
    def louder(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), sorted(tensors)))
        return {"latents": tensors["latents"] * 1.1} if step == 1 else tensors

    results, lists = [], []
    for pipe in (port_pipeline(), small.pipeline("diffusers")):
        seen = []
        names = ["latents", "prompt_embeds"]
        call = shared(callback_on_step_end=louder, callback_on_step_end_tensor_inputs=names, output_type="latent")
        results.append(pipe(**call).frames)
        lists.append(seen)
    assert lists[0] == lists[1]
    assert_parity(results[1], results[0], TRAJECTORY)
