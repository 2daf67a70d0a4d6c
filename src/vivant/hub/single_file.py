"""One file with the weights of one network or of a whole model, in the layouts of other programs.

The header is read first: a file of another family or kind is refused by it. Tensors are mapped, not copied, and given
to networks under their own names by the tables in `vivant.hub.keymaps`.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivant.config import load_json
from vivant.errors import LoadError, warn
from vivant.hub.family import Kind, What, identify, refuse
from vivant.hub.header import Header, flat, header_of, read_header
from vivant.hub.keymaps import Keymap, animatediff, inverted, ldm
from vivant.hub.load import is_safetensors, read_file, read_object
from vivant.hub.repo import Source, locate, locate_file, read_weight_name
from vivant.hub.report import LoadReport, compare

SD15 = Path(__file__).parent / "sd15"
"""A repository of Stable Diffusion 1.5 without weights: the published configurations, and what makes the tokenizer."""

KEYWORDS: dict[str, tuple[Any, ...]] = {
    "disable_mmap": (None, False),
    "force_download": (None, False),
    "proxies": (None,),
    "low_cpu_mem_usage": (None, True),
    "device_map": (None,),
    "use_safetensors": (None,),
    "original_config": (None,),
    "original_config_file": (None,),
    "load_safety_checker": (None, False),
}
"""Keywords of diffusers' `from_single_file` and the values that change nothing here."""

_LINK = re.compile(
    r"(?:https?://)?(?P<host>huggingface\.co/|hf\.co/)?(?P<repo>[\w.-]+/[\w.-]+)/"
    r"(?:(?:blob|resolve)/(?P<revision>[^/]+)/)?(?P<file>[^?#]+)(?:\?download=true)?"
)


# ----------------------------------------------------------------------------------------------- which file


def find(link: str | Path, place: Source) -> Path:
    """A file on disk, or one of the hub in its cache, fetched if need be.

    Args:
        link: a path, ``"organisation/name/blob/main/file.safetensors"``, the same without ``blob/main``, or its address
            at huggingface.co.
        place: revision, cache, token; its `source` is not used. A revision in the link comes first.

    Raises:
        LoadError: E-FILE-MISSING for what is neither, E-REPO-FOLDER for a folder, E-REPO-… of the hub.
    """
    text = str(link)
    if os.path.isfile(text):
        return Path(text)
    if os.path.isfile(home := os.path.expanduser(text)):
        return Path(home)
    if os.path.isdir(home):
        raise LoadError(
            "E-REPO-FOLDER",
            f"{text} is a folder, and one file of weights is wanted.",
            "",
            "A repository folder is loaded with from_pretrained.",
        )
    match = None if isinstance(link, Path) else _LINK.fullmatch(text)
    if match is None or ("://" in text and not match["host"]) or ".." in match["file"].split("/"):
        raise LoadError(
            "E-FILE-MISSING",
            f"There is no file {text}.",
            "Nor is it a file of the hub (organisation/name/blob/main/file.safetensors).",
            "Check the spelling; from other sites download the file first.",
        )
    parsed = read_weight_name(Path(match["file"]).name)
    revision, variant = match["revision"] or place.revision, parsed.variant if parsed else None
    source = replace(place, source=match["repo"], subfolder=None, revision=revision, variant=variant)
    return locate_file(source, match["file"], (), "the name of the file")


