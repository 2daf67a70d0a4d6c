"""Learned words: known to tokenizer and encoder together, gone without a trace, and refused before anything changes."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tiny
import tiny_pia
import tiny_words
from tiny_words import save, vectors
from tolerances import assert_parity
from vivant.errors import VivantError
from vivant.pipelines.pia import PIAPipeline
from vivant.text.clip import load_text_encoder, load_tokenizer
from vivant.text.encode import divide
from vivant.text.inversion import expand

PROMPT = "a wolf, and a werewolf, in the field"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_words.write(tmp_path_factory.mktemp("repositories"))[0]


@pytest.fixture
def pipe(base) -> PIAPipeline:
    """A pipeline with tokenizer and text encoder of its own, whose weights are mapped from a file."""
    text = {"text_encoder": load_text_encoder(base / "text_encoder"), "tokenizer": load_tokenizer(base / "tokenizer")}
    return tiny_pia.pipeline(**text)


def state(pipe: Any) -> tuple[Any, ...]:
    """The objects that a load would exchange, and what they hold."""
    table = pipe.text_encoder.get_input_embeddings()
    held = {name: id(value) for name, value in vars(pipe.tokenizer).items()}
    weight = table.weight
    size = len(pipe.tokenizer), pipe.text_encoder.config.vocab_size, tuple(weight.shape)
    return table, weight, held, size, weight.data_ptr()


def embedded(pipe: Any, prompt: str = PROMPT, **given: Any) -> torch.Tensor:
    return pipe.encode_prompt(prompt, do_classifier_free_guidance=False, **given)[0]


def learned(pipe: Any, *names: str) -> None:
    pipe.load_textual_inversion([{name: vectors(name)} for name in names])


# Loading and unloading


def test_unloading_brings_back_the_same_objects(pipe):
    before, plain = state(pipe), embedded(pipe)
    learned(pipe, "wolf", "<cat-toy>")
    assert len(pipe.tokenizer) == pipe.text_encoder.config.vocab_size == 203
    assert not torch.equal(embedded(pipe), plain)
    pipe.unload_textual_inversion()
    now = state(pipe)
    assert now[0] is before[0]
    assert now[1] is before[1]
    assert now[2:] == before[2:]
    assert torch.equal(embedded(pipe), plain)
    pipe.unload_textual_inversion()  # of nothing, as in diffusers
    assert state(pipe)[2:] == before[2:]


def test_words_come_and_go_in_any_order(pipe):
    before = state(pipe)
    learned(pipe, "<a>", "wolf")
    learned(pipe, "<b>")
    of_b, of_wolf = embedded(pipe, "the <b>"), embedded(pipe, "the wolf")
    pipe.unload_textual_inversion("<a>")
    assert torch.equal(embedded(pipe, "the <b>"), of_b)
    pipe.unload_textual_inversion(["<b>"])
    assert torch.equal(embedded(pipe, "the wolf"), of_wolf)
    learned(pipe, "<b>")
    assert torch.equal(embedded(pipe, "the <b>"), of_b)
    pipe.unload_textual_inversion(["wolf", "<b>"])  # with its further vector
    assert state(pipe)[2:] == before[2:]


def test_words_do_not_change_with_what_they_were_read_from(pipe):
    table = vectors("wolf").clone()
    pipe.load_textual_inversion({"wolf": table})
    said = embedded(pipe)
    table.zero_()
    learned(pipe, "<a>")
    assert torch.equal(embedded(pipe), said)


def test_pipelines_that_share_the_two_share_the_words(pipe):
    other = PIAPipeline.from_pipe(pipe)
    before = state(pipe)
    learned(pipe, "wolf")
    assert torch.equal(embedded(other), embedded(pipe))
    other.unload_textual_inversion("wolf")
    assert state(pipe)[2:] == before[2:]


def test_another_pair_can_be_given(pipe, base):
    given = {
        "tokenizer": load_tokenizer(base / "tokenizer"),
        "text_encoder": load_text_encoder(base / "text_encoder"),
    }
    before = state(pipe)
    pipe.load_textual_inversion({"wolf": vectors("wolf")}, **given)
    assert state(pipe)[2:] == before[2:]
    assert len(given["tokenizer"]) == 202
    with pytest.raises(VivantError, match="E-EMBEDDING-TOKENIZER"):
        pipe.load_textual_inversion({"<a>": vectors("<a>")}, text_encoder=given["text_encoder"])
    pipe.unload_textual_inversion(**given)
    assert len(given["tokenizer"]) == 200


def test_words_change_type_with_the_encoder(pipe):
    learned(pipe, "wolf")
    exact = embedded(pipe)
    pipe.text_encoder.to(torch.bfloat16)
    half = embedded(pipe)
    assert half.dtype == torch.bfloat16
    assert_parity(half, exact, torch.bfloat16)
    rounded = pipe.text_encoder.get_input_embeddings().weight[:200].clone()
    pipe.unload_textual_inversion()
    weight = pipe.text_encoder.get_input_embeddings().weight
    assert torch.equal(weight, rounded)
    assert (weight.shape, weight.dtype, weight.requires_grad) == ((200, tiny.TEXT_DIM), torch.bfloat16, False)
    learned(pipe, "wolf")
    assert torch.equal(embedded(pipe), half)


def test_a_word_whose_token_lies_inside_the_table(pipe):
    """Some encoders have more rows than their tokenizers have tokens."""
    own = pipe.text_encoder.get_input_embeddings()
    larger = torch.nn.Embedding(203, tiny.TEXT_DIM, _weight=torch.cat([own.weight, torch.ones(3, tiny.TEXT_DIM)]))
    pipe.text_encoder.set_input_embeddings(larger)
    learned(pipe, "wolf")
    weight = pipe.text_encoder.get_input_embeddings().weight
    assert torch.equal(weight[200:], torch.cat([vectors("wolf"), torch.ones(1, tiny.TEXT_DIM)]))
    pipe.text_encoder.double()
    pipe.unload_textual_inversion()
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight, larger.weight.double())


@pytest.mark.parametrize("residency", ["component", "layer"])
def test_every_residency_gives_the_same_bits(base, tmp_path, residency, pipe):
    pipe.save_pretrained(tmp_path)
    pipe = PIAPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    learned(pipe, "wolf")
    plain = tiny_pia.run(pipe, prompt=PROMPT, num_inference_steps=1)
    pipe.unload_textual_inversion()
    (pipe.enable_model_cpu_offload if residency == "component" else pipe.enable_sequential_cpu_offload)(device="cpu")
    assert not torch.equal(tiny_pia.run(pipe, prompt=PROMPT, num_inference_steps=1), plain)
    learned(pipe, "wolf")
    for _ in range(2):
        assert torch.equal(tiny_pia.run(pipe, prompt=PROMPT, num_inference_steps=1), plain)


# In prompts


def test_a_word_is_not_found_inside_another(pipe):
    plain = embedded(pipe, "a werewolf, wolfs, wolf_2")
    learned(pipe, "wolf", "<cat-toy>")
    assert torch.equal(embedded(pipe, "a werewolf, wolfs, wolf_2"), plain)
    assert expand("werewolf wolf (wolf)", pipe.tokenizer) == "werewolf wolf wolf_1 ( wolf wolf_1 )"
    ids = pipe.tokenizer("<cat-toy>s a<cat-toy>", add_special_tokens=False)["input_ids"]
    assert ids.count(pipe.tokenizer.convert_tokens_to_ids("<cat-toy>")) == 2  # marked off by itself


def test_upper_and_lower_case_are_one(pipe):
    learned(pipe, "EasyNegative")
    assert expand("easynegative", pipe.tokenizer) == "EasyNegative EasyNegative_1 EasyNegative_2"
    assert torch.equal(embedded(pipe, "a EASYNEGATIVE"), embedded(pipe, "a EasyNegative"))


def test_a_prompt_that_is_written_out_stays_as_it_is(pipe):
    learned(pipe, "wolf", "EasyNegative")
    once = pipe.maybe_convert_prompt(["a wolf, EasyNegative wolf", "a cat"], pipe.tokenizer)
    assert once == ["a wolf wolf_1 , EasyNegative EasyNegative_1 EasyNegative_2 wolf wolf_1", "a cat"]
    assert pipe.maybe_convert_prompt(once, pipe.tokenizer) == once
    assert pipe.maybe_convert_prompt("wolf wolf", pipe.tokenizer) == "wolf wolf_1 wolf wolf_1"


def test_words_and_weights_and_chunks(pipe):
    learned(pipe, "EasyNegative")
    first = pipe.tokenizer.convert_tokens_to_ids("EasyNegative")
    (chunk,) = divide(pipe.tokenizer, "a (EasyNegative:1.3)")
    assert chunk.ids[1:] == (first, first + 1, first + 2)
    assert chunk.weights == (1.0, 1.3, 1.3, 1.3)
    left, right = divide(pipe.tokenizer, "a " * 73 + "EasyNegative a")
    assert (len(left.ids), right.ids[:3]) == (73, (first, first + 1, first + 2))
    for clip_skip in (None, 1):
        given = {"clip_skip": clip_skip, "prompt_syntax": "weighted"}
        assert torch.equal(
            embedded(pipe, "a EasyNegative", **given), embedded(pipe, "a EasyNegative", clip_skip=clip_skip)
        )
        assert not torch.equal(
            embedded(pipe, "a (EasyNegative:1.3)", **given), embedded(pipe, "a EasyNegative", **given)
        )


# What is refused


class Canary:
    """A pickle that would write a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def nan(name: str = "<a>") -> dict[str, torch.Tensor]:
    table = vectors(name).clone()
    table[0, 3] = torch.nan
    return {name: table}


