"""T5's text encoder: prompts to embeddings, and reading and writing the encoder and its tokenizer.

The network and the tokenizer are those of transformers. CogVideoX was trained on T5's output for all positions, padding
included and without a mask (arXiv 2408.06072), so none is given here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from vivant.config import dump_json, load_json
from vivant.errors import LoadError
from vivant.hub.load import check_keys, read_weights, write_weights
from vivant.hub.repo import TRANSFORMERS
from vivant.text.tokens import tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, T5EncoderModel

TABLES = ("shared.weight", "encoder.embed_tokens.weight")
"""One table of words under two names, of which files have either or both."""
_NOT_ENCODER = ("decoder.", "lm_head.")


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    text_encoder: "T5EncoderModel",
    prompts: Sequence[str],
    max_sequence_length: int = 226,
) -> tuple[Float[Tensor, "b n d"], tuple[str, ...]]:
    """Embed prompts, each cut or padded to one length.

    Args:
        tokenizer: T5's tokenizer.
        text_encoder: T5's encoder.
        prompts: b prompts; may be empty strings.
        max_sequence_length: n, in tokens.

    Returns:
        The embeddings, and a note for every prompt that was cut.

    Raises:
        InputError: E-PROMPT-TYPE, E-PROMPT-TEXT.
    """
    tokens = tokenise(tokenizer, prompts, max_sequence_length, "this model")
    return text_encoder(tokens.ids.to(text_encoder.device)).last_hidden_state, tokens.notes


@dataclass(frozen=True, eq=False)
class Empty:
    """The empty prompt as an encoder embeds it at a length: what guidance needs in almost every run."""

    text_encoder: "T5EncoderModel"
    length: int
    embeds: Float[Tensor, "1 n d"]


def encode_once(
    tokenizer: "PreTrainedTokenizerBase",
    text_encoder: "T5EncoderModel",
    prompts: Sequence[str],
    max_sequence_length: int = 226,
    empty: Empty | None = None,
) -> tuple[Float[Tensor, "b n d"], tuple[str, ...], Empty | None]:
    """As `encode`, with all prompts in one call but the empty one, which is embedded once and by itself.

    By itself, so that a result does not depend on what was embedded before.

    Args:
        empty: what an earlier call returned.

    Returns:
        The embeddings on the CPU, notes, and the empty prompt for the next call.
    """
    if empty is not None and (empty.text_encoder is not text_encoder or empty.length != max_sequence_length):
        empty = None
    if empty is None and "" in prompts:
        embeds, _ = encode(tokenizer, text_encoder, [""], max_sequence_length)
        empty = Empty(text_encoder, max_sequence_length, embeds.cpu())
    said, notes = [prompt for prompt in prompts if prompt], ()
    rows: list[Tensor] = []
    if said:
        embeds, notes = encode(tokenizer, text_encoder, said, max_sequence_length)
        rows = list(embeds.cpu().split(1))
    found = [rows.pop(0) if prompt or empty is None else empty.embeds for prompt in prompts]
    return torch.cat(found), notes, empty


def load_text_encoder(folder: Path, variant: str | None = None, dtype: torch.dtype | None = None) -> "T5EncoderModel":
    """Read a T5 encoder, strictly: every tensor must be there and fit. Those of a decoder are left aside.

    Args:
        folder: holds `config.json` and `model.safetensors` (or shards, or `pytorch_model.bin`).
        variant: file variant such as ``"fp16"``.
        dtype: data type of the weights; that of `torch.get_default_dtype()` if not given. In float16 the last layer of
            every feed-forward stays in float32: its sums overflow otherwise.

    Raises:
        LoadError: E-FILE-MISSING or E-JSON-BROKEN, E-CONFIG-VALUE, nothing readable, or E-KEYS-MISMATCH.
    """
    from transformers import T5Config, T5EncoderModel

    values = load_json(folder / "config.json")
    try:
        config = T5Config.from_dict(values)
        with torch.device("meta"):
            encoder = T5EncoderModel(config)
    except Exception as error:  # whatever transformers makes of values that fit no network
        raise LoadError("E-CONFIG-VALUE", f"{folder / 'config.json'} describes no T5 encoder: {error}.") from error
    dtype = dtype or torch.get_default_dtype()
    state = {
        name: value.to(torch.float32 if dtype == torch.float16 and name.endswith(".wo.weight") else dtype)
        for name, value in read_weights(folder, variant, TRANSFORMERS).items()
        if not name.startswith(_NOT_ENCODER)
    }
    table = next((state[name] for name in TABLES if name in state), None)
    if table is not None:
        state |= dict.fromkeys(TABLES, table)
    expected = encoder.state_dict()
    expected |= dict.fromkeys(TABLES, expected[TABLES[0]])
    check_keys(state, expected, "T5EncoderModel", str(folder))
    encoder.load_state_dict(state, strict=False, assign=True)  # some versions list the table once; checked above
    encoder.set_input_embeddings(encoder.shared)
    return encoder.eval().requires_grad_(False)


def save_text_encoder(
    text_encoder: "T5EncoderModel", folder: Path, variant: str | None = None, max_shard_size: int | str = "10GB"
) -> None:
    """Write the encoder under its published tensor names, the table of words once."""
    state = {name: value for name, value in text_encoder.state_dict().items() if name != TABLES[1]}
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, state, variant, max_shard_size, TRANSFORMERS)
    values = {k: v for k, v in json.loads(text_encoder.config.to_json_string()).items() if not k.startswith("_")}
    dump_json({**values, "architectures": ["T5EncoderModel"]}, folder / "config.json")


def load_tokenizer(folder: Path, class_name: str = "T5TokenizerFast") -> "PreTrainedTokenizerBase":
    """Read a T5 tokenizer: `spiece.model`, or `tokenizer.json`.

    Raises:
        LoadError: E-TOKENIZER.
    """
    import transformers

    fix = "Download the repository again."
    if not any((folder / name).is_file() for name in ("spiece.model", "tokenizer.json")):
        raise LoadError("E-TOKENIZER", f"The tokenizer in {folder} lacks spiece.model.", "", fix)
    try:
        return getattr(transformers, class_name).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the readers of transformers raise whatever the broken file makes them raise
        text = f"The tokenizer in {folder} cannot be read: {type(error).__name__}: {str(error)[:200]}."
        raise LoadError("E-TOKENIZER", text, "spiece.model or tokenizer.json is expected.", fix) from error


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write the tokenizer, as `tokenizer.json` at least."""
    tokenizer.save_pretrained(folder)
