"""New text encoders: a vocabulary learnt from captions, and a small CLIP with random weights."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivant.text.clip import load_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPTextModel, PreTrainedTokenizerBase

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""How CLIP cuts text into words (openai/CLIP, simple_tokenizer.py)."""


def train_tokenizer(captions: Iterable[str], folder: Path, num_tokens: int) -> "PreTrainedTokenizerBase":
    """A byte-pair vocabulary of captions in CLIP's format, `vocab.json` and `merges.txt`.

    Every byte is a token, so that any text can be written, as with CLIP's own.

    Args:
        captions: text to learn from.
        folder: gets the files.
        num_tokens: size of the vocabulary; at least the 512 bytes (inside and at the end of a word) and two marks.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens - 2 - len(alphabet),
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    model.train_from_iterator(captions, trainer)
    learnt: dict[str, Any] = json.loads(model.to_str())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in learnt["merges"]]
    names = [*alphabet, *(byte + "</w>" for byte in alphabet), *("".join(merge.split(" ")) for merge in merges)]
    vocabulary = {name: i for i, name in enumerate(dict.fromkeys([*names, START, END]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    built = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=END, model_max_length=77)
    built.save_pretrained(folder)
    return load_tokenizer(folder)


def new_text_encoder(tokenizer: "PreTrainedTokenizerBase", **config: Any) -> "CLIPTextModel":
    """A text encoder with random weights for a tokenizer; `config` holds the fields of CLIP's `config.json`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    marks = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    fields: dict[str, Any] = {**config, "vocab_size": len(tokenizer), **marks}
    return CLIPTextModel(CLIPTextConfig(**fields)).eval()
