"""Textual inversions against diffusers' `load_textual_inversion` on the same small pipeline: tokens and embeddings."""

import diffusers
import pytest
import torch
import transformers

import tiny_words
from tiny_words import VECTORS, save, vectors
from tolerances import Tolerance, assert_parity
from vivant.pia.motion import MotionAdapter
from vivant.pipelines.pia import PIAPipeline
from vivant.text.clip import load_text_encoder, load_tokenizer

EXACT = Tolerance(peak=1e-6, l2=1e-6)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny_words.write(tmp_path_factory.mktemp("repositories"))


@pytest.fixture(scope="module")
def networks(folders):
    base, adapter = folders
    theirs = diffusers.MotionAdapter.from_pretrained(adapter)
    port = diffusers.PIAPipeline.from_pretrained(base, motion_adapter=theirs, safety_checker=None)
    return port, PIAPipeline.from_pretrained(base, motion_adapter=MotionAdapter.from_pretrained(adapter))


@pytest.fixture
def port(networks, folders):
    """The oracle with tokenizer and text encoder as they are on disk."""
    encoder = transformers.CLIPTextModel.from_pretrained(folders[0] / "text_encoder")
    networks[0].register_modules(text_encoder=encoder, tokenizer=load_tokenizer(folders[0] / "tokenizer"))
    return networks[0]


@pytest.fixture
def ours(networks, folders):
    networks[1].text_encoder = load_text_encoder(folders[0] / "text_encoder")
    networks[1].tokenizer = load_tokenizer(folders[0] / "tokenizer")
    return networks[1]


def compare(port, ours, *words):
    """Tokens and embeddings of prompts with these words, and without."""
    patterns = ("a {} in the field", "{}, {}(the) {}!")
    texts = ["a cat in a field", *(text.replace("{}", word) for word in words for text in patterns)]
    for text in texts:
        written = [pipe.maybe_convert_prompt(text, pipe.tokenizer) for pipe in (port, ours)]
        ids = [pipe.tokenizer(t)["input_ids"] for pipe, t in zip((port, ours), written, strict=True)]
        assert ids[0] == ids[1], text
    theirs, their_negative = port.encode_prompt(texts, torch.device("cpu"), 1, True, negative_prompt=texts[::-1])
    mine, my_negative = ours.encode_prompt(texts, negative_prompt=texts[::-1])
    assert_parity(mine, theirs, EXACT)
    assert_parity(my_negative, their_negative, EXACT)
    return mine


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("a1111", "x.pt"),
        ("a1111", "x.bin"),
        ("diffusers", "x.bin"),
        ("diffusers", "x.safetensors"),
        ("vector", "x.bin"),
        ("vector", "x.safetensors"),
        ("emb_params", "x.safetensors"),
    ],
)
@pytest.mark.parametrize("name", ["<cat-toy>", "wolf"])
def test_every_form_of_file(port, ours, tmp_path, form, file, name):
    path = save(tmp_path, form, name, file)
    token = name if form == "emb_params" else None  # diffusers would call it emb_params
    plain = ours.encode_prompt(f"a {name} in the field")[0]
    for pipe in (port, ours):
        pipe.load_textual_inversion(str(path), token=token)
    rows = vectors(name)[: 1 if form == "vector" else None]
    table = ours.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[200:], rows)
    assert torch.equal(table, port.text_encoder.get_input_embeddings().weight)
    assert ours.text_encoder.config.vocab_size == port.text_encoder.config.vocab_size == 200 + len(rows)
    found = compare(port, ours, name)
    with pytest.raises(AssertionError):
        assert_parity(found[1:2], plain, EXACT)


def test_several_at_once_under_other_names(port, ours, tmp_path):
    forms = dict(zip(VECTORS, ("vector", "a1111", "diffusers"), strict=True))
    paths = [str(save(tmp_path, form, name, f"{form}.pt")) for name, form in forms.items()]
    names = ["<a>", "badword", "<c>"]
    for pipe in (port, ours):
        pipe.load_textual_inversion(paths, token=names)
    compare(port, ours, *names)
    compare(port, ours, "<a> badword <c>")


def test_folders_dictionaries_and_tensors(port, ours, tmp_path):
    save(tmp_path, "diffusers", "<cat-toy>", "learned_embeds.safetensors")
    save(tmp_path / "inner", "a1111", "wolf", "own.bin")
    for pipe in (port, ours):
        pipe.load_textual_inversion(str(tmp_path))
        pipe.load_textual_inversion(str(tmp_path), weight_name="own.bin", subfolder="inner")
        pipe.load_textual_inversion({"<d>": vectors("<d>")})
        pipe.load_textual_inversion([{"<e>": vectors("<e>")}, {"x": vectors("EasyNegative")}], token=["<e>", "<f>"])
        pipe.load_textual_inversion(vectors("wolf"), token="<g>")
        pipe.load_textual_inversion(vectors("EasyNegative"), token=["<s0>", "<s1>", "<s2>"])
    compare(port, ours, "<cat-toy>", "wolf", "<d>", "<e>", "<f>", "<g>", "<s0>", "<s1> <s2>")


def test_what_is_left_after_one_is_unloaded(port, ours):
    for pipe in (port, ours):
        for name in ("<a>", "<b>", "<c>"):
            pipe.load_textual_inversion({name: vectors(name)})
        pipe.unload_textual_inversion("<b>")
    compare(port, ours, "<a>", "<b>", "<c>")
    for pipe in (port, ours):
        pipe.unload_textual_inversion()
    compare(port, ours, "<a>", "<c>")


def test_saved_words_are_read_by_both(port, ours, tmp_path):
    for name in ("wolf", "<cat-toy>"):
        ours.load_textual_inversion({name: vectors(name)})
        port.load_textual_inversion({name: vectors(name)})
    ours.save_pretrained(tmp_path)
    again = PIAPipeline.from_pretrained(tmp_path)
    theirs = diffusers.PIAPipeline.from_pretrained(tmp_path, safety_checker=None)
    compare(port, again, "wolf", "<cat-toy>")
    compare(theirs, ours, "wolf", "<cat-toy>")
    assert len(again.tokenizer) == again.text_encoder.config.vocab_size == 203
