"""Changed networks against the answers of diffusers 0.42.1 with peft 0.21.2, recorded by `make_lora.py`."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
import tiny_consisid
import tiny_lora
import tiny_pia
from tolerances import assert_parity, relative_l2
from vivant.pipelines.pia import PIAPipeline

THEIRS = load_file(Path(__file__).parent / "lora.safetensors")
WEIGHTS = {
    "last": None,
    "both": (["one", "two"], [0.3, -0.7]),
    "components": (["one", "two"], [{"unet": 0.4, "text_encoder": 0.9}, 0.5]),
    "blocks": ("one", {"unet": {"down": 0.2, "mid": 0.5, "up": {"block_1": [0.3, 0.6, 0.9]}}}),
}


@pytest.fixture
def pipe():
    pipe = tiny_pia.pipeline()
    yield pipe
    pipe.unload_lora_weights()


@torch.no_grad()
def answers(pipe: PIAPipeline) -> dict[str, Tensor]:
    x, ids = tiny_lora.inputs()
    text = tiny.noise(1, tiny.TOKENS, tiny.TEXT_DIM, seed=1)
    assert pipe.text_encoder is not None
    return {"unet": pipe.unet(x, 500, text).sample, "text": pipe.text_encoder(ids).last_hidden_state}


def load(pipe: PIAPipeline, name: str, folder: Path, adapter: str) -> None:
    written = getattr(tiny_lora, name)(pipe.components)
    path = folder / f"{name}.safetensors"
    save_file({k: v.contiguous() for k, v in written.tensors.items()}, path, metadata=written.metadata)
    pipe.load_lora_weights(path, adapter_name=adapter)


@pytest.mark.parametrize("name", tiny_lora.READ_BY_DIFFUSERS)
def test_a_layout_changes_networks_as_in_diffusers(pipe, name, tmp_path):
    before = answers(pipe)
    load(pipe, name, tmp_path, "one")
    for part, ours in answers(pipe).items():
        assert_parity(ours, THEIRS[f"{name}/{part}"])
    assert relative_l2(answers(pipe)["unet"], before["unet"]) > 0.1


@pytest.mark.parametrize("name", WEIGHTS)
def test_several_with_weights_count_as_in_diffusers(pipe, name, tmp_path):
    load(pipe, "kohya", tmp_path, "one")
    load(pipe, "converted_motion", tmp_path, "two")
    weights = WEIGHTS[name]
    if weights is not None:
        pipe.set_adapters(*weights)
    for part, ours in answers(pipe).items():
        assert_parity(ours, THEIRS[f"{name}/{part}"])


def test_consisid_s_transformer_is_changed_as_in_diffusers():
    pipe = tiny_consisid.pipeline()
    pipe.load_lora_weights(tiny_lora.transformer(pipe.components).tensors)
    try:
        with torch.no_grad():
            x, text = tiny_consisid.latents(), tiny_consisid.text()
            ours = pipe.transformer(x, text, torch.tensor([640, 640]), **tiny_consisid.face()).sample
    finally:
        pipe.unload_lora_weights()
    assert_parity(ours, THEIRS["transformer"])
