"""How the video autoencoder cuts videos into tiles and joins them again."""

from collections.abc import Iterator
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from vivant.errors import InputError
from vivant.vae.tiling import Grid, Tiling, fade, join
from vivant.vae.video import AutoencoderKLCogVideoX, VideoTiling


def vae() -> AutoencoderKLCogVideoX:
    return tiny.fill(AutoencoderKLCogVideoX.from_config(tiny.VIDEO_VAE))


def work(grids: tuple[Grid, Grid], sides: tuple[int, int]) -> float:
    """How much of a picture is computed, counting what is computed twice; 1 for the picture itself."""
    lengths = [sum(min(s.stop, side) - s.start for s in g.spans(side)) for g, side in zip(grids, sides, strict=True)]
    return lengths[0] * lengths[1] / (sides[0] * sides[1])


def published() -> AutoencoderKLCogVideoX:
    with torch.device("meta"):
        return AutoencoderKLCogVideoX(latent_channels=16)


def test_the_default_plan_has_fewer_tiles_and_less_waste_than_the_port_s():
    model = published()
    model.enable_tiling()
    grids = model.tiling.grids(480, 720, 8)
    assert grids == (Grid(33, 27, 2), Grid(50, 40, 2))
    assert work(grids, (60, 90)) == pytest.approx(1.222, abs=1e-3)
    model.enable_tiling(tile_sample_min_height=240)
    grids = model.tiling.grids(480, 720, 8)
    assert grids == (Grid(30, 25), Grid(45, 36))
    assert [len(grid.spans(side)) for grid, side in zip(grids, (60, 90), strict=True)] == [3, 3]
    assert work(grids, (60, 90)) == pytest.approx(1.4, abs=1e-3)


def test_what_a_tile_holds_is_not_cut():
    model = published()
    model.enable_tiling()
    assert model.tiling.grids(240, 360, 8) is None
    assert model.tiling.grids(241, 360, 8) is not None
    assert model.tiling.grids(240, 368, 8) == (Grid(30, 30, 1), Grid(28, 18, 2))
    model.disable_tiling()
    assert model.tiling is None


def test_a_tile_shares_what_is_asked_rounded_up_to_whole_latents():
    assert Tiling(24, 1 / 6).grid(8) == Grid(3, 2)
    assert Tiling(40, 1 / 4).grid(8) == Grid(5, 3)
    assert Tiling(40, 0).grid(8) == Grid(5, 5)
    assert Grid(5, 3, 4).scaled(8) == Grid(40, 24, 4)
    assert [Grid(5, 3).overlap, Grid(5, 3).scaled(8).overlap] == [2, 16]


@pytest.mark.parametrize(("before", "after"), [(6, 6), (2, 6), (6, 2)])
def test_a_tile_fades_in_over_what_both_have(before, after):
    """From nothing of it to all of it; four entries are shared, or as many as the shorter one has."""
    num = min(4, before, after)
    left, right = torch.arange(before).float()[:, None], 100 + torch.arange(after).float()[:, None]
    due = right.clone()
    for i in range(num):
        due[i] = (1 - i / num) * left[before - num + i] + i / num * right[i]
    assert torch.equal(fade(left, right, 4, dim=-2), due)


def test_fitted_tiles_are_equal():
    assert Grid(30, 25).fitted(30) == Grid(30, 30, 1)
    assert Grid(30, 25).fitted(61) == Grid(24, 19, 3)
    spans = Grid(30, 25).fitted(61).spans(61, 8)
    assert spans == (slice(0, 192), slice(152, 344), slice(304, 496))
    assert all(a.stop > b.start for a, b in pairwise(spans))


def test_any_argument_asks_for_a_plan_and_replaces_the_former():
    model = vae()
    for i, value in enumerate((32, 48, 0.5, 0.25)):
        given = [None] * 4
        given[i] = value
        model.enable_tiling(*given)
        rows, columns = Tiling(24, 1 / 6), Tiling(40, 1 / 5)
        due = [(Tiling(32, 1 / 6), columns), (rows, Tiling(48, 1 / 5)), (Tiling(24, 0.5), columns)]
        due.append((rows, Tiling(40, 0.25)))
        assert model.tiling == VideoTiling(*due[i], is_fitted=False)
    model.enable_tiling()
    assert model.tiling == VideoTiling(Tiling(24, 1 / 6), Tiling(40, 1 / 5), is_fitted=True)


@pytest.mark.parametrize("given", list(product((0, -8, 20, 4), (None, 40))), ids=str)
def test_tilings_that_make_no_tiles_are_refused(given):
    model = vae()
    with pytest.raises(InputError, match="E-TILING"):
        model.enable_tiling(*given)
    with pytest.raises(InputError, match="E-TILING"):
        model.enable_tiling(*given[::-1])
    for overlap in (1.0, -0.1):
        with pytest.raises(InputError, match="E-TILING"):
            model.enable_tiling(tile_overlap_factor_width=overlap)
        with pytest.raises(InputError, match="E-TILING"):
            Tiling(24, overlap)
    assert model.tiling is None


@pytest.mark.parametrize("overlap", [0, 2])
def test_of_joined_tiles_only_edges_stay(overlap):
    """Of all but the one that was given last; and without an overlap not even edges."""
    x, grid = tiny.noise(1, 2, 3, 12, 15), Grid(5, 5 - overlap)
    rows, columns = grid.spans(12), grid.spans(15)
    alive: list[int] = []

    def tiles() -> Iterator[Tensor]:
        given: list[StorageWeakRef] = []
        for i, j in product(rows, columns):
            alive.append(sum(not storage.expired() for storage in given))
            tile = x[..., i, j].clone()
            given.append(StorageWeakRef(tile.untyped_storage()))
            yield tile
            del tile

    with Copied() as copied:
        joined = join(tiles(), len(rows), len(columns), grid, grid)
    torch.testing.assert_close(joined, x, rtol=1e-5, atol=1e-6)
    assert max(alive) <= 1
    given = sum(x[..., i, j].numel() for i, j in product(rows, columns))
    edges = sum(
        x[..., i, j][..., -overlap:].numel() + x[..., i, j][..., -overlap:, :].numel()
        for i, j in product(rows, columns)
        if overlap
    )
    assert copied.num == given + x.numel() + edges


class Copied(TorchDispatchMode):
    """Counts the numbers that are cloned."""

    def __init__(self):
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.clone.default:
            self.num += out.numel()
        return out
