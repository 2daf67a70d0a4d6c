"""The frames of a clip one after the other, with one of them in memory, however long the clip is."""

import os
import struct
import zlib
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Interpolation
from jaxtyping import UInt8
from PIL import Image

from vivant.errors import LoadError
from vivant.media.container import container_of, open_av
from vivant.media.decode import probe, read_clip

ROUNDED = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""To RGB with the rounding of `read_clip`."""


def frames_in(path: str | PathLike[str]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The frames that `read_clip` gives, in RGB, without its limit for all of them together.

    Raises:
        LoadError: E-CLIP-MISSING, E-CLIP-FORMAT, E-CLIP-BROKEN, or E-CLIP-SIZE for more than 64 megapixels a frame.
    """
    path = Path(path)
    probe(path)
    if os.path.isdir(path):
        for file in sorted(path.glob("*.png")):
            yield from read_clip(file)[0]
        return
    num = 0
    try:
        for frame in _film(path) if container_of(path) in ("mp4", "webm") else _pictures(path):
            num += 1
            yield frame
    except (FFmpegError, OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error) as error:
        if isinstance(error, LoadError):
            raise
        raise LoadError("E-CLIP-BROKEN", f"{path} is damaged.", f"{type(error).__name__}: {error}.") from error
    if not num:
        raise LoadError("E-CLIP-BROKEN", f"{path} is damaged.", "It holds no frame.")


def _film(path: Path) -> Iterator[np.ndarray]:
    kind = container_of(path)
    with path.open("rb") as file, open_av(file, kind) as clip:
        for frame in clip.decode(clip.streams.video[0]):
            yield frame.to_ndarray(format="rgb24", interpolation=ROUNDED)


def _pictures(path: Path) -> Iterator[np.ndarray]:
    kind = container_of(path)
    with path.open("rb") as file, Image.open(file, formats=["PNG" if kind == "apng" else kind.upper()]) as image:
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            yield np.asarray(image.convert("RGB"))
