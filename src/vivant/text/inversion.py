"""Textual inversion (arXiv 2208.01618): words learned as vectors, which tokenizer and text encoder know together.

The encoder's table of words is exchanged for one with further rows, and the tokenizer's state for one with further
tokens; what both were before is kept beside the new table, so that it comes back as the same objects. Nothing is
changed before everything is built.
"""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vivant.errors import InputError, LoadError
from vivant.hub.family import identify, refuse
from vivant.hub.finite import check_finite
from vivant.hub.header import Header, Stored, read_header
from vivant.hub.load import is_safetensors, read_file, read_object

if TYPE_CHECKING:
    from transformers import CLIPTextModel, PreTrainedTokenizerBase

USUAL = ("learned_embeds.safetensors", "learned_embeds.bin")
"""Names that diffusers gives to such files."""
UNNAMED = ("emb_params", "clip_l", "*")
"""Names of tables that are no words: of A1111's safetensors, of files with one table for each encoder, of the first
program's placeholder."""
MAX_NAME = 200
Table = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Learned:
    """A learned word.

    Attributes:
        name: as prompts write it; None where the file does not say.
        vectors: one for each token that the word stands for.
        origin: where it comes from, for messages.
    """

    name: str | None
    vectors: Float[Tensor, "k d"]
    origin: str

    @property
    def tokens(self) -> tuple[str, ...]:
        """Names of its tokens, as diffusers numbers them."""
        return (f"{self.name}", *(f"{self.name}_{i}" for i in range(1, len(self.vectors))))


@dataclass(frozen=True, eq=False)
class Before:
    """What tokenizer and encoder were before words were learned.

    Attributes:
        table: the encoder's words.
        tokenizer: the object that was changed.
        state: its attributes.
        words: what is learned at present, by name.
    """

    table: nn.Embedding
    tokenizer: Any
    state: Mapping[str, Any]
    words: Mapping[str, Learned]


class Words(nn.Embedding):
    """A table of words with learned ones, which knows what it was made from.

    Args:
        rows: the vectors.
        before: see there. It is no part of this module: it is neither moved nor written with it.
    """

    def __init__(self, rows: Float[Tensor, "v d"], before: Before):
        super().__init__(*rows.shape, padding_idx=before.table.padding_idx, _weight=rows)
        self.before = before
        self.requires_grad_(False).eval()


# Reading


def read(path: Path) -> Learned:
    """Read one file, whatever program wrote it.

    Args:
        path: ``.safetensors``, or a pickle of torch, of which only data is read.

    Raises:
        LoadError: E-WEIGHTS-BROKEN, E-WEIGHTS-PICKLE; E-FILE-KIND and E-FILE-FAMILY for other files;
            E-EMBEDDING-FILE.
    """
    refuse(path, identify(read_header(path)), ["textual inversion"])
    content = read_file(path) if is_safetensors(path) else read_object(path)
    if not isinstance(content, Mapping):
        raise LoadError("E-EMBEDDING-FILE", f"{path} holds no table of words.", "", "Give a textual inversion.")
    return taken(content, str(path), path.stem)


def taken(content: Table, origin: str, stem: str | None = None) -> Learned:
    """The word in a table of A1111 (`string_to_param` and `name`, or `emb_params`) or diffusers (word to vectors).

    Args:
        content: the table.
        origin: where it comes from.
        stem: name of its file, which names the word where nothing else does, as in A1111.

    Raises:
        LoadError: E-EMBEDDING-FILE, E-FILE-FAMILY.
    """
    if "clip_g" in content:
        raise LoadError(
            "E-FILE-FAMILY",
            f"{origin} is a textual inversion of Stable Diffusion XL: it has vectors for two text encoders.",
            "",
            "Choose one that was made for Stable Diffusion 1.5.",
        )
    stored = content.get("string_to_param", content)
    if not isinstance(stored, Mapping) or len(stored) != 1:
        names = [ascii(name)[:40] for name in stored] if isinstance(stored, Mapping) else []
        raise LoadError(
            "E-EMBEDDING-FILE",
            f"{origin} holds {len(names)} tables: {', '.join(names[:5]) or 'none'}.",
            "A textual inversion holds one word: string_to_param of one entry, emb_params, or a word and its vectors.",
        )
    ((name, vectors),) = stored.items()
    if stored is not content:
        name = content.get("name")
    if not isinstance(name, str) or name in UNNAMED:
        name = stem
    return Learned(name, checked(vectors, origin), origin)


