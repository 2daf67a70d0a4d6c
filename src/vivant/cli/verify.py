"""`vivant verify`: whether files of weights are whole and finite."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option

from vivant.cli.screen import Code, Screen, error_json, one_line, print_json, reporting, size
from vivant.errors import InputError

if TYPE_CHECKING:
    from vivant.hub.soundness import Sound

_COMPLAINTS = ("E-VERIFY-FINITE", "E-VERIFY-HASH")


def verify(
    paths: Annotated[list[str], Argument(help="Files of weights, and folders, whose files are all read.")],
    sha256: Annotated[
        str | None,
        Option("--sha256", help="The hash that the one file given should have; its first ten digits will do."),
    ] = None,
    json: Annotated[bool, Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Read files of weights to the last byte: is each whole, of its hash, and without a NaN or an infinity?

    Files in the hub's cache are compared with the hub's hashes, and indexes with the shards that they name. Memory does
    not grow with the files. The exit code is 3 if a file cannot be read, 6 if one is of another hash or not finite.
    """
    with reporting(json) as screen:
        from vivant.hub.soundness import check, checked_hash, files_of

        expected = None if sha256 is None else checked_hash(sha256)
        files = files_of(Path(path).expanduser() for path in paths)
        if expected is not None and len(files) != 1:
            raise InputError("E-VERIFY-SHA256", f"--sha256 is of one file, and {len(files)} are given.")
        results: list[Sound] = []
        with screen.bytes("Reading", sum(_size(file) for file in files)) as progress:
            for file in files:
                results.append(check(file, expected, progress))
                _show(screen, results[-1])
        wrong = sum(bool(result.problems) for result in results)
        if json:
            print_json({"files": [_object(result) for result in results], "warnings": screen.warnings})
        else:
            count = "1 file" if len(results) == 1 else f"{len(results)} files"
            screen.say(f"{count} read: {f'{wrong} not sound' if wrong else 'sound'}.")
        codes = {problem.code for result in results for problem in result.problems}
    if codes:
        raise Exit(Code.GRADED if codes <= set(_COMPLAINTS) else Code.LOAD)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _show(screen: Screen, result: "Sound") -> None:
    hashed = f", sha256 {result.sha256}" if result.sha256 else ""
    compared = ", as expected" if result.expected and not result.problems else ""
    verdict = "not sound" if result.problems else "sound"
    name = one_line(str(result.path))
    screen.show(f"{verdict}: {name} ({size(result.size)}, {result.tensors} tensors{hashed}{compared})")
    for problem in result.problems:
        screen.show(f"  [{problem.code}] {one_line(problem.what)}")
        if problem.fix:
            screen.show(f"  {one_line(problem.fix)}")


def _object(result: "Sound") -> dict[str, Any]:
    return {
        "path": str(result.path),
        "sound": not result.problems,
        "size": result.size,
        "sha256": result.sha256,
        "expected": result.expected,
        "tensors": result.tensors,
        "not_finite": [{"name": one.name, "nan": one.nan, "infinite": one.infinite} for one in result.not_finite],
        "problems": [error_json(problem) for problem in result.problems],
    }
