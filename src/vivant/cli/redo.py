"""`vivant redo`: make a clip again from its recipe. The recipe may come from a stranger: nothing in it is believed."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer import Argument, Option

from vivant.cli.screen import Code, Screen, clean, reporting, stoppable
from vivant.errors import InputError, LoadError, VivantError

if TYPE_CHECKING:
    from vivant.api import Animator
    from vivant.cli.making import Loading
    from vivant.media.still import Still
    from vivant.request import PIARequest
    from vivant.schedulers import Scheduler

PICTURES = (
    *(".png", ".jpg", ".jpeg", ".jp2", ".webp", ".avif", ".heic", ".heif"),
    *(".gif", ".bmp", ".tif", ".tiff", ".ppm"),
)
SHIPPED = ("paper", "neon", "motion")  # folders of vivant.pocket
MAX_FILES = 2000
MAX_TRAINING_STEPS = 10_000
# What is wrong with a source of which only a part, or nothing, is in the cache.
FETCHABLE = (
    *("E-FILE-MISSING", "E-REPO-COMPONENT", "E-REPO-INDEX", "E-REPO-OFFLINE", "E-REPO-SUBFOLDER", "E-TOKENIZER"),
    *("E-WEIGHTS-MISSING", "E-WEIGHTS-VARIANT"),
)


class Origin(NamedTuple):
    """Where a model came from: a hub id with its commit, the name of a local folder, or one that ships with vivant."""

    hub: str | None
    revision: str | None
    folder: str | None
    shipped: str | None


@dataclass(frozen=True)
class Recipe:
    """The fields of a recipe, each checked."""

    request: "PIARequest"
    clip: int
    hashes: tuple[str, ...]
    base: Origin
    adapter: Origin | None
    variant: str | None
    weights: Mapping[str, str]
    numerics: str
    dtype: str
    compiled: bool
    device: str
    scheduler: "Scheduler"
    enlarged: int
    pictures: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    versions: Mapping[str, str]


def redo(
    file: Annotated[str, Argument(help="A clip of vivant, a folder of its frames, or its recipe (.json).")],
    image: Annotated[
        list[str] | None,
        Option("--image", help="The picture; if not given, it is looked for beside the file. Once for each picture."),
    ] = None,
    base: Annotated[str | None, Option("--base", help="The base, where the recipe names a folder.")] = None,
    motion_adapter: Annotated[
        str | None, Option("--motion-adapter", help="The adapter, where the recipe names a folder.")
    ] = None,
    output: Annotated[
        list[str] | None, Option("--output", "-o", help="Where to write; FILE-redo with its suffix if not given.")
    ] = None,
    device: Annotated[str | None, Option("--device", help="Where to compute; as the recipe says if not given.")] = None,
    cache_dir: Annotated[str | None, Option("--cache-dir", help="Hub cache; HF_HOME decides if not given.")] = None,
    offline: Annotated[bool, Option("--offline", help="Never touch the network.")] = False,
    yes: Annotated[bool, Option("--yes", "-y", help="Fetch what the recipe names without asking.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace files that exist.")] = False,
    json: Annotated[bool, Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Make a clip again from the recipe that it carries, and say whether it is the same.

    Picture and weights are compared with the recipe's hashes first. Exit code 5: made, and not the same.
    """
    with reporting(json) as screen:
        from vivant.cli import making
        from vivant.media.recipe import read_recipe
        from vivant.preflight import check_request

        recipe = parse(read_recipe(file))
        outputs = output or [default_output(file)]
        pictures = find_pictures(recipe, image, Path(file))
        making.check_targets(outputs, [file, *(path for path, _ in pictures)], overwrite, recipe.request.fps)
        stills = [still for _, still in pictures]
        loading = making.Loading(
            base=_source("base", base, recipe.base),
            motion_adapter=_adapter_source(motion_adapter, recipe.adapter),
            numerics=recipe.numerics,
            dtype=recipe.dtype,
            device=device or recipe.device,
            compile=recipe.compiled,
            variant=recipe.variant,
            revision=None if base else recipe.base.revision,
            adapter_revision=None if motion_adapter or recipe.adapter is None else recipe.adapter.revision,
            cache_dir=cache_dir,
            offline=offline,
        )
        named = [] if base else [recipe.base]
        if loading.motion_adapter is not None and not motion_adapter and recipe.adapter is not None:
            named.append(recipe.adapter)
        loading = settle(screen, loading, [origin.hub for origin in named if origin.hub], yes)
        fields = {name: getattr(recipe.request, name) for name in recipe.request.__dataclass_fields__}
        check_request(fields, recipe.request.prompt, stills, recipe.scheduler.solver, loading.check().limits)
        with stoppable() as stopped:
            animator = loading.load(screen)
            animator.pipeline.scheduler = recipe.scheduler
            check_weights(animator, recipe)
            result = making.run(screen, animator, stills, fields, stopped)
        shown = making.write(screen, result, {recipe.clip: outputs}, overwrite, recipe.enlarged)
        same = result.recipe["frames_hashes"][recipe.clip] == recipe.hashes[recipe.clip]
        making.finish(screen, result, shown, {"same": same})
        if same:
            screen.show("The same frames as before.")
            return
        differs = [
            f"{name} {recipe.versions.get(name, '?')} then, {now} now"
            for name, now in result.recipe["versions"].items()
            if recipe.versions.get(name) != now
        ]
        screen.show("The frames are not the same as before.")
        screen.say(f"  {'; '.join(differs)}." if differs else "  Another processor or number of threads may round so.")
        raise typer.Exit(Code.DIFFERENT)


