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
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class Facts:
    """What a kernel may depend on."""

    device: str
    dtype: torch.dtype
    num_sequences: int
    num_queries: int
    num_keys: int
    trains: bool = False
    head_dim: int = 64


@dataclass(frozen=True)
class Kernel:
    """One way to compute softmax(q k^T / sqrt(d)) v on tokens with `num_heads` heads side by side."""

    name: str
    supports: Callable[[Facts], bool]
    run: Callable[[Tensor, Tensor, Tensor, int], Tensor]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, num_heads: int, mask: Tensor | None = None) -> Tensor:
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=num_heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), "b h n d -> b n (h d)")


PACKED_TOKENS = 32
"""Tokens of a packed sequence: longer ones waste more on masked scores than they save (benchmarks/pia.py)."""


def pack_size(facts: Facts, num_tokens: int = PACKED_TOKENS) -> int:
    """How many short sequences share one call of the kernel; a divisor of their number."""
    most = num_tokens // facts.num_queries if facts.num_queries == facts.num_keys else 1
    return next((size for size in range(most, 1, -1) if facts.num_sequences % size == 0), 1)


def _packed_sdpa(q: Tensor, k: Tensor, v: Tensor, num_heads: int, num_tokens: int = PACKED_TOKENS) -> Tensor:
    """Several short sequences as one with a block-diagonal mask: exact, since a masked score weighs exactly zero.

    The fused kernel pays per sequence. Attention over the frames has thousands of sequences of some eight tokens.
    """
    num, length = q.shape[:2]
    size = pack_size(Facts(q.device.type, q.dtype, num, length, k.shape[1]), num_tokens)
    if size == 1:
        return _sdpa(q, k, v, num_heads)
    block = torch.arange(size * length, device=q.device) // length
    q, k, v = (rearrange(x, "(b g) n c -> b (g n) c", g=size) for x in (q, k, v))
    return rearrange(_sdpa(q, k, v, num_heads, block[:, None] == block), "b (g n) c -> (b g) n c", g=size)


SCORES = 1 << 14
"""Scores of a head up to which a processor differentiates them faster when they are kept than by the fused kernel."""
KEPT_TOKENS = 24
"""Tokens of a packed sequence whose scores are kept."""


def _kept_sdpa(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Scores as a tensor: for short sequences the fused kernel's way back is the slowest part of a training step.

    A product of thousands of matrices of a few rows pays per matrix, so the shortest share one here too.
    """
    with sdpa_kernel(SDPBackend.MATH):
        return _packed_sdpa(q, k, v, num_heads, KEPT_TOKENS)


def _keeps(facts: Facts) -> bool:
    return facts.device == "cpu" and facts.trains and facts.num_queries * facts.num_keys <= SCORES


KERNELS = (
    Kernel("kept sdpa", _keeps, _kept_sdpa),
    Kernel("packed sdpa", lambda facts: facts.device == "cpu" and pack_size(facts) > 1, _packed_sdpa),
    Kernel("torch sdpa", lambda facts: True, _sdpa),
)


def choose(facts: Facts) -> Kernel:
    """The first kernel of the table that supports the call."""
    return next(kernel for kernel in KERNELS if kernel.supports(facts))


def attend(
    q: Float[Tensor, "b n hd"], k: Float[Tensor, "b m hd"], v: Float[Tensor, "b m hd"], num_heads: int
) -> Float[Tensor, "b n hd"]:
    """Multi-head attention on tokens with the heads side by side in the channel axis, softmax scale 1/sqrt(d)."""
    trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    facts = Facts(q.device.type, q.dtype, q.shape[0], q.shape[1], k.shape[1], trains)
    return choose(facts).run(q, k, v, num_heads)
