"""Options that several commands have, and how their texts are read. Imports no torch."""

from enum import StrEnum
from typing import Any

from typer import Option

from vivant.errors import InputError

PERSON, CLIP, SAMPLING, MODELS, OUTPUT = "Person", "Clip", "Sampling", "Models", "Output"


class Dtype(StrEnum):
    """Values of --dtype."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Residency(StrEnum):
    """Values of --residency."""

    resident = "resident"
    component = "component"
    layer = "layer"


RESIDENCY = "What of the models stays in memory: all, the network in use, or one layer at a time. Same result."


def option(flag: str, text: str, heading: str, **more: Any) -> Any:
    """An option under a heading of the help."""
    return Option(*flag.split(), help=text, rich_help_panel=heading, **more)


def seed_of(text: str) -> int | tuple[int, ...]:
    """One seed, or several with commas."""
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            "E-SEED", f"--seed is {text!r}.", "", "Give a whole number, or one for each clip: 1,2,3."
        ) from None
    return seeds[0] if len(seeds) == 1 else seeds


def sides_of(size: str | None, height: int | None, width: int | None) -> dict[str, int | None]:
    """Height and width, from one of their two spellings."""
    if size is None:
        return {"height": height, "width": width}
    if height is not None or width is not None:
        raise InputError("E-SIZE-TWICE", "--size is given, and --height or --width too.", "", "Give one of them.")
    sides = size.lower().replace("×", "x").split("x")
    if len(sides) != 2 or not all(side.strip().isdecimal() and len(side) < 10 for side in sides):
        raise InputError("E-SIZE", f"--size is {size!r}.", "", "Give WIDTHxHEIGHT in pixels, such as 512x384.")
    return {"height": int(sides[1]), "width": int(sides[0])}


def choice_of(text: str) -> str | int | tuple[float, ...]:
    """Which face is meant, see `vivant.faces.found.Choice`."""
    if text in ("largest", "center"):
        return text
    numbers = numbers_of(text, "E-FACE-CHOICE", "--face")
    if len(numbers) == 4:
        return tuple(numbers)
    if len(numbers) == 1 and numbers[0] == int(numbers[0]):
        return int(numbers[0])
    raise InputError(
        "E-FACE-CHOICE",
        f"--face is {text!r}.",
        "",
        "Give largest, center, a number from left to right beginning at 0, or LEFT,TOP,RIGHT,BOTTOM in pixels.",
    )


def numbers_of(text: str, code: str, flag: str) -> list[float]:
    """Numbers with commas between them; one at the end is allowed."""
    try:
        return [float(part) for part in text.removesuffix(",").split(",")]
    except ValueError:
        raise InputError(code, f"{flag} is {text!r}.", "", "Give numbers with commas between them.") from None


def weighted(text: str) -> str | tuple[str, float]:
    """A file, or FILE=WEIGHT; a name may have an equals sign of its own."""
    name, sign, weight = text.rpartition("=")
    try:
        return (name, float(weight)) if sign else text
    except ValueError:
        return text
