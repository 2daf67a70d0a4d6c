"""Every code that the package raises stands in docs/errors.md with its meaning, and nothing else does."""

import ast
import re
from collections.abc import Iterator

import pytest

from sources import ROOT, Module, modules

CODE = re.compile(r"[EW](-[A-Z0-9]+)+")
RAISERS = {"Cancelled", "InputError", "LoadError", "MissingPackage", "OutputError", "VivantError"}
ROW = re.compile(r"\| `(?P<code>[^`]+)` \| (?P<meaning>.+) \| (?P<remedy>.+) \|")


def codes(module: Module) -> set[str]:
    """The strings of a module that are codes."""
    constants = (node.value for node in ast.walk(module.tree) if isinstance(node, ast.Constant))
    return {text for text in constants if isinstance(text, str) and CODE.fullmatch(text)}


def hidden(module: Module) -> Iterator[str]:
    """Codes that are put together from pieces, which no list could follow, and errors that carry a warning's code."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.JoinedStr) and re.match(r"f?['\"][EW]-", ast.unparse(node)):
            yield f"{module.name}:{node.lineno} builds a code: {ast.unparse(node)}"
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            code, name = str(node.args[0].value), ast.unparse(node.func)
            if (name in RAISERS and not code.startswith("E-")) or (name == "warn" and not code.startswith("W-")):
                yield f"{module.name}:{node.lineno} {name}({code!r})"


def listed() -> dict[str, tuple[str, str]]:
    """The rows of docs/errors.md: code -> meaning and remedy."""
    rows: dict[str, tuple[str, str]] = {}
    for line in (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").splitlines():
        if match := ROW.fullmatch(line):
            assert match["code"] not in rows, f"{match['code']} is listed twice"
            rows[match["code"]] = (match["meaning"], match["remedy"])
    return rows


def test_the_list_and_the_code_agree():
    raised = set[str]().union(*map(codes, modules()))
    assert len(raised) > 100
    assert sorted(raised - listed().keys()) == [], "raised, and not in docs/errors.md"
    assert sorted(listed().keys() - raised) == [], "in docs/errors.md, and never raised"


def test_every_row_says_what_it_means_and_what_to_do():
    assert [code for code, row in listed().items() if not CODE.fullmatch(code) or min(map(len, row)) < 8] == []


def test_codes_are_literals_of_the_right_kind():
    assert [found for module in modules() for found in hidden(module)] == []


@pytest.mark.parametrize("text", ['InputError(f"E-{name}")', 'InputError("W-X", "")', 'warn("E-X", "")'])
def test_a_hidden_code_is_found(text: str):
    assert list(hidden(Module("vivant.a", text)))
    assert codes(Module("vivant.a", 'InputError("E-A-B2", "E-mail E-A")')) == {"E-A-B2"}
