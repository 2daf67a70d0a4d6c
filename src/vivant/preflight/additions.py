"""Files beside a model (LoRA, textual inversions, IP-Adapters): found, and refused by their headers first."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from vivant.config import is_finite
from vivant.errors import InputError, LoadError
from vivant.hub.family import SD15, Family, What, identify, refuse
from vivant.hub.header import Header, read_header
from vivant.hub.load import ENCODER_WEIGHTS
from vivant.hub.repo import Source, locate, locate_file
from vivant.hub.single_file import find as find_file
from vivant.hub.soundness import file_hash
from vivant.lora import read as lora
from vivant.pipelines import picture_prompts
from vivant.pipelines.base import DiffusionPipeline
from vivant.preflight.repository import file_origin, is_file
from vivant.schedulers.few_steps import FewSteps, few_steps
from vivant.text import inversion

Kind = Literal["lora", "embedding", "ip_adapter"]
KINDS: tuple[str, ...] = get_args(Kind)
ENCODER = "image_encoder"
_WHAT: Mapping[Kind, What] = {"lora": "LoRA", "embedding": "textual inversion", "ip_adapter": "IP-Adapter"}
_USUAL: Mapping[Kind, Sequence[str]] = {
    "lora": lora.USUAL,
    "embedding": inversion.USUAL,
    "ip_adapter": picture_prompts.USUAL,
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
        weight: how much a LoRA or the picture of an IP-Adapter counts.
        token: the word of an embedding; None is the one that the file names.
    """

    kind: Kind
    path: Path
    sha256: str
    origin: Mapping[str, str | None]
    header: Header
    weight: float = 1.0
    token: str | None = None

    def few_steps(self) -> FewSteps | None:
        """How it wants to be sampled, if it was distilled to need few steps."""
        name = "/".join(filter(None, (self.origin.get("hub"), self.origin["file"])))
        return few_steps(name, self.header.metadata, self.header.tensors) if self.kind == "lora" else None

    def to_json(self) -> dict[str, Any]:
        """As a recipe holds it."""
        return {
            "kind": self.kind,
            "sha256": self.sha256,
            **self.origin,
            "weight": self.weight,
            "token": self.token,
        }


@dataclass(frozen=True)
class Recorded:
    """An addition that a recipe names.

    Attributes:
        kind: what it is.
        sha256: of the whole file.
        origin: name of the file, and hub repository with commit where it came from one.
        weight: how much a LoRA or the picture of an IP-Adapter counts.
        token: the word of an embedding.
        path: where it lies on this machine; None is to fetch it from the hub.
    """

    kind: Kind
    sha256: str
    origin: Mapping[str, str | None]
    weight: float
    token: str | None
    path: Path | None = None

    def find(self, place: Source, families: Sequence[Family]) -> Addition:
        """The addition itself.

        Raises:
            LoadError: E-ADDITION-OTHER for a file of other content; and as `find_additions`.
        """
        path = self.path
        if path is None:
            at = replace(place, source=self.origin["hub"] or "", revision=self.origin["revision"])
            path = locate_file(at, self.origin["file"], ())
        digest = file_hash(path)
        if digest != self.sha256:
            raise LoadError("E-ADDITION-OTHER", f"{path} is not the file that the recipe names: its content differs.")
        return Addition(
            self.kind, path, digest, self.origin, _checked(self.kind, path, place, families), self.weight, self.token
        )


Weighted = str | Path | tuple[str | Path, float] | Recorded
"""A file, or a file and its weight."""
Embedding = str | Path | tuple[str | Path, str] | Recorded
"""A file, or a file and the word that stands for it in prompts."""


