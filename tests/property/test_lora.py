"""Sums of changes: no order, no remainder."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tiny
import tiny_pia
from vivant.hub.keymaps.ldm import unet_table
from vivant.lora.adapters import Adapters, at, whole
from vivant.lora.change import Change, Decomposed, Full, Hadamard, LowRank
from vivant.lora.merge import merge, taken_off
from vivant.lora.names import spellings

STRENGTHS = st.floats(-2, 2, width=32)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])


def network(dtype: torch.dtype) -> nn.Module:
    layer = nn.Linear(5, 4).requires_grad_(False)
    layer.load_state_dict({"weight": tiny.noise(4, 5, seed=3), "bias": torch.tensor([0.0, -0.0, 1.0, -1.0])})
    return nn.ModuleDict({"one": layer}).to(dtype)


def changes(seed: int) -> dict[str, Change]:
    low = LowRank(tiny.noise(3, 5, seed=seed), tiny.noise(4, 3, seed=seed + 1), scale=0.5)
    kinds = (low, Hadamard(low.up, low.down, low.up, low.down), Decomposed(low, tiny.noise(4, seed=seed + 2).abs()))
    return {"one.weight": kinds[seed % 3], "one.bias": Full(tiny.noise(4, seed=seed + 3))}


def bits(module: nn.Module) -> list[torch.Tensor]:
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return [value.view(kinds[value.element_size()]).clone() for value in module.parameters()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


@settings(max_examples=40, deadline=None)
@given(DTYPES, st.tuples(STRENGTHS, STRENGTHS, STRENGTHS), st.permutations(["a", "b", "c"]), st.integers(0, 8))
def test_a_sum_has_no_order(dtype, strengths, order, seed):
    weights = {name: whole(strength) for name, strength in zip("abc", strengths, strict=True)}
    parts = {name: changes(seed + 7 * i) for i, name in enumerate("abc")}
    results = []
    for names in (["a", "b", "c"], order):
        module, adapters = network(dtype), Adapters()
        for name in names:
            adapters = adapters.load(name, parts[name])
        merge([(module, adapters.activate({name: weights[name] for name in names}))])
        results.append(bits(module))
    assert equal(*results)


@settings(max_examples=40, deadline=None)
@given(DTYPES, st.integers(0, 20), st.lists(STRENGTHS, max_size=3))
def test_a_weight_of_zero_is_the_untouched_weight(dtype, seed, strengths):
    module = network(dtype)
    untouched, places = bits(module), [id(p) for p in module.parameters()]
    adapters = Adapters().load("a", changes(seed))
    for strength in (*strengths, 0.0):
        merge([(module, adapters.activate({"a": whole(strength)}))])
    assert equal(bits(module), untouched)
    merge([(module, adapters.activate({"a": whole(1)}))])
    assert not equal(bits(module), untouched)
    with taken_off([module]):
        assert [id(p) for p in module.parameters()] == places
    assert not equal(bits(module), untouched)
    merge([(module, adapters.drop("a"))])
    assert [id(p) for p in module.parameters()] == places
    assert "_lora" not in vars(module)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 20), st.integers(3, 9))
def test_a_failure_changes_no_network(seed, rank):
    one, two = network(torch.float32), network(torch.float32)
    before = bits(one), bits(two)
    wrong = LowRank(torch.ones(rank, 6), torch.ones(4, rank))
    with pytest.raises(RuntimeError):
        merge([(one, Adapters().load("a", changes(seed))), (two, Adapters().load("a", {"one.weight": wrong}))])
    assert equal(bits(one), before[0])
    assert equal(bits(two), before[1])
    assert "_lora" not in vars(one)


def test_the_longest_beginning_decides():
    assert at((("", 1.0), ("up.", 2.0), ("up.1.", 3.0)), "up.1.weight") == 3.0
    assert at((("", 1.0), ("up.", 2.0), ("up.1.", 3.0)), "up.2.weight") == 2.0


def test_no_spelling_means_two_layers():
    """With underscores for dots `a_b.c` and `a.b_c` would be one name."""
    unet, encoder = tiny_pia.unet(), tiny_pia.pipeline().text_encoder
    both = spellings({"unet": unet, "text_encoder": encoder})
    for component, module in (("unet", unet), ("text_encoder", encoder)):
        assert {layer.module for layer in both.values() if layer.component == component} == {
            name for name, part in module.named_modules() if name and list(part.parameters(recurse=False))
        }
    names = [name for name, part in unet.named_modules() if name and list(part.parameters(recurse=False))]
    spelt = [name.replace(".", "_") for name in names]
    spelt += [name.replace(".", "_") for name in unet_table(names, unet.config).values()]
    assert len(set(spelt)) == len(spelt)