def parse(recipe: Mapping[str, Any]) -> Recipe:
    """Check every field of a recipe.

    Raises:
        LoadError: E-RECIPE-FIELD; or what the request finds wrong with its own fields.
    """
    from vivant.media.frames import check_enlarge
    from vivant.request import PIARequest, texts

    try:
        if recipe.get("kind") != "pia":
            raise _wrong("kind", recipe.get("kind"))
        models, picture = _dict(recipe, "models"), _dict(recipe, "image")
        hashes, clip = _texts(recipe, "frames_hashes"), recipe.get("clip", 0)
        if type(clip) is not int or not 0 <= clip < len(hashes):
            raise _wrong("clip", clip)
        adapter = models.get("motion_adapter")
        sizes = picture.get("sizes")
        if not isinstance(sizes, list) or not all(isinstance(s, list) and len(s) == 2 for s in sizes):
            raise _wrong("image.sizes", sizes)
        enlarge = recipe.get("enlarged", 1)
        check_enlarge(enlarge)
        request = PIARequest.from_json(_dict(recipe, "request"))
        for name in ("height", "width", "seed"):
            if getattr(request, name) in (None, -1):  # nothing that could be repeated
                raise _wrong(f"request.{name}", getattr(request, name))
        batch = max(len(texts(request.prompt)), len(texts(request.negative_prompt)), len(sizes))
        if len(hashes) != batch * request.num_videos_per_prompt:
            raise _wrong("frames_hashes", len(hashes))
        return Recipe(
            request=request,
            clip=clip,
            hashes=hashes,
            base=_origin(models.get("base"), "models.base"),
            adapter=None if adapter is None else _origin(adapter, "models.motion_adapter"),
            variant=_optional(models, "variant"),
            weights=_named_texts(models, "weights"),
            numerics=_choice(models, "numerics", ("original", "diffusers")),
            dtype=_choice(models, "dtype", ("float32", "bfloat16", "float16")),
            compiled=models.get("compiled") is True,
            device=_text(recipe, "device"),
            scheduler=_scheduler(_dict(models, "scheduler")),
            enlarged=enlarge,
            pictures=_texts(picture, "digests"),
            sizes=tuple((int(w), int(h)) for w, h in sizes),
            versions=_named_texts(recipe, "versions"),
        )
    except VivantError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise LoadError(
            "E-RECIPE-FIELD", "The recipe cannot be read.", f"{type(error).__name__}: {str(error)[:200]}."
        ) from error


