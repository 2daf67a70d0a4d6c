"""Files that change a model (LoRA, textual inversions): found, and refused by their headers before models are read."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from vivant.errors import InputError
from vivant.hub.family import What, identify, refuse
from vivant.hub.header import Header, read_header
from vivant.hub.repo import Source, is_hub_id, locate_file
from vivant.preflight.repository import origin_of

Kind = Literal["lora", "embedding"]
KINDS: tuple[str, ...] = get_args(Kind)
Lora = str | Path | tuple[str | Path, float]
"""A file, or a file and its weight."""
Embedding = str | Path | tuple[str | Path, str]
"""A file, or a file and the word that stands for it in prompts."""

_WHAT: Mapping[Kind, What] = {"lora": "LoRA", "embedding": "textual inversion"}
_USUAL: Mapping[Kind, Sequence[str]] = {
    "lora": ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"),
    "embedding": ("learned_embeds.safetensors", "learned_embeds.bin"),
}


@dataclass(frozen=True)
class Addition:
    """One file that changes a model.

    Attributes:
        kind: what it is.
        path: where it lies.
        sha256: of the whole file.
        origin: for recipes: the name of the file, and the hub repository with its commit where it came from one.
        header: its header.
        weight: how much a LoRA counts.
        token: the word of an embedding; None is the one that the file names.
    """

    kind: Kind
    path: Path
    sha256: str
    origin: Mapping[str, str | None]
    header: Header
    weight: float = 1.0
    token: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As a recipe holds it."""
        return {
            "kind": self.kind,
            "sha256": self.sha256,
            **self.origin,
            "weight": self.weight,
            "token": self.token,
        }


def find_additions(loras: Iterable[Lora], embeddings: Iterable[Embedding], place: Source) -> tuple[Addition, ...]:
    """Locate files and check what they are; those on the hub are fetched.

    Args:
        loras: files, each perhaps with its weight: a path, a folder or hub id with one such file, or a hub id with the
            path of the file in it, ``"organisation/name/file.safetensors"``.
        embeddings: likewise, each perhaps with its word.
        place: cache and network settings of the run; its source is not read.

    Raises:
        LoadError: what cannot be found or read, E-FILE-KIND, E-FILE-FAMILY.
        InputError: E-LORA-WEIGHT, E-ADDITION-TYPE.
    """
    pairs = [_pair("loras", given, 1.0) for given in loras]
    found = [replace(_find("lora", source, place), weight=_weight(source, weight)) for source, weight in pairs]
    for given in embeddings:
        source, token = _pair("embeddings", given, None)
        if token is not None and (not isinstance(token, str) or not token.strip()):
            raise InputError("E-ADDITION-TYPE", f"The word of {source} is {token!r}.", "", "Give a text.")
        found.append(replace(_find("embedding", source, place), token=token))
    return tuple(found)


def _pair(name: str, given: Any, default: Any) -> tuple[Any, Any]:
    pair = tuple(given) if isinstance(given, list | tuple) else (given, default)
    if len(pair) != 2 or not isinstance(pair[0], str | Path):
        raise InputError(
            "E-ADDITION-TYPE",
            f"{name} holds {given!r}.",
            "",
            "Give a list of files, or of pairs of a file and its weight (LoRA) or word (embedding).",
        )
    return pair


def _weight(source: object, weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise InputError("E-LORA-WEIGHT", f"The weight of {source} is {weight!r}.", "", "Give a number, such as 0.8.")
    return float(weight)


def _find(kind: Kind, source: str | Path, place: Source) -> Addition:
    where, name = split(source)
    at = replace(place, source=where, subfolder=None, variant=None, revision=None)
    path = locate_file(at, name, _USUAL[kind], "the path of the file in it")
    header = read_header(path)
    refuse(path, identify(header), [_WHAT[kind]])
    origin: dict[str, str | None] = {"file": path.name}
    if not Path(where).exists():
        snapshot = next((p for p in path.parents if p.parent.name == "snapshots"), path.parent)
        known = origin_of(at, snapshot)
        origin = {"file": name or path.name, "hub": known.get("hub"), "revision": known.get("revision")}
    return Addition(kind, path, file_digest(path), origin, header)


def split(source: str | Path) -> tuple[str | Path, str | None]:
    """Folder, file or hub id, and the name of a file in the last: ``"a/b/c.safetensors"`` is c.safetensors of a/b."""
    text = str(source)
    parts = PurePosixPath(text).parts
    if isinstance(source, Path) or len(parts) < 3 or Path(source).expanduser().exists():
        return source, None
    hub_id = "/".join(parts[:2])
    return (hub_id, "/".join(parts[2:])) if is_hub_id(hub_id) else (source, None)


def file_digest(path: Path) -> str:
    """sha256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
