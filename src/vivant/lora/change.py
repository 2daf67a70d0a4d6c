"""What one layer's weight is changed by. Values as a file holds them; arithmetic is in float32 at least.

Sources: LoRA (arXiv 2106.09685), LoHa (FedPara, arXiv 2108.06098), LoKr (KronA, arXiv 2212.10650), DoRA
(arXiv 2402.09353), and for convolutions and scales the code of kohya-ss/sd-scripts, LyCORIS and peft.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Change(Protocol):
    """A change of one tensor of a network."""

    def delta(self, weight: Float[Tensor, "..."], strength: float) -> Float[Tensor, "..."]:
        """What is added to the untouched weight, in its shape; it is given in float32 or float64."""
        ...


@dataclass(frozen=True, eq=False)
class LowRank:
    """B A, of a convolution with or without a kernel in the middle (LoCon).

    Attributes:
        down: A, `r i`, of a convolution `r i k l`.
        up: B, `o r`, of a convolution `o r 1 1`.
        mid: `r r k l`, between pointwise A and B.
        scale: alpha / rank.
    """

    down: Tensor
    up: Tensor
    mid: Tensor | None = None
    scale: float = 1.0

    def delta(self, weight: Float[Tensor, "..."], strength: float) -> Float[Tensor, "..."]:
        up, down = (_like(value, weight).flatten(1) for value in (self.up, self.down))
        if self.mid is None:
            return _scaled(up @ down, self.scale * strength, weight)
        return _scaled(_with_kernel(_like(self.mid, weight), up, down.T), self.scale * strength, weight)


@dataclass(frozen=True, eq=False)
class Hadamard:
    """LoHa: the product of two low-rank matrices, entry by entry.

    Attributes:
        w1_a: `o r`; `r o` where there are kernels.
        w1_b: `r i`.
        w2_a: as `w1_a`.
        w2_b: as `w1_b`.
        t1: kernel `r r k l` of a convolution in Tucker form.
        t2: likewise.
        scale: alpha / rank.
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    t1: Tensor | None = None
    t2: Tensor | None = None
    scale: float = 1.0

    def delta(self, weight: Float[Tensor, "..."], strength: float) -> Float[Tensor, "..."]:
        one = _product(self.w1_a, self.w1_b, self.t1, weight)
        return _scaled(one * _product(self.w2_a, self.w2_b, self.t2, weight), self.scale * strength, weight)


@dataclass(frozen=True, eq=False)
class Kronecker:
    """LoKr: the Kronecker product of two matrices, each whole or of low rank.

    Attributes:
        w1: `p q`, or its halves `w1_a` and `w1_b`.
        w2: `m n` (of a convolution `m n k l`), or its halves.
        t2: kernel `r r k l` of a convolution in Tucker form; `w2_a` is `r m` then.
        scale: alpha / rank; 1 where both are whole.
    """

    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None
    scale: float = 1.0

    def delta(self, weight: Float[Tensor, "..."], strength: float) -> Float[Tensor, "..."]:
        first = _whole(self.w1, self.w1_a, self.w1_b, None, weight)
        second = _whole(self.w2, self.w2_a, self.w2_b, self.t2, weight)
        if second.ndim == 4:
            first = rearrange(first, "p q -> p q 1 1")
        return _scaled(torch.kron(first, second), self.scale * strength, weight)


@dataclass(frozen=True, eq=False)
class Full:
    """A difference in full, of a weight or a bias."""

    diff: Tensor

    def delta(self, weight: Float[Tensor, "..."], strength: float) -> Float[Tensor, "..."]:
        return _scaled(_like(self.diff, weight), strength, weight)


@dataclass(frozen=True, eq=False)
class Decomposed:
    """DoRA: the changed weight is given the lengths that were learned for its rows, or its columns.

    The strength counts inside, as in peft; a strength of 0 alone would rescale the weight, and is not asked for.

    Attributes:
        inner: the change of direction.
        magnitude: length of every output's weights, or with `by_input` of every input's.
    """

    inner: Change
    magnitude: Tensor
    by_input: bool = False

    def delta(self, weight: Float[Tensor, "..."], strength: float) -> Float[Tensor, "..."]:
        changed = weight + self.inner.delta(weight, strength)
        kept = 1 if self.by_input else 0
        others = [axis for axis in range(weight.ndim) if axis != kept]
        lengths = torch.linalg.vector_norm(changed, dim=others, keepdim=True)
        return changed * (_like(self.magnitude, weight).reshape(lengths.shape) / lengths) - weight


def tensors_of(change: Change) -> Iterator[Tensor]:
    """All tensors of a change."""
    for field in fields(change):  # pyright: ignore[reportArgumentType]
        value: Any = getattr(change, field.name)
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Change):
            yield from tensors_of(value)


def fits(change: Change, weight: Float[Tensor, "..."]) -> bool:
    """Whether a change has the shape of a weight; found out without values."""
    try:
        return _valueless(change).delta(torch.empty(weight.shape, device="meta"), 1.0).shape == weight.shape
    except (RuntimeError, ValueError):
        return False


def _valueless(change: Change) -> Change:
    """The same shapes on the meta device."""
    made: dict[str, Any] = {}
    for field in fields(change):  # pyright: ignore[reportArgumentType]
        value: Any = getattr(change, field.name)
        if isinstance(value, Tensor):
            made[field.name] = torch.empty(value.shape, device="meta")
        elif isinstance(value, Change):
            made[field.name] = _valueless(value)
    return replace(change, **made)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _like(value: Tensor, weight: Tensor) -> Tensor:
    return value.to(weight.device, weight.dtype)


def _scaled(delta: Tensor, factor: float, weight: Tensor) -> Tensor:
    """In the weight's shape: layers that are linear here are pointwise convolutions elsewhere, and the reverse."""
    if delta.shape[:1] != weight.shape[:1] or (delta.ndim == weight.ndim == 4 and delta.shape != weight.shape):
        raise ValueError(f"{tuple(delta.shape)} does not fit {tuple(weight.shape)}")
    return (delta * factor).reshape(weight.shape)


def _with_kernel(kernel: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return einsum(kernel, up, down, "p q k l, o p, i q -> o i k l")


def _product(a: Tensor, b: Tensor, kernel: Tensor | None, weight: Tensor) -> Tensor:
    a, b = _like(a, weight), _like(b, weight)
    return a @ b if kernel is None else _with_kernel(_like(kernel, weight), a.T, b.T)


def _whole(value: Tensor | None, a: Tensor | None, b: Tensor | None, kernel: Tensor | None, weight: Tensor) -> Tensor:
    if value is not None:
        return _like(value, weight)
    assert a is not None, "the reader refuses halves without their other half"
    assert b is not None, "the reader refuses halves without their other half"
    return _product(a, b, kernel, weight).contiguous()  # torch.kron takes views
