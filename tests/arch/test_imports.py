"""Imports point one way: cli → api → facade → models → requests → parts → foundations."""

import ast
import sys
from collections.abc import Callable, Iterator, Sequence

import pytest

from sources import Module, modules, owner

LAYERS = (
    ("ground", {"errors"}),
    ("foundations", {"compiling", "config", "shapes"}),
    (
        "parts",
        {
            *("attention", "denoise", "freeinit", "fused", "guidance", "hub", "lora", "media", "placement", "rng"),
            *("faces", "pocket", "solvers", "text", "upsample", "vae", "vision"),
            # What a request holds of PIA: plain values that know nothing of its networks.
            *("pia.affinity", "pia.freeu", "pia.windows"),
        },
    ),
    ("requests", {"prompts", "request"}),
    ("models", {"consisid", "pia"}),
    ("facade", {"callbacks", "pipelines", "schedulers", "utils"}),
    ("one call each", {"api", "convert", "preflight"}),
    ("training", {"train"}),
    ("measuring", {"evaluate"}),
    ("command line", {"cli"}),
)
SIBLINGS = ("consisid", "pia")
RUN_TIME = {
    *("PIL", "av", "einops", "huggingface_hub", "jaxtyping", "numpy", "rich", "safetensors", "sentencepiece", "torch"),
    *("transformers", "typer", "vivant", "yaml"),
}
OPTIONAL = {"cv2", "pillow_heif", "onnxruntime", "tokenizers"}  # imported in the function that needs them
DEVICES_ALLOWED = {"vivant.attention", "vivant.placement", "vivant.placement.layers"}
FACADE_TORCH = {"Generator", "Tensor", "device", "dtype", "inference_mode", "no_grad"}


Rule = Callable[[Module], Iterator[str]]


def layer(name: str) -> int:
    """The index of a module's layer; the longest entry wins, so that one file can lie below its folder."""
    inner = name.removeprefix("vivant.")
    found = [(len(entry), i) for i, (_, group) in enumerate(LAYERS) for entry in group if _inside(inner, entry)]
    assert found, f"{name} has no layer: say in tests/arch/test_imports.py where it belongs"
    return max(found)[1]


def _inside(name: str, folder: str) -> bool:
    return name == folder or name.startswith(folder + ".")


def wrong_directions(tree: Sequence[Module]) -> Iterator[str]:
    """Imports of a higher layer, and of one model by the other."""
    names = {module.name for module in tree}
    for module in tree:
        if module.name == "vivant":  # the table of public names; it imports nothing by itself
            continue
        for imported, line in module.imports():
            target = owner(imported, names)
            if target in (None, "vivant"):
                continue
            here, there = (n.removeprefix("vivant.").split(".")[0] for n in (module.name, target))
            upwards = layer(target) > layer(module.name)
            if upwards or {here, there} == set(SIBLINGS):
                yield f"{module.name}:{line} imports {target}"


def cycles(tree: Sequence[Module]) -> Iterator[str]:
    """Modules that reach themselves through imports, late ones included."""
    names = {module.name for module in tree}
    reach = {m.name: {owner(i, names) for i, _ in m.imports()} - {None, "vivant", m.name} for m in tree}
    reach.pop("vivant", None)
    while free := {name for name, targets in reach.items() if not targets & reach.keys()}:
        for name in free:
            del reach[name]
    for name in sorted(reach):
        yield f"{name} is part of, or depends on, a cycle: {sorted(reach[name] & reach.keys())}"


def foreign(module: Module) -> Iterator[str]:
    """Imports of anything but the run-time dependencies, and of optional packages outside functions."""
    functions = [node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef)]
    late = {line for node in functions for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    for imported, line in module.imports():
        top = imported.split(".")[0]
        if top not in RUN_TIME | sys.stdlib_module_names and not (top in OPTIONAL and line in late):
            yield f"{module.name}:{line} imports {top}"


def late_annotations(module: Module) -> Iterator[str]:
    """``from __future__ import annotations`` turns shapes into strings that nobody checks."""
    for imported, line in module.imports():
        if imported == "__future__.annotations":
            yield f"{module.name}:{line}"


def devices(module: Module) -> Iterator[str]:
    """Uses of one kind of device: torch.cuda, torch.backends.mps, x.cuda()."""
    for imported, line in module.imports():
        if module.name not in DEVICES_ALLOWED and {"cuda", "mps", "xpu"} & set(imported.split(".")):
            yield f"{module.name}:{line} imports {imported}"
    for node in ast.walk(module.tree):
        if (
            isinstance(node, ast.Attribute)
            and node.attr in ("cuda", "mps", "xpu")
            and module.name not in DEVICES_ALLOWED
        ):
            yield f"{module.name}:{node.lineno} uses {ast.unparse(node)}"


def arithmetic(module: Module) -> Iterator[str]:
    """What a pipeline takes from torch beyond the types in its signatures."""
    aliases = {"torch"}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname for alias in node.names if alias.name == "torch" and alias.asname}
    for imported, line in module.imports():
        parts = imported.split(".")
        if parts[0] == "torch" and parts[1:] and parts[1] not in FACADE_TORCH:
            yield f"{module.name}:{line} imports {imported}"
    for node in ast.walk(module.tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in aliases
            and node.attr not in FACADE_TORCH
        ):
            yield f"{module.name}:{node.lineno} uses {ast.unparse(node)}"


