"""The network at the full width of Stable Diffusion 1.5, once: two frames of 128 pixels, random weights.

Small configurations cannot show what only width brings: 32 groups of 10 to 80 channels, heads of 40 to 160, sums over
thousands of products. Both implementations hold the same tensors, so this takes about 6 GB and a minute or two.
"""

import math
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_motion_model import UNetMotionModel as Port

import tiny
from tolerances import assert_parity, relative_l2
from vivant.pia.unet import UNetMotionModel

pytestmark = pytest.mark.slow

CONFIG: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 9,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*["CrossAttnDownBlockMotion"] * 3, "DownBlockMotion"),
    "up_block_types": ("UpBlockMotion", *["CrossAttnUpBlockMotion"] * 3),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "num_attention_heads": 8,
    "motion_num_attention_heads": 8,
    "motion_max_seq_length": 32,
    "use_motion_mid_block": False,
}
FRAMES, SIDE = 2, 16


def fill(shapes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights as `tiny.rule` scales them, from one generator: hashing every name would take as long as the test."""
    generator = torch.Generator().manual_seed(11)
    state: dict[str, torch.Tensor] = {}
    for name, meta in sorted(shapes.items()):
        value = torch.empty(meta.shape)
        if meta.ndim >= 2:
            value.normal_(0, 1 / math.sqrt(math.prod(meta.shape[1:])), generator=generator)
        else:
            weight = name.endswith("weight")
            value.normal_(float(weight), 0.1 if weight else 0.05, generator=generator)
        state[name] = value
    return state


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """All tensors; the tables of positions by their formula, the rest at random."""
    with torch.device("meta"):
        shapes = UNetMotionModel(**CONFIG).state_dict()
    assert len(shapes) == 1226
    tables = {name for name in shapes if name.endswith("pos_embed.pe")}
    filled = fill({name: value for name, value in shapes.items() if name not in tables})
    return filled | {name: positions(*shapes[name].shape[1:]) for name in tables}


def positions(length: int, width: int) -> torch.Tensor:
    """The sinusoids of the motion modules (Vaswani et al. 2017, section 3.5)."""
    angles = torch.arange(length)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=2).reshape(1, length, width)


@torch.no_grad()
def test_the_network_at_full_width(state):
    with torch.device("meta"):
        port = Port(**CONFIG)
    port.load_state_dict(state, strict=True, assign=True)
    port.eval()
    x, text = tiny.noise(2, 9, FRAMES, SIDE, SIDE, seed=1), tiny.noise(2, 77, 768, seed=2)
    theirs = port(x, 601, text.repeat_interleave(FRAMES, dim=0)).sample
    del port

    ours = UNetMotionModel.from_state({**CONFIG, "numerics": "diffusers"}, state)
    mine = ours(x, 601, text).sample
    peak = float((mine - theirs).abs().max() / theirs.abs().max())
    print(f"full width: relative L2 {relative_l2(mine, theirs):.2e}, worst element {peak:.2e}")
    assert_parity(mine, theirs)
    assert relative_l2(mine, theirs) <= 1e-5

    original = UNetMotionModel.from_state({**CONFIG, "numerics": "original"}, state)
    gap = relative_l2(original(x, 601, text).sample, theirs)
    print(f"the original's numerics differ by {gap:.3f}")
    assert gap > 0.01
