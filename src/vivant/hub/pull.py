"""Fetching a published repository: a plan that can be shown first, then the files, their hashes, their conversion.

Nothing here talks to a person. What the hub lists is taken for hostile: names, sizes and hashes are checked before
anything is written, and contents before anything is read from them.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from vivant.errors import InputError, LoadError, OutputError, VivantError
from vivant.hub.cache import alone, name_commit, show
from vivant.hub.converted import beside, converted, write_converted
from vivant.hub.download import Entry, Progress, damaged, download, is_intact, remove_part, unseen, writing
from vivant.hub.repo import PICKLES, check_variant, is_hub_id, read_weight_name, wanted
from vivant.media.atomic import replacing

SHORT_NAMES = {
    "consisid": "BestWishYsh/ConsisID-preview",
    "consisid-preview": "BestWishYsh/ConsisID-preview",
    "consisid-1.5": "BestWishYsh/ConsisID-1.5",
    "pia": "openmmlab/PIA-condition-adapter",
    "realistic-vision": "SG161222/Realistic_Vision_V6.0_B1_noVAE",
}
"""What people may say for the repositories that these pages name."""

RECORD = ".vivant-licences.json"
"""File with the licences that were accepted, beside what was fetched under them."""
PARTS = ".vivant-parts"
"""Folder, beside it, of files that are not complete yet."""

NOT_STATED = "not stated"
UNREAD = ("*.h5", "*.joblib", "*.msgpack", "*.pickle", "*.pkl", "*.tflite")
"""Formats that nothing here reads."""
STATE_OF_TRAINING = ("optimizer.*", "random_states_*", "rng_state*", "scaler.pt", "scheduler.bin", "scheduler.pt")
_COMMIT, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"\w[\w./-]{0,199}")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Licence:
    """Under what terms a part of a repository may be used."""

    part: str
    terms: str
    link: str = ""


@dataclass(frozen=True)
class Plan:
    """What will be fetched, from where and to where.

    Attributes:
        repo: hub id.
        revision: branch, tag or commit as it was asked for.
        commit: what the revision was when the plan was made; every file is of it.
        entries: files to have at the end.
        left_out: files of the repository that nothing here reads.
        licences: terms, the repository's own first.
        folder: where the files lie at the end.
        root: where the record of accepted licences lies.
        cache_dir: hub cache; None if the files go to a folder of their own.
    """

    repo: str
    revision: str | None
    commit: str
    entries: tuple[Entry, ...]
    left_out: tuple[Entry, ...]
    licences: tuple[Licence, ...]
    folder: Path
    root: Path
    cache_dir: Path | None

    @cached_property
    def absent(self) -> tuple[Entry, ...]:
        """The files that were not at hand, in their full size, when this was first asked."""
        return tuple(entry for entry in self.entries if not _has_size(self.folder / entry.name, entry))

    @cached_property
    def pickles(self) -> tuple[Entry, ...]:
        """The files to convert. Two that would get one name are left as they are, and so is one whose name is taken."""
        names = {entry.name for entry in self.entries}
        targets = [_target(entry.name) for entry in self.entries]
        return tuple(
            entry
            for entry, target in zip(self.entries, targets, strict=True)
            if target is not None and targets.count(target) == 1 and target not in names
        )

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)

    @cached_property
    def fetch_size(self) -> int:
        """Bytes that were to be fetched when this was first asked."""
        return sum(entry.size - self.begun(entry) for entry in self.absent)

    @property
    def convert_size(self) -> int:
        """Bytes that conversions will take."""
        paths = ((entry.size, self.folder / entry.name) for entry in self.pickles)
        return sum(size for size, path in paths if not (path.is_file() and converted(path) != path))

    def part(self, entry: Entry) -> Path:
        """Where what was fetched of a file lies until all of it is there."""
        return self.root / PARTS / f"{entry.hash}.part"

    def begun(self, entry: Entry) -> int:
        """Bytes that an earlier run left of a file."""
        part = self.part(entry)
        size = part.stat().st_size if part.is_file() else 0
        return size if size <= entry.size else 0

    def blob(self, entry: Entry) -> Path | None:
        """Where the hub cache has the content of a file; None in a folder of its own."""
        return self.root / "blobs" / entry.hash if self.cache_dir else None


def _target(name: str) -> str | None:
    path = PurePosixPath(name)
    return str(path.with_suffix(".safetensors")) if path.suffix.lower() in PICKLES else None


def make_plan(
    name: str,
    *,
    to: str | Path | None = None,
    revision: str | None = None,
    variant: str | None = None,
    only: Sequence[str] = (),
    cache_dir: str | Path | None = None,
) -> Plan:
    """Ask the hub what a repository holds, and choose what is to be fetched. Writes nothing.

    Args:
        name: hub id, or one of `SHORT_NAMES`.
        to: folder for the files; None for the hub cache.
        revision: branch, tag or commit.
        variant: variant of the weights such as ``"fp16"``; folders without it contribute their plain weights.
        only: patterns of names to fetch, and nothing else; `*` crosses folders.
        cache_dir: hub cache; default as HF_HUB_CACHE and HF_HOME say.

    Raises:
        InputError: E-PULL-ONLY, E-PULL-TWICE.
        LoadError: E-REPO-… for what went wrong, E-PULL-OFFLINE, E-PULL-NAME, E-PULL-META, E-WEIGHTS-VARIANT.
        OutputError: E-OUTPUT-EXISTS for a folder that holds other files of these names.
    """
    from huggingface_hub import HfApi, constants

    repo = SHORT_NAMES.get(name.lower(), name)
    _check_id(repo, revision)
    if to is not None and cache_dir is not None:
        raise InputError("E-PULL-TWICE", "A folder is given, and a hub cache too.", "", "Give one of them.")
    with _asking(repo, revision):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    commit = _matching(_COMMIT, info.sha, "commit", repo)
    entries = tuple(sorted((_entry(sibling, repo) for sibling in info.siblings or ()), key=lambda entry: entry.name))
    check_names([entry.name for entry in entries])
    chosen = set(choose([entry.name for entry in entries], variant, only, repo))
    kept = tuple(entry for entry in entries if entry.name in chosen)
    cache = None
    if to is not None:
        root = folder = Path(to).expanduser().absolute()
    else:
        cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser().absolute()
        root = cache / f"models--{repo.replace('/', '--')}"
        folder = root / "snapshots" / commit
    plan = Plan(
        repo=repo,
        revision=revision,
        commit=commit,
        entries=kept,
        left_out=tuple(entry for entry in entries if entry.name not in chosen),
        licences=licences(repo, [entry.name for entry in kept], info.card_data),
        folder=folder,
        root=root,
        cache_dir=cache,
    )
    if to is not None:
        _check_folder(plan)
    return plan


def _check_id(repo: str, revision: str | None) -> None:
    if not is_hub_id(repo):
        raise LoadError(
            "E-REPO-PATH",
            f"{repo!r} is not a repository of the hub.",
            "",
            f"Give organisation/name, or one of {', '.join(SHORT_NAMES)}.",
        )
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise LoadError("E-REPO-PATH", f"{revision!r} is not a branch, tag or commit.", "", "Check the revision.")


def _entry(sibling: Any, repo: str) -> Entry:
    """One file as the hub describes it."""
    name, size = sibling.rfilename, sibling.size
    if not isinstance(name, str) or not isinstance(size, int) or size < 0:
        raise _unusable(repo, f"It gives no size of {name!r}.")
    if sibling.lfs is not None:
        return Entry(name, size, _matching(_SHA256, sibling.lfs.sha256, f"hash of {name!r}", repo), None)
    return Entry(name, size, None, _matching(_COMMIT, sibling.blob_id, f"hash of {name!r}", repo))


def _matching(pattern: re.Pattern[str], value: object, what: str, repo: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _unusable(repo, f"It gives no {what}, or none that could be one.")
    return value


def _unusable(repo: str, why: str) -> LoadError:
    return LoadError(
        "E-PULL-META",
        f"What the server says about {repo} cannot be used.",
        f"{why} What was fetched could not be verified.",
        "Check HF_ENDPOINT: a mirror may leave out what the hub itself tells.",
    )


def check_names(names: Iterable[str]) -> None:
    """Refuse names that would lie outside the folder, or in place of our own files, on any system.

    Raises:
        LoadError: E-PULL-NAME.
    """
    seen: set[str] = set()
    for name in sorted(names):
        parts = name.split("/")
        windows = PureWindowsPath(name)
        why = ""
        if name in seen or any(str(parent) in seen for parent in PurePosixPath(name).parents):
            why = "Another file has that name, or is where its folder should be."
        elif name.startswith("/") or windows.drive or windows.root or ":" in name:
            why = "It is absolute."
        elif "\\" in name or any(part in ("", ".", "..") for part in parts):
            why = "It could leave the folder."
        elif not name.isprintable() or any(part != part.rstrip(". ") for part in parts) or len(name) > 1000:
            why = "No system could hold it as it is."
        elif any(_DEVICE.fullmatch(part) for part in parts):
            why = "It names a device on some systems."
        elif parts[0].lower() == ".cache" or any(part.lower().startswith(".vivant") for part in parts):
            why = "Files of that name are written here, not fetched."
        if why:
            raise LoadError(
                "E-PULL-NAME",
                f"The repository holds a file called {name!r}.",
                why,
                "Nothing was fetched. Tell the owners of the repository; do not trust its other files.",
            )
        seen.add(name)


def choose(names: Sequence[str], variant: str | None, only: Sequence[str], repo: str) -> list[str]:
    """The files to fetch: what the patterns `only` say, else one format and variant of what is read here.

    Raises:
        InputError: E-PULL-ONLY if a pattern matches nothing.
        LoadError: E-WEIGHTS-VARIANT.
    """
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                "E-PULL-ONLY",
                f"No file of {repo} matches {pattern!r}.",
                f"It holds {', '.join(names[:8])}{' …' if len(names) > 8 else ''}.",
                "Check the pattern; * stands for any text, folders included.",
            )
    if only:
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in only)]
    weights = [name for name in names if read_weight_name(PurePosixPath(name).name)]
    check_variant(weights, variant, repo)
    depth = max((name.count("/") for name in names), default=0)
    single_format = wanted(names, ["/".join("*" * (i + 1)) for i in range(depth + 1)], variant)
    return [name for name in single_format if not _is_unread(name, set(names))]


def _is_unread(name: str, names: set[str]) -> bool:
    """Whether nothing here reads a file: it is of another program, or a second form of one that is fetched."""
    path = PurePosixPath(name)
    if any(fnmatchcase(path.name, pattern) for pattern in (*UNREAD, *STATE_OF_TRAINING, ".git*", "training_args.bin")):
        return True
    if "safety_checker" in path.parts or path.name.startswith("openvino_"):
        return True
    is_checkpoint = path.suffix.lower() in (*PICKLES, ".safetensors")
    if "model_index.json" in names and is_checkpoint and len(path.parts) == 1:
        return True  # the whole pipeline once more, in one file
    return path.suffix.lower() in PICKLES and str(path.with_suffix(".safetensors")) in names


def licences(repo: str, names: Sequence[str], card: Any) -> tuple[Licence, ...]:
    """The terms of what is fetched: those on the repository's card, and those of parts that have their own."""
    stated: Any = getattr(card, "license_name", None) or getattr(card, "license", None)
    listed: list[Any] = stated if isinstance(stated, list) else [stated or NOT_STATED]
    found = [Licence(repo, ", ".join(map(_one_line, listed)), _one_line(getattr(card, "license_link", None) or ""))]
    if "consisid" in repo.lower() and any(name.startswith("transformer/") for name in names):
        found.append(Licence("transformer", "the CogVideoX licence"))
    if any("antelopev2" in PurePosixPath(name).parts for name in names):
        part = next(str(PurePosixPath(name).parent) for name in names if "antelopev2" in PurePosixPath(name).parts)
        found.append(Licence(part, "antelopev2: for non-commercial research only"))
    return tuple(found)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:200]


