"""Strength of an IP-Adapter: one for all attentions, or by blocks as InstantStyle does (arXiv 2404.02733)."""

from collections.abc import Mapping, Sequence
from itertools import groupby

from vivant.config import is_finite
from vivant.errors import InputError
from vivant.pia.ip_adapter import Place

Scale = float | tuple[float, ...]
"""Strength of an adapter at one attention: a number, or one for each picture under a mask of its own."""
Scales = tuple[Scale, ...]
"""The same for all attentions, in the order of `places`."""


def scales_at(scale: object, at: Sequence[Place]) -> Scales:
    """The strength at every attention, by diffusers' rules.

    Args:
        scale: a number; a list of numbers, one for each masked picture; or a dictionary with the keys ``down``,
            ``mid`` and ``up`` (0 where one is missing), whose values are strengths, or by block
            (``{"block_1": …}``), and there a strength or a list with one for every transformer of the block.
        at: the attentions.

    Raises:
        InputError: E-IP-ADAPTER-SCALE.
    """
    if not isinstance(scale, Mapping):
        return (_strength(scale),) * len(at)
    _check_keys(scale, ("down", "mid", "up"))
    names = list(dict.fromkeys(place.name for place in at))
    found: dict[str, Scale] = {}
    for stage, blocks in groupby(names, key=lambda name: name.split("_")[0]):
        given = scale.get(stage, 0.0)
        by_block = {number: list(group) for number, group in groupby(blocks, key=lambda name: name.split(".")[1])}
        if stage == "mid":
            found |= _spread(given, [name for group in by_block.values() for name in group], stage)
            continue
        if isinstance(given, Mapping):
            _check_keys(given, [f"block_{number}" for number in by_block])
        for number, transformers in by_block.items():
            value = given.get(f"block_{number}", 0.0) if isinstance(given, Mapping) else given
            found |= _spread(value, transformers, f"{stage}.block_{number}")
    return tuple(found[place.name] for place in at)


def _spread(value: object, transformers: Sequence[str], where: str) -> dict[str, Scale]:
    """One strength for all transformers of a block, or one for each."""
    if not isinstance(value, list | tuple):
        return dict.fromkeys(transformers, _strength(value))
    if len(value) not in (1, len(transformers)):
        raise _bad_scale(f"There are {len(value)} strengths for {where}, which has {len(transformers)} transformers.")
    each = list(value) * (len(transformers) // len(value))
    return {name: _strength(one) for name, one in zip(transformers, each, strict=True)}


def _strength(value: object) -> Scale:
    if isinstance(value, list | tuple):
        if not value:
            raise _bad_scale("A list of strengths is empty.")
        return tuple(_number(one) for one in value)
    return _number(value)


def _number(value: object) -> float:
    if not is_finite(value):
        raise _bad_scale(f"{value!r} is no strength.")
    return float(value)


def _check_keys(given: Mapping[object, object], known: Sequence[str]) -> None:
    unknown = [key for key in given if key not in known]
    if unknown:
        raise _bad_scale(f"There is no {unknown[0]!r} with attention to the text; there are {', '.join(known)}.")


def _bad_scale(what: str) -> InputError:
    return InputError(
        "E-IP-ADAPTER-SCALE",
        what,
        "",
        'Give a number, or a dictionary such as {"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}}.',
    )
