"""The changes that one network is under, as a value: loaded ones by name, how much each counts, and what is fused.

Verbs return a new value. What is done to weights for one is in `vivant.lora.merge`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from vivant.config import is_finite
from vivant.errors import InputError
from vivant.lora.change import Change
from vivant.lora.read import Changes

Weight = tuple[tuple[str, float], ...]
"""How much an adapter counts in a network: beginnings of layers' names, and numbers; the longest that fits decides."""


def whole(weight: float) -> Weight:
    """The same weight in all layers."""
    return (("", float(weight)),)


def number(value: object) -> float:
    """A weight that somebody gave; None is 1.

    Raises:
        InputError: E-LORA-WEIGHT.
    """
    if value is None:
        return 1.0
    if not is_finite(value):
        raise InputError("E-LORA-WEIGHT", f"{value!r} is no weight of a LoRA.", "", "Give a number, such as 0.8.")
    return float(value)


def at(weight: Weight, parameter: str) -> float:
    """What of a weight holds for one parameter."""
    return max((len(start), number) for start, number in weight if parameter.startswith(start))[1]


class Fused(NamedTuple):
    """An adapter that is part of the weights until it is unfused, whatever becomes of its name."""

    changes: Changes
    weight: Weight


class Term(NamedTuple):
    """One summand of a changed weight."""

    change: Change
    strength: float


@dataclass(frozen=True, eq=False)
class Adapters:
    """The adapters of one network.

    Attributes:
        loaded: by name.
        active: those that count, and how much.
        enabled: whether the active ones act.
        fused: those that act in any case, at the weight of their fusing.
    """

    loaded: Mapping[str, Changes] = field(default_factory=dict)
    active: Mapping[str, Weight] = field(default_factory=dict)
    enabled: bool = True
    fused: Mapping[str, Fused] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether the network is as it was before the first of them."""
        return not self.loaded and not self.fused

    @property
    def acts(self) -> bool:
        """Whether the scale of a call would change anything."""
        return self.enabled and any(name not in self.fused for name in self.active)

    def load(self, name: str, changes: Changes) -> "Adapters":
        """One more; it becomes the only active one, as in diffusers."""
        return replace(self, loaded={**self.loaded, name: changes}, active={name: whole(1)})

    def activate(self, weights: Mapping[str, Weight]) -> "Adapters":
        """Have these count, and no others; names that this network has no changes of are left out."""
        return replace(self, active={name: weight for name, weight in weights.items() if name in self.loaded})

    def enable(self, on: bool) -> "Adapters":
        """Have the active ones act, or not."""
        return replace(self, enabled=on)

    def drop(self, names: Iterable[str]) -> "Adapters":
        """Forget some; what is fused stays."""
        gone = set(names)
        loaded = {name: changes for name, changes in self.loaded.items() if name not in gone}
        return replace(self, loaded=loaded, active={name: w for name, w in self.active.items() if name not in gone})

    def fuse(self, names: Iterable[str], scale: float) -> "Adapters":
        """Make some permanent, at their weights times `scale`."""
        fused = {
            name: Fused(self.loaded[name], tuple((start, scale * w) for start, w in self.active.get(name, whole(1))))
            for name in names
            if name in self.loaded
        }
        return replace(self, fused={**self.fused, **fused})

    def unfuse(self) -> "Adapters":
        """Take all fused ones back; those that are still active act as such again."""
        return replace(self, fused={})

    def terms(self, scale: float = 1.0) -> dict[str, tuple[Term, ...]]:
        """The summands of every parameter that something is added to, always in the same order.

        Args:
            scale: multiplies what is active; what is fused has its own weight.
        """
        acting = {name: (Fused(self.loaded[name], w), scale) for name, w in self.active.items() if self.enabled}
        acting |= {name: (fused, 1.0) for name, fused in self.fused.items()}
        terms: dict[str, tuple[Term, ...]] = {}
        for name in sorted(acting):
            (changes, weight), factor = acting[name]
            for parameter, change in changes.items():
                strength = factor * at(weight, parameter)
                if strength:
                    terms[parameter] = (*terms.get(parameter, ()), Term(change, strength))
        return terms