@dataclass(frozen=True)
class SingleFile:
    """A file of weights whose header has been read.

    Attributes:
        origin: its path, for messages.
        header: names, shapes and types.
        kind: what it is, by these.
        read: reads its tensors.
    """

    origin: str
    header: Header
    kind: Kind
    read: Callable[[], Mapping[str, Tensor]]

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors; those of safetensors files, and of pickles in zip form, are read from disk when used."""
        return self.read()

    def refuse(self, *kinds: What) -> None:
        """Refuse anything but these kinds of files of Stable Diffusion 1.5 (E-FILE-KIND, E-FILE-FAMILY)."""
        refuse(Path(self.origin), self.kind, kinds)


def open_file(source: str | Path | Mapping[str, Tensor], place: Source) -> SingleFile:
    """Find a file and read its header. Tensors in a table are taken as they are.

    Raises:
        LoadError: as `find`, E-WEIGHTS-BROKEN, E-WEIGHTS-PICKLE.
    """
    if isinstance(source, Mapping):
        header = header_of(source)
        return SingleFile("the table of tensors", header, identify(header), lambda: source)
    path = find(source, place)
    if is_safetensors(path):
        header = read_header(path)
        return SingleFile(str(path), header, identify(header), lambda: read_file(path))
    tensors = dict(flat(read_object(path), path))
    header = header_of(tensors)
    return SingleFile(str(path), header, identify(header), lambda: tensors)


# ---------------------------------------------------------------------------------------- networks in a file


@dataclass(frozen=True)
class Layout:
    """One way in which a network's tensors are named.

    Attributes:
        mark: a name, behind the prefix, that a file in this layout has.
        prefix: what all its names begin with.
        keymap: the table for a configuration and a prefix; None where names are ours.
    """

    mark: str
    prefix: str
    keymap: Callable[[Mapping[str, Any], str], Keymap] | None = None


@dataclass(frozen=True)
class Part:
    """A network as files hold it.

    Attributes:
        name: its folder in a repository.
        title: its name in sentences.
        kinds: what kinds of files hold it.
        layouts: tried in order.
        config: its configuration from the header, the prefix given, where none is.
    """

    name: str
    title: str
    kinds: tuple[What, ...]
    layouts: tuple[Layout, ...]
    config: Callable[[Header, str], Mapping[str, Any]]

    def layout(self, header: Header) -> Layout | None:
        """The layout that a file has this network in; None if it has none."""
        return next((one for one in self.layouts if one.prefix + one.mark in header.tensors), None)


def shipped(name: str) -> Callable[[Header, str], Mapping[str, Any]]:
    """The published configuration of a component of Stable Diffusion 1.5, whatever the file."""
    return lambda header, prefix: load_json(SD15 / name / "config.json")


def _layouts(mark: str, prefixes: tuple[str, ...], keymap: Any = None) -> tuple[Layout, ...]:
    return tuple(Layout(mark, prefix, keymap) for prefix in prefixes)


UNET = Part(
    "unet",
    "UNet",
    ("model", "unet"),
    _layouts("input_blocks.0.0.weight", (ldm.UNET, ""), ldm.unet)
    + _layouts("down_blocks.0.resnets.0.conv1.weight", ("",)),
    shipped("unet"),
)
VAE = Part(
    "vae",
    "VAE",
    ("model", "vae"),
    _layouts("encoder.down.0.block.0.conv1.weight", (ldm.VAE, ""), ldm.vae)
    + _layouts("encoder.down_blocks.0.resnets.0.conv1.weight", (ldm.VAE, "")),
    shipped("vae"),
)
TEXT = Part(
    "text_encoder",
    "text encoder",
    ("model", "text encoder"),
    _layouts(
        "embeddings.token_embedding.weight",
        (ldm.TEXT, "cond_stage_model.transformer.", "text_model.", ""),
        ldm.text,
    ),
    shipped("text_encoder"),
)
MOTION = Part(
    "motion_adapter",
    "motion modules",
    ("motion module",),
    _layouts(
        "down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight", animatediff.PREFIXES, animatediff.motion
    )
    + _layouts("down_blocks.0.motion_modules.0.proj_in.weight", ("",)),
    animatediff.read_config,
)


PARTS = (UNET, VAE, TEXT, MOTION)
LEFTOVERS = Keymap("any", (), ldm.DROP)
"""What trainings leave in files beside the networks."""


@dataclass(frozen=True)
class Found:
    """One network in one file.

    Attributes:
        file: the file.
        part: the network.
        layout: how the file names its tensors.
    """

    file: SingleFile
    part: Part
    layout: Layout

    def config(self) -> Mapping[str, Any]:
        """The configuration where none is given."""
        return self.part.config(self.file.header, self.layout.prefix)

    def state(self, network: Any, config: Mapping[str, Any], owner: str) -> tuple[dict[str, Tensor], "Names"]:
        """The tensors of the network under its own names, compared with it in the file's words.

        Args:
            network: on the meta device; its `published_names`, if it has that, translates older names.
            config: its configuration.
            owner: its class, for messages.

        Returns:
            The tensors, and the names of the file that were used and left aside.

        Raises:
            LoadError: E-KEYS-MISMATCH, E-KEYMAP.
        """
        prefix, expected = self.layout.prefix, network.state_dict()
        drops = LEFTOVERS.drops
        twins: dict[str, str] = {}
        if self.layout.keymap is None:
            table = {ours: prefix + ours for ours in expected}
            names = {name: name.removeprefix(prefix) for name in self.file.header.tensors}
        else:
            keymap = self.layout.keymap(config, prefix)
            table, drops = keymap.table(expected), keymap.drops
            names = inverted(table)
            twins = {twin: name for name in table.values() if (twin := keymap.twin(name)) is not None}
        inside = [name for name in self.file.header.tensors if name.startswith(prefix)]
        aside = [name for name in inside if drops(name) or name in twins]
        left = frozenset(aside)
        used = [name for name in inside if name not in left]
        state = {names[name]: self.file.tensors[name] for name in used if name in names}
        state = getattr(network, "published_names", dict)(state)
        found = {table.get(name, name): value for name, value in state.items()}
        strangers = {name: self.file.tensors[name] for name in used if name not in names}
        report = compare({**found, **strangers}, {table[name]: value for name, value in expected.items()})
        if not report.fits:
            raise LoadError(
                "E-KEYS-MISMATCH",
                f"The tensors of {self.file.origin} do not fit {owner}.",
                report.sentences(),
                "If it is no plain Stable Diffusion 1.5 model, give its configurations as config=…",
            )
        for twin, name in twins.items():
            if twin in left and name in self.file.tensors and not _same(self.file.tensors, name, twin):
                raise LoadError(
                    "E-KEYS-MISMATCH", f"{name} and {twin} of {self.file.origin} differ.", "They should be one tensor."
                )
        return state, Names(frozenset(used), left)


@dataclass(frozen=True)
class Names:
    """Names of a file that were used, and that were left aside."""

    used: frozenset[str] = frozenset()
    aside: frozenset[str] = frozenset()

    def __or__(self, other: "Names") -> "Names":
        return Names(self.used | other.used, self.aside | other.aside)


def _same(tensors: Mapping[str, Tensor], one: str, other: str) -> bool:
    return torch.equal(tensors[one], tensors[other])


def look_for(file: SingleFile, part: Part) -> Found:
    """Where a file has a network.

    Raises:
        LoadError: E-FILE-FAMILY or E-FILE-KIND for another file, E-FILE-PART for one without this network.
    """
    file.refuse(*part.kinds)
    layout = part.layout(file.header)
    if layout is None:
        raise LoadError(
            "E-FILE-PART",
            f"{file.origin} has no {part.title}.",
            f"None of its {len(file.header.tensors)} tensors has a name of one.",
            f"Load it from elsewhere and pass it as {part.name}=…",
        )
    return Found(file, part, layout)


def report_on(file: SingleFile, names: Names) -> LoadReport:
    """What came of a file's tensors; warns (W-KEYS-UNMATCHED) when less than 90 % of those that could be are in use.

    Tensors of networks that were not asked for count as left aside.
    """
    prefixes = tuple(found.prefix for part in PARTS if (found := part.layout(file.header)) is not None)
    rest = [name for name in file.header.tensors if name not in names.used and name not in names.aside]
    known = [name for name in rest if name.startswith(prefixes) or LEFTOVERS.drops(name)]
    result = LoadReport(
        origin=file.origin,
        kind=str(file.kind),
        base=file.kind.family,
        matched=len(names.used),
        aside=tuple(sorted({*names.aside, *known})),
        unmatched=tuple(sorted(set(rest) - set(known))),
    )
    if result.share < 0.9:
        warn("W-KEYS-UNMATCHED", f"Only {result.share:.0%} of the file is in use: {result.sentence()}", stacklevel=4)
    return result


def prediction(header: Header) -> dict[str, Any]:
    """Fields of the scheduler's configuration that a file asks for.

    Trainings leave empty tensors `v_pred` and `ztsnr`, or the remark `modelspec.prediction_type`.
    """
    fields: dict[str, Any] = {}
    if "v_pred" in header.tensors or header.metadata.get("modelspec.prediction_type") == "v":
        fields["prediction_type"] = "v_prediction"
    if "ztsnr" in header.tensors:
        fields["rescale_betas_zero_snr"] = True
    return fields


def config_of(given: "str | Path | Mapping[str, Any] | None", found: Found, place: Source) -> Mapping[str, Any]:
    """The configuration of a network: what was given, a mapping or a repository or its folder, else the usual one.

    Raises:
        LoadError: E-REPO-… and E-FILE-MISSING for what cannot be read.
    """
    if given is None:
        return found.config()
    if isinstance(given, Mapping):
        return given
    name = place.subfolder or found.part.name
    source = replace(place, source=given, subfolder=None)
    if os.path.isdir(os.path.expanduser(str(given))):
        folder = locate(source, ["config.json"])
        inner = folder / name
        return load_json((inner if inner.is_dir() else folder) / "config.json")
    return load_json(locate(replace(source, subfolder=name), ["config.json"]) / "config.json")
