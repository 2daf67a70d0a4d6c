"""Methods of diffusers' pipelines that are not here yet: calling one says so, instead of an AttributeError."""

from collections.abc import Callable
from typing import Any, NoReturn

from vivant.errors import InputError


class NotYet:
    """A method, of the class or of a pipeline, that refuses.

    Args:
        what: what it would load, in the plural.
        fix: what to do instead.
    """

    def __init__(self, what: str, fix: str):
        self._what, self._fix = what, fix

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> Callable[..., NoReturn]:
        def refuse(*args: Any, **kwargs: Any) -> NoReturn:
            raise InputError(
                "E-NOT-YET", f"{owner.__name__}.{self._name}: {self._what} cannot be read yet.", "", self._fix
            )

        return refuse
