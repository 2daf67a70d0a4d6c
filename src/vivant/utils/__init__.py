"""Pictures and clips at diffusers' import path, with its signatures."""

import os
import tempfile
from collections.abc import Callable, Sequence
from os import PathLike

import numpy as np
from PIL import Image

from vivant.errors import InputError, warn
from vivant.media.frames import Frames, Rate, as_frames
from vivant.media.sheet import grid
from vivant.media.still import fit, open_still, read_still
from vivant.media.video import write_clip

__all__ = ["export_to_gif", "export_to_video", "load_image", "make_image_grid"]


def load_image(
    image: str | PathLike[str] | Image.Image,
    convert_method: Callable[[Image.Image], Image.Image] | None = None,
) -> Image.Image:
    """Read a picture from a path, an http(s) address or PIL, upright and as RGB.

    Transparent parts are laid on white, and 16 bits are scaled to 8, where diffusers drops the one and clips the
    other. `vivant.media.still.read_still` lists the errors.

    Args:
        image: where the picture is.
        convert_method: called with the upright picture in its stored colour mode, instead of the conversion to RGB.
    """
    if convert_method is None:
        return read_still(image, min_side=1).image
    return convert_method(open_still(image, min_side=1).image)


def export_to_gif(image: Frames, output_gif_path: str | PathLike[str] | None = None, fps: Rate = 10) -> str:
    """Write an endless GIF with one palette and exact timing, replacing the file if there is one.

    Args:
        image: the frames: PIL pictures, or arrays of uint8 or of floats in [0, 1].
        output_gif_path: ends with .gif; None makes a temporary file.
        fps: frames a second, at most 50.

    Returns:
        The path. Errors are those of `vivant.media.video.write_clip`.
    """
    path = _output(output_gif_path, (".gif",))
    write_clip(image, path, fps, overwrite=True)
    return path


def export_to_video(
    video_frames: Frames,
    output_video_path: str | PathLike[str] | None = None,
    fps: Rate = 10,
    quality: int | float | None = 5.0,
    bitrate: int | None = None,
    macro_block_size: int | None = 16,
) -> str:
    """Write an mp4 (H.264) or WebM (VP9), replacing the file if there is one.

    Args:
        video_frames: PIL pictures, or arrays of uint8 (taken as they are) or of floats in [0, 1] (rounded).
        output_video_path: ends with .mp4 or .webm; None makes a temporary mp4.
        fps: frames a second, exact when a Fraction.
        quality: 0 (worst) to 10, on the scale of imageio; None leaves the choice to vivant.
        bitrate: bits a second; takes the place of `quality`.
        macro_block_size: both sides are enlarged to a multiple of it (W-VIDEO-RESIZED says so); None or 1 keeps
            them, but for an odd side, which is padded by one pixel.

    Returns:
        The path. Errors are those of `vivant.media.video.write_clip`, and E-OUTPUT-BLOCK.
    """
    path = _output(output_video_path, (".mp4", ".webm"))
    frames = _enlarge(as_frames(video_frames), macro_block_size)
    write_clip(frames, path, fps, quality=None if bitrate is not None else quality, bitrate=bitrate, overwrite=True)
    return path


def make_image_grid(images: Sequence[Image.Image], rows: int, cols: int, resize: int | None = None) -> Image.Image:
    """Pictures of one size on one sheet, in reading order; `resize` first makes each a square of that side."""
    if resize is not None:
        images = [image.resize((resize, resize)) for image in images]
    return grid(images, rows, cols)


def _output(path: str | PathLike[str] | None, suffixes: tuple[str, ...]) -> str:
    if path is None:
        handle, name = tempfile.mkstemp(suffix=suffixes[0])
        os.close(handle)
        return name
    name = os.fspath(path)
    if not name.lower().endswith(suffixes):
        raise InputError(
            "E-OUTPUT-SUFFIX",
            f"{name!r} must end with {' or '.join(suffixes)}.",
            "",
            "vivant.media.video.write_clip writes the other formats.",
        )
    return name


def _enlarge(frames: np.ndarray, multiple: int | None) -> np.ndarray:
    if multiple is None:
        return frames
    if multiple < 1:
        raise InputError("E-OUTPUT-BLOCK", f"macro_block_size is {multiple}.", "", "Use None, or 1 or more.")
    height, width = (-(-side // multiple) * multiple for side in frames.shape[1:3])
    if (height, width) == frames.shape[1:3]:
        return frames
    warn(
        "W-VIDEO-RESIZED",
        f"{frames.shape[2]} x {frames.shape[1]} was enlarged to {width} x {height}, multiples of {multiple}; "
        "pass macro_block_size=None to keep the size.",
    )
    return np.stack([np.asarray(fit(Image.fromarray(frame), width, height, "stretch")) for frame in frames])
