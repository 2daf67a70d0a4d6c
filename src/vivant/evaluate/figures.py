"""A measured number with all that belongs to it, and tables of them."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured.
        value: the number: a share between 0 and 1, or a mean.
        low, high: its 95 % interval: Wilson's for a share, 1.96 standard errors around a mean.
        num: of how many clips.
        unit: such as ``"dB"``; a share has ``"%"``.
        asked: what it should reach, if anything is asked.
        chance: the share that guessing would reach, where that means something.
    """

    name: str
    value: float
    low: float
    high: float
    num: int
    unit: str
    asked: float | None = None
    chance: float | None = None

    @classmethod
    def share(
        cls, name: str, right: Sequence[bool], *, asked: float | None = None, chance: float | None = None
    ) -> "Figure":
        """How many are right, with the interval of Wilson (1927)."""
        n, z = len(right), 1.96
        p = sum(right) / n
        middle, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), z / (1 + z**2 / n)
        half *= math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        return cls(name, p, max(0.0, middle - half), min(1.0, middle + half), n, "%", asked, chance)

    @classmethod
    def mean(cls, name: str, values: Sequence[float], unit: str, *, asked: float | None = None) -> "Figure":
        """The mean; its interval assumes nothing but many values."""
        middle, n = float(np.mean(values)), len(values)
        half = 1.96 * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
        return cls(name, middle, middle - half, middle + half, n, unit, asked)

    @property
    def met(self) -> bool | None:
        """Whether what is asked is reached; None where nothing is asked."""
        return None if self.asked is None else self.value >= self.asked

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; an interval without bounds is null."""
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}
        return {**values, "met": self.met}

    def written(self, value: float) -> str:
        """A number in its unit."""
        if not math.isfinite(value):
            return "?"
        return f"{100 * value:.0f} %" if self.unit == "%" else f"{value:.{1 if self.unit == 'dB' else 3}f} {self.unit}"

    def row(self) -> tuple[str, ...]:
        """Cells of a table: name, value, interval, clips, asked, chance."""
        interval = f"{self.written(self.low)} to {self.written(self.high)}"
        asked = "" if self.asked is None else f"{self.written(self.asked)}{'' if self.met else ' (not met)'}"
        return (
            self.name,
            self.written(self.value),
            interval,
            str(self.num),
            asked,
            "" if self.chance is None else self.written(self.chance),
        )


HEAD = ("measure", "value", "95 % interval", "clips", "asked", "chance")


def markdown(figures: Sequence[Figure]) -> str:
    """A table in Markdown; columns that are empty throughout are left out."""
    rows = [figure.row() for figure in figures]
    used = [i for i in range(len(HEAD)) if any(row[i] for row in rows)]
    lines = [[HEAD[i] for i in used], ["---"] * len(used), *([row[i] for i in used] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
