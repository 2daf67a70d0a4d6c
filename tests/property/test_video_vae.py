"""Laws of videos in chunks and tiles: nothing lost, nothing twice, no frame knows a later one."""

from functools import cache
from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from tolerances import assert_parity, relative_l2
from vivant.vae.causal import CausalConv3d, Past, chunks
from vivant.vae.tiling import Grid, join
from vivant.vae.video import AutoencoderKLCogVideoX, spread

few = settings(max_examples=25, deadline=None)
grids = st.integers(1, 40).flatmap(lambda tile: st.builds(Grid, st.just(tile), st.integers(1, tile)))


@cache
def vae() -> AutoencoderKLCogVideoX:
    return tiny.fill(AutoencoderKLCogVideoX.from_config(tiny.VIDEO_VAE))


# ------------------------------------------------------------------------------------------------------ chunks


@given(num=st.integers(1, 200), size=st.integers(1, 20))
def test_chunks_follow_one_another(num, size):
    parts = chunks(num, size)
    assert [i for part in parts for i in range(num)[part]] == list(range(num))
    assert [part.stop - part.start for part in parts[1:]] == [size] * (len(parts) - 1)
    first = parts[0].stop
    assert first < 2 * size
    assert len(parts) == 1 or first >= size


@given(k=st.integers(1, 9), times=st.sampled_from([1, 2, 4, 8]))
def test_frames_are_spread_as_the_nearest_ones(k, times):
    """Like resizing to the nearest, the first of an odd number apart."""
    first = k % 2 if k > 1 else 0
    num = first + (k - first) * times
    numbers = torch.arange(k, dtype=torch.float32)[None, None]
    nearest = torch.cat([numbers[..., :first], F.interpolate(numbers[..., first:], num - first)], dim=2)
    assert [i for i, frames in enumerate(spread(num, k)) for _ in range(num)[frames]] == nearest.flatten().tolist()


@few
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_a_convolution_in_chunks_is_the_convolution_of_the_whole(lengths):
    """However the video is cut: no norm is in between."""
    conv = tiny.fill(CausalConv3d(3, 5))
    x = tiny.noise(1, 3, sum(lengths), 4, 7)
    past = Past()
    with torch.no_grad():
        parts = [conv(past.window(conv, part)) for part in x.split(lengths, dim=2)]
        whole = conv(Past().window(conv, x))
    assert_parity(torch.cat(parts, dim=2), whole)


@torch.no_grad()
@pytest.mark.parametrize("changed", [3, 4, 5, 6])
def test_no_frame_knows_a_later_chunk(changed):
    """A change in the latents shows from its chunk on, and there at once: the chunks are 0-2, 3-4, 5-6."""
    z = tiny.noise(1, 6, 7, 3, 5)
    other = z.clone()
    other[:, :, changed] += 1
    a, b = (list(vae().decode_frames(latents)) for latents in (z, other))
    start = 1 if changed < 5 else 2
    assert [torch.equal(x, y) for x, y in zip(a, b, strict=True)] == [i < start for i in range(3)]


@torch.no_grad()
def test_what_came_before_a_chunk_is_seen_in_it():
    z = tiny.noise(1, 6, 5, 3, 5)
    other = z.clone()
    other[:, :, 2] += 1
    a, b = (list(vae().decode_frames(latents))[1] for latents in (z, other))
    assert relative_l2(a, b) > 1e-2


# ------------------------------------------------------------------------------------------------------- tiles


@given(grid=grids, length=st.integers(1, 200))
def test_fitted_tiles_cover_without_waste(grid, length):
    fitted = grid.fitted(length)
    spans = fitted.spans(length)
    assert len(spans) == fitted.num
    assert spans[0].start == 0
    assert spans[-1].stop >= length
    assert all(before.stop < length for before in spans[:-1]), "a tile lies within the one before"
    assert all(after.start - before.start == fitted.stride for before, after in pairwise(spans))
    assert len(spans) <= -(-length // grid.tile)
    if len(spans) > 1:
        assert grid.overlap <= fitted.overlap
        assert fitted.tile <= grid.tile + grid.overlap


@few
@given(down=grids, across=grids, h=st.integers(1, 60), w=st.integers(1, 60), fits=st.booleans())
def test_joined_tiles_are_the_picture(down, across, h, w, fits):
    """With tiles of another length and overlap along each axis."""
    if fits:
        down, across = down.fitted(h), across.fitted(w)
    x = tiny.noise(2, 3, 2, h, w)
    rows, columns = down.spans(h), across.spans(w)
    joined = join((x[..., i, j].clone() for i, j in product(rows, columns)), len(rows), len(columns), down, across)
    assert joined.shape == x.shape
    torch.testing.assert_close(joined, x, rtol=1e-5, atol=1e-6)


@few
@given(grid=grids, length=st.integers(1, 40), rest=st.integers(0, 7))
def test_fitted_tiles_of_pixels_cover_the_latents_they_belong_to(grid, length, rest):
    """With a network that averages squares of pixels, tiled encoding is the whole encoding."""
    grid = grid.fitted(length)
    x = tiny.noise(1, 2, 8 * length + rest, 8)
    rows = grid.spans(length, 8)
    joined = join((F.avg_pool2d(x[..., i, :], 8) for i in rows), len(rows), 1, grid, Grid(1, 1))
    torch.testing.assert_close(joined, F.avg_pool2d(x, 8), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_fitted_tiles_are_closer_to_the_whole_than_the_port_s():
    """Fewer seams and longer tiles; not equal, since every tile is normalised by itself. 2x2 tiles against 3x3."""
    config = {**tiny.VIDEO_VAE, "sample_height": 192, "sample_width": 320}
    model = tiny.fill(AutoencoderKLCogVideoX.from_config(config))
    z = tiny.noise(1, 6, 3, 24, 40, seed=1)
    whole = model.decode_tensor(z)
    errors = []
    for plan in ((), (192 // 2, 320 // 2, 1 / 6, 1 / 5)):
        model.enable_tiling(*plan)
        errors.append(relative_l2(model.decode_tensor(z), whole))
    assert errors[0] < errors[1] < 0.3
