"""Making a clip of ConsisID again. Imports torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vivant.cli import filming
from vivant.cli.again import Asked, check_weights, compare, settle, source_of
from vivant.cli.originals import find_additions, find_people, find_pictures
from vivant.cli.recipes import Made, Origin, additions_of, dict_of, made_of, origin_of, reading, texts_of
from vivant.cli.screen import Screen, stoppable
from vivant.cli.writing import check_targets
from vivant.preflight.additions import Recorded
from vivant.preflight.consisid import check_film
from vivant.request import ConsisIDRequest

SHIPPED = ("person",)  # folders of vivant.pocket


@dataclass(frozen=True)
class Recipe:
    """The fields of a recipe, each checked."""

    request: ConsisIDRequest
    model: Origin
    people: tuple[str, ...]
    additions: tuple[Recorded, ...]
    made: Made


def parse(recipe: Mapping[str, Any]) -> Recipe:
    """Check every field of a recipe.

    Raises:
        LoadError: E-RECIPE-FIELD; or what the request finds wrong with its own fields.
    """
    with reading():
        request = ConsisIDRequest.from_json(dict_of(recipe, "request"))
        people = texts_of(dict_of(recipe, "identity"), "digests")
        return Recipe(
            request=request,
            model=origin_of(dict_of(recipe, "models").get("model"), "models.model", SHIPPED),
            people=people,
            additions=additions_of(dict_of(recipe, "models")),
            made=made_of(recipe, request, len(people)),
        )


def again(screen: Screen, raw: Mapping[str, Any], asked: Asked) -> None:
    """All of `vivant redo` for this kind."""
    recipe = parse(raw)
    made, request = recipe.made, recipe.request
    unread = {name: getattr(asked, name) for name in ("base", "motion_adapter", "vae", "config")}
    asked.check_unread("ConsisID", **unread)
    places, people = find_people(recipe.people, asked.identities, Path(asked.file))
    pictures = find_pictures(made, asked.images, Path(asked.file))
    additions = find_additions(recipe.additions, asked.additions, Path(asked.file))
    sources = [asked.file, *places, *(path for path, _ in pictures)]
    check_targets(asked.outputs, sources, asked.overwrite, request.fps)
    stills = [still for _, still in pictures]
    loading = filming.Loading(
        model=source_of("model", asked.model, recipe.model),
        dtype=made.dtype,
        device=asked.device or made.device,
        residency=asked.residency,
        variant=made.variant,
        revision=None if asked.model else recipe.model.revision,
        cache_dir=asked.cache_dir,
        offline=asked.offline,
        loras=additions,
    )
    hub_ids = [recipe.model.hub] if recipe.model.hub and not asked.model else []
    hub_ids += [one.origin["hub"] or "" for one in additions if one.path is None]
    loading = settle(screen, loading, hub_ids, asked.yes)
    traits = replace(loading.check().traits, solver=made.scheduler.solver)
    fields = request.fields()
    check_film(fields, request.prompt, stills, people, traits)
    with stoppable() as stopped:
        portrait = loading.load(screen)
        portrait.pipeline.scheduler = made.scheduler
        check_weights(portrait.weights(), made)
        result = filming.run(screen, portrait, stills, people, request, stopped)
    compare(screen, asked, made, result)
