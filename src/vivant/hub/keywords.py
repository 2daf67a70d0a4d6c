"""Keywords of diffusers' loaders that ask for what happens here anyway."""

from collections.abc import Mapping
from typing import Any

from vivant.errors import InputError

ALREADY_SO: dict[str, tuple[Any, ...]] = {
    "use_safetensors": (None,),
    "low_cpu_mem_usage": (None, True),
    "device_map": (None,),
    "force_download": (None, False),
}
"""Keywords of every `from_pretrained` there, and the values that change nothing here."""


def without_loading(given: Mapping[str, Any], already_so: Mapping[str, tuple[Any, ...]] = ALREADY_SO) -> dict[str, Any]:
    """The keywords that are not about loading.

    Raises:
        InputError: E-ARG-VALUE for one about loading that would be ignored.
    """
    for name, accepted in already_so.items():
        if name in given and not any(given[name] is value for value in accepted):
            raise InputError(
                "E-ARG-VALUE",
                f"{name}={given[name]!r} is not supported.",
                "It would be ignored.",
                f"Leave it out; accepted: {', '.join(map(repr, accepted))}.",
            )
    return {name: value for name, value in given.items() if name not in already_so}
