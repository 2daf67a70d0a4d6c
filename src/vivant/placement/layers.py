"""Layers that are on the device only while they are used, the next one fetched ahead.

The units are the entries of a component's outermost module lists: blocks of a transformer, of a text encoder, of a
UNet. A hook before every module of a unit says when it begins. Then the unit before is given back, this one brought,
and the one that followed it last time (at first the next in order) prefetched. All else, the rest, is on the device as
long as the component is in use. What bringing and giving back mean is a `Store`'s matter: pages of files on the CPU,
copies on an accelerator.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vivant.placement import pages

Unit = tuple[nn.Module, ...]


@runtime_checkable
class Store(Protocol):
    """Where units lie while they are not used."""

    def bring(self, unit: Unit) -> None:
        """Have a unit where it computes."""
        ...

    def prefetch(self, unit: Unit) -> None:
        """Begin to bring a unit, and return at once."""
        ...

    def give_back(self, unit: Unit) -> None:
        """A unit is not needed for now."""
        ...

    def close(self) -> None:
        """Nothing is used any more; all units have been given back."""
        ...


class Pages:
    """The CPU: a unit's pages are read from its file when it computes, and given back after."""

    def __init__(self) -> None:
        self._spans: dict[int, list[pages.Span]] = {}

    def bring(self, unit: Unit) -> None:
        """Nothing to do: using a page brings it."""

    def prefetch(self, unit: Unit) -> None:
        """Read the file ahead."""
        pages.fetch(self._places(unit))

    def give_back(self, unit: Unit) -> None:
        """Let the pages go."""
        pages.give_back(self._places(unit))

    def close(self) -> None:
        """Nothing is held."""

    def _places(self, unit: Unit) -> list[pages.Span]:
        key = id(unit[0])
        if key not in self._spans:
            self._spans[key] = pages.spans(pages.tensors_of(unit))
        return self._spans[key]


Copies = dict[int, Tensor]
"""Tensors on the device, by the identity of those that they are copies of."""


class Lending:
    """An accelerator: modules get copies of their tensors for the time of use, and then their own back.

    Their own never change, so nothing is copied back and mappings of files stay mappings. Copies are made by a thread
    of its own, on CUDA on a stream of its own.
    """

    def __init__(self, device: str):
        self._device = torch.device(device)
        self._stream: Any = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._coming: dict[int, Future[Copies]] = {}
        self._lent: dict[int, list[tuple[dict[str, Any], str, Any]]] = {}

    def bring(self, unit: Unit) -> None:
        """Put copies in the places of a unit's tensors."""
        self.prefetch(unit)
        copies = self._coming.pop(id(unit[0])).result()
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        places = self._lent.setdefault(id(unit[0]), [])
        for members, name, own in list(_members(unit)):
            places.append((members, name, own))
            copy = copies[id(own)]
            members[name] = nn.Parameter(copy, requires_grad=False) if isinstance(own, nn.Parameter) else copy
            if self._stream is not None:
                copy.record_stream(torch.cuda.current_stream(self._device))

    def prefetch(self, unit: Unit) -> None:
        """Begin to copy."""
        key = id(unit[0])
        if key not in self._coming and key not in self._lent:
            self._coming[key] = self._worker.submit(self._copies, unit)

    def give_back(self, unit: Unit) -> None:
        """Put a unit's own tensors back."""
        for members, name, own in self._lent.pop(id(unit[0]), ()):
            members[name] = own

    def close(self) -> None:
        """Forget what was fetched ahead and not used."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._coming.clear()

    def _copies(self, unit: Unit) -> Copies:
        own = {id(tensor): tensor for _, _, tensor in _members(unit)}
        with torch.no_grad():
            if self._stream is None:
                return {key: tensor.to(self._device) for key, tensor in own.items()}
            with torch.cuda.stream(self._stream):
                return {key: tensor.to(self._device, non_blocking=True) for key, tensor in own.items()}


def _members(unit: Iterable[nn.Module]) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Every place of a tensor in these modules: its module's dictionary, its name there, and the tensor."""
    for module in unit:
        for members in (module._parameters, module._buffers):  # pyright: ignore[reportPrivateUsage]
            for name, tensor in members.items():
                if tensor is not None:
                    yield members, name, tensor


def units(module: nn.Module) -> Iterator[nn.Module]:
    """The entries of the outermost module lists, in order."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from units(child)


class _Turns:
    """Which unit is in use, which follows, and what that means for a store."""

    def __init__(self, store: Store, members: list[Unit]):
        self._store, self._units = store, members
        self._followed_by = {i: (i + 1) % len(members) for i in range(len(members))}
        self._current: int | None = None

    def begin(self, i: int) -> None:
        """A module of unit i is about to compute."""
        if i == self._current:
            return
        if self._current is not None:
            self._store.give_back(self._units[self._current])
            self._followed_by[self._current] = i
        # Before it is brought, so that a failure on the way is followed by giving it back.
        self._current = i
        self._store.bring(self._units[i])
        if (after := self._followed_by[i]) != i:
            self._store.prefetch(self._units[after])

    def end(self) -> None:
        """Nothing is in use any more."""
        if self._current is not None:
            self._store.give_back(self._units[self._current])


@contextmanager
def lent(module: nn.Module, store: Store) -> Generator[None]:
    """Have the layers of `module` in turn, and its rest, where `store` brings them, for the time of use."""
    members = [tuple(unit.modules()) for unit in units(module)]
    inside = {id(part) for unit in members for part in unit}
    rest = tuple(part for part in module.modules() if id(part) not in inside)
    turns, hooks = _Turns(store, members), []
    try:
        for i, unit in enumerate(members):
            for part in unit:
                if any(True for _ in _members([part])):
                    hooks.append(part.register_forward_pre_hook(_before(turns.begin, i)))
        store.bring(rest)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        turns.end()
        store.give_back(rest)
        store.close()


def _before(begin: Callable[[int], None], i: int) -> Callable[[nn.Module, Any], None]:
    return lambda _module, _inputs: begin(i)
