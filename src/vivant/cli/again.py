"""What making a clip again has in common for every kind of recipe. Imports torch."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import typer

from vivant.api.result import Result
from vivant.cli import filming, making
from vivant.cli.recipes import Made, Origin
from vivant.cli.screen import Code, Screen, clean
from vivant.cli.writing import finish, saving, write
from vivant.errors import InputError, LoadError
from vivant.pocket import FOLDER

L = TypeVar("L", making.Loading, filming.Loading)

# What is wrong with a source of which only a part, or nothing, is in the cache.
FETCHABLE = (
    *("E-FILE-MISSING", "E-REPO-COMPONENT", "E-REPO-INDEX", "E-REPO-OFFLINE", "E-REPO-SUBFOLDER", "E-TOKENIZER"),
    *("E-WEIGHTS-MISSING", "E-WEIGHTS-SHARD", "E-WEIGHTS-VARIANT"),
)


@dataclass(frozen=True)
class Asked:
    """The options of `vivant redo`; those that only some kinds of recipe read are None where they are not given."""

    file: str
    images: Sequence[str] | None
    identities: Sequence[str] | None
    base: str | None
    motion_adapter: str | None
    vae: str | None
    config: str | None
    model: str | None
    additions: Sequence[str] | None
    outputs: Sequence[str]
    device: str | None
    residency: str
    cache_dir: str | None
    offline: bool
    yes: bool
    overwrite: bool

    def check_unread(self, kind: str, **unread: object) -> None:
        """Refuse (E-REDO-OPTION) options that mean nothing for this kind of recipe."""
        given = [f"--{name.replace('_', '-')}" for name, value in unread.items() if value]
        if given:
            raise InputError(
                "E-REDO-OPTION",
                f"{', '.join(given)} is given, and the recipe is one of {kind}.",
                "It would be ignored.",
                "Leave it out.",
            )


def source_of(name: str, given: str | None, origin: Origin) -> str:
    """Where to read a model from: what was given, else what the recipe says; a file of the hub in its revision.

    Raises:
        InputError: E-REDO-MODEL for a folder, whose path the recipe does not hold, or an ambiguous name.
    """
    if given is not None:
        return given
    if origin.hub is None and origin.shipped is not None:
        return str(FOLDER / origin.shipped)
    kind = "folder" if origin.file is None else "file"
    if origin.hub is None:
        raise InputError(
            "E-REDO-MODEL",
            f"The recipe's {name} was the local {kind} {origin.file or origin.folder!r}.",
            "A recipe holds no paths.",
            f"Say where it is: --{name.replace('_', '-')} {kind.upper()}.",
        )
    place = origin.hub if origin.file is None else f"{origin.hub}/{origin.file}"
    if Path(place).exists():
        raise InputError(
            "E-REDO-MODEL",
            f"The recipe names {place} on the hub, and there is a local {kind} of that name.",
            "",
            f"Say which is meant: --{name.replace('_', '-')} {Path(place).resolve()}, or another current folder.",
        )
    pinned = origin.file is not None and origin.revision is not None
    return f"{origin.hub}/blob/{origin.revision}/{origin.file}" if pinned else place


def settle(screen: Screen, loading: L, hub_ids: list[str], yes: bool) -> L:
    """Decide about the network: what only the recipe asks for is fetched with consent.

    Raises:
        InputError: E-REDO-FETCH without it.
    """
    if loading.offline or not hub_ids or yes:
        return loading
    local = replace(loading, offline=True)
    try:
        local.check()
        return local
    except LoadError as error:
        if error.code not in FETCHABLE:
            raise
        missing = error
    names = " and ".join(hub_ids)
    asked = not screen.json and sys.stdin.isatty()
    if asked and typer.confirm(clean(f"The recipe names {names}, not in the cache. Fetch it from the hub?"), err=True):
        return loading
    raise InputError(
        "E-REDO-FETCH",
        f"The recipe names {names} on the hub, which is not in the cache.",
        f"What a recipe names is fetched only with your consent. ({missing.what})",
        "Add --yes if you trust it, or give the models with options.",
    )


def check_weights(now: Mapping[str, str], made: Made) -> None:
    """Refuse (E-REDO-WEIGHTS) to compute with other weights than the recipe's."""
    other = [name for name in now if now[name] != made.weights.get(name)]
    if other:
        raise LoadError(
            "E-REDO-WEIGHTS",
            f"The weights of {', '.join(other)} are not those of the recipe.",
            "The clip could not be the same.",
            "Give the models that it was made with, in the revision and variant that the recipe shows.",
        )


def compare(screen: Screen, asked: Asked, made: Made, result: Result) -> None:
    """Write the clip that was made again, and say whether it is the same; exit code 5 if not."""
    shown = write(screen, result, {made.clip: asked.outputs}, saving(result, asked.overwrite, made.enlarged))
    same = result.recipe["frames_hashes"][made.clip] == made.hashes[made.clip]
    finish(screen, result, shown, {"same": same})
    if same:
        screen.show("The same frames as before.")
        return
    differs = [
        f"{name} {made.versions.get(name, '?')} then, {now} now"
        for name, now in result.recipe["versions"].items()
        if made.versions.get(name) != now
    ]
    screen.show("The frames are not the same as before.")
    screen.say(f"  {'; '.join(differs)}." if differs else "  Another processor or number of threads may round so.")
    raise typer.Exit(Code.DIFFERENT)
