"""New text encoders: a vocabulary learnt from captions and a small CLIP with random weights; new words for old ones."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vivant.text.clip import load_tokenizer, save_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPTextModel, PreTrainedTokenizerBase, T5EncoderModel

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
    return _written(vocabulary, merges, folder)


def _written(vocabulary: Mapping[str, int], merges: Sequence[str], folder: Path) -> "PreTrainedTokenizerBase":
    """A tokenizer in CLIP's format, as files and read back."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    built = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=END, model_max_length=77)
    built.save_pretrained(folder)
    return load_tokenizer(folder)


def num_ids(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Rows that an embedding needs for a tokenizer, whose numbers may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def strange_words(tokenizer: "PreTrainedTokenizerBase", captions: Iterable[str], often: int) -> tuple[str, ...]:
    """Words that captions use at least `often` times and that a tokenizer can only spell, in alphabetical order."""
    counts = Counter(word for caption in captions for word in re.findall(r"[a-z]+", caption.lower()))
    return tuple(sorted(w for w, num in counts.items() if num >= often and len(tokenizer.tokenize(w)) > 1))


def learn_words(tokenizer: "PreTrainedTokenizerBase", words: Sequence[str], folder: Path) -> "PreTrainedTokenizerBase":
    """The same tokenizer with more words, each of which is one token.

    New merges rank after all others, so that text without the new words keeps its tokens and their numbers.

    Args:
        tokenizer: CLIP's.
        words: in small letters.
        folder: gets its files.
    """
    save_tokenizer(tokenizer, folder)
    vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").strip().split("\n")
    (folder / "tokenizer.json").unlink(missing_ok=True)  # would be read in place of the other two
    merges = merges[1:] if merges[0].startswith("#") else merges
    ranks, free = {merge: i for i, merge in enumerate(merges)}, count(num_ids(tokenizer))
    for word in words:
        pieces = _spelt(word, ranks)
        while len(pieces) > 1:
            merge = f"{pieces[0]} {pieces[1]}"
            ranks[merge] = len(ranks)
            merges.append(merge)
            pieces = ["".join(pieces[:2]), *pieces[2:]]
            if pieces[0] not in vocabulary:
                vocabulary[pieces[0]] = next(free)
    return _written(vocabulary, merges, folder)


def _spelt(word: str, ranks: Mapping[str, int]) -> list[str]:
    """Tokens of a word: of all neighbours that have a merge, the one learnt first is merged, again and again."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while True:
        found = [(ranks[pair], i) for i in range(len(pieces) - 1) if (pair := f"{pieces[i]} {pieces[i + 1]}") in ranks]
        if not found:
            return pieces
        _, i = min(found)
        pieces[i : i + 2] = ["".join(pieces[i : i + 2])]


def add_embeddings(text_encoder: "CLIPTextModel", num_tokens: int, seed: int) -> None:
    """Make room for a larger vocabulary, where there is not enough; new rows are random and as long as the others."""
    encoder: Any = text_encoder
    old: Tensor = encoder.get_input_embeddings().weight.detach()
    if len(old) >= num_tokens:
        return
    missing = torch.randn(num_tokens - len(old), old.shape[1], generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([old, missing.to(old) * old.std()])
    encoder.set_input_embeddings(nn.Embedding.from_pretrained(rows))
    text_encoder.config.vocab_size = num_tokens


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


def train_t5_tokenizer(captions: Iterable[str], folder: Path, length: int, num_tokens: int = 400) -> None:
    """A vocabulary of captions in T5's format, `spiece.model` and its settings.

    Args:
        captions: text to learn from.
        folder: gets the files.
        length: most tokens of a prompt.
        num_tokens: size of the vocabulary, at most; fewer if the captions have no more pieces.
    """
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_prefix=str(folder / "spiece"),
        model_type="bpe",  # T5's own kind, unigram, finds no whole words in few captions
        vocab_size=num_tokens,
        hard_vocab_limit=False,
        byte_fallback=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": length, "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def new_t5(tokenizer: "PreTrainedTokenizerBase", num_channels: int, **config: Any) -> "T5EncoderModel":
    """A text encoder with random weights; `config` holds further fields of T5's `config.json`."""
    from transformers import T5Config, T5EncoderModel

    fields: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **config}
    return T5EncoderModel(T5Config(**fields, d_model=num_channels, vocab_size=len(tokenizer), dropout_rate=0.0)).eval()
