"""Where a checkpoint lies: a local folder, or a hub repository in the cache of huggingface_hub.

The rules of file names (variants, shards, formats) are pure functions on lists of names, so that the choice is the
same for a folder and for a repository of which only the chosen files are fetched.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from vivant.errors import LoadError, warn

MODEL = "diffusion_pytorch_model"
"""Stem of the weight files of diffusion components."""
TRANSFORMERS = "model"
"""Stem of the weight files of text and image encoders; their pickles are called ``pytorch_model``."""

SAFETENSORS = (".safetensors", ".sft")
"""Endings of safetensors files."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
"""Endings of files that torch pickles tensors into."""
WEIGHT_FILES = (*SAFETENSORS, *PICKLES)
"""Endings of all files of weights."""

_HUB_ID = re.compile(r"[A-Za-z0-9_](?:[\w.-]*[\w])?(?:/[A-Za-z0-9_](?:[\w.-]*[\w])?)?", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]{0,199}")
_WEIGHT_NAME = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<variant>\w+?))?"
    r"(?P<shard>-\d{5}-of-\d{5})?"
    r"(?:\.(?P<late_variant>\w+))?"
    r"\.(?P<format>safetensors|bin)"
    r"(?P<index>\.index(?:\.(?P<index_variant>\w+))?\.json)?"
)


@dataclass(frozen=True)
class Source:
    """One component of one repository.

    Attributes:
        source: a folder, or a hub id ``"organisation/name"``.
        subfolder: component folder inside the repository.
        variant: file variant such as ``"fp16"``.
        revision: branch, tag or commit on the hub.
        cache_dir: hub cache; default as HF_HUB_CACHE and HF_HOME say.
        local_files_only: never touch the network.
        token: hub token; default as HF_TOKEN or the stored login says.
    """

    source: str | Path
    subfolder: str | None = None
    variant: str | None = None
    revision: str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    token: str | bool | None = None


@dataclass(frozen=True)
class WeightName:
    """What the name of a weight file says."""

    stem: str
    variant: str | None
    format: Literal["safetensors", "bin"]
    part: Literal["whole", "shard", "index"]


def read_weight_name(name: str) -> WeightName | None:
    """Take the name of a weight file apart; None for any other file.

    Both places of the variant occur in published repositories: ``x.fp16.safetensors.index.json`` and
    ``x.safetensors.index.fp16.json``, ``x.fp16-00001-of-00002.bin`` and ``x-00001-of-00002.fp16.bin``.
    """
    match = _WEIGHT_NAME.fullmatch(name)
    if match is None:
        return None
    variants = {v for v in (match["variant"], match["late_variant"], match["index_variant"]) if v}
    if len(variants) > 1:
        return None
    part = "index" if match["index"] else "shard" if match["shard"] else "whole"
    file_format = "bin" if match["format"] == "bin" else "safetensors"
    return WeightName(match["stem"], variants.pop() if variants else None, file_format, part)


def pick_weights(names: Iterable[str], variant: str | None, stem: str = MODEL) -> str | None:
    """The file to read among `names`: the whole safetensors file, its index, then the same as pickle; or None."""
    stems = {"safetensors": stem, "bin": "pytorch_model" if stem == TRANSFORMERS else stem}
    found = {}
    for name in sorted(names):
        parsed = read_weight_name(name)
        if parsed and parsed.variant == variant and parsed.stem == stems[parsed.format]:
            found.setdefault((parsed.format, parsed.part), name)
    order = [("safetensors", "whole"), ("safetensors", "index"), ("bin", "whole"), ("bin", "index")]
    return next((found[kind] for kind in order if kind in found), None)


def variants(names: Iterable[str]) -> list[str | None]:
    """The variants that weight files exist in; None is the plain one."""
    parsed = [read_weight_name(PurePosixPath(name).name) for name in names]
    return sorted({p.variant for p in parsed if p}, key=lambda v: v or "")


def check_variant(names: Iterable[str], variant: str | None, origin: str) -> None:
    """Refuse a variant in which no file exists, naming those that exist.

    Raises:
        LoadError: E-WEIGHTS-VARIANT.
    """
    present = variants(names)
    if present and variant not in present:
        listed = ", ".join(f'variant="{v}"' if v else "no variant" for v in present)
        asked = f'the variant "{variant}"' if variant else "no plain weights (without a variant)"
        raise LoadError(
            "E-WEIGHTS-VARIANT",
            f"{origin} does not have {asked}." if variant else f"{origin} has {asked}.",
            f"Available: {listed}.",
            "Ask for one of these.",
        )


