"""Attention as one function with a table of kernels.

Each kernel has a pure predicate on the facts of a call (device kind, dtype, sizes, what is installed), so that the
choice is tested without the hardware. The first row that may be chosen by itself and whose predicate holds is used,
unless one is asked for by name.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vivant.errors import InputError
from vivant.placement import cpu_has_native_bf16

PACKAGES = ("flash_attn", "flash_attn_interface", "sageattention")
"""Packages with kernels of their own; none is needed, each is used where it is installed."""


@dataclass(frozen=True)
class Facts:
    """What a kernel may depend on.

    Attributes:
        device: its kind, such as ``"cpu"`` or ``"cuda"``.
        dtype: of queries, keys and values.
        num_sequences: how many are computed side by side, heads apart.
        num_queries: tokens that read.
        num_keys: tokens that are read.
        trains: whether the way back is needed.
        head_dim: channels of a head.
        capability: of an accelerator of NVIDIA, such as (9, 0).
        has_bf16: whether a processor computes in bfloat16 by itself.
        has_tiles: whether it has matrix units (AMX), which torch's own kernel uses.
        installed: those of `PACKAGES` that are there.
    """

    device: str
    dtype: torch.dtype
    num_sequences: int
    num_queries: int
    num_keys: int
    trains: bool = False
    head_dim: int = 64
    capability: tuple[int, int] = (0, 0)
    has_bf16: bool = False
    has_tiles: bool = False
    installed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Kernel:
    """One way to compute softmax(q k^T / sqrt(d)) v on tokens with `num_heads` heads side by side.

    `by_itself` is False for what is inexact, or no better than torch's own: it has to be asked for.
    """

    name: str
    supports: Callable[[Facts], bool]
    run: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    by_itself: bool = True


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


QUERIES = 256
"""Queries whose scores a processor holds at a time: those of one head and 20,000 keys then fit its cache."""


def _chunked(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Scores of some queries at a time as plain matrix products, which without matrix units outrun the fused kernel.

    Keys are scaled by a power of two, hence exactly.
    """
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=num_heads) for x in (q, k, v))
    out = torch.empty(q.shape[0], q.shape[2], num_heads, v.shape[3], dtype=v.dtype, device=v.device)
    for i in range(q.shape[0]):
        for head in range(num_heads):
            keys = (k[i, head] * k.shape[-1] ** -0.5).mT.contiguous()
            values = v[i, head].contiguous()
            for start in range(0, q.shape[2], QUERIES):
                some = slice(start, start + QUERIES)
                out[i, some, head] = (q[i, head, some] @ keys).softmax(dim=-1) @ values
    return rearrange(out, "b n h d -> b n (h d)")


def _chunks(facts: Facts) -> bool:
    fits = facts.device == "cpu" and facts.dtype == torch.bfloat16 and facts.has_bf16 and not facts.has_tiles
    return fits and not facts.trains and facts.head_dim in (16, 64, 256) and facts.num_keys >= 1024


def _foreign(package: str, function: str, **options: Any) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    """A kernel of another package on `b n h d`, imported at the first call."""

    def run(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
        q, k, v = (rearrange(x, "b n (h d) -> b n h d", h=num_heads) for x in (q, k, v))
        out = getattr(importlib.import_module(package), function)(q, k, v, **options)
        return rearrange(out[0] if isinstance(out, tuple) else out, "b n h d -> b n (h d)")

    return run


def _in_half(facts: Facts, package: str, most_channels: int) -> bool:
    half = facts.dtype in (torch.float16, torch.bfloat16)
    ours = facts.device == "cuda" and package in facts.installed
    return ours and half and not facts.trains and facts.head_dim % 8 == 0 and facts.head_dim <= most_channels


KERNELS = (
    Kernel("kept sdpa", _keeps, _kept_sdpa),
    Kernel("packed sdpa", lambda facts: facts.device == "cpu" and pack_size(facts) > 1, _packed_sdpa),
    Kernel("chunked", _chunks, _chunked),
    Kernel(
        "flash 3",
        lambda facts: _in_half(facts, "flash_attn_interface", 256) and facts.capability[0] == 9,
        _foreign("flash_attn_interface", "flash_attn_func"),
    ),
    Kernel(
        "flash 2",
        lambda facts: _in_half(facts, "flash_attn", 256) and facts.capability >= (8, 0),
        _foreign("flash_attn", "flash_attn_func"),
        by_itself=False,  # torch holds the same
    ),
    Kernel(
        "sage",
        lambda facts: _in_half(facts, "sageattention", 128) and facts.capability >= (8, 0),
        _foreign("sageattention", "sageattn", tensor_layout="NHD"),
        by_itself=False,  # scores in eight bits
    ),
    Kernel("torch sdpa", lambda facts: True, _sdpa),
)


def choose(facts: Facts, name: str | None = None) -> Kernel:
    """The first kernel of the table that supports the call, or the one of that name.

    Raises:
        InputError: E-ATTENTION-KERNEL for a name that there is not, or that does not support the call.
    """
    if name is None:
        return next(kernel for kernel in KERNELS if kernel.by_itself and kernel.supports(facts))
    found = next((kernel for kernel in KERNELS if kernel.name == name), None)
    if found is not None and found.supports(facts):
        return found
    usable = ", ".join(kernel.name for kernel in KERNELS if kernel.supports(facts))
    raise InputError(
        "E-ATTENTION-KERNEL",
        f"Attention by {name!r} is not to be had for {facts.dtype} with {facts.head_dim} channels on {facts.device}.",
        "There is no such kernel." if found is None else "It needs other hardware, another data type, or its package.",
        f"Usable here: {usable}.",
    )


@lru_cache
def _installed() -> frozenset[str]:
    return frozenset(name for name in PACKAGES if find_spec(name) is not None)


@lru_cache
def _processor() -> tuple[bool, bool]:
    """Whether the processor computes in bfloat16 by itself, and whether it has matrix units."""
    return cpu_has_native_bf16(), bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def facts_of(q: Tensor, k: Tensor, num_heads: int, trains: bool = False, device: torch.device | None = None) -> Facts:
    """The facts of a call on `b n (h d)`, on another device than q's if one is given."""
    device = device or q.device
    has_bf16, has_tiles = _processor() if device.type == "cpu" else (False, False)
    return Facts(
        device.type,
        q.dtype,
        q.shape[0],
        q.shape[1],
        k.shape[1],
        trains,
        q.shape[2] // num_heads,
        torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0),
        has_bf16,
        has_tiles,
        _installed(),
    )


def attend(
    q: Float[Tensor, "b n hd"],
    k: Float[Tensor, "b m hd"],
    v: Float[Tensor, "b m hd"],
    num_heads: int,
    kernel: str | None = None,
) -> Float[Tensor, "b n hd"]:
    """Multi-head attention on tokens with the heads side by side in the channel axis, softmax scale 1/sqrt(d).

    Args:
        q: queries.
        k: keys.
        v: values.
        num_heads: h.
        kernel: name of a row of `KERNELS`; the best one if not given.
    """
    trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return choose(facts_of(q, k, num_heads, trains), kernel).run(q, k, v, num_heads)
