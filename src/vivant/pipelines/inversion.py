"""Textual inversions of a pipeline with diffusers' names; the words themselves are `vivant.text.inversion`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vivant.errors import InputError, LoadError
from vivant.hub.keywords import without_loading
from vivant.hub.load import is_safetensors
from vivant.hub.repo import Source, locate_file
from vivant.text.inversion import USUAL, Learned, checked, expand, forget, learn, read, taken

ALREADY_SO: dict[str, tuple[Any, ...]] = {
    "force_download": (None, False),
    "proxies": (None,),
    "mirror": (None,),
    "low_cpu_mem_usage": (None, True),
}
"""Keywords of diffusers' method, and the values that change nothing here."""
Given = str | Path | Mapping[str, Any] | Tensor


def load_textual_inversion(
    pipeline: Any,
    pretrained_model_name_or_path: Given | Sequence[Given],
    token: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    text_encoder: Any = None,
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    hf_token: str | bool | None = None,
    revision: str | None = None,
    use_safetensors: bool | None = None,
    **others: Any,
) -> None:
    """Teach tokenizer and text encoder words that were learned as vectors, all of them or none.

    Prompts then write the word; one of several vectors is read as `word word_1 word_2 …`. Pipelines that share the two
    know it too.

    Args:
        pipeline: whose tokenizer and text encoder they are.
        pretrained_model_name_or_path: a file (``.safetensors``, ``.pt``, ``.bin``), a folder or hub id with one, what
            such a file holds, or a tensor of one vector or several (k d); or a list of these.
        token: the word, or one for each; what the file says, or else its name, if not given. For one tensor of k
            vectors a list of k words names each.
        tokenizer: in place of the pipeline's.
        text_encoder: likewise.
        weight_name: the file in the folder or repository.
        subfolder: where it lies there.
        cache_dir: hub cache.
        local_files_only: never touch the network.
        hf_token: hub token.
        revision: branch, tag or commit on the hub.
        use_safetensors: True refuses pickles; safetensors are preferred in any case.
        others: keywords of diffusers with values that change nothing here: ``force_download=False`` and the like.

    Raises:
        InputError: E-TEXT-ENCODER, E-EMBEDDING-TOKEN, E-EMBEDDING-TOKENS, E-EMBEDDING-TYPE, E-ARG-VALUE, E-ARG-UNKNOWN.
        LoadError: what cannot be found or read, E-FILE-KIND, E-FILE-FAMILY, E-REPO-PICKLE, E-EMBEDDING-….
    """
    use = None if use_safetensors is True else use_safetensors
    for name in without_loading({"use_safetensors": use, **others}, {**ALREADY_SO, "use_safetensors": (None,)}):
        raise InputError("E-ARG-UNKNOWN", f"load_textual_inversion has no argument {name}.", "It would be ignored.")
    tokenizer, text_encoder = _both(pipeline, tokenizer, text_encoder)
    several = isinstance(pretrained_model_name_or_path, list | tuple)
    given: list[Any] = list(pretrained_model_name_or_path) if several else [pretrained_model_name_or_path]  # pyright: ignore[reportArgumentType]
    names: list[Any] = list(token) if isinstance(token, list | tuple) else [token]
    if len(given) == 1 and len(names) > 1 and isinstance(given[0], Tensor):
        given = list(given[0])
    elif names == [None]:
        names = names * len(given)
    if not given or len(given) != len(names):
        raise InputError(
            "E-EMBEDDING-TOKENS",
            f"{len(names)} words are given for {len(given)} textual inversions.",
            "A list of words holds one for each.",
            "Give as many, or none, and each has the name in its file.",
        )
    place = Source("", subfolder, None, revision, cache_dir, local_files_only, hf_token)
    found = [_found(one, place, weight_name, bool(use_safetensors)) for one in given]
    words = [
        Learned(one.name if name is None else name, one.vectors, one.origin)
        for one, name in zip(found, names, strict=True)
    ]
    learn(tokenizer, text_encoder, words)


def unload_textual_inversion(
    pipeline: Any, tokens: str | Sequence[str] | None = None, tokenizer: Any = None, text_encoder: Any = None
) -> None:
    """Take words away that `load_textual_inversion` brought; without any, both are exactly what they were.

    Args:
        pipeline: whose tokenizer and text encoder they are.
        tokens: words, each with all its vectors; all that were loaded if not given.
        tokenizer: in place of the pipeline's.
        text_encoder: likewise.

    Raises:
        InputError: E-EMBEDDING-UNKNOWN for a word that was not loaded, E-TEXT-ENCODER, E-EMBEDDING-TOKENIZER.
    """
    forget(*_both(pipeline, tokenizer, text_encoder), [tokens] if isinstance(tokens, str) else tokens)


def maybe_convert_prompt(pipeline: Any, prompt: str | Sequence[str], tokenizer: Any) -> str | list[str]:
    """Prompts with words of several vectors written out, as the text encoder reads them; calls do this by themselves.

    Args:
        pipeline: not read; diffusers has this as a method.
        prompt: one or several.
        tokenizer: that knows the words.
    """
    return expand(prompt, tokenizer) if isinstance(prompt, str) else [expand(text, tokenizer) for text in prompt]


def _both(pipeline: Any, tokenizer: Any, text_encoder: Any) -> tuple[Any, Any]:
    tokenizer = pipeline.tokenizer if tokenizer is None else tokenizer
    text_encoder = pipeline.text_encoder if text_encoder is None else text_encoder
    if tokenizer is None or text_encoder is None:
        raise InputError(
            "E-TEXT-ENCODER",
            "A textual inversion changes tokenizer and text encoder, and this pipeline lacks one of them.",
            "",
            "Load the pipeline with both.",
        )
    return tokenizer, text_encoder


def _found(given: Any, place: Source, weight_name: str | None, safe: bool) -> Learned:
    """One word, from wherever it is."""
    if isinstance(given, Tensor):
        return Learned(None, checked(given, "the tensor"), "the tensor")
    if isinstance(given, Mapping):
        return taken(given, "the dictionary")
    if not isinstance(given, str | Path):
        raise InputError(
            "E-EMBEDDING-TYPE",
            f"{type(given).__name__} is no textual inversion.",
            "",
            "Give a file, a folder, a hub id, a dictionary, a tensor, or a list of such.",
        )
    path = locate_file(replace(place, source=given), weight_name, USUAL)
    if safe and not is_safetensors(path):
        raise LoadError(
            "E-REPO-PICKLE", f"{path} is a pickle.", "use_safetensors=True refuses pickles.", "Leave it out."
        )
    return read(path)
