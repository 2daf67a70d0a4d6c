"""Weights on disk: reading without a second copy in memory, strict comparison, atomic writing."""

import json
import os
import pickle
import re
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vivant.config import load_json
from vivant.errors import LoadError, OutputError
from vivant.hub.repo import MODEL, SAFETENSORS, TRANSFORMERS, check_variant, pick_weights, read_weight_name
from vivant.hub.report import compare
from vivant.placement import pages

WEIGHTS = (f"{MODEL}*.safetensors", f"{MODEL}*.safetensors.index*.json", f"{MODEL}*.bin", f"{MODEL}*.bin.index*.json")
"""Glob patterns of the weight files of a diffusion component."""
ENCODER_WEIGHTS = tuple(
    pattern
    for stem, suffix in ((TRANSFORMERS, "safetensors"), ("pytorch_model", "bin"))
    for pattern in (f"{stem}*.{suffix}", f"{stem}*.{suffix}.index*.json")
)
"""Glob patterns of the weight files of a text or image encoder."""


def read_weights(folder: Path, variant: str | None = None, stem: str = MODEL) -> dict[str, Tensor]:
    """Read all tensors of a component folder: safetensors before pickles, whole files before shards.

    Safetensors files (and pickles in zip form) are mapped, not copied: pages are read when a tensor is used.

    Args:
        folder: component folder.
        variant: file variant such as ``"fp16"``; never replaced silently by another one.
        stem: `MODEL`, or `TRANSFORMERS` for text and image encoders.

    Raises:
        LoadError: E-WEIGHTS-VARIANT, E-WEIGHTS-MISSING, E-WEIGHTS-SHARD, E-WEIGHTS-BROKEN or E-WEIGHTS-PICKLE.
    """
    names = [child.name for child in folder.iterdir()]
    choice = pick_weights(names, variant, stem)
    if choice is None:
        ours = [n for n in names if any(pick_weights([n], p.variant, stem) for p in [read_weight_name(n)] if p)]
        check_variant(ours, variant, str(folder))
        raise LoadError(
            "E-WEIGHTS-MISSING",
            f"{folder} holds no weights.",
            f"A file {stem}.safetensors, its index, or a .bin is expected; found: {', '.join(sorted(names)[:6])}.",
            "Check that the download is complete.",
        )
    if not choice.endswith(".json"):
        return read_file(folder / choice)
    state: dict[str, Tensor] = {}
    for shard in shards(folder, choice):
        state.update(read_file(shard))
    return state


def check_no_pickle(folder: Path, variant: str | None = None) -> None:
    """Refuse a component whose weights exist as a pickle only, as `use_safetensors=True` asks.

    Raises:
        LoadError: E-REPO-PICKLE.
    """
    names = [child.name for child in folder.iterdir()] if folder.is_dir() else []
    chosen = [pick_weights(names, variant, stem) or "" for stem in (MODEL, TRANSFORMERS)]
    if any(".bin" in choice for choice in chosen):
        raise LoadError(
            "E-REPO-PICKLE",
            f"{folder} has no safetensors file, only a pickle.",
            "use_safetensors=True refuses pickles.",
            "Leave it out: pickles are read without running anything in them.",
        )


def shards(folder: Path, index: str) -> list[Path]:
    """The shard files that an index names, all inside the folder and all present."""
    table = load_json(folder / index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise LoadError("E-WEIGHTS-SHARD", f"{folder / index} has no table weight_map from tensors to files.")
    names = sorted(set(table.values()))
    outside = [name for name in names if Path(name).name != name or "\\" in name or name in ("", ".", "..")]
    if outside:
        raise LoadError("E-WEIGHTS-SHARD", f"{folder / index} names a file outside its folder: {outside[0]!r}.")
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise LoadError(
            "E-WEIGHTS-SHARD",
            f"{len(absent)} of {len(names)} weight files are missing in {folder}: {', '.join(absent[:3])}.",
            f"{index} names them.",
            "Download the repository again.",
        )
    return [folder / name for name in names]


def is_safetensors(path: Path) -> bool:
    """Whether a file is to be read as safetensors: by its name, as everything else is a pickle."""
    return path.suffix.lower() in SAFETENSORS


def read_file(path: Path) -> dict[str, Tensor]:
    """Read one flat file of tensors, ``.safetensors`` or a torch pickle, without running anything stored in it.

    Raises:
        LoadError: E-WEIGHTS-BROKEN for a damaged file, E-WEIGHTS-PICKLE for a pickle that holds more than tensors.
    """
    if is_safetensors(path):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError, ValueError) as error:
            raise broken(path, error) from None
    loaded = read_object(path)
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise LoadError("E-WEIGHTS-PICKLE", f"{path} is not a flat table of tensors.", "", "Get it as .safetensors.")
    return {str(name): value.detach() for name, value in loaded.items()}


def read_object(path: Path) -> Any:
    """What a torch pickle holds, tables in tables included, without running anything stored in it.

    Raises:
        LoadError: E-WEIGHTS-BROKEN for a damaged file, E-WEIGHTS-PICKLE for a pickle that holds more than data.
    """
    try:
        # Only the zip format of torch >= 1.6 can be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except pickle.UnpicklingError:
        raise LoadError(
            "E-WEIGHTS-PICKLE",
            f"{path} is a pickle that is damaged or holds more than tensors.",
            "Reading the latter could run code, so it was not read.",
            "Get the same weights as .safetensors.",
        ) from None
    except Exception as error:  # the interpreter of pickles lets escape whatever damaged bytes make of it
        raise broken(path, error) from None


