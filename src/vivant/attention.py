"""Attention as one function with a table of kernels.

Each kernel has a pure predicate on the facts of a call (device kind, dtype, sizes), so that the choice is tested
without the hardware. The first row whose predicate holds is used.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Facts:
    """What a kernel may depend on."""

    device: str
    dtype: torch.dtype
    num_queries: int
    num_keys: int
    head_size: int


@dataclass(frozen=True)
class Kernel:
    """One way to compute softmax(q k^T / sqrt(d)) v on `(b, heads, n, d)` tensors."""

    name: str
    supports: Callable[[Facts], bool]
    run: Callable[[Tensor, Tensor, Tensor], Tensor]


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _batched_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two batched matrix products: for very short sequences the fused kernel's blocking costs more than it saves."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.softmax(dim=-1) @ v


def _short_on_cpu(facts: Facts) -> bool:
    """Temporal attention in bf16: as many tokens as frames, thousands of sequences (measured, docs/performance.md)."""
    return facts.device == "cpu" and facts.dtype == torch.bfloat16 and max(facts.num_queries, facts.num_keys) <= 32


KERNELS = (
    Kernel("batched products", _short_on_cpu, _batched_products),
    Kernel("torch sdpa", lambda facts: True, _sdpa),
)


def choose(facts: Facts) -> Kernel:
    """The first kernel of the table that supports the call."""
    return next(kernel for kernel in KERNELS if kernel.supports(facts))


def attend(
    q: Float[Tensor, "b n h*d"], k: Float[Tensor, "b m h*d"], v: Float[Tensor, "b m h*d"], num_heads: int
) -> Float[Tensor, "b n h*d"]:
    """Multi-head attention on tokens with the heads side by side in the channel axis, softmax scale 1/sqrt(d)."""
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=num_heads) for x in (q, k, v))
    kernel = choose(Facts(q.device.type, q.dtype, q.shape[2], k.shape[2], q.shape[3]))
    return rearrange(kernel.run(q, k, v), "b h n d -> b n (h d)")
