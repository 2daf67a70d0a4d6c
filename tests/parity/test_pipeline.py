"""PIAPipeline against diffusers': the same repository, the same seed, the whole trajectory."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import tiny
import tiny_repo
from tolerances import TRAJECTORY, assert_parity
from vivant import schedulers
from vivant.errors import InputError
from vivant.pia.motion import MotionAdapter
from vivant.pipelines.pia import PIAPipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore::vivant.errors.VivantWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
F, H, W = tiny.FRAMES, 8 * tiny.HEIGHT, 8 * tiny.WIDTH
SOLVERS = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("repositories")
    return tiny_repo.write_base(root / "base"), tiny_repo.write_adapter(root / "adapter")


@pytest.fixture(scope="module")
def port(folders):
    base, adapter = folders
    pipe = diffusers.PIAPipeline.from_pretrained(
        base, motion_adapter=diffusers.MotionAdapter.from_pretrained(adapter), safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def ours(folders):
    base, adapter = folders
    pipe = PIAPipeline.from_pretrained(base, motion_adapter=MotionAdapter.from_pretrained(adapter))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(seed: int = 5) -> torch.Tensor:
    return torch.rand(1, 3, H, W, generator=torch.Generator().manual_seed(seed))


def arguments(**changes):
    return {
        "image": picture(),
        "prompt": "a cat in a field",
        "negative_prompt": "dark, sketches",
        "num_frames": F,
        "height": H,
        "width": W,
        "num_inference_steps": 10,
        "output_type": "latent",
        **changes,
    }


def run(pipe, seed: int = 3, **changes):
    generator = torch.Generator().manual_seed(seed)
    frames = pipe(**arguments(generator=generator, **changes)).frames
    return frames, generator.get_state()


def both(port, ours, **changes):
    (theirs, their_state), (mine, my_state) = run(port, **changes), run(ours, **changes)
    assert torch.equal(their_state, my_state), "another number of random draws"
    return mine, theirs


def set_solver(port, ours, name: str, **changes):
    config = {**tiny.SCHEDULER, **changes}
    port.scheduler = getattr(diffusers, name).from_config(config)
    ours.scheduler = getattr(schedulers, name).from_config(config)


@pytest.mark.parametrize("name", SOLVERS)
def test_trajectory_of_every_solver(port, ours, name):
    spacing = "linspace" if name in ("LCMScheduler",) else "leading"
    set_solver(port, ours, name, timestep_spacing=spacing)
    assert_parity(*both(port, ours), TRAJECTORY)


@pytest.mark.parametrize("guidance", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("scale", [1, 4, 8])
def test_guidance_and_motion(port, ours, guidance, scale):
    set_solver(port, ours, "DDIMScheduler")
    frames = 16 if scale == 4 else F  # loops of the port close at 16 frames only
    changes = {"guidance_scale": guidance, "motion_scale": scale, "num_frames": frames, "num_inference_steps": 3}
    assert_parity(*both(port, ours, **changes), TRAJECTORY)


def test_eta_draws_fresh_noise_like_the_port(port, ours):
    set_solver(port, ours, "DDIMScheduler")
    assert_parity(*both(port, ours, eta=0.7), TRAJECTORY)


@pytest.mark.parametrize("method", ["butterworth", "gaussian", "ideal"])
@pytest.mark.parametrize("fast", [False, True])
def test_freeinit_where_the_port_is_right(port, ours, method, fast):
    set_solver(port, ours, "DDIMScheduler")
    for pipe in (port, ours):
        pipe.enable_free_init(num_iters=2, method=method, use_fast_sampling=fast)
    try:
        mine, theirs = both(port, ours, num_inference_steps=4)
    finally:
        port.disable_free_init()
    assert_parity(mine, theirs, TRAJECTORY)
    ours.disable_free_init()
    plain, _ = run(ours, num_inference_steps=4)
    assert not torch.allclose(mine, plain, atol=1e-2)


def test_strength_where_the_port_is_right(port, ours):
    """One prompt: the port takes the picture's first entry, which is the right one."""
    set_solver(port, ours, "DDIMScheduler")
    assert_parity(*both(port, ours, strength=0.6), TRAJECTORY)


def test_freeu(port, ours):
    set_solver(port, ours, "DDIMScheduler")
    for pipe in (port, ours):
        pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    try:
        assert_parity(*both(port, ours, num_inference_steps=3), TRAJECTORY)
    finally:
        port.disable_freeu()


@pytest.mark.parametrize("output_type", ["np", "pt", "pil"])
def test_decoded_frames(port, ours, output_type):
    set_solver(port, ours, "DDIMScheduler")
    (theirs, _), (mine, _) = (run(p, output_type=output_type, num_inference_steps=3) for p in (port, ours))
    if output_type == "pil":
        assert len(mine) == 1
        assert len(mine[0]) == F
        assert all(isinstance(frame, Image.Image) and frame.size == (W, H) for frame in mine[0])
        gap = np.abs(np.stack(mine[0]).astype(int) - np.stack(theirs[0]).astype(int))
        assert gap.max() <= 1
        assert np.stack(theirs[0]).std() > 5
    else:
        assert type(mine) is type(theirs)
        assert_parity(torch.as_tensor(mine), torch.as_tensor(theirs), TRAJECTORY)


