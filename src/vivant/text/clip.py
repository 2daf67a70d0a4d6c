"""CLIP's text encoder: prompts to embeddings, and reading and writing the encoder and its tokenizer.

The network and the tokenizer are those of transformers; this file is where its generations differ (version 5.6
removed the level `text_model` from the module tree and from the tensor names).
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vivant.config import dump_json, load_json
from vivant.errors import InputError, LoadError
from vivant.hub.finite import check_finite
from vivant.hub.load import cast, check_keys, read_weights, write_weights
from vivant.hub.model import usual_dtype
from vivant.hub.repo import TRANSFORMERS, Source
from vivant.hub.single_file import TEXT, Found, Names, config_of, look_for, open_file
from vivant.text.inversion import expand
from vivant.text.tokens import Tokens, check_prompts, tokenise

if TYPE_CHECKING:
    from transformers import CLIPTextModel, PreTrainedTokenizerBase

PREFIX = "text_model."
"""Level that published files have in their tensor names, whatever the version of transformers."""
NUM_TOKENS = 49408
"""Of OpenAI's CLIP: 256 bytes, each also at the end of a word, 48,894 merges, start and end."""
_NOT_TEXT = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    text_encoder: "CLIPTextModel",
    prompts: Sequence[str],
    clip_skip: int | None = None,
) -> Float[Tensor, "b n d"]:
    """Embed prompts, each cut or padded to the 77 tokens of CLIP; brackets are brackets (see `vivant.text.encode`).

    Args:
        tokenizer: CLIP's tokenizer.
        text_encoder: CLIP's text encoder.
        prompts: b prompts; may be empty strings.
        clip_skip: number of last layers to leave out; see `embed`.

    Raises:
        InputError: E-PROMPT-TYPE, E-PROMPT-TEXT, E-CLIP-SKIP.
    """
    return embed(text_encoder, plain_tokens(tokenizer, prompts, _num_positions(text_encoder)), clip_skip)


def plain_tokens(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], length: int = 77) -> Tokens:
    """As `tokenise`, with learned words of several vectors written out."""
    check_prompts(prompts)
    return tokenise(tokenizer, [expand(prompt, tokenizer) for prompt in prompts], length)


def embed(text_encoder: "CLIPTextModel", tokens: Tokens, clip_skip: int | None = None) -> Float[Tensor, "b n d"]:
    """Hidden states of the text encoder for tokenised prompts.

    Args:
        text_encoder: CLIP's text encoder.
        tokens: what `tokenise` returned.
        clip_skip: None or 0 for the last layer, k for the k-th layer before it; the final layer norm is applied to
            whichever layer is chosen.

    Raises:
        InputError: E-CLIP-SKIP.
    """
    num_layers = text_encoder.config.num_hidden_layers
    if clip_skip is not None and (type(clip_skip) is not int or not 0 <= clip_skip < num_layers):
        raise InputError(
            "E-CLIP-SKIP",
            f"clip_skip={clip_skip!r} is not possible.",
            f"The text encoder has {num_layers} layers.",
            f"Give 0 to {num_layers - 1}, or None.",
        )
    ids = tokens.ids.to(text_encoder.device)
    # CLIP attends to its padding: it was trained that way, and almost no checkpoint asks for the mask.
    masked = getattr(text_encoder.config, "use_attention_mask", False)
    mask = tokens.mask.to(text_encoder.device) if masked else None
    if clip_skip is None:
        return text_encoder(ids, attention_mask=mask).last_hidden_state
    hidden = text_encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
    return _text_model(text_encoder).final_layer_norm(hidden)


def _text_model(text_encoder: nn.Module) -> Any:
    """The module that holds the layers: the encoder itself since transformers 5.6, one level below before."""
    return getattr(text_encoder, "text_model", text_encoder)


def _num_positions(text_encoder: "CLIPTextModel") -> int:
    return text_encoder.config.max_position_embeddings


def load_text_encoder(folder: Path, variant: str | None = None, dtype: torch.dtype | None = None) -> "CLIPTextModel":
    """Read a CLIP text encoder, strictly: every tensor must be there and fit.

    Tensor names with and without the prefix `text_model.` are read, and the stored table `position_ids` of older
    files is left aside, as are the tensors of the image half in files of a whole CLIP.

    Args:
        folder: holds `config.json` and `model.safetensors` (or shards, or `pytorch_model.bin`).
        variant: file variant such as ``"fp16"``.
        dtype: data type of the weights; that of `torch.get_default_dtype()` if not given.

    Raises:
        LoadError: E-FILE-MISSING or E-JSON-BROKEN, E-CONFIG-VALUE, nothing readable, or E-KEYS-MISMATCH.
    """
    encoder = meta_text_encoder(load_json(folder / "config.json"), str(folder / "config.json"))
    return adopt_text_encoder(encoder, read_state(folder, variant, encoder), dtype or usual_dtype())


def read_state(folder: Path, variant: str | None, encoder: "CLIPTextModel") -> dict[str, Tensor]:
    """The tensors of a published folder that a text encoder needs, under its own names and in their own data type.

    Raises:
        LoadError: nothing readable, or E-KEYS-MISMATCH.
    """
    expected = encoder.state_dict()
    prefix = PREFIX if next(iter(expected)).startswith(PREFIX) else ""
    state = {
        prefix + name.removeprefix(PREFIX): value
        for name, value in read_weights(folder, variant, TRANSFORMERS).items()
        if not name.startswith(_NOT_TEXT) and not name.endswith("position_ids")
    }
    check_keys(state, expected, "CLIPTextModel", str(folder))
    return state


