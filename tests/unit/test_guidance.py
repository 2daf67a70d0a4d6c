"""Guidance: the scales that must change nothing, and the equations by hand."""

import pytest
import torch

from tiny import noise
from vivant.guidance import cfg, cfg_image

SHAPE = (2, 4, 5, 6, 10)
UNCOND, IMAGE, TEXT = (noise(*SHAPE, seed=seed) for seed in (1, 2, 3))


def test_cfg_goes_from_the_unconditional_towards_and_past_the_text():
    uncond, text = torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.0])
    assert cfg(uncond, text, 7.5).tolist() == [8.5, 13.0]
    assert torch.equal(cfg(UNCOND, TEXT, 0.0), UNCOND)


def test_scale_one_is_exactly_the_conditional():
    assert not torch.equal(UNCOND + (TEXT - UNCOND), TEXT), "these values round, so the test can tell"
    assert torch.equal(cfg(UNCOND, TEXT, 1.0), TEXT)
    assert torch.equal(cfg_image(UNCOND, IMAGE, TEXT, 1.0, 1.0), TEXT)


def test_image_guidance_is_equation_3_of_instruct_pix2pix():
    uncond, image, text = torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([10.0])
    assert cfg_image(uncond, image, text, 2.0, 5.0).item() == 1 + 2 * (3 - 1) + 5 * (10 - 3)


@pytest.mark.parametrize("text_scale", [0.0, 3.0, 7.5])
def test_image_scale_one_is_the_guidance_of_two_evaluations(text_scale: float):
    assert torch.equal(cfg_image(UNCOND, IMAGE, TEXT, 1.0, text_scale), cfg(IMAGE, TEXT, text_scale))


def test_equal_scales_do_not_depend_on_the_image_branch():
    torch.testing.assert_close(cfg_image(UNCOND, IMAGE, TEXT, 4.0, 4.0), cfg(UNCOND, TEXT, 4.0), rtol=1e-5, atol=1e-5)


def test_image_scale_zero_drops_the_picture_but_not_the_text():
    assert torch.equal(cfg_image(UNCOND, IMAGE, TEXT, 0.0, 0.0), UNCOND)
    assert torch.equal(cfg_image(UNCOND, IMAGE, TEXT, 0.0, 2.0), UNCOND + 2.0 * (TEXT - IMAGE))
