"""The compiled network: the same numbers, and weights that are really frozen. In the lane without the checker."""

import copy
import shutil

import pytest
import torch

import tiny
import tiny_pia
from tolerances import assert_parity
from vivant.pia.compile import compile_unet, freezes

pytestmark = [
    pytest.mark.compile,
    pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))), reason="there is no C++ compiler"),
]


@torch.no_grad()
def test_the_compiled_network_predicts_the_same_and_its_weights_are_frozen():
    """That later changes of the weights have no effect is what freezing means, and what lets kernels pack them.

    torch.compile(options={"freezing": True}) freezes nothing in torch 2.13, and says nothing.
    """
    unet = copy.deepcopy(tiny_pia.unet("original"))
    x, timesteps = tiny.noise(2, 9, 3, 6, 10), torch.tensor([500])
    text = unet.read_text(tiny.noise(2, tiny.TOKENS, tiny.TEXT_DIM, seed=1))
    exact = unet.predict(x, timesteps, text)
    compile_unet(unet)
    assert_parity(unet.predict(x, timesteps, text), exact)
    assert freezes(unet.device.type)
    for p in unet.parameters():
        p.zero_()
    assert_parity(unet.predict(x, timesteps, text), exact)


def test_only_processors_freeze():
    assert freezes("cpu")
    assert not freezes("cuda")