def wanted(names: Iterable[str], patterns: Sequence[str], variant: str | None) -> list[str]:
    """The files of a repository to fetch: those that match, and of weights one format in one variant per folder.

    A folder that lacks `variant` contributes its plain weights.
    """
    matching = [name for name in names if any(_matches(name, pattern) for pattern in patterns)]
    keep = []
    folders: dict[PurePosixPath, list[str]] = {}
    for name in matching:
        path = PurePosixPath(name)
        if read_weight_name(path.name):
            folders.setdefault(path.parent, []).append(path.name)
        else:
            keep.append(name)
    for folder, files in folders.items():
        for stem in (MODEL, TRANSFORMERS):
            choice = pick_weights(files, variant, stem) or pick_weights(files, None, stem)
            chosen = read_weight_name(choice) if choice else None
            if chosen is None or choice is None:
                continue
            keep.append(str(folder / choice))
            if chosen.part == "index":
                for name in files:
                    other = read_weight_name(name)
                    if (
                        other
                        and other.part == "shard"
                        and (other.stem, other.variant, other.format)
                        == (
                            chosen.stem,
                            chosen.variant,
                            chosen.format,
                        )
                    ):
                        keep.append(str(folder / name))
    return sorted(keep)


def _matches(name: str, pattern: str) -> bool:
    """Glob match in which `*` does not cross folders."""
    parts, wanted_parts = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted_parts) and all(map(fnmatchcase, parts, wanted_parts))


def locate(source: Source, files: Sequence[str]) -> Path:
    """Find the folder that holds a component, fetching it from the hub if need be.

    A local folder comes before a hub id of the same spelling. HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT and
    HF_TOKEN are honoured.

    Args:
        source: where to look.
        files: glob patterns of the files needed, relative to the component folder; `*` does not cross folders.

    Returns:
        The folder; for a hub id inside the cache.

    Raises:
        LoadError: E-REPO-… for what went wrong, E-WEIGHTS-VARIANT when the hub has no file in the variant.
    """
    subfolder = _checked_subfolder(source.subfolder)
    local = _local_folder(source.source)
    if local is not None:
        folder = local / subfolder
        if not folder.is_dir():
            inside = sorted(child.name for child in local.iterdir() if child.is_dir())
            raise LoadError(
                "E-REPO-SUBFOLDER",
                f"{local} has no folder {subfolder}.",
                f"It holds the folders {', '.join(inside[:12])}." if inside else "It holds no folders.",
                "Check the folder, or the argument subfolder.",
            )
        return folder
    name = _checked_hub_id(source)
    prefix = "" if str(subfolder) == "." else f"{subfolder}/"
    snapshot = _snapshot(source, name, [prefix + pattern for pattern in files])
    folder = snapshot / subfolder
    if not folder.is_dir() or not any(folder.iterdir()):
        raise LoadError(
            "E-REPO-SUBFOLDER",
            f"{name} has no folder {subfolder} with any of {', '.join(files)}.",
            "Either the repository is laid out otherwise, or it is only partly in the cache.",
            "Check the argument subfolder; load once with a connection to complete the cache.",
        )
    return folder


def locate_file(source: Source, name: str | None, usual: Sequence[str], argument: str = "weight_name") -> Path:
    """Find one file: `source` itself if it is a file, else `name` in that folder or hub repository.

    Args:
        source: where to look; its `subfolder` counts for folders and repositories.
        name: of the file, perhaps with folders before it. None takes the first of `usual` that is there, and in a
            local folder the only file of a kind that those are of.
        usual: names that such files have where nobody says otherwise.
        argument: what the caller calls `name`, for the messages.

    Raises:
        LoadError: E-FILE-MISSING, E-FILE-NAME when a name is needed to choose, and as `locate`.
    """
    text = str(source.source)
    path = Path(source.source).expanduser()
    if "\0" not in text and os.path.isfile(path):
        if name is not None and path.name != name:
            raise LoadError("E-FILE-NAME", f"{path} is a file, and {argument}={name!r} names another one.")
        return path
    if name is not None:
        inner = _checked_subfolder(name)
        place = replace(source, subfolder=str(_checked_subfolder(source.subfolder) / inner.parent))
        folder = locate(place, [inner.name])
        if not (folder / inner.name).is_file():
            raise LoadError("E-FILE-MISSING", f"{folder} has no file {inner.name}.", "", f"Check {argument}.")
        return folder / inner.name
    folder = locate(source, usual)
    found = [folder / one for one in usual if (folder / one).is_file()]
    if not found and _local_folder(source.source) is not None:
        endings = {PurePosixPath(one).suffix for one in usual}
        found = sorted(child for child in folder.iterdir() if child.suffix in endings and child.is_file())
        found = found if len(found) == 1 else []
    if not found:
        raise LoadError(
            "E-FILE-NAME",
            f"{folder} does not say which of its files is meant.",
            f"None is called {' or '.join(usual)}.",
            f"Name it with {argument}.",
        )
    return found[0]


