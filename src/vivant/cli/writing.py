"""What commands that make clips have in common: where they write, how they say so, how models are loaded."""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import typer

from vivant.api.result import Result
from vivant.cli.screen import Screen, code_of, duration, error_json, print_json, size, unstoppable
from vivant.errors import OutputError, VivantError
from vivant.media.recipe import sidecar_of
from vivant.media.video import check_output

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@contextmanager
def without_bars() -> Generator[None]:
    """No progress bars of downloads, which would stand between the lines of JSON."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


def numbered(outputs: Sequence[str], k: int, count: int) -> list[str]:
    """The names for clip k of count: one clip has the names as given, several get -0, -1, …"""
    if count == 1:
        return list(outputs)
    return [_numbered(path, k) for path in outputs]


def _numbered(spelled: str, k: int) -> str:
    path = Path(spelled)
    if path.name in ("", ".."):  # refused later, as it is
        return spelled
    if spelled.endswith("/") or os.path.isdir(path):
        return f"{spelled.rstrip('/')}-{k}/"
    return str(path.with_name(f"{path.stem}-{k}{path.suffix}"))


def check_targets(
    paths: Sequence[str], sources: Sequence[str | PathLike[str]], overwrite: bool, fps: float | None
) -> None:
    """Refuse paths that cannot be written, name one file twice, or would replace a file that is read.

    A folder of frames is replaced with all that is in it, so that nothing else may be read or written there.

    Raises:
        InputError, OutputError: as `vivant.media.video.check_output`; E-OUTPUT-TWICE.
    """
    taken = {Path(source).resolve(): "is read" for source in sources if "://" not in str(source)}
    for path in paths:
        target = check_output(path, overwrite=overwrite, fps=fps)
        places = target.resolve(), sidecar_of(target).resolve()
        for place, (other, use) in product(places, taken.items()):
            written_around = use == "is written" and other in place.parents
            if place == other or place in other.parents or written_around:
                raise OutputError(
                    "E-OUTPUT-TWICE",
                    f"{place} would be written, and {other} {use} too.",
                    "One is the other, or lies in it.",
                    "Choose another name.",
                )
        taken |= dict.fromkeys(places, "is written")


def write(
    screen: Screen, result: Result, targets: Mapping[int, Sequence[str]], save: Callable[[str, int], object]
) -> list[dict[str, Any]]:
    """Write clips under their names. A clip that cannot be written does not keep the others from it.

    Args:
        screen: where to say so.
        result: holds the clips.
        targets: index of a clip to its names.
        save: writes a clip, given a name and its index.

    Returns:
        For every file its path and hash, or its error.
    """
    shown: list[dict[str, Any]] = []
    failed: VivantError | None = None
    with unstoppable():
        for clip, paths in targets.items():
            for path in paths:
                try:
                    save(path, clip)
                except VivantError as error:
                    failed = failed or error
                    shown.append({"path": path, "clip": clip, "error": error_json(error)})
                else:
                    shown.append({"path": path, "clip": clip, "frames_hash": result.recipe["frames_hashes"][clip]})
                    screen.show(path)
    if failed is not None:
        screen.failed(failed, {"outputs": shown, **as_json(screen, result)})
        raise typer.Exit(code_of(failed))
    return shown


def saving(result: Result, overwrite: bool, enlarge: int = 1) -> Callable[[str, int], object]:
    """Writes clips of a result, see `Result.save`."""
    return lambda path, clip: result.save(path, clip=clip, overwrite=overwrite, enlarge=enlarge)


def finish(screen: Screen, result: Result, shown: Sequence[Mapping[str, Any]], more: Mapping[str, Any] = {}) -> None:
    """Say how it went; `more` joins the object."""
    if screen.json:
        print_json({"outputs": shown, **as_json(screen, result), **more})
        return
    report = result.report
    memory = "" if report.peak_memory is None else f", {size(report.peak_memory)} at most"
    screen.say(f"{duration(sum(report.seconds.values()))} on {report.device}{memory}, {report.dtype}.")
    for note in report.notes:
        if note not in screen.warnings:
            screen.say(f"Note: {note}")


def as_json(screen: Screen, result: Result) -> dict[str, Any]:
    """A result as an object."""
    num_frames, height, width = result.clips[0].shape[:3]
    return {
        "width": width,
        "height": height,
        "frames": num_frames,
        "fps": result.fps,
        "report": result.report.to_json(),
        "warnings": screen.warnings,
        "recipe": result.recipe,
    }
