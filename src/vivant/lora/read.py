"""From a file of LoRA to the changes of a pipeline's networks, with a report; nothing of a pipeline is touched.

A name is taken apart into a layer and a role (`lora_up`, `hada_w1_a`, `alpha`, …). Layers are looked up in one table
of all spellings (`vivant.lora.names`), so that no layout has to be recognised first.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vivant.config import is_finite
from vivant.errors import LoadError, warn
from vivant.hub.family import Family, identify, refuse
from vivant.hub.finite import check_finite
from vivant.hub.header import Header, flat, header_of, read_header
from vivant.hub.load import is_safetensors, read_file, read_object
from vivant.hub.report import LoadReport
from vivant.lora.change import Change, Decomposed, Full, Hadamard, Kronecker, LowRank, fits, tensors_of
from vivant.lora.names import TEXT_PREFIXES, Layer, spellings

_ROLES = {
    "down": r"lora_down|lora_A(?:\.\w+)?|lora\.down|lora_linear_layer\.down",
    "up": r"lora_up|lora_B(?:\.\w+)?|lora\.up|lora_linear_layer\.up",
    "mid": r"lora_mid",
    "alpha": r"alpha",
    "by_output": r"lora_magnitude_vector(?:\.\w+)?",
    "dora_scale": r"dora_scale",
    **{name: rf"hada_{name}(?:\.\w+)?" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{name}": rf"lokr_{name}(?:\.\w+)?" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    "diff": r"diff",
    "diff_b": r"diff_b",
}
_NAMES = {role: re.compile(rf"(.+?)[._](?:{pattern})(?:\.weight)?") for role, pattern in _ROLES.items()}
_UNUSABLE = {
    "OFT": r"\.(oft_blocks|oft_diag|oft_R(\.\w+)?|boft_R)",
    "(IA)^3": r"\.(on_input|ia3_l)",
    "GLoRA": r"\.(a1|a2|b1|b2)\.weight",
    "changes of normalisations": r"\.(w_norm|b_norm)",
    "LoRA of embeddings": r"\.lora_embedding_[AB]",
    "LoRA with biases": r"\.lora_[AB](\.\w+)?\.bias|\.lora_(up|down)\.bias",
    "a scalar beside its matrices": r"\.scalar",
    "quantised LoRA": r"\.(absmax|quant_state.*)",
}
_ASIDE = re.compile(r"bundle_emb\..*|.*position_ids")
USUAL = tuple(
    f"{stem}.{ending}"
    for ending in ("safetensors", "bin")
    for stem in ("pytorch_lora_weights", "adapter_model", "diffusion_pytorch_model")
)
"""Names of files of LoRA where nobody gives one: those of diffusers, of peft, and of converted motion LoRA."""


@dataclass(frozen=True)
class LoraFile:
    """A file, read: tensors by name and the remarks of whoever wrote it.

    Attributes:
        origin: its path, for messages.
        header: names and shapes.
        tensors: mapped where that is possible.
        settings: rank and alpha where they stand beside the tensors, see `_settings`.
    """

    origin: str
    header: Header
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]


Changes = Mapping[str, Change]
"""Names of a network's parameters to what is added to them."""


def open_lora(source: Path | Mapping[str, Tensor], alphas: Mapping[str, float] | None = None) -> LoraFile:
    """Read a file, or take a table of tensors.

    Args:
        source: a ``.safetensors`` file, a pickle of tensors, or tensors by name.
        alphas: diffusers' `network_alphas`: further ``<layer>.alpha``, for a table.

    Raises:
        LoadError: E-WEIGHTS-BROKEN, E-WEIGHTS-PICKLE, E-LORA-PARTS for a table of something else.
    """
    if isinstance(source, Mapping):
        if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in source.items()):
            raise LoadError("E-LORA-PARTS", "The table of a LoRA holds something else than tensors by name.")
        tensors = dict(source)
        return LoraFile("the table of tensors", header_of(tensors), tensors, {"network_alphas": alphas or {}})
    if is_safetensors(source):
        header = read_header(source)
        return LoraFile(str(source), header, read_file(source), _settings(source, header))
    tensors = dict(flat(read_object(source), source))
    return LoraFile(str(source), header_of(tensors), tensors, _settings(source, header_of(tensors)))


def _settings(path: Path, header: Header) -> dict[str, Any]:
    """Rank and alpha of peft: in the header as diffusers writes them, or in the file beside one of peft's own."""
    text = header.metadata.get("lora_adapter_metadata")
    beside = path.parent / "adapter_config.json"
    if text is None and path.stem == "adapter_model" and beside.is_file() and beside.stat().st_size < 1 << 20:
        text = beside.read_text(encoding="utf-8", errors="replace")
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise LoadError("E-LORA-PARTS", f"What {path} says of its ranks is no table.", "", "Get the file again.")
    return values


