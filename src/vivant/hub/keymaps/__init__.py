"""Names of tensors in the layouts of other programs, as tables.

A `Keymap` says what each of our names is called in one layout. Applied to the names of a network it gives a table that
holds for both directions, so that reading and writing a file cannot disagree.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from vivant.errors import LoadError


class Row(NamedTuple):
    """One replacement.

    Attributes:
        pattern: regular expression, searched for in a name of ours.
        replacement: what stands there in the other layout; `\\1` is a group.
        is_optional: whether a network may have no name that it fits.
    """

    pattern: str
    replacement: str
    is_optional: bool = False


@dataclass(frozen=True)
class Keymap:
    """What our names are called in one layout.

    Attributes:
        layout: its name, for messages.
        rows: applied one after the other, each to what the ones before it made of a name.
        drop: regular expressions for whole names of the other layout that no network of ours has.
        twins: from a name of the other layout to another one under which it holds the same tensor once more.
        pointwise: a regular expression for names of weights that are 1x1 convolutions there and linear layers here.
    """

    layout: str
    rows: tuple[Row, ...]
    drop: tuple[str, ...] = ()
    twins: tuple[Row, ...] = ()
    pointwise: str | None = None

    def name(self, ours: str) -> str:
        """What one of our names is called."""
        for pattern, replacement, _ in self.rows:
            ours = re.sub(pattern, replacement, ours)
        return ours

    def table(self, ours: Iterable[str]) -> dict[str, str]:
        """Our names to theirs, of all tensors of one network.

        Raises:
            LoadError: E-KEYMAP when a row fits no name, or two names become one: the layout has no place for this
                network.
        """
        table = {name: name for name in ours}
        for pattern, replacement, is_optional in self.rows:
            compiled = re.compile(pattern)
            num_fits = 0
            for name, now in table.items():
                table[name], found = compiled.subn(replacement, now)
                num_fits += found
            if not num_fits and not is_optional:
                raise LoadError(
                    "E-KEYMAP",
                    f"The layout {self.layout} has no place for this network.",
                    f"Nothing in it fits {pattern!r}.",
                    "Keep it as a repository.",
                )
        if len(set(table.values())) < len(table):
            seen: dict[str, str] = {}
            twice = next((a, b) for b, name in table.items() if (a := seen.setdefault(name, b)) != b)
            raise LoadError(
                "E-KEYMAP",
                f"The layout {self.layout} has no place for this network.",
                f"{twice[0]} and {twice[1]} would both be {table[twice[0]]}.",
                "Keep it as a repository.",
            )
        return table

    def drops(self, theirs: str) -> bool:
        """Whether a name of the other layout is to be left aside."""
        return any(re.fullmatch(pattern, theirs) for pattern in self.drop)

    def twin(self, theirs: str) -> str | None:
        """Another name of the same tensor, if the layout has it twice."""
        found = (re.sub(row.pattern, row.replacement, theirs) for row in self.twins)
        return next((name for name in found if name != theirs), None)

    def is_pointwise(self, theirs: str) -> bool:
        """Whether the weight of that name is a 1x1 convolution there and a linear layer here."""
        return self.pointwise is not None and re.search(self.pointwise, theirs) is not None


def inverted(table: Mapping[str, str]) -> dict[str, str]:
    """Their names to ours."""
    return {theirs: ours for ours, theirs in table.items()}
