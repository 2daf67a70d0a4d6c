"""AutoencoderKLCogVideoX against diffusers and against the published tensor names: layers, chunks, tiles, the whole."""

import json
from inspect import signature
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.models.autoencoders import autoencoder_kl_cogvideox as port
from diffusers.models.downsampling import CogVideoXDownsample3D
from diffusers.models.upsampling import CogVideoXUpsample3D
from safetensors.torch import load_file
from torch import Tensor

import tiny
from tolerances import assert_parity, relative_l2
from vivant.errors import InputError
from vivant.upsample import Upsample
from vivant.vae.causal import CausalConv3d, Past
from vivant.vae.video import (
    AutoencoderKLCogVideoX,
    Downsample,
    ResnetBlock,
    SpatialNorm,
    SpatialResnetBlock,
    enlarged,
)

GOLDEN = Path(__file__).parents[1] / "golden"
B, C, H, W = 2, 6, 7, 11  # latents; 56 x 88 pixels
SHALLOW = {
    "block_out_channels": [6, 10],
    "down_block_types": ["CogVideoXDownBlock3D"] * 2,
    "up_block_types": ["CogVideoXUpBlock3D"] * 2,
    "norm_num_groups": 2,
    "layers_per_block": 2,
    "latent_channels": 5,
    "temporal_compression_ratio": 2,
}
CONFIGS = [{}, SHALLOW, {"temporal_compression_ratio": 8}, {"temporal_compression_ratio": 1}]


def pair(seed: int = 11, **changes) -> tuple[AutoencoderKLCogVideoX, diffusers.AutoencoderKLCogVideoX]:
    """Ours and diffusers' with the same deterministic weights."""
    config = {**tiny.VIDEO_VAE, **changes}
    ours, theirs = AutoencoderKLCogVideoX.from_config(config), diffusers.AutoencoderKLCogVideoX.from_config(config)
    return tiny.fill(ours, seed), tiny.fill(theirs, seed)


def videos(f: int, b: int = B, h: int = 8 * H, w: int = 8 * W) -> Tensor:
    return tiny.noise(b, 3, f, h, w, seed=3)


def latents(f: int, b: int = B, c: int = C, h: int = H, w: int = W) -> Tensor:
    return tiny.noise(b, c, f, h, w, seed=4)


# ------------------------------------------------------------------------------------------------------ layers


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(1,), (2,), (3, 2, 2), (9, 8), (4, 1, 1, 5)], ids=str)
def test_causal_convolution_equals_the_port(lengths):
    """From chunk to chunk, and with chunks that are shorter than what the convolution looks back."""
    ours, theirs = tiny.fill(CausalConv3d(5, 8)), tiny.fill(port.CogVideoXCausalConv3d(5, 8, kernel_size=3))
    past, cache = Past(), None
    for part in tiny.noise(2, 5, sum(lengths), 6, 10).split(lengths, dim=2):
        due, cache = theirs(part, conv_cache=cache)
        assert_parity(ours(past.window(ours, part)), due)


@torch.no_grad()
@pytest.mark.parametrize(("f", "k"), [(1, 1), (2, 2), (4, 2), (8, 2), (3, 3), (5, 3), (9, 3), (4, 4), (16, 4), (17, 5)])
@pytest.mark.parametrize("times", [1, 2, 8])
def test_spatial_norm_equals_the_port(f, k, times):
    ours, theirs = tiny.fill(SpatialNorm(12, 6, 4)), tiny.fill(port.CogVideoXSpatialNorm3D(12, 6, 4))
    x, z = 3 + tiny.noise(2, 12, f, 7 * times, 10 * times), tiny.noise(2, 6, k, 7, 10, seed=1)
    assert_parity(torch.cat([part for _, part in ours.parts(x, z)], dim=1), theirs(x, z)[0])


