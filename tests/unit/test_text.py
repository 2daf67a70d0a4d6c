"""CLIP: tokens, embeddings, and the encoder on disk in the layouts of several years."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tiny
import tiny_repo
from tiny_repo import BOS, EOS
from tolerances import assert_parity
from vivant.errors import InputError, LoadError, VivantWarning
from vivant.text import clip

PROMPTS = ["cat in a field", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    tiny_repo.write_tokenizer(folder / "tokenizer")
    clip.save_text_encoder(tiny_repo.text_encoder(), folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return clip.load_tokenizer(folder / "tokenizer")


@pytest.fixture(scope="module")
def encoder(folder):
    return clip.load_text_encoder(folder / "text_encoder")


# Tokens


@pytest.mark.parametrize("class_name", ["CLIPTokenizer", "CLIPTokenizerFast"])
def test_prompts_become_77_tokens(folder, class_name):
    ids, mask, notes = clip.tokenise(clip.load_tokenizer(folder / "tokenizer", class_name), PROMPTS)
    vocab = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    words = [vocab[word + "</w>"] for word in ("cat", "in", "a", "field")]
    assert ids.tolist() == [[BOS, *words, *[EOS] * 72], [BOS, *[EOS] * 76]]
    assert mask.sum(1).tolist() == [6, 2]
    assert notes == ()


def test_text_that_does_not_fit_is_named(tokenizer):
    with pytest.warns(VivantWarning, match=r"W-PROMPT-TRUNCATED.*82 tokens.*77.*Lost: 'field the cat walking a'"):
        ids, _, notes = clip.tokenise(tokenizer, ["cat", "a " * 75 + "field the cat walking a"])
    assert ids.shape == (2, 77)
    assert ids[1, -1] == EOS
    assert len(notes) == 1


def test_a_prompt_that_fits_exactly_is_not_reported(tokenizer):
    ids, _, notes = clip.tokenise(tokenizer, ["a " * 75])
    assert (ids.shape, notes) == ((1, 77), ())


@pytest.mark.parametrize("prompt", ["🐱" * 9, "قطة في حقل", "cat\0field", "a\n\tb", " "])
def test_any_unicode_is_a_prompt(tokenizer, encoder, prompt):
    assert torch.isfinite(clip.encode(tokenizer, encoder, [prompt])).all()


def test_a_huge_prompt_is_cut(tokenizer, encoder):
    with pytest.warns(VivantWarning) as record:
        assert clip.encode(tokenizer, encoder, ["walking " * 1250]).shape == (1, 77, tiny.TEXT_DIM)
    assert len(str(record[0].message)) < 500


@pytest.mark.parametrize(
    ("prompts", "code"),
    [("cat", "E-PROMPT-TYPE"), ([], "E-PROMPT-TYPE"), (["\ud800"], "E-PROMPT-TEXT")],
)
def test_what_is_no_prompt(tokenizer, encoder, prompts, code):
    with pytest.raises(InputError) as error:
        clip.encode(tokenizer, encoder, prompts)
    assert error.value.code == code


def test_a_tokenizer_without_a_length(folder, tmp_path, encoder):
    tiny_repo.write_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    endless = clip.load_tokenizer(tmp_path)
    assert endless.model_max_length > 10**9
    assert clip.encode(endless, encoder, PROMPTS).shape == (2, 77, tiny.TEXT_DIM)


# Embeddings


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_clip_skip_is_a_hidden_state_through_the_final_norm(tokenizer, encoder, clip_skip):
    ids = clip.tokenise(tokenizer, PROMPTS).ids
    layers = []
    body = getattr(encoder, "text_model", encoder)
    hooks = [
        layer.register_forward_hook(lambda _, __, out: layers.append(out if torch.is_tensor(out) else out[0]))
        for layer in body.encoder.layers
    ]
    last = encoder(ids).last_hidden_state
    for hook in hooks:
        hook.remove()
    due = body.final_layer_norm(layers[len(layers) - 1 - clip_skip])
    found = clip.encode(tokenizer, encoder, PROMPTS, clip_skip)
    assert_parity(found, due)
    if clip_skip == 0:
        assert_parity(clip.encode(tokenizer, encoder, PROMPTS), last)
    else:
        with pytest.raises(AssertionError):
            assert_parity(found, last)


@pytest.mark.parametrize("clip_skip", [-1, 3, True])
def test_layers_that_do_not_exist(tokenizer, encoder, clip_skip):
    with pytest.raises(InputError, match=r"E-CLIP-SKIP.*3 layers"):
        clip.encode(tokenizer, encoder, PROMPTS, clip_skip)


def test_prompts_do_not_see_each_other(tokenizer, encoder):
    together = clip.encode(tokenizer, encoder, ["cat in a field", "the photo of a cat"])
    assert_parity(together[1:], clip.encode(tokenizer, encoder, ["the photo of a cat"]))
    with pytest.raises(AssertionError):
        assert_parity(together[1:], together[:1])


def test_padding_is_masked_only_where_the_checkpoint_asks_for_it(folder, tokenizer):
    encoder = clip.load_text_encoder(folder / "text_encoder")
    plain = clip.encode(tokenizer, encoder, PROMPTS)
    encoder.config.use_attention_mask = True
    masked = clip.encode(tokenizer, encoder, PROMPTS)
    assert_parity(masked[0, :6], plain[0, :6])  # causal: tokens never see the padding after them
    with pytest.raises(AssertionError):
        assert_parity(masked[0, 20:], plain[0, 20:])


# On disk


def published(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "text_encoder" / "model.safetensors")


def test_files_have_the_published_names(folder):
    names = set(published(folder))
    assert "text_model.encoder.layers.0.self_attn.q_proj.weight" in names
    assert all(name.startswith("text_model.") for name in names)
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    assert config["architectures"] == ["CLIPTextModel"]
    assert config["model_type"] == "clip_text_model"
    assert not [key for key in config if key.startswith("_")]


def with_prefix(state):
    return state


def without_prefix(state):
    return {name.removeprefix("text_model."): value for name, value in state.items()}


def with_position_table(state):
    return {**state, "text_model.embeddings.position_ids": torch.arange(77)[None]}


def whole_clip(state):
    more = {"logit_scale": torch.ones(()), "vision_model.x.weight": torch.ones(3)}
    return {**state, **more, "text_projection.weight": torch.ones(3, 3), "visual_projection.weight": torch.ones(3, 3)}


@pytest.mark.parametrize("layout", [with_prefix, without_prefix, with_position_table, whole_clip])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_layouts_of_several_years(folder, tmp_path, tokenizer, layout, suffix):
    (tmp_path / "config.json").write_bytes((folder / "text_encoder" / "config.json").read_bytes())
    state = layout(published(folder))
    save_file(state, tmp_path / "model.safetensors") if suffix == "safetensors" else torch.save(
        state, tmp_path / "pytorch_model.bin"
    )
    found = clip.load_text_encoder(tmp_path)
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())
    assert not any(b.is_meta for b in found.buffers())
    built = tiny_repo.text_encoder()  # by transformers, never saved
    assert_parity(clip.encode(tokenizer, found, PROMPTS), clip.encode(tokenizer, built, PROMPTS))


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_text_encoders_are_read_strictly(folder, tmp_path, change):
    (tmp_path / "config.json").write_bytes((folder / "text_encoder" / "config.json").read_bytes())
    state = published(folder)
    key = "text_model.final_layer_norm.weight"
    if change == "missing":
        del state[key]
    elif change == "shape":
        state[key] = torch.ones(3)
    else:
        state["text_model.adapter"] = torch.ones(3)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match=r"E-KEYS-MISMATCH.*CLIPTextModel.*1 (missing|unexpected|of the wrong shape)"):
        clip.load_text_encoder(tmp_path)


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (None, "E-FILE-MISSING"),
        ("{", "E-JSON-BROKEN"),
        ("[]", "E-JSON-BROKEN"),
        ('{"hidden_size": "wide"}', "E-CONFIG-VALUE"),
        ('{"hidden_size": 10, "num_attention_heads": 3}', "E-CONFIG-VALUE"),
        ('{"num_hidden_layers": null}', "E-CONFIG-VALUE"),
        ('{"text_config": 3}', "E-CONFIG-VALUE"),
    ],
)
def test_a_text_encoder_needs_its_configuration(folder, tmp_path, config, code):
    save_file(published(folder), tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(LoadError) as caught:
        clip.load_text_encoder(tmp_path)
    assert caught.value.code == code


def test_the_text_half_of_the_configuration_of_a_whole_clip(folder, tmp_path):
    values = json.loads((folder / "text_encoder" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": values}))
    save_file(published(folder), tmp_path / "model.safetensors")
    assert clip.load_text_encoder(tmp_path).config.hidden_size == values["hidden_size"]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_variant_and_data_type(tmp_path, dtype):
    half = tiny_repo.text_encoder().half()
    clip.save_text_encoder(half, tmp_path, "fp16")
    found = clip.load_text_encoder(tmp_path, "fp16", dtype)
    assert found.dtype == (dtype or torch.float32)
    with pytest.raises(LoadError, match=r'E-WEIGHTS-VARIANT.*variant="fp16"'):
        clip.load_text_encoder(tmp_path)


def test_transformers_reads_what_we_write_and_we_what_it_writes(folder, tmp_path, encoder):
    loaded: Any = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder", output_loading_info=True)
    theirs, info = loaded
    assert not any(info.values())
    for name, value in encoder.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], value)
    theirs.save_pretrained(tmp_path)
    back = clip.load_text_encoder(tmp_path)
    for name, value in encoder.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)


def test_tokenizers_keep_the_files_that_older_readers_need(tmp_path, tokenizer):
    clip.save_tokenizer(tokenizer, tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    assert vocab["<|startoftext|>"] == BOS
    for name in ("tokenizer.json", "special_tokens_map.json"):  # then only the oldest files are left
        (tmp_path / name).unlink(missing_ok=True)
    again = clip.load_tokenizer(tmp_path)
    assert torch.equal(clip.tokenise(again, PROMPTS).ids, clip.tokenise(tokenizer, PROMPTS).ids)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_tokenizer_that_lacks_a_file(tmp_path, name):
    tiny_repo.write_tokenizer(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(LoadError, match=rf"E-TOKENIZER.*lacks {name}"):
        clip.load_tokenizer(tmp_path)


def test_a_damaged_tokenizer(tmp_path):
    tiny_repo.write_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(LoadError, match=r"E-TOKENIZER.*cannot be read"):
        clip.load_tokenizer(tmp_path)
