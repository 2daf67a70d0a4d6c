"""Which models go together, and what becomes of the parts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import tiny_repo
from tiny_pia import FRAMES, HEIGHT, WIDTH, adapter, base, pipeline, run
from vivant.errors import InputError, LoadError
from vivant.pia.assemble import assemble, check_family
from vivant.pia.motion import MotionAdapter
from vivant.pia.unet import UNet2DConditionModel, UNetMotionModel
from vivant.pipelines import components as parts
from vivant.pipelines.pia import PIAPipeline

SD15 = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}


def repository(folder: Path, unet: dict[str, Any] | None) -> Path:
    if unet is not None:
        (folder / "unet").mkdir()
        (folder / "unet" / "config.json").write_text(json.dumps(unet))
    return folder


@pytest.mark.parametrize(
    ("index", "unet", "named"),
    [
        ({**SD15, "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, {}, "Stable Diffusion XL"),
        (SD15, {"addition_embed_type": "text_time"}, "Stable Diffusion XL"),
        (SD15, {"cross_attention_dim": 1024}, "Stable Diffusion 2"),
        (SD15, {"_class_name": "UNet2DConditionModel", "in_channels": 9}, "inpainting"),
        (SD15, {"encoder_hid_dim_type": "ip_image_proj"}, "ip_image_proj"),
        ({"_class_name": "FluxPipeline", "transformer": ["diffusers", "X"]}, None, "FluxPipeline"),
    ],
)
def test_other_families_are_named(tmp_path, index, unet, named):
    with pytest.raises(LoadError, match="E-REPO-FAMILY") as refusal:
        check_family(repository(tmp_path, unet), index)
    assert named in refusal.value.what


@pytest.mark.parametrize("unet", [None, tiny.UNET2D, {"_class_name": "UNetMotionModel", "in_channels": 9}])
def test_the_right_family_passes(tmp_path, unet):
    check_family(repository(tmp_path, unet), SD15)


def test_the_unet_of_a_repository_does_not_matter_when_another_is_given(tmp_path):
    folder = repository(tmp_path, {"_class_name": "UNet2DConditionModel", "in_channels": 9})
    check_family(folder, SD15, with_unet=False)
    pipeline().save_pretrained(tmp_path / "pipe")
    config = tmp_path / "pipe" / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "cross_attention_dim": 1024}))
    with pytest.raises(LoadError, match="E-REPO-FAMILY"):
        PIAPipeline.from_pretrained(tmp_path / "pipe")
    assert PIAPipeline.from_pretrained(tmp_path / "pipe", unet=pipeline().unet).unet is pipeline().unet


def test_base_and_adapter_become_one():
    unet = assemble(base(), adapter(), None)
    assert unet.numerics == "diffusers"
    assert assemble(base(), adapter(), "original").numerics == "original"
    state, plain, motion = unet.state_dict(), base().state_dict(), adapter().state_dict()
    assert set(state) == set(plain) | set(motion)
    for name, value in state.items():
        if name == "conv_in.weight":
            assert torch.equal(value, torch.cat([plain[name], motion[name][:, 4:]], dim=1))
        else:
            assert torch.equal(value, plain.get(name, motion.get(name)))


def test_the_first_four_channels_may_be_the_adapter_s():
    """As the original does without a personalised base."""
    unet = UNetMotionModel.from_unet2d(base(), adapter(), conv_in="adapter")
    assert torch.equal(unet.conv_in.weight, adapter().conv_in.weight)
    assert torch.equal(unet.conv_in.bias, adapter().conv_in.bias)
    with pytest.raises(InputError, match="E-CONV-IN"):
        UNetMotionModel.from_unet2d(base(), adapter(), conv_in="both")


def test_a_second_pipeline_leaves_the_first_and_the_parts_alone():
    """In the port both networks and the adapter share one input convolution."""
    parts = pipeline().components
    first = pipeline(unet=base(), motion_adapter=adapter())
    assert first.motion_adapter is None
    plain, kept = run(first), {name: value.clone() for name, value in adapter().state_dict().items()}
    assert torch.equal(plain, run(PIAPipeline(**parts | {"unet": first.unet})))
    other = tiny.fill(UNet2DConditionModel.from_config(tiny.UNET2D), seed=12)
    second = pipeline(unet=other, motion_adapter=adapter())
    with torch.no_grad():
        second.unet.conv_in.weight.mul_(2)
    second.unet.to(torch.float16)
    assert torch.equal(run(first), plain)
    assert all(torch.equal(value, kept[name]) for name, value in adapter().state_dict().items())
    assert base().dtype == torch.float32


def test_an_assembled_network_is_used_as_it_is():
    unet = assemble(base(), adapter(), "original")
    assert assemble(unet, None, None) is unet
    assert assemble(unet, None, "original") is unet
    with pytest.raises(InputError, match="E-NUMERICS"):
        assemble(unet, None, "diffusers")
    with pytest.raises(InputError, match="E-ADAPTER-TWICE"):
        assemble(unet, adapter(), None)
    with pytest.raises(InputError, match="E-ADAPTER-TWICE"):
        pipeline(unet=unet, motion_adapter=adapter())


@pytest.mark.parametrize("conv_in_channels", [None, 4])
def test_modules_that_see_no_picture_are_refused(conv_in_channels):
    blind = MotionAdapter.from_config({**tiny.ADAPTER, "conv_in_channels": conv_in_channels})
    with pytest.raises(InputError, match="E-ADAPTER-NOT-PIA"):
        assemble(base(), blind, None)
    with pytest.raises(InputError, match="E-ADAPTER-NOT-PIA"):
        assemble(UNetMotionModel.from_unet2d(base(), None), None, None)


@pytest.mark.unchecked
def test_what_does_not_go_together_is_refused():
    with pytest.raises(InputError, match="E-ADAPTER-NONE"):
        assemble(base(), None, None)
    inpainting = UNet2DConditionModel.from_config({**tiny.UNET2D, "in_channels": 9})
    with pytest.raises(InputError, match=r"E-BASE-INPAINTING.*inpainting"):
        assemble(inpainting, adapter(), None)
    wide = UNet2DConditionModel.from_config({**tiny.UNET2D, "block_out_channels": [16, 32]})
    with pytest.raises((InputError, LoadError), match="E-ADAPTER-FIT"):
        assemble(wide, adapter(), None)
    with pytest.raises(InputError, match="E-NUMERICS"):
        assemble(base(), adapter(), "exact")


def test_networks_of_both_numerics_differ():
    x, text = tiny.noise(1, 9, FRAMES, HEIGHT // 8, WIDTH // 8), tiny.noise(1, tiny.TOKENS, tiny.TEXT_DIM, seed=1)
    with torch.no_grad():
        one, other = (
            assemble(base(), adapter(), numerics)(x, 500, text).sample for numerics in ("original", "diffusers")
        )
    assert 0.01 < float((one - other).norm() / other.norm()) < 1


# ------------------------------------------------------------------------------------- before weights are looked for


def blind() -> MotionAdapter:
    """Modules of AnimateDiff: no input convolution."""
    return MotionAdapter.from_config({**tiny.ADAPTER, "conv_in_channels": None})


@pytest.fixture
def no_weights(tmp_path, monkeypatch) -> Path:
    """The configurations of a base without one weight file, and readers that fail."""
    folder = tiny_repo.write_base(tmp_path / "base")
    for path in [*folder.rglob("*.safetensors"), *folder.rglob("*.bin")]:
        path.unlink()
    monkeypatch.setattr(parts, "load_component", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr(parts, "component_variants", lambda *_: pytest.fail("weights were looked for"))
    return folder


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("given", "code"),
    [
        (lambda: {"motion_adapter": adapter(), "numerics": "exact"}, "E-NUMERICS"),
        (lambda: {"unet": assemble(base(), adapter(), "original"), "numerics": "diffusers"}, "E-NUMERICS"),
        (dict, "E-ADAPTER-NONE"),
        (lambda: {"motion_adapter": None}, "E-ADAPTER-NONE"),
        (lambda: {"unet": base()}, "E-ADAPTER-NONE"),
        (lambda: {"motion_adapter": blind()}, "E-ADAPTER-NOT-PIA"),
        (lambda: {"unet": UNetMotionModel.from_unet2d(base(), None)}, "E-ADAPTER-NOT-PIA"),
        (lambda: {"unet": assemble(base(), adapter(), None), "motion_adapter": adapter()}, "E-ADAPTER-TWICE"),
        (lambda: {"motion_adapter": base()}, "E-COMPONENT-TYPE"),
        (lambda: {"motion_adapter": adapter(), "vae": base()}, "E-COMPONENT-TYPE"),
        (lambda: {"motion_adapter": adapter(), "vae": None}, "E-COMPONENT-TYPE"),
        (lambda: {"motion_adapter": adapter(), "unet": None}, "E-COMPONENT-TYPE"),
        (lambda: {"motion_adapter": adapter(), "scheduler": None}, "E-SCHEDULER-TYPE"),
        (lambda: {"motion_adapter": adapter(), "torch_dtype": "float16"}, "E-DTYPE"),
    ],
)
def test_refused_before_weights_are_looked_for(no_weights, given, code):
    with pytest.raises(InputError) as refusal:
        PIAPipeline.from_pretrained(no_weights, **given())
    assert refusal.value.code == code


def test_a_separate_adapter_in_a_repository_of_an_assembled_network_is_skipped(tmp_path):
    """As the port writes it: the modules twice."""
    pipeline().save_pretrained(tmp_path)
    adapter().save_pretrained(tmp_path / "motion_adapter")
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "motion_adapter": ["diffusers", "MotionAdapter"]}))
    pipe = PIAPipeline.from_pretrained(tmp_path)
    assert pipe.motion_adapter is None
    assert any(note.startswith("motion_adapter") for note in pipe.notes)
    with pytest.raises(InputError, match="E-ADAPTER-TWICE"):
        PIAPipeline.from_pretrained(tmp_path, motion_adapter=adapter())


def test_an_adapter_of_the_repository_is_used(tmp_path):
    folder = tiny_repo.write_base(tmp_path)
    tiny_repo.write_adapter(folder / "motion_adapter")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "motion_adapter": ["diffusers", "MotionAdapter"]}))
    assert type(PIAPipeline.from_pretrained(folder).unet) is UNetMotionModel
    with pytest.raises(InputError, match="E-ADAPTER-NONE"):
        PIAPipeline.from_pretrained(folder, motion_adapter=None)


@pytest.mark.unchecked
def test_parts_of_another_library_are_refused():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.MotionAdapter(**tiny_repo.public(tiny.ADAPTER))
    with pytest.raises(InputError, match=r"E-COMPONENT-TYPE.*motion_adapter is a diffusers.MotionAdapter"):
        pipeline(unet=base(), motion_adapter=theirs)
    theirs = diffusers.UNet2DConditionModel(**tiny_repo.public(tiny.UNET2D))
    with pytest.raises(InputError, match=r"E-COMPONENT-TYPE.*unet is a diffusers.UNet2DConditionModel"):
        pipeline(unet=theirs, motion_adapter=adapter())


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("unet", base, "E-ADAPTER-NONE"),
        ("unet", lambda: UNetMotionModel.from_unet2d(base(), None), "E-ADAPTER-NOT-PIA"),
        ("unet", adapter, "E-COMPONENT-TYPE"),
        ("unet", lambda: None, "E-COMPONENT-TYPE"),
        ("vae", lambda: None, "E-COMPONENT-TYPE"),
        ("motion_adapter", adapter, "E-ADAPTER-TWICE"),
    ],
)
def test_the_network_of_a_pipeline_stays_an_assembled_one(name, value, code):
    pipe = pipeline()
    before = getattr(pipe, name)
    with pytest.raises(InputError) as refusal:
        setattr(pipe, name, value())
    assert refusal.value.code == code
    assert getattr(pipe, name) is before
    pipe.unet = assemble(base(), adapter(), "original")
    assert pipe.numerics == "original"