@torch.no_grad()
@pytest.mark.parametrize("out_channels", [12, 16])
def test_residual_blocks_equal_the_port(out_channels):
    x, z = tiny.noise(2, 12, 9, 14, 20), tiny.noise(2, 6, 5, 7, 10, seed=1)
    ours = tiny.fill(ResnetBlock(12, out_channels, 4))
    theirs = tiny.fill(port.CogVideoXResnetBlock3D(12, out_channels, temb_channels=0, groups=4))
    past, cache = Past(), None
    for part in x.split((5, 4), dim=2):
        due, cache = theirs(part, conv_cache=cache)
        assert_parity(ours(part, past), due)
    ours = tiny.fill(SpatialResnetBlock(12, out_channels, 6, 4))
    theirs = port.CogVideoXResnetBlock3D(12, out_channels, temb_channels=0, groups=4, spatial_norm_dim=6)
    tiny.fill(theirs)
    past, cache = Past(), None
    for part, latent in zip(x.split((5, 4), dim=2), z.split((3, 2), dim=2), strict=True):
        due, cache = theirs(part, zq=latent, conv_cache=cache)
        assert_parity(ours(part, latent, past), due)


@torch.no_grad()
@pytest.mark.parametrize("f", [1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("with_time", [False, True])
def test_changes_of_size_equal_the_port(f, with_time):
    x = tiny.noise(2, 6, f, 14, 20)
    down, port_down = Downsample(6, with_time), CogVideoXDownsample3D(6, 6, padding=0, compress_time=with_time)
    assert_parity(tiny.fill(down)(x), tiny.fill(port_down)(x))
    up, port_up = Upsample(6), CogVideoXUpsample3D(6, 6, compress_time=with_time)
    assert_parity(enlarged(tiny.fill(up), x, with_time), tiny.fill(port_up)(x))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_halves_equal_the_port_chunk_by_chunk(dtype):
    ours, theirs = (vae.to(dtype) for vae in pair())
    for half, x, sizes in (("decoder", latents(5), (3, 2)), ("encoder", videos(17), (9, 8))):
        past, cache = Past(), None
        for part in x.to(dtype).split(sizes, dim=2):
            due, cache = getattr(theirs, half)(part, conv_cache=cache)
            assert_parity(getattr(ours, half)(part, past), due, dtype)


# --------------------------------------------------------------------------------------------------- the whole


@torch.no_grad()
@pytest.mark.parametrize("changes", CONFIGS, ids=lambda changes: ",".join(changes))
@pytest.mark.parametrize("f", [1, 2, 3, 4, 5, 9, 13])
def test_decode_equals_the_port(changes, f):
    """Of every length: the first chunk takes the rest, an odd one keeps its first frame single."""
    ours, oracle = pair(**changes)
    h, w = (5, 8) if changes else (H, W)
    z = latents(f, c=changes.get("latent_channels", C), h=h, w=w)
    theirs = oracle.decode(z).sample
    assert_parity(ours.decode(z).sample, theirs)
    assert_parity(ours.decode(z, return_dict=False)[0], oracle.decode(z, return_dict=False)[0])
    assert ours.decode(z).sample.is_contiguous()
    if not changes:
        assert theirs.shape[2] == (4 * (f - 1) + 1 if f % 2 else 4 * f)


@torch.no_grad()
@pytest.mark.parametrize("changes", CONFIGS, ids=lambda changes: ",".join(changes))
@pytest.mark.parametrize("f", [1, 2, 3, 4, 5, 7, 8, 9, 10, 13, 15, 16, 17, 20])
def test_encode_equals_the_port(changes, f):
    ours, oracle = pair(**changes)
    x = videos(f, h=48, w=80)
    (posterior,), theirs = ours.encode(x, return_dict=False), oracle.encode(x).latent_dist
    assert_parity(posterior.parameters, theirs.parameters)
    assert_parity(ours.encode(x).latent_dist.mean, theirs.mean)
    assert_parity(posterior.std, theirs.std)
    assert posterior.parameters.is_contiguous()


@torch.no_grad()
@pytest.mark.parametrize(("h", "w"), [(50, 83), (9, 31)])
@pytest.mark.parametrize("f", [1, 9])
def test_encode_of_odd_sizes_equals_the_port(h, w, f):
    ours, oracle = pair()
    x = videos(f, h=h, w=w)
    assert_parity(ours.encode(x).latent_dist.parameters, oracle.encode(x).latent_dist.parameters)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["global", "one", "list"])
def test_draws_equal_the_port(kind):
    """The same seeds give the same draw: from the global generator, from one, and from one for each entry."""
    ours, oracle = pair()
    x = videos(5, b=3)

    def draw(vae) -> Tensor:
        torch.manual_seed(5)
        many = [torch.Generator().manual_seed(seed) for seed in (7, 8, 9)]
        return vae.encode(x).latent_dist.sample({"global": None, "one": many[0], "list": many}[kind])

    assert_parity(draw(ours), draw(oracle))


@torch.no_grad()
@pytest.mark.parametrize("sample_posterior", [False, True])
def test_forward_equals_the_port(sample_posterior):
    ours, oracle = pair()
    x = videos(9)
    results = [vae(x, sample_posterior, generator=torch.Generator().manual_seed(1)).sample for vae in (ours, oracle)]
    assert_parity(*results)
    assert torch.equal(ours(x, return_dict=False)[0], ours(x).sample)


def test_gradients_equal_the_port():
    """Without the writing in place that inference has; over two chunks, so that gradients go through what is kept."""
    ours, oracle = pair()
    grads = []
    for vae in (ours, oracle):
        z, x, still = (tensor.requires_grad_() for tensor in (latents(5), videos(17), videos(1)))
        vae.decode(z).sample.square().sum().backward()
        vae.encode(x).latent_dist.parameters.square().sum().backward()
        vae.encode(still).latent_dist.parameters.square().sum().backward()
        weights = [
            vae.decoder.up_blocks[0].upsamplers[0].conv.weight,
            vae.decoder.up_blocks[1].resnets[0].norm1.conv_y.conv.weight,
            vae.decoder.mid_block.resnets[0].conv1.conv.weight,
            vae.encoder.down_blocks[1].resnets[0].norm2.weight,
            vae.encoder.mid_block.resnets[0].conv1.conv.weight,
        ]
        grads.append((z.grad, x.grad, still.grad, *(weight.grad for weight in weights)))
    for mine, their in zip(*grads, strict=True):
        assert_parity(mine, their)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["decode", "encode", "encode a still"])
