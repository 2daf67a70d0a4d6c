"""The pieces in which a sequence of text and video goes through a layer.

All of a layer but the attention treats tokens one by one. In pieces that stay in a processor's cache the many small
steps between the matrix products cost little, and the four times wider middle of a feed-forward is never whole.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

TOKENS = 1024
"""Tokens that go through a layer together on a processor: few enough for its cache, enough for its matrix units."""
MOST_TOKENS = 8192
"""Elsewhere: as many as keep an accelerator busy, so that the wide middle of a feed-forward stays small."""


class Piece(NamedTuple):
    """Some neighbouring tokens of some rows of a batch, all of the text or all of the video."""

    rows: slice
    tokens: slice
    is_text: bool


def pieces(num_rows: int, num_tokens: int, num_text: int, most: int, by_row: bool) -> list[Piece]:
    """Cut a batch of sequences, text first, into pieces of at most `most` tokens.

    Args:
        num_rows: of the batch.
        num_tokens: of a sequence.
        num_text: how many of them are text.
        most: at most so many tokens of a row.
        by_row: cut the batch into rows too, so that a piece lies in one stretch of memory.
    """
    rows = [slice(i, i + 1) for i in range(num_rows)] if by_row else [slice(0, num_rows)]
    cuts = [
        (start, min(start + most, end))
        for first, end in ((0, num_text), (num_text, num_tokens))
        for start in range(first, end, most)
    ]
    return [Piece(row, slice(*cut), cut[0] < num_text) for row in rows for cut in cuts]


def pieces_of(x: Float[Tensor, "b n c"], num_text: int) -> list[Piece]:
    """The pieces in which x goes through a layer; what is differentiated stays whole."""
    if torch.is_grad_enabled():
        return pieces(len(x), x.shape[1], num_text, x.shape[1], by_row=False)
    return pieces(len(x), x.shape[1], num_text, TOKENS if x.device.type == "cpu" else MOST_TOKENS, by_row=True)


def result_like(x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
    """Where a layer writes what follows x: over x itself where nothing is differentiated."""
    return torch.empty_like(x) if torch.is_grad_enabled() else x
