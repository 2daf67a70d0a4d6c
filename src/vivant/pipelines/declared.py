"""What a pipeline's constructor declares, and the checks of keywords and components against it."""

import difflib
import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from vivant.errors import InputError, LoadError
from vivant.hub.keywords import ALREADY_SO, without_loading

PIPELINES_ALREADY_SO: dict[str, tuple[Any, ...]] = {
    **ALREADY_SO,
    "trust_remote_code": (None, False),
    "safety_checker": (None,),
    "requires_safety_checker": (None, False),
}
"""The same of pipelines."""


class Declared(NamedTuple):
    """What a pipeline's constructor says.

    `optional` components may be absent; `nullable` ones, which their annotation admits None for, may be given as None.
    """

    components: dict[str, Any]
    optional: frozenset[str]
    nullable: frozenset[str]
    options: tuple[str, ...]


@cache
def declared_by(pipeline: type) -> Declared:
    """Components, optional components and options of a class of pipelines."""
    parameters = list(inspect.signature(pipeline.__init__).parameters.values())[1:]
    components = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    types = {p.name: object if p.annotation is p.empty else p.annotation for p in components}
    return Declared(
        types,
        frozenset(p.name for p in components if p.default is None),
        frozenset(name for name, kind in types.items() if is_of(None, kind)),
        tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY),
    )


def is_of(value: object, kind: Any) -> bool:
    """Whether an annotation admits a value; Any and others that cannot be asked admit everything."""
    try:
        return isinstance(value, kind)
    except TypeError:
        return True


def check_keywords(cls: type, given: Mapping[str, Any]) -> None:
    """Refuse by name whatever would be ignored; the base class itself would ignore everything.

    Raises:
        InputError: E-PIPELINE-BASE, E-ARG-UNKNOWN or E-ARG-VALUE.
    """
    declared = declared_by(cls)
    if not declared.components:
        raise InputError(
            "E-PIPELINE-BASE",
            f"{cls.__name__} has no components of its own.",
            "",
            "Use a pipeline such as PIAPipeline.",
        )
    known = (*declared.components, *declared.options)
    others = {name: value for name, value in given.items() if name not in known}
    for name in without_loading(others, PIPELINES_ALREADY_SO):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else ""
        raise InputError(
            "E-ARG-UNKNOWN",
            f"{cls.__name__} has no component or option {name}.",
            hint,
            f"It has {', '.join(known)}.",
        )


def check_complete(cls: type, present: Mapping[str, Any], given: Mapping[str, Any], origin: Any) -> None:
    """Refuse a source that lacks required components, or lists them as None, unless they are given.

    Raises:
        LoadError: E-REPO-COMPONENT.
    """
    declared = declared_by(cls)
    have = {**dict.fromkeys(declared.optional), **present, **given}
    absent = [n for n in declared.components if n not in have or (have[n] is None and n not in declared.nullable)]
    if absent:
        raise LoadError(
            "E-REPO-COMPONENT",
            f"{origin} lacks {', '.join(absent)}, which {cls.__name__} needs.",
            f"It has {', '.join(present) or 'no components'}.",
            f"Pass {absent[0]}=…, or use another source.",
        )
