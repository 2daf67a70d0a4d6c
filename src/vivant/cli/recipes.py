"""The fields of a recipe, each checked: it may come from a stranger, and nothing in it is believed. Imports torch."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from vivant.config import is_finite
from vivant.errors import LoadError, VivantError
from vivant.hub.repo import is_hub_id
from vivant.media.frames import check_enlarge
from vivant.preflight.additions import KINDS, Recorded
from vivant.request import ConsisIDRequest, PIARequest, texts
from vivant.schedulers import SCHEDULERS, Scheduler

MAX_TRAINING_STEPS = 10_000
MAX_ADDITIONS = 100


class Origin(NamedTuple):
    """Where a model came from: a hub id with its commit, the name of a folder or file, or one that ships with vivant.

    Of a file on the hub, `file` is its path in the repository.
    """

    hub: str | None
    revision: str | None
    folder: str | None
    shipped: str | None
    file: str | None = None


@dataclass(frozen=True)
class Made:
    """What recipes of every kind say.

    Attributes:
        clip: which of the clips the file holds.
        hashes: of the frames of every clip.
        variant: of the weights.
        weights: their hashes, by component.
        dtype: their data type.
        device: where they computed.
        scheduler: with which.
        enlarged: how many times as long the sides were written.
        pictures: hashes of the pictures, then of those of the keyframes, then of picture prompts.
        sizes: their width and height.
        keyframes: how many pictures each keyframe has.
        picture_prompts: how many picture prompts there are.
        versions: of packages.
    """

    clip: int
    hashes: tuple[str, ...]
    variant: str | None
    weights: Mapping[str, str]
    dtype: str
    device: str
    scheduler: Scheduler
    enlarged: int
    pictures: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    keyframes: tuple[int, ...]
    picture_prompts: int
    versions: Mapping[str, str]


@contextmanager
def reading() -> Generator[None]:
    """Whatever else a strange value makes Python raise is E-RECIPE-FIELD too."""
    try:
        yield
    except VivantError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise LoadError(
            "E-RECIPE-FIELD", "The recipe cannot be read.", f"{type(error).__name__}: {str(error)[:200]}."
        ) from error


def made_of(recipe: Mapping[str, Any], request: PIARequest | ConsisIDRequest, people: int = 1) -> Made:
    """Check the fields that every kind has.

    Args:
        recipe: as it was read.
        request: its request.
        people: how many identities it has.
    """
    models, picture = dict_of(recipe, "models"), dict_of(recipe, "image")
    hashes, clip = texts_of(recipe, "frames_hashes"), recipe.get("clip", 0)
    if type(clip) is not int or not 0 <= clip < len(hashes):
        raise wrong("clip", clip)
    digests, sizes = _pictures_of(picture)
    further = picture.get("keyframes", [])
    if not isinstance(further, list) or len(further) != len(getattr(request, "keyframes", ())):
        raise wrong("image.keyframes", further)
    keyframes = [_pictures_of(group if isinstance(group, dict) else {}) for group in further]
    prompts = _pictures_of(dict_of(picture, "picture_prompts")) if "picture_prompts" in picture else ((), [])
    every = [(digests, sizes), *keyframes, prompts]
    enlarge = recipe.get("enlarged", 1)
    check_enlarge(enlarge)
    seeds = request.seed if isinstance(request.seed, tuple) else (request.seed,)
    if None in (request.height, request.width) or -1 in seeds:
        raise wrong("request", f"{request.height} x {request.width}, seed {request.seed}")  # nothing to repeat
    counts = tuple(len(group) for group, _ in keyframes)
    batch = max(request.num_prompts, len(texts(request.negative_prompt)), len(sizes), people, *counts)
    if len(hashes) != batch * request.num_videos_per_prompt:
        raise wrong("frames_hashes", len(hashes))
    return Made(
        clip=clip,
        hashes=hashes,
        variant=optional_of(models, "variant"),
        weights=named_texts_of(models, "weights"),
        dtype=choice_of(models, "dtype", ("float32", "bfloat16", "float16")),
        device=text_of(recipe, "device"),
        scheduler=scheduler_of(dict_of(models, "scheduler")),
        enlarged=enlarge,
        pictures=tuple(digest for group, _ in every for digest in group),
        sizes=tuple(size for _, group in every for size in group),
        keyframes=counts,
        picture_prompts=len(prompts[0]),
        versions=named_texts_of(recipe, "versions"),
    )


def _pictures_of(picture: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """Hashes of pictures, and their width and height."""
    sizes = picture.get("sizes")
    if not isinstance(sizes, list) or not all(isinstance(s, list) and len(s) == 2 for s in sizes):
        raise wrong("image.sizes", sizes)
    return texts_of(picture, "digests"), [(int(w), int(h)) for w, h in sizes]


def wrong(name: str, value: object) -> LoadError:
    """The error (E-RECIPE-FIELD) about a field."""
    return LoadError("E-RECIPE-FIELD", f"The recipe's field {name} is {str(value)[:80]!r}, which means nothing here.")


def dict_of(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A field that is an object."""
    if not isinstance(values.get(name), dict):
        raise wrong(name, values.get(name))
    return values[name]


