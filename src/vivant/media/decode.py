"""Clips back in: frames, rate and size of what `video.write_clip` writes."""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from os import PathLike
from pathlib import Path

import numpy as np
from av import VideoStream
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import Interpolation
from jaxtyping import UInt8
from PIL import Image

from vivant.errors import LoadError
from vivant.media.container import BinaryFile, Container, container_of, open_av
from vivant.media.frames import rate_of

MAX_FRAME_PIXELS = 64_000_000
MAX_CLIP_BYTES = 4 * 2**30
# Without these FFmpeg truncates instead of rounding: every channel a level too dark, 3 dB lost.
_TO_RGB = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# AttributeError: a PyAV stream whose codec is unknown has no size.
_DAMAGE = (
    AttributeError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class ClipInfo:
    """What a file holds. `fps` is None for a still and for a folder of stills."""

    codec: str
    width: int
    height: int
    num_frames: int
    fps: Fraction | None


def read_clip(path: str | PathLike[str]) -> tuple[UInt8[np.ndarray, "f h w 3"], Fraction | None]:
    """Decode a clip, or a folder of PNG frames, as RGB.

    Returns:
        The frames, and the rate: exact for mp4, webm and apng, the simplest one that agrees with the rounded frame
        times of gif and webp, None where the file does not say (a still, a folder).

    Raises:
        LoadError: E-CLIP-MISSING, E-CLIP-FORMAT, E-CLIP-BROKEN, or E-CLIP-SIZE for more than 64 megapixels a frame
            or 4 GiB in all.
    """
    rate = None if os.path.isdir(path) else probe(path).fps
    frames: list[np.ndarray] = []
    num_bytes = 0
    for pixels in frames_in(path):
        num_bytes += pixels.nbytes
        if num_bytes > MAX_CLIP_BYTES:
            raise LoadError("E-CLIP-SIZE", f"{path} holds more than {MAX_CLIP_BYTES >> 30} GiB of pixels.")
        frames.append(pixels)
    return np.stack(frames), rate


def frames_in(path: str | PathLike[str]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The frames of a clip one after the other, however long it is; see `read_clip`.

    Raises:
        LoadError: as `read_clip`, but for the size in all.
    """
    path, num = Path(path), 0
    try:
        if os.path.isdir(path):  # unlike Path.is_dir, it answers for names that the system cannot hold
            pictures = (pixels for file in _numbered(path) for pixels in _pictures(file, "png"))
        else:
            kind = container_of(path)
            pictures = _film(path, kind) if kind in ("mp4", "webm") else _pictures(path, kind)
        for pixels in pictures:
            num += 1
            yield pixels
        if not num:
            raise ValueError("It holds no frame.")
    except LoadError:
        raise
    except (*_DAMAGE, FFmpegError) as error:
        raise _broken(path, error) from error


def probe(path: str | PathLike[str]) -> ClipInfo:
    """Codec, size, number of frames and rate of a clip, without decoding more than that takes.

    Raises:
        LoadError: as `read_clip`.
    """
    path = Path(path)
    try:
        if os.path.isdir(path):
            files = _numbered(path)
            first = _info(files[0], "png")
            return ClipInfo("png", first.width, first.height, len(files), None)
        return _info(path, container_of(path))
    except LoadError:
        raise
    except (*_DAMAGE, FFmpegError) as error:
        raise _broken(path, error) from error


def _info(path: Path, kind: Container) -> ClipInfo:
    with path.open("rb") as file:
        if kind in ("mp4", "webm"):
            with open_av(file, kind) as clip:
                stream = _video_stream(clip)
                count = stream.frames or sum(1 for packet in clip.demux(stream) if packet.size)
                name = stream.codec_context.name
                return ClipInfo(name, stream.width, stream.height, count, stream.average_rate)
        with _open_image(file, kind) as image:
            ends, now = [], 0.0
            for i in range(getattr(image, "n_frames", 1)):
                image.seek(i)
                if kind == "webp":
                    image.load()  # Pillow knows the duration of a WebP frame only once it is decoded
                now += float(image.info.get("duration") or 0)
                ends.append(now)
            ticks = 100 if kind == "gif" else 1000
            rounding = Fraction(1, 10**7) if kind == "apng" else Fraction(1, 2)
            rate = rate_of([end * ticks / 1000 for end in ends], ticks, rounding)
            return ClipInfo(kind, *image.size, len(ends), rate)


def _film(path: Path, kind: Container) -> Iterator[np.ndarray]:
    with path.open("rb") as file, open_av(file, kind) as clip:
        for frame in clip.decode(_video_stream(clip)):
            yield frame.to_ndarray(format="rgb24", interpolation=_TO_RGB)


def _pictures(path: Path, kind: Container) -> Iterator[np.ndarray]:
    with path.open("rb") as file, _open_image(file, kind) as image:
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            yield np.asarray(image.convert("RGB"))


def _open_image(file: BinaryFile, kind: Container) -> Image.Image:
    image = Image.open(file, formats=["PNG" if kind == "apng" else kind.upper()])
    _check_size(*image.size)
    return image


def _video_stream(clip: InputContainer) -> VideoStream:
    if not clip.streams.video:
        raise ValueError("It holds no picture track.")
    stream = clip.streams.video[0]
    _check_size(stream.width, stream.height)
    return stream


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_FRAME_PIXELS:
        raise LoadError("E-CLIP-SIZE", f"Its frames are {width} x {height} pixels, more than {MAX_FRAME_PIXELS}.")


def _numbered(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.png"))
    if not files:
        raise LoadError("E-CLIP-FORMAT", f"The folder {folder} holds no PNG frames.")
    return files


def _broken(path: Path, error: Exception) -> LoadError:
    return LoadError("E-CLIP-BROKEN", f"{path} is damaged.", f"{type(error).__name__}: {error}.")