def good(name: str = "<good>") -> dict[str, torch.Tensor]:
    return {name: vectors(name)}


def two(folder: Path) -> Path:
    for name in ("1.bin", "2.bin"):
        save(folder, "vector", "<a>", name)
    return folder


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "known to the vocabulary": (lambda _: {"a": vectors("<a>")}, "E-EMBEDDING-TOKEN: .*knows 'a' already"),
    "loaded": (lambda _: {"<there>": vectors("<a>")}, "E-EMBEDDING-TOKEN: .*knows '<there>' already"),
    "loaded, but for its case": (lambda _: {"<THERE>": vectors("<a>")}, "E-EMBEDDING-TOKEN: .*not find"),
    "number of another's vector": (lambda _: {"wolf_1": vectors("<a>")}, "E-EMBEDDING-TOKEN: .*knows 'wolf_1'"),
    "number after another's vectors": (lambda _: {"wolf_2": vectors("<a>")}, "E-EMBEDDING-TOKEN: .*find 'wolf'"),
    "nobody names it": (lambda _: {"emb_params": vectors("<a>")}, "E-EMBEDDING-TOKEN: .*does not name"),
    "placeholder": (lambda _: {"*": vectors("<a>")}, "E-EMBEDDING-TOKEN: .*does not name"),
    "space around": (lambda _: {" <a>": vectors("<a>")}, r"E-EMBEDDING-TOKEN: .*' <a>'"),
    "control character": (lambda _: {"a\x1b[2J": vectors("<a>")}, r"E-EMBEDDING-TOKEN: .*\\x1b"),
    "endless name": (lambda _: {"a" * 1000: vectors("<a>")}, "E-EMBEDDING-TOKEN: .*at most 200"),
    "another width": (
        lambda _: {"<a>": torch.ones(2, 1024)},
        "E-EMBEDDING-WIDTH: .*1024.*reads 20.*Stable Diffusion 2",
    ),
    "no vectors": (lambda _: {"<a>": torch.ones(0, 20)}, "E-EMBEDDING-LENGTH: .*0 vectors"),
    "more than fit": (lambda _: {"<a>": torch.ones(76, 20)}, "E-EMBEDDING-LENGTH: .*76 vectors.*75"),
    "whole numbers": (lambda _: {"<a>": torch.ones(1, 20, dtype=torch.int32)}, r"E-EMBEDDING-FILE: .*int32 \(1, 20\)"),
    "three axes": (lambda _: {"<a>": torch.ones(1, 1, 20)}, r"E-EMBEDDING-FILE: .*\(1, 1, 20\)"),
    "sparse": (lambda _: {"<a>": torch.ones(1, 20).to_sparse()}, "E-EMBEDDING-FILE: .*no vectors"),
    "no tensor": (lambda _: {"<a>": [1.0] * 20}, "E-EMBEDDING-FILE: .*list"),
    "not a number": (lambda _: nan(), "E-WEIGHTS-NAN: .*NaN"),
    "several words": (lambda _: {"<a>": vectors("<a>"), "<b>": vectors("<b>")}, "E-EMBEDDING-FILE: .*2 tables: '<a>'"),
    "nothing": (lambda _: {}, "E-EMBEDDING-FILE: .*0 tables"),
    "two encoders": (
        lambda _: {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)},
        "E-FILE-FAMILY: .*Diffusion XL",
    ),
    "no form at all": (lambda _: 7, "E-EMBEDDING-TYPE: .*int"),
    "missing file": (lambda folder: str(folder / "none.pt"), "E-REPO-MISSING: "),
    "folder of two": (two, "E-FILE-NAME: .*weight_name"),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_loaded_changes_nothing(pipe, tmp_path, case):
    make, message = BAD[case]
    learned(pipe, "<there>", "wolf")
    before, said = state(pipe), embedded(pipe)
    for given in (make(tmp_path / "x"), [good(), make(tmp_path / "y"), good("<better>")]):
        with pytest.raises(VivantError, match=message.replace(": ", r"\] ", 1)):
            pipe.load_textual_inversion(given)
        now = state(pipe)
        assert now[0] is before[0]
        assert now[2:] == before[2:]
    assert torch.equal(embedded(pipe), said)


