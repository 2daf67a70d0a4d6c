"""Laws that hold for every size: tiles join seamlessly, chunks equal the whole, summed weights equal doubling."""

from functools import cache
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from tolerances import assert_parity, relative_l2
from vivant.errors import InputError
from vivant.upsample import double_and_convolve, sum_phases
from vivant.vae.image import AutoencoderKL
from vivant.vae.tiling import Tiling, join

few = settings(max_examples=25, deadline=None)


@cache
def vae() -> AutoencoderKL:
    return tiny.fill(AutoencoderKL.from_config(tiny.VAE))


sizes = st.integers(1, 40)
tilings = st.builds(lambda latents, overlap: Tiling(8 * latents, overlap), st.integers(1, 12), st.floats(0, 0.95))


@few
@given(h=sizes, w=sizes, tiling=tilings)
def test_joined_tiles_of_a_picture_are_the_picture(h, w, tiling):
    """Whatever the sizes: nothing lost, nothing doubled, nothing displaced, and weights that add up to one."""
    try:
        grid = tiling.grid(8)
    except InputError:
        return
    x = tiny.noise(2, 3, h, w)
    rows, columns = grid.spans(h), grid.spans(w)
    joined = join((x[..., i, j].clone() for i, j in product(rows, columns)), len(rows), len(columns), grid, grid)
    assert joined.shape == x.shape
    torch.testing.assert_close(joined, x, rtol=1e-5, atol=1e-6)


@few
@given(h=sizes, w=sizes, tiling=tilings, factor=st.sampled_from([2, 4, 8]), rest=st.integers(0, 7))
def test_tiles_of_pixels_cover_the_latents_they_belong_to(h, w, tiling, factor, rest):
    """With a network that averages squares of pixels, tiled encoding is the whole encoding."""
    try:
        grid = tiling.grid(8)
    except InputError:
        return
    rest %= factor
    x = tiny.noise(1, 2, h * factor + rest, w * factor + rest)
    rows, columns = (grid.spans(size, factor) for size in (h, w))
    tiles = (F.avg_pool2d(x[..., i, j], factor) for i, j in product(rows, columns))
    joined = join(tiles, len(rows), len(columns), grid, grid)
    torch.testing.assert_close(joined, F.avg_pool2d(x, factor), rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("h", "w"), [(48, 40), (33, 70)])
def test_tiled_is_close_to_untiled(h, w):
    """Closer with overlap than without; not equal, since every tile is normalised by itself."""
    model = vae()
    z, x = tiny.noise(1, 4, h, w, seed=1), tiny.noise(1, 3, 8 * h, 8 * w, seed=1)
    try:
        errors = {}
        model.disable_tiling()
        picture, moments = model.decode_tensor(z), model.encode_moments(x)
        for overlap in (0.0, 0.25):
            model.enable_tiling(256, overlap)
            errors[overlap] = (
                relative_l2(model.decode_tensor(z), picture),
                relative_l2(model.encode_moments(x), moments),
            )
    finally:
        model.disable_tiling()
    assert errors[0.25][0] < 0.15 < 0.3 < errors[0.0][0]
    assert errors[0.25][1] < 0.1 < 0.2 < errors[0.0][1]


@settings(max_examples=8, deadline=None)
@given(num=st.integers(1, 5), chunk=st.integers(1, 6), tiled=st.booleans())
def test_chunks_equal_the_whole(num, chunk, tiled):
    model = vae()
    z, x = tiny.noise(num, 4, 5, 9), tiny.noise(num, 3, 41, 73)
    try:
        if tiled:
            model.enable_tiling(64)
        results = []
        for size in (num, chunk):
            model.chunk_size = size
            with torch.no_grad():
                results.append((model.decode_tensor(z), model.encode_moments(x)))
    finally:
        model.disable_tiling()
        model.chunk_size = 2
    for whole, parts in zip(*results, strict=True):
        assert_parity(parts, whole)


@few
@given(
    n=st.integers(1, 3),
    c=st.integers(1, 6),
    d=st.integers(1, 6),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    biased=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_summed_weights_equal_doubling(n, c, d, h, w, biased, dtype):
    x, weight = tiny.noise(n, c, h, w, seed=1).to(dtype), tiny.noise(d, c, 3, 3, seed=2).to(dtype)
    bias = tiny.noise(d, seed=3).to(dtype) if biased else None
    ours = double_and_convolve(x, sum_phases(weight), bias)
    doubled = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    torch.testing.assert_close(ours, doubled, rtol=0, atol=1e-12 if dtype == torch.float64 else 3e-5)
