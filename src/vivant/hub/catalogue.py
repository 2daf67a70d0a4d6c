"""What models lie in files and folders: found, and described by their headers, without reading a weight.

A file that cannot be read is described by its error, and the next one follows.
"""

import contextlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vivant.config import load_json
from vivant.errors import LoadError, VivantError
from vivant.hub.family import SD15, UNKNOWN, Kind, identify
from vivant.hub.header import Header, read_header
from vivant.hub.load import shards
from vivant.hub.remarks import Remarks, line, of_card, of_header
from vivant.hub.repo import MODEL, TRANSFORMERS, WEIGHT_FILES, pick_weights, read_weight_name

_MOST_CONFIG = 16_000_000
_BASES = ("AnimateDiffPipeline", "PIAPipeline", "StableDiffusionPipeline")
_BLOB = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")


@dataclass(frozen=True)
class Entry:
    """A model: one file, or one folder of files that belong together.

    Attributes:
        path: where it lies.
        size: bytes of its weights.
        kind: what it is.
        use: what vivant does with it.
        tensors: how many it has.
        dtypes: how many there are of each data type, in the spelling of safetensors.
        remarks: what its makers say; see there.
        parts: the networks of a repository, by the names of their folders, each with what it is.
        sha256: of a file in the hub's cache, as the hub gave it.
        header: the header of a file; of a folder that of the first file with weights.
        error: why it, or a part of it, cannot be read.
    """

    path: Path
    size: int = 0
    kind: Kind = UNKNOWN
    use: str = ""
    tensors: int = 0
    dtypes: Mapping[str, int] = field(default_factory=dict[str, int])
    remarks: Remarks = field(default_factory=Remarks)
    parts: Mapping[str, str] = field(default_factory=dict[str, str])
    sha256: str | None = None
    header: Header | None = None
    error: VivantError | None = None


def entries(paths: Iterable[Path]) -> Iterator[Entry]:
    """The models in files and folders, folders in the order of names, repositories as one entry.

    Args:
        paths: files, which are described whatever their names, and folders, which are searched for models.
    """
    for path in paths:
        for found in walk(path) if os.path.isdir(path) else (path,):
            if not os.path.isdir(found):
                yield _described(found)
            elif os.path.lexists(found / "model_index.json"):
                yield _repository(found)
            else:
                yield _component(found)


def walk(folder: Path) -> Iterator[Path]:
    """Model files below a folder, and in their place the folders that hold a repository or one of its components.

    Links to folders are followed, each folder once, so that loops end.
    """
    pending, seen = [folder], set[tuple[int, int]]()
    while pending:
        here = pending.pop()
        try:
            status = here.stat()
            names = sorted(os.listdir(here))
        except OSError:  # not ours to read, of which the entry will tell
            yield here
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        if "model_index.json" in names or ("config.json" in names and any(map(_is_network, names))):
            yield here
            continue
        folders = [name for name in names if os.path.isdir(here / name)]
        yield from (here / n for n in names if Path(n).suffix.lower() in WEIGHT_FILES and n not in folders)
        pending.extend(here / name for name in reversed(folders))


def _is_network(name: str) -> bool:
    """Whether a file is named as libraries name the weights of a component."""
    parsed = read_weight_name(name)
    return parsed is not None and parsed.stem in (MODEL, TRANSFORMERS, "pytorch_model")


def regular(path: Path) -> os.stat_result:
    """What the system knows of a file that can be read like one.

    Raises:
        LoadError: E-FILE-MISSING, E-WEIGHTS-BROKEN for a pipe, a device or what the system refuses.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise LoadError("E-FILE-MISSING", f"There is no file {path}.", "", "Check the path.") from None
    except (OSError, ValueError) as error:
        raise LoadError("E-WEIGHTS-BROKEN", f"{path} cannot be read: {error}.", "", "Check its rights.") from None
    if not stat.S_ISREG(status.st_mode):
        raise LoadError("E-WEIGHTS-BROKEN", f"{path} is not a file that holds anything.", "", "Give a file of weights.")
    return status


def _described(path: Path) -> Entry:
    """One file."""
    size = 0
    try:
        size = regular(path).st_size
        header = read_header(path)
    except VivantError as error:
        return Entry(path, size, error=error)
    kind, remarks = identify(header), of_header(header.metadata)
    return Entry(
        path,
        size,
        kind,
        use_of(kind, header),
        len(header.tensors),
        dict(Counter(stored.dtype for stored in header.tensors.values())),
        remarks,
        sha256=cached_hash(path),
        header=header,
    )


def cached_hash(path: Path) -> str | None:
    """The hash of a large file in the hub's cache, whose link leads to a file named by it; None for other files."""
    name = _blob(path)
    return name if name is not None and len(name) == 64 else None


def git_hash(path: Path) -> str | None:
    """Git's hash of a small file in the hub's cache, likewise."""
    name = _blob(path)
    return name if name is not None and len(name) == 40 else None