def read_changes(
    file: LoraFile, networks: Mapping[str, nn.Module], families: Iterable[Family]
) -> tuple[dict[str, Changes], LoadReport]:
    """The changes of every network that a file has some for.

    Args:
        file: the file.
        networks: by their names in the pipeline; with their untouched weights or merged ones.
        families: whose files may be read.

    Returns:
        Component to changes, and what came of the file's tensors. Less than 90 % matched warns (W-KEYS-UNMATCHED).

    Raises:
        LoadError: E-FILE-FAMILY, E-FILE-KIND, E-LORA-KIND for what cannot be used, E-LORA-PARTS for incomplete layers,
            E-LORA-EMPTY when no name is known, E-LORA-SHAPE, E-WEIGHTS-NAN.
    """
    kind = identify(file.header)
    refuse(Path(file.origin), kind, ("LoRA",), families)
    _check_usable(file)
    table = spellings(networks)
    found: dict[Layer, dict[str, str]] = {}
    aside, unmatched = [], []
    for name in file.tensors:
        spelt, role = _taken_apart(name)
        layer = table.get(spelt)
        if layer is None:
            known = _ASIDE.fullmatch(name) or ("text_encoder" not in networks and name.startswith(TEXT_PREFIXES))
            (aside if known else unmatched).append(name)
        elif role in found.setdefault(layer, {}):
            raise _broken(file, f"{found[layer][role]} and {name} are the same part of one layer")
        else:
            found[layer][role] = name
    num_matched = len(file.tensors) - len(aside) - len(unmatched)
    if not num_matched:
        raise _nothing(file, table, [*unmatched, *aside], str(kind))
    changes: dict[str, dict[str, Change]] = {}
    for layer, names in found.items():
        module = networks[layer.component].get_submodule(layer.module)
        for parameter, change in _changes(file, layer, names).items():
            _check_fits(file, layer, module, parameter, change)
            changes.setdefault(layer.component, {})[f"{layer.module}.{parameter}"] = change
    used = {name: file.tensors[name] for names in found.values() for name in names.values()}
    check_finite(used, file.origin, whole=True)
    report = LoadReport(file.origin, str(kind), kind.family, num_matched, tuple(aside), tuple(unmatched))
    if report.share < 0.9:
        warn("W-KEYS-UNMATCHED", f"Only {report.share:.0%} of the file is in use: {report.sentence()}", stacklevel=4)
    return dict(changes), report


def _taken_apart(name: str) -> tuple[str, str]:
    """Layer and role; a name without a role is a layer that nothing is known of."""
    for role, pattern in _NAMES.items():
        match = pattern.fullmatch(name)
        if match is not None:
            return match[1], role
    return name, ""


def _check_usable(file: LoraFile) -> None:
    for kind, pattern in _UNUSABLE.items():
        name = next((name for name in file.tensors if re.search(rf"{pattern}$", name)), None)
        if name is not None:
            raise LoadError(
                "E-LORA-KIND",
                f"{file.origin} holds {kind}, which cannot be used ({name}).",
                "Used are LoRA, LoCon, LoHa, LoKr, DoRA and differences in full.",
                "Merge it into the base with another program first.",
            )


def _nothing(file: LoraFile, table: Mapping[str, Layer], names: list[str], kind: str) -> LoadError:
    """What to say of a file without a layer of ours."""
    first = names[0] if names else ""
    near = difflib.get_close_matches(_taken_apart(first)[0], list(table)[:20000], n=1)
    nearest = f" The nearest name of a layer is {near[0]}." if near else ""
    return LoadError(
        "E-LORA-EMPTY",
        f"No name in {file.origin} is one of a layer of this pipeline.",
        f"It is {kind}; its {len(names)} tensors begin with {first or 'nothing'}.{nearest}",
        "Choose a file that was made for this model.",
    )


def _broken(file: LoraFile, what: str) -> LoadError:
    return LoadError("E-LORA-PARTS", f"In {file.origin} {what}.", "The file is damaged.", "Get the file again.")


def _check_fits(file: LoraFile, layer: Layer, module: nn.Module, parameter: str, change: Change) -> None:
    weight = getattr(module, parameter, None)
    if not isinstance(weight, Tensor):
        raise _broken(file, f"there is a {parameter} for {layer.module}, which has none")
    # A view of one number may claim any size.
    real = all(value.numel() * value.element_size() <= value.untyped_storage().nbytes() for value in tensors_of(change))
    if not real or not fits(change, weight):
        shapes = " and ".join(str(list(value.shape)) for value in tensors_of(change))
        raise LoadError(
            "E-LORA-SHAPE",
            f"{layer.module} of the {layer.component} is {list(weight.shape)}; the file has {shapes} for it.",
            f"{file.origin} was made for another model.",
            "Choose a file that was made for this one.",
        )


