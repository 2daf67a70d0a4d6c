"""What a prompt says beside its words: weights in brackets and breaks, read as A1111's web UI reads them.

`(word)` counts 1.1 times, `[word]` 1 / 1.1 times, `(word:1.3)` 1.3 times; brackets nest, those that nobody closes reach
to the end, and a backslash makes the next bracket, or backslash, a character. `BREAK` begins a new chunk. The rules are
those of `prompt_parser.py` and `sd_hijack_clip.py` in the folder modules of AUTOMATIC1111/stable-diffusion-webui.
Nothing here knows a network or a tokenizer.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from vivant.errors import InputError

PromptSyntax = Literal["plain", "weighted"]
SYNTAXES: tuple[str, ...] = get_args(PromptSyntax)
BACKTRACK = 20
"""How many tokens after a comma may move to the next chunk together, A1111's default."""
MAX_DEPTH = 64
"""Brackets of one kind inside each other; deeper ones are characters. 1.1 to that power is 445."""
_FACTOR = {"(": 1.1, "[": 1 / 1.1}
_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_MARKS = re.compile(rf"\\[()\[\]\\]?|[(\[)\]]|:\s*({_NUMBER})\s*\)|:|[^\\()\[\]:]+")
_BREAK = re.compile(r"\bBREAK\b")
_SQUARE = re.compile(r"(?<!\\)\[([^\[\]]*)\]")
_AT_STEP = re.compile(rf":\s*{_NUMBER}\s*\Z")
_FILE = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>")


class Piece(NamedTuple):
    """Words of one weight."""

    text: str
    weight: float = 1.0


Section = tuple[Piece, ...]
"""What stands between two breaks."""


class Chunk(NamedTuple):
    """Tokens that the text encoder reads at once, without those of begin, end and padding, and a weight for each."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def check_syntax(syntax: object) -> None:
    """Refuse (E-PROMPT-SYNTAX) what is no way to read a prompt."""
    if syntax not in SYNTAXES:
        raise InputError(
            "E-PROMPT-SYNTAX", f"prompt_syntax is {syntax!r}.", "", f"Choose one of {', '.join(SYNTAXES)}."
        )


def check_weights(text: str) -> None:
    """Refuse (E-PROMPT-WEIGHT) a prompt with a weight beyond all numbers."""
    for piece in (piece for section in parse(text) for piece in section):
        if not math.isfinite(piece.weight):
            raise InputError(
                "E-PROMPT-WEIGHT",
                f"The weight of {piece.text[:40]!r} is {piece.weight}.",
                "Weights of brackets inside each other are multiplied.",
                "Give weights near 1, such as 1.3.",
            )


def parse(text: str) -> tuple[Section, ...]:
    """Split a prompt at its breaks, and every part into pieces of one weight. Every text is a prompt.

    Two things differ from A1111: `BREAK` inside brackets is a break (there it becomes a word of negative weight), and
    what looks like a weight and is no number, such as `(word:1.2.3)`, is text (there it is an error).

    Args:
        text: of the prompt.

    Returns:
        One section more than there are breaks. Neighbours of equal weight are one piece; sections without words are
        empty.
    """
    sections: list[list[tuple[str, float]]] = [[]]
    # Brackets are open over sections, so that weights are kept by their place in the whole prompt.
    words: list[str | None] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        for i in range(opened[bracket].pop(), len(weights)):
            weights[i] *= factor

    def add(word: str | None) -> None:
        words.append(word)
        weights.append(1.0)

    for match in _MARKS.finditer(text):
        mark, number = match[0], match[1]
        if mark.startswith("\\"):
            add(mark[1:])
        elif mark in _FACTOR and len(opened[mark]) < MAX_DEPTH:
            opened[mark].append(len(weights))
        elif number is not None and opened["("]:
            close("(", float(number))
        elif mark == ")" and opened["("]:
            close("(", _FACTOR["("])
        elif mark == "]" and opened["["]:
            close("[", _FACTOR["["])
        else:
            for i, word in enumerate(_broken(mark)):
                if i:
                    add(None)
                add(word)
    for bracket, starts in opened.items():
        # The outermost first, as A1111 multiplies.
        for start in starts:
            for i in range(start, len(weights)):
                weights[i] *= _FACTOR[bracket]
    for word, weight in zip(words, weights, strict=True):
        if word is None:
            sections.append([])
        elif sections[-1] and sections[-1][-1][1] == weight:
            sections[-1][-1] = (sections[-1][-1][0] + word, weight)
        else:
            sections[-1].append((word, weight))
    return tuple(tuple(Piece(*piece) for piece in section if piece[0]) for section in sections)


def _broken(text: str) -> list[str]:
    """The parts between breaks, without the space around these."""
    first, *rest = _BREAK.split(text)
    if not rest:
        return [first]
    return [first.rstrip(), *(part.strip() for part in rest[:-1]), rest[-1].lstrip()]


def unread(text: str) -> tuple[str, ...]:
    """What A1111 acts upon and vivant reads as words: `[cat:dog:0.5]`, `[cat|dog]`, `<lora:name:1>`."""
    squares = [match for match in _SQUARE.finditer(text) if "|" in match[1] or _AT_STEP.search(match[1])]
    return tuple(match[0] for match in (*squares, *_FILE.finditer(text)))


def chunks(
    sections: Sequence[Sequence[tuple[Sequence[int], float]]],
    capacity: int = 75,
    comma: int | None = None,
    together: Mapping[int, int] | None = None,
) -> tuple[Chunk, ...]:
    """Divide a tokenised prompt into what the text encoder reads at once.

    A chunk that is full is closed. If its last comma lies at most `BACKTRACK` tokens back, what follows the comma moves
    to the next chunk. Every break closes a chunk, even an empty one.

    Args:
        sections: tokens and weight of every piece of every section.
        capacity: tokens of a chunk.
        comma: the token of a comma, if there is one.
        together: tokens that begin a run which is not divided, and its length.

    Returns:
        One chunk or more, each of at most `capacity` tokens.
    """
    done: list[Chunk] = []
    current: list[tuple[int, float]] = []
    last_comma: int | None = None

    def flush(moved: int = 0) -> None:
        nonlocal current, last_comma
        kept = current[: len(current) - moved]
        done.append(Chunk(tuple(token for token, _ in kept), tuple(weight for _, weight in kept)))
        current, last_comma = current[len(kept) :], None

    for i, section in enumerate(sections):
        if i:
            flush()
        for tokens, weight in section:
            at = 0
            while at < len(tokens):
                token = tokens[at]
                if token == comma:
                    last_comma = len(current)
                elif len(current) == capacity and last_comma is not None and capacity - last_comma <= BACKTRACK:
                    flush(moved=capacity - last_comma - 1)
                run = (together or {}).get(token, 1)
                run = run if run <= capacity else 1
                if len(current) + run > capacity:
                    flush()
                current += [(one, weight) for one in tokens[at : at + run]]
                at += run
    if current or not done:
        flush()
    return tuple(done)
