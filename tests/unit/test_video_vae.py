"""The video autoencoder: chunks and what is kept between them, work that is not done twice, streaming, settings."""

import gc
import json
import weakref
from pathlib import Path

import diffusers
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

import tiny
from tolerances import assert_parity
from vivant.config import Config, read
from vivant.errors import InputError
from vivant.upsample import Upsample
from vivant.vae import causal, video
from vivant.vae.causal import CausalConv3d, Past, chunks, in_turn, layout, summed_over_time
from vivant.vae.posterior import DiagonalGaussian
from vivant.vae.video import AutoencoderKLCogVideoX, AutoencoderKLCogVideoXConfig, Pointwise, spread, with_edge

C, H, W = 6, 3, 5


def vae(**changes) -> AutoencoderKLCogVideoX:
    return tiny.fill(AutoencoderKLCogVideoX.from_config({**tiny.VIDEO_VAE, **changes}))


def latents(f: int, b: int = 1, h: int = H, w: int = W) -> Tensor:
    return tiny.noise(b, C, f, h, w, seed=4)


def seen_by(model: torch.nn.Module, kind: type) -> list[torch.Size]:
    """Record the shapes that modules of a kind are given."""
    shapes: list[torch.Size] = []
    for module in model.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda module, args, out: shapes.append(args[0].shape))
    return shapes


@pytest.fixture
def pasts(monkeypatch) -> "weakref.WeakSet[Past]":
    """Every `Past` that is still held by somebody."""
    living: weakref.WeakSet[Past] = weakref.WeakSet()

    class Watched(Past):
        def __init__(self):
            super().__init__()
            living.add(self)

    monkeypatch.setattr(video, "Past", Watched)
    return living


# ------------------------------------------------------------------------------------------------------ chunks


def test_the_first_chunk_takes_the_rest():
    def lengths(num: int, size: int) -> list[int]:
        return [part.stop - part.start for part in chunks(num, size)]

    assert [lengths(num, 2) for num in (1, 2, 3, 4, 5, 13)] == [[1], [2], [3], [2, 2], [3, 2], [3, 2, 2, 2, 2, 2]]
    assert [lengths(num, 8) for num in (1, 7, 8, 9, 15, 16, 17, 49)] == [
        *([1], [7], [8], [9], [15], [8, 8], [9, 8]),
        [9, 8, 8, 8, 8, 8],
    ]


def test_an_odd_first_frame_stands_alone():
    assert spread(9, 3) == (slice(0, 1), slice(1, 5), slice(5, 9))
    assert spread(8, 2) == (slice(0, 4), slice(4, 8))
    assert spread(1, 1) == (slice(0, 1),)
    assert spread(2, 2) == (slice(0, 1), slice(1, 2))


def test_streams_run_one_after_the_other():
    order = []

    def stream(name):
        for i in range(3):
            order.append(f"{name}{i}")
            yield order[-1]

    results = in_turn([stream(name) for name in "abc"])
    assert order == []
    assert next(results) == ("a0", "b0", "c0")
    assert order == ["a0", "a1", "a2", "b0", "b1", "b2", "c0"]
    assert list(results) == [("a1", "b1", "c1"), ("a2", "b2", "c2")]
    for lengths in ((2, 1), (1, 2)):
        with pytest.raises(ValueError, match=r"shorter|longer"):
            list(in_turn([iter(range(length)) for length in lengths]))


# ------------------------------------------------------------------------------------- what is kept in between


@torch.no_grad()
def test_two_frames_are_kept_for_each_convolution_that_looks_back_and_for_no_other():
    model, past = vae(), Past()
    convolutions = [m for m in model.decoder.modules() if isinstance(m, CausalConv3d)]
    seen: dict[CausalConv3d, int] = {}
    for conv in convolutions:
        conv.register_forward_hook(lambda conv, args, out: seen.update({conv: args[0][:, :, :2].nbytes}))
    model.decoder(latents(3), past)
    assert len(past) == len(convolutions) == 22
    kept = [frames.untyped_storage().nbytes() for frames in past._frames.values()]
    assert sum(kept) == sum(seen.values()), "the storage of what is kept holds two frames and nothing else"