def text_of(values: Mapping[str, Any], name: str) -> str:
    """A field that is a text."""
    if not isinstance(values.get(name), str):
        raise wrong(name, values.get(name))
    return values[name]


def optional_of(values: Mapping[str, Any], name: str) -> str | None:
    """A field that is a text or missing."""
    return None if values.get(name) is None else text_of(values, name)


def choice_of(values: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> str:
    """A field that is one of some texts."""
    if values.get(name) not in allowed:
        raise wrong(name, values.get(name))
    return values[name]


def texts_of(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A field that is a list of texts, at least one."""
    found = values.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        raise wrong(name, found)
    return tuple(found)


def named_texts_of(values: Mapping[str, Any], name: str) -> dict[str, str]:
    """A field that is an object of texts."""
    found = dict_of(values, name)
    if not all(isinstance(text, str) for text in found.values()):
        raise wrong(name, found)
    return found


def additions_of(models: Mapping[str, Any]) -> tuple[Recorded, ...]:
    """The files that changed the model; none in recipes from before there were any."""
    found = models.get("additions", [])
    if not isinstance(found, list) or len(found) > MAX_ADDITIONS or not all(isinstance(one, dict) for one in found):
        raise wrong("models.additions", found)
    return tuple(_addition_of(one) for one in found)


def _addition_of(value: Mapping[str, Any]) -> Recorded:
    origin = {name: optional_of(value, name) for name in ("file", "hub", "revision") if name in value}
    file, hub = text_of(value, "file"), origin.get("hub")
    if (hub is not None and not is_hub_id(hub)) or not _is_file_name(file, in_repository=hub is not None):
        raise wrong("models.additions", value)
    sha256, weight = text_of(value, "sha256"), value.get("weight")
    if not is_finite(weight):
        raise wrong("models.additions.weight", weight)
    kind: Any = choice_of(value, "kind", KINDS)
    return Recorded(kind, sha256, origin, weight, optional_of(value, "token"))


def _is_file_name(text: str, *, in_repository: bool) -> bool:
    """Whether it is the name of a file, or its path inside a repository, and leads nowhere else."""
    path = PurePosixPath(text)
    plain = bool(path.parts) and "\\" not in text and ".." not in path.parts and not path.is_absolute()
    return plain and (in_repository or len(path.parts) == 1)


def origin_of(value: object, name: str, shipped: tuple[str, ...] = ()) -> Origin:
    """Where a model came from; `shipped` are the names that it may have in the package itself."""
    if not isinstance(value, dict):
        raise wrong(name, value)
    origin = Origin(*(optional_of(value, field) for field in Origin._fields))
    named = {
        field: getattr(origin, field)
        for field in ("hub", "folder", "shipped", "file")
        if getattr(origin, field) is not None
    }
    if origin.file is not None and not _is_file_name(origin.file, in_repository=origin.hub is not None):
        raise wrong(name, value)
    # Exactly what would be read, and nothing beside it: a name that ships becomes a path.
    if not named or (origin.hub is not None and not is_hub_id(origin.hub)):
        raise wrong(name, value)
    if origin.shipped is not None and (len(named) > 1 or origin.shipped not in shipped):
        raise wrong(name, value)
    return origin


def scheduler_of(config: Mapping[str, Any]) -> Scheduler:
    """The scheduler of a recipe; its sizes are bounded, since tables are made of them."""
    name, steps = config.get("_class_name"), config.get("num_train_timesteps", 1000)
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise wrong("models.scheduler._class_name", name)
    if type(steps) is not int or not 1 <= steps <= MAX_TRAINING_STEPS:
        raise wrong("models.scheduler.num_train_timesteps", steps)
    return SCHEDULERS[name](**{key: value for key, value in config.items() if not key.startswith("_")})
