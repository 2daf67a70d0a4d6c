"""What is measured, against its definition."""

import copy

import numpy as np
import pytest
import torch

import tiny
import tiny_pia
from tolerances import assert_parity
from vivant.errors import LoadError
from vivant.evaluate.recogniser import Answers, Recogniser, RecogniserTask, truth
from vivant.evaluate.stills import TextControl, draw, held_out, judge, reconstruction
from vivant.pocket.world import KINDS, DrawnClips, render
from vivant.train.base import Repository
from vivant.train.loop import train
from vivant.train.settings import Settings


@torch.no_grad()
def test_reconstruction_is_psnr_of_bytes():
    vae = tiny_pia.vae()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8))
    x = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    y = vae.decode(vae.encode(x).latent_dist.mode()).sample
    seen = ((y / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    expected = [
        20 * np.log10(255 / np.sqrt(np.mean((a - b.numpy()) ** 2.0))) for a, b in zip(seen, pixels, strict=True)
    ]
    assert_parity(reconstruction(vae, pixels), torch.tensor(expected, dtype=torch.float32))


def test_shares_count_what_is_right():
    scenes = held_out("paper", 4)
    wanted = [truth(scene) for scene in scenes]
    kind, colour, style = (torch.tensor([said[name] for said in wanted]) for name in Answers._fields)
    assert TextControl.of(Answers(kind, colour, style), scenes) == TextControl(1, 1, 1, 1, 4)
    kind[0] += 1  # a wrong kind in the first, a wrong colour in the second
    colour[1] += 1
    assert TextControl.of(Answers(kind, colour, 1 - style), scenes) == TextControl(0.75, 0.75, 0.5, 0, 4)


def test_scenes_of_the_evaluation_are_not_those_of_training():
    scenes = held_out("neon", 20)
    assert [scene.style for scene in scenes] == ["neon"] * 20
    learnt = DrawnClips(500, 1, 64, style="neon")
    assert not {learnt.scene(i) for i in range(500)} & set(scenes)
    assert held_out("neon", 10) == scenes[:10]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A recogniser that has seen a little."""
    folder = tmp_path_factory.mktemp("recogniser")
    settings = Settings(steps=60, batch=24, learning_rate=4e-3, workers=0, sample_every=0, log_every=10, ema=0.8)
    torch.manual_seed(0)
    return train(RecogniserTask(Recogniser(16)), DrawnClips(2000, 1, 32), settings, folder), folder


def test_the_recogniser_learns(trained):
    rows = (trained[1] / "log.csv").read_text().splitlines()
    names = rows[0].split(",")
    first, last = (dict(zip(names, map(float, row.split(",")), strict=True)) for row in (rows[1], rows[-1]))
    assert last["loss"] < first["loss"] - 0.2
    assert last["style"] > 0.95


def test_the_recogniser_on_disk(trained, tmp_path):
    with pytest.raises(LoadError, match="E-KEYS-MISMATCH"):  # that of another width
        Recogniser.read(trained[0])
    task = RecogniserTask(tiny.fill(Recogniser()))
    task.export(tmp_path)
    scenes = held_out("paper", 6)
    pixels = torch.from_numpy(np.stack([render(scene, 1, 32)[0] for scene in scenes]))
    assert judge(Recogniser.read(tmp_path), pixels, scenes) == judge(task.network, pixels, scenes)
    assert task.network.answers(tiny.noise(2, 3, 32, 32)).kind.max() < len(KINDS)


def test_what_a_base_draws_depends_on_the_scene_and_its_place_alone():
    pipe = tiny_pia.pipeline()
    parts = Repository(copy.deepcopy(pipe.vae), pipe.text_encoder, pipe.tokenizer, copy.deepcopy(tiny_pia.base()))
    scenes, size = held_out("paper", 3), 8 * parts.vae.factor
    together = draw(parts, scenes, size)
    assert together.shape == (3, size, size, 3)
    apart = draw(parts, scenes, size, batch=2)
    assert (together.int() - apart.int()).abs().max() <= 1
    assert (together[0].int() - together[1].int()).abs().float().mean() > 3
