"""What is asked of any repository before its weights are read: that all files are there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vivant import pocket
from vivant.config import load_json
from vivant.errors import LoadError
from vivant.hub.load import WEIGHTS
from vivant.hub.repo import MODEL, TRANSFORMERS, WEIGHT_FILES, Source, locate, pick_weights
from vivant.pipelines import components as parts

CONSISID = "ConsisIDTransformer3DModel"


def is_consisid(listed: Mapping[str, parts.Entry | None]) -> bool:
    """Whether components are those of ConsisID."""
    entry = listed.get("transformer")
    return entry is not None and entry.class_name == CONSISID


def is_local(source: Source) -> bool:
    """Whether all files that there will be are there already."""
    from huggingface_hub import constants

    return Path(source.source).is_dir() or source.local_files_only or constants.HF_HUB_OFFLINE


def check_files(
    folder: Path, listed: Mapping[str, parts.Entry | None], variant: str | None, networks: Sequence[str]
) -> None:
    """Every component that will be read has its folder, its weights in some fitting variant, and its tokenizer.

    Args:
        folder: the repository.
        listed: its components.
        variant: of the weights.
        networks: those of its components that have weights.

    Raises:
        LoadError: E-REPO-SUBFOLDER, E-WEIGHTS-VARIANT, E-WEIGHTS-MISSING, E-WEIGHTS-SHARD, E-TOKENIZER.
    """
    names = [name for name in (*networks, "tokenizer") if listed.get(name)]
    folders = {name: locate(Source(folder, name), parts.FILES) for name in names}
    variants, _ = parts.component_variants(folder, names, variant)
    for name in networks:
        check_weights(folders[name], variants[name], TRANSFORMERS if name == "text_encoder" else MODEL)
    entry = listed["tokenizer"]
    if entry is not None:
        parts.load_component(folders["tokenizer"], entry, None, None, {})


def check_weights(folder: Path, variant: str | None, stem: str) -> None:
    """Weights are there, in the variant or plain, and with an index every file that it names.

    Raises:
        LoadError: E-WEIGHTS-MISSING, E-WEIGHTS-SHARD.
    """
    names = [child.name for child in folder.iterdir()]
    choice = pick_weights(names, variant, stem) or pick_weights(names, None, stem)
    if choice is None:
        raise LoadError(
            "E-WEIGHTS-MISSING",
            f"{folder} holds no weights{f' in the variant {variant}' if variant else ''}.",
            f"Found: {', '.join(sorted(names)[:6])}.",
            f"One of {', '.join(WEIGHTS)} is expected; check that the download is complete.",
        )
    table = load_json(folder / choice).get("weight_map") if choice.endswith(".json") else None
    absent = sorted(set(map(str, table.values())) - set(names)) if isinstance(table, dict) else []
    if absent:
        raise LoadError(
            "E-WEIGHTS-SHARD",
            f"{len(absent)} weight files are missing in {folder}: {', '.join(absent[:3])}.",
            f"{choice} names them.",
            "Download the repository again.",
        )


def is_file(source: str | Path) -> bool:
    """Whether a source is one file of weights, rather than a folder or a repository, by the ending of its name."""
    path = Path(source).expanduser()
    return path.suffix.lower() in WEIGHT_FILES and not path.is_dir()


def file_origin(path: Path) -> dict[str, Any]:
    """Where one file comes from, for a recipe: its place on the hub with the commit if it is in the cache, its name."""
    for folder in path.parents:
        cached = folder.parent
        if cached.name == "snapshots" and cached.parent.name.startswith("models--"):
            hub_id = cached.parent.name.removeprefix("models--").replace("--", "/")
            return {"file": path.relative_to(folder).as_posix(), "hub": hub_id, "revision": folder.name}
    return {"file": path.name}


def origin_of(source: Source, folder: Path) -> dict[str, Any]:
    """Where a model comes from, for a recipe: a hub id with its commit; of folders and shipped models the name."""
    if Path(source.source).exists():
        place = Path(source.source).resolve()
        return {"shipped" if place.parent == pocket.FOLDER.resolve() else "folder": place.name}
    commit = folder.name if folder.parent.name == "snapshots" else source.revision
    return {"hub": str(source.source), "revision": commit}
