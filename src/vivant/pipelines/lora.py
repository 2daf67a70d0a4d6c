"""LoRA on pipelines, with diffusers' names: plain functions of a pipeline, bound in the class body of the base.

What a network is under is kept with the network (`vivant.lora.merge`), so pipelines that share one share its adapters.
Every verb works out first what all networks shall be under, and then exchanges weights of all or of none.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from vivant.errors import InputError, LoadError
from vivant.hub.keywords import without_loading
from vivant.hub.load import is_safetensors
from vivant.hub.repo import Source, locate_file
from vivant.lora.adapters import Adapters, Weight, number, whole
from vivant.lora.blocks import by_block
from vivant.lora.merge import adapters_of, merge, scaled
from vivant.lora.read import USUAL, open_lora, read_changes

KEYWORDS: dict[str, tuple[Any, ...]] = {
    "force_download": (None, False),
    "proxies": (None,),
    "low_cpu_mem_usage": (None, True),
    "hotswap": (None, False),
    "return_lora_metadata": (None, False),
}
"""Keywords of diffusers' `load_lora_weights` and the values that change nothing here."""


def load_lora_weights(
    self: Any,
    pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
    adapter_name: str | None = None,
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    use_safetensors: bool | None = None,
    network_alphas: Mapping[str, float] | None = None,
    **given: Any,
) -> None:
    """Change this pipeline's networks by a file of LoRA or one of its relatives, see docs/personalisation.md.

    The new adapter becomes the only active one of the networks that it changes, as in diffusers; `set_adapters` has
    several act together. What came of
    the file's tensors is added to `notes`.

    Args:
        pretrained_model_name_or_path_or_dict: a file, a folder or hub id that holds one, or tensors by name.
        adapter_name: what to call it; ``default_0`` and so on if not given.
        weight_name: the file in a folder or repository.
        subfolder: folder in the repository.
        revision: branch, tag or commit on the hub.
        cache_dir: hub cache; HF_HOME and HF_HUB_CACHE are honoured.
        local_files_only: never touch the network.
        token: hub token.
        use_safetensors: True refuses pickles, which are otherwise read without running anything in them.
        network_alphas: for tensors by name: diffusers' table of ``<component>.<layer>.alpha``.
        given: of diffusers' other keywords those that change nothing here; `hotswap` is refused.

    Raises:
        LoadError: E-REPO-… and E-FILE-MISSING for what is not there, E-WEIGHTS-… for damaged files and NaN,
            E-FILE-FAMILY, E-FILE-KIND, E-LORA-EMPTY and E-LORA-SHAPE for files of other models, E-LORA-KIND and
            E-LORA-PARTS for what cannot be used. The pipeline is as it was then.
        InputError: E-LORA-NAME, E-ARG-VALUE, E-ARG-UNKNOWN.
    """
    unknown = without_loading(given, KEYWORDS)
    if unknown:
        raise InputError(
            "E-ARG-UNKNOWN", f"load_lora_weights has no argument {', '.join(unknown)}.", "", "Leave it out."
        )
    taken = {name for _, network in _networks(self) for name in _names(adapters_of(network))}
    name = _free(taken) if adapter_name is None else adapter_name
    if not isinstance(name, str) or not name.strip() or name in taken:
        raise InputError(
            "E-LORA-NAME",
            f"An adapter cannot be called {name!r}.",
            "There is one of that name." if name in taken else "A name is a text.",
            "Choose another name, or delete_adapters it first.",
        )
    source: Any = pretrained_model_name_or_path_or_dict
    if not isinstance(source, Mapping):
        place = Source(source, subfolder, None, revision, cache_dir, local_files_only, token)
        source = locate_file(place, weight_name, USUAL)
        if use_safetensors and not is_safetensors(source):
            raise LoadError("E-REPO-PICKLE", f"{source} is a pickle.", "use_safetensors=True refuses pickles.")
    networks = dict(_networks(self))
    changes, report = read_changes(open_lora(source, network_alphas), networks, self._lora_families)
    merge([(networks[part], adapters_of(networks[part]).load(name, found)) for part, found in changes.items()])
    self._note(f"LoRA {name}: {report.sentence()}")


