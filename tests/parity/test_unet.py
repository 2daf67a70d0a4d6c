"""The UNets against diffusers and against the published tensor names."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.models.unets import unet_motion_model as port

import tiny
from tolerances import TOLERANCES, Tolerance, assert_parity, relative_l2
from vivant.errors import InputError, LoadError
from vivant.pia.motion import MotionAdapter
from vivant.pia.unet import UNet2DConditionModel, UNetMotionModel

B, FR, H, W = tiny.BATCH, tiny.FRAMES, tiny.HEIGHT, tiny.WIDTH


def port_motion_unet(**changes) -> torch.nn.Module:
    """diffusers' motion UNet with our deterministic weights."""
    base = diffusers.UNet2DConditionModel.from_config({**tiny.UNET2D, **changes})
    adapter = diffusers.MotionAdapter.from_config(tiny.ADAPTER)
    tiny.fill(base, seed=11)
    tiny.fill(adapter, seed=12)
    return port.UNetMotionModel.from_unet2d(base, adapter).eval()


def our_parts(**changes) -> tuple[UNet2DConditionModel, MotionAdapter]:
    base = UNet2DConditionModel.from_config({**tiny.UNET2D, **changes})
    adapter = MotionAdapter.from_config(tiny.ADAPTER)
    return tiny.fill(base, seed=11), tiny.fill(adapter, seed=12)


def inputs(f: int = FR, h: int = H, w: int = W) -> tuple[torch.Tensor, torch.Tensor]:
    return tiny.noise(B, 9, f, h, w, seed=1), tiny.noise(B, tiny.TOKENS, tiny.TEXT_DIM, seed=2)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"use_linear_projection": True}, {"layers_per_block": 2, "norm_eps": 1e-4}])
@pytest.mark.parametrize(("f", "h", "w"), [(FR, H, W), (1, 6, 10), (7, 5, 9)])
def test_motion_unet_equals_the_port(changes, f, h, w):
    oracle, (base, adapter) = port_motion_unet(**changes), our_parts(**changes)
    ours = UNetMotionModel.from_unet2d(base, adapter)
    assert set(ours.state_dict()) == set(oracle.state_dict())
    x, text = inputs(f, h, w)
    theirs = oracle(x, 601, text.repeat_interleave(f, dim=0)).sample
    assert_parity(ours(x, 601, text).sample, theirs)
    assert_parity(ours(x, torch.tensor(601), text.repeat_interleave(f, dim=0), return_dict=False)[0], theirs)


@torch.no_grad()
def test_timesteps_may_differ_in_a_batch():
    oracle, parts = port_motion_unet(), our_parts()
    x, text = inputs()
    t = torch.tensor([3, 870])
    assert_parity(
        UNetMotionModel.from_unet2d(*parts)(x, t, text).sample, oracle(x, t, text.repeat_interleave(FR, dim=0)).sample
    )


@torch.no_grad()
def test_shared_prefix_of_the_guidance_halves():
    """A batch smaller than the text's is the same as the repeated batch."""
    unet = UNetMotionModel.from_unet2d(*our_parts())
    x, text = inputs()
    halves = torch.cat([text, text.flip(0) * 0.5])
    whole = unet.predict(torch.cat([x, x]), torch.tensor([40]), unet.read_text(halves))
    shared = unet.predict(x, torch.tensor([40]), unet.read_text(halves))
    assert_parity(shared, whole)


@torch.no_grad()
def test_freeu_equals_the_port():
    oracle, parts = port_motion_unet(), our_parts()
    ours = UNetMotionModel.from_unet2d(*parts)
    x, text = inputs()
    plain = ours(x, 99, text).sample
    for model in (oracle, ours):
        model.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    changed = ours(x, 99, text).sample
    assert relative_l2(changed, plain) > 1e-2
    assert_parity(changed, oracle(x, 99, text.repeat_interleave(FR, dim=0)).sample)
    ours.disable_freeu()
    assert torch.equal(ours(x, 99, text).sample, plain)


@torch.no_grad()
def test_base_unet_equals_the_port():
    base, _ = our_parts()
    oracle = tiny.fill(diffusers.UNet2DConditionModel.from_config(tiny.UNET2D), seed=11)
    x, text = tiny.noise(B, 4, H, W, seed=3), tiny.noise(B, tiny.TOKENS, tiny.TEXT_DIM, seed=4)
    assert_parity(base(x, 7, text).sample, oracle(x, 7, text).sample)


