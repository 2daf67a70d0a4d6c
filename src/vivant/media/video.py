"""Clips out: one entry that chooses the format by the name and never leaves half a file.

mp4, webm       film; an odd side is padded to even, the rate is exact
gif, webp, apng animations of the exact size
png             a contact sheet of all frames
name/           a folder of numbered PNG files
"""

import os
import shutil
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from fractions import Fraction
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from vivant.errors import InputError, LoadError, OutputError
from vivant.media import encode
from vivant.media.atomic import check_folder, check_target, naming, replacing, replacing_folder
from vivant.media.decode import ClipInfo, probe, read_clip
from vivant.media.frames import Frames, Rate, as_frames, as_rate, check_enlarge, enlarged, frames_hash
from vivant.media.recipe import decode_recipe, encode_recipe, sidecar_of

__all__ = ["ClipInfo", "ClipWriter", "check_output", "frames_hash", "probe", "read_clip", "write_clip"]

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

    def fill(place: Path, text: str | None) -> None:
        with closing(_encoder(suffix, place, rate, clip, quality, bitrate)) as encoder:
            encoder.add(clip)
            encoder.finish(text)

    return _put(target, suffix, recipe, overwrite, sidecar, fill)


def _put(
    target: Path,
    suffix: str,
    recipe: Mapping[str, Any] | None,
    overwrite: bool,
    sidecar: bool,
    fill: Callable[[Path, str | None], None],
) -> Path:
    """Have `fill` write a clip to a temporary place, and put it and its recipe where they belong."""
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
            place = replacing_folder(target, overwrite=overwrite, ours=_FRAME_FILES)
        else:
            place = replacing(target, overwrite=overwrite)
        with place as temporary:
            fill(temporary, text)
    if recipe is None and replaces:
        _drop_stale_recipe(beside)
    return target


def _encoder(
    suffix: str, place: Path, rate: Fraction, clip: encode.Clip, quality: int | float | None, bitrate: int | None
) -> encode.Encoder:
    """What encodes a clip that begins with these frames; of odd sides that will be padded it is said here."""
    if suffix in _FILM:
        encode.warn_of_padding(clip)
    return encode.encoder(suffix, place, rate, quality, bitrate)


class ClipWriter:
    """Writes a clip while its frames are still being made: a thread encodes them as they come.

    A context manager. What is known last, the recipe, is given to `finish`; leaving the block without it leaves nothing
    behind, and what was at the path as it was. Film and the files of a folder are encoded at once; gif, webp, apng and
    contact sheets keep their frames and are encoded by `finish`. The clip is the one that `write_clip` makes of all
    frames.
    """

    AHEAD = 4
    """Parts that may wait for the thread; `write` waits when there are more."""

    def __init__(
        self,
        path: str | PathLike[str],
        fps: Rate,
        *,
        quality: int | float | None = None,
        bitrate: int | None = None,
        overwrite: bool = False,
        sidecar: bool = True,
        enlarge: int = 1,
    ):
        """
        Args:
            path: as for `write_clip`; refused here if it could not be written.
            fps: frames a second.
            quality: as for `write_clip`.
            bitrate: as for `write_clip`.
            overwrite: replace a clip that exists.
            sidecar: also write the recipe beside the clip.
            enlarge: make every side that many times as long.

        Raises:
            InputError, OutputError: as `check_output`, E-OUTPUT-QUALITY, and E-ENLARGE.
        """
        check_enlarge(enlarge)
        check_output(path, overwrite=overwrite, fps=fps, sidecar=sidecar)
        self._target, self._suffix = _target(path)
        _check_quality(self._suffix, quality, bitrate)
        self._rate, self._quality, self._bitrate = as_rate(fps), quality, bitrate
        self._overwrite, self._sidecar, self._enlarge = overwrite, sidecar, enlarge
        self._is_open = False
        self._shape: tuple[int, ...] | None = None
        self._encoder: encode.Encoder | None = None
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        with naming(self._target):
            folder = self._stack.enter_context(TemporaryDirectory(prefix="vivant-"))
        self._scratch = Path(folder) / f"clip{self._suffix}"
        self._thread = self._stack.enter_context(ThreadPoolExecutor(max_workers=1))
        self._is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        for part in self._waiting:
            part.cancel()
        with self._stack:
            self._thread.shutdown(wait=True)
            if self._encoder is not None:
                self._encoder.close()

    @property
    def encoded(self) -> int:
        """Frames that are encoded already."""
        return self._encoder.encoded if self._encoder is not None else 0

    def write(self, frames: Frames) -> None:
        """Hand over the next frames. They are copied, so that the array may be filled anew.

        Raises:
            InputError: E-FRAMES-… for what is no clip, or of another size than the frames before; E-OUTPUT-CLOSED.
            OutputError: what the encoder refused of earlier frames. It is raised again by every later call, since the
                clip lacks them.
        """
        self._check_open()
        clip = enlarged(as_frames(frames), self._enlarge)
        if clip is frames:
            clip = clip.copy()
        shape = self._shape or clip.shape[1:]
        if clip.shape[1:] != shape:
            found = f"{clip.shape[2]} x {clip.shape[1]} after {shape[1]} x {shape[0]}"
            raise InputError("E-FRAMES-SHAPE", f"The frames of the clip have different sizes: {found}.")
        self._settle(self.AHEAD - 1)
        if self._encoder is None:
            with naming(self._target):
                self._encoder = _encoder(self._suffix, self._scratch, self._rate, clip, self._quality, self._bitrate)
        self._shape = shape
        self._waiting.append(self._thread.submit(self._encoder.add, clip))

    def finish(self, recipe: Mapping[str, Any] | None = None) -> Path:
        """Complete the file.

        Args:
            recipe: a JSON object, kept inside the file and, unless `sidecar` is False, beside it.

        Raises:
            InputError: E-FRAMES-EMPTY if nothing was written, E-RECIPE-VALUE, -SIZE, E-OUTPUT-SIZE, -CLOSED.
            OutputError: as `write_clip` and `write`.
        """
        self._check_open()
        encoder, scratch = self._encoder, self._scratch
        if encoder is None:
            raise InputError("E-FRAMES-EMPTY", "The clip has no frames.")
        self._settle(0)

        def fill(place: Path, text: str | None) -> None:
            self._is_open = False  # an encoder ends once; what is refused before, such as the recipe, may be tried anew
            encoder.finish(text)
            if self._suffix == "":
                for page in scratch.iterdir():
                    shutil.copyfile(page, place / page.name)
            else:
                shutil.copyfile(scratch, place)

        return _put(self._target, self._suffix, recipe, self._overwrite, self._sidecar, fill)

    def _check_open(self) -> None:
        if not self._is_open:
            raise InputError(
                "E-OUTPUT-CLOSED",
                f"The writer of {self._target.name} takes nothing now.",
                "It does so inside its with block, until finish.",
                "Use a new one for another clip.",
            )

    def _settle(self, most: int) -> None:
        """Wait until at most so many parts wait. One that failed stays the first in line, to be told of again."""
        while self._waiting and (len(self._waiting) > most or self._waiting[0].done()):
            with naming(self._target):
                self._waiting[0].result()
            self._waiting.popleft()


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
