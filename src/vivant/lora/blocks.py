"""How much an adapter counts in the blocks of a UNet, as diffusers' nested tables say it."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from vivant.errors import InputError
from vivant.lora.adapters import Weight, number, whole

_KINDS = ("attentions", "resnets", "motion_modules")


def by_block(network: nn.Module, given: Mapping[str, Any]) -> Weight:
    """The weight that a table gives, such as ``{"down": 0.9, "mid": 1, "up": {"block_1": [0.4, 0.8, 1]}}``.

    Numbers of a block hold for its attentions, and for resnets and motion modules of the same place; what is not named
    counts 1. Blocks without attention to the text have no entry, and `mid` is its attention alone, as in diffusers.

    Raises:
        InputError: E-LORA-BLOCKS for what the network does not have, E-LORA-WEIGHT.
    """
    for side in given:
        if side not in ("down", "mid", "up") or not hasattr(network, "mid_block"):
            raise _unknown(network, side)
    rows: list[tuple[str, float]] = list(whole(1))
    if "mid" in given:
        rows.append(("mid_block.attentions.0.", number(given["mid"])))
    for side in ("down", "up"):
        rows += _side(network, side, given.get(side, 1))
    return tuple(rows)


def _side(network: nn.Module, side: str, value: Any) -> Iterator[tuple[str, float]]:
    blocks: Any = getattr(network, f"{side}_blocks")
    sizes = {f"block_{i}": len(block.attentions) for i, block in enumerate(blocks) if len(block.attentions)}
    table: Mapping[str, Any] = value if isinstance(value, Mapping) else dict.fromkeys(sizes, value)
    for name, inner in table.items():
        if name not in sizes:
            raise _unknown(network, f"{side}.{name}")
        numbers = inner if isinstance(inner, list | tuple) else [inner]
        numbers = [*numbers] * sizes[name] if len(numbers) == 1 else [*numbers]
        if len(numbers) != sizes[name]:
            raise InputError(
                "E-LORA-BLOCKS",
                f"{side}.{name} has {len(numbers)} numbers.",
                f"The block has {sizes[name]} places.",
                "",
            )
        for place, weight in enumerate(numbers):
            for kind in _KINDS:
                yield f"{side}_blocks.{name.removeprefix('block_')}.{kind}.{place}.", number(weight)


def _unknown(network: nn.Module, name: str) -> InputError:
    return InputError(
        "E-LORA-BLOCKS",
        f"{type(network).__name__} has no block {name} with attention to the text.",
        "",
        'Give one number, or a table with "down", "mid" and "up".',
    )
