"""The shipped models, through the ordinary loaders, and doing what they are for."""

import diffusers
import numpy as np
import pytest
import torch
from safetensors import safe_open

from tolerances import assert_parity
from vivant import pocket
from vivant.evaluate.pocket import DIRECTIONS, Models, drawn
from vivant.evaluate.recogniser import Recogniser
from vivant.evaluate.stills import GUIDANCE, NUM_STEPS, draw, held_out, judge, reconstruction
from vivant.pocket.world import STYLES, render, vocabulary
from vivant.text.clip import encode
from vivant.train.recipe import open_repository
from vivant.train.sampling import draw_stills

WEIGHTS = sorted(pocket.FOLDER.rglob("*.safetensors"))


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def test_files_are_small_and_carry_their_licence():
    networks = 3 * len(STYLES) + len(("motion", "recogniser", "judge"))
    networks += len(("transformer", "vae", "text_encoder", "detector", "parser", "vision tower"))  # of person/
    assert len(WEIGHTS) == networks
    assert sum(path.stat().st_size for path in WEIGHTS) < 60e6
    for path in WEIGHTS:
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["license"] == "Apache-2.0"
            assert {file.get_slice(name).get_dtype() for name in file.keys()} <= {"BF16", "I64"}  # noqa: SIM118


@pytest.mark.parametrize("style", STYLES)
def test_a_base_follows_its_text(style):
    scenes, parts = held_out(style, 24), open_repository(pocket.base(style))
    found = judge(Recogniser.read(pocket.FOLDER / "recogniser"), draw(parts, scenes), scenes)
    assert found.both >= 0.75  # 200 prompts are in docs/pocket.json; by chance it were 0.01
    assert found.style >= 0.9


@pytest.mark.parametrize("style", STYLES)
def test_the_autoencoder_reconstructs_scenes(style):
    frames = np.stack([render(scene, 1, 64)[0] for scene in held_out(style, 16)])
    assert reconstruction(open_repository(pocket.base(style)).vae, torch.from_numpy(frames)).mean() >= 30


@pytest.mark.parametrize("style", STYLES)
def test_diffusers_reads_a_base_and_draws_the_same(style):
    folder, prompt = pocket.base(style), "a small red fish, on a blue ground"
    port = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    port.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(3))
    theirs = port(
        prompt, latents=noise, guidance_scale=GUIDANCE, num_inference_steps=NUM_STEPS, output_type="latent"
    ).images
    parts = open_repository(folder)
    text = encode(parts.tokenizer, parts.text_encoder, [prompt, ""])
    ours = draw_stills(parts.unet, text[:1], text[1:], (16, 16), num_steps=NUM_STEPS, guidance=GUIDANCE, seeds=[3])
    assert_parity(ours, theirs)


def test_the_first_base_knows_the_words_of_motion():
    """Every word of a caption is one token."""
    paper = open_repository(pocket.base("paper"))
    assert [word for word in vocabulary() if len(paper.tokenizer.tokenize(word)) > 1] == []
    assert max(paper.tokenizer.get_vocab().values()) + 1 == paper.text_encoder.config.vocab_size


@pytest.mark.parametrize("style", STYLES)
def test_clips_keep_their_picture_and_follow_the_words(style):
    """Eight clips; hundreds are in docs/motion.json."""
    models = Models.load()
    made = list(models.make(drawn(style, DIRECTIONS, 8, tag=2), style))
    assert np.mean([clip.measures.fidelity for clip in made]) >= 25
    assert np.mean([models.sees(clip, "colour")[0] for clip in made]) >= 0.7
    assert np.mean([models.sees(clip, "style") for clip in made]) >= 0.9
    assert np.mean([clip.is_right for clip in made]) >= 0.6  # by chance it were 0.25


@pytest.mark.unchecked
def test_there_is_no_other_base():
    with pytest.raises(ValueError, match="oil"):
        pocket.base("oil")
