"""The recipe of a clip: a JSON object kept inside the file, and once more beside it.

What a recipe says is decided by whoever writes it; here it is any JSON object whose field ``vivant`` holds the number
of the scheme. A recipe that is read may come from a stranger: its size, kind and scheme are checked, nothing else is
trusted.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from vivant.errors import InputError, LoadError
from vivant.media.container import MAX_TEXT, container_of, read_text

SCHEME = 1
_MARK = b'{"vivant":'


def encode_recipe(recipe: Mapping[str, Any], *, indent: int | None = None) -> str:
    """The recipe as ASCII JSON that begins with its scheme, by which it is recognised among other comments.

    Raises:
        InputError: E-RECIPE-VALUE for what JSON cannot hold or a recipe without its scheme, E-RECIPE-SIZE above 1 MB.
    """
    if recipe.get("vivant") != SCHEME:
        raise InputError("E-RECIPE-VALUE", f'A recipe has the field "vivant" = {SCHEME}.')
    try:
        separators = (",", ":") if indent is None else None
        text = json.dumps({"vivant": SCHEME, **recipe}, allow_nan=False, indent=indent, separators=separators)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError("E-RECIPE-VALUE", "The recipe holds a value that JSON cannot.", f"{error}.") from error
    if len(text) > MAX_TEXT:
        raise InputError("E-RECIPE-SIZE", f"The recipe takes {len(text)} bytes, more than {MAX_TEXT}.")
    return text


def decode_recipe(text: bytes, name: str) -> dict[str, Any]:
    """Parse a recipe that anyone may have written; `name` is for the message.

    Raises:
        LoadError: E-RECIPE-BROKEN, or E-RECIPE-SCHEME for the scheme of a later version.
    """
    if len(text) > MAX_TEXT:
        raise LoadError("E-RECIPE-BROKEN", f"The recipe of {name} is longer than {MAX_TEXT} bytes.")
    try:
        recipe = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise LoadError("E-RECIPE-BROKEN", f"The recipe of {name} is not valid JSON.", f"{error}.") from None
    if not isinstance(recipe, dict):
        raise LoadError("E-RECIPE-BROKEN", f"The recipe of {name} is not a JSON object.")
    scheme = recipe.get("vivant")
    if type(scheme) is not int or scheme < 1:
        raise LoadError("E-RECIPE-BROKEN", f'The recipe of {name} does not have the field "vivant".')
    if scheme > SCHEME:
        raise LoadError(
            "E-RECIPE-SCHEME",
            f"The recipe of {name} has the scheme {scheme}; this version knows {SCHEME}.",
            "A later version of vivant wrote it.",
            "Update vivant.",
        )
    return recipe


def sidecar_of(path: str | PathLike[str]) -> Path:
    """Where the recipe lies beside the clip: cat.mp4 has cat.mp4.json, so that cat.gif can have its own."""
    path = named(path)
    return path.parent / (path.name + ".json")


def named(path: str | PathLike[str]) -> Path:
    """A path that ends with the name of what it leads to, as the current folder's "." does not."""
    path = Path(path)
    return path.resolve() if path.name in ("", "..") else path


def read_recipe(path: str | PathLike[str]) -> dict[str, Any]:
    """The recipe inside a clip or the first frame of a folder, else the one beside it; of a .json file, itself.

    Raises:
        LoadError: E-RECIPE-NONE, E-RECIPE-BROKEN, E-RECIPE-SCHEME, or E-CLIP-MISSING, -FORMAT, -BROKEN.
    """
    path = named(path)
    if path.suffix.lower() == ".json":
        return decode_recipe(_read_bounded(path), path.name)
    # Unlike Path.is_dir, os.path answers for names that the system cannot hold.
    carrier = min(path.glob("*.png"), default=None) if os.path.isdir(path) else path
    text = None if carrier is None else read_text(carrier, container_of(carrier))
    if text is not None and text.startswith(_MARK):
        return decode_recipe(text, path.name)
    sidecar = sidecar_of(path)
    if not os.path.isfile(sidecar):
        raise LoadError(
            "E-RECIPE-NONE",
            f"{path.name} carries no recipe, and there is no {sidecar.name} beside it.",
            "Other programs drop it when they convert or upload a clip.",
        )
    return decode_recipe(_read_bounded(sidecar), sidecar.name)


def image_digest(image: Image.Image) -> str:
    """sha256 over the size and the RGB pixels of a picture: the same for a PNG and a BMP of it."""
    digest = hashlib.sha256(f"w{image.width} h{image.height} rgb8 ".encode())
    digest.update(image.convert("RGB").tobytes())
    return f"sha256:{digest.hexdigest()}"


def _read_bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_TEXT + 1)
    except OSError as error:
        raise LoadError("E-CLIP-MISSING", f"{path} cannot be read.", f"{type(error).__name__}: {error}.") from None


def _finite(text: str) -> float:
    """A number; 1e999 is one to JSON, and infinite to Python."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