def files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are refused, and how."""
    folder.mkdir()
    tables = {
        "sd2.safetensors": ({"emb_params": torch.ones(2, 1024)}, "E-FILE-FAMILY.*Stable Diffusion 2"),
        "xl.safetensors": (
            {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)},
            "E-FILE-FAMILY.*Diffusion XL",
        ),
        "lora.safetensors": (
            {
                "lora_unet_down_blocks_0.lora_up.weight": torch.ones(3, 2),
                "lora_te_x.lora_down.weight": torch.ones(2, 3),
            },
            "E-FILE-KIND.*LoRA",
        ),
    }
    found = {name: (folder / name, message) for name, (_, message) in tables.items()}
    for name, (table, _) in tables.items():
        save_file(table, folder / name)
    objects: dict[str, tuple[Any, str]] = {
        "canary.pt": ({"string_to_param": {"*": Canary(folder / "canary")}, "name": "x"}, "E-WEIGHTS-PICKLE"),
        "canary.bin": (Canary(folder / "canary"), "E-WEIGHTS-PICKLE"),
        "module.pt": ({"string_to_param": torch.nn.ParameterDict({"*": torch.ones(1, 20)})}, "E-WEIGHTS-PICKLE"),
        "list.pt": ([torch.ones(1, 20)], "E-WEIGHTS-PICKLE"),
        "two.pt": ({"string_to_param": {"a": torch.ones(20), "b": torch.ones(20)}, "name": "x"}, "E-EMBEDDING-FILE.*2"),
        "endless.pt": ({"<a>": torch.ones(1, 20).expand(10**9, 20)}, "E-EMBEDDING-LENGTH"),
        "wide.pt": ({"<a>": torch.ones(1, 1).expand(2, 10**12)}, "E-EMBEDDING-WIDTH"),
    }
    for name, (value, message) in objects.items():
        torch.save(value, folder / name)
        found[name] = folder / name, message
    for name, content in (("plain.pt", pickle.dumps(Canary(folder / "canary"))), ("cut.safetensors", b"\xff" * 40)):
        (folder / name).write_bytes(content)
        found[name] = folder / name, "E-WEIGHTS-PICKLE|E-WEIGHTS-BROKEN"
    return found


def test_hostile_and_wrong_files_change_nothing(pipe, tmp_path):
    before = state(pipe)
    for name, (path, message) in files(tmp_path / "files").items():
        with pytest.raises(VivantError, match=message):
            pipe.load_textual_inversion(path, token="<a>")
        assert state(pipe)[2:] == before[2:], name
    assert not (tmp_path / "files" / "canary").exists()
    Canary(tmp_path / "canary").__reduce__()[0](tmp_path / "canary")  # what it would have done
    assert (tmp_path / "canary").exists()


def test_a_file_that_names_no_word_has_its_own_name(pipe, tmp_path):
    pipe.load_textual_inversion(save(tmp_path, "emb_params", "wolf", "BadHands.safetensors"))
    assert expand("badhands", pipe.tokenizer) == "BadHands BadHands_1"


@pytest.mark.parametrize(
    ("given", "arguments", "code"),
    [
        ([good(), good("<b>")], {"token": ["<a>"]}, "E-EMBEDDING-TOKENS"),
        ([good(), good("<b>")], {"token": "<a>"}, "E-EMBEDDING-TOKENS"),
        (good(), {"token": ["<a>", "<b>"]}, "E-EMBEDDING-TOKENS"),
        (vectors("wolf"), {"token": ["<a>", "<b>", "<c>"]}, "E-EMBEDDING-TOKENS"),
        ([], {}, "E-EMBEDDING-TOKENS"),
        ([good(), good("<b>")], {"token": ["<a>", "<a>"]}, "E-EMBEDDING-TOKEN"),
        (vectors("wolf"), {}, "E-EMBEDDING-TOKEN"),
        (good(), {"force_download": True}, "E-ARG-VALUE"),
        (good(), {"proxies": {}}, "E-ARG-VALUE"),
        (good(), {"use_safetensors": False}, "E-ARG-VALUE"),
        (good(), {"weights_name": "x.pt"}, "E-ARG-UNKNOWN"),
    ],
)
def test_arguments_that_make_no_sense(pipe, given, arguments, code):
    before = state(pipe)
    with pytest.raises(VivantError) as error:
        pipe.load_textual_inversion(given, **arguments)
    assert error.value.code == code
    assert state(pipe)[2:] == before[2:]


def test_pickles_are_read_unless_refused(pipe, tmp_path):
    path = save(tmp_path, "a1111", "wolf", "x.pt")
    with pytest.raises(VivantError, match="E-REPO-PICKLE"):
        pipe.load_textual_inversion(path, use_safetensors=True)
    pipe.load_textual_inversion(path, use_safetensors=None, force_download=False, proxies=None)
    assert len(pipe.tokenizer) == 202


def test_words_that_were_not_loaded_cannot_be_unloaded(pipe):
    learned(pipe, "wolf")
    before = state(pipe)
    with pytest.raises(VivantError, match=r"E-EMBEDDING-UNKNOWN.*'cat'.*wolf"):
        pipe.unload_textual_inversion(["wolf", "cat"])
    assert state(pipe)[2:] == before[2:]


@pytest.mark.parametrize("name", ["tokenizer", "text_encoder"])
def test_a_pipeline_without_one_of_the_two(name):
    bare = tiny_pia.pipeline(**{name: None})
    for call in (lambda: bare.load_textual_inversion(good()), bare.unload_textual_inversion):
        with pytest.raises(VivantError, match="E-TEXT-ENCODER"):
            call()