def find_additions(
    loras: Iterable[Weighted],
    embeddings: Iterable[Embedding],
    ip_adapters: Iterable[Weighted],
    place: Source,
    families: Sequence[Family] = (SD15,),
) -> tuple[Addition, ...]:
    """Locate files and check what they are; those on the hub are fetched.

    Args:
        loras: files, each perhaps with its weight: a path, a folder or hub id with one such file, or a hub id with the
            path of the file in it, ``"organisation/name/file.safetensors"``.
        embeddings: likewise, each perhaps with its word.
        ip_adapters: likewise, each perhaps with its weight; beside the file is the folder `image_encoder`.
        place: cache and network settings of the run; of its source nothing is read.
        families: which models the files may be made for.

    Raises:
        LoadError: what cannot be found or read, E-FILE-KIND, E-FILE-FAMILY, E-IP-ADAPTER-ENCODER.
        InputError: E-ADDITION-WEIGHT, E-ADDITION-TYPE.
    """
    return (
        *(_weighted("lora", given, place, families) for given in loras),
        *(_embedding(given, place, families) for given in embeddings),
        *(_weighted("ip_adapter", given, place, families) for given in ip_adapters),
    )


def load_loras(pipeline: DiffusionPipeline, additions: Iterable[Addition]) -> None:
    """Put a pipeline under those that are LoRA, all at their weights."""
    weights: dict[str, float] = {}
    for addition in additions:
        if addition.kind == "lora":
            name = f"lora_{len(weights)}"
            pipeline.load_lora_weights(addition.path, adapter_name=name)
            weights[name] = addition.weight
    if weights:
        pipeline.set_adapters(list(weights), list(weights.values()))


def _weighted(kind: Kind, given: Weighted, place: Source, families: Sequence[Family]) -> Addition:
    if isinstance(given, Recorded):
        return given.find(place, families)
    source, weight = _pair(kind, given, 1.0)
    if not is_finite(weight):
        raise InputError(
            "E-ADDITION-WEIGHT", f"The weight of {source} is {weight!r}.", "", "Give a number, such as 0.8."
        )
    return replace(_find(kind, source, place, families), weight=float(weight))


def _embedding(given: Embedding, place: Source, families: Sequence[Family]) -> Addition:
    if isinstance(given, Recorded):
        return given.find(place, families)
    source, token = _pair("embedding", given, None)
    if token is not None and (not isinstance(token, str) or not token.strip()):
        raise InputError("E-ADDITION-TYPE", f"The word of {source} is {token!r}.", "", "Give a text.")
    return replace(_find("embedding", source, place, families), token=token)


def _pair(kind: Kind, given: Any, default: Any) -> tuple[Any, Any]:
    pair = tuple(given) if isinstance(given, list | tuple) else (given, default)
    if len(pair) != 2 or not isinstance(pair[0], str | Path):
        raise InputError(
            "E-ADDITION-TYPE",
            f"{given!r} is no {_WHAT[kind]}.",
            "",
            "Give a list of files, or of pairs of a file and its weight, for textual inversions its word.",
        )
    return pair


def _find(kind: Kind, source: str | Path, place: Source, families: Sequence[Family]) -> Addition:
    at = replace(place, source=source, subfolder=None, variant=None, revision=None)
    path = find_file(source, at) if is_file(source) else locate_file(at, None, _USUAL[kind], "the path of the file")
    return Addition(kind, path, file_hash(path), file_origin(path), _checked(kind, path, place, families))


def _checked(kind: Kind, path: Path, place: Source, families: Sequence[Family]) -> Header:
    """The header of a file that is what it should be, with all that it needs beside it."""
    header = read_header(path)
    refuse(path, identify(header), [_WHAT[kind]], families)
    if kind == "ip_adapter":
        _find_encoder(path, place)
    return header


def _find_encoder(path: Path, place: Source) -> None:
    """See to it that the image encoder lies beside an IP-Adapter; one of the hub is fetched (E-IP-ADAPTER-ENCODER)."""
    origin, folder = file_origin(path), path.parent / ENCODER
    if "hub" in origin:
        inner = PurePosixPath(origin["file"]).parent / ENCODER
        source = replace(place, source=origin["hub"], revision=origin["revision"], subfolder=str(inner), variant=None)
        locate(source, [*ENCODER_WEIGHTS, "config.json"])
    if not (folder / "config.json").is_file():
        raise LoadError(
            "E-IP-ADAPTER-ENCODER",
            f"There is no image encoder beside {path.name}.",
            f"The folder {folder} with CLIP's image encoder is looked for.",
            "Copy models/image_encoder of h94/IP-Adapter there.",
        )