def set_adapters(
    self: Any,
    adapter_names: str | Sequence[str],
    adapter_weights: float | Mapping[str, Any] | Sequence[float | Mapping[str, Any] | None] | None = None,
) -> None:
    """Have these adapters act together, and no others.

    Args:
        adapter_names: of what is loaded.
        adapter_weights: one for all or one for each: a number, or numbers by component (``{"unet": 0.5}``; what is not
            named counts 1), or for the UNet by block, see `vivant.lora.blocks`. 1 if not given.

    Raises:
        InputError: E-LORA-NAME, E-LORA-WEIGHT, E-LORA-COMPONENT, E-LORA-BLOCKS; nothing is changed then.
    """
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    _check_names(self, names)
    given = adapter_weights
    weights: list[Any] = list(given) if isinstance(given, Sequence) else [given] * len(names)
    if len(weights) != len(names):
        raise InputError("E-LORA-WEIGHT", f"There are {len(weights)} weights for {len(names)} adapters.")
    networks = dict(_networks(self))
    tables = dict(zip(names, weights, strict=True))
    for name, weight in tables.items():
        if isinstance(weight, Mapping):
            _check_components(self, weight, {c for c, network in networks.items() if name in _loaded(network)})

    def of(component: str, network: Any) -> Adapters:
        mine = {name: weight for name, weight in tables.items() if name in _loaded(network)}
        return adapters_of(network).activate({name: _weight(component, network, w) for name, w in mine.items()})

    merge([(network, of(component, network)) for component, network in networks.items()])


def get_active_adapters(self: Any) -> list[str]:
    """Names of the adapters that `set_adapters` made active, or of the one loaded last."""
    return list(dict.fromkeys(name for _, network in _networks(self) for name in adapters_of(network).active))


def get_list_adapters(self: Any) -> dict[str, list[str]]:
    """Names of the loaded adapters, of every component that has some."""
    return {part: list(_loaded(network)) for part, network in _networks(self) if _loaded(network)}


def delete_adapters(self: Any, adapter_names: str | Sequence[str]) -> None:
    """Forget adapters; what of them is fused stays until `unfuse_lora` (E-LORA-NAME)."""
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    _check_names(self, names)
    merge([(network, adapters_of(network).drop(names)) for _, network in _networks(self)])


def disable_lora(self: Any) -> None:
    """Have no adapter act but fused ones, until `enable_lora`."""
    merge([(network, adapters_of(network).enable(False)) for _, network in _networks(self) if _loaded(network)])


def enable_lora(self: Any) -> None:
    """Have the active adapters act again."""
    merge([(network, adapters_of(network).enable(True)) for _, network in _networks(self) if _loaded(network)])


def fuse_lora(
    self: Any,
    components: Sequence[str] | None = None,
    lora_scale: float = 1.0,
    safe_fusing: bool = False,
    adapter_names: Sequence[str] | None = None,
) -> None:
    """Make adapters part of the weights: a scale of a call does not act on them, and they outlive unloading.

    Args:
        components: where; all that have adapters if not given.
        lora_scale: multiplies their weights.
        safe_fusing: accepted; files with NaN are refused when they are loaded.
        adapter_names: which; the active ones if not given.

    Raises:
        InputError: E-LORA-NAME, E-LORA-WEIGHT, E-LORA-COMPONENT.
    """
    scale = number(lora_scale)
    if adapter_names is not None:
        _check_names(self, adapter_names)
    chosen = [(network, adapters_of(network)) for network in _chosen(self, components)]
    wanted = [(n, a.fuse(a.active if adapter_names is None else adapter_names, scale)) for n, a in chosen]
    merge([(network, adapters) for network, adapters in wanted if not adapters.is_empty])


def unfuse_lora(self: Any, components: Sequence[str] | None = None) -> None:
    """Take back what is fused: the untouched weights return, bit for bit, and active adapters act as before.

    Raises:
        InputError: E-LORA-COMPONENT.
    """
    merge([(network, adapters_of(network).unfuse()) for network in _chosen(self, components)])


def unload_lora_weights(self: Any) -> None:
    """Forget all adapters: the very tensors that were there before return. What is fused stays until `unfuse_lora`."""
    networks = [network for _, network in _networks(self)]
    merge([(network, adapters_of(network).drop(_loaded(network)).enable(True)) for network in networks])