@torch.no_grad()
def test_motion_mid_block_and_plain_input_equal_the_port():
    """AnimateDiff modules: a mid block, no input convolution."""
    config = {**tiny.ADAPTER, "use_motion_mid_block": True, "conv_in_channels": None}
    base = tiny.fill(diffusers.UNet2DConditionModel.from_config(tiny.UNET2D), seed=11)
    oracle = port.UNetMotionModel.from_unet2d(base, tiny.fill(diffusers.MotionAdapter.from_config(config))).eval()
    ours = UNetMotionModel.from_unet2d(our_parts()[0], tiny.fill(MotionAdapter.from_config(config)))
    x, text = tiny.noise(B, 4, FR, H, W, seed=1), inputs()[1]
    assert_parity(ours(x, 5, text).sample, oracle(x, 5, text.repeat_interleave(FR, dim=0)).sample)


@torch.no_grad()
@pytest.mark.parametrize("numerics", ["original", "diffusers"])
def test_half_precision_stays_near_float32(numerics):
    unet = UNetMotionModel.from_unet2d(*our_parts(), numerics=numerics)
    x, text = inputs()
    reference = unet(x, 601, text).sample
    halved = unet.to(torch.bfloat16)(x.bfloat16(), 601, text.bfloat16()).sample
    assert halved.dtype == torch.bfloat16
    assert_parity(halved.float(), reference, Tolerance(peak=8e-2, l2=3e-2))


def test_assembly_leaves_base_and_adapter_alone():
    base, adapter = our_parts()
    before = {k: v.clone() for k, v in [*base.state_dict().items(), *adapter.state_dict().items()]}
    first = UNetMotionModel.from_unet2d(base, adapter)
    reference = {k: v.clone() for k, v in first.state_dict().items()}
    other = tiny.fill(UNet2DConditionModel.from_config(tiny.UNET2D), seed=77)
    UNetMotionModel.from_unet2d(other, adapter)
    assert all(torch.equal(v, reference[k]) for k, v in first.state_dict().items())
    with torch.no_grad():
        first.conv_in.weight.zero_()
    first.to(torch.bfloat16)
    after = dict([*base.state_dict().items(), *adapter.state_dict().items()])
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert all(p.dtype == torch.float32 for p in [*base.parameters(), *adapter.parameters()])


def test_assembly_keeps_the_adapter_once():
    base, adapter = our_parts()
    unet = UNetMotionModel.from_unet2d(base, adapter)
    key = "down_blocks.0.motion_modules.0.proj_in.weight"
    assert unet.state_dict()[key].data_ptr() == adapter.state_dict()[key].data_ptr()


@pytest.mark.parametrize("which", ["base", "adapter"])
def test_input_convolution_is_selectable(which):
    base, adapter = our_parts()
    unet = UNetMotionModel.from_unet2d(base, adapter, conv_in=which)
    source = base if which == "base" else adapter
    assert torch.equal(unet.conv_in.weight[:, :4], source.conv_in.weight[:, :4])
    assert torch.equal(unet.conv_in.weight[:, 4:], adapter.conv_in.weight[:, 4:])
    assert torch.equal(unet.conv_in.bias, source.conv_in.bias)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"in_channels": 9}, "E-BASE-INPAINTING"),
        ({"layers_per_block": 1}, "E-ADAPTER-FIT"),
        ({"block_out_channels": [16, 32]}, "E-ADAPTER-FIT"),
        ({"norm_num_groups": 4}, "E-ADAPTER-FIT"),
    ],
)
def test_wrong_bases_are_refused(change, code):
    with pytest.raises(InputError) as caught:
        UNetMotionModel.from_unet2d(*our_parts(**change))
    assert caught.value.code == code


@pytest.mark.parametrize(
    "change",
    [{"act_fn": "gelu"}, {"resnet_time_scale_shift": "scale_shift"}, {"class_embed_type": "timestep"}, {"sizes": 3}],
)
def test_unknown_kinds_are_refused(change):
    with pytest.raises(InputError, match="E-CONFIG"):
        UNet2DConditionModel.from_config({**tiny.UNET2D, **change})


@pytest.mark.parametrize(
    ("manifest", "config", "cls"),
    [
        ("sd15_unet2d", "sd15_unet", UNet2DConditionModel),
        ("pia_motion_adapter", "pia_motion_adapter", MotionAdapter),
    ],
)
def test_full_size_names_and_shapes_equal_the_published_files(manifest, config, cls):
    published = json.loads((Path(__file__).parent.parent / "golden" / f"{manifest}.json").read_text())["tensors"]
    configs = json.loads((Path(__file__).parent.parent / "golden" / "configs.json").read_text())
    with torch.device("meta"):
        model = cls.from_config(configs[config])
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == published