def checked(vectors: object, origin: str) -> Float[Tensor, "k d"]:
    """Vectors, one or several, as a table; their values are not read yet.

    Raises:
        LoadError: E-EMBEDDING-FILE.
    """
    if not isinstance(vectors, Tensor) or vectors.layout != torch.strided or vectors.is_meta or vectors.is_quantized:
        raise LoadError("E-EMBEDDING-FILE", f"{origin} holds no vectors, but {type(vectors).__name__}.")
    if not vectors.is_floating_point() or vectors.ndim not in (1, 2):
        found = f"{str(vectors.dtype).removeprefix('torch.')} {tuple(vectors.shape)}"
        raise LoadError("E-EMBEDDING-FILE", f"{origin} holds {found}.", "A word is one vector or a table of vectors.")
    return torch.atleast_2d(vectors.detach())


# Loading and unloading


def learn(tokenizer: "PreTrainedTokenizerBase", text_encoder: "CLIPTextModel", new: Sequence[Learned]) -> None:
    """Make tokenizer and encoder know further words; either all of them are known afterwards, or nothing changed.

    Args:
        tokenizer: the encoder's.
        text_encoder: CLIP's.
        new: the words.

    Raises:
        InputError: E-EMBEDDING-TOKEN for words that cannot be, or are there already; E-EMBEDDING-TOKENIZER.
        LoadError: E-EMBEDDING-WIDTH, E-EMBEDDING-LENGTH, E-WEIGHTS-NAN.
    """
    before = _before(tokenizer, text_encoder)
    width, longest = before.table.embedding_dim, text_encoder.config.max_position_embeddings - 2
    vocabulary = tokenizer.get_vocab()
    for word in new:
        _check_name(word)
        _check_vectors(word, width, longest)
        # The one after the last too: it would be read as a further vector of this word.
        for token in (*word.tokens, f"{word.name}_{len(word.vectors)}"):
            if token in vocabulary:
                raise InputError(
                    "E-EMBEDDING-TOKEN",
                    f"The tokenizer knows {token!r} already.",
                    f"{word.origin} would take its place.",
                    "Give it another name with token=…, or unload the other one.",
                )
        vocabulary |= dict.fromkeys(word.tokens, -1)
    # Copies: a file may change under its mapping, and a tensor in its owner's hands.
    own = [replace(word, vectors=word.vectors.to("cpu", copy=True)) for word in new]
    _exchange(text_encoder, before, [*before.words.values(), *own])


def forget(tokenizer: "PreTrainedTokenizerBase", text_encoder: "CLIPTextModel", names: Iterable[str] | None) -> None:
    """Take learned words away. When the last one goes, table and tokenizer are the ones from before.

    Args:
        tokenizer: with which they were loaded.
        text_encoder: likewise.
        names: of the words, without the numbers of their further vectors; None is all of them.

    Raises:
        InputError: E-EMBEDDING-UNKNOWN, E-EMBEDDING-TOKENIZER.
    """
    before = _before(tokenizer, text_encoder)
    names = list(before.words) if names is None else list(names)
    for name in names:
        if name not in before.words:
            known = ", ".join(before.words) or "none"
            raise InputError(
                "E-EMBEDDING-UNKNOWN", f"The word {name!r} was not loaded.", "", f"Words that were: {known}."
            )
    _exchange(text_encoder, before, [word for name, word in before.words.items() if name not in names])


def _before(tokenizer: Any, text_encoder: Any) -> Before:
    """What both were before the first word, in the encoder's data type and place of now."""
    table = text_encoder.get_input_embeddings()
    if not isinstance(table, Words):
        return Before(table, tokenizer, dict(vars(tokenizer)), {})
    before = table.before
    if before.tokenizer is not tokenizer:
        raise InputError(
            "E-EMBEDDING-TOKENIZER",
            "This text encoder has learned words with another tokenizer.",
            "",
            "Unload them with that one first.",
        )
    return Before(_original(table), tokenizer, before.state, before.words)


def _original(table: Words) -> nn.Embedding:
    """The table without learned words: the one from before, unless somebody changed type, place or values since."""
    own, now = table.before.table, table.weight
    rows = now[: own.num_embeddings]
    overwritten = [i for i in _ids(table.before.tokenizer, table.before.words.values()) if i < len(rows)]
    if overwritten:  # by words whose tokens lie below the end of the table
        rows = rows.clone()
        rows[overwritten] = own.weight[overwritten].to(now)
    if own.weight.dtype == now.dtype and own.weight.device == now.device and torch.equal(own.weight, rows):
        return own
    changed = nn.Embedding(*rows.shape, padding_idx=own.padding_idx, _weight=rows.clone())
    return changed.requires_grad_(False).eval()


def _exchange(text_encoder: Any, before: Before, words: Sequence[Learned]) -> None:
    """Put table and tokenizer for exactly these words in place."""
    known = Before(before.table, before.tokenizer, before.state, {f"{word.name}": word for word in words})
    state, table = before.state, before.table
    if words:
        extended = _extended(before, words)
        state, table = vars(extended), Words(_rows(before.table.weight.detach(), extended, words), known)
    vars(before.tokenizer).clear()
    vars(before.tokenizer).update(state)
    text_encoder.set_input_embeddings(table)
    text_encoder.config.vocab_size = table.num_embeddings


