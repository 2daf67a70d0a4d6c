"""Random draws: the order and the generators decide, and nothing else."""

import pytest
import torch

from vivant.errors import InputError
from vivant.rng import Rng

SHAPE = (3, 4, 5)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_generator_draws_the_whole_batch():
    assert torch.equal(Rng.of(seeded(1), 3).normal(SHAPE), torch.randn(SHAPE, generator=seeded(1)))


def test_a_generator_for_each_draws_its_own_entry():
    drawn = Rng.of([seeded(s) for s in (1, 2, 3)], 3).normal(SHAPE)
    assert drawn.shape == SHAPE
    for i in range(3):
        assert torch.equal(drawn[i : i + 1], torch.randn((1, 4, 5), generator=seeded(i + 1)))


def test_generators_go_on_from_draw_to_draw():
    rng, generator = Rng.of(seeded(1), 3), seeded(1)
    assert torch.equal(rng.normal(SHAPE), torch.randn(SHAPE, generator=generator))
    assert torch.equal(rng.normal(SHAPE), torch.randn(SHAPE, generator=generator))


def test_a_list_of_one_is_the_generator_itself():
    listed, alone = Rng.of([seeded(1)], 1), Rng.of(seeded(1), 1)
    assert torch.equal(listed.normal((1, 4, 5)), alone.normal((1, 4, 5)))
    assert listed.per_entry
    assert not alone.per_entry


def test_without_a_generator_torch_s_own_is_used():
    torch.manual_seed(5)
    drawn = Rng.of(None, 3).normal(SHAPE)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.randn(SHAPE))


def test_draws_are_float32_whatever_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        assert Rng.of(seeded(1), 3).normal(SHAPE).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_draws_land_on_the_device_asked_for():
    assert Rng.of(seeded(1), 3).normal(SHAPE, "meta").device.type == "meta"


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_extreme_seeds_draw(seed):
    assert torch.isfinite(Rng.of(seeded(seed), 3).normal(SHAPE)).all()
    assert not torch.equal(Rng.of(seeded(seed), 3).normal(SHAPE), Rng.of(seeded(1), 3).normal(SHAPE))


@pytest.mark.parametrize("source", [[], [seeded(1)], [seeded(1)] * 4, 7, "seed", [1, 2, 3], [seeded(1), None, 3]])
def test_what_is_no_source_of_noise_is_refused(source):
    with pytest.raises(InputError, match="E-GENERATORS"):
        Rng.of(source, 3)