def test_half_precision_is_as_close_to_float32_as_the_port(kind):
    """bf16 with equal weights, over several of them: by chance alone a single network is some per cent off."""
    found, due = [], []
    for seed in range(4):
        vaes = pair(seed, block_out_channels=[16, 24, 32, 40], norm_num_groups=8, layers_per_block=2)
        x = latents(5, h=5) if kind == "decode" else videos(1 if kind == "encode a still" else 9, h=40, w=56)

        def run(vae, x=x) -> Tensor:
            value = vae.decode(x).sample if kind == "decode" else vae.encode(x).latent_dist.parameters
            assert value.dtype == x.dtype
            return value.float().flatten()

        exact = run(vaes[1])
        due.append(exact / exact.norm())
        found.append([run(vae.bfloat16(), x.bfloat16()) / exact.norm() for vae in vaes])
    errors = [relative_l2(torch.cat(values), torch.cat(due)) for values in zip(*found, strict=True)]
    assert errors[0] <= 1.1 * errors[1], errors


@torch.no_grad()
def test_the_public_calls_are_the_port_s():
    """Their arguments by name and place, and tuples of one when asked for."""
    names = ("encode", "decode", "forward", "enable_tiling", "disable_tiling", "enable_slicing", "disable_slicing")
    ours, oracle = pair()
    for name in names:
        mine, their = (list(signature(getattr(vae, name)).parameters) for vae in (ours, oracle))
        assert mine == their, name
    x, z = videos(1, h=24, w=40), latents(1, h=3, w=5)
    for vae in (ours, oracle):
        for call, given in ((vae.encode, x), (vae.decode, z), (vae, x)):
            result = call(given, return_dict=False)
            assert type(result) is tuple
            assert len(result) == 1
        assert vae.encode(x).latent_dist.mode().shape == z.shape
        assert vae.decode(z)[0].shape == vae.decode(z).sample.shape == x.shape


# ------------------------------------------------------------------------------------------- slices and tiles


