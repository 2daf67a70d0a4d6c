"""The run-time checker of types and shapes that jaxtyping's hook puts on every function of the package."""

from collections.abc import Callable
from typing import Any, Self

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float, as for pyright

SELF_CHECKED = ("vivant.freeinit", "vivant.pipelines.pia", "vivant.request", "vivant.rng")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, refusing arguments and results that its annotations do not allow.

    `Self` is not checked: beartype knows it in decorated classes, and the hook decorates functions one by one. Nor are
    the modules in `SELF_CHECKED`: they take any value and answer a wrong one with a sentence, which tests must see.
    """
    if function.__module__ in SELF_CHECKED:
        return function
    function.__annotations__ = {name: Any if hint is Self else hint for name, hint in function.__annotations__.items()}
    return _check(function)
