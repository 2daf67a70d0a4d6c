"""Making a clip of PIA again. Imports torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vivant.cli import making
from vivant.cli.again import Asked, check_weights, compare, settle, source_of
from vivant.cli.originals import find_pictures
from vivant.cli.recipes import Made, Origin, choice_of, dict_of, made_of, origin_of, reading
from vivant.cli.screen import Screen, stoppable
from vivant.cli.writing import check_targets
from vivant.media.still import Still
from vivant.preflight.pia import check_request
from vivant.request import PIARequest

SHIPPED = ("paper", "neon", "motion")  # folders of vivant.pocket


@dataclass(frozen=True)
class Recipe:
    """The fields of a recipe, each checked."""

    request: PIARequest
    base: Origin
    adapter: Origin | None
    numerics: str
    compiled: bool
    made: Made


def parse(recipe: Mapping[str, Any]) -> Recipe:
    """Check every field of a recipe.

    Raises:
        LoadError: E-RECIPE-FIELD; or what the request finds wrong with its own fields.
    """
    with reading():
        models = dict_of(recipe, "models")
        adapter = models.get("motion_adapter")
        request = PIARequest.from_json(dict_of(recipe, "request"))
        return Recipe(
            request=request,
            base=origin_of(models.get("base"), "models.base", SHIPPED),
            adapter=None if adapter is None else origin_of(adapter, "models.motion_adapter", SHIPPED),
            numerics=choice_of(models, "numerics", ("original", "diffusers")),
            compiled=models.get("compiled") is True,
            made=made_of(recipe, request),
        )


def again(screen: Screen, raw: Mapping[str, Any], asked: Asked) -> None:
    """All of `vivant redo` for this kind."""
    recipe = parse(raw)
    made, request = recipe.made, recipe.request
    asked.check_unread("PIA", identity=asked.identities, model=asked.model)
    pictures = find_pictures(made, asked.images, Path(asked.file))
    check_targets(asked.outputs, [asked.file, *(path for path, _ in pictures)], asked.overwrite, request.fps)
    stills, keyframes = _apart([still for _, still in pictures], request, made)
    loading = making.Loading(
        base=source_of("base", asked.base, recipe.base),
        motion_adapter=_adapter_source(asked.motion_adapter, recipe.adapter),
        numerics=recipe.numerics,
        dtype=made.dtype,
        device=asked.device or made.device,
        residency=asked.residency,
        compile=recipe.compiled,
        variant=made.variant,
        revision=None if asked.base else recipe.base.revision,
        adapter_revision=None if asked.motion_adapter or recipe.adapter is None else recipe.adapter.revision,
        cache_dir=asked.cache_dir,
        offline=asked.offline,
    )
    named = [] if asked.base else [recipe.base]
    if loading.motion_adapter is not None and not asked.motion_adapter and recipe.adapter is not None:
        named.append(recipe.adapter)
    loading = settle(screen, loading, [origin.hub for origin in named if origin.hub], asked.yes)
    limits = loading.check().limits
    request = check_request(request.fields(), request.prompt, stills, made.scheduler.solver, limits, keyframes)
    with stoppable() as stopped:
        animator = loading.load(screen)
        animator.pipeline.scheduler = made.scheduler
        check_weights(animator.weights(), made)
        result = making.run(screen, animator, stills, keyframes, request, stopped)
    compare(screen, asked, made, result)


def _apart(found: list[Still], request: PIARequest, made: Made) -> tuple[list[Still], dict[int, list[Still]]]:
    """The pictures of a recipe: those that the clips begin with, and those of the keyframes."""
    rest = iter(found)
    first = list(islice(rest, len(found) - sum(made.keyframes)))
    counts = zip(request.keyframes, made.keyframes, strict=True)
    return first, {frame: list(islice(rest, count)) for frame, count in counts}


def _adapter_source(given: str | None, origin: Origin | None) -> str | None:
    if origin is None:  # the base held the motion modules
        return given
    return source_of("motion_adapter", given, origin)
