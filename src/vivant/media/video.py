"""Clips out: one entry that chooses the format by the name and never leaves half a file.

mp4, webm       film; an odd side is padded to even, the rate is exact
gif, webp, apng animations of the exact size
png             a contact sheet of all frames
name/           a folder of numbered PNG files
"""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

from vivant.errors import InputError, LoadError, OutputError
from vivant.media import encode
from vivant.media.atomic import check_folder, check_target, replacing, replacing_folder
from vivant.media.decode import ClipInfo, probe, read_clip
from vivant.media.frames import Frames, Rate, as_frames, as_rate, frames_hash
from vivant.media.recipe import decode_recipe, encode_recipe, sidecar_of

__all__ = ["ClipInfo", "check_output", "frames_hash", "probe", "read_clip", "write_clip"]

SUFFIXES = (".mp4", ".webm", ".gif", ".webp", ".apng", ".png")
_FILM = (".mp4", ".webm")
_LOSSY = (*_FILM, ".webp")
_FRAME_FILES = "frame_*.png"


def write_clip(
    frames: Frames,
    path: str | PathLike[str],
    fps: Rate,
    *,
    recipe: Mapping[str, Any] | None = None,
    quality: int | float | None = None,
    bitrate: int | None = None,
    overwrite: bool = False,
    sidecar: bool = True,
) -> Path:
    """Write a clip; the suffix of `path` says how (see the table above). Nothing remains of a failed attempt.

    Args:
        frames: RGB pictures, or uint8 (f, h, w, 3), or floats in [0, 1] of that shape.
        path: the file, or a folder to create (a name that ends with a slash, or a folder that exists).
        fps: frames a second; a Fraction is kept exactly (``Fraction(30000, 1001)``).
        recipe: a JSON object, kept inside the file.
        quality: 0 (worst) to 10 for mp4, webm and webp; None takes a high one fit for the format.
        bitrate: bits a second for mp4 and webm, instead of a quality.
        overwrite: replace a clip that exists.
        sidecar: also write the recipe beside the clip, as ``<name>.json``.

    Returns:
        The path written.

    Raises:
        InputError: E-OUTPUT-SUFFIX, E-OUTPUT-FPS, E-OUTPUT-QUALITY, E-OUTPUT-SIZE, E-FRAMES-…, E-RECIPE-VALUE, -SIZE.
        OutputError: E-OUTPUT-EXISTS, E-OUTPUT-FOLDER, E-OUTPUT-WRITE, E-OUTPUT-CODEC.
    """
    target, suffix = _target(path)
    rate = as_rate(fps)
    _check_quality(suffix, quality, bitrate)
    clip = as_frames(frames)
    text = encode_recipe(recipe) if recipe is not None else None
    beside, replaces = sidecar_of(target), os.path.exists(target)
    if recipe is not None and sidecar:
        written_beside = replacing(beside, overwrite=overwrite)
    else:
        written_beside = nullcontext()
    with written_beside as note:
        if note is not None and recipe is not None:
            note.write_text(encode_recipe(recipe, indent=2) + "\n", encoding="ascii")
        if suffix == "":
            with replacing_folder(target, overwrite=overwrite, ours=_FRAME_FILES) as folder:
                encode.png_sequence(clip, folder, text)
        else:
            with replacing(target, overwrite=overwrite) as file:
                match suffix:
                    case ".mp4":
                        encode.mp4(clip, file, rate, text, quality, bitrate)
                    case ".webm":
                        encode.webm(clip, file, rate, text, quality, bitrate)
                    case ".gif":
                        encode.gif(clip, file, rate, text)
                    case ".webp":
                        encode.webp(clip, file, rate, text, quality)
                    case ".apng":
                        encode.apng(clip, file, rate, text)
                    case _:
                        encode.contact_sheet(clip, file, text)
    if recipe is None and replaces:
        _drop_stale_recipe(beside)
    return target


def check_output(
    path: str | PathLike[str], *, overwrite: bool = False, fps: Rate | None = None, sidecar: bool = True
) -> Path:
    """Refuse, before any work, a path to which `write_clip` could not write.

    Args:
        path: as for `write_clip`.
        overwrite: likewise.
        fps: the rate, if the format is to be asked whether it can hold it.
        sidecar: whether a recipe is to be written beside the clip too.

    Raises:
        InputError: E-OUTPUT-SUFFIX, E-OUTPUT-FPS.
        OutputError: E-OUTPUT-EXISTS, E-OUTPUT-FOLDER, E-OUTPUT-WRITE.
    """
    target, suffix = _target(path)
    if fps is not None:
        encode.check_rate(suffix, as_rate(fps))
    if suffix == "":
        check_folder(target, overwrite=overwrite, ours=_FRAME_FILES)
    else:
        check_target(target, overwrite=overwrite)
    if sidecar:
        check_target(sidecar_of(target), overwrite=overwrite)
    if not os.access(target.parent, os.W_OK):
        raise OutputError("E-OUTPUT-WRITE", f"The folder {target.parent} cannot be written to.", "", "Choose another.")
    return target


def _target(path: str | PathLike[str]) -> tuple[Path, str]:
    """The path and its suffix in lower case, which is empty for a folder of frames."""
    spelled = os.fspath(path)
    target = Path(spelled)
    if target.name in ("", ".."):
        raise InputError(
            "E-OUTPUT-SUFFIX", f"{spelled!r} names no clip.", "", "Give a file or a folder by its own name: frames/."
        )
    if spelled.endswith(("/", os.sep)) or os.path.isdir(target):
        return target, ""
    suffix = target.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            "E-OUTPUT-SUFFIX",
            f"{target.name!r} does not name a format that can be written.",
            "",
            f"End it with {', '.join(SUFFIXES)}, or with a slash for a folder of PNG frames.",
        )
    return target, suffix


def _check_quality(suffix: str, quality: int | float | None, bitrate: int | None) -> None:
    """What a format cannot honour is refused."""
    kind = suffix or "PNG"
    if quality is not None and suffix not in _LOSSY:
        raise InputError("E-OUTPUT-QUALITY", f"{kind} has no quality to choose.", "", f"Use {', '.join(_LOSSY)}.")
    if bitrate is not None and suffix not in _FILM:
        raise InputError("E-OUTPUT-QUALITY", f"{kind} has no bitrate.", "", f"Use {', '.join(_FILM)}.")
    if quality is not None and bitrate is not None:
        raise InputError("E-OUTPUT-QUALITY", "A clip has either a quality or a bitrate.")
    if quality is not None and not 0 <= quality <= 10:
        raise InputError("E-OUTPUT-QUALITY", f"The quality {quality} is not between 0 and 10.")
    if bitrate is not None and bitrate < 1:
        raise InputError("E-OUTPUT-QUALITY", f"The bitrate {bitrate} is not positive.")


def _drop_stale_recipe(path: Path) -> None:
    """A recipe beside a clip that was just replaced describes another clip; a file that is no recipe stays."""
    try:
        with path.open("rb") as file:
            decode_recipe(file.read(2_000_000), path.name)
    except (OSError, LoadError):
        return
    path.unlink(missing_ok=True)
