"""Making a clip of PIA again. Imports torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vivant.cli import making
from vivant.cli.again import Asked, check_weights, compare, settle, source_of
from vivant.cli.originals import find_additions, find_pictures
from vivant.cli.recipes import Made, Origin, additions_of, choice_of, dict_of, made_of, origin_of, reading
from vivant.cli.screen import Screen, stoppable
from vivant.cli.writing import check_targets
from vivant.media.still import Still
from vivant.preflight.additions import Recorded
from vivant.preflight.pia import check_request
from vivant.request import PIARequest

FORMER = {"prompt_syntax": "plain"}
"""What recipes meant that were written before requests had these fields."""
SHIPPED = ("paper", "neon", "motion")  # folders of vivant.pocket


@dataclass(frozen=True)
class Recipe:
    """The fields of a recipe, each checked."""

    request: PIARequest
    base: Origin
    adapter: Origin | None
    vae: Origin | None
    config: Origin | None
    numerics: str
    compiled: bool
    additions: tuple[Recorded, ...]
    made: Made


def parse(recipe: Mapping[str, Any]) -> Recipe:
    """Check every field of a recipe.

    Raises:
        LoadError: E-RECIPE-FIELD; or what the request finds wrong with its own fields.
    """
    with reading():
        models = dict_of(recipe, "models")
        places = {
            name: None if models.get(name) is None else origin_of(models[name], f"models.{name}", SHIPPED)
            for name in ("motion_adapter", "vae", "config")
        }
        request = PIARequest.from_json({**FORMER, **dict_of(recipe, "request")})
        return Recipe(
            request=request,
            base=origin_of(models.get("base"), "models.base", SHIPPED),
            adapter=places["motion_adapter"],
            vae=places["vae"],
            config=places["config"],
            numerics=choice_of(models, "numerics", ("original", "diffusers")),
            compiled=models.get("compiled") is True,
            additions=additions_of(models),
            made=made_of(recipe, request),
        )


def again(screen: Screen, raw: Mapping[str, Any], asked: Asked) -> None:
    """All of `vivant redo` for this kind."""
    recipe = parse(raw)
    made, request = recipe.made, recipe.request
    asked.check_unread("PIA", identity=asked.identities, model=asked.model)
    pictures = find_pictures(made, asked.images, Path(asked.file))
    additions = find_additions(recipe.additions, asked.additions, Path(asked.file))
    check_targets(asked.outputs, [asked.file, *(path for path, _ in pictures)], asked.overwrite, request.fps)
    seen = _apart([still for _, still in pictures], request, made)
    loading = making.Loading(
        base=source_of("base", asked.base, recipe.base),
        motion_adapter=_source_of("motion_adapter", asked.motion_adapter, recipe.adapter),
        vae=_source_of("vae", asked.vae, recipe.vae),
        config=_source_of("config", asked.config, recipe.config),
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
        loras=tuple(one for one in additions if one.kind == "lora"),
        embeddings=tuple(one for one in additions if one.kind == "embedding"),
        ip_adapters=tuple(one for one in additions if one.kind == "ip_adapter"),
    )
    given = (asked.base, asked.motion_adapter, asked.vae, asked.config)
    origins = (recipe.base, recipe.adapter, recipe.vae, recipe.config)
    named = [origin for option, origin in zip(given, origins, strict=True) if origin is not None and not option]
    hub_ids = [origin.hub for origin in named if origin.hub]
    hub_ids += [one.origin["hub"] or "" for one in additions if one.path is None]
    loading = settle(screen, loading, hub_ids, asked.yes)
    models = loading.check()
    models.check_picture_prompts(len(seen.prompts))
    known: dict[str, Any] = {"limits": models.limits, "keyframes": seen.keyframes}
    request = check_request(request.fields(), request.prompt, seen.first, made.scheduler.solver, **known)
    with stoppable() as stopped:
        animator = loading.load(screen)
        animator.pipeline.scheduler = made.scheduler
        check_weights(animator.weights(), made)
        result = making.run(screen, animator, seen, request, stopped)
    compare(screen, asked, made, result)


def _apart(found: list[Still], request: PIARequest, made: Made) -> making.Seen:
    """The pictures of a recipe: those that the clips begin with, those of the keyframes, and picture prompts."""
    rest = iter(found)
    first = list(islice(rest, len(found) - sum(made.keyframes) - made.picture_prompts))
    counts = zip(request.keyframes, made.keyframes, strict=True)
    keyframes = {frame: list(islice(rest, count)) for frame, count in counts}
    return making.Seen(first, keyframes, list(rest))


def _source_of(name: str, given: str | None, origin: Origin | None) -> str | None:
    """As `source_of`, for what a recipe need not have: a base may hold its motion modules and has a VAE."""
    return given if origin is None else source_of(name, given, origin)
