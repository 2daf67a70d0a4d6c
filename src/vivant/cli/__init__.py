"""The command line. One file a group of commands; torch is imported when a command runs, not to show its help."""

import contextlib
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from vivant import __version__
from vivant.cli import animate, convert, demo, evaluate, face, info, models, portrait, pull, redo, train, verify
from vivant.cli.screen import Code, Sections, print_json

app = typer.Typer(
    help="vivant brings a still picture to life.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help starts in half the time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=Sections)(demo.demo)
app.command(cls=Sections)(animate.animate)
app.command(cls=Sections)(portrait.portrait)
app.command(cls=Sections)(pull.pull)
app.command(cls=Sections)(models.models)
app.command(cls=Sections)(verify.verify)
app.command(cls=Sections)(convert.convert)
app.command(cls=Sections)(info.info)
app.command(cls=Sections)(redo.redo)
app.command(cls=Sections)(train.train)
app.add_typer(face.app, name="face")
app.add_typer(evaluate.app, name="eval")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _print_version(wanted: bool) -> bool:
    if wanted:
        version()
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """vivant brings a still picture to life."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; `args` defaults to those of the process."""
    args = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows its code instead of failing
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return app(args, prog_name="vivant", standalone_mode=False) or Code.OK
    except typer.Abort:
        return Code.CANCELLED
    except Exception as error:
        # The base class of usage errors is not public, and has moved from click into typer.
        if not hasattr(error, "format_message"):
            raise
        return _usage_error(error, args)


def _usage_error(error: Exception, args: Sequence[str]) -> int:
    """What typer says about options that it cannot read."""
    text: str = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
    if not text:  # no arguments: typer has shown the help
        return Code.INPUT
    if "--json" in args:
        print_json({"error": {"code": "E-USAGE", "what": text, "why": "", "fix": "See vivant COMMAND --help."}})
    else:
        error.show()  # pyright: ignore[reportAttributeAccessIssue]
    return Code.INPUT
