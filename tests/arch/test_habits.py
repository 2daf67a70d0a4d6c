"""Rules of the house that a reader of one file cannot see."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from sources import ROOT, SRC, modules

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FILES = [path for folder in (SRC, ROOT / "tests") for path in sorted(folder.rglob("*.py"))]
RUN_TIME = {
    *("av", "einops", "huggingface-hub", "jaxtyping", "numpy", "pillow", "protobuf", "pyyaml", "rich", "safetensors"),
    *("sentencepiece", "torch", "transformers", "typer"),
}


def pins() -> dict[str, Version]:
    """constraints.txt: package -> version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in rows}


def requirements() -> list[Requirement]:
    """What the package and its development environment ask for."""
    return [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]


def bare_ignores(text: str) -> list[str]:
    """Comments that silence a checker without saying in which point."""
    return re.findall(r"#\s*(?:type:\s*ignore(?!\[)|pyright:\s*ignore(?!\[)|noqa(?!:\s*[A-Z])).*", text)


def test_files_are_short_enough_to_be_read():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 600} == {}


def test_checkers_are_silenced_by_rule_only():
    assert [(path.name, found) for path in FILES if (found := bare_ignores(path.read_text(encoding="utf-8")))] == []
    mark = "#"
    for text in (f"x  {mark} type: ignore", f"x  {mark} noqa", f"x  {mark} pyright: ignore"):
        assert bare_ignores(text)
    assert not bare_ignores(f"x  {mark} type: ignore[arg-type]  {mark} noqa: E501")


def test_no_file_is_for_everything():
    # vivant.utils is where diffusers has the three functions that its examples import.
    names = {module.name for module in modules()} - {"vivant.utils"}
    assert [name for name in names if name.split(".")[-1] in {"common", "helpers", "manager", "misc", "utils"}] == []


def test_dependencies_are_what_we_meant():
    assert {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]} == RUN_TIME


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_what_is_installed_for_the_tests_lies_in_the_declared_range(requirement: Requirement):
    pinned = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned, prereleases=True)
    if requirement.name == "transformers":  # capped, so the cap must be the tested end
        following = f"{pinned.major}.{pinned.minor + 1}"
        assert not requirement.specifier.contains(following)


def test_the_licence_is_apache():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert PROJECT["license"] == "Apache-2.0"
    assert [name for name in PROJECT["license-files"] if (ROOT / name).stat().st_size < 100] == []


def test_the_package_says_that_it_is_typed():
    assert (SRC / "vivant" / "py.typed").is_file()


def test_versions_agree():
    source = (SRC / "vivant" / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{PROJECT["version"]}"' in source
