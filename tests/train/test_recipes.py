"""Every trainer from the command line on small networks: thirty steps each, one on the result of the other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from train.world import make, write
from vivant import MotionAdapter, PIAPipeline, UNet2DConditionModel
from vivant.cli import main
from vivant.errors import InputError
from vivant.train.log import read_log
from vivant.train.recipe import read_recipe

TRAINING = (
    "[training]\nsteps = 30\nbatch = 4\nlearning_rate = 2e-3\nworkers = 0\nsample_every = 0\nprecision = 'float32'\n"
)
STILLS = "[[data]]\nkind = 'drawn'\nnum = 24\nsize = [32, 48]\n"
CLIPS = STILLS + "num_frames = 4\n"
SHOWN = "[samples]\nnum = 2\n"
VAE = """[model.config]
block_out_channels = [8, 12, 16]
down_block_types = ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"]
up_block_types = ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]
norm_num_groups = 4
mid_block_add_attention = false
"""
BASE = """[model]
vae = "vae/export"
latents = "latents"
[model.text]
vocab_size = 700
hidden_size = 20
intermediate_size = 28
num_hidden_layers = 2
num_attention_heads = 4
[model.config]
block_out_channels = [16, 24]
down_block_types = ["CrossAttnDownBlock2D", "DownBlock2D"]
up_block_types = ["UpBlock2D", "CrossAttnUpBlock2D"]
layers_per_block = 1
attention_head_dim = 4
norm_num_groups = 8
sample_size = 8
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def vae(folder: Path) -> dict[str, Any]:
    """A trained autoencoder."""
    return make(folder, "vae", "vae", TRAINING + STILLS + VAE + SHOWN)


@pytest.fixture(scope="module")
def base(folder: Path, vae: dict[str, Any]) -> dict[str, Any]:
    """A base trained with it, from latents that were encoded once."""
    return make(folder, "base", "base", TRAINING + STILLS + BASE + SHOWN)


def is_falling(folder: Path, name: str, column: str = "loss") -> bool:
    """Whether the last third of a log lies below the first."""
    values = [row[column] for row in read_log(folder / name)]
    third = len(values) // 3
    return np.mean(values[-third:]) < np.mean(values[:third])


def test_vae(folder, vae):
    assert vae["steps"] == 30
    assert is_falling(folder, "vae")
    assert is_falling(folder, "vae", "l2")
    sheet = np.asarray(Image.open(folder / "vae" / "samples" / "00000030.png"))
    assert sheet.shape == (2 * 32 + 2, 2 * 48 + 2, 3)
    scale = json.loads((folder / "vae" / "export" / "config.json").read_text())["scaling_factor"]
    assert scale != 0.18215


def test_base(folder, base):
    assert is_falling(folder, "base")
    assert len(list((folder / "latents").glob("*.safetensors"))) == 1
    exported = folder / "base" / "export"
    index = json.loads((exported / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert Image.open(folder / "base" / "samples" / "00000030.png").size == (2 * 48 + 2, 32)


def test_a_base_is_read_by_the_oracle_too(folder, base):
    import diffusers
    from transformers import CLIPTokenizer

    diffusers.UNet2DConditionModel.from_pretrained(folder / "base" / "export" / "unet")
    diffusers.AutoencoderKL.from_pretrained(folder / "base" / "export" / "vae")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "base" / "export" / "tokenizer")
    ids = tokenizer("A red star, Zürich!")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "aredstar,zürich!"
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert len(tokenizer("a red star")["input_ids"]) < 9  # words of the captions are few tokens


def test_style_in_full(folder, base):
    text = TRAINING + STILLS.replace("'drawn'", "'drawn'\nstyle = 'neon'") + SHOWN + "[model]\nstart = 'base/export'\n"
    make(folder, "style", "full", text)
    assert is_falling(folder, "full")
    before, after = (load_unet(folder / name) for name in ("base", "full"))
    assert not torch.equal(before["conv_in.weight"], after["conv_in.weight"])
    encoders = [load_file(folder / name / "export" / "text_encoder" / "model.safetensors") for name in ("base", "full")]
    assert all(torch.equal(encoders[0][key], encoders[1][key]) for key in encoders[0])


def load_unet(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "unet" / "diffusion_pytorch_model.safetensors")


def test_style_by_a_low_rank_change(folder, base):
    """The merged base is the base plus the file of the change, and only attention differs."""
    text = TRAINING + STILLS + SHOWN + "[model]\nstart = 'base/export'\nrank = 3\nalpha = 6.0\n"
    make(folder, "style", "lora", text)
    before, after = (load_unet(folder / name) for name in ("base", "lora"))
    change = load_file(folder / "lora" / "export" / "lora.safetensors")
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert 2 * len(changed) == len(change) > 8
    for name in changed:
        stem = f"unet.{name.removesuffix('.weight')}"
        down, up = change[f"{stem}.lora_A.weight"], change[f"{stem}.lora_B.weight"]
        assert down.shape[0] == up.shape[1] == 3
        assert torch.allclose(before[name] + up @ down, after[name], atol=1e-6)


def test_motion(folder, base):
    text = TRAINING + CLIPS + SHOWN + "[model]\nstart = 'base/export'\n[model.config]\nmotion_num_attention_heads = 4\n"
    make(folder, "pia", "pia", text + "[loss]\nconv_in = 'picture'\n")
    assert is_falling(folder, "pia")
    assert Image.open(folder / "pia" / "samples" / "00000030.png").size == (4 * 50 - 2, 2 * 34 - 2)
    table = json.loads((folder / "pia" / "affinity.json").read_text())
    assert table["clips"] == 24
    assert len(table["high"]) == 4
    pipe = PIAPipeline.from_pretrained(
        folder / "base" / "export", motion_adapter=MotionAdapter.from_pretrained(folder / "pia" / "export")
    )
    pipe.set_progress_bar_config(disable=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8))
    frames = pipe(picture, "a red star moves left", num_frames=4, height=32, width=48, num_inference_steps=2).frames[0]
    assert [frame.size for frame in frames] == [(48, 32)] * 4


