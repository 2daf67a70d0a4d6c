"""Tables of tensor names: the published manifests in both directions, and what the engine refuses."""

import json
from pathlib import Path

import pytest
import torch

import tiny
import tiny_single
from vivant.errors import LoadError
from vivant.hub.header import Header, Stored
from vivant.hub.keymaps import Keymap, Row, animatediff, inverted, ldm
from vivant.hub.single_file import LEFTOVERS, MOTION, SD15, TEXT, UNET, VAE
from vivant.pia.motion import MotionAdapter
from vivant.pia.unet import UNet2DConditionModel
from vivant.text.clip import meta_text_encoder
from vivant.vae.image import AutoencoderKL

GOLDEN = Path(__file__).parents[1] / "golden"


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    tensors = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))["tensors"]
    return {key: tuple(shape) for key, shape in tensors.items()}


def shapes(network) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def shipped(name: str) -> dict:
    return json.loads((SD15 / name / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full_size():
    """The full-size networks of the shipped configurations, without values."""
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel(**shipped("unet")),
            "vae": AutoencoderKL(**shipped("vae")),
            "text_encoder": meta_text_encoder(shipped("text_encoder")),
        }


def test_the_full_size_file_is_all_networks_and_nothing_else(full_size):
    published = manifest("sd15_single_file")
    keymaps = {
        "unet": ldm.unet(full_size["unet"].config),
        "vae": ldm.vae(full_size["vae"].config),
        "text_encoder": ldm.text(),
    }
    seen: set[str] = set()
    for name, keymap in keymaps.items():
        due = shapes(full_size[name])
        table = keymap.table(due)
        for ours, theirs in table.items():
            shape = (*due[ours], 1, 1) if keymap.is_pointwise(theirs) else due[ours]
            assert published[theirs] == shape, theirs
        assert {inverted(table)[theirs] for theirs in table.values()} == due.keys()
        assert not seen & set(table.values())
        seen |= set(table.values())
    rest = published.keys() - seen
    assert rest == {"cond_stage_model.transformer.text_model.embeddings.position_ids"}
    assert all(map(LEFTOVERS.drops, rest))
    assert not any(map(LEFTOVERS.drops, seen))
    assert sum(map(keymaps["vae"].is_pointwise, seen)) == 8


def test_the_shipped_configurations_are_the_published_networks(full_size):
    assert shapes(full_size["unet"]) == manifest("sd15_unet2d")
    assert shapes(full_size["vae"]) == manifest("sd15_vae")
    fields = shipped("text_encoder")
    known = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu"}
    assert {name: fields[name] for name in known} == known


def test_our_own_writer_lays_files_out_like_the_manifest(full_size):
    written = {
        **tiny_single.unet(full_size["unet"].state_dict(), full_size["unet"].config),
        **tiny_single.vae(full_size["vae"].state_dict()),
        **tiny_single.text(full_size["text_encoder"].state_dict()),
    }
    assert {key: tuple(value.shape) for key, value in written.items()} == manifest("sd15_single_file")


def test_pia_ckpt_in_both_directions():
    published = manifest("pia_ckpt_original")
    header = Header({name: Stored("F16", shape) for name, shape in published.items()}, {})
    fields = animatediff.read_config(header)
    assert fields["conv_in_channels"] == 9
    assert (fields["motion_max_seq_length"], fields["use_motion_mid_block"]) == (32, False)
    with torch.device("meta"):
        adapter = MotionAdapter(**fields)
    due = shapes(adapter)
    assert due == manifest("pia_motion_adapter")
    keymap = animatediff.motion()
    table = keymap.table(due)
    twins = {keymap.twin(name): name for name in table.values() if keymap.twin(name)}
    assert len(twins) == 20
    assert {*table.values(), *twins} == published.keys()
    assert all(published[theirs] == due[ours] for ours, theirs in table.items())
    written = tiny_single.motion(adapter.state_dict())
    assert {key: tuple(value.shape) for key, value in written.items()} == published


@pytest.mark.parametrize("num_stages", [1, 2, 4])
@pytest.mark.parametrize("layers", [1, 3, [1, 2, 3, 1]])
@pytest.mark.parametrize("attends", ["all", "none", "first"])
def test_every_shape_of_unet_has_a_table(num_stages, layers, attends):
    flags = [attends == "all" or (attends == "first" and i == 0) for i in range(num_stages)]
    config = {
        "block_out_channels": [8] * num_stages,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 12,
        "layers_per_block": layers if isinstance(layers, int) else layers[:num_stages],
        "down_block_types": ["CrossAttnDownBlock2D" if flag else "DownBlock2D" for flag in flags],
        "up_block_types": ["CrossAttnUpBlock2D" if flag else "UpBlock2D" for flag in reversed(flags)],
    }
    with torch.device("meta"):
        network = UNet2DConditionModel(**config)
    table = ldm.unet(network.config).table(network.state_dict())
    assert len(set(table.values())) == len(table)
    assert all(name.startswith(ldm.UNET) for name in table.values())
    assert not [name for name in table.values() if "resnets" in name or "attentions" in name or "samplers" in name]
    if isinstance(layers, int):
        assert set(table.values()) == set(tiny_single.unet(network.state_dict(), config))


@pytest.mark.parametrize("changes", [{"block_out_channels": [6], "norm_num_groups": 3}, {"layers_per_block": 3}])
def test_vaes_of_other_sizes(changes):
    fields = {**tiny.VAE, **changes}
    num = len(fields["block_out_channels"])
    fields["down_block_types"], fields["up_block_types"] = ["DownEncoderBlock2D"] * num, ["UpDecoderBlock2D"] * num
    with torch.device("meta"):
        network = AutoencoderKL(**fields)
    table = ldm.vae(network.config).table(network.state_dict())
    assert set(table.values()) == set(tiny_single.vae(network.state_dict()))


def test_a_row_that_fits_nothing_is_refused():
    keymap = Keymap("some", (Row("a", "b"), Row("zzz", "y")))
    with pytest.raises(LoadError, match=r"E-KEYMAP.*some.*'zzz'"):
        keymap.table(["a1", "a2"])
    assert Keymap("some", (Row("a", "b"), Row("zzz", "y", is_optional=True))).table(["a1"]) == {"a1": "b1"}


def test_two_names_that_become_one_are_refused():
    with pytest.raises(LoadError, match=r"E-KEYMAP.*x1 and x2 would both be y"):
        Keymap("some", (Row(r"x\d", "y"),)).table(["x1", "x2"])


@pytest.mark.parametrize(
    "name",
    [
        "model_ema.decay",
        "model_ema.diffusion_modelinput_blocks00weight",
        "alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "posterior_mean_coef1",
        "first_stage_model.loss.discriminator.main.0.weight",
        "loss.logvar",
        "cond_stage_model.transformer.embeddings.position_ids",
        "text_model.embeddings.position_ids",
        "cond_stage_model.logit_scale",
        "v_pred",
        "global_step",
    ],
)
def test_leftovers_of_trainings(name):
    assert LEFTOVERS.drops(name)


@pytest.mark.parametrize("name", ["first_stage_model.encoder.conv_in.weight", "betas.weight", "xlogvar", "model_emax"])
def test_what_is_no_leftover(name):
    assert not LEFTOVERS.drops(name)


def test_parts_say_where_they_are():
    header = Header({name: Stored("F16", shape) for name, shape in manifest("sd15_single_file").items()}, {})
    assert [part.layout(header).prefix for part in (UNET, VAE, TEXT)] == [ldm.UNET, ldm.VAE, ldm.TEXT]
    assert MOTION.layout(header) is None
