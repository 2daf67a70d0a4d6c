"""A data set encoded once."""

import numpy as np
import pytest
import torch

from tolerances import assert_parity
from train.world import Squares, vae_task
from vivant.errors import InputError
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


def test_clips_count_as_often_as_their_captions_say(tmp_path):
    stored = latents.encode(Squares(5, num_frames=3), vae_task().vae, tmp_path, {})
    chosen = latents.repeated(stored, {"square 1": 3, "1": 2, "square 4": 0})
    read = [chosen.read(i, np.random.default_rng(0)).caption for i in range(len(chosen))]
    assert read == ["square 0", *["square 1"] * 3, "square 2", "square 3"]


@pytest.mark.parametrize("often", [{"circle": 2}, {"square": 0}])
def test_phrases_that_choose_nothing_are_refused(tmp_path, often):
    stored = latents.encode(Squares(2, num_frames=3), vae_task().vae, tmp_path, {})
    with pytest.raises(InputError) as refused:
        latents.repeated(stored, often)
    assert refused.value.code == "E-TRAIN-SETTING"
