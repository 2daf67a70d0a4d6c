"""Between single files and repositories, in both directions, tensor for tensor as they are stored."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vivant import __version__
from vivant.config import dump_json, load_json
from vivant.errors import InputError, LoadError, OutputError
from vivant.hub.keymaps import Keymap, animatediff, ldm
from vivant.hub.load import own_storage
from vivant.hub.repo import WEIGHT_FILES, Source, is_hub_id, locate
from vivant.hub.report import LoadReport
from vivant.hub.single_file import (
    MOTION,
    SD15,
    TEXT,
    UNET,
    VAE,
    Names,
    Part,
    SingleFile,
    config_of,
    look_for,
    open_file,
    report_on,
)
from vivant.media.atomic import check_target, replacing, replacing_folder
from vivant.pipelines import components as parts
from vivant.pipelines.components import Entry
from vivant.pipelines.single_file import asked_for
from vivant.text.clip import shipped_tokenizer
from vivant.vae.image import AutoencoderKL


class Network(NamedTuple):
    """A network that files and repositories hold."""

    part: Part
    entry: Entry


NETWORKS = {
    "unet": Network(UNET, Entry("diffusers", "UNet2DConditionModel")),
    "vae": Network(VAE, Entry("diffusers", "AutoencoderKL")),
    "text_encoder": Network(TEXT, Entry("transformers", "CLIPTextModel")),
}
"""What a whole model in one file consists of, by its folders in a repository."""
ALONE = {
    "unet": NETWORKS["unet"],
    "vae": NETWORKS["vae"],
    "text encoder": NETWORKS["text_encoder"],
    "motion module": Network(MOTION, Entry("diffusers", "MotionAdapter")),
}
"""Files of one network, by what they are."""
_WHOLE = 10**15
_REPOSITORY = (*NETWORKS, "tokenizer", "scheduler", "feature_extractor", "safety_checker", "model_index.json")
_COMPONENT = ("config.json", "diffusion_pytorch_model*", "model*.safetensors*")


@dataclass(frozen=True)
class Converted:
    """What was done.

    Attributes:
        what: what was converted, such as "a model of Stable Diffusion 1.5".
        source: where it was read.
        target: where it was written.
        form: what it is now: ``"repository"``, ``"component"`` or ``"single file"``.
        tensors: how many were written.
        bytes: how many bytes they have.
        dtypes: how many there are of each data type.
        aside: names of the source that are not in the target.
        notes: what else there is to know.
    """

    what: str
    source: str
    target: str
    form: str
    tensors: int
    bytes: int
    dtypes: Mapping[str, int]
    aside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def convert(
    source: str | Path,
    target: str | Path,
    *,
    vae: str | Path | None = None,
    config: str | Path | None = None,
    variant: str | None = None,
    overwrite: bool = False,
    local_files_only: bool = False,
) -> Converted:
    """Convert a single file to a folder, or a folder to a single file.

    Whole models become repositories of `StableDiffusionPipeline`; a UNet, a VAE, a text encoder or motion modules alone
    become the folder of that component; and the reverse, in the layout of the original programs. Every tensor keeps its
    values and its data type. The target appears whole or not at all.

    Args:
        source: a file of weights, or a repository: a folder or a hub id.
        target: a folder for a file, a file ``.safetensors`` for a folder.
        vae: a file or folder of the VAE, in place of that of a file of a whole model.
        config: a repository with the configurations and the tokenizer of a file that has other sizes than Stable
            Diffusion 1.5.
        variant: which variant of a repository's weights to read.
        overwrite: replace an earlier target; of folders only those that hold nothing but a model.
        local_files_only: never touch the network.

    Raises:
        InputError: E-CONVERT-TARGET, and E-CONVERT-OPTION for an option that says nothing about the source.
        LoadError: as the readers.
        OutputError: E-OUTPUT-…, E-WEIGHTS-WRITE.
    """
    place = Source("", variant=variant, local_files_only=local_files_only)
    target = Path(target)
    if _is_folder(source):
        _refuse_options("a repository", vae=vae, config=config)
        return _to_file(source, target, place, overwrite)
    _refuse_options("a file", variant=variant)
    if target.suffix.lower() in WEIGHT_FILES:
        raise InputError(
            "E-CONVERT-TARGET", f"{target} is the name of a file.", "A single file becomes a folder.", "Name a folder."
        )
    file = open_file(source, place)
    if target.is_dir() and target.resolve() in Path(file.origin).resolve().parents:
        raise InputError(
            "E-CONVERT-TARGET", f"{source} lies in {target}, which would be replaced.", "", "Name another folder."
        )
    if file.kind.what in ALONE:
        _refuse_options("a file of one network", vae=vae)
        return _to_component(file, target, config, place, overwrite)
    return _to_repository(file, target, vae, config, place, overwrite)


def _is_folder(source: str | Path) -> bool:
    """Whether a source is a repository, on disk or on the hub, and no file."""
    path = Path(source).expanduser()
    return path.is_dir() or (not path.exists() and isinstance(source, str) and is_hub_id(source))


def _refuse_options(what: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise InputError(
                "E-CONVERT-OPTION", f"{name}={str(value)!r} says nothing about {what}.", "", "Leave it out."
            )


# ------------------------------------------------------------------------------------------ files to folders


def _to_component(
    file: SingleFile, target: Path, config: str | Path | None, place: Source, overwrite: bool
) -> Converted:
    part, entry = ALONE[file.kind.what]
    found = look_for(file, part)
    _check_folder(target, _COMPONENT, overwrite)
    network, names = parts.load_found(found, entry, config_of(config, found, place), None)
    with replacing_folder(target, overwrite=overwrite, ours="*") as folder:
        parts.save_component(network, folder, None, _WHOLE)
    report = report_on(file, names)
    return _done(report, target, "component", _tensors([network]), ())


def _to_repository(
    file: SingleFile, target: Path, vae: str | Path | None, config: str | Path | None, place: Source, overwrite: bool
) -> Converted:
    file.refuse("model")
    small = SD15 if config is None else _small_files(config, place)
    wanted = {name: network for name, network in NETWORKS.items() if name != "vae" or vae is None}
    found = {name: _look_for(file, network.part) for name, network in wanted.items()}
    _check_folder(target, _REPOSITORY, overwrite)
    components: dict[str, Any] = {} if vae is None else {"vae": _vae(vae, place)}
    names = Names()
    for name, where in found.items():
        values = load_json(small / name / "config.json")
        components[name], used = parts.load_found(where, NETWORKS[name].entry, values, None)
        names |= used
    tensors = _tensors(list(components.values()))
    index = load_json(small / "model_index.json")
    scheduler = parts.load_component(small / "scheduler", Entry(*index["scheduler"]), None, None, {})
    components["scheduler"], notes = asked_for(file, scheduler)
    components["tokenizer"] = (
        shipped_tokenizer(small / "tokenizer")
        if small == SD15
        else parts.load_component(small / "tokenizer", Entry(*index["tokenizer"]), None, None, {})
    )
    with replacing_folder(target, overwrite=overwrite, ours="*") as folder:
        for name, component in components.items():
            (folder / name).mkdir()
            parts.save_component(component, folder / name, None, _WHOLE)
        entries = {name: list(parts.entry_of(component)) for name, component in components.items()}
        dump_json(
            {**load_json(SD15 / "model_index.json"), **entries, "_vivant_version": __version__},
            folder / "model_index.json",
        )
    return _done(
        report_on(file, names),
        target,
        "repository",
        tensors,
        notes if vae is None else (*notes, f"The VAE is that of {vae}."),
    )


def _look_for(file: SingleFile, part: Part) -> Any:
    """`look_for`, with the way out for files without a VAE."""
    try:
        return look_for(file, part)
    except LoadError as error:
        if error.code != "E-FILE-PART" or part is not VAE:
            raise
        raise LoadError(error.code, error.what, error.why, "Give one: vae=…, or --vae.") from None


def _small_files(config: str | Path, place: Source) -> Path:
    files = [f"{name}/{file}" for name in (*NETWORKS, "tokenizer", "scheduler") for file in parts.SMALL]
    return locate(replace(place, source=config), ["model_index.json", *files])


def _vae(vae: str | Path, place: Source) -> Any:
    """The VAE of a file or folder, in its own data type."""
    if not _is_folder(vae):
        found = look_for(open_file(vae, place), VAE)
        return AutoencoderKL.from_found(found, found.config(), None)[0]
    folder = locate(replace(place, source=vae), parts.FILES)
    config, state = parts.read_stored(folder, NETWORKS["vae"].entry, None)
    return AutoencoderKL.from_state(config, state, origin=str(vae))


def _check_folder(target: Path, ours: Sequence[str], overwrite: bool) -> None:
    """Refuse to replace a folder that holds anything but a model."""
    if not target.is_dir():
        return check_target(target, overwrite=overwrite)
    foreign = [entry.name for entry in target.iterdir() if not any(entry.match(pattern) for pattern in ours)]
    if foreign:
        raise OutputError("E-OUTPUT-EXISTS", f"The folder {target} holds other files: {foreign[0]}, for one.")
    if any(target.iterdir()) and not overwrite:
        raise OutputError("E-OUTPUT-EXISTS", f"The folder {target} holds a model already.", "", "Allow overwriting.")
    return None


def _tensors(networks: Sequence[Any]) -> list[Tensor]:
    return [value for network in networks for value in network.state_dict().values()]


def _done(report: LoadReport, target: Path, form: str, tensors: Sequence[Tensor], notes: Sequence[str]) -> Converted:
    return Converted(
        what=report.kind,
        source=report.origin,
        target=str(target),
        form=form,
        **_counted(tensors),
        aside=(*report.aside, *report.unmatched),
        notes=tuple(notes),
    )


def _counted(tensors: Sequence[Tensor]) -> dict[str, Any]:
    dtypes = Counter(str(value.dtype).removeprefix("torch.") for value in tensors)
    return {"tensors": len(tensors), "bytes": sum(value.nbytes for value in tensors), "dtypes": dict(dtypes)}


# ------------------------------------------------------------------------------------------ folders to files


def _to_file(source: str | Path, target: Path, place: Source, overwrite: bool) -> Converted:
    if target.suffix != ".safetensors":
        raise InputError(
            "E-CONVERT-TARGET",
            f"{target} is no .safetensors file.",
            "A repository becomes one file.",
            "Give the name of a file that ends in .safetensors.",
        )
    check_target(target, overwrite=overwrite)
    files = [*parts.FILES, *(f"{name}/{file}" for name in NETWORKS for file in parts.FILES)]
    folder = locate(replace(place, source=source), ["model_index.json", *files])
    state: dict[str, Tensor] = {}
    for keymap_of, where, entry, prefix in _networks(folder):
        config, stored = parts.read_stored(where, entry, place.variant)
        state |= renamed(stored, keymap_of(config, prefix))
    whole = (folder / "model_index.json").is_file()
    notes = []
    if whole:
        length = state[f"{ldm.TEXT}embeddings.position_embedding.weight"].shape[0]
        state[f"{ldm.TEXT}embeddings.position_ids"] = torch.arange(length)[None]
        notes.append("Tokenizer, scheduler and configurations have no place in a single file.")
    with replacing(target, overwrite=overwrite) as temporary:
        try:
            save_file(own_storage(state, list(state)), temporary, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OutputError("E-WEIGHTS-WRITE", f"{target} could not be written: {error}.") from error
    what = "a model" if whole else f"a {load_json(folder / 'config.json').get('_class_name', 'text encoder')}"
    return Converted(
        what, str(source), str(target), "single file", **_counted(list(state.values())), notes=tuple(notes)
    )


def _networks(folder: Path) -> list[tuple[Any, Path, Entry, str]]:
    """The networks of a folder: the table of each, where it lies, its class, and its prefix in the file."""
    if (folder / "model_index.json").is_file():
        index = parts.entries(load_json(folder / "model_index.json"))
        for name, network in NETWORKS.items():
            found = index.get(name)
            if found is None or found.class_name != network.entry.class_name:
                held = "no such component" if found is None else f"a {found.class_name}"
                raise LoadError(
                    "E-CONVERT-SOURCE",
                    f"{folder} has {held} as {name}.",
                    f"A single file holds a {network.entry.class_name}.",
                    "Convert the Stable Diffusion 1.5 model that it was made of.",
                )
        return [
            (ldm.unet, folder / "unet", NETWORKS["unet"].entry, ldm.UNET),
            (ldm.vae, folder / "vae", NETWORKS["vae"].entry, ldm.VAE),
            (ldm.text, folder / "text_encoder", NETWORKS["text_encoder"].entry, ldm.TEXT),
        ]
    values = load_json(folder / "config.json")
    name = values.get("_class_name") or next(iter(values.get("architectures") or ["nothing known"]))
    tables = {
        "UNet2DConditionModel": (ldm.unet, ""),
        "AutoencoderKL": (ldm.vae, ""),
        "CLIPTextModel": (ldm.text, "text_model."),
        "MotionAdapter": (animatediff.motion, ""),
    }
    entry = next((network.entry for network in ALONE.values() if network.entry.class_name == name), None)
    if entry is None:
        raise LoadError(
            "E-CONVERT-SOURCE", f"{folder} holds {name}.", f"Known are {', '.join(tables)}.", "Give one of these."
        )
    table, prefix = tables[name]
    return [(table, folder, entry, prefix)]


def renamed(state: Mapping[str, Tensor], keymap: Keymap) -> dict[str, Tensor]:
    """Tensors of a network as another layout has them: names, 1x1 convolutions, tensors that it has twice.

    Raises:
        LoadError: E-KEYMAP for a network that the layout has no place for.
    """
    result: dict[str, Tensor] = {}
    for ours, theirs in keymap.table(state).items():
        value = state[ours]
        result[theirs] = value[:, :, None, None] if keymap.is_pointwise(theirs) and value.ndim == 2 else value
        if (twin := keymap.twin(theirs)) is not None:
            result[twin] = value
    return result
