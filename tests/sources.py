"""The package as syntax trees, for the tests of the architecture."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"


@dataclass(frozen=True)
class Module:
    """One file of the package, or a text that stands for one."""

    name: str
    text: str
    is_package: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text, self.name)

    def imports(self) -> Iterator[tuple[str, int]]:
        """Every imported name as a dotted path, with its line: at the top, in functions and by import_module."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
                first = node.args[0] if node.args else None
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    yield first.value, node.lineno

    def _absolute(self, node: ast.ImportFrom) -> str:
        """The module of ``from … import``, relative ones resolved."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + (self.is_package)]
        return ".".join([*parts, *filter(None, [node.module])])


@lru_cache(1)
def modules() -> tuple[Module, ...]:
    """Every file of the package."""
    found: list[Module] = []
    for path in sorted(SRC.rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Module(name, path.read_text(encoding="utf-8"), is_package))
    return tuple(found)


def owner(imported: str, names: set[str]) -> str | None:
    """The module among `names` that an imported name lies in: the longest dotted prefix."""
    while imported and imported not in names:
        imported = imported.rpartition(".")[0]
    return imported or None