def open_forwards(module: Module) -> Iterator[str]:
    """Methods `forward` that take *args or **kwargs."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef) and node.name == "forward" and (node.args.kwarg or node.args.vararg):
            yield f"{module.name}:{node.lineno}"


def test_imports_point_one_way():
    assert list(wrong_directions(modules())) == []


def test_no_module_reaches_itself():
    assert list(cycles(modules())) == []


@pytest.mark.parametrize("rule", [foreign, late_annotations, devices, open_forwards])
def test_no_file_breaks(rule: Rule):
    assert [found for module in modules() for found in rule(module)] == []


def test_pipelines_do_no_arithmetic():
    pipelines = [module for module in modules() if module.name.startswith("vivant.pipelines.")]
    assert pipelines
    assert [found for module in pipelines for found in arithmetic(module)] == []


def test_every_entry_of_the_layers_is_a_module():
    names = {module.name.removeprefix("vivant.") for module in modules()}
    written_later = {"consisid", "shapes"}
    assert {entry for _, group in LAYERS for entry in group} - written_later <= names


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (foreign, "import diffusers"),
        (foreign, "def f():\n    from scipy.linalg import expm"),
        (foreign, "import importlib\nimportlib.import_module('torchvision.io')"),
        (foreign, "try:\n    import pillow_heif\nexcept ImportError:\n    pass"),
        (late_annotations, "from __future__ import annotations"),
        (devices, "import torch\ntorch.cuda.is_available()"),
        (devices, "import torch\ntorch.backends.mps.is_available()"),
        (devices, "from torch import xpu"),
        (devices, "def f(x):\n    return x.cuda()"),
        (arithmetic, "import torch\ntorch.cat([])"),
        (arithmetic, "import torch as t\nt.randn(2)"),
        (arithmetic, "from torch import nn"),
        (arithmetic, "import torch.nn.functional as F"),
        (open_forwards, "class A:\n    def forward(self, x, **rest): ..."),
    ],
)
def test_a_rule_finds_what_breaks_it(rule: Rule, text: str):
    assert list(rule(Module("vivant.pipelines.pia", text)))
    assert not list(rule(Module("vivant.pipelines.pia", "import torch\nx: torch.Tensor = torch.device('cpu')")))


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("vivant.vae.image", "vivant.pia.unet"),
        ("vivant.pia.unet", "vivant.consisid.transformer"),
        ("vivant.consisid.transformer", "vivant.pia.unet"),
        ("vivant.pia.affinity", "vivant.pia.unet"),
        ("vivant.hub.load", "vivant.schedulers"),
        ("vivant.errors", "vivant.config"),
    ],
)
def test_a_wrong_direction_is_found(importer: str, imported: str):
    folder, _, leaf = imported.rpartition(".")
    bystanders = [Module(imported, ""), Module("vivant", ""), Module("vivant.vae", "")]
    for text in (f"import {imported}", f"def f():\n    from {folder} import {leaf}", f"from {imported} import X"):
        assert list(wrong_directions([Module(importer, text), *bystanders])), text


def test_a_right_direction_is_none():
    below = Module("vivant.pia.affinity", "from vivant.errors import InputError"), Module("vivant.errors", "")
    above = Module("vivant.pia.generate", "from vivant.request import PIARequest"), Module("vivant.request", "")
    assert not list(wrong_directions([*below, *above]))


def test_a_cycle_is_found():
    a, b = Module("vivant.hub.a", "from . import b"), Module("vivant.hub.b", "def f():\n    from vivant.hub.a import x")
    assert list(cycles([a, b, Module("vivant.rng", "")]))
    assert not list(cycles([a, Module("vivant.hub.b", ""), Module("vivant.hub", "", is_package=True)]))
