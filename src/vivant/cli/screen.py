"""What commands show: sentences and a progress bar for people, or one JSON object for machines; and exit codes.

Standard output gets the result, standard error everything else. Text from files (a recipe may come from a stranger)
is shown without control characters, so that it cannot steer a terminal.
"""

import json
import signal
import threading
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from vivant.errors import Cancelled, InputError, LoadError, MissingPackage, OutputError, VivantError, VivantWarning

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

    from vivant.api.result import Progress

BIDI = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that reorder the text around them."""


class Code(IntEnum):
    """Exit codes; docs/cli.md explains them."""

    OK = 0
    UNEXPECTED = 1
    INPUT = 2
    LOAD = 3
    OUTPUT = 4
    DIFFERENT = 5
    GRADED = 6
    CANCELLED = 130


def code_of(error: BaseException) -> Code:
    """The exit code for an error."""
    kinds = {
        InputError: Code.INPUT,
        LoadError: Code.LOAD,
        MissingPackage: Code.LOAD,
        OutputError: Code.OUTPUT,
        Cancelled: Code.CANCELLED,
    }
    return next((code for kind, code in kinds.items() if isinstance(error, kind)), Code.UNEXPECTED)


class Sections(TyperCommand):
    """A command whose help lists its options under headings, their `rich_help_panel`, without needing rich."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx)
            if row is not None:
                is_option = param.param_type_name == "option"
                heading = getattr(param, "rich_help_panel", None) or ("Options" if is_option else "Arguments")
                sections.setdefault(heading, []).append(row)
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


def clean(text: str) -> str:
    """Text that is safe to show: control characters, half characters and reordering marks as their codes."""
    return "".join(c if c == "\n" or not _steers(c) else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """As `clean`, and without line breaks: names of files may hold them."""
    return clean(text).replace("\n", "\\n")


def _steers(char: str) -> bool:
    return char in BIDI or unicodedata.category(char) in ("Cc", "Cs")


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output, in ASCII, whatever the terminal's encoding."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False, default=str))


def error_json(error: VivantError) -> dict[str, str]:
    """An error as an object."""
    return {"code": error.code, "what": error.what, "why": error.why, "fix": error.fix}


class Screen:
    """One command's output.

    Attributes:
        json: show nothing but one object at the end.
        warnings: what was warned of, each text once.
    """

    def __init__(self, as_json: bool):
        self.json = as_json
        self.warnings: list[str] = []

    @property
    def err(self) -> "Console":
        """Standard error as rich sees it; NO_COLOR is honoured there."""
        from rich.console import Console

        return Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        """A line about what is going on, for people."""
        if not self.json:
            typer.echo(clean(text), err=True)

    def show(self, text: str) -> None:
        """A line of the result, for people."""
        if not self.json:
            typer.echo(clean(text))

    def warned(self, text: str) -> None:
        """Take note of a warning, and show it if it is new."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.say(f"Warning: {text}")

    def failed(self, error: VivantError, more: Mapping[str, Any] | None = None) -> None:
        """Show why the command failed; `more` joins the object."""
        if self.json:
            print_json({"error": error_json(error), **(more or {}), "warnings": self.warnings})
            return
        self.say(f"Error [{error.code}]: {error.what}")
        for text in (error.why, error.fix):
            if text:
                self.say(f"  {text}")

    @contextmanager
    def progress(self, doing: str = "Animating") -> "Generator[Meter]":
        """A bar with steps, time left and memory, on a terminal; elsewhere nothing."""
        console = self.err
        if self.json or not console.is_terminal:
            yield Meter(None, doing)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rest]}")
        with Progress(*columns, console=console, transient=True) as bar:
            bar.add_task(doing, total=None, rest="")
            yield Meter(bar, doing)

    @contextmanager
    def bytes(self, doing: str, total: int) -> "Generator[Callable[[str, int], None]]":
        """A bar of bytes on a terminal, elsewhere nothing; what is given takes a file's name and how many more."""
        console = self.err
        if self.json or not console.is_terminal:
            yield lambda name, count: None
            return
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as Speed

        columns = TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), Speed()
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task(doing, total=total)
            yield lambda name, count: bar.update(task, description=f"{doing} {one_line(name)[-40:]}", advance=count)


class Meter:
    """What a bar shows of a run; without a bar, nothing."""

    def __init__(self, bar: "Bar | None", doing: str):
        self._bar, self._doing = bar, doing

    def step(self, at: "Progress") -> None:
        """A step was made."""
        self._show(self._doing if at.step < at.total else "Decoding", at.step, at.total, _rest(at))

    def decoded(self, done: int, total: int) -> None:
        """So many frames are ready."""
        self._show("Decoding", done, total, "")

    def _show(self, now: str, done: int, total: int, rest: str) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=now, completed=done, total=total, rest=rest)


def _rest(at: "Progress") -> str:
    memory = "" if at.peak_memory is None else f", {size(at.peak_memory)}"
    return f"{duration(at.remaining)} left{memory}"


def duration(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(num_bytes: int) -> str:
    """Bytes as people read them."""
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:.1f} GiB"
    return f"{num_bytes / 2**20:.0f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.1f} KiB"


@contextmanager
def reporting(as_json: bool) -> Generator[Screen]:
    """Run a command's body: warnings and errors become lines or an object, and the exit code.

    An error without a code is a fault of ours; people get the traceback to report it.
    """
    screen = Screen(as_json)
    with warnings.catch_warnings():
        warnings.simplefilter("always", VivantWarning)
        before = warnings.showwarning
        warnings.showwarning = lambda message, category, *place: (
            screen.warned(str(message)) if issubclass(category, VivantWarning) else before(message, category, *place)
        )
        error, code = None, Code.OK
        try:
            yield screen
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except VivantError as e:
            error, code = e, code_of(e)
        except KeyboardInterrupt:
            error, code = Cancelled("E-CANCELLED", "Stopped.", "Nothing was written."), Code.CANCELLED
        except Exception as e:
            error = _unexpected(e)
            code = code_of(error)
            if not as_json and error.code == "E-UNEXPECTED":
                traceback.print_exc()
    if error is not None:
        screen.failed(error)
        raise typer.Exit(code)


def _unexpected(error: Exception) -> VivantError:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or any(words in text for words in ("out of memory", "allocate memory")):
        return VivantError(
            "E-MEMORY",
            "There is not enough memory.",
            text.splitlines()[0],
            "Ask for a smaller size or fewer frames, or for bfloat16 (--dtype).",
        )
    return VivantError("E-UNEXPECTED", text, "This is a fault of vivant.", "Please report it with the lines above.")


@contextmanager
def stoppable() -> Generator[Callable[[], bool]]:
    """Ctrl-C stops at once, between two operations of a step; the function given says whether it was pressed."""
    pressed = threading.Event()

    def stop(*_: Any) -> None:
        pressed.set()  # in case that a library swallows the exception
        raise KeyboardInterrupt

    with _on_interrupt(stop):
        yield pressed.is_set


@contextmanager
def unstoppable() -> Generator[None]:
    """For the seconds of writing: a clip that is made is written whole."""
    with _on_interrupt(lambda *_: None):
        yield


@contextmanager
def _on_interrupt(handler: Callable[..., None]) -> Generator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
