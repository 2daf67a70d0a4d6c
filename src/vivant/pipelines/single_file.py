"""Pipelines from one file with the weights of a whole model, as Civitai's users share them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import dtype as Dtype

from vivant.config import load_json
from vivant.errors import InputError, LoadError
from vivant.hub.keywords import without_loading
from vivant.hub.model import pick_dtype, usual_dtype
from vivant.hub.repo import Source, locate
from vivant.hub.single_file import KEYWORDS, SD15, Found, Names, SingleFile, look_for, open_file, prediction, report_on
from vivant.pipelines import components as parts
from vivant.pipelines.base import DiffusionPipeline
from vivant.pipelines.declared import check_keywords, declared_by

P = TypeVar("P", bound=DiffusionPipeline)


def from_single_file(
    cls: type[P],
    pretrained_model_link_or_path: str | Path,
    *,
    config: str | Path | None = None,
    torch_dtype: Dtype | None = None,
    dtype: Dtype | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    verify: bool = False,
    **given: Any,
) -> P:
    """Load a pipeline from one file of a whole Stable Diffusion 1.5 model.

    UNet, VAE and text encoder come from the file, as far as they are not given; configurations and the tokenizer ship
    with the package. Weights in the data type asked for are mapped, not copied: they are read when they are used. What
    was read is in `report` and `notes`.

    Args:
        pretrained_model_link_or_path: a ``.safetensors`` file or a pickle of tensors (``.ckpt``, ``.pt``) on disk, or
            one of the hub, ``"organisation/name/blob/main/file.safetensors"`` or its address.
        config: a repository, folder or hub id, whose configurations, tokenizer and scheduler to use instead of those of
            Stable Diffusion 1.5.
        torch_dtype: data type of all weights; float32 if not given. `dtype` is the newer name.
        dtype: the same.
        revision: branch, tag or commit on the hub.
        cache_dir: hub cache; HF_HOME and HF_HUB_CACHE are honoured.
        local_files_only: never touch the network; HF_HUB_OFFLINE does the same.
        token: hub token; HF_TOKEN is honoured.
        verify: look for NaN in all values, not only where they are found quickly; see `vivant.hub.finite`.
        given: components by name, such as the `motion_adapter`, in place of those of the file, and options of this
            pipeline. Of diffusers' other keywords those are accepted that change nothing here; `original_config` is
            refused.

    Raises:
        LoadError: E-FILE-MISSING and E-REPO-… for what is not there, E-WEIGHTS-… for damaged files and NaN,
            E-FILE-FAMILY and E-FILE-KIND for a file of something else, E-FILE-PART for one that lacks a component which
            is not given either, E-KEYS-MISMATCH for tensors that do not fit.
        InputError: E-ARG-UNKNOWN, E-ARG-VALUE, E-COMPONENT-TYPE; and whatever the constructor refuses, before weights
            are read.
    """
    declared = declared_by(cls)
    dtype = pick_dtype(torch_dtype, dtype) or usual_dtype()
    if given.get("original_config") or given.get("original_config_file"):
        raise InputError(
            "E-ARG-VALUE",
            "original_config is not read.",
            "Configurations in YAML are those of other programs.",
            "Leave it out for Stable Diffusion 1.5, or give config=… a repository.",
        )
    given = without_loading(given, KEYWORDS)
    check_keywords(cls, given)
    overrides = {name: cls._checked(name, value) for name, value in given.items() if name in declared.components}
    options = {name: value for name, value in given.items() if name in declared.options}

    place = Source("", None, None, revision, cache_dir, local_files_only, token)
    file = open_file(pretrained_model_link_or_path, place)
    file.refuse("model", "unet")
    folder = SD15 if config is None else _configurations(config, place, list(declared.components))
    listed, wanted, notes = cls._wanted(folder, config or pretrained_model_link_or_path, overrides, options)
    found = {name: _look_for(file, name, entry) for name, entry in wanted.items() if parts.has_weights(entry)}

    loaded, names = dict.fromkeys(listed), Names()
    for name, entry in wanted.items():
        if name not in found:
            loaded[name] = _small(folder, name, entry, dtype)
            continue
        values = load_json(folder / name / "config.json")
        loaded[name], used = parts.load_found(found[name], entry, values, dtype, verify=verify)
        names |= used
    if "scheduler" in wanted:
        loaded["scheduler"], more = asked_for(file, loaded["scheduler"])
        notes += more
    pipeline = cls(**{**loaded, **overrides, **options})
    pipeline.report = report_on(file, names)
    pipeline.notes += [pipeline.report.sentence(), *notes]
    return pipeline


def _configurations(config: str | Path, place: Source, names: list[str]) -> Path:
    """The folder of a repository with its small files."""
    source = replace(place, source=config, revision=None)
    return locate(source, ["model_index.json", *(f"{name}/{file}" for name in names for file in parts.SMALL)])


def _look_for(file: SingleFile, name: str, entry: parts.Entry) -> Found:
    """Where the file has a network (E-FILE-PART if it has not)."""
    part = parts.part_of(entry)
    if part is None or part.name != name:
        raise LoadError("E-FILE-PART", f"{file.origin} has no {name} ({entry.class_name}).", "", f"Pass {name}=…")
    return look_for(file, part)


def _small(folder: Path, name: str, entry: parts.Entry, dtype: Dtype) -> Any:
    """A component without weights."""
    if folder == SD15 and name == "tokenizer":
        from vivant.text.clip import shipped_tokenizer

        return shipped_tokenizer(folder / name)
    return parts.load_component(folder / name, entry, None, dtype, {})


def asked_for(file: SingleFile, scheduler: Any) -> tuple[Any, list[str]]:
    """The scheduler, or where a file says that its model predicts something else than noise, one that can do that."""
    fields: Mapping[str, Any] = prediction(file.header)
    if not fields:
        return scheduler, []
    from vivant.schedulers import DDIMScheduler

    said = ", ".join(f"{name}={value}" for name, value in fields.items())
    note = f"The file asks for {said}: the scheduler is DDIMScheduler with that."
    return DDIMScheduler.from_config(scheduler.config, **fields), [note]