def test_motion_from_latents_goes_on(folder, base):
    """Encoded clips, bf16 products, gradient checkpointing, two parts a batch; stopped and resumed."""
    text = TRAINING.replace("float32", "bfloat16") + "gradient_checkpointing = true\nmicro_batch = 3\n" + CLIPS + SHOWN
    text += "[model]\nstart = 'base/export'\nadapter = 'pia/export'\nlatents = 'clips'\n"
    make(folder, "pia", "more", text, "--steps", "3")
    done = make(folder, "pia", "more", text, "--steps", "5", "--resume")
    assert done["steps"] == 5
    assert [row["step"] for row in read_log(folder / "more")] == [3, 5]


def test_the_base_that_trained_is_unchanged_by_motion(folder, base):
    state = load_unet(folder / "base")
    read = UNet2DConditionModel.from_pretrained(folder / "base" / "export", subfolder="unet").state_dict()
    assert all(torch.equal(state[name], read[name]) for name in state)


# -------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("vae", "steps =", "E-TRAIN-RECIPE"),
        ("vae", TRAINING + VAE, r"E-TRAIN-RECIPE.*no data"),
        ("vae", TRAINING + STILLS + VAE + "[lss]\nkl = 1\n", r"E-TRAIN-RECIPE.*\[lss\]"),
        ("vae", TRAINING + STILLS + VAE + "[loss]\nkll = 1\n", r"E-CONFIG-UNKNOWN.*kll"),
        ("vae", TRAINING + STILLS.replace("num", "nmu") + VAE, r"E-CONFIG-UNKNOWN.*nmu"),
        ("vae", TRAINING.replace("batch", "bacth") + STILLS + VAE, r"E-CONFIG-UNKNOWN.*bacth"),
        ("vae", TRAINING.replace("steps = 30\n", "") + STILLS + VAE, r"E-TRAIN-RECIPE.*steps"),
        ("vae", TRAINING.replace("30", "0") + STILLS + VAE, r"E-TRAIN-SETTING.*steps"),
        ("vae", TRAINING + STILLS, r"E-TRAIN-RECIPE.*either start or config"),
        ("vae", TRAINING + STILLS + "[model]\nrank = 3\n", r"E-TRAIN-RECIPE.*rank, which vae does not read"),
        ("vae", TRAINING + STILLS + STILLS.replace("32", "40") + VAE, r"E-TRAIN-RECIPE.*differ in size"),
        ("pia", TRAINING + CLIPS + STILLS + "[model]\nstart = 'x'\n", r"E-TRAIN-RECIPE.*differ in num_frames"),
        ("vae", TRAINING + STILLS + VAE + "[samples]\nprompts = ['a']\n", r"E-TRAIN-RECIPE.*prompts"),
        ("style", TRAINING + STILLS + "[model]\nstart = 'x'\nalpha = 2.0\n", r"E-TRAIN-RECIPE.*alpha"),
        ("style", TRAINING + STILLS + "[model]\nstart = 'x'\noften = { red = 2 }\n", r"E-TRAIN-RECIPE.*no latents"),
        ("style", TRAINING + STILLS + "[model]\nstart = 'x'\nlatents = 'y'\noften = { red = -1 }\n", r"E-TRAIN-RECIPE"),
        ("vae", TRAINING + STILLS + "stride = 2\n" + VAE, r"E-TRAIN-SETTING.*stride"),
        ("vae", TRAINING + STILLS + "photos = 0.5\n" + VAE, r"E-TRAIN-SETTING.*folder and photos"),
        ("base", TRAINING + STILLS + "[model]\nvae = 'x'\n", r"E-TRAIN-RECIPE.*lacks config"),
        ("pia", TRAINING + CLIPS, r"E-TRAIN-RECIPE.*lacks start"),
        ("pia", TRAINING + CLIPS + "[model]\nstart = 'x'\n[loss]\ndrop_text = 2.0\n", r"E-TRAIN-SETTING.*drop_text"),
        ("pia", TRAINING + CLIPS + "[model]\nstart = 'x'\n[loss]\nwindow = 5\n", r"E-TRAIN-SETTING.*window is 5"),
    ],
)
def test_recipes_that_cannot_be_made_are_refused_before_anything_is_loaded(tmp_path, kind, text, said):
    with pytest.raises(InputError, match=said):
        read_recipe(kind, write(tmp_path / "a.toml", text))


def test_paths_are_relative_to_the_recipe(tmp_path):
    text = TRAINING + STILLS + "[model]\nstart = '../x'\n"
    assert read_recipe("style", write(tmp_path / "a.toml", text)).model.start == tmp_path.parent / "x"


def test_steps_of_the_command_line_replace_those_of_the_recipe(tmp_path):
    assert read_recipe("vae", write(tmp_path / "a.toml", TRAINING + STILLS + VAE), steps=7).settings.steps == 7


def test_latents_of_another_data_set_are_not_used(folder, base, capsys):
    text = TRAINING + STILLS.replace("24", "25") + BASE + SHOWN
    code = main(["train", "base", "--config", str(write(folder / "b.toml", text)), "-o", str(folder / "b"), "--json"])
    assert code == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E-TRAIN-LATENTS"
