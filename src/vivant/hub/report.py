"""What fitted and what did not when tensors met a network."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KeyReport:
    """Names of a file compared with the names of a network.

    Attributes:
        matched: names with the right shape on both sides.
        missing: names of the network that the file lacks.
        unexpected: names of the file that the network lacks.
        misshapen: name, shape in the file, shape in the network.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def fits(self) -> bool:
        """Whether the file can be adopted as it is."""
        return not (self.missing or self.unexpected or self.misshapen)

    def sentences(self, first: int = 3) -> str:
        """Counts, the first few of each kind, and for unexpected names the nearest missing ones."""
        lines = []
        if self.missing:
            lines.append(f"{len(self.missing)} missing: {_listed(self.missing, first)}.")
        if self.unexpected:
            shown = [_with_nearest(name, self.missing) for name in self.unexpected[:first]]
            lines.append(f"{len(self.unexpected)} unexpected: {_listed(shown, first, len(self.unexpected))}.")
        if self.misshapen:
            shown = [f"{name} is {list(found)}, should be {list(due)}" for name, found, due in self.misshapen]
            lines.append(f"{len(self.misshapen)} of the wrong shape: {_listed(shown, first)}.")
        return " ".join([*lines, f"{len(self.matched)} fit."])


def compare(state: Mapping[str, Any], expected: Mapping[str, Any]) -> KeyReport:
    """Compare two mappings from names to tensors (anything with a `shape`)."""
    shared = [name for name in expected if name in state]
    shapes = {name: (tuple(state[name].shape), tuple(expected[name].shape)) for name in shared}
    return KeyReport(
        matched=tuple(name for name in shared if shapes[name][0] == shapes[name][1]),
        missing=tuple(name for name in expected if name not in state),
        unexpected=tuple(name for name in state if name not in expected),
        misshapen=tuple((name, *shapes[name]) for name in shared if shapes[name][0] != shapes[name][1]),
    )


def _listed(names: Iterable[str], first: int, total: int | None = None) -> str:
    names = list(names)
    more = (total if total is not None else len(names)) - first
    return ", ".join(names[:first]) + (f" and {more} more" if more > 0 else "")


def _with_nearest(name: str, missing: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, missing[:5000], n=1)
    return f"{name} (nearest missing: {near[0]})" if near else name


@dataclass(frozen=True)
class LoadReport:
    """What came of the tensors of one file that was read into networks.

    Attributes:
        origin: the file.
        kind: what it is, by its tensors.
        base: the family of models that it was taken for.
        matched: how many of its tensors are in use now.
        aside: names left aside since no network of ours has their like: averages and tables of the training, tensors
            of components that were given in their place.
        unmatched: names that nothing is known of; they were left aside too.
    """

    origin: str
    kind: str
    base: str
    matched: int
    aside: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Part of the tensors that could be in use and are, 0 to 1."""
        return self.matched / max(1, self.matched + len(self.unmatched))

    def sentence(self) -> str:
        """For people."""
        parts = [f"{self.matched} tensors of {self.origin} ({self.kind}) are in use"]
        if self.aside:
            parts.append(f"{len(self.aside)} were left aside ({_listed(self.aside, 2)})")
        if self.unmatched:
            parts.append(f"{len(self.unmatched)} are unknown ({_listed(self.unmatched, 2)})")
        return "; ".join(parts) + "."