def is_accepted(plan: Plan) -> bool:
    """Whether these licences were accepted before, for what lies there."""
    accepted = _record(plan).get(plan.repo)
    return isinstance(accepted, list) and all([item.part, item.terms] in accepted for item in plan.licences)


def _record(plan: Plan) -> dict[str, Any]:
    """Repository -> list of [part, terms] that were accepted."""
    try:
        record = json.loads((plan.root / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def accept(plan: Plan) -> None:
    """Remember that the licences were accepted.

    Raises:
        OutputError: E-OUTPUT-WRITE.
    """
    record = _record(plan)
    before = record.get(plan.repo)
    now = [[licence.part, licence.terms] for licence in plan.licences]
    record[plan.repo] = now + [item for item in before if item not in now] if isinstance(before, list) else now
    try:
        plan.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError("E-OUTPUT-WRITE", f"{plan.root} cannot be created.", f"{error}.") from error
    with replacing(plan.root / RECORD, overwrite=True) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _check_folder(plan: Plan) -> None:
    """A folder where this repository was not pulled to may hold files of these names only if they are the same."""
    if plan.repo in _record(plan):
        return
    for entry in plan.entries:
        path = plan.folder / entry.name
        if path.exists() and not (path.is_file() and is_intact(path, entry)):
            raise OutputError(
                "E-OUTPUT-EXISTS",
                f"{path} exists already, and is not the file of {plan.repo}.",
                "It was not pulled from there, so it is not replaced.",
                "Give an empty folder.",
            )


def check_space(plan: Plan) -> None:
    """Refuse to begin what the disk cannot hold, conversions included.

    Raises:
        OutputError: E-PULL-DISK.
    """
    place = next(folder for folder in (plan.folder, *plan.folder.parents) if folder.exists())
    needed, free = plan.fetch_size + plan.convert_size, shutil.disk_usage(place).free
    if needed > free:
        raise OutputError(
            "E-PULL-DISK",
            f"{needed:,} bytes are needed on the disk of {place}, and {free:,} are free.",
            f"{plan.fetch_size:,} are to be fetched, {plan.convert_size:,} are for converted pickles.",
            "Make space, or give another place with --to or --cache-dir.",
        )


def fetch(plan: Plan, progress: Progress = unseen) -> list[str]:
    """Fetch what is not at hand, small files first; a file appears under its name when it is complete and verified.

    After a cut connection, or a stop, a file goes on where it was. While another process fetches it, this one waits; in
    the cache the hub's client does too, for the lock is its own.

    Returns:
        The names of the files that were fetched, and so verified.

    Raises:
        LoadError: E-PULL-HASH, E-PULL-CHANGED, E-PULL-REDIRECT, E-REPO-… for what went wrong, E-PULL-OFFLINE.
        OutputError: E-PULL-DISK when the disk is full, E-OUTPUT-WRITE.
    """
    done: list[str] = []
    for entry in sorted(plan.absent, key=lambda entry: entry.size):
        if plan.cache_dir is None:
            lock = plan.root / f".vivant-{entry.hash}.lock"
        else:
            lock = plan.cache_dir / ".locks" / plan.root.name / f"{entry.hash}.lock"
        with alone(lock, entry.name):
            try:
                if _obtain(plan, entry, progress):
                    done.append(entry.name)
            finally:
                if plan.cache_dir is None:
                    with contextlib.suppress(OSError):  # one who waits makes it anew
                        lock.unlink()
    with contextlib.suppress(OSError):  # parts of other commits may be in it
        (plan.root / PARTS).rmdir()
    return done


def _obtain(plan: Plan, entry: Entry, progress: Progress) -> bool:
    """Bring one file to its place; whether it was fetched for that."""
    from huggingface_hub import hf_hub_url

    path, blob, part = plan.folder / entry.name, plan.blob(entry), plan.part(entry)
    is_known = blob is not None and _has_size(blob, entry)  # another commit has the same file
    if is_known or _has_size(path, entry):  # or another process was faster
        if blob is not None and not _has_size(path, entry):
            show(blob, path, is_new=False)
        progress(entry.name, entry.size)
        return False
    if blob is None:
        _copy_from_cache(plan, entry, part)
    with _asking(plan.repo, plan.revision):
        download(entry, hf_hub_url(plan.repo, entry.name, revision=plan.commit), part, plan.repo, progress)
    place = blob or path
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        part.replace(place)
    remove_part(part)
    if blob is not None:
        show(blob, path, is_new=True)
    return True


def _copy_from_cache(plan: Plan, entry: Entry, part: Path) -> None:
    """Where the hub cache has a file for a folder of its own, nothing needs to be fetched."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(plan.repo, entry.name, revision=plan.commit)
    if isinstance(found, str) and is_intact(Path(found), entry):
        with writing(part):
            part.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found, part)


def _has_size(path: Path, entry: Entry) -> bool:
    return path.is_file() and path.stat().st_size == entry.size


def verify(plan: Plan, progress: Progress = unseen, fetched: Sequence[str] = ()) -> None:
    """Compare files with the hash that the hub gives; one that differs is removed.

    Args:
        plan: the files.
        progress: told of the bytes compared.
        fetched: names of files that `fetch` has just fetched, and so compared.

    Raises:
        LoadError: E-PULL-HASH, E-FILE-MISSING.
    """
    for entry in plan.entries:
        path = plan.folder / entry.name
        if not path.is_file():
            raise LoadError("E-FILE-MISSING", f"{path} is missing.", "It was removed meanwhile.", "Pull again.")
        if entry.name not in fetched and not is_intact(path, entry, progress):
            _discard(plan, entry)
            raise damaged(entry, plan.repo)


def _discard(plan: Plan, entry: Entry) -> None:
    """Remove a file, and in the hub cache what is known by its hash."""
    for path in (plan.folder / entry.name, plan.blob(entry)):
        if path is not None:
            with writing(path):
                path.unlink(missing_ok=True)


def convert(plan: Plan, progress: Progress = unseen) -> list[Path]:
    """Write every pickle as safetensors beside it, once. Call `verify` before: only what is intact is read.

    Returns:
        The files that were written.

    Raises:
        LoadError: E-WEIGHTS-PICKLE or E-WEIGHTS-BROKEN for what is not a pickle of tensors; it is removed.
        OutputError: E-WEIGHTS-WRITE.
    """
    written: list[Path] = []
    for entry in plan.pickles:
        path = plan.folder / entry.name
        try:
            target = write_converted(path)
        except LoadError:
            _discard(plan, entry)
            beside(path).unlink(missing_ok=True)
            raise
        if target is not None:
            written.append(target)
        progress(entry.name, entry.size)
    return written


def name_revision(plan: Plan) -> None:
    """Let the hub cache know the commit by the revision's name, so that it is found there without a connection.

    Raises:
        OutputError: E-OUTPUT-WRITE.
    """
    from huggingface_hub import constants

    if plan.cache_dir is not None and plan.entries and plan.revision != plan.commit:
        name_commit(plan.root, plan.revision or constants.DEFAULT_REVISION, plan.commit)


@contextlib.contextmanager
def _asking(repo: str, revision: str | None) -> Generator[None]:
    """What the hub's client raises, as errors of ours."""
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except VivantError:
        raise
    except OfflineModeIsEnabled:
        raise offline() from None
    except RevisionNotFoundError:
        raise LoadError("E-REPO-REVISION", f"{repo} has no revision {revision}.", "", "Check the spelling.") from None
    except GatedRepoError:
        raise LoadError(
            "E-REPO-GATED",
            f"{repo} is gated: its owners let only accepted users download it.",
            "",
            "Accept the conditions on its page, then log in (hf auth login) or set HF_TOKEN.",
        ) from None
    except RepositoryNotFoundError:
        raise LoadError(
            "E-REPO-NOTFOUND",
            f"The hub has no repository {repo}.",
            "It may be private, renamed or misspelt.",
            f"Check the spelling, or give one of {', '.join(SHORT_NAMES)}; for a private one set HF_TOKEN.",
        ) from None
    except Exception as error:  # connection errors have a different type in every version of the client
        raise LoadError(
            "E-REPO-UNREACHABLE",
            f"{repo} could not be fetched: {type(error).__name__}: {error}.",
            "What was fetched is kept.",
            "Check the connection and HF_ENDPOINT, and pull again: it goes on from there.",
        ) from error


def offline() -> LoadError:
    """Fetching is what `pull` is for."""
    return LoadError(
        "E-PULL-OFFLINE",
        "Nothing can be pulled without the network.",
        "It is switched off, by --offline or HF_HUB_OFFLINE.",
        "Allow it for this command; afterwards the others work with --offline.",
    )
