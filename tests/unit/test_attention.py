"""The kernel table: the choice by facts alone, and every kernel against the formula."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from einops import rearrange

import tiny
from tolerances import assert_parity, relative_l2
from vivant.attention import KEPT_TOKENS, KERNELS, PACKAGES, PACKED_TOKENS, Facts, attend, choose, pack_size
from vivant.errors import InputError


def formula(q, k, v, num_heads):
    q, k, v = (rearrange(x.double(), "b n (h d) -> b h n d", h=num_heads) for x in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return rearrange(weights @ v, "b h n d -> b n (h d)").float()


OWN = [kernel for kernel in KERNELS if kernel.name not in ("flash 2", "flash 3", "sage")]
LONG = Facts("cpu", torch.bfloat16, 2, 4711, 4711, has_bf16=True)
HOPPER = Facts("cuda", torch.bfloat16, 2, 4711, 4711, capability=(9, 0), installed=frozenset(PACKAGES))


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
        (LONG, "chunked"),
        (replace(LONG, has_tiles=True), "torch sdpa"),
        (replace(LONG, has_bf16=False), "torch sdpa"),
        (replace(LONG, dtype=torch.float32), "torch sdpa"),
        (replace(LONG, num_keys=77), "torch sdpa"),
        (replace(LONG, head_dim=80), "torch sdpa"),
        (replace(LONG, trains=True), "torch sdpa"),
        (HOPPER, "flash 3"),
        (replace(HOPPER, capability=(8, 9)), "torch sdpa"),
        (replace(HOPPER, installed=frozenset({"flash_attn", "sageattention"})), "torch sdpa"),
        (replace(HOPPER, dtype=torch.float32), "torch sdpa"),
        (replace(HOPPER, head_dim=320), "torch sdpa"),
        (replace(HOPPER, trains=True), "torch sdpa"),
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


@pytest.mark.parametrize("name", ["flash 2", "flash 3", "sage", "chunked", "torch sdpa", "packed sdpa", "kept sdpa"])
def test_a_kernel_by_name(name):
    if name in ("flash 2", "flash 3", "sage"):
        assert choose(HOPPER, name).name == name
        with pytest.raises(InputError, match="E-ATTENTION-KERNEL"):
            choose(replace(HOPPER, installed=frozenset()), name)
    if name != "torch sdpa":
        with pytest.raises(InputError, match="E-ATTENTION-KERNEL"):
            choose(Facts("mps", torch.float16, 2, 4711, 4711), name)


def test_an_unknown_name_is_refused_with_those_that_work():
    with pytest.raises(InputError, match="torch sdpa"):
        attend(*(tiny.noise(2, 5, 20, seed=i) for i in range(3)), 4, kernel="fastest")


def test_a_kernel_of_another_package_gets_heads_apart(monkeypatch):
    """With a stand-in for the package, which holds the formula; the packages themselves need hardware."""
    seen = {}

    def sageattn(q, k, v, **options):
        seen.update(options)
        assert q.shape == (12, 5, 3, 7)
        return torch.einsum("bnhm,bmhd->bnhd", (torch.einsum("bnhd,bmhd->bnhm", q, k) / 7**0.5).softmax(-1), v)

    monkeypatch.setitem(sys.modules, "sageattention", SimpleNamespace(sageattn=sageattn))
    q, k, v = (tiny.noise(12, 5, 21, seed=i) for i in range(3))
    assert_parity(choose(replace(HOPPER, head_dim=64), "sage").run(q, k, v, 3), formula(q, k, v, 3))
    assert seen == {"tensor_layout": "NHD"}


@pytest.mark.parametrize("kernel", OWN, ids=lambda kernel: kernel.name)
def test_every_kernel_computes_the_formula(kernel):
    q, k, v = (tiny.noise(12, 5, 21, seed=i) for i in range(3))
    assert_parity(kernel.run(q, k, v, 3), formula(q, k, v, 3))


@torch.no_grad()
def test_chunks_of_queries_join_to_the_whole(monkeypatch):
    monkeypatch.setattr("vivant.attention.QUERIES", 4)
    q, k, v = tiny.noise(2, 9, 32, seed=0), tiny.noise(2, 7, 32, seed=1), tiny.noise(2, 7, 32, seed=2)
    chunked = choose(LONG, "chunked")
    assert_parity(chunked.run(q, k, v, 2), formula(q, k, v, 2))
    half = [x.bfloat16() for x in (q, k, v)]
    assert 0 < relative_l2(chunked.run(*half, 2), formula(*half, 2)) < 1e-2


def test_gradients_are_those_of_the_formula():
    inputs = [tiny.noise(12, 5, 21, seed=i).requires_grad_() for i in range(3)]
    ours = torch.autograd.grad(attend(*inputs, 3).square().sum(), inputs)
    exact = torch.autograd.grad(formula(*inputs, 3).square().sum(), inputs)
    for mine, other in zip(ours, exact, strict=True):
        assert_parity(mine, other)


def test_what_learns_is_noticed(monkeypatch):
    seen = []
    monkeypatch.setattr("vivant.attention.choose", lambda facts, name: seen.append(facts.trains) or KERNELS[-1])
    q, k, v = (tiny.noise(2, 5, 20, seed=i) for i in range(3))
    attend(q, k, v, 4)
    attend(q, k, v.requires_grad_(), 4)
    with torch.no_grad():
        attend(q, k, v, 4)
    assert seen == [False, True, False]


def test_queries_and_keys_of_different_length():
    q, k, v = tiny.noise(2, 9, 20, seed=0), tiny.noise(2, 7, 20, seed=1), tiny.noise(2, 7, 20, seed=2)
    assert_parity(attend(q, k, v, 4), formula(q, k, v, 4))


@pytest.mark.parametrize("kernel", [k for k in OWN if k.name != "torch sdpa"], ids=lambda kernel: kernel.name)
def test_packed_sequences_do_not_see_each_other(kernel):
    q, k, v = (tiny.noise(12, 5, 21, seed=i) for i in range(3))
    before = kernel.run(q, k, v, 3)
    k[4], v[4] = 100.0, float("inf")
    after = kernel.run(q, k, torch.nan_to_num(v, posinf=1e30), 3)
    rest = [i for i in range(12) if i != 4]
    assert torch.equal(after[rest], before[rest])
