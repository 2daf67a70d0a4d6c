"""Networks and pipelines out of single files against the oracle's, whose weights our own writer laid out like that."""

import diffusers
import pytest
import torch

import tiny
import tiny_repo
import tiny_single
from tolerances import TRAJECTORY, assert_parity
from vivant.convert import convert
from vivant.hub.keymaps import ldm
from vivant.pia.motion import MotionAdapter
from vivant.pia.unet import UNet2DConditionModel
from vivant.pipelines.pia import PIAPipeline
from vivant.text.clip import embed, text_encoder_from_single_file, tokenise
from vivant.vae.image import AutoencoderKL

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
B, F, H, W = tiny.BATCH, tiny.FRAMES, tiny.HEIGHT, tiny.WIDTH


@pytest.fixture(scope="module")
def oracle():
    return tiny_single.oracle_parts()


@pytest.fixture(scope="module")
def file(oracle, tmp_path_factory):
    return tiny_single.write(tiny_single.whole(oracle), tmp_path_factory.mktemp("models") / "model.safetensors")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_single.configurations(tmp_path_factory.mktemp("config"))


@pytest.mark.parametrize("fields", [tiny.UNET2D, tiny_single.DEEP], ids=["two stages", "three stages"])
@pytest.mark.parametrize("prefix", [tiny_single.UNET, ""], ids=["whole", "alone"])
@torch.no_grad()
def test_unet(tmp_path, fields, prefix):
    theirs = tiny.fill(diffusers.UNet2DConditionModel(**tiny_repo.public(fields)))
    path = tiny_single.write(tiny_single.unet(theirs.state_dict(), fields, prefix), tmp_path / "unet.safetensors")
    ours = UNet2DConditionModel.from_single_file(path, config=fields)
    x, text = tiny.noise(B, 4, 8, 16), tiny.noise(B, tiny.TOKENS, tiny.TEXT_DIM, seed=1)
    assert_parity(ours(x, 321, text).sample, theirs(x, 321, text).sample)


@pytest.mark.parametrize("layout", ["whole", "alone", "diffusers", "diffusers before 2023"])
@torch.no_grad()
def test_vae(tmp_path, oracle, layout):
    state = oracle["vae"].state_dict()
    stored = {
        "whole": lambda: tiny_single.vae(state),
        "alone": lambda: tiny_single.vae(state, ""),
        "diffusers": lambda: state,
        "diffusers before 2023": lambda: tiny_single.former_vae(state),
    }[layout]()
    path = tiny_single.write(stored, tmp_path / "vae.safetensors")
    ours = AutoencoderKL.from_single_file(path, config=tiny.VAE)
    x, z = tiny.noise(B, 3, 48, 80), tiny.noise(B, 4, H, W, seed=2)
    assert_parity(ours.encode(x).latent_dist.mean, oracle["vae"].encode(x).latent_dist.mean)
    assert_parity(ours.decode(z).sample, oracle["vae"].decode(z).sample)


@pytest.mark.parametrize("prefix", [tiny_single.TEXT, "cond_stage_model.transformer.", "text_model.", ""])
@torch.no_grad()
def test_text_encoder(tmp_path, oracle, config, prefix):
    stored = tiny_single.text(oracle["text_encoder"].state_dict(), prefix)
    path = tiny_single.write(stored, tmp_path / "clip.safetensors")
    ours = text_encoder_from_single_file(path, config)
    ids = torch.randint(0, 198, (B, 77), generator=torch.Generator().manual_seed(1))
    assert_parity(ours(ids).last_hidden_state, oracle["text_encoder"](ids).last_hidden_state)


VERSIONS = {
    "v1": {"motion_max_seq_length": 24, "conv_in_channels": None},
    "v2": {"use_motion_mid_block": True, "conv_in_channels": None},
    "v3": {"conv_in_channels": None},
    "pia": {},
    "two layers": {"motion_transformer_layers_per_block": 2},
}