def _blob(path: Path) -> str | None:
    target = Path(os.path.realpath(path))
    is_blob = path.is_symlink() and target.parent.name == "blobs" and _BLOB.fullmatch(target.name)
    return target.name if is_blob else None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a component's weights: one format and variant, whole or in shards; none if there are none.

    Raises:
        LoadError: E-WEIGHTS-SHARD.
    """
    names = sorted(os.listdir(folder))
    parsed = {name: known for name in names if (known := read_weight_name(name)) is not None}
    for variant in sorted({known.variant for known in parsed.values()}, key=lambda v: v or ""):
        for stem in (MODEL, TRANSFORMERS):
            choice = pick_weights(names, variant, stem)
            if choice is not None and regular(folder / choice):
                return shards(folder, choice) if choice.endswith(".json") else [folder / choice]
    return []


def _json(path: Path) -> dict[str, Any]:
    """A configuration; one of a size that no configuration has is refused."""
    size = regular(path).st_size
    if size > _MOST_CONFIG:
        raise LoadError("E-JSON-BROKEN", f"{path} has {size:,} bytes, which no configuration has.")
    return load_json(path)


def _component(folder: Path) -> Entry:
    """A folder with one network: config.json and its weights."""
    card = of_card(folder)
    try:
        os.listdir(folder)
        config = _json(folder / "config.json")
        files = weight_files(folder)
        size = sum(regular(file).st_size for file in files)
        headers = [read_header(file) for file in files]
    except (VivantError, OSError) as error:
        return Entry(folder, remarks=card, error=_named(error, folder))
    whole = _joined(headers)
    kind = identify(whole)
    class_name = line(config.get("_class_name", ""))
    return Entry(
        folder,
        size,
        kind,
        use_of(kind, whole, class_name, config.get("conv_in_channels")),
        len(whole.tensors),
        dict(Counter(stored.dtype for stored in whole.tensors.values())),
        card,
        parts={".": class_name} if class_name else {},
        header=whole,
    )


def _joined(headers: Sequence[Header]) -> Header:
    """Several files as one."""
    tensors = {name: stored for header in headers for name, stored in header.tensors.items()}
    return Header(tensors, headers[0].metadata if headers else {})


def _named(error: Exception, path: Path) -> VivantError:
    if isinstance(error, VivantError):
        return error
    return LoadError("E-WEIGHTS-BROKEN", f"{path} cannot be read: {error}.", "", "Check its rights.")


def _repository(folder: Path) -> Entry:
    """A folder with model_index.json: all networks that it names and holds."""
    card, size, tensors = of_card(folder), 0, 0
    dtypes: Counter[str] = Counter()
    kinds: dict[str, Kind] = {}
    parts: dict[str, str] = {}
    failure, first = None, None
    try:
        index = _json(folder / "model_index.json")
    except (VivantError, OSError) as error:
        return Entry(folder, remarks=card, error=_named(error, folder))
    for name, entry in index.items():
        is_part = isinstance(entry, list) and len(entry) == 2 and all(isinstance(text, str) for text in entry)
        if not is_part or Path(name).name != name or name in ("", ".", "..") or not (folder / name).is_dir():
            continue
        parts[name] = line(entry[1])
        try:
            files = weight_files(folder / name)
            headers = [read_header(file) for file in files if regular(file)]
        except (VivantError, OSError) as error:
            failure = failure or _named(error, folder / name)
            continue
        if headers:
            header = _joined(headers)
            first = first or header
            kinds[name] = identify(header)
            size += sum(file.stat().st_size for file in files)
            tensors += len(header.tensors)
            dtypes.update(stored.dtype for stored in header.tensors.values())
    main = next((kinds[name] for name in ("transformer", "unet") if name in kinds), UNKNOWN)
    kind = Kind("model", main.family, "diffusers") if kinds else UNKNOWN
    class_name = line(index.get("_class_name", ""))
    return Entry(
        folder,
        size,
        kind,
        use_of(kind, Header({}, {}), class_name),
        tensors,
        dict(dtypes),
        card,
        parts={".": class_name, **parts} if class_name else parts,
        header=first,
        error=failure,
    )


_USES: Mapping[str, str] = {
    "model": "a base for PIA",
    "unet": "the network of a base for PIA",
    "vae": "the autoencoder of a base for PIA",
    "text encoder": "the text encoder of a base for PIA",
    "LoRA": "changes a base for PIA",
    "textual inversion": "a word for prompts of PIA",
    "IP-Adapter": "shows PIA a picture to be like",
}


def use_of(kind: Kind, header: Header, class_name: str = "", conv_in_channels: object = None) -> str:
    """What vivant does with a model, as half a sentence; empty if nothing can be told.

    Args:
        kind: what it is.
        header: its tensors.
        class_name: the class that its configuration names, which tells the family of small models.
        conv_in_channels: that field of a motion adapter's configuration.
    """
    inputs = next((s.shape[1] for name, s in header.tensors.items() if _conv_in(name) and len(s.shape) == 4), None)
    if kind.what == "motion module" or class_name == "MotionAdapter":
        if 9 in (inputs, conv_in_channels) and kind.family in (SD15, "unknown"):
            return "drives PIA"
        return "text-to-video only: PIA refuses it"
    if kind.family == "ConsisID" or class_name.startswith("ConsisID"):
        return "makes portraits (ConsisID)"
    if kind.family == "CogVideoX":
        return "changes ConsisID" if kind.what == "LoRA" else "a part of ConsisID" if kind.what == "vae" else "not used"
    if kind.what == "ControlNet":
        return "not used"
    if kind.family not in (SD15, "unknown"):
        return f"refused: it is of {kind.family}, and PIA takes {SD15}"
    if kind.what == "LoRA" and kind.layout == "AnimateDiff":
        return "changes the motion of PIA"
    return _USES.get(kind.what, "") if kind.family == SD15 or class_name in _BASES else ""


def _conv_in(name: str) -> bool:
    return name.removeprefix("module.").removeprefix("unet.") == "conv_in.weight"


def shipped() -> Path:
    """The folder of the small models that ship with the package."""
    import vivant.pocket

    return Path(vivant.pocket.__file__).parent


def hub_cache() -> Path | None:
    """The hub's cache as HF_HUB_CACHE and HF_HOME say; None where there is none."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE).expanduser()
    with contextlib.suppress(OSError):
        return folder if folder.is_dir() else None
    return None
