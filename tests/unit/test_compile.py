"""The compiled network: the same numbers, and weights that are really frozen and packed."""

import copy
import shutil

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.exc import InvalidCxxCompiler

import tiny
import tiny_pia
from tolerances import assert_parity
from vivant.errors import MissingPackage
from vivant.pia.compile import compile_unet, freezes

pytestmark = [
    pytest.mark.compile,
    pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))), reason="there is no C++ compiler"),
]


@torch.no_grad()
def test_the_compiled_network_predicts_the_same_and_its_weights_are_packed():
    """Only frozen weights are packed, and torch.compile(options={"freezing": True}) freezes nothing, without a word."""
    unet = copy.deepcopy(tiny_pia.unet("original"))
    x, timesteps = tiny.noise(2, 9, 3, 6, 10), torch.tensor([500])
    text = unet.read_text(tiny.noise(2, tiny.TOKENS, tiny.TEXT_DIM, seed=1))
    exact = unet.predict(x, timesteps, text)
    counters.clear()
    compile_unet(unet)
    assert_parity(unet.predict(x, timesteps, text), exact)
    packed = counters["inductor"]["mkldnn_conv_weight_pack_matcher_count"]
    assert packed > 5 or not torch.backends.mkldnn.is_available()


def test_only_processors_freeze():
    assert freezes("cpu")
    assert not freezes("cuda")


def test_a_machine_that_cannot_compile_says_so_at_the_first_prediction(monkeypatch):
    """Compiling is put off until then."""
    unet = copy.deepcopy(tiny_pia.unet("original"))
    x, text = tiny.noise(2, 9, 3, 6, 10), unet.read_text(tiny.noise(2, tiny.TOKENS, tiny.TEXT_DIM, seed=1))

    def refuse(*args, **kwargs):
        raise InvalidCxxCompiler

    compile_unet(unet)
    torch.compiler.reset()
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", refuse)
    with pytest.raises(MissingPackage) as caught, torch.no_grad():
        unet.predict(x, torch.tensor([500]), text)
    assert caught.value.code == "E-COMPILE"


@torch.no_grad()
def test_parameters_that_are_exchanged_are_compiled_anew(monkeypatch):
    """As LoRA exchanges them; frozen weights would be the old ones for ever."""
    unet = copy.deepcopy(tiny_pia.unet("original"))
    x, text = tiny.noise(1, 9, 3, 6, 10), unet.read_text(tiny.noise(1, tiny.TOKENS, tiny.TEXT_DIM, seed=1))
    seen = []

    def compiled(function, **options):
        seen.append(function.__code__)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    compile_unet(unet)
    first = unet.predict(x, torch.tensor([500]), text)
    assert torch.equal(unet.predict(x, torch.tensor([500]), text), first)
    assert len(seen) == 1
    unet.conv_out.weight = torch.nn.Parameter(2 * unet.conv_out.weight, requires_grad=False)
    assert not torch.equal(unet.predict(x, torch.tensor([500]), text), first)
    assert len(seen) == 2
    assert seen[0] is not seen[1], "what was compiled before belongs to the code object"
