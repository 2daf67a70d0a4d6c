"""Merging changes into weights, and bringing the untouched weights back.

A changed weight is ``W + sum of strength * delta``, computed in float32 (in float64 for a network of that) from the
untouched W and rounded once. It takes W's place as a parameter of its own. W itself, perhaps a page of a mapped file,
is never written to and goes back into its place as the very object that it was. What is not changed differently from
before is not computed again. Nothing wraps a module and nothing is computed while a network runs.
"""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vivant.lora.adapters import Adapters, Term
from vivant.placement import pages

Terms = tuple[Term, ...]
_PLACE = "_lora"
"""Name under which a network that is changed keeps its `Merged`, beside its parameters; nothing else is left there."""


@dataclass(frozen=True, eq=False)
class Merged:
    """A network's adapters and what has been done for them.

    Attributes:
        adapters: what was asked for.
        own: the untouched parameters by name, of those that are changed now.
        terms: what was added to each of these.
    """

    adapters: Adapters = field(default_factory=Adapters)
    own: Mapping[str, nn.Parameter] = field(default_factory=dict)
    terms: Mapping[str, Terms] = field(default_factory=dict)


def merged_of(network: nn.Module) -> Merged:
    """What a network keeps; an empty value for one without adapters."""
    return vars(network).get(_PLACE) or Merged()


def adapters_of(network: nn.Module) -> Adapters:
    """The adapters of a network."""
    return merged_of(network).adapters


def merge(wanted: Iterable[tuple[nn.Module, Adapters]], scale: float = 1.0) -> bool:
    """Put networks under their adapters: all of them, or none if something fails.

    Weights are computed before the first is exchanged, so that for a moment old and new ones are held.

    Args:
        wanted: networks and what they shall be under.
        scale: see `Adapters.terms`.

    Returns:
        Whether a weight of any of them is another one now.
    """
    plans = [_plan(network, adapters, adapters.terms(scale)) for network, adapters in wanted]
    for plan in plans:
        plan.carry_out()
    return any(plan.new for plan in plans)


@contextmanager
def taken_off(networks: Iterable[nn.Module]) -> Generator[None]:
    """Have networks without any change for a while, as for moving or saving them."""
    states = [(network, merged_of(network)) for network in networks]
    for network, merged in states:
        _plan(network, merged.adapters, {}).carry_out()
    try:
        yield
    finally:
        for network, merged in states:
            _plan(network, merged.adapters, merged.terms).carry_out()


@contextmanager
def scaled(networks: Iterable[nn.Module], scale: float) -> Generator[None]:
    """Have what is active in networks count `scale` times as much for a while."""
    states = [(network, merged_of(network)) for network in networks]
    try:
        merge([(network, merged.adapters) for network, merged in states], scale)
        yield
    finally:
        for network, merged in states:
            _plan(network, merged.adapters, merged.terms).carry_out()


@dataclass(frozen=True, eq=False)
class _Plan:
    """What will become of one network.

    Attributes:
        network: the network.
        new: parameters to put into their places by name.
        after: what the network will keep.
    """

    network: nn.Module
    new: Mapping[str, nn.Parameter]
    after: Merged

    def carry_out(self) -> None:
        """Exchange the parameters; no step of this can fail."""
        for name, parameter in self.new.items():
            _holder(self.network, name)[name.rpartition(".")[2]] = parameter
        if self.after.adapters.is_empty:
            vars(self.network).pop(_PLACE, None)
        else:
            vars(self.network)[_PLACE] = self.after


def _plan(network: nn.Module, adapters: Adapters, terms: Mapping[str, Terms]) -> _Plan:
    before = merged_of(network)
    own, new = dict(before.own), dict[str, nn.Parameter]()
    for name in {**before.terms, **terms}:
        if terms.get(name, ()) == before.terms.get(name, ()):
            continue
        here = _holder(network, name)[name.rpartition(".")[2]]
        own[name] = _as(own.get(name, here), here)
        new[name] = changed(own[name], terms[name]) if name in terms else own[name]
    kept = {name: parameter for name, parameter in own.items() if name in terms}
    return _Plan(network, new, replace(before, adapters=adapters, own=kept, terms=dict(terms)))


def _holder(network: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The dictionary that a parameter stands in."""
    return network.get_submodule(name.rpartition(".")[0])._parameters  # pyright: ignore[reportPrivateUsage, reportReturnType]


def _as(own: nn.Parameter, here: nn.Parameter) -> nn.Parameter:
    """The untouched parameter where, and in the type that, its network has gone to meanwhile."""
    if own.dtype == here.dtype and own.device == here.device:
        return own
    return nn.Parameter(own.detach().to(here.device, here.dtype), requires_grad=here.requires_grad)


@torch.no_grad()
def changed(own: Float[Tensor, "..."], terms: Terms) -> nn.Parameter:
    """The parameter that takes the place of an untouched one."""
    weight = own.detach().to(torch.promote_types(own.dtype, torch.float32))
    total = torch.zeros_like(weight)
    for change, strength in terms:
        total += change.delta(weight, strength)
    result = nn.Parameter((weight + total).to(own.dtype), requires_grad=own.requires_grad)
    if own.device.type == "cpu" and own.numel():
        pages.give_back(pages.spans([own]))
    return result
