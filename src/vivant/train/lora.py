"""Low-rank training (LoRA, arXiv 2106.09685): W + (alpha / rank) B A on the attention of a base; only A and B learn."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vivant.errors import InputError
from vivant.media.atomic import replacing
from vivant.pia.layers import Attention


@dataclass(frozen=True)
class Rank:
    """Size of a low-rank change. `alpha` None means that of `rank`: a scale of one."""

    rank: int
    alpha: float | None = None

    def __post_init__(self):
        if self.rank < 1:
            raise InputError("E-TRAIN-SETTING", f"rank is {self.rank}; it must be 1 or more.")

    @property
    def scale(self) -> float:
        """What B A counts."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class LowRank(nn.Module):
    """The changed weight of a linear layer. B starts at zero, so that training starts at the base."""

    def __init__(self, weight: Float[Tensor, "o i"], rank: Rank):
        super().__init__()
        self.scale = rank.scale
        self.A = nn.Parameter(torch.empty(rank.rank, weight.shape[1]))
        self.B = nn.Parameter(torch.zeros(weight.shape[0], rank.rank))
        nn.init.normal_(self.A, std=1 / rank.rank)

    def forward(self, weight: Float[Tensor, "o i"]) -> Float[Tensor, "o i"]:
        return weight + self.scale * (self.B @ self.A)


def attach(network: nn.Module, rank: Rank) -> dict[str, nn.Parameter]:
    """Give every projection of every attention a low-rank change.

    Returns:
        The new parameters, under the names that files have: `<layer>.lora_A.weight` and `<layer>.lora_B.weight`.
    """
    network.requires_grad_(False)
    weights: dict[str, nn.Parameter] = {}
    for name, module in list(network.named_modules()):
        if isinstance(module, Attention):
            layers = {"to_q": module.to_q, "to_k": module.to_k, "to_v": module.to_v, "to_out.0": module.to_out[0]}
            for place, layer in layers.items():
                change = LowRank(layer.get_parameter("weight"), rank)
                parametrize.register_parametrization(layer, "weight", change)
                weights |= {f"{name}.{place}.lora_{which}.weight": getattr(change, which) for which in "AB"}
    return weights


def merged(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network with its changes added, under its own names; the network itself is left alone."""
    state: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            changed: Any = module
            state[f"{name}.weight"] = changed.weight.detach().clone()
    for name, value in network.state_dict().items():
        if ".parametrizations." not in name:
            state[name] = value.detach().clone()
    return state


def save(weights: dict[str, nn.Parameter], rank: Rank, path: Path) -> None:
    """Write the changes alone, in the layout that diffusers and peft read: `unet.<layer>.lora_A.weight`.

    That layout has no place for `alpha`, so the scale is multiplied into B.
    """
    scales = {"A": 1.0, "B": rank.scale}
    state = {f"unet.{name}": (scales[name[-8]] * p.detach()).contiguous() for name, p in weights.items()}
    with replacing(path, overwrite=True) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