@torch.no_grad()
def test_sliced_equals_the_port():
    ours, oracle = pair()
    for vae in (ours, oracle):
        vae.enable_slicing()
    z = latents(5, b=3, h=4, w=9)
    assert_parity(ours.decode(z).sample, oracle.decode(z).sample)
    x = videos(9, b=3, h=40)
    assert_parity(ours.encode(x).latent_dist.mean, oracle.encode(x).latent_dist.mean)


PLANS = [
    {"tile_sample_min_height": 24, "tile_overlap_factor_height": 1 / 3, "tile_overlap_factor_width": 2 / 5},
    {"tile_sample_min_height": 32, "tile_sample_min_width": 40, "tile_overlap_factor_height": 0.25},
    {"tile_sample_min_height": 48, "tile_sample_min_width": 32, "tile_overlap_factor_width": 0.5},
]


@torch.no_grad()
@pytest.mark.parametrize(("f", "h", "w"), [(3, 7, 11), (4, 6, 5), (5, 3, 13), (1, 9, 8)])
@pytest.mark.parametrize("plan", PLANS, ids=["24x40", "32x40", "48x32"])
def test_tiled_decode_equals_the_port(plan, f, h, w):
    """When its plan is asked for; also where only one side is larger than a tile, and over several chunks."""
    plan = {"tile_overlap_factor_height": 1 / 6, "tile_overlap_factor_width": 1 / 5, **plan}
    ours, oracle = pair()
    for vae in (ours, oracle):
        vae.enable_tiling(**plan)
    z = latents(f, h=h, w=w)
    theirs = oracle.decode(z).sample
    assume_whole_latents(theirs.shape, (8 * h, 8 * w))
    assert_parity(ours.decode(z).sample, theirs)
    ours.disable_tiling()
    assert relative_l2(ours.decode(z).sample, theirs) > 1e-3, "nothing was cut"


def assume_whole_latents(shape: torch.Size, sides: tuple[int, int]) -> None:
    """diffusers returns another size where an overlap is a fraction of a latent; such plans are no reference."""
    assert tuple(shape[-2:]) == sides


@torch.no_grad()
@pytest.mark.parametrize(("f", "h", "w"), [(1, 56, 88), (9, 48, 40), (13, 24, 104), (5, 59, 93)])
@pytest.mark.parametrize("plan", PLANS[:1], ids=["24x40"])
def test_tiled_encode_equals_the_port(plan, f, h, w):
    ours, oracle = pair()
    for vae in (ours, oracle):
        vae.enable_tiling(**plan)
    x = videos(f, h=h, w=w)
    theirs = oracle.encode(x).latent_dist.parameters
    assert_parity(ours.encode(x).latent_dist.parameters, theirs)
    ours.disable_tiling()
    assert relative_l2(ours.encode(x).latent_dist.parameters, theirs) > 1e-3, "nothing was cut"


@torch.no_grad()
def test_the_port_s_default_plan_is_there_on_request():
    """At the ratio of the published sizes, whose overlaps are whole latents: 3x3 tiles of 6x5 for 12x10 latents."""
    changes = {**SHALLOW, "sample_height": 24, "sample_width": 20}
    ours, oracle = pair(**changes)
    oracle.enable_tiling()
    z = latents(3, c=5, h=12, w=10)
    theirs = oracle.decode(z).sample
    for plan in ((12,), (None, 10), (None, None, 1 / 6), (None, None, None, 1 / 5), (12, 10, 1 / 6, 1 / 5)):
        ours.enable_tiling(*plan)
        assert_parity(ours.decode(z).sample, theirs)
    ours.enable_tiling()
    assert relative_l2(ours.decode(z).sample, theirs) > 1e-3


@torch.no_grad()
def test_tiled_encode_of_sizes_that_break_the_port():
    """A last tile thinner than a latent: diffusers stops with a RuntimeError, we give the tile before its pixels."""
    ours, oracle = pair()
    for vae in (ours, oracle):
        vae.enable_tiling(**PLANS[0])
    x = videos(1, b=1, h=3 * 16 + 6, w=40)
    with pytest.raises(RuntimeError):
        oracle.encode(x)
    assert ours.encode(x).latent_dist.mean.shape == (1, 6, 1, 6, 5)