@torch.no_grad()
def test_nothing_is_kept_of_the_last_chunk(pasts):
    """Of a video of one chunk, nothing at all."""
    model = vae()
    kept = []
    for half, run, x in (
        (model.decoder, model.decode_tensor, latents),
        (model.encoder, model.encode_moments, lambda f: tiny.noise(1, 3, 4 * f - 3, 24, 40)),
    ):
        half.register_forward_hook(lambda half, args, out: kept.append(len(args[-1])))
        for f in (1, 3, 5):
            run(x(f))
    assert kept == [*(0, 0, 22, 0), *(0, 0, 14, 0)]
    assert len(pasts) == 0


@torch.no_grad()
@pytest.mark.parametrize("is_last", [False, True])
def test_frames_are_let_go_when_they_are_read(is_last):
    """Old and new ones of a layer are never held together: that would double the largest part of the memory."""
    model, past = vae(), Past()
    model.decoder(latents(3), past)
    old = [weakref.ref(frames) for frames in past._frames.values()]
    alive = []
    for conv in past._frames:
        conv.register_forward_hook(lambda conv, args, out: alive.append(sum(ref() is not None for ref in old)))
    past.is_last = is_last
    model.decoder(latents(2), past)
    assert alive == list(range(len(old) - 1, -1, -1))


