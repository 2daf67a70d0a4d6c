"""Layers that a processor computes in one pass where torch brings a kernel for it, with a pure predicate for each."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def fuses_gelu(device: str, dtype: torch.dtype, trains: bool, has_kernel: bool) -> bool:
    """Whether a linear layer and its GELU are one call: oneDNN's, in bfloat16, which knows no way back."""
    return device == "cpu" and dtype == torch.bfloat16 and not trains and has_kernel


def _has_kernel() -> bool:
    """Whether this build of torch holds the call, and this processor runs it."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


HAS_KERNEL = _has_kernel()


def linear_gelu(x: Float[Tensor, "*b i"], layer: nn.Linear) -> Float[Tensor, "*b o"]:
    """``gelu(layer(x))`` by the approximation with tanh. In one call the sum is not rounded before the GELU."""
    if fuses_gelu(x.device.type, x.dtype, torch.is_grad_enabled(), HAS_KERNEL):
        return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "gelu", [], "tanh")
    return F.gelu(layer(x), approximate="tanh")
