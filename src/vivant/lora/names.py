"""What layers are called in files of LoRA: every spelling of every layer of a pipeline's networks, as one table."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from vivant.hub.keymaps import animatediff, ldm


class Layer(NamedTuple):
    """A layer of a pipeline: the component, and the name of the module in it."""

    component: str
    module: str


PREFIXES = ("", "base_model.model.")
"""What peft may put before any name."""
_DOTTED = {"unet": ("unet.", "", "module.", "module.unet."), "transformer": ("transformer.", "")}
_TEXT = ("text_encoder.", "")
_OLD_TEXT = ((r"self_attn\.([qkv])_proj$", r"self_attn.to_\1"), (r"self_attn\.out_proj$", "self_attn.to_out"))
_UNDERSCORED = {"unet": ("lora_unet_",), "transformer": ("lora_transformer_", "lora_unet_")}
TEXT_UNDERSCORED = ("lora_te_", "lora_te1_")
TEXT_PREFIXES = (*TEXT_UNDERSCORED, "text_encoder.", "text_model.", "base_model.model.text_model.")
"""What names of the text encoder's layers begin with."""


def spellings(networks: Mapping[str, nn.Module]) -> dict[str, Layer]:
    """Names that files may have for layers to the layers.

    Args:
        networks: by their names in the pipeline: `unet`, `transformer`, `text_encoder`.
    """
    table: dict[str, Layer] = {}
    for component, network in networks.items():
        modules = [name for name, part in network.named_modules() if name and _has_tensors(part)]
        for module, names in zip(modules, _names(component, modules, network), strict=True):
            for name in names:
                table.setdefault(name, Layer(component, module))
    return table


def _has_tensors(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _names(component: str, modules: Sequence[str], network: nn.Module) -> Iterator[Iterator[str]]:
    """The spellings of every layer of one network."""
    if component == "text_encoder":
        yield from map(_text_names, modules)
        return
    config: Any = getattr(network, "config", None)
    others = ldm.unet_table(modules, config) if component == "unet" else {}
    motion = animatediff.motion()
    for module in modules:
        dotted = [module]
        if ".motion_modules." in module:
            dotted.append(motion.name(f"{module}.").removesuffix("."))
        yield _network_names(component, dotted, others.get(module))


def _network_names(component: str, dotted: Sequence[str], other: str | None) -> Iterator[str]:
    underscored = _UNDERSCORED[component]
    for prefix in dict.fromkeys((*_DOTTED[component], *(PREFIXES[1] + first for first in _DOTTED[component]))):
        for name in dotted:
            yield from (prefix + spelling for spelling in (name, *_processed(name)))
    yield from (prefix + name.replace(".", "_") for prefix in underscored for name in dotted)
    if other is not None:
        yield from (prefix + other.replace(".", "_") for prefix in underscored)
        yield from (prefix + other for prefix in ("diffusion_model.", "model.diffusion_model."))


def _processed(name: str) -> Iterator[str]:
    """Names of attention's layers when they belonged to a processor beside it, one output without its number."""
    match = re.fullmatch(r"(.*)\.(to_[qkv]|to_out)(\.0)?", name)
    if match is not None:
        yield f"{match[1]}.processor.{match[2]}"
        if match[3]:
            yield f"{match[1]}.{match[2]}"
            yield f"{match[1]}.processor.{match[2]}{match[3]}"


def _text_names(module: str) -> Iterator[str]:
    bare = module.removeprefix("text_model.")
    for name in (f"text_model.{bare}", bare):
        spelt = {name, *(re.sub(pattern, replacement, name) for pattern, replacement in _OLD_TEXT)}
        yield from (first + prefix + old for first in PREFIXES for prefix in _TEXT for old in spelt)
        yield from (prefix + name.replace(".", "_") for prefix in TEXT_UNDERSCORED)
