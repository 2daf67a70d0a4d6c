"""What a recipe holds only the hashes of, known by its content: pictures and identities. Imports torch."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath

from vivant.cli.recipes import Made
from vivant.consisid.identity_file import People, load_identity, read_people
from vivant.errors import InputError, VivantError
from vivant.faces.face import Face
from vivant.hub.soundness import file_hash
from vivant.media.recipe import image_digest, named
from vivant.media.still import Still, declared_size, read_still
from vivant.preflight.additions import Recorded

PICTURES = (
    *(".png", ".jpg", ".jpeg", ".jp2", ".webp", ".avif", ".heic", ".heif"),
    *(".gif", ".bmp", ".tif", ".tiff", ".ppm"),
)
FACES = (".safetensors",)
MAX_FILES = 2000


def default_output(file: str) -> str:
    """cat.mp4 and cat.mp4.json are made again as cat-redo.mp4."""
    path = named(file)
    is_folder = path.is_dir()
    if path.suffix.lower() == ".json":
        path = path.with_suffix("")
    if is_folder or not path.suffix:
        return f"{path}-redo/"
    return str(path.with_name(f"{path.stem}-redo{path.suffix}"))


def find_pictures(made: Made, given: Sequence[str] | None, file: Path) -> list[tuple[str | Path, Still]]:
    """The pictures of a recipe, known by their content, and where each lies.

    Raises:
        InputError: E-REDO-IMAGE.
    """
    if given:
        stills = [_read_picture(path) for path in given]
        if tuple(image_digest(still.image) for still in stills) != made.pictures:
            raise InputError(
                "E-REDO-IMAGE",
                f"The recipe was made with {'another picture' if len(given) == 1 else 'other pictures'}.",
                f"Its size was {' and '.join(f'{w} x {h}' for w, h in made.sizes)}.",
                "Give the original, not a copy that was resized or compressed again.",
            )
        return list(zip(given, stills, strict=True))
    found: dict[str, tuple[Path, Still]] = {}
    for path in (*_pictures_beside(file, made.sizes), *_beside(file, FACES)):
        try:
            still = _read_picture(path)
        except VivantError:
            continue
        digest = image_digest(still.image)
        if digest in made.pictures:  # whatever else is of that size is not kept in memory
            found.setdefault(digest, (path, still))
        if found.keys() >= set(made.pictures):
            return [found[digest] for digest in made.pictures]
    raise InputError(
        "E-REDO-IMAGE",
        "The picture is not at hand.",
        "A recipe holds only its hash, and no file beside the clip or in the current folder has it.",
        "Give it with --image.",
    )


def _read_picture(path: str | Path) -> Still:
    """A picture, or that of a saved face."""
    return Still(Face.load(path).image) if str(path).lower().endswith(FACES) else read_still(path)


def _pictures_beside(file: Path, sizes: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Pictures of the right size, turned or not, beside a file and in the current folder."""
    wanted = {frozenset(size) for size in sizes}
    for path in _beside(file, PICTURES):
        try:
            size = frozenset(declared_size(path))
        except Exception:  # whatever a damaged file makes a reader raise, it is not the picture
            continue
        if size in wanted:
            yield path


def _beside(file: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Other files of some kinds beside a file and in the current folder."""
    clip = file.resolve()
    for folder in dict.fromkeys((clip.parent, Path.cwd())):
        try:
            held = sorted(folder.iterdir())
        except OSError:  # it may be entered and not listed
            continue
        yield from (path for path in islice(held, MAX_FILES) if path.suffix.lower() in suffixes and path != clip)


def find_additions(recorded: Sequence[Recorded], given: Sequence[str] | None, file: Path) -> tuple[Recorded, ...]:
    """Where the files that changed the model lie, known by their content; those of the hub may be nowhere yet.

    Raises:
        InputError: E-REDO-ADDITION for one that is not at hand, or that is given and not in the recipe.
    """
    wanted = {one.sha256 for one in recorded}
    places: dict[str, Path] = {}
    for path in map(Path, given or ()):
        digest = _digest(path)
        if digest not in wanted:
            raise InputError(
                "E-REDO-ADDITION",
                f"{path} is given, and the recipe was made without it.",
                "",
                "Give the originals, or leave it out.",
            )
        places[digest] = path
    found: list[Recorded] = []
    for one in recorded:
        name = PurePosixPath(one.origin["file"] or "").name
        near = [folder / name for folder in dict.fromkeys((file.resolve().parent, Path.cwd()))]
        for path in near if one.sha256 not in places else ():
            if path.is_file() and _digest(path) == one.sha256:
                places[one.sha256] = path
        path = places.get(one.sha256)
        if path is None and not one.origin.get("hub"):
            raise InputError(
                "E-REDO-ADDITION",
                f"The recipe was made with the file {name}, which is not at hand.",
                "A recipe holds its hash only, and it is neither beside the clip nor in the current folder.",
                "Give it with --addition.",
            )
        found.append(replace(one, path=path))
    return tuple(found)


def _digest(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError as error:
        raise InputError("E-REDO-ADDITION", f"{path} cannot be read: {error}.", "", "Give the file.") from None


def find_people(
    digests: tuple[str, ...], given: Sequence[str] | None, file: Path
) -> tuple[list[str | Path], People | None]:
    """The identities of a recipe, and where they lie; none for a model that reads none.

    Raises:
        InputError: E-REDO-IDENTITY.
    """
    if not digests and not given:
        return [], None
    if given:
        people = read_people(given)
        if people.digests != digests:
            raise InputError(
                "E-REDO-IDENTITY",
                f"The recipe was made with {'another identity' if len(given) == 1 else 'other identities'}.",
                "",
                "Give the original, with its key points if it had any.",
            )
        return list(given), people
    found: dict[str, tuple[Path, People]] = {}
    for path in _beside(file, FACES):
        try:
            people = load_identity(path)
        except VivantError:
            continue
        for i, digest in enumerate(people.digests):
            if digest in digests:
                found.setdefault(digest, (path, people.person(i)))
        if found.keys() >= set(digests):
            return [found[digest][0] for digest in digests], read_people([found[digest][1] for digest in digests])
    raise InputError(
        "E-REDO-IDENTITY",
        "The identity is not at hand.",
        "A recipe holds only its hash, and no file beside the clip or in the current folder has it.",
        "Give it with --identity.",
    )