def test_several_prompts_pictures_and_generators(port, ours):
    set_solver(port, ours, "DDIMScheduler")
    changes = {
        "image": torch.cat([picture(5), picture(6)]),
        "prompt": ["a cat", "a field in the dark"],
        "negative_prompt": ["dark", "quality"],
        "num_inference_steps": 3,
    }
    generators = [[torch.Generator().manual_seed(s) for s in (8, 9)] for _ in range(2)]
    theirs = port(**arguments(generator=generators[0], **changes)).frames
    mine = ours(**arguments(generator=generators[1], **changes)).frames
    assert_parity(mine, theirs, TRAJECTORY)
    assert_parity(*both(port, ours, **changes), TRAJECTORY)


def test_given_latents_and_embeddings(port, ours):
    set_solver(port, ours, "EulerDiscreteScheduler")
    embeds = tiny.noise(1, 77, tiny.TEXT_DIM, seed=1)
    changes = {
        "prompt": None,
        "negative_prompt": None,
        "latents": tiny.noise(1, 4, F, tiny.HEIGHT, tiny.WIDTH, seed=2),
        "prompt_embeds": embeds,
        "negative_prompt_embeds": embeds.flip(1) * 0.5,
        "num_inference_steps": 3,
    }
    assert_parity(*both(port, ours, **changes), TRAJECTORY)


def test_callbacks_see_and_change_the_same(port, ours):
    set_solver(port, ours, "DDIMScheduler")
    seen = {}

    def make(name):
        def callback(pipe, step, timestep, tensors):
            log = seen.setdefault(name, [])
            log.append((step, int(timestep), pipe.num_timesteps, {k: v.clone() for k, v in tensors.items()}))
            if step == 1:
                tensors["latents"] = tensors["latents"] * 0.5
                tensors["prompt_embeds"] = tensors["prompt_embeds"] * 0.9
            return tensors

        return callback

    results = []
    for name, pipe in (("port", port), ("ours", ours)):
        generator = torch.Generator().manual_seed(3)
        changes = {
            "callback_on_step_end": make(name),
            "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds", "negative_prompt_embeds"],
            "num_inference_steps": 4,
        }
        results.append(pipe(**arguments(generator=generator, **changes)).frames)
    for (i, t, n, mine), (j, s, m, theirs) in zip(seen["ours"], seen["port"], strict=True):
        assert (i, t, n) == (j, s, m)
        for key in theirs:
            if key == "negative_prompt_embeds" and i > 1:
                continue  # the port goes on showing the old ones, which it does not use; ours are those in force
            assert_parity(mine[key], theirs[key], TRAJECTORY)
    assert_parity(results[1], results[0], TRAJECTORY)


def test_swapping_two_draws_would_be_noticed(port, ours, monkeypatch):
    """The picture's posterior after the initial noise: the other order gives another clip."""
    from vivant.pia import generate as module
    from vivant.pipelines import pia as facade

    set_solver(port, ours, "DDIMScheduler")
    theirs, _ = run(port, num_inference_steps=2)
    generate, encode_still = module.generate, module.encode_still

    def swapped(parts, request, given, rng, on_step):
        still = encode_still(parts.vae, given.pixels, len(given.prompts.positive), rng)
        monkeypatch.setattr(module, "encode_still", lambda *_: still)
        return generate(parts, request, given, rng, on_step)

    assert_parity(run(ours, num_inference_steps=2)[0], theirs, TRAJECTORY)
    monkeypatch.setattr(facade, "generate", swapped)
    mine, _ = run(ours, num_inference_steps=2)
    with pytest.raises(AssertionError):
        assert_parity(mine, theirs, TRAJECTORY)


def test_repositories_go_both_ways(port, ours, tmp_path):
    set_solver(port, ours, "DDIMScheduler")
    ours.save_pretrained(tmp_path / "ours")
    back = diffusers.PIAPipeline.from_pretrained(tmp_path / "ours", safety_checker=None)
    back.set_progress_bar_config(disable=True)
    theirs, _ = run(back, num_inference_steps=2)
    mine, _ = run(ours, num_inference_steps=2)
    assert_parity(mine, theirs, TRAJECTORY)
    port.save_pretrained(tmp_path / "theirs")
    again = PIAPipeline.from_pretrained(tmp_path / "theirs")
    again.set_progress_bar_config(disable=True)
    assert_parity(run(again, num_inference_steps=2)[0], theirs, TRAJECTORY)
    with pytest.raises(InputError):
        PIAPipeline.from_pretrained(tmp_path / "theirs", numeric="original")
