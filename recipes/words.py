"""Teach the text encoder of the pocket models the words of motion, which it never read: minutes on two cores.

    python recipes/words.py runs/longer/export runs/words

writes the text encoder and its tokenizer to `runs/words/export`, and the base with them to `runs/words/base`. Captions
are those of the drawn world and of photos; more than half of them say no motion.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vivant.pia.layers import SpatialBlock
from vivant.pocket.world import MAGNITUDES, PHOTO_MOTIONS, caption, photo_caption, sample_scene
from vivant.pocket.world.captions import MAGNITUDES as SAID
from vivant.text.clip import encode, load_text_encoder, load_tokenizer
from vivant.train.base import Repository
from vivant.train.loop import Progress, train
from vivant.train.recipe import open_repository
from vivant.train.settings import Settings
from vivant.train.text import learn_words, num_ids, strange_words
from vivant.train.words import Captions, Said, WordsTask, clear_directions

SETTINGS = Settings(
    steps=4000, batch=64, learning_rate=1e-3, warmup=50, decay="cosine", ema=0.99, seed=6, sample_every=0, log_every=100
)
LENGTH, FAR = 6.0, 0.5
"""Of a direction, and of that of a magnitude as a part of it."""
PHOTOS, STILLS = 0.35, 0.75
MEANINGS = (
    ("left", "right"),
    ("up", "down"),
    ("growing", "shrinking"),
    ("zoom in", "zoom out"),
    ("pan left", "pan right"),
    ("large", "small"),
    ("clockwise", "counterclockwise"),
    ("bouncing",),
    ("turn",),
    ("still",),
)
"""What shares a direction is opposite: twice as far apart, and no direction is spent on it. The clearest come first."""


def directions(parts: Repository) -> dict[str, Float[Tensor, " d"]]:
    """By what each motion and magnitude moves the tokens; a moderate one is never said."""
    captions = [sentence(np.random.default_rng([8, i]), still=True).caption for i in range(500)]
    with torch.no_grad():
        hidden = torch.cat([encode(parts.tokenizer, parts.text_encoder, [text]) for text in captions])
    attentions = [block.attn2 for block in parts.unet.modules() if isinstance(block, SpatialBlock)]
    found = LENGTH * clear_directions(attentions, hidden, len(MEANINGS))
    moves = {
        name: way * sign
        for way, names in zip(found, MEANINGS, strict=True)
        for name, sign in zip(names, (1, -1), strict=False)
    }
    far = {name: FAR * moves[name] for name in ("large", "small")}
    return {**moves, **far}


def write(rng: np.random.Generator) -> Said:
    """A caption, of a still or of a motion."""
    return sentence(rng, still=bool(rng.random() < STILLS))


def sentence(rng: np.random.Generator, *, still: bool) -> Said:
    """A caption and what it says of motion."""
    if rng.random() < PHOTOS:
        motion, magnitude = PHOTO_MOTIONS[rng.integers(len(PHOTO_MOTIONS))], MAGNITUDES[rng.integers(len(MAGNITUDES))]
        text = photo_caption(motion, magnitude, rng, with_motion=not still)
    else:
        scene = sample_scene(rng)
        motion, magnitude = scene.motion, scene.magnitude
        text = caption(scene, rng, with_motion=not still)
    if still:
        return Said(text, ())
    far = [magnitude] if any(phrase and phrase in text for phrase in SAID[magnitude]) else []
    return Said(text, (motion, *far))


def main(base: Path, folder: Path) -> None:
    """Train and export."""

    def say(at: Progress) -> None:
        if at.step % 100 == 0:
            print(at.step, {name: round(value, 4) for name, value in at.values.items()}, flush=True)

    parts = open_repository(base)
    captions = [write(np.random.default_rng([7, i])).caption for i in range(5000)]
    tokenizer = learn_words(parts.tokenizer, strange_words(parts.tokenizer, captions, 5), folder / "tokenizer")
    moves = directions(parts)
    task = WordsTask(parts.text_encoder, tokenizer, num_ids(parts.tokenizer), moves, SETTINGS.seed)
    learnt = train(task, Captions(100_000, write), SETTINGS, folder, on_step=say)
    encoder, tokens = load_text_encoder(learnt / "text_encoder"), load_tokenizer(learnt / "tokenizer")
    replace(parts, text_encoder=encoder, tokenizer=tokens).save(folder / "base")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