def test_full_size_motion_unet_has_the_adapters_names():
    golden = Path(__file__).parent.parent / "golden"
    configs = json.loads((golden / "configs.json").read_text())
    adapter_names = set(json.loads((golden / "pia_motion_adapter.json").read_text())["tensors"])
    base_names = set(json.loads((golden / "sd15_unet2d.json").read_text())["tensors"])
    with torch.device("meta"):
        base = UNet2DConditionModel.from_config(configs["sd15_unet"])
        adapter = MotionAdapter.from_config(configs["pia_motion_adapter"])
        unet = UNetMotionModel.from_unet2d(base, adapter)
        out = unet(torch.empty(1, 9, 2, 8, 8), 5, torch.empty(1, 77, 768)).sample
    names = set(unet.state_dict())
    assert len(names) == 1226
    assert adapter_names | base_names == names
    assert unet.conv_in.weight.shape == (320, 9, 3, 3)
    assert out.shape == (1, 4, 2, 8, 8)


@torch.no_grad()
def test_files_go_both_ways(tmp_path):
    base, adapter = our_parts()
    unet = UNetMotionModel.from_unet2d(base, adapter)
    unet.save_pretrained(tmp_path / "ours")
    x, text = inputs()
    ours = unet(x, 50, text).sample
    again = UNetMotionModel.from_pretrained(tmp_path / "ours")
    assert torch.equal(again(x, 50, text).sample, ours)
    theirs = port.UNetMotionModel.from_pretrained(tmp_path / "ours")
    assert_parity(ours, theirs(x, 50, text.repeat_interleave(FR, dim=0)).sample)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_parity(
        UNetMotionModel.from_pretrained(tmp_path / "theirs")(x, 50, text).sample, ours, TOLERANCES[torch.float32]
    )
    adapter.save_pretrained(tmp_path / "adapter")
    port.MotionAdapter.from_pretrained(tmp_path / "adapter")
    saved = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert "numerics" not in saved


def test_a_file_of_another_network_is_refused(tmp_path):
    base, adapter = our_parts()
    adapter.save_pretrained(tmp_path)
    with pytest.raises((LoadError, InputError)):
        UNet2DConditionModel.from_pretrained(tmp_path)
    base.save_pretrained(tmp_path)
    with pytest.raises(LoadError) as caught:
        UNet2DConditionModel.from_pretrained(tmp_path, cross_attention_dim=32)
    assert "attn2" in str(caught.value)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("rows", "channels", "text_channels", "timesteps", "code"),
    [
        (3, 9, tiny.TEXT_DIM, 1, "E-PROMPT-EMBEDS-SHAPE"),  # in a batch of 2 torch would read them as whole blocks
        (4, 9, tiny.TEXT_DIM, 1, "E-PROMPT-EMBEDS-SHAPE"),
        (1, 9, tiny.TEXT_DIM, 1, "E-PROMPT-EMBEDS-SHAPE"),
        (2, 9, tiny.TEXT_DIM + 1, 1, "E-PROMPT-EMBEDS-SHAPE"),
        (2, 4, tiny.TEXT_DIM, 1, "E-LATENTS-SHAPE"),
        (2, 9, tiny.TEXT_DIM, 3, "E-TIMESTEPS-SHAPE"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(rows, channels, text_channels, timesteps, code):
    base, adapter = our_parts()
    text, time = tiny.noise(rows, 3, text_channels), torch.arange(timesteps)
    with pytest.raises(InputError) as caught:
        UNetMotionModel.from_unet2d(base, adapter)(tiny.noise(2, channels, 5, 4, 4), time, text)
    assert caught.value.code == code
    with pytest.raises(InputError) as caught:
        base(tiny.noise(2, channels - 5 if channels == 9 else 9, 4, 4), time, text)
    assert caught.value.code == code


@torch.no_grad()
def test_attention_reads_no_further_arguments():
    base, adapter = our_parts()
    text = tiny.noise(2, 3, tiny.TEXT_DIM)
    for unet, x in (
        (UNetMotionModel.from_unet2d(base, adapter), tiny.noise(2, 9, 5, 4, 4)),
        (base, tiny.noise(2, 4, 4, 4)),
    ):
        assert torch.equal(unet(x, 1, text, cross_attention_kwargs=None).sample, unet(x, 1, text).sample)
        for given in ({"scale": 0.5}, {}):
            with pytest.raises(InputError, match="E-CROSS-ATTENTION"):
                unet(x, 1, text, cross_attention_kwargs=given)


def test_too_many_frames_are_refused():
    unet = UNetMotionModel.from_unet2d(*our_parts())
    with pytest.raises(InputError) as caught:
        unet(tiny.noise(1, 9, 33, 4, 4), 1, tiny.noise(1, 3, tiny.TEXT_DIM))
    assert caught.value.code == "E-FRAMES-MAX"