def _checked_subfolder(subfolder: str | None) -> PurePosixPath:
    """A relative path that stays inside the repository."""
    text = subfolder or "."
    path = PurePosixPath(text.replace("\\", "/"))
    if ".." in path.parts or path.is_absolute() or PureWindowsPath(text).drive or "\0" in text:
        raise LoadError(
            "E-REPO-PATH", f"subfolder={subfolder!r} leaves the repository.", "", "Give a folder inside it, like unet."
        )
    return path


def _local_folder(source: str | Path) -> Path | None:
    """The local folder that `source` names, or None."""
    text = str(source)
    if not text.strip() or "\0" in text:
        raise LoadError("E-REPO-PATH", f"{source!r} is neither a folder nor a hub id.")
    path = Path(source).expanduser()
    if os.path.isfile(path):  # unlike Path.is_file, it answers for names that the system cannot hold
        raise LoadError(
            "E-REPO-FILE",
            f"{path} is a file, not a repository folder.",
            "A repository is a folder with model_index.json or config.json.",
            "Give the folder; from_single_file reads a whole model in one file.",
        )
    return path if os.path.isdir(path) else None


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id: ``organisation/name``, or a name alone as the oldest have."""
    return bool(_HUB_ID.fullmatch(text)) and not re.search(r"\.\.|--|^.{97}", text)


def _checked_hub_id(source: Source) -> str:
    """A string that can only be a hub id."""
    name = str(source.source)
    url = re.match(r"https?://[^/]+/([\w.-]+/[\w.-]+)", name)
    if url:
        raise LoadError("E-REPO-PATH", f"{name} is an address, not a hub id.", "", f"Give {url[1]!r}.")
    if isinstance(source.source, Path) or not is_hub_id(name):
        raise LoadError(
            "E-REPO-MISSING",
            f"There is no folder {name}.",
            "Nor is it a hub id (organisation/name).",
            "Check the spelling; a relative folder is looked up from the current one.",
        )
    # The hub's client opens a file of its cache by this name: an absolute one would be any file.
    if source.revision is not None and (not _REVISION.fullmatch(source.revision) or ".." in source.revision):
        raise LoadError("E-REPO-PATH", f"revision={source.revision!r} is not a branch, tag or commit.")
    return name


def _snapshot(source: Source, name: str, patterns: list[str]) -> Path:
    """The snapshot folder of a hub repository, with the wanted files in it."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    place: dict[str, Any] = {"revision": source.revision, "cache_dir": source.cache_dir, "token": source.token}
    at = f"{name} at revision {source.revision}" if source.revision else name
    failure: LoadError | None = None
    if not source.local_files_only:
        try:
            names = HfApi(token=source.token).list_repo_files(name, revision=source.revision)
            check_variant([n for n in names if any(_matches(n, p) for p in patterns)], source.variant, name)
            chosen = wanted(names, patterns, source.variant)
            return Path(snapshot_download(name, allow_patterns=chosen, **place))
        except LoadError:
            raise
        except OfflineModeIsEnabled:
            pass
        except RevisionNotFoundError:
            raise LoadError("E-REPO-REVISION", f"{name} has no revision {source.revision}.") from None
        except GatedRepoError:
            failure = LoadError(
                "E-REPO-GATED",
                f"{name} is gated: its owners let only accepted users download it.",
                "",
                "Accept the conditions on its page, then log in (hf auth login) or set HF_TOKEN.",
            )
        except RepositoryNotFoundError:
            failure = LoadError(
                "E-REPO-NOTFOUND",
                f"There is no local folder {name}, and the hub has no such repository.",
                "It may be private, renamed or misspelt.",
                "Check the spelling; for a private repository log in (hf auth login) or set HF_TOKEN.",
            )
        except Exception as error:  # connection errors have a different type in every version of the client
            failure = LoadError(
                "E-REPO-UNREACHABLE",
                f"{name} could not be fetched: {type(error).__name__}: {error}.",
                "It is not in the cache either.",
                "Check the connection and HF_ENDPOINT, or give a local folder.",
            )
            failure.__cause__ = error
    try:
        snapshot = snapshot_download(name, allow_patterns=patterns, local_files_only=True, **place)
    except LocalEntryNotFoundError as error:
        # A snapshot that lacks files of other variants or formats is fine here: readers say what they miss.
        snapshot = getattr(error, "snapshot_path", None)
        if snapshot is None:
            raise failure or LoadError(
                "E-REPO-OFFLINE",
                f"There is no local folder {name}, and {at} is not in the hub cache.",
                "Fetching is switched off (local_files_only or HF_HUB_OFFLINE).",
                "Allow the network once, set HF_HOME to the right cache, or give a local folder.",
            ) from None
    if failure is not None:
        warn("W-REPO-CACHED", f"{failure.what} The cached copy of {at} is used.", stacklevel=4)
    return Path(snapshot)
