"""A linear layer and its GELU in one call: when, and that it is the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tiny
from tolerances import relative_l2
from vivant import fused
from vivant.fused import fuses_gelu, linear_gelu


@pytest.mark.parametrize(
    ("facts", "fuses"),
    [
        (("cpu", torch.bfloat16, False, True), True),
        (("cpu", torch.float32, False, True), False),
        (("cpu", torch.float16, False, True), False),
        (("cuda", torch.bfloat16, False, True), False),
        (("cpu", torch.bfloat16, True, True), False),
        (("cpu", torch.bfloat16, False, False), False),
    ],
)
def test_the_choice(facts, fuses):
    assert fuses_gelu(*facts) is fuses


@pytest.mark.parametrize("has_bias", [True, False])
def test_both_ways_are_the_same_and_one_call_rounds_no_more(monkeypatch, has_bias):
    layer = tiny.fill(nn.Linear(48, 96, bias=has_bias)).bfloat16()
    x = tiny.noise(2, 7, 48, seed=1).bfloat16()
    with torch.no_grad():
        chosen = linear_gelu(x, layer)
        monkeypatch.setattr(fused, "HAS_KERNEL", False)
        plain = linear_gelu(x, layer)
        exact = F.gelu(layer.float()(x.float()), approximate="tanh")
    assert 0 < relative_l2(plain, exact) < 5e-3
    assert relative_l2(chosen, exact) <= 1.01 * relative_l2(plain, exact)
    assert chosen.dtype == plain.dtype == torch.bfloat16


def test_it_learns():
    layer = tiny.fill(nn.Linear(6, 5)).bfloat16().requires_grad_()
    linear_gelu(tiny.noise(3, 6).bfloat16(), layer).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().max() > 0
