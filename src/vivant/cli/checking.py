"""`vivant face check` behind the reading of its options. Imports torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vivant.cli.options import choice_of
from vivant.cli.screen import Code, Screen, code_of, error_json, print_json
from vivant.cli.writing import numbered
from vivant.errors import OutputError, VivantError
from vivant.faces.check import Checked, check, drawn, summary
from vivant.faces.small import SmallFaces
from vivant.media.atomic import check_target, replacing
from vivant.media.still import read_still

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def check_photos(screen: Screen, photos: Sequence[str], face: str | None, output: str | None, overwrite: bool) -> Code:
    """Check every photo; one that cannot be read does not keep the others from it."""
    choice: Any = None if face is None else choice_of(face)
    targets = [numbered([] if output is None else [output], k, len(photos)) for k in range(len(photos))]
    for path in (path for paths in targets for path in paths):
        _check_target(path, photos, overwrite)
    detector = SmallFaces().detector
    code, shown = Code.OK, list[dict[str, Any]]()
    for path, drawings in zip(photos, targets, strict=True):
        try:
            still = read_still(path)
            checked = check(still.image, detector, choice)
            for drawing in drawings:
                _save(drawn(still.image, checked), drawing, overwrite)
        except VivantError as error:
            screen.say(f"{path}: Error [{error.code}]: {error.what} {error.why} {error.fix}".rstrip())
            shown.append({"photo": path, "error": error_json(error)})
            code = code if code not in (Code.OK, Code.GRADED) else code_of(error)
            continue
        for line in summary(checked):
            screen.show(f"{path}: {line}")
        shown.append({"photo": path, **checked.to_json(), **({"drawn": drawings[0]} if drawings else {})})
        code = _worse(code, checked)
    if screen.json:
        print_json({"photos": shown, "warnings": screen.warnings})
    return code


def _worse(code: Code, checked: Checked) -> Code:
    return Code.GRADED if code == Code.OK and checked.grades else code


def _check_target(path: str, photos: Sequence[str], overwrite: bool) -> None:
    if Path(path).suffix.lower() not in SUFFIXES:
        fix = f"Give a name that ends in {', '.join(SUFFIXES)}."
        raise OutputError("E-OUTPUT-SUFFIX", f"{path} is no picture that can be written.", "", fix)
    if any("://" not in photo and Path(photo).resolve() == Path(path).resolve() for photo in photos):
        raise OutputError("E-OUTPUT-TWICE", f"{path} would be written, and is read too.", "", "Choose another name.")
    check_target(Path(path), overwrite=overwrite)


def _save(picture: Image.Image, path: str, overwrite: bool) -> None:
    with replacing(Path(path), overwrite=overwrite) as temporary:
        picture.save(temporary)
