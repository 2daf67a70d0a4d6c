"""`vivant pull`: fetch a published repository, after it was said what and under which licences."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from vivant.cli.screen import Screen, clean, print_json, reporting, size
from vivant.errors import Cancelled, InputError

if TYPE_CHECKING:
    from vivant.hub.pull import Plan


def pull(
    repository: Annotated[
        str, Argument(help="A hub id, or consisid, consisid-1.5, pia or realistic-vision for the published ones.")
    ],
    to: Annotated[str | None, Option("--to", help="Folder for the files; the hub cache if not given.")] = None,
    revision: Annotated[str | None, Option("--revision", help="Branch, tag or commit.")] = None,
    variant: Annotated[str | None, Option("--variant", help="Variant of the weights, such as fp16.")] = None,
    only: Annotated[
        list[str] | None, Option("--only", help="Fetch only files that match, such as 'vae/*'. Once for each pattern.")
    ] = None,
    accept_licence: Annotated[
        bool, Option("--accept-licence", help="Accept the licences that are listed, without being asked.")
    ] = False,
    cache_dir: Annotated[str | None, Option("--cache-dir", help="Hub cache; HF_HOME decides if not given.")] = None,
    offline: Annotated[bool, Option("--offline", help="Refused: nothing can be pulled without the network.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="List what would be fetched, and fetch nothing.")] = False,
    json: Annotated[bool, Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Fetch a published model from the hub.

    Files, sizes and licences are listed first. The licences are accepted once, by hand or with --accept-licence. Files
    are compared with the hub's hashes, and pickles are converted to safetensors beside them, without being run.
    """
    with reporting(json) as screen:
        from vivant.hub import pull as hub

        if offline:
            raise hub.offline()
        plan = hub.make_plan(
            repository, to=to, revision=revision, variant=variant, only=only or (), cache_dir=cache_dir
        )
        for line in described(plan):
            (screen.show if dry_run else screen.say)(line)
        if dry_run:
            if json:
                print_json({**_object(plan), "fetched": [], "converted": [], "warnings": screen.warnings})
            return
        hub.check_space(plan)
        if not hub.is_accepted(plan):
            _ask(screen, plan, accept_licence)
            hub.accept(plan)
        try:
            with screen.bytes("Fetching", plan.fetch_size) as progress:
                fetched = hub.fetch(plan, progress)
            rest = sum(entry.size for entry in plan.entries if entry.name not in fetched)
            with screen.bytes("Comparing", rest) as progress:
                hub.verify(plan, progress, fetched)
            with screen.bytes("Converting", sum(entry.size for entry in plan.pickles)) as progress:
                written = hub.convert(plan, progress)
            hub.name_revision(plan)
        except KeyboardInterrupt:
            raise Cancelled(
                "E-CANCELLED", "Stopped.", "What was fetched is kept.", "Pull again to go on from there."
            ) from None
        converted = [path.relative_to(plan.folder).as_posix() for path in written]
        if json:
            print_json({**_object(plan), "fetched": fetched, "converted": converted, "warnings": screen.warnings})
            return
        screen.say(f"{len(fetched)} files fetched, {len(plan.entries)} verified, {len(converted)} converted.")
        screen.show(str(plan.folder))


def described(plan: "Plan") -> list[str]:
    """The plan in lines: files, sizes, what is left out, licences."""
    absent = set(plan.absent)
    lines = [f"{plan.repo} at commit {plan.commit}, to {plan.folder}"]
    for entry in plan.entries:
        begun = plan.begun(entry)
        at_hand = " (at hand)" if entry not in absent else f" ({size(begun)} at hand)" if begun else ""
        lines.append(f"  {size(entry.size):>9}  {entry.name}{at_hand}")
    lines.append(f"{len(plan.entries)} files, {size(plan.size)}; to fetch: {size(plan.fetch_size)}.")
    if plan.convert_size:
        lines.append(f"Pickles are converted, which takes {size(plan.convert_size)} more.")
    if plan.left_out:
        rest = sum(entry.size for entry in plan.left_out)
        lines.append(
            f"Left out: {len(plan.left_out)} files, {size(rest)}, which vivant does not read or was not asked."
        )
    lines.append("Licences:")
    for licence in plan.licences:
        lines.append(f"  {licence.part}: {licence.terms}{f' ({licence.link})' if licence.link else ''}")
    return lines


def _object(plan: "Plan") -> dict[str, Any]:
    absent = set(plan.absent)
    return {
        "repository": plan.repo,
        "revision": plan.revision,
        "commit": plan.commit,
        "folder": str(plan.folder),
        "files": [{"name": e.name, "size": e.size, "at_hand": e not in absent} for e in plan.entries],
        "left_out": [{"name": e.name, "size": e.size} for e in plan.left_out],
        "size": plan.size,
        "to_fetch": plan.fetch_size,
        "to_convert": plan.convert_size,
        "licences": [{"part": item.part, "terms": item.terms, "link": item.link} for item in plan.licences],
    }


def _ask(screen: Screen, plan: "Plan", accepted: bool) -> None:
    """Have the licences accepted, once."""
    if accepted:
        return
    by_hand = not screen.json and sys.stdin.isatty()
    if by_hand and typer.confirm(clean(f"Do you accept the licences of {plan.repo}?"), err=True):
        return
    raise InputError(
        "E-PULL-LICENCE",
        f"The licences of {plan.repo} were not accepted.",
        "; ".join(f"{licence.part}: {licence.terms}" for licence in plan.licences) + ". Nothing was fetched.",
        "If you accept them, pull again and say so, or add --accept-licence.",
    )