def _extended(before: Before, words: Sequence[Learned]) -> Any:
    """A copy of the tokenizer from before that knows these words.

    Raises:
        InputError: E-EMBEDDING-TOKEN for a word that it would not find again.
    """
    from transformers import AddedToken

    tokenizer = object.__new__(type(before.tokenizer))
    vars(tokenizer).update(copy.deepcopy(dict(before.state)))
    for word in words:
        tokenizer.add_tokens([AddedToken(token, single_word=_is_word(token)) for token in word.tokens])
    for word in words:
        ids = tokenizer(expand(f"{word.name}", tokenizer), add_special_tokens=False)["input_ids"]
        if ids != _ids(tokenizer, [word]):
            raise InputError(
                "E-EMBEDDING-TOKEN",
                f"The tokenizer does not find {word.name!r} again.",
                "It is too like another word, which differs in upper and lower case or in its number.",
                "Give it another name with token=….",
            )
    return tokenizer


def _ids(tokenizer: Any, words: Iterable[Learned]) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(token) for word in words for token in word.tokens]


def _rows(own: Float[Tensor, "v d"], tokenizer: Any, words: Sequence[Learned]) -> Float[Tensor, "n d"]:
    """The table with the words' vectors in the rows of their tokens."""
    ids = _ids(tokenizer, words)
    rows = own.new_zeros(max(len(own), *(i + 1 for i in ids)), own.shape[1])
    rows[: len(own)] = own
    rows[ids] = torch.cat([word.vectors.to(rows) for word in words])
    return rows


def _check_name(word: Learned) -> None:
    name = word.name
    if not isinstance(name, str) or not name.strip():
        raise InputError("E-EMBEDDING-TOKEN", f"{word.origin} does not name its word.", "", "Name it with token=….")
    if name != name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise InputError(
            "E-EMBEDDING-TOKEN",
            f"The word of {word.origin} is {name[:40]!a}.",
            f"Words have no space around them, no control characters and at most {MAX_NAME} letters.",
            "Give it another name with token=….",
        )


def _check_vectors(word: Learned, width: int, longest: int) -> None:
    if word.vectors.shape[1] != width:
        kind = identify(Header({"emb_params": Stored("F32", tuple(word.vectors.shape))}, {}))
        raise LoadError(
            "E-EMBEDDING-WIDTH",
            f"{word.origin} has vectors of {word.vectors.shape[1]} numbers, and the text encoder reads {width}.",
            "" if kind.family == "unknown" else f"It is {kind}.",
            "Choose one that was made for this family of models.",
        )
    if not 1 <= len(word.vectors) <= longest:
        raise LoadError(
            "E-EMBEDDING-LENGTH",
            f"{word.origin} has {len(word.vectors)} vectors.",
            f"The text encoder reads {longest} tokens at once.",
            "Choose another file.",
        )
    check_finite({f"{word.name}": word.vectors}, word.origin, whole=True)


# In prompts


def families(tokenizer: "PreTrainedTokenizerBase") -> dict[str, tuple[str, ...]]:
    """The words that were added to a tokenizer, each with the names of all its tokens (`x`, `x_1`, …)."""
    added = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if not token.special]
    known, found = set(added), dict[str, tuple[str, ...]]()
    for name in added:
        tokens = [name]
        while f"{name}_{len(tokens)}" in known:
            tokens.append(f"{name}_{len(tokens)}")
        found[name] = tuple(tokens)
    return found


def expand(text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Write out words of several vectors: `x` becomes `x x_1 x_2`, unless that stands there already.

    Upper and lower case do not matter, as they do not to CLIP. A word that begins and ends with a letter or a digit is
    not found inside a longer one.
    """
    words = families(tokenizer)
    if not words:
        return text
    longest_first = sorted(words, key=len, reverse=True)
    pattern = "|".join(rf"(?<!\w){re.escape(w)}(?!\w)" if _is_word(w) else re.escape(w) for w in longest_first)
    spelled = {name.lower(): tokens for name, tokens in words.items()}

    def written(match: re.Match[str]) -> str:
        tokens = spelled.get(match[0].lower(), (match[0],))
        rest = " ".join(tokens[1:])
        after = text[match.end() :].lstrip()
        if rest and not after.lower().startswith(rest.lower()):
            tokens = (" ".join(tokens),)
        left = "" if match.start() == 0 or text[match.start() - 1].isspace() else " "
        right = "" if match.end() == len(text) or text[match.end()].isspace() else " "
        return f"{left}{tokens[0]}{right}"

    return re.sub(pattern, written, text, flags=re.IGNORECASE)


def _is_word(name: str) -> bool:
    """Whether a name could stand inside a longer word: `wolf` in werewolf, but not `<wolf>`."""
    return all(re.fullmatch(r"\w", edge) for edge in (name[0], name[-1]))
