"""Training of an autoencoder of videos: what it sees of a clip, that it learns, and what it leaves."""

import numpy as np
import pytest
import torch

from vivant.errors import InputError
from vivant.pocket.avatars import AvatarClips
from vivant.train.samples import Draws, collate
from vivant.train.video_vae import VideoVaeLoss, VideoVaeTask
from vivant.vae.video import AutoencoderKLCogVideoX

CONFIG = {
    "block_out_channels": [8, 12, 16],
    "down_block_types": ["CogVideoXDownBlock3D"] * 3,
    "up_block_types": ["CogVideoXUpBlock3D"] * 3,
    "layers_per_block": 1,
    "latent_channels": 3,
    "norm_num_groups": 4,
}
SOURCE = AvatarClips(6, 9, 24)


def task(**loss) -> VideoVaeTask:
    torch.manual_seed(0)
    shown = torch.from_numpy(np.stack([SOURCE.read(i, np.random.default_rng(0)).pixels for i in range(2)]))
    return VideoVaeTask(AutoencoderKLCogVideoX(**CONFIG), VideoVaeLoss(**loss), shown)


def batch(learner: VideoVaeTask, num: int = 3) -> dict:
    clips = [SOURCE.read(i, np.random.default_rng(0)) for i in range(num)]
    return collate([{"n": i, **learner.prepare(clip, np.random.default_rng(i))} for i, clip in enumerate(clips)])


def test_a_random_square_of_each_clip_is_seen():
    learner, clip = task(crop=8), SOURCE.read(0, np.random.default_rng(0))
    squares = [learner.prepare(clip, np.random.default_rng(seed))["pixels"] for seed in range(6)]
    assert {square.shape for square in squares} == {(9, 8, 8, 3)}
    assert len({square.tobytes() for square in squares}) > 4
    windows = np.lib.stride_tricks.sliding_window_view(clip.pixels, (8, 8), axis=(1, 2))
    for square in squares:
        at = (windows == square.transpose(0, 3, 1, 2)[:, None, None]).all((0, 3, 4, 5))
        assert at.any()
    for crop in (0, 24, 99):
        assert np.array_equal(task(crop=crop).prepare(clip, np.random.default_rng(1))["pixels"], clip.pixels)
    with pytest.raises(InputError, match="crop"):
        VideoVaeLoss(crop=-1)


def test_it_learns_to_reconstruct():
    learner = task(crop=16)
    given = batch(learner)
    adam = torch.optim.Adam(list(learner.weights.values()), lr=1e-2)
    first = learner.losses(given, Draws(0, range(3)), torch.float32)
    for step in range(12):
        adam.zero_grad()
        learner.losses(given, Draws(step, range(3)), torch.float32)["loss"].sum().backward()
        adam.step()
    values = learner.losses(given, Draws(0, range(3)), torch.float32)
    assert values["psnr"].mean() > first["psnr"].mean() + 2
    assert values["loss"].mean() < 0.8 * first["loss"].mean()
    assert all(p.grad is not None for p in learner.weights.values())


def test_the_loss_is_the_sum_of_its_parts():
    learner = task(squared=2.0, gradient=0.25, kl=0.01)
    given = batch(learner)
    v = learner.losses(given, Draws(0, range(3)), torch.float32)
    x = given["pixels"].permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    mean, logvar = learner.vae.encode_moments(x).chunk(2, dim=1)
    y = learner.vae.decode_tensor(mean + (0.5 * logvar).exp() * Draws(0, range(3)).normal(mean.shape[1:]))
    assert torch.allclose(v["l2"], (y - x).square().flatten(1).mean(1), rtol=1e-4)
    assert torch.allclose(v["l1"], (y - x).abs().flatten(1).mean(1), rtol=1e-4)
    assert torch.allclose(v["loss"], v["l1"] + 2 * v["l2"] + 0.25 * v["edges"] + 0.01 * v["kl"])
    assert torch.allclose(v["psnr"], 10 * (4 / v["l2"]).log10())


@pytest.mark.parametrize("num_frames", [2, 5, 12])
def test_clips_that_decoding_would_lengthen_are_refused(num_frames):
    with pytest.raises(InputError, match="8k"):
        VideoVaeTask(AutoencoderKLCogVideoX(**CONFIG), VideoVaeLoss(), torch.zeros(1, num_frames, 24, 24, 3).byte())


def test_what_is_left_scales_latents_to_one(tmp_path):
    learner = task()
    learner.export(tmp_path)
    vae = AutoencoderKLCogVideoX.from_pretrained(tmp_path)
    mean = vae.encode_moments(learner.shown).chunk(2, dim=1)[0]
    assert (mean * vae.settings.scaling_factor).std().item() == pytest.approx(1, rel=1e-3)
    learner.show(tmp_path, 7)
    assert (tmp_path / "00000007.png").is_file()
