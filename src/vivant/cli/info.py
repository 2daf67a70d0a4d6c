"""`vivant info`: what a file holds and how it was made."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from vivant.cli.screen import reporting
from vivant.errors import LoadError


def info(
    file: Annotated[str, Argument(help="A clip, a folder of PNG frames, or a recipe (.json).")],
    json: Annotated[bool, Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Show what a clip holds and the recipe inside or beside it."""
    with reporting(json) as screen:
        from vivant.cli.screen import print_json
        from vivant.media.recipe import read_recipe

        clip = None if Path(file).suffix.lower() == ".json" else _probed(file)
        try:
            recipe = read_recipe(file)
        except LoadError as error:
            if error.code != "E-RECIPE-NONE":
                raise
            recipe = None
        if json:
            print_json({"clip": clip, "recipe": recipe, "warnings": screen.warnings})
            return
        if clip is not None:
            rate = "" if clip["fps"] is None else f", {clip['fps']:g} frames a second"
            screen.show(f"{clip['codec']}, {clip['width']} x {clip['height']}, {clip['frames']} frames{rate}")
        if recipe is None:
            screen.show("It carries no recipe.")
            return
        for name, value in recipe.items():
            screen.show(_lines(name, value))


def _probed(file: str) -> dict[str, Any]:
    from vivant.media.video import probe

    found = probe(file)
    rate = found.fps
    return {
        "codec": found.codec,
        "width": found.width,
        "height": found.height,
        "frames": found.num_frames,
        "fps": None if rate is None else float(rate),
        "fps_exact": None if rate is None else f"{rate.numerator}/{rate.denominator}",
    }


def _lines(name: str, value: Any, depth: int = 0) -> str:
    """A value of a recipe as indented lines; what is deeper than a recipe of ours is cut."""
    start = f"{'  ' * depth}{name}:"
    if isinstance(value, dict) and depth < 4:
        return "\n".join([start, *(_lines(str(key), inner, depth + 1) for key, inner in value.items())])
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{start} {text}"