def _changes(file: LoraFile, layer: Layer, names: Mapping[str, str]) -> dict[str, Change]:
    """The changes of one layer's weight and bias, from its tensors by role."""
    parts = {role: file.tensors[name] for role, name in names.items()}
    alpha = _number(file, names["alpha"], parts.pop("alpha")) if "alpha" in parts else None
    dora = parts.pop("by_output", None), parts.pop("dora_scale", None)
    changes: dict[str, Change] = {}
    if "diff_b" in parts:
        changes["bias"] = Full(parts.pop("diff_b"))
    change = _change(file, layer, parts, alpha)
    if change is not None:
        if dora[0] is not None:
            change = Decomposed(change, dora[0])
        elif dora[1] is not None:
            change = Decomposed(change, dora[1], by_input=dora[1].ndim > 1 and dora[1].shape[0] == 1)
        changes["weight"] = change
    if not changes:
        raise _broken(file, f"{layer.module} has {' and '.join(names.values())} and nothing else")
    return changes


def _change(file: LoraFile, layer: Layer, parts: dict[str, Tensor], alpha: float | None) -> Change | None:
    """The change that a layer's tensors make, all of them."""
    roles = set(parts)
    if not roles:
        return None
    if {"up", "down"} <= roles <= {"up", "down", "mid"}:
        return LowRank(parts["down"], parts["up"], parts.get("mid"), _scale(file, layer, _rank(parts["down"]), alpha))
    halves = {"w1_a", "w1_b", "w2_a", "w2_b"}
    if halves <= roles <= halves | {"t1", "t2"} and ("t1" in roles) == ("t2" in roles):
        return Hadamard(**parts, scale=_scale(file, layer, _rank(parts["w1_b"]), alpha))
    if any(role.startswith("lokr_") for role in roles):
        return _kronecker(file, layer, {role.removeprefix("lokr_"): value for role, value in parts.items()}, alpha)
    if roles == {"diff"}:
        return Full(parts["diff"])
    raise _broken(file, f"{layer.module} has only the parts {', '.join(sorted(roles))}")


def _kronecker(file: LoraFile, layer: Layer, parts: dict[str, Tensor], alpha: float | None) -> Kronecker:
    roles = set(parts)
    whole = [{"w1"}, {"w1_a", "w1_b"}], [{"w2"}, {"w2_a", "w2_b"}, {"w2_a", "w2_b", "t2"}]
    if not any(roles == one | two for one in whole[0] for two in whole[1]):
        raise _broken(file, f"{layer.module} has only the parts {', '.join(sorted(roles))} of LoKr")
    # LyCORIS: where both matrices are whole there is no rank, and alpha says nothing.
    low = parts.get("w2_b", parts.get("w1_b"))
    return Kronecker(**parts, scale=1.0 if low is None else _scale(file, layer, _rank(low), alpha))


def _rank(value: Tensor) -> int:
    return value.shape[0] if value.ndim else 0


def _number(file: LoraFile, name: str, value: Tensor) -> float:
    if value.numel() != 1 or not math.isfinite(number := float(value.item())):
        raise _broken(file, f"{name} is no number")
    return number


def _scale(file: LoraFile, layer: Layer, rank: int, alpha: float | None) -> float:
    """alpha / rank, wherever alpha stands: beside the tensors, or in peft's settings; 1 where it stands nowhere."""
    if not rank:
        raise _broken(file, f"{layer.module} has a rank of 0")
    stabilised = False
    if alpha is None:
        alpha, stabilised = _told(file, layer)
    if alpha is None:
        return 1.0
    return alpha / (math.sqrt(rank) if stabilised else rank)


def _told(file: LoraFile, layer: Layer) -> tuple[float | None, bool]:
    """Alpha of a layer by `network_alphas` or peft's settings, and whether it is over the root of the rank."""
    given = file.settings.get("network_alphas")
    if given is not None:
        names = f"{layer.component}.{layer.module}.alpha", f"{layer.module}.alpha"
        found = next((given[name] for name in names if name in given), None)
        return None if found is None else _finite(file, found), False
    prefixed = f"{layer.component}."
    own = {key.removeprefix(prefixed): value for key, value in file.settings.items() if key.startswith(prefixed)}
    values = own or file.settings
    patterns = values.get("alpha_pattern")
    alpha = values.get("lora_alpha")
    for key, value in (patterns if isinstance(patterns, dict) else {}).items():
        # peft takes keys for regular expressions; ones from a file are not evaluated.
        if f".{layer.module}".endswith(f".{key}"):
            alpha = value
    return None if alpha is None else _finite(file, alpha), values.get("use_rslora") is True


def _finite(file: LoraFile, value: Any) -> float:
    if not is_finite(value):
        raise _broken(file, f"an alpha is {value!r}")
    return float(value)
