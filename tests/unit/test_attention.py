"""The kernel table: the choice by facts alone, and every kernel against the formula."""

import pytest
import torch
from einops import rearrange

import tiny
from tolerances import assert_parity
from vivant.attention import KEPT_TOKENS, KERNELS, PACKED_TOKENS, Facts, attend, choose, pack_size


def formula(q, k, v, num_heads):
    q, k, v = (rearrange(x.double(), "b n (h d) -> b h n d", h=num_heads) for x in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return rearrange(weights @ v, "b h n d -> b n (h d)").float()


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (Facts("cpu", torch.bfloat16, 2048, 8, 8), "packed sdpa"),
        (Facts("cpu", torch.float32, 2048, 16, 16), "packed sdpa"),
        (Facts("cpu", torch.bfloat16, 2048, 17, 17), "torch sdpa"),
        (Facts("cpu", torch.bfloat16, 2048, 8, 77), "torch sdpa"),
        (Facts("cpu", torch.bfloat16, 7, 16, 16), "torch sdpa"),
        (Facts("cuda", torch.float16, 2048, 8, 8), "torch sdpa"),
        (Facts("mps", torch.float16, 2048, 8, 8), "torch sdpa"),
        (Facts("cpu", torch.bfloat16, 64, 64, 77, trains=True), "kept sdpa"),
        (Facts("cpu", torch.bfloat16, 2048, 8, 8, trains=True), "kept sdpa"),
        (Facts("cpu", torch.bfloat16, 64, 1024, 77, trains=True), "torch sdpa"),
        (Facts("cuda", torch.bfloat16, 64, 64, 77, trains=True), "torch sdpa"),
    ],
)
def test_the_choice(facts, name):
    assert choose(facts).name == name


@pytest.mark.parametrize(("num", "length", "size"), [(2048, 8, 4), (6, 8, 3), (10, 5, 5), (7, 5, 1), (9, 1, 9)])
def test_packs_are_divisors_and_small(num, length, size):
    assert pack_size(Facts("cpu", torch.float32, num, length, length)) == size
    assert size * length <= PACKED_TOKENS


@pytest.mark.parametrize(("num", "length", "size"), [(2048, 3, 8), (6, 8, 3), (10, 5, 2), (2048, 16, 1)])
def test_packs_with_kept_scores_are_smaller(num, length, size):
    assert pack_size(Facts("cpu", torch.bfloat16, num, length, length, trains=True), KEPT_TOKENS) == size


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_kernel_computes_the_formula(kernel):
    q, k, v = (tiny.noise(12, 5, 21, seed=i) for i in range(3))
    assert_parity(kernel.run(q, k, v, 3), formula(q, k, v, 3))


def test_gradients_are_those_of_the_formula():
    inputs = [tiny.noise(12, 5, 21, seed=i).requires_grad_() for i in range(3)]
    ours = torch.autograd.grad(attend(*inputs, 3).square().sum(), inputs)
    exact = torch.autograd.grad(formula(*inputs, 3).square().sum(), inputs)
    for mine, other in zip(ours, exact, strict=True):
        assert_parity(mine, other)


def test_what_learns_is_noticed(monkeypatch):
    seen = []
    monkeypatch.setattr("vivant.attention.choose", lambda facts: seen.append(facts.trains) or KERNELS[-1])
    q, k, v = (tiny.noise(2, 5, 20, seed=i) for i in range(3))
    attend(q, k, v, 4)
    attend(q, k, v.requires_grad_(), 4)
    with torch.no_grad():
        attend(q, k, v, 4)
    assert seen == [False, True, False]


def test_queries_and_keys_of_different_length():
    q, k, v = tiny.noise(2, 9, 20, seed=0), tiny.noise(2, 7, 20, seed=1), tiny.noise(2, 7, 20, seed=2)
    assert_parity(attend(q, k, v, 4), formula(q, k, v, 4))


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.name != "torch sdpa"], ids=lambda kernel: kernel.name)
def test_packed_sequences_do_not_see_each_other(kernel):
    q, k, v = (tiny.noise(12, 5, 21, seed=i) for i in range(3))
    before = kernel.run(q, k, v, 3)
    k[4], v[4] = 100.0, float("inf")
    after = kernel.run(q, k, torch.nan_to_num(v, posinf=1e30), 3)
    rest = [i for i in range(12) if i != 4]
    assert torch.equal(after[rest], before[rest])
