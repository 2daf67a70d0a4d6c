"""`vivant models`: what models lie here, what they are, and what can be done with them."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option

from vivant.cli.screen import Code, Screen, error_json, one_line, print_json, reporting, size

if TYPE_CHECKING:
    from vivant.hub.catalogue import Entry


def models(
    paths: Annotated[
        list[str] | None,
        Argument(help="Files and folders; the hub's cache and the models that ship if none is given."),
    ] = None,
    hash: Annotated[
        bool | None,
        Option("--hash/--no-hash", help="Read every file for its sha256; if not said, of files that are named."),
    ] = None,
    json: Annotated[bool, Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """List models: what they are, their sizes, hashes, data types, trained words and licences, and what they are for.

    Only headers are read, unless hashes are asked for. A folder is searched with all folders in it; a repository is one
    model. What cannot be read is listed with the reason; the exit code is 3 if it was named.
    """
    with reporting(json) as screen:
        from vivant.hub.catalogue import entries, hub_cache, shipped

        given = [Path(path).expanduser() for path in paths or ()]
        cache = hub_cache()
        places = given or [*([cache] if cache is not None else []), shipped()]
        found: list[dict[str, Any]] = []
        for entry in entries(places):
            is_named = entry.path in given
            described = _object(entry, _sha256(screen, entry, is_named if hash is None else hash))
            found.append(described)
            for line in _lines(described):
                screen.show(line)
        broken = any(one["error"] and Path(one["path"]) in given for one in found)
        if json:
            print_json({"models": found, "warnings": screen.warnings})
        else:
            count = "1 model" if len(found) == 1 else f"{len(found)} models"
            screen.say(f"{count} in {', '.join(one_line(str(place)) for place in places)}.")
    if broken:
        raise Exit(Code.LOAD)


def _sha256(screen: Screen, entry: "Entry", wanted: bool) -> str | None:
    """The hash of a file: the hub's if it is in its cache, else computed if it is wanted."""
    if entry.sha256 is not None or not wanted or entry.error is not None or os.path.isdir(entry.path):
        return entry.sha256
    from vivant.hub.soundness import file_hash

    with screen.bytes("Hashing", entry.size) as progress, suppress(OSError):  # it may have gone meanwhile
        return file_hash(entry.path, progress)
    return None


def _object(entry: "Entry", sha256: str | None) -> dict[str, Any]:
    from vivant.schedulers.few_steps import few_steps

    fast = few_steps(str(entry.path), entry.header.metadata, entry.header.tensors) if entry.header else None
    remarks = entry.remarks
    return {
        "path": str(entry.path),
        "kind": entry.kind.what,
        "family": entry.kind.family,
        "layout": entry.kind.layout,
        "use": entry.use,
        "size": entry.size,
        "sha256": sha256,
        "short_hash": sha256[:10] if sha256 else None,
        "tensors": entry.tensors,
        "dtypes": dict(entry.dtypes),
        "parts": dict(entry.parts),
        "title": remarks.title,
        "author": remarks.author,
        "base_model": remarks.base_model,
        "licence": remarks.licence,
        "trigger": remarks.trigger,
        "trained_words": list(remarks.trained_words),
        "few_steps": str(fast) if fast else None,
        "error": error_json(entry.error) if entry.error else None,
    }


def _lines(one: dict[str, Any]) -> list[str]:
    """A model for people: one line, and what is known of it in lines below."""
    lines = [one_line(one["path"])]

    def add(name: str, text: str) -> None:
        if text:
            lines.append(f"  {name + ':':<15} {one_line(text)}")

    if one["error"]:
        add("error", f"[{one['error']['code']}] {one['error']['what']}")
    if one["tensors"]:
        family = one["family"] if one["family"] != "unknown" else "unknown family"
        add("kind", ", ".join(text for text in (one["kind"], family, one["layout"]) if text))
    add("use", one["use"])
    if one["tensors"]:
        types = ", ".join(f"{count} {dtype}" for dtype, count in one["dtypes"].items())
        add("holds", f"{size(one['size'])}, {one['tensors']} tensors: {types}")
    add("parts", ", ".join(f"{part} ({name})" if part != "." else name for part, name in one["parts"].items()))
    for name in ("title", "author", "base_model", "licence", "trigger"):
        add(name.replace("_", " "), one[name])
    add("trained words", ", ".join(one["trained_words"]))
    add("few steps", one["few_steps"] or "")
    if one["sha256"]:
        add("sha256", f"{one['sha256']}, short {one['short_hash']}")
    return lines