@torch.no_grad()
def test_overlaps_of_fractional_latents_keep_the_size():
    """A sixth of 3 latents is not whole: diffusers misplaces the tiles, we share one latent."""
    ours, oracle = pair()
    for vae in (ours, oracle):
        vae.enable_tiling(24, 40, 1 / 6, 1 / 5)
    z = latents(1, b=1, h=7, w=5)
    assert ours.decode(z).sample.shape == (1, 3, 1, 56, 40)
    assert oracle.decode(z).sample.shape != (1, 3, 1, 56, 40)


@torch.no_grad()
def test_no_overlap_is_an_overlap():
    """diffusers takes 0 for "not given"."""
    ours, oracle = pair()
    for vae in (ours, oracle):
        vae.enable_tiling(24, 40, 0.0, 0.0)
    assert oracle.tile_overlap_factor_height == 1 / 6
    z = latents(1, b=1, h=6, w=10)
    alone = ours.decode(z[..., :3, :5])[0]
    assert_parity(ours.decode(z).sample[..., :24, :40], alone)


# ------------------------------------------------------------------------------------------------------- files


PUBLISHED = {
    **json.loads((GOLDEN / "configs.json").read_text(encoding="utf-8"))["consisid_vae"],
    "inferred": None,  # a remark of the manifest
}


def test_full_size_names_and_shapes():
    published = json.loads((GOLDEN / "cogvideox_vae.json").read_text(encoding="utf-8"))["tensors"]
    with torch.device("meta"):
        vae = AutoencoderKLCogVideoX.from_config(PUBLISHED)
    assert {key: list(value.shape) for key, value in vae.state_dict().items()} == published


def test_full_size_shapes_without_weights():
    with torch.device("meta"), torch.no_grad():
        vae = AutoencoderKLCogVideoX.from_config(PUBLISHED).bfloat16()
        z, still = torch.empty(1, 16, 13, 60, 90), torch.empty(1, 3, 1, 480, 720)
        assert vae.decode(z.bfloat16()).sample.shape == (1, 3, 49, 480, 720)
        assert vae.encode(still.bfloat16()).latent_dist.mean.shape == (1, 16, 1, 60, 90)
        vae.enable_tiling()
        assert [part.shape[2] for part in vae.decode_frames(z.bfloat16())] == [9, 8, 8, 8, 8, 8]


@torch.no_grad()
def test_files_travel_both_ways(tmp_path):
    ours, oracle = pair()
    ours.decode(latents(3))  # what is computed from the weights must not reach the file
    ours.save_pretrained(tmp_path / "ours")
    oracle.save_pretrained(tmp_path / "theirs")
    names = [set(load_file(next((tmp_path / who).glob("*.safetensors")))) for who in ("ours", "theirs")]
    assert names[0] == names[1]
    theirs = diffusers.AutoencoderKLCogVideoX.from_pretrained(tmp_path / "ours").eval()
    mine = AutoencoderKLCogVideoX.from_pretrained(tmp_path / "theirs")
    z = latents(3)
    assert_parity(theirs.decode(z).sample, oracle.decode(z).sample)
    assert_parity(mine.decode(z).sample, oracle.decode(z).sample)
    assert comparable(mine.config) == comparable(oracle.config)


def comparable(config) -> dict[str, object]:
    """The fields without metadata, lists and tuples alike."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if not k.startswith("_")}


def test_the_port_s_quantising_convolutions_do_not_fit_its_latents():
    """They count the channels of pictures, so no published file can have them; we refuse the field."""
    with pytest.raises(InputError, match=r"E-CONFIG-VALUE.*use_quant_conv"):
        AutoencoderKLCogVideoX.from_config({**tiny.VIDEO_VAE, "use_quant_conv": True})
    config = {**tiny.VIDEO_VAE, "use_quant_conv": True}
    oracle = diffusers.AutoencoderKLCogVideoX.from_config(config)
    with torch.no_grad(), pytest.raises(RuntimeError, match="channels"):
        oracle.encode(videos(1))
