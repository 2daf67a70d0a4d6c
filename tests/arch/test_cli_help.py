"""docs/cli.md lists every command and option as the program has them.

`python tests/arch/test_cli_help.py` writes the lists anew.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from vivant.cli import app
from vivant.cli.screen import Code

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
START, END = "<!-- options: written by tests/arch/test_cli_help.py -->", "<!-- end of options -->"


def commands() -> dict[str, Any]:
    """The commands of `vivant`, by name; those of a group have its name before theirs."""
    root: Any = typer.main.get_command(app)
    found: dict[str, Any] = {}
    for name, command in root.commands.items():
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {key}": value for key, value in inner.items()}
    return found


def reference() -> str:
    """Every command with its arguments and options, as Markdown."""
    return "\n".join(line for name, command in commands().items() for line in _command(name, command))


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option" and param.name != "help"]
    yield f"### vivant {' '.join([name, *(param.name.upper() for param in arguments)])}"
    yield command.help.strip()
    yield ""
    if arguments or options:
        yield "| | meaning | default |"
        yield "|---|---|---|"
    for param in arguments:
        yield f"| `{param.name.upper()}` | {_cell(param.help)} | |"
    heading = None
    for param in sorted(
        options, key=lambda param: list(dict.fromkeys(p.rich_help_panel for p in options)).index(param.rich_help_panel)
    ):
        if param.rich_help_panel not in (heading, None):
            heading = param.rich_help_panel
            yield f"| **{heading}** | | |"
        yield f"| {', '.join(f'`{flag}`' for flag in param.opts)} | {_cell(param.help)} | {_default(param)} |"
    if arguments or options:
        yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(param: Any) -> str:
    if param.required:
        return "needed"
    value = param.default
    return "" if value is None or value is False else f"`{getattr(value, 'value', value)}`"


def written() -> str:
    """What stands in docs/cli.md."""
    return PAGE.read_text(encoding="utf-8").partition(START)[2].partition(END)[0].strip()


def test_the_page_lists_the_commands_as_they_are():
    assert written() == reference().strip(), "run python tests/arch/test_cli_help.py"


def test_only_commands_that_work_are_there():
    assert list(commands()) == [
        *("demo", "animate", "portrait", "pull", "models", "verify", "convert"),
        *("info", "redo", "train", "version"),
        "face check",
        *("eval pocket", "eval clips", "eval animatebench", "eval identity"),
    ]


def test_every_option_says_what_it_does():
    params = [param for command in commands().values() for param in command.params]
    assert [param.name for param in params if len(param.help or "") < 10] == []


def test_the_page_explains_every_exit_code():
    text = PAGE.read_text(encoding="utf-8")
    assert [code for code in Code if f"| {code.value} |" not in text] == []


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text(f"{before}{START}\n{reference().strip()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
