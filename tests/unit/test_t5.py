"""T5's text encoder: reading, writing, and what is asked of it."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel, T5ForConditionalGeneration

import tiny
import tiny_consisid as small
from tolerances import assert_parity
from vivant.errors import LoadError, VivantWarning
from vivant.text import t5

PROMPTS = ["a sea", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("t5")
    small.save_t5_tokenizer(path / "tokenizer")
    t5.save_text_encoder(small.t5_encoder(), path / "text_encoder")
    return path


@torch.no_grad()
def test_padding_is_read_without_a_mask(folder):
    encoder, tokenizer = t5.load_text_encoder(folder / "text_encoder"), t5.load_tokenizer(folder / "tokenizer")
    embeds, notes = t5.encode(tokenizer, encoder, PROMPTS, 6)
    assert notes == ()
    padded = tokenizer(PROMPTS, padding="max_length", max_length=6, return_tensors="pt")
    assert padded.input_ids[1].tolist() == [1, 0, 0, 0, 0, 0]
    assert torch.equal(embeds, small.t5_encoder()(padded.input_ids).last_hidden_state)
    masked = encoder(padded.input_ids, attention_mask=padded.attention_mask).last_hidden_state
    assert not torch.allclose(embeds, masked, atol=1e-2)


def test_prompts_that_are_cut_are_named(folder):
    tokenizer = t5.load_tokenizer(folder / "tokenizer")
    with pytest.warns(VivantWarning, match="W-PROMPT-TRUNCATED"):
        embeds, notes = t5.encode(tokenizer, small.t5_encoder(), ["a person walking along a city street"], 5)
    assert embeds.shape == (1, 5, small.TEXT_DIM)
    assert len(notes) == 1


@torch.no_grad()
def test_files_are_those_of_transformers(folder, tmp_path):
    ids = torch.tensor([[5, 9, 1, 0]])
    expected = small.t5_encoder()(ids).last_hidden_state
    theirs = T5EncoderModel.from_pretrained(folder / "text_encoder")
    assert torch.equal(theirs(ids).last_hidden_state, expected)
    theirs.save_pretrained(tmp_path)
    assert torch.equal(t5.load_text_encoder(tmp_path)(ids).last_hidden_state, expected)


@torch.no_grad()
def test_a_whole_t5_gives_its_encoder(tmp_path):
    whole = T5ForConditionalGeneration(T5EncoderModel(small.t5_encoder().config).config)
    tiny.fill(whole)
    whole.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 9, 1, 0]])
    assert_parity(t5.load_text_encoder(tmp_path)(ids).last_hidden_state, whole.encoder(ids).last_hidden_state)


@pytest.mark.parametrize("name", t5.TABLES)
def test_the_table_of_words_has_two_names(folder, tmp_path, name):
    state = load_file(folder / "text_encoder" / "model.safetensors")
    table = state.pop("shared.weight")
    save_file({**state, name: table}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "text_encoder" / "config.json").read_text())
    encoder = t5.load_text_encoder(tmp_path)
    assert torch.equal(encoder.shared.weight, table)
    assert encoder.encoder.embed_tokens.weight is encoder.shared.weight


def test_float16_keeps_what_overflows(folder):
    encoder = t5.load_text_encoder(folder / "text_encoder", dtype=torch.float16)
    kinds = {name: p.dtype for name, p in encoder.named_parameters()}
    assert kinds["encoder.block.1.layer.1.DenseReluDense.wo.weight"] == torch.float32
    assert kinds["encoder.block.1.layer.1.DenseReluDense.wi_0.weight"] == torch.float16
    assert t5.load_text_encoder(folder / "text_encoder", dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("broken", ["missing", "renamed", "config", "tokenizer"])
def test_files_that_do_not_fit_are_refused(folder, tmp_path, broken):
    state = load_file(folder / "text_encoder" / "model.safetensors")
    code = "E-KEYS-MISMATCH"
    config = (folder / "text_encoder" / "config.json").read_text()
    if broken == "missing":
        del state["encoder.final_layer_norm.weight"]
    elif broken == "renamed":
        state["encoder.last_norm.weight"] = state.pop("encoder.final_layer_norm.weight")
    elif broken == "config":
        config, code = config.replace('"num_layers": 2', '"num_layers": "two"'), "E-CONFIG-VALUE"
    if broken == "tokenizer":
        (tmp_path / "spiece.model").write_bytes(b"no model")
        with pytest.raises(LoadError) as refused:
            t5.load_tokenizer(tmp_path)
        assert refused.value.code == "E-TOKENIZER"
        with pytest.raises(LoadError, match=r"lacks spiece\.model"):
            t5.load_tokenizer(tmp_path / "nothing")
        return
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(LoadError) as refused:
        t5.load_text_encoder(tmp_path)
    assert refused.value.code == code
