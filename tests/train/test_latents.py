"""A data set encoded once."""

import numpy as np
import torch

from tolerances import assert_parity
from train.world import Squares, vae_task
from vivant.train import latents


def test_clips_encoded_together_are_those_encoded_alone(tmp_path, monkeypatch):
    vae, source, rng = vae_task().vae, Squares(5, num_frames=3), np.random.default_rng(0)
    together = latents.encode(source, vae, tmp_path / "together", {})
    monkeypatch.setattr(latents, "PIXELS", 1)
    alone = latents.encode(source, vae, tmp_path / "alone", {})
    for i in range(5):
        one, other = together.read(i, rng), alone.read(i, rng)
        assert one.caption == other.caption == f"square {i}"
        assert torch.equal(one.differences, other.differences)
        assert_parity(one.mean, other.mean, torch.bfloat16)
        assert torch.allclose(one.deviation, other.deviation, rtol=2**-7, atol=0)