def fused_loras(self: Any) -> set[str]:
    """Names of the fused adapters."""
    return {name for _, network in _networks(self) for name in adapters_of(network).fused}


def num_fused_loras(self: Any) -> int:
    """How many adapters are fused."""
    return len(fused_loras(self))


# ------------------------------------------------------------------------------------- scale of one call


def scale_of(argument: str, given: Any) -> float | None:
    """The strength in ``{"scale": s}``, as calls give it; None where there is none.

    Raises:
        InputError: E-CROSS-ATTENTION for anything else, E-LORA-WEIGHT.
    """
    table: Any = {} if given is None else given
    if not isinstance(table, Mapping) or not table.keys() <= {"scale"}:
        raise InputError(
            "E-CROSS-ATTENTION",
            f"{argument} is {given!r}.",
            "Anything but a dictionary with the key scale would be ignored.",
            'Give {"scale": 1.0}, or leave it out.',
        )
    return None if table.get("scale") is None else number(table["scale"])


@contextmanager
def at_scale(self: Any, scale: float | None, components: Sequence[str] | None = None) -> Generator[None]:
    """Have the active adapters count `scale` times as much for a while; None is 1.

    Where none is active this changes nothing, which is said (W-LORA-NONE).
    """
    networks = [network for name, network in _networks(self) if components is None or name in components]
    acting = [network for network in networks if adapters_of(network).acts]
    if scale is None or scale == 1 or not acting:
        yield
        return
    with scaled(acting, scale):
        yield


def note_scale(self: Any, scale: float | None) -> None:
    """Say that a scale changes nothing where no adapter acts that it could act on (W-LORA-NONE)."""
    if scale is not None and scale != 1 and not any(adapters_of(network).acts for _, network in _networks(self)):
        self._say(
            "W-LORA-NONE",
            f"The scale {scale} is for LoRA layers; none is active, fused ones apart, so it changes nothing.",
        )


# --------------------------------------------------------------------------------------------- details


def _networks(pipeline: Any) -> list[tuple[str, Any]]:
    """The networks that can have adapters, as far as the pipeline has them."""
    found = [(name, getattr(pipeline, name, None)) for name in pipeline._lora_loadable_modules]
    return [(name, network) for name, network in found if network is not None]


def _loaded(network: Any) -> Iterable[str]:
    return adapters_of(network).loaded.keys()


def _names(adapters: Adapters) -> set[str]:
    return {*adapters.loaded, *adapters.fused}


def _free(taken: set[str]) -> str:
    return next(name for i in range(len(taken) + 1) if (name := f"default_{i}") not in taken)


def _check_names(pipeline: Any, names: Sequence[str]) -> None:
    loaded = dict.fromkeys(name for _, network in _networks(pipeline) for name in _loaded(network))
    unknown = [name for name in names if name not in loaded]
    if unknown or len(set(names)) != len(names):
        raise InputError(
            "E-LORA-NAME",
            f"There is no adapter {unknown[0]!r}." if unknown else f"An adapter is named twice: {', '.join(names)}.",
            f"Loaded are: {', '.join(loaded) or 'none'}.",
            "See get_list_adapters().",
        )


def _check_components(pipeline: Any, names: Iterable[str], present: Iterable[str]) -> None:
    present = set(present)
    for name in names:
        if name not in present:
            raise InputError(
                "E-LORA-COMPONENT",
                f"{type(pipeline).__name__} has no LoRA in a component {name!r} to weigh or to fuse.",
                f"There is: {', '.join(sorted(present)) or 'none'}.",
                "",
            )


def _chosen(pipeline: Any, components: Sequence[str] | None) -> list[Any]:
    networks = dict(_networks(pipeline))
    _check_components(pipeline, components or (), networks)
    return [network for name, network in networks.items() if components is None or name in components]


def _weight(component: str, network: Any, given: Any) -> Weight:
    """One adapter's weight in one network."""
    value = given.get(component) if isinstance(given, Mapping) else given
    return by_block(network, value) if isinstance(value, Mapping) else whole(number(value))
