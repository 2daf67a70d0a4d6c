"""Tiling geometry, the summed weights of the upsampling, and the settings of the autoencoder."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F

import tiny
from tolerances import assert_parity
from vivant.errors import InputError
from vivant.upsample import Upsample, double_and_convolve, layout, sum_phases
from vivant.vae.image import AutoencoderKL
from vivant.vae.tiling import Grid, Tiling, ramps


def plain(layer: Upsample, x: torch.Tensor) -> torch.Tensor:
    """The definition: double, then convolve."""
    return layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def vae(**changes) -> AutoencoderKL:
    return tiny.fill(AutoencoderKL.from_config({**tiny.VAE, **changes}))


# ----------------------------------------------------------------------------------------------------- tiles


def test_spans_advance_by_the_stride():
    grid = Tiling(64, 0.25).grid(8)
    assert grid == Grid(8, 6)
    assert grid.overlap == 2
    assert grid.spans(14) == (slice(0, 8), slice(6, 14), slice(12, 20))
    assert grid.spans(6) == (slice(0, 8),)
    assert grid.spans(7, 10) == (slice(0, 80), slice(60, 140))


def test_ramps_start_at_the_earlier_tile():
    falling, rising = ramps(4)
    assert falling.tolist() == [1.0, 0.75, 0.5, 0.25]
    assert rising.tolist() == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(("size", "overlap"), [(0, 0.25), (-8, 0.25), (64, 1.0), (64, -0.1), (60, 0.25), (8, 0.5)])
def test_tilings_that_make_no_tiles_are_refused(size, overlap):
    model = vae()
    with pytest.raises(InputError, match="E-TILING"):
        model.enable_tiling(size, overlap)
    assert model.tiling is None


def test_the_default_tile_is_the_sample_size():
    for size, tile in ((64, 64), (70, 64), ([96, 64], 64)):
        model = vae(sample_size=size)
        model.enable_tiling()
        assert model.tiling == Tiling(tile, 0.25)
    model.disable_tiling()
    assert model.tiling is None


# ------------------------------------------------------------------------------------------ summed weights


def test_summed_weights_are_exact():
    layer = Upsample(5).double()
    x = tiny.noise(2, 5, 6, 7).double()
    ours = double_and_convolve(x, sum_phases(layer.conv.weight), layer.conv.bias)
    assert (ours - plain(layer, x)).abs().max() <= 1e-12
    layer, x = layer.float(), x.float()
    assert_parity(double_and_convolve(x, sum_phases(layer.conv.weight), layer.conv.bias), plain(layer, x))


def test_half_precision_sums_are_rounded_once():
    weight = tiny.noise(3, 5, 3, 3).bfloat16()
    wide = sum_phases(weight.double())
    for row, wide_row in zip(sum_phases(weight), wide, strict=True):
        for phase, exact in zip(row, wide_row, strict=True):
            assert torch.equal(phase, exact.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layout_is_kept(dtype):
    """Nothing between the first and the last convolution falls back to the other layout."""
    model = vae().to(dtype)
    seen = []
    for module in model.modules():
        if isinstance(module, Upsample | torch.nn.GroupNorm):
            module.register_forward_hook(
                lambda module, args, out: seen.append(
                    [t.is_contiguous(memory_format=layout(dtype)) for t in (*args, out)]
                )
            )
    with torch.no_grad():
        model(tiny.noise(2, 3, 48, 80).to(dtype))
    assert len(seen) > 20
    assert all(map(all, seen))


def _assign(layer):
    layer.conv.weight = torch.nn.Parameter(tiny.noise(*layer.conv.weight.shape, seed=2))


def _assign_on_the_same_memory(layer):
    """The address and, in the end, the count of changes are those of the weight before."""
    count = layer.conv.weight._version
    layer.conv.weight = torch.nn.Parameter(layer.conv.weight.data)
    while layer.conv.weight._version < count:
        layer.conv.weight.mul_(2)


CHANGES = {
    "load": lambda layer: layer.load_state_dict({k: v * 2 for k, v in layer.state_dict().items()}),
    "load by assignment": lambda layer: layer.load_state_dict(
        {k: v * 2 for k, v in layer.state_dict().items()}, assign=True
    ),
    "in place": lambda layer: layer.conv.weight.mul_(3),
    "new data": lambda layer: setattr(layer.conv.weight, "data", layer.conv.weight.data * 3),
    "new parameter": _assign,
    "new parameter on the same memory": _assign_on_the_same_memory,
    "written past its version": lambda layer: layer.conv.weight.data.mul_(-1),
    "cast": lambda layer: layer.double(),
    "cast to and fro": lambda layer: layer.bfloat16().float(),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("num_channels", [5, 8])
def test_summed_weights_follow_the_weight(change, num_channels):
    layer, x = Upsample(num_channels).to(memory_format=torch.channels_last), tiny.noise(2, num_channels, 6, 7)
    before = layer(x)
    assert_parity(before, plain(layer, x))
    assert layer.phases() is layer.phases()
    CHANGES[change](layer)
    x = x.to(layer.conv.weight.dtype)
    assert not torch.equal(before, plain(layer, x))
    assert_parity(layer(x), plain(layer, x))


@torch.no_grad()
def test_casting_forgets_the_summed_weights():
    """The rounded weight could come to lie where the exact one lay."""
    layer, x = Upsample(5), tiny.noise(2, 5, 6, 7)
    layer(x)
    assert layer._known is not None
    assert torch.nn.Sequential(layer).to(torch.float64)[0]._known is None


def test_summed_weights_follow_a_weight_made_for_inference():
    """Such tensors do not count their changes, so nothing is kept for them."""
    with torch.inference_mode():
        layer, x = Upsample(5), tiny.noise(2, 5, 6, 7)
        layer(x)
        layer.conv.weight.mul_(2)
        assert_parity(layer(x), plain(layer, x))


@torch.no_grad()
def test_summed_weights_are_neither_saved_nor_copied():
    layer, x = Upsample(5), tiny.noise(2, 5, 6, 7)
    layer(x)
    assert set(layer.state_dict()) == {"conv.weight", "conv.bias"}
    twin = copy.deepcopy(layer)
    twin.conv.weight.mul_(2)
    assert_parity(twin(x), plain(twin, x))
    assert_parity(layer(x), plain(layer, x))
    sizes = []
    for module in (layer, Upsample(5)):
        file = io.BytesIO()
        torch.save(module, file)
        sizes.append(file.tell())
    assert abs(sizes[0] - sizes[1]) < 200


def test_training_convolves_what_was_doubled():
    """The definition is used where gradients flow, and gives the same gradients."""
    layer, x = Upsample(5), tiny.noise(2, 5, 6, 7)
    layer(x).sum().backward()
    assert layer._known is None
    mine = layer.conv.weight.grad.clone()
    layer.zero_grad()
    plain(layer, x).sum().backward()
    assert_parity(mine, layer.conv.weight.grad)


# ------------------------------------------------------------------------------------------------- settings


def batches(model: AutoencoderKL, part: str) -> list[int]:
    """Record how many samples each call of a half sees."""
    seen: list[int] = []
    getattr(model, part).register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    return seen


@torch.no_grad()
def test_work_goes_in_chunks():
    model = vae()
    decoded, encoded = batches(model, "decoder"), batches(model, "encoder")
    z, x = tiny.noise(5, 4, 2, 3), tiny.noise(5, 3, 16, 24)
    model.decode(z)
    model.encode(x)
    assert decoded == encoded == [2, 2, 1]
    model.chunk_size = 4
    model.decode(z)
    model.enable_slicing()
    model.decode(z)
    model.disable_slicing()
    model.decode(z)
    assert decoded == [2, 2, 1, 4, 1, 1, 1, 1, 1, 1, 4, 1]
    model.chunk_size = 0
    with pytest.raises(InputError, match="E-VAE-CHUNK"):
        model.decode(z)


@torch.no_grad()
def test_small_pictures_are_not_cut():
    model = vae()
    model.enable_tiling(64)
    seen = batches(model, "decoder")
    model.decode(tiny.noise(1, 4, 8, 8))
    assert len(seen) == 1
    model.decode(tiny.noise(1, 4, 8, 9))
    assert len(seen) == 1 + 4


@torch.no_grad()
def test_inputs_are_not_changed():
    """In-place arithmetic stays on tensors that the network made itself."""
    for changes in ({}, {"use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False}):
        model = vae(**changes)
        for tile in (None, 64):
            if tile:
                model.enable_tiling(tile)
            z, x = (
                tiny.noise(2, c, *size).contiguous(memory_format=torch.channels_last)
                for c, size in ((4, (9, 13)), (3, (72, 90)))
            )
            z_before, x_before = z.clone(), x.clone()
            model.decode(z)
            model.encode(x)
            assert torch.equal(z, z_before)
            assert torch.equal(x, x_before)


@pytest.mark.parametrize(
    "changes",
    [
        {"act_fn": "mish"},
        {"shift_factor": 0.1},
        {"latents_mean": [0.0] * 4},
        {"down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"]},
        {"up_block_types": ["UpDecoderBlock2D"] * 3},
        {"block_out_channels": [4, 8]},
    ],
)
def test_configurations_that_are_not_implemented_are_refused(changes):
    with pytest.raises(InputError, match="E-CONFIG-VALUE"):
        AutoencoderKL.from_config({**tiny.VAE, **changes})


def test_unknown_fields_are_refused_and_null_ones_kept():
    with pytest.raises(InputError, match="E-CONFIG-UNKNOWN"):
        AutoencoderKL.from_config({**tiny.VAE, "spatial_only": True})
    assert AutoencoderKL.from_config({**tiny.VAE, "latents_std": None, "new": None}).config.new is None