def _wrong(name: str, value: object) -> LoadError:
    return LoadError("E-RECIPE-FIELD", f"The recipe's field {name} is {str(value)[:80]!r}, which means nothing here.")


def _dict(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(values.get(name), dict):
        raise _wrong(name, values.get(name))
    return values[name]


def _text(values: Mapping[str, Any], name: str) -> str:
    if not isinstance(values.get(name), str):
        raise _wrong(name, values.get(name))
    return values[name]


def _optional(values: Mapping[str, Any], name: str) -> str | None:
    return None if values.get(name) is None else _text(values, name)


def _choice(values: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> str:
    if values.get(name) not in allowed:
        raise _wrong(name, values.get(name))
    return values[name]


def _texts(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = values.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        raise _wrong(name, found)
    return tuple(found)


def _named_texts(values: Mapping[str, Any], name: str) -> dict[str, str]:
    found = _dict(values, name)
    if not all(isinstance(text, str) for text in found.values()):
        raise _wrong(name, found)
    return found


def _origin(value: object, name: str) -> Origin:
    from vivant.hub.repo import is_hub_id

    if not isinstance(value, dict):
        raise _wrong(name, value)
    origin = Origin(*(_optional(value, field) for field in Origin._fields))
    named = {
        field: getattr(origin, field) for field in ("hub", "folder", "shipped") if getattr(origin, field) is not None
    }
    # Exactly what would be read, and nothing beside it: a name that ships becomes a path.
    if not named or (origin.hub is not None and not is_hub_id(origin.hub)):
        raise _wrong(name, value)
    if origin.shipped is not None and (len(named) > 1 or origin.shipped not in SHIPPED):
        raise _wrong(name, value)
    return origin


def _scheduler(config: Mapping[str, Any]) -> "Scheduler":
    """The scheduler of a recipe; its sizes are bounded, since tables are made of them."""
    from vivant.schedulers import SCHEDULERS

    name, steps = config.get("_class_name"), config.get("num_train_timesteps", 1000)
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise _wrong("models.scheduler._class_name", name)
    if type(steps) is not int or not 1 <= steps <= MAX_TRAINING_STEPS:
        raise _wrong("models.scheduler.num_train_timesteps", steps)
    return SCHEDULERS[name](**{key: value for key, value in config.items() if not key.startswith("_")})


def default_output(file: str) -> str:
    """cat.mp4 and cat.mp4.json are made again as cat-redo.mp4."""
    from vivant.media.recipe import named

    path = named(file)
    is_folder = path.is_dir()
    if path.suffix.lower() == ".json":
        path = path.with_suffix("")
    if is_folder or not path.suffix:
        return f"{path}-redo/"
    return str(path.with_name(f"{path.stem}-redo{path.suffix}"))


def find_pictures(recipe: Recipe, given: list[str] | None, file: Path) -> "list[tuple[str | Path, Still]]":
    """The pictures of a recipe, known by their content, and where each lies.

    Raises:
        InputError: E-REDO-IMAGE.
    """
    from vivant.media.recipe import image_digest
    from vivant.media.still import read_still

    if given:
        stills = [read_still(path) for path in given]
        if tuple(image_digest(still.image) for still in stills) != recipe.pictures:
            raise InputError(
                "E-REDO-IMAGE",
                f"The recipe was made with {'another picture' if len(given) == 1 else 'other pictures'}.",
                f"Its size was {' and '.join(f'{w} x {h}' for w, h in recipe.sizes)}.",
                "Give the original, not a copy that was resized or compressed again.",
            )
        return list(zip(given, stills, strict=True))
    found: dict[str, tuple[Path, Still]] = {}
    for path in _pictures_beside(file, recipe.sizes):
        try:
            still = read_still(path)
        except VivantError:
            continue
        digest = image_digest(still.image)
        if digest in recipe.pictures:  # whatever else is of that size is not kept in memory
            found.setdefault(digest, (path, still))
        if found.keys() >= set(recipe.pictures):
            return [found[digest] for digest in recipe.pictures]
    raise InputError(
        "E-REDO-IMAGE",
        "The picture is not at hand.",
        "A recipe holds only its hash, and no file beside the clip or in the current folder has it.",
        "Give it with --image.",
    )


def _pictures_beside(file: Path, sizes: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Pictures of the right size, turned or not, beside a file and in the current folder."""
    from vivant.media.still import declared_size

    wanted = {frozenset(size) for size in sizes}
    clip = file.resolve()
    for folder in dict.fromkeys((clip.parent, Path.cwd())):
        try:
            held = sorted(folder.iterdir())
        except OSError:  # it may be entered and not listed
            continue
        for path in islice(held, MAX_FILES):
            if path.suffix.lower() not in PICTURES or path == clip:
                continue
            try:
                size = frozenset(declared_size(path))
            except Exception:  # whatever a damaged file makes a reader raise, it is not the picture
                continue
            if size in wanted:
                yield path


def _source(name: str, given: str | None, origin: Origin) -> str:
    if given is not None:
        return given
    if origin.hub is None and origin.shipped is not None:
        from vivant.pocket import FOLDER

        return str(FOLDER / origin.shipped)
    if origin.hub is None:
        raise InputError(
            "E-REDO-MODEL",
            f"The recipe's {name} was the local folder {origin.folder!r}.",
            "A recipe holds no paths.",
            f"Say where it is: --{name.replace('_', '-')} FOLDER.",
        )
    if Path(origin.hub).exists():
        raise InputError(
            "E-REDO-MODEL",
            f"The recipe names {origin.hub} on the hub, and there is a local folder of that name.",
            "",
            f"Say which is meant: --{name.replace('_', '-')} {Path(origin.hub).resolve()}, or another current folder.",
        )
    return origin.hub


def _adapter_source(given: str | None, origin: Origin | None) -> str | None:
    if origin is None:  # the base held the motion modules
        return given
    return _source("motion_adapter", given, origin)


def settle(screen: Screen, loading: "Loading", hub_ids: list[str], yes: bool) -> "Loading":
    """Decide about the network: what only the recipe asks for is fetched with consent.

    Raises:
        InputError: E-REDO-FETCH without it.
    """
    if loading.offline or not hub_ids or yes:
        return loading
    local = replace(loading, offline=True)
    try:
        local.check()
        return local
    except LoadError as error:
        if error.code not in FETCHABLE:
            raise
        missing = error
    names = " and ".join(hub_ids)
    asked = not screen.json and sys.stdin.isatty()
    if asked and typer.confirm(clean(f"The recipe names {names}, not in the cache. Fetch it from the hub?"), err=True):
        return loading
    raise InputError(
        "E-REDO-FETCH",
        f"The recipe names {names} on the hub, which is not in the cache.",
        f"What a recipe names is fetched only with your consent. ({missing.what})",
        "Add --yes if you trust it, or give --base and --motion-adapter.",
    )


def check_weights(animator: "Animator", recipe: Recipe) -> None:
    """Refuse (E-REDO-WEIGHTS) to compute with other weights than the recipe's."""
    now = animator.weights()
    other = [name for name in now if now[name] != recipe.weights.get(name)]
    if other:
        raise LoadError(
            "E-REDO-WEIGHTS",
            f"The weights of {', '.join(other)} are not those of the recipe.",
            "The clip could not be the same.",
            "Give the models that it was made with, in the revision and variant that the recipe shows.",
        )