def text_encoder_of(
    found: Found, config: Mapping[str, Any], dtype: torch.dtype | None, *, verify: bool = False
) -> tuple["CLIPTextModel", Names]:
    """Build a text encoder that was found in a single file, as `Model.from_found` does with other networks."""
    encoder = meta_text_encoder(config)
    state, names = found.state(encoder, config, "CLIPTextModel")
    check_finite(state, found.file.origin, whole=verify, dtype=dtype)
    return adopt_text_encoder(encoder, state, dtype), names


def text_encoder_from_single_file(
    path: str | Path | Mapping[str, Tensor],
    config: str | Path | Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    *,
    verify: bool = False,
) -> "CLIPTextModel":
    """Read CLIP's text encoder from a file of it alone, or of a whole model.

    Args:
        path: as of `Model.from_single_file`.
        config: likewise.
        dtype: data type of the weights; that of `torch.get_default_dtype()` if not given.
        verify: look for NaN in all values.

    Raises:
        LoadError: as `Model.from_single_file`.
    """
    place = Source("")
    found = look_for(open_file(path, place), TEXT)
    return text_encoder_of(found, config_of(config, found, place), dtype or usual_dtype(), verify=verify)[0]


def meta_text_encoder(config: Mapping[str, Any], origin: str = "the configuration") -> "CLIPTextModel":
    """A text encoder without values.

    Raises:
        LoadError: E-CONFIG-VALUE, naming `origin`.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    try:
        values = dict(config.get("text_config") or config)  # a whole CLIP has one for each half
        with torch.device("meta"):
            return CLIPTextModel(CLIPTextConfig.from_dict(values))
    except Exception as error:  # whatever transformers makes of values that fit no network
        raise LoadError("E-CONFIG-VALUE", f"{origin} describes no CLIP text encoder: {error}.") from error


def adopt_text_encoder(
    encoder: "CLIPTextModel", state: Mapping[str, Tensor], dtype: torch.dtype | None
) -> "CLIPTextModel":
    """Give a text encoder without values those of `state`, which must fit; in their own data type without `dtype`."""
    encoder.load_state_dict(cast(state, dtype), strict=True, assign=True)
    embeddings = _text_model(encoder).embeddings
    embeddings.position_ids = torch.arange(_num_positions(encoder)).expand(1, -1)
    return encoder.eval().requires_grad_(False)


def save_text_encoder(
    text_encoder: "CLIPTextModel", folder: Path, variant: str | None = None, max_shard_size: int | str = "10GB"
) -> None:
    """Write the encoder under its published tensor names, readable by every version of transformers."""
    state = {PREFIX + name.removeprefix(PREFIX): value for name, value in text_encoder.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, state, variant, max_shard_size, TRANSFORMERS)
    values = {k: v for k, v in json.loads(text_encoder.config.to_json_string()).items() if not k.startswith("_")}
    dump_json({**values, "architectures": ["CLIPTextModel"]}, folder / "config.json")


def load_tokenizer(folder: Path, class_name: str = "CLIPTokenizer") -> "PreTrainedTokenizerBase":
    """Read a CLIP tokenizer: `vocab.json` and `merges.txt`, or `tokenizer.json`.

    Raises:
        LoadError: E-TOKENIZER.
    """
    import transformers

    why = "vocab.json and merges.txt, or tokenizer.json, are expected."
    fix = "Download the repository again."
    if not (folder / "tokenizer.json").is_file():
        # Without its files transformers may build an empty tokenizer that knows no word.
        missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
        if missing:
            raise LoadError("E-TOKENIZER", f"The tokenizer in {folder} lacks {' and '.join(missing)}.", why, fix)
    try:
        return getattr(transformers, class_name).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the readers of transformers raise whatever the broken file makes them raise
        text = f"The tokenizer in {folder} cannot be read: {type(error).__name__}: {str(error)[:200]}."
        raise LoadError("E-TOKENIZER", text, why, fix) from error


def shipped_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """OpenAI's tokenizer, from a folder like a published one without `vocab.json`, which follows from `merges.txt`."""
    with tempfile.TemporaryDirectory(prefix="vivant-") as name:
        whole = Path(name)
        for file in folder.iterdir():
            shutil.copyfile(file, whole / file.name)
        merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
        (whole / "vocab.json").write_text(json.dumps(vocabulary(merges)), encoding="utf-8")
        return load_tokenizer(whole)


def vocabulary(merges: Sequence[str]) -> dict[str, int]:
    """The tokens that byte-pair merges make, in CLIP's order: bytes, bytes that end a word, merges, start and end.

    Bytes that are no visible characters stand as the characters from 256 on (Radford et al. 2019, GPT-2's encoder).
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    units = [chr(byte) for byte in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    tokens = [*units, *(f"{unit}</w>" for unit in units), *("".join(pair.split()) for pair in merges)]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write the tokenizer with `vocab.json` and `merges.txt`, which older readers need, whatever transformers adds."""
    tokenizer.save_pretrained(folder)
    if not (folder / "vocab.json").is_file():
        backend: Any = tokenizer.backend_tokenizer
        backend.model.save(str(folder))
