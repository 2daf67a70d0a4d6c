"""New words for a text encoder that is there already: what they say becomes a direction in what it passes on.

The text encoder of Stable Diffusion knew its words from pairs of pictures and texts before any motion was learnt on it.
A small one that never read a word of motion can be taught them by captions alone. For a caption with such words, every
token after them, padding included, shall become what the old encoder makes of it without those words, moved by one
direction a meaning; and captions without such words shall stay what they are. Attention over tokens then passes the
direction on wherever it looks, and networks that read the encoder need not be taught anew.

How much attention passes on of a direction is decided by its weights, which stay: `clear_directions` finds good ones.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vivant.pia.layers import Attention
from vivant.text.clip import save_text_encoder, save_tokenizer
from vivant.train.loop import trainable
from vivant.train.samples import Batch, Draws
from vivant.train.text import add_embeddings, num_ids

if TYPE_CHECKING:
    from transformers import CLIPTextModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Said:
    """A caption and what its new words mean.

    Attributes:
        caption: the text.
        meanings: names of meanings; none where it has no new words.
    """

    caption: str
    meanings: tuple[str, ...]


@dataclass(frozen=True)
class Captions:
    """Captions as a source for the loop: `write` makes one with a generator."""

    num: int
    write: Callable[[np.random.Generator], Said]

    def __len__(self) -> int:
        return self.num

    def read(self, index: int, rng: np.random.Generator) -> Said:
        """A caption; only the generator decides."""
        return self.write(rng)


class WordsTask:
    """Let a text encoder say new words as directions, and all else as it did.

    Args:
        text_encoder: learns; gets rows for the new words.
        tokenizer: knows the new words, whose numbers follow those of the old ones.
        num_known: how many numbers are old.
        directions: by what each meaning moves the tokens, which are about the root of their number of channels long.
        seed: of new rows.
    """

    def __init__(
        self,
        text_encoder: "CLIPTextModel",
        tokenizer: "PreTrainedTokenizerBase",
        num_known: int,
        directions: Mapping[str, Float[Tensor, " d"]],
        seed: int,
    ):
        self.old: Any = deepcopy(text_encoder).float().requires_grad_(False)
        self.encoder, self.tokenizer, self.num_known = text_encoder, tokenizer, num_known
        self.networks: Sequence[nn.Module] = (self.old, text_encoder)
        add_embeddings(text_encoder, num_ids(tokenizer), seed)
        self.weights: Mapping[str, nn.Parameter] = trainable(text_encoder)
        self.directions = directions
        self.prepare = self._prepare

    def _prepare(self, clip: Said, rng: Any) -> dict[str, Any]:
        """Tokens of a caption, those without its new words, where these stand in it, and by what they move."""
        tokenizer: Any = self.tokenizer
        length = self.encoder.config.max_position_embeddings
        ids = tokenizer(clip.caption, padding="max_length", max_length=length, truncation=True)["input_ids"]
        return {"ids": torch.tensor(ids), **aligned(ids, self.num_known), "shift": self._shift(clip.meanings)}

    def _shift(self, meanings: Sequence[str]) -> Float[Tensor, " d"]:
        return sum((self.directions[name] for name in meanings), torch.zeros(self.encoder.config.hidden_size))

    def losses(self, batch: Batch, draws: Draws, dtype: torch.dtype) -> dict[str, Float[Tensor, " b"]]:
        """Mean squared distance of old tokens to where they shall be."""
        with torch.no_grad():
            target = self.old(batch["old"]).last_hidden_state.float()
        encoder: Any = self.encoder
        hidden = encoder(batch["ids"]).last_hidden_state.float()
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        hidden, after = hidden[rows, batch["places"]], batch["after"]
        target = target + after[..., None] * batch["shift"][:, None]
        error = (hidden - target).square().mean(-1)
        kept = batch["kept"]
        loss = (error * kept).sum(1) / kept.sum(1)
        says = batch["shift"].abs().amax(1) > 0
        return {"loss": loss, "with new words": torch.where(says, loss.detach(), 0.0)}

    def show(self, folder: Path, step: int) -> None:
        """Hidden states are no picture: the log has their error."""

    def export(self, folder: Path) -> None:
        """Text encoder and tokenizer, for every base that reads the old ones."""
        save_text_encoder(self.encoder, folder / "text_encoder")
        save_tokenizer(self.tokenizer, folder / "tokenizer")


CONTENT = 4.0
"""What captions differ in counts so much against a direction."""


@torch.no_grad()
def clear_directions(
    attentions: Iterable[Attention], hidden: Float[Tensor, "*n d"], num: int
) -> Float[Tensor, "num d"]:
    """Directions that attention to a text passes on far and that hardly touch what it does with other texts.

    Those of the largest |O V u|^2 / (|u|^2 + |K u|^2 + CONTENT |C u|^2), where V, K, O are weights of values, keys and
    output, C is the spread of captions, and each counts as much as any other over all directions.

    Args:
        attentions: of the network that reads the text, whose weights stay.
        hidden: tokens of many captions.
        num: how many.

    Returns:
        Unit vectors at right angles to each other, the clearest first.
    """
    d = hidden.shape[-1]
    passed, keys = torch.zeros(2, d, d).unbind()
    for attention in attentions:
        values = attention.to_out[0].get_parameter("weight") @ attention.to_v.weight
        passed = passed + _gram(values)
        keys = keys + _gram(attention.to_k.weight)
    spread = torch.cov(hidden.reshape(-1, d).T)
    passed, keys, spread = (d * gram / gram.trace() for gram in (passed, keys, spread))
    sizes, axes = torch.linalg.eigh(torch.eye(d) + keys + CONTENT * spread)
    whiten = axes @ torch.diag(sizes.rsqrt()) @ axes.T
    found = whiten @ torch.linalg.eigh(whiten @ passed @ whiten)[1].flip(1)[:, :num]
    return torch.linalg.qr(found)[0].T


def _gram(weight: Float[Tensor, "c d"]) -> Float[Tensor, "d d"]:
    """Squared lengths of what a matrix makes of vectors, as a form; every matrix counts alike."""
    return weight.T @ weight / weight.square().sum()


def aligned(ids: Sequence[int], num_known: int) -> dict[str, Tensor]:
    """A tokenised caption beside itself without its new words.

    Args:
        ids: padded tokens; the last is padding.
        num_known: numbers from there on are new words.

    Returns:
        ``old``: the other tokens, padded again; ``places``: where each stands in `ids`; ``kept``: which of them are not
        that padding; ``after``: 1 behind the last new word, where what they say can be known.
    """
    places = [i for i, token in enumerate(ids) if token < num_known]
    last = max((i for i, token in enumerate(ids) if token >= num_known), default=len(ids))
    fill = len(ids) - len(places)
    kept: Bool[Tensor, " n"] = torch.tensor([True] * len(places) + [False] * fill)
    old: Int[Tensor, " n"] = torch.tensor([ids[i] for i in places] + [ids[-1]] * fill)
    after = torch.tensor([float(i > last) for i in places] + [0.0] * fill)
    return {"old": old, "places": torch.tensor(places + [0] * fill), "kept": kept, "after": after}
