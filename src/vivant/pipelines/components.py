"""The components of a repository: what `model_index.json` says, which class reads each, and how each is written."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vivant.config import load_json
from vivant.errors import LoadError
from vivant.hub.load import ENCODER_WEIGHTS, WEIGHTS, read_weights
from vivant.hub.repo import check_variant, variants
from vivant.hub.single_file import TEXT, Found, Names, Part

if TYPE_CHECKING:
    import torch

SMALL = ("*.json", "*.txt", "*.model")
"""Glob patterns of what a component may need beside weights."""
FILES = (*WEIGHTS, *ENCODER_WEIGHTS, *SMALL)
"""Glob patterns of all files that a component may need."""

_MODELS = {
    "AutoencoderKL": "vivant.vae.image",
    "AutoencoderKLCogVideoX": "vivant.vae.video",
    "ConsisIDTransformer3DModel": "vivant.consisid.transformer",
    "MotionAdapter": "vivant.pia.motion",
    "UNet2DConditionModel": "vivant.pia.unet",
    "UNetMotionModel": "vivant.pia.unet",
}
_TEXT_ENCODERS = {"CLIPTextModel": "vivant.text.clip", "T5EncoderModel": "vivant.text.t5"}
_IMAGE_ENCODERS = {"CLIPVisionModelWithProjection": "vivant.vision"}
_IMAGE_PROCESSORS = dict.fromkeys(
    ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor"), "vivant.vision"
)
_TOKENIZERS = {
    **dict.fromkeys(("CLIPTokenizer", "CLIPTokenizerFast"), "vivant.text.clip"),
    **dict.fromkeys(("T5Tokenizer", "T5TokenizerFast"), "vivant.text.t5"),
}


class Entry(NamedTuple):
    """One component of a `model_index.json`: a library and a class in it, as diffusers names them."""

    library: str
    class_name: str

    @property
    def full_name(self) -> str:
        """As it is imported."""
        return ".".join(self)


def entries(index: Mapping[str, Any]) -> dict[str, Entry | None]:
    """The components that a `model_index.json` lists; None where it lists one as absent."""
    pairs = {k: v for k, v in index.items() if not k.startswith("_") and isinstance(v, list) and len(v) == 2}
    return {name: Entry(*pair) if all(isinstance(part, str) for part in pair) else None for name, pair in pairs.items()}


def is_readable(entry: Entry) -> bool:
    """Whether we have a class for a component."""
    known = entry.class_name in (*_MODELS, *_TEXT_ENCODERS, *_IMAGE_ENCODERS, *_IMAGE_PROCESSORS, *_TOKENIZERS)
    return known or entry.class_name.endswith("Scheduler")


def check_readable(name: str, entry: Entry) -> None:
    """Refuse a component that we have no class for.

    Raises:
        LoadError: E-COMPONENT-CLASS.
    """
    if not is_readable(entry):
        raise LoadError(
            "E-COMPONENT-CLASS",
            f"{name} is a {entry.full_name}, which vivant cannot read.",
            "",
            f"Load the component yourself and pass it as {name}=…, or use another repository.",
        )


def read_index(cls: type, folder: Path) -> dict[str, Any]:
    """`model_index.json`, or why there is none."""
    if not (folder / "model_index.json").is_file():
        single = (folder / "config.json").is_file()
        raise LoadError(
            "E-REPO-INDEX",
            f"{folder} is not a repository of a pipeline: model_index.json is missing.",
            "It holds a single component." if single else "",
            f"Load it with its own class and pass it to {cls.__name__}." if single else "Check the folder.",
        )
    return load_json(folder / "model_index.json")


def load_component(
    folder: Path, entry: Entry, variant: str | None, dtype: "torch.dtype | None", options: Mapping[str, Any]
) -> Any:
    """Read one component.

    Args:
        folder: its folder.
        entry: its class, one that is readable.
        variant: file variant of its weights.
        dtype: data type of its weights.
        options: further keywords of its class.

    Raises:
        LoadError: whatever its reader finds wrong.
    """
    name = entry.class_name
    if name in _MODELS:
        model = getattr(importlib.import_module(_MODELS[name]), name)
        return model.from_pretrained(folder, variant=variant, dtype=dtype, **options)
    if name.endswith("Scheduler"):
        from vivant.schedulers import scheduler_class

        return scheduler_class(name).from_pretrained(folder)
    if name in _TEXT_ENCODERS:
        return importlib.import_module(_TEXT_ENCODERS[name]).load_text_encoder(folder, variant, dtype)
    if name in _IMAGE_ENCODERS:
        return importlib.import_module(_IMAGE_ENCODERS[name]).load_image_encoder(folder, variant, dtype)
    if name in _IMAGE_PROCESSORS:
        return importlib.import_module(_IMAGE_PROCESSORS[name]).CLIPImageProcessor.from_pretrained(folder)
    return importlib.import_module(_TOKENIZERS[name]).load_tokenizer(folder, name)


def has_weights(entry: Entry) -> bool:
    """Whether a component is a network."""
    return entry.class_name in (*_MODELS, *_TEXT_ENCODERS)


def part_of(entry: Entry) -> Part | None:
    """How single files hold a network; None for one that they do not hold."""
    if entry.class_name in _MODELS:
        return getattr(importlib.import_module(_MODELS[entry.class_name]), entry.class_name).part
    return TEXT if entry.class_name == "CLIPTextModel" else None


def load_found(
    found: Found, entry: Entry, config: Mapping[str, Any], dtype: "torch.dtype | None", *, verify: bool = False
) -> tuple[Any, Names]:
    """Read one component from a single file.

    Args:
        found: where it is.
        entry: its class.
        config: its configuration.
        dtype: data type of its weights; None keeps that of the file.
        verify: look for NaN in all values.

    Returns:
        The component, and the names of the file that it used.

    Raises:
        LoadError: E-KEYS-MISMATCH, E-KEYMAP, E-WEIGHTS-NAN.
    """
    if entry.class_name in _MODELS:
        model = getattr(importlib.import_module(_MODELS[entry.class_name]), entry.class_name)
        return model.from_found(found, config, dtype, verify=verify)
    text = importlib.import_module(_TEXT_ENCODERS[entry.class_name])
    return text.text_encoder_of(found, config, dtype, verify=verify)


def read_stored(folder: Path, entry: Entry, variant: str | None) -> "tuple[Mapping[str, Any], dict[str, torch.Tensor]]":
    """The configuration of a network in a repository and its tensors, as they are stored but under their present names.

    Raises:
        LoadError: whatever its reader finds wrong.
    """
    config = load_json(folder / "config.json")
    module = importlib.import_module({**_MODELS, **_TEXT_ENCODERS}[entry.class_name])
    if entry.class_name in _TEXT_ENCODERS:
        return config, module.read_state(folder, variant, module.meta_text_encoder(config, str(folder)))
    model = getattr(module, entry.class_name).from_state(config, read_weights(folder, variant), origin=str(folder))
    return model.config, dict(model.state_dict())


def component_variants(folder: Path, names: list[str], variant: str | None) -> tuple[dict[str, str | None], list[str]]:
    """Which variant of each component to read: the one asked for, or plain weights where only others have it.

    Returns:
        Component to variant, and a note for every component that falls back to its plain weights.

    Raises:
        LoadError: E-WEIGHTS-VARIANT when no component has the variant.
    """
    files = {name: [child.name for child in (folder / name).iterdir()] for name in names if (folder / name).is_dir()}
    check_variant([file for listed in files.values() for file in listed], variant, str(folder))
    chosen: dict[str, str | None] = dict.fromkeys(names, variant)
    notes = []
    for name, listed in files.items():
        present = variants(listed)
        if variant is not None and variant not in present and None in present:
            chosen[name] = None
            notes.append(f'{name} has no variant "{variant}"; its plain weights were read.')
    return chosen, notes


def save_component(component: Any, folder: Path, variant: str | None, max_shard_size: int | str) -> None:
    """Write one component in the published layout."""
    from vivant.hub.model import Model

    name = type(component).__name__
    if isinstance(component, Model):
        component.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
    elif name in _TEXT_ENCODERS:
        text = importlib.import_module(_TEXT_ENCODERS[name])
        text.save_text_encoder(component, folder, variant, max_shard_size)
    elif name in _IMAGE_ENCODERS:
        vision = importlib.import_module(_IMAGE_ENCODERS[name])
        vision.save_image_encoder(component, folder, variant, max_shard_size)
    elif name in _TOKENIZERS:
        importlib.import_module(_TOKENIZERS[name]).save_tokenizer(component, folder)
    else:
        component.save_pretrained(folder)


def entry_of(component: Any) -> Entry:
    """The library and class under which diffusers, and we, read a component back."""
    library = type(component).__module__.partition(".")[0]
    if library != "vivant":
        return Entry(library, type(component).__name__)
    if type(component).__name__ in _IMAGE_PROCESSORS:
        return Entry("transformers", type(component).__name__)
    return Entry("diffusers", component.config.get("_class_name", type(component).__name__))
