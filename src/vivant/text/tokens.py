"""Prompts to token numbers of one length, the same for every text encoder."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxtyping import Int
from torch import Tensor

from vivant.errors import InputError, warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Tokens(NamedTuple):
    """A batch of tokenised prompts, all of the same length.

    Attributes:
        ids: token numbers.
        mask: 1 for tokens of the prompt, 0 for padding.
        notes: one warning for every prompt that was too long.
    """

    ids: Int[Tensor, "b n"]
    mask: Int[Tensor, "b n"]
    notes: tuple[str, ...]


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse what is no list of strings (E-PROMPT-TYPE), or no valid Unicode (E-PROMPT-TEXT)."""
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError("E-PROMPT-TYPE", f"Prompts must be strings, not {prompts!r}.", "", "Give a list of strings.")
    for prompt in prompts:
        if any("\ud800" <= char <= "\udfff" for char in prompt):
            raise InputError(
                "E-PROMPT-TEXT", f"The prompt {prompt[:60]!r} is not valid Unicode.", "It holds half a surrogate pair."
            )


def tokenise(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], length: int = 77, reader: str = "CLIP"
) -> Tokens:
    """Turn prompts into token numbers of one length, with a warning W-PROMPT-TRUNCATED for every one cut.

    Args:
        tokenizer: of the text encoder.
        prompts: may be empty strings.
        length: in tokens; the tokenizer's own limit if that is lower.
        reader: name of the text encoder, for the warning.

    Raises:
        InputError: E-PROMPT-TYPE for anything but strings, E-PROMPT-TEXT for text that is not Unicode.
    """
    check_prompts(prompts)
    length = min(length, tokenizer.model_max_length)
    padded = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    full = tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]
    notes = []
    for prompt, ids in zip(prompts, full, strict=True):
        if len(ids) > length:
            lost = str(tokenizer.decode(ids[length - 1 : -1]))
            shown = lost if len(lost) <= 200 else lost[:200] + "…"
            text = f"The prompt {prompt[:40]!r}… has {len(ids)} tokens, {reader} reads {length}. Lost: {shown!r}."
            notes.append(warn("W-PROMPT-TRUNCATED", text, stacklevel=3))
    return Tokens(padded["input_ids"], padded["attention_mask"], tuple(notes))
