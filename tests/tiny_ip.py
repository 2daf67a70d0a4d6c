"""Small IP-Adapters and a CLIP image encoder in the published layout, filled by the rule; all axes differ.

The encoder is written by transformers; the adapters have no other writer, so their names and shapes stand here as in
the published files.
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import tiny

SIDE, PATCH, HIDDEN, PROJECTED = 42, 14, 36, 26
POSITIONS = 1 + (SIDE // PATCH) ** 2
CHANNELS = (16, 16, 16, 16, 16, 24)
"""Of the attentions to the text of the small network: down, up, middle."""
INNER, TOKENS = 28, 5


def encoder(seed: int = 11) -> Any:
    """A filled CLIPVisionModelWithProjection of transformers."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": HIDDEN, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=PATCH, projection_dim=PROJECTED)
    return tiny.fill(CLIPVisionModelWithProjection(config), seed)


def shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an adapter's file for the small network: ``"plain"``, ``"plus"`` or ``"full"``."""
    text = tiny.TEXT_DIM
    norm = {"weight": (text,), "bias": (text,)}
    if kind == "plain":
        found = {"proj.weight": (4 * text, PROJECTED), "proj.bias": (4 * text,)}
        found |= {f"norm.{name}": shape for name, shape in norm.items()}
    elif kind == "full":
        found = {"proj.0.weight": (HIDDEN, HIDDEN), "proj.0.bias": (HIDDEN,)}
        found |= {"proj.2.weight": (text, HIDDEN), "proj.2.bias": (text,)}
        found |= {f"proj.3.{name}": shape for name, shape in norm.items()}
    else:
        found = {"latents": (1, TOKENS, INNER), "proj_in.weight": (INNER, HIDDEN), "proj_in.bias": (INNER,)}
        found |= {"proj_out.weight": (text, INNER), "proj_out.bias": (text,)}
        found |= {f"norm_out.{name}": shape for name, shape in norm.items()}
        for i in range(4):
            for name in ("0.norm1", "0.norm2", "1.0"):
                found |= {f"layers.{i}.{name}.weight": (INNER,), f"layers.{i}.{name}.bias": (INNER,)}
            found |= {f"layers.{i}.0.to_q.weight": (128, INNER), f"layers.{i}.0.to_kv.weight": (256, INNER)}
            found |= {f"layers.{i}.0.to_out.weight": (INNER, 128)}
            found |= {f"layers.{i}.1.1.weight": (4 * INNER, INNER), f"layers.{i}.1.3.weight": (INNER, 4 * INNER)}
    found = {f"image_proj.{name}": shape for name, shape in found.items()}
    for i, channels in enumerate(CHANNELS):
        for half in ("k", "v"):
            found[f"ip_adapter.{2 * i + 1}.to_{half}_ip.weight"] = (channels, text)
    return found


def state(kind: str, seed: int = 11) -> dict[str, Tensor]:
    """The tensors of an adapter."""
    return {name: tiny.rule(name, shape, seed) for name, shape in shapes(kind).items()}


def nested(flat: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """As the `.bin` files hold them."""
    tables: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in flat.items():
        table, _, rest = name.partition(".")
        tables[table][rest] = value
    return tables


def write(root: Path) -> Path:
    """A repository as the published one: `models/`, its image encoder, and a file of every kind in both formats."""
    models = root / "models"
    encoder().save_pretrained(models / "image_encoder")
    for kind in ("plain", "plus", "full"):
        save_file(state(kind), models / f"{kind}.safetensors")
        torch.save(nested(state(kind)), models / f"{kind}.bin")
    return root


def person(seed: int = 1, size: tuple[int, int] = (70, 55)) -> Image.Image:
    """A picture: coarse noise, so that resizing leaves something of it."""
    small = (torch.rand(9, 7, 3, generator=torch.Generator().manual_seed(seed)) * 255).byte().numpy()
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
