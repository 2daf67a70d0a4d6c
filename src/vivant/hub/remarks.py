"""What people wrote about a model: in the header of its file, and on the card of its repository.

All of it is text from strangers. Nothing here believes it, or parses more of it than a fixed amount; lines come out
whole, one each and short.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST = 200
"""Characters of any one remark that are kept."""
MOST_WORDS = 12
"""Trained words that are kept."""
_MOST_JSON, _MOST_CARD = 4_000_000, 64_000


@dataclass(frozen=True)
class Remarks:
    """What is said of a model; empty where nothing is.

    Attributes:
        title: its name.
        author: who made it.
        base_model: what it was made from, or for.
        licence: the terms, with a link if there is one.
        trigger: words that its maker says call it forth.
        trained_words: words of its training's captions, the most frequent first.
    """

    title: str = ""
    author: str = ""
    base_model: str = ""
    licence: str = ""
    trigger: str = ""
    trained_words: tuple[str, ...] = ()


# Keys of headers, in the order in which they count: modelspec (Stability AI's ModelSpec 1.0.1), kohya's ss_, others.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "title": ("modelspec.title", "ss_output_name", "name"),
    "author": ("modelspec.author", "author"),
    "base_model": ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name", "base_model"),
    "licence": ("modelspec.license", "license", "licence"),
    "trigger": ("modelspec.trigger_phrase", "trigger_phrase", "trigger_words", "trained_words", "activation text"),
}


def of_header(metadata: Mapping[str, str]) -> Remarks:
    """The remarks in a header."""
    said: dict[str, Any] = {
        field: next((text for key in keys if (text := line(metadata.get(key, "")))), "")
        for field, keys in _KEYS.items()
    }
    return Remarks(**said, trained_words=_trained_words(metadata.get("ss_tag_frequency", "")))


def _trained_words(text: str) -> tuple[str, ...]:
    """The most frequent words of kohya's table, which goes from folders of pictures to words to counts."""
    if not 0 < len(text) <= _MOST_JSON:
        return ()
    try:
        folders = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    counts: Counter[str] = Counter()
    for words in folders.values() if isinstance(folders, dict) else ():
        for word, count in words.items() if isinstance(words, dict) else ():
            if type(count) is int and 0 < count < 10**9 and line(word):
                counts[line(word)] += count
    return tuple(word for word, _ in counts.most_common(MOST_WORDS))


def of_card(folder: Path) -> Remarks:
    """The remarks at the head of a repository's README.md; none if there is no such file, or no such head."""
    if not os.path.isfile(folder / "README.md"):
        return Remarks()
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MOST_CARD)
    except OSError:
        return Remarks()
    head = re.match(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(\n|$)", text, re.DOTALL)
    values = _top_level(head[1].splitlines()) if head else {}

    def said(*keys: str) -> str:
        return line(next((", ".join(values[key]) for key in keys if values.get(key)), ""))

    terms, link = said("license_name", "license"), said("license_link")
    return Remarks(
        base_model=said("base_model"),
        licence=f"{terms} ({link})" if terms and link else terms,
        trigger=said("instance_prompt", "trigger_words"),
    )


def _top_level(lines: Iterable[str]) -> dict[str, list[str]]:
    """Keys with one value or a plain list of them. It is no YAML: what that can do beyond this is not wanted here."""
    values: dict[str, list[str]] = {}
    key = ""
    for text in lines:
        if pair := re.match(r"(\w+):[ \t]*(.*)$", text):
            key = pair[1]
            inner = pair[2].strip()
            parts = inner[1:-1].split(",") if inner.startswith("[") and inner.endswith("]") else [inner]
            values[key] = [part.strip().strip("'\"") for part in parts if part.strip() not in ("", "|", ">")]
        elif key and (item := re.match(r"[ \t]*-[ \t]+(.*)$", text)):
            values[key].append(item[1].strip().strip("'\""))
    return values


def line(text: object) -> str:
    """A text on one line and of bounded length; control characters are left for whoever shows it."""
    one = " ".join(str(text)[: 4 * MOST].split())
    return one if len(one) <= MOST else one[: MOST - 1] + "…"
