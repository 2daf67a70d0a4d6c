"""What an evaluation leaves behind: numbers for machines, a table, and one page with clips to look at."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vivant.evaluate.figures import HEAD, Figure, markdown
from vivant.media.atomic import replacing
from vivant.media.frames import enlarged
from vivant.media.page import Shown, heading, page, paragraph, row, table
from vivant.media.video import write_clip

CELL = 192
"""Shorter side of the clips on the page, in pixels, at least."""


@dataclass(frozen=True)
class Sample:
    """A clip to look at beside the numbers.

    Attributes:
        name: of its file, without a suffix.
        caption: what was asked for.
        frames: the clip.
        fps: frames a second.
    """

    name: str
    caption: str
    frames: UInt8[np.ndarray, "f h w 3"]
    fps: float = 8.0


@dataclass(frozen=True)
class Found:
    """What an evaluation found.

    Attributes:
        figures: what was measured.
        samples: clips under their headings.
        notes: what a reader has to know.
        facts: further fields of the JSON object.
    """

    figures: Sequence[Figure]
    samples: Mapping[str, Sequence[Sample]]
    notes: Sequence[str]
    facts: Mapping[str, Any]


def write(folder: Path, title: str, found: Found, *, overwrite: bool) -> Path:
    """Write `eval.json`, `table.md`, `index.html` and `clips/`.

    Args:
        folder: gets the files.
        title: of the page.
        found: what to write.
        overwrite: replace files that exist.

    Returns:
        The page.
    """
    figures, notes = found.figures, found.notes
    folder.mkdir(parents=True, exist_ok=True)
    parts = [paragraph(note) for note in notes] + [table(HEAD, [figure.row() for figure in figures])]
    for name, clips in found.samples.items():
        shown: list[Shown] = []
        for clip in clips:
            file = f"clips/{clip.name}.gif"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            times = max(1, min(16, -(-CELL // min(clip.frames.shape[1:3]))))
            write_clip(enlarged(clip.frames, times), folder / file, clip.fps, overwrite=overwrite)
            shown.append(Shown(file, clip.caption))
        parts += [heading(name), row(shown)]
    values = {**found.facts, "notes": list(notes), "figures": [figure.to_json() for figure in figures]}
    texts = {
        "eval.json": json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "table.md": markdown(figures),
        "index.html": page(title, parts),
    }
    for file, text in texts.items():
        with replacing(folder / file, overwrite=overwrite) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder / "index.html"
