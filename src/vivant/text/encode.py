"""Prompts to embeddings, as they stand or with weights and of any length, and what there is to say about it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from vivant.errors import InputError, warn
from vivant.text.clip import embed, plain_tokens
from vivant.text.inversion import expand, families
from vivant.text.prompt import Chunk, PromptSyntax, check_syntax, check_weights, chunks, parse, unread
from vivant.text.tokens import Tokens, check_prompts

if TYPE_CHECKING:
    from transformers import CLIPTextModel, PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """Embedded batches of prompts.

    Attributes:
        embeds: one for each batch, `b n d`, all of the same n.
        notes: what was cut off, divided, or not read as its author may have meant it.
    """

    embeds: tuple[Tensor, ...]
    notes: tuple[str, ...]


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    text_encoder: "CLIPTextModel",
    batches: Sequence[Sequence[str]],
    clip_skip: int | None = None,
    syntax: PromptSyntax = "plain",
) -> Encoded:
    """Embed batches of prompts which one run reads: positive, negative, those of single frames.

    ``"plain"`` is what diffusers computes: every character is text, and what does not fit into CLIP's 77 tokens is cut
    off, with a warning. ``"weighted"`` is what A1111 computes (see `vivant.text.prompt`): a prompt is divided into
    chunks of 75 tokens, each read by itself between begin and end, and put one after the other; prompts of fewer chunks
    get empty ones. Embeddings are multiplied by their tokens' weights, and every chunk then scaled so that the mean
    over all its numbers is what it was. A prompt of one chunk without weights is the same to the bit in both.

    Args:
        tokenizer: CLIP's tokenizer.
        text_encoder: CLIP's text encoder, where it computes.
        batches: each b prompts.
        clip_skip: number of last layers to leave out; see `vivant.text.clip.embed`.
        syntax: see above.

    Raises:
        InputError: E-PROMPT-TYPE, E-PROMPT-TEXT, E-PROMPT-SYNTAX, E-PROMPT-WEIGHT, E-CLIP-SKIP.
    """
    check_syntax(syntax)
    if syntax == "plain":
        length = text_encoder.config.max_position_embeddings
        tokens = [plain_tokens(tokenizer, prompts, length) for prompts in batches]
        notes = [note for batch in tokens for note in batch.notes]
        return Encoded(tuple(embed(text_encoder, batch, clip_skip) for batch in tokens), tuple(notes))
    for prompts in batches:
        check_prompts(prompts)
    texts = list(dict.fromkeys(text for prompts in batches for text in prompts))
    for text in texts:
        check_weights(text)
    capacity = min(text_encoder.config.max_position_embeddings, tokenizer.model_max_length) - 2
    divided = {text: divide(tokenizer, text, capacity) for text in texts}
    num_chunks = max(map(len, divided.values()))
    empty = Chunk((), ())
    embeds: list[Tensor] = []
    for prompts in batches:
        padded = [divided[text] + (empty,) * (num_chunks - len(divided[text])) for text in prompts]
        rows = [_read(tokenizer, text_encoder, batch, capacity, clip_skip) for batch in zip(*padded, strict=True)]
        embeds.append(torch.cat(rows, dim=1))
    return Encoded(tuple(embeds), tuple(note for text in texts for note in _notes(text, divided[text], capacity)))


def divide(tokenizer: "PreTrainedTokenizerBase", text: str, capacity: int = 75) -> tuple[Chunk, ...]:
    """Tokens and weights of a prompt in chunks; vectors of one learned word stay in one chunk.

    Args:
        tokenizer: CLIP's tokenizer.
        text: the prompt.
        capacity: tokens of a chunk, begin and end apart.
    """
    sections = parse(text)
    pieces = [expand(piece.text, tokenizer) for section in sections for piece in section]
    # The comma is tokenised beside them, since a vocabulary need not have one.
    comma, *ids = tokenizer([",", *pieces], add_special_tokens=False, verbose=False)["input_ids"]
    rest = iter(ids)
    tokenised = [[(next(rest), piece.weight) for piece in section] for section in sections]
    numbers: Any = tokenizer.added_tokens_encoder
    runs: dict[int, int] = {numbers[name]: len(tokens) for name, tokens in families(tokenizer).items()}
    return chunks(tokenised, capacity, comma[0] if len(comma) == 1 else None, runs)


def _read(
    tokenizer: Any, text_encoder: Any, batch: Sequence[Chunk], capacity: int, clip_skip: int | None
) -> Float[Tensor, "b n d"]:
    """One chunk of every prompt, between begin and end, padded and weighted."""
    end = tokenizer.eos_token_id
    padding = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    free = [capacity - len(chunk.ids) for chunk in batch]
    ids = [[tokenizer.bos_token_id, *chunk.ids, end, *[padding] * n] for chunk, n in zip(batch, free, strict=True)]
    mask = [[1] * (len(chunk.ids) + 2) + [0] * n for chunk, n in zip(batch, free, strict=True)]
    weights = [[1.0, *chunk.weights, 1.0, *[1.0] * n] for chunk, n in zip(batch, free, strict=True)]
    z = embed(text_encoder, Tokens(torch.tensor(ids), torch.tensor(mask), ()), clip_skip)
    return weigh(z, torch.tensor(weights, device=z.device))


def weigh(z: Float[Tensor, "b n d"], weights: Float[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
    """Embeddings times their weights, every prompt then scaled back to its mean over tokens and channels.

    The mean is A1111's (`sd_emphasis.py`, "Original"), which takes it over all prompts of a batch and embeds one prompt
    at a time. Prompts whose weights are all 1 are left as they are.

    Raises:
        InputError: E-PROMPT-WEIGHT when the result is no number.
    """
    weighted = reduce((weights != 1).float(), "b n -> b 1 1", "max") > 0
    if not weighted.any():
        return z
    exact = z.to(torch.promote_types(z.dtype, torch.float32))
    scaled = exact * rearrange(weights, "b n -> b n 1")
    means = (reduce(x, "b n d -> b 1 1", "mean") for x in (exact, scaled))
    scaled = torch.where(weighted, scaled * (next(means) / next(means)), exact).to(z.dtype)
    if z.isfinite().all() and not scaled.isfinite().all():
        raise InputError(
            "E-PROMPT-WEIGHT",
            "The weights of a prompt leave numbers that this data type does not hold.",
            "After weighting, the embeddings are scaled to their mean from before.",
            "Give weights near 1, such as 1.3.",
        )
    return scaled


def _notes(text: str, found: Sequence[Chunk], capacity: int) -> Iterator[str]:
    if len(found) > 1:
        num_tokens = sum(len(chunk.ids) for chunk in found)
        yield f"The prompt {text[:40]!r}… has {num_tokens} tokens, read in {len(found)} chunks of up to {capacity}."
    if others := unread(text):
        shown = ", ".join(repr(other[:40]) for other in others[:3])
        yield warn(
            "W-PROMPT-SYNTAX",
            f"{shown} in the prompt {text[:40]!r}… means a file or a change over the steps to other programs. Here it "
            "is read as words.",
            stacklevel=3,
        )
