"""What is asked of the inputs of any request, whichever model reads them."""

from collections.abc import Mapping
from secrets import randbits
from typing import Any

from vivant.errors import InputError
from vivant.media.recipe import encode_recipe
from vivant.media.still import Still, read_still
from vivant.pipelines.prompting import frames_of
from vivant.request import ConsisIDRequest, PIARequest
from vivant.solvers.schedule import Solver


def read_stills(image: Any) -> list[Still]:
    """One picture, or a list of such, read; a `Still` has been read already."""
    items: list[Any] = list(image) if isinstance(image, list | tuple) and not isinstance(image, Still) else [image]
    if not items or any(item is None for item in items):
        raise InputError(
            "E-IMAGE-NONE", "No picture was given.", "", "Give a path, a PIL picture, an array or a tensor."
        )
    return [item if isinstance(item, Still) else read_still(item) for item in items]


def read_keyframes(keyframes: Mapping[int, Any] | None) -> dict[int, list[Still]]:
    """The pictures of keyframes in the order of their frames, each one picture or a list of such, read."""
    return {frame: read_stills((keyframes or {})[frame]) for frame in frames_of(keyframes)}


def check_used(request: PIARequest | ConsisIDRequest, solver: Solver) -> None:
    """Refuse (E-NEGATIVE-UNUSED, E-ETA-UNUSED) what nothing would read."""
    if request.negative_prompt is not None and not request.needs_negative:
        raise InputError(
            "E-NEGATIVE-UNUSED",
            "negative_prompt is given, and guidance is off.",
            f"Nothing reads it at guidance_scale={request.guidance_scale:g}.",
            "Raise guidance_scale above 1, or leave negative_prompt out.",
        )
    if request.eta and not solver.uses_eta:
        raise InputError(
            "E-ETA-UNUSED", f"eta={request.eta:g} has no meaning for {type(solver).__name__}.", "", "Leave eta out."
        )


def check_seeds(request: PIARequest | ConsisIDRequest, clips: int) -> None:
    """Refuse (E-GENERATORS) a list of seeds that is not one for each clip."""
    if isinstance(request.seed, tuple) and len(request.seed) != clips:
        raise InputError(
            "E-GENERATORS",
            f"{len(request.seed)} seeds are given for {clips} clips.",
            "A list holds one seed for each clip, prompts times videos per prompt.",
            f"Give {clips} seeds, or a single one.",
        )


def check_recorded(request: PIARequest | ConsisIDRequest) -> None:
    """Refuse (E-RECIPE-SIZE) what would not fit into the recipe; better said now than after the work."""
    encode_recipe({"vivant": 1, "request": request.to_json()})


def drawn_seed(seed: Any) -> Any:
    """Seeds that can be repeated, in place of those that are -1."""
    if isinstance(seed, tuple):
        return tuple(drawn_seed(one) for one in seed)
    return randbits(63) if seed == -1 else seed