@torch.no_grad()
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_windows_are_the_past_and_the_present(silu, dtype):
    """Written in place without gradients and joined with them; SiLU rounds its last bits by where a row ends."""
    conv, x = CausalConv3d(5, 7), tiny.noise(2, 5, 7, 6, 10).to(dtype)
    activated = F.silu(x) if silu else x
    due = torch.cat([activated[:, :, :1], activated[:, :, :1], activated], dim=2)
    for gradients in (False, True):
        past, before = Past(), x.clone()
        with torch.set_grad_enabled(gradients):
            parts = [part.detach().requires_grad_(gradients) for part in x.split((3, 4), dim=2)]
            windows = [
                past.window(conv, part, [(cut, part[:, cut]) for cut in (slice(0, 2), slice(2, 5))] if silu else None)
                for part in parts
            ]
        ulps = 4 * torch.finfo(dtype).eps if silu else 0
        torch.testing.assert_close(windows[0], due[:, :, :5], rtol=ulps, atol=0)
        torch.testing.assert_close(windows[1], due[:, :, 3:], rtol=ulps, atol=0)
        assert torch.equal(x, before)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_activations_are_normalised_a_few_groups_at_a_time(monkeypatch, dtype):
    """To the same result, and of no part is more than one alive."""
    model, z, x = vae().to(dtype), latents(5).to(dtype), tiny.noise(1, 3, 9, 24, 40).to(dtype)
    whole = [part.clone() for part in (model.decode_tensor(z), model.encode_moments(x))]
    alive, norms = [], []
    monkeypatch.setattr(causal, "NORMALISED_AT_ONCE", 1)
    for module in model.modules():
        if isinstance(module, causal.GroupNorm):
            given: list[StorageWeakRef] = []

            def watch(module, args, out, given=given):
                alive.append(sum(not storage.expired() for storage in given))
                given.append(StorageWeakRef(out.untyped_storage()))
                norms.append(out.shape[1] * module.num_groups // module.num_channels)

            module.register_forward_hook(watch)
    parts = model.decode_tensor(z), model.encode_moments(x)
    assert set(norms) == {1}
    assert max(alive) == 0
    for part, due in zip(parts, whole, strict=True):
        torch.testing.assert_close(part, due, rtol=0, atol=(1e-5 if dtype == torch.float32 else 2e-2) * due.std())


def test_groups_stay_whole_and_parts_are_few():
    norm, x = causal.GroupNorm(12, 24), torch.empty(1, 24, 3, 64, 64, device="meta")
    for limit, num in ((x.nbytes, 1), (x.nbytes - 1, 2), (x.nbytes // 3, 3), (x.nbytes // 5, 6), (1, 12)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(causal, "NORMALISED_AT_ONCE", limit)
            parts = norm.split(x)
        assert len(parts) == num
        assert [i for part in parts for i in range(24)[part]] == list(range(24))
        assert {part.stop - part.start for part in parts} == {24 // num}


# --------------------------------------------------------------------------------------------- work done once


@torch.no_grad()
def test_a_still_is_convolved_once_instead_of_three_times():
    """The sum of the weights over the time, and a third of the multiplications of the whole encoding."""
    layer, x = tiny.fill(CausalConv3d(5, 7)).double(), tiny.noise(2, 5, 1, 6, 10).double()
    plain = layer.conv(x.expand(-1, -1, 3, -1, -1))
    assert (layer(x) - plain).abs().max() <= 1e-12
    work = []
    for cls in (AutoencoderKLCogVideoX, diffusers.AutoencoderKLCogVideoX):
        model = cls.from_config(tiny.VIDEO_VAE)
        with FlopCounterMode(display=False) as counter:
            model.encode(tiny.noise(1, 3, 1, 48, 80))
        work.append(counter.get_total_flops())
    assert work[0] < 0.36 * work[1]


@torch.no_grad()
def test_a_still_in_half_precision_loses_nothing_to_the_summed_weights():
    """What rounding takes from the sum stands behind it along the channels."""
    for dtype in (torch.bfloat16, torch.float16):
        weight = tiny.noise(7, 5, 3, 3, 3).to(dtype)
        high, low = summed_over_time(weight).double().chunk(2, dim=1)
        exact = weight.double().sum(2)
        error = (high + low - exact).norm() / exact.norm()
        assert error < 0.01 * (high - exact).norm() / exact.norm()
    layer, x = tiny.fill(CausalConv3d(5, 7)).bfloat16(), tiny.noise(2, 5, 1, 6, 10).bfloat16()
    assert_parity(layer(x), layer.conv(x.expand(-1, -1, 3, -1, -1)), torch.bfloat16)


@torch.no_grad()
def test_a_normalised_still_comes_twice_and_counts_once():
    """In half precision, where its layer would join it to itself otherwise."""
    for dtype, times in ((torch.float32, 1), (torch.bfloat16, 2)):
        layer, norm = tiny.fill(CausalConv3d(6, 7)).to(dtype), tiny.fill(causal.GroupNorm(3, 6)).to(dtype)
        x, past = tiny.noise(2, 6, 1, 6, 10).to(dtype), Past()
        window = past.window(layer, x, norm.parts(x))
        alone = F.silu(norm(x))
        assert torch.equal(window, torch.cat([alone] * times, dim=1))
        assert torch.equal(layer(window), layer(alone))
        following = tiny.noise(2, 6, 2, 6, 10, seed=5).to(dtype)
        assert torch.equal(past.window(layer, following)[:, :, :2], alone.expand(-1, -1, 2, -1, -1))


@torch.no_grad()
def test_the_edge_is_that_of_torch_in_any_layout():
    for form in (torch.contiguous_format, torch.channels_last):
        x = tiny.noise(2, 3, 5, 7).contiguous(memory_format=form)
        edged = with_edge(x)
        assert torch.equal(edged, F.pad(x, (0, 1, 0, 1)))
        assert edged.is_contiguous(memory_format=form)


@torch.no_grad()
def test_latents_are_convolved_at_their_own_size():
    """Not at that of the frames: the norms' linear layers see 3 x 5 places and as many frames as a chunk has."""
    model = vae()
    shapes = seen_by(model.decoder, Pointwise)
    model.decode(latents(5))
    assert set(shapes) == {(1, C, 3, H, W), (1, C, 2, H, W)}
    assert len(shapes) == 2 * 2 * 21


@torch.no_grad()
def test_frames_are_enlarged_before_they_are_repeated():
    model = vae()
    shapes = seen_by(model.decoder, Upsample)
    model.decode(latents(3))
    assert [len([s for s in shapes if s[2:] == (H * 2**i, W * 2**i)]) for i in range(3)] == [3, 5, 9]


@torch.no_grad()
def test_decoding_takes_less_work_than_the_port_s():
    work = []
    for cls in (AutoencoderKLCogVideoX, diffusers.AutoencoderKLCogVideoX):
        with FlopCounterMode(display=False) as counter:
            cls.from_config(tiny.VIDEO_VAE).decode(latents(5))
        work.append(counter.get_total_flops())
    assert work[0] < 0.9 * work[1]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layout_is_kept(dtype):
    """Every layer gets and gives the layout of its data type, so that none copies to another."""
    model = vae().to(dtype)
    seen = []
    for module in model.modules():
        if isinstance(module, CausalConv3d | torch.nn.GroupNorm | Pointwise):
            module.register_forward_hook(
                lambda module, args, out: seen.append(
                    [t.is_contiguous(memory_format=layout(t)) for t in (args[0], out)]
                )
            )
    model(tiny.noise(2, 3, 17, 48, 80).to(dtype))
    assert len(seen) > 200
    assert all(map(all, seen))


def test_the_layout_follows_the_data_type_and_what_convolves(monkeypatch):
    wide, half = torch.empty(1, dtype=torch.float64), torch.empty(1, dtype=torch.bfloat16)
    for has_kernels in (True, False):
        monkeypatch.setattr(causal, "has_kernels", lambda dtype, has_kernels=has_kernels: has_kernels)
        assert layout(wide) is layout(wide.float()) is torch.contiguous_format
        due = torch.channels_last_3d if has_kernels else torch.contiguous_format
        assert layout(half) is layout(half.half()) is due
        assert layout(half.to("meta")) is torch.channels_last_3d
    monkeypatch.undo()
    assert causal.has_kernels(torch.bfloat16) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert not causal.has_kernels(torch.float32)


@torch.no_grad()
def test_results_are_contiguous_in_half_precision_too():
    """The network's own layout ends inside."""
    model = vae().bfloat16()
    z, x = latents(5).bfloat16(), tiny.noise(1, 3, 17, 24, 40).bfloat16()
    assert all(part.is_contiguous() for part in model.decode_frames(z))
    assert model.encode_moments(x[:, :, :9]).is_contiguous()


@torch.no_grad()
def test_inputs_are_not_changed():
    """In-place arithmetic stays on tensors that the network made itself."""
    model = vae()
    for tile in (None, 24):
        if tile:
            model.enable_tiling(tile)
        for f in (1, 5):
            z, x = latents(f, b=2, h=5, w=8), tiny.noise(2, 3, 4 * f - 3, 40, 64)
            z_before, x_before = z.clone(), x.clone()
            model.decode(z)
            model.encode(x)
            assert torch.equal(z, z_before)
            assert torch.equal(x, x_before)


# --------------------------------------------------------------------------------------------------- streaming


SETTINGS = {
    "whole": (),
    "slices": ("enable_slicing",),
    "tiles": ("enable_tiling",),
    "slices of tiles": ("enable_slicing", "enable_tiling"),
}


@torch.no_grad()
@pytest.mark.parametrize("calls", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("f", [1, 2, 5, 6])
def test_frames_come_chunk_by_chunk_and_are_those_of_the_whole(calls, f, pasts):
    model = vae()
    for call in calls:
        getattr(model, call)()
    z = latents(f, b=2, h=5, w=8)
    parts = list(model.decode_frames(z))
    assert torch.equal(torch.cat(parts, dim=2), model.decode(z).sample)
    first = 4 * (f % 2 + 2) - 3 * (f % 2) if f > 1 else 1
    assert [part.shape[2] for part in parts] == [first, *[8] * (max(f // 2, 1) - 1)]
    assert all(part.is_contiguous() for part in parts)
    assert len(pasts) == 0


@torch.no_grad()
@pytest.mark.parametrize("calls", SETTINGS.values(), ids=SETTINGS)
def test_only_one_video_or_tile_is_under_way(calls, pasts):
    """What tiles and slices remember together is as much as the whole would; so they take turns."""
    model = vae()
    for call in calls:
        getattr(model, call)()
    model.decoder.register_forward_hook(lambda half, args, out: alive.append(len(pasts)))
    alive: list[int] = []
    model.decode(latents(5, b=2, h=5, w=8))
    assert set(alive) == {1}
    tiles, samples = 4 if "enable_tiling" in calls else 1, 2 if "enable_slicing" in calls else 1
    assert len(alive) == 2 * tiles * samples


@torch.no_grad()
def test_the_first_frames_are_handed_out_before_the_rest_is_computed():
    model = vae()
    shapes = seen_by(model, type(model.decoder))
    stream = model.decode_frames(latents(7))
    assert shapes == []
    next(stream)
    assert [shape[2] for shape in shapes] == [3]
    next(stream)
    assert [shape[2] for shape in shapes] == [3, 2]


@torch.no_grad()
def test_a_stream_that_is_given_up_leaves_nothing(pasts):
    model = vae()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    z = latents(7)
    due = model.decode(z).sample
    stream = model.decode_frames(z)
    next(stream)
    assert len(pasts) == 1
    del stream
    gc.collect()
    assert len(pasts) == 0
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert torch.equal(model.decode(z).sample, due)


@torch.no_grad()
def test_streams_do_not_meet():
    model = vae()
    a, b = latents(5), latents(5, h=4, w=7)
    alone = [model.decode(z).sample for z in (a, b)]
    turns = zip(model.decode_frames(a), model.decode_frames(b), strict=True)
    for whole, parts in zip(alone, zip(*turns, strict=True), strict=True):
        assert torch.equal(torch.cat(parts, dim=2), whole)


@torch.no_grad()
def test_slices_and_tiles_are_switched_on_and_off():
    model = vae()
    z, x = latents(3, b=2, h=5, w=8), tiny.noise(2, 3, 5, 40, 64)
    shapes = seen_by(model, type(model.decoder)), seen_by(model, type(model.encoder))

    def given() -> list[list[tuple[int, ...]]]:
        """Batch, height and width of what the two halves are given."""
        for seen in shapes:
            seen.clear()
        model.decode(z)
        model.encode(x)
        return [[(shape[0], *shape[3:]) for shape in seen] for seen in shapes]

    whole = [[(2, 5, 8)], [(2, 40, 64)]]
    assert given() == whole
    model.enable_slicing()
    assert given() == [[(1, 5, 8)] * 2, [(1, 40, 64)] * 2]
    model.disable_slicing()
    assert given() == whole
    model.enable_tiling(24, 40, 1 / 3, 1 / 5)
    decoded, encoded = given()
    assert decoded == [(2, 3, 5), (2, 3, 4), (2, 3, 5), (2, 3, 4), (2, 1, 5), (2, 1, 4)]
    assert encoded == [(b, 8 * h, 8 * w) for b, h, w in decoded]
    model.disable_tiling()
    assert given() == whole


@torch.no_grad()
def test_videos_of_a_batch_are_those_alone():
    model = vae()
    z = latents(5, b=3)
    assert_parity(model.decode(z).sample, torch.cat([model.decode(one).sample for one in z.split(1)]))


# ------------------------------------------------------------------------------------------------------ shapes


@torch.no_grad()
@pytest.mark.unchecked
def test_what_is_no_video_is_refused():
    model = vae()
    for shape in ((2, 3, 24, 40), (2, 4, 1, 24, 40), (2, 3, 0, 24, 40), (0, 3, 1, 24, 40), (2, 3, 1, 7, 40)):
        for run in (model.encode, model):
            with pytest.raises(InputError, match="E-LATENTS-SHAPE"):
                run(torch.zeros(shape))
    assert model.encode(torch.zeros(1, 3, 1, 8, 8)).latent_dist.mean.shape == (1, C, 1, 1, 1)
    for shape in ((2, C, 3, 5), (2, 3, 1, 3, 5), (2, C, 0, 3, 5), (0, C, 1, 3, 5), (2, C, 1, 0, 5)):
        for run in (model.decode, lambda z: next(model.decode_frames(z))):
            with pytest.raises(InputError, match="E-LATENTS-SHAPE"):
                run(torch.zeros(shape))


@torch.no_grad()
def test_a_still_with_half_the_channels_is_not_taken_twice():
    """As in half precision the layer does with all of them."""
    layer = tiny.fill(CausalConv3d(6, 7))
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(RuntimeError, match="channels"):
            layer.to(dtype)(tiny.noise(2, 3, 1, 6, 10).to(dtype))


# --------------------------------------------------------------------------------------------------- posterior


def test_the_log_variance_is_clamped():
    values = torch.tensor([-1e4, -31.0, -30.0, -29.0, 0.0, 19.0, 20.0, 21.0, 1e4])
    posterior = DiagonalGaussian(torch.stack([tiny.noise(9), values])[None, :, None, None])
    assert posterior.logvar.flatten().tolist() == [-30, -30, -30, -29, 0, 19, 20, 20, 20]
    torch.testing.assert_close(posterior.var, posterior.std**2)
    torch.testing.assert_close(posterior.std.log() * 2, posterior.logvar)


def test_generators_are_as_many_as_videos():
    posterior = DiagonalGaussian(tiny.noise(3, 2 * C, 1, H, W))
    with pytest.raises(InputError, match="E-GENERATORS"):
        posterior.sample([torch.Generator() for _ in range(2)])


# ------------------------------------------------------------------------------------------------------ config


@pytest.mark.parametrize(
    "changes",
    [
        {"act_fn": "mish"},
        {"norm_eps": 1e-5},
        {"shift_factor": 0.1},
        {"latents_mean": [0.0] * 6},
        {"use_post_quant_conv": True},
        {"down_block_types": ["CogVideoXDownBlock3D"] * 3 + ["DownEncoderBlock2D"]},
        {"up_block_types": ["CogVideoXUpBlock3D"] * 3},
        {"block_out_channels": [8, 12]},
        {"norm_num_groups": 8},
        {"temporal_compression_ratio": 3},
        {"temporal_compression_ratio": 16},
        {"temporal_compression_ratio": 0},
    ],
    ids=str,
)
def test_configurations_that_are_not_implemented_are_refused(changes):
    with pytest.raises(InputError, match="E-CONFIG-VALUE"):
        AutoencoderKLCogVideoX.from_config({**tiny.VIDEO_VAE, **changes})


def test_the_published_configuration_is_read():
    path = Path(__file__).parents[1] / "golden" / "configs.json"
    raw = json.loads(path.read_text(encoding="utf-8"))["consisid_vae"]
    raw = {**raw, "inferred": None, "pad_mode": None}
    typed, config = read(AutoencoderKLCogVideoXConfig, raw)
    assert {key: config[key] for key in raw} == dict(Config(raw))
    assert [typed.halves_time(level) for level in range(4)] == [True, True, False, False]
    with pytest.raises(InputError, match="E-CONFIG-UNKNOWN"):
        read(AutoencoderKLCogVideoXConfig, {**raw, "pad_mode": "replicate"})


def test_modules_hold_no_state_of_a_run():
    """Nothing but parameters and settings, before and after."""
    assert causal.HISTORY == 2
    model = vae()
    names = set(model.state_dict())
    with torch.no_grad():
        model(tiny.noise(1, 3, 9, 24, 40))
    assert set(model.state_dict()) == names
    assert [name for name, _ in model.named_buffers()] == []