@pytest.mark.parametrize(("prefix", "ending"), [("", "safetensors"), ("module.", "ckpt")])
@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_motion_modules(tmp_path, version, ending, prefix):
    fields = {**tiny_repo.public(tiny.ADAPTER), **VERSIONS[version]}
    theirs = tiny.fill(diffusers.MotionAdapter(**fields))
    state = {k: v + 0.01 * tiny.noise(*v.shape) if "pos_embed" in k else v for k, v in theirs.state_dict().items()}
    theirs.load_state_dict(state)
    path = tiny_single.write(tiny_single.motion(state, prefix), tmp_path / f"mm.{ending}")
    ours = MotionAdapter.from_single_file(path, motion_num_attention_heads=4, motion_norm_num_groups=8)
    expected = MotionAdapter(**fields)
    assert {k: v for k, v in ours.config.items() if k in fields} == {k: expected.config[k] for k in fields}
    assert ours.state_dict().keys() == state.keys()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, state[name]), name


def pipelines(oracle, file, config, **changes):
    """The oracle's pipeline from parts, and ours from the file."""
    motion = tiny.fill(diffusers.MotionAdapter(**tiny_repo.public(tiny.ADAPTER)))
    ours = PIAPipeline.from_single_file(
        file, config=config, motion_adapter=MotionAdapter.from_state(tiny.ADAPTER, dict(motion.state_dict())), **changes
    )
    theirs = diffusers.PIAPipeline(
        **oracle,
        tokenizer=ours.tokenizer,
        scheduler=diffusers.DDIMScheduler.from_config(tiny.SCHEDULER),
        motion_adapter=motion,
    )
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
    return theirs, ours


@pytest.mark.filterwarnings("ignore::vivant.errors.VivantWarning")
def test_whole_model(oracle, file, config):
    def run(pipe):
        return pipe(
            image=torch.rand(1, 3, 48, 80, generator=torch.Generator().manual_seed(5)),
            prompt="a cat in a field",
            negative_prompt="the photo",
            num_frames=F,
            height=48,
            width=80,
            num_inference_steps=4,
            generator=torch.Generator().manual_seed(3),
            output_type="pt",
        ).frames

    theirs, ours = pipelines(oracle, file, config)
    assert_parity(run(ours), run(theirs), TRAJECTORY)


@pytest.mark.filterwarnings("ignore::vivant.errors.VivantWarning")
@torch.no_grad()
def test_a_converted_file_is_what_the_oracle_reads(tmp_path, oracle, file, config):
    convert(file, tmp_path / "model", config=config)
    read = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    for name in ("unet", "vae"):
        state = oracle[name].state_dict()
        assert getattr(read, name).state_dict().keys() == state.keys()
        for key, value in getattr(read, name).state_dict().items():
            assert torch.equal(value, state[key]), key
    tokens = tokenise(read.tokenizer, ["a cat in a field"])
    assert_parity(embed(read.text_encoder, tokens), embed(oracle["text_encoder"], tokens))
    assert read.scheduler.config.beta_schedule == tiny.SCHEDULER["beta_schedule"]


@torch.no_grad()
def test_the_oracle_reads_our_single_file(tmp_path, oracle, config):
    """The layout of the VAE and the UNet that `convert` writes is one that another reader understands."""
    tiny_repo.write_base(tmp_path / "repo")
    convert(tmp_path / "repo", tmp_path / "model.safetensors")
    read = diffusers.UNet2DConditionModel.from_single_file(
        str(tmp_path / "model.safetensors"), config=str(config), subfolder="unet"
    )
    for key, value in oracle["unet"].state_dict().items():
        assert torch.equal(read.state_dict()[key], value), key
    vae = diffusers.AutoencoderKL.from_single_file(
        str(tmp_path / "model.safetensors"), config=str(config), subfolder="vae"
    )
    for key, value in oracle["vae"].state_dict().items():
        assert torch.equal(vae.state_dict()[key], value), key


def test_lora_tables_follow_the_layout(oracle):
    table = ldm.unet_table(dict(oracle["unet"].named_modules()), tiny.UNET2D, tiny_single.UNET)
    written = dict(tiny_single.unet_modules(tiny.UNET2D))
    for ours, theirs in written.items():
        assert table[ours] == tiny_single.UNET + theirs or ".upsamplers.0" in ours
    assert table["up_blocks.0.upsamplers.0.conv"] == tiny_single.UNET + written["up_blocks.0.upsamplers.0"] + ".conv"
    assert table["down_blocks.1.resnets.0.conv_shortcut"].endswith("input_blocks.4.0.skip_connection")