def broken(path: Path, error: Exception) -> LoadError:
    """What to raise for a file that cannot be read: E-WEIGHTS-BROKEN, with what is known of it."""
    size = path.stat().st_size if path.is_file() else 0
    text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    pointer = size < 1024 and path.is_file() and path.read_bytes().startswith(b"version https://git-lfs")
    return LoadError(
        "E-WEIGHTS-BROKEN",
        f"{path} ({size:,} bytes) cannot be read: {text}.",
        "It is only a git-lfs pointer, not the file itself." if pointer else "It is damaged or cut short.",
        "Download it again.",
    )


def cast(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Floating tensors in `dtype`; those that have it, or all where it is None, are the same objects.

    What was read from a file only to be converted is given back at once, so that the peak is one copy, not two.
    """
    result = dict(state)
    for name, value in state.items():
        if dtype is not None and value.is_floating_point() and value.dtype != dtype:
            result[name] = value.to(dtype)
            if not value.is_meta and value.device.type == "cpu" and value.numel():
                pages.give_back(pages.spans([value]))
    return result


def check_keys(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], owner: str, origin: str) -> None:
    """Refuse tensors that do not fit a network, saying which and what the nearest names are.

    Args:
        state: what the file holds.
        expected: what the network needs (meta tensors do).
        owner: name of the network's class, for the message.
        origin: where the file came from, for the message.

    Raises:
        LoadError: E-KEYS-MISMATCH.
    """
    report = compare(state, expected)
    if not report.fits:
        raise LoadError(
            "E-KEYS-MISMATCH",
            f"The tensors of {origin or 'the checkpoint'} do not fit {owner}.",
            report.sentences(),
            "Check that config.json and the weights belong together, and that this is the right component.",
        )


def write_weights(
    folder: Path,
    state: Mapping[str, Tensor],
    variant: str | None = None,
    max_shard_size: int | str = "10GB",
    stem: str = MODEL,
) -> None:
    """Write tensors as safetensors in the published layout: one file, or shards with an index.

    Every file is written under a temporary name and renamed when complete. Older weight files of the same stem and
    variant, in whatever format, are removed afterwards, since readers could prefer them.

    Raises:
        OutputError: E-WEIGHTS-WRITE when the file system refuses, E-WEIGHTS-META for tensors without values.
    """
    valueless = [name for name, value in state.items() if value.is_meta]
    if valueless:
        raise OutputError("E-WEIGHTS-META", f"{len(valueless)} tensors have no values, such as {valueless[0]}.")
    shards = list(_split(state, shard_bytes(max_shard_size)))
    dotted = f".{variant}" if variant else ""
    written: dict[str, str] = {}  # final name -> temporary name
    mark = uuid.uuid4().hex[:8]
    try:
        for i, names in enumerate(shards, start=1):
            part = f"-{i:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            final = f"{stem}{dotted}{part}.safetensors"
            written[final] = f".{final}.{mark}"
            save_file(own_storage(state, names), folder / written[final], metadata={"format": "pt"})
        if len(shards) > 1:
            index = f"{stem}.safetensors.index{dotted}.json"
            written[index] = f".{index}.{mark}"
            table = {name: final for final, names in zip(list(written), shards, strict=False) for name in names}
            size = sum(value.nbytes for value in state.values())
            text = json.dumps({"metadata": {"total_size": size}, "weight_map": table}, indent=2, sort_keys=True)
            (folder / written[index]).write_text(text + "\n", encoding="utf-8")
        for final, temporary in written.items():
            os.replace(folder / temporary, folder / final)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            "E-WEIGHTS-WRITE", f"The weights could not be written to {folder}: {error}.", "", "Check space and rights."
        ) from error
    finally:
        for temporary in written.values():
            (folder / temporary).unlink(missing_ok=True)
    for child in folder.iterdir():
        parsed = read_weight_name(child.name)
        if parsed and parsed.variant == variant and child.name not in written and _same_stem(parsed.stem, stem):
            child.unlink()


def _same_stem(found: str, stem: str) -> bool:
    return found == stem or (stem == TRANSFORMERS and found == "pytorch_model")


def shard_bytes(size: int | str) -> int:
    """A size such as 5_000_000, ``"10GB"`` or ``"200MiB"`` in bytes.

    Raises:
        OutputError: E-SHARD-SIZE.
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if match is None or match[2].upper() not in units or float(match[1]) <= 0:
        raise OutputError("E-SHARD-SIZE", f"max_shard_size={size!r} is not a size.", "", 'Give bytes, or "10GB".')
    return int(float(match[1]) * units[match[2].upper()])


def _split(state: Mapping[str, Tensor], limit: int) -> Iterator[list[str]]:
    """Consecutive groups of names of at most `limit` bytes; one tensor may exceed it."""
    group: list[str] = []
    size = 0
    for name, value in state.items():
        if group and size + value.nbytes > limit:
            yield group
            group, size = [], 0
        group.append(name)
        size += value.nbytes
    yield group


def own_storage(state: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU that share no memory, as the format demands; copies only where needed."""
    seen: set[int] = set()
    result = {}
    for name in names:
        value = state[name].detach().to("cpu").contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        result[name] = value
    return result
