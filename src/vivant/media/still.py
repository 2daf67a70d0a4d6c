"""Pictures in: any of a path, address, bytes, array, tensor or PIL picture becomes an upright RGB still.

Everything hostile or unusable is refused here, by name, before a model is loaded.
"""

import contextlib
import importlib
import io
import os
import struct
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vivant.errors import InputError, MissingPackage, warn
from vivant.media import fetch
from vivant.media.container import BinaryFile

Source = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Tensor
Fit = Literal["crop", "pad", "stretch"]

MAX_PIXELS = 80_000_000  # below Pillow's own warning; a decoded picture of this size takes 240 MB
MIN_SIDE = 16
# Formats with a magic number and a decoder inside Pillow: EPS would start Ghostscript, TGA has no magic number.
_FORMATS = ("PNG", "JPEG", "MPO", "JPEG2000", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "TIFF", "PPM")
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_HEIC_OR_AVIF = (b"mif1", b"msf1")
_AVIF = (b"avif", b"avis")
# What Pillow's decoders have been seen to raise on damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, RuntimeError, struct.error, zlib.error)
_ORIENTATION = 0x0112


class Still(NamedTuple):
    """An upright RGB picture, and what was done to make it one."""

    image: Image.Image
    notes: tuple[str, ...] = ()


def read_still(source: Source, *, max_pixels: int = MAX_PIXELS, min_side: int = MIN_SIDE) -> Still:
    """Read one picture from wherever it is.

    Args:
        source: a path, an http(s) address, the bytes of a picture file, a PIL picture, an array (h w), (h w 1),
            (h w 3) or (h w 4), or a tensor (c h w); arrays and tensors hold uint8, or floats in [0, 1].
        max_pixels: refuse larger pictures from their header, before anything is decoded.
        min_side: refuse pictures with a shorter side.

    Returns:
        The picture, turned as its EXIF orientation says, transparency on white, 16 bits scaled to 8, and the notes
        for a report. An animation gives its first frame and warns (W-IMAGE-ANIMATED).

    Raises:
        InputError: E-IMAGE-EMPTY, -MISSING, -SCHEME, -URL…, -FORMAT, -TRUNCATED, -SIZE, -SMALL, -MODE, -ARRAY or -TYPE.
        MissingPackage: E-IMAGE-HEIC, when a HEIC picture needs the pillow-heif plugin.
    """
    upright, notes = open_still(source, max_pixels=max_pixels, min_side=min_side)
    image, colour_notes = _to_rgb(upright)
    return Still(image, notes + colour_notes)


def open_still(source: Source, *, max_pixels: int = MAX_PIXELS, min_side: int = MIN_SIDE) -> Still:
    """As `read_still`, with the colour mode left as it is stored."""
    if isinstance(source, Image.Image):
        return _decode(source, max_pixels, min_side)
    if isinstance(source, Tensor):
        source = _tensor_to_array(source)
    if isinstance(source, np.ndarray):
        return _decode(_from_array(source), max_pixels, min_side)
    if isinstance(source, bytes):
        return _open(io.BytesIO(source), len(source), "The picture", max_pixels, min_side)
    if isinstance(source, str) and "://" in source:
        data = fetch.fetch(source)
        return _open(io.BytesIO(data), len(data), source, max_pixels, min_side)
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            "E-IMAGE-TYPE",
            f"A picture cannot be a {type(source).__name__}.",
            "",
            "Pass a path, an http(s) address, bytes, a PIL picture, an array or a tensor.",
        )
    path = Path(source)
    with _opened(path) as file:
        return _open(file, path.stat().st_size, str(path), max_pixels, min_side)


def declared_size(path: Path) -> tuple[int, int]:
    """Width and height that the header of a picture file declares; nothing is decoded or turned.

    Raises:
        InputError, MissingPackage: as `read_still`.
    """
    with _opened(path) as file, _identify(file, path.stat().st_size, str(path)) as image:
        return image.size


def natural_size(image: Image.Image, long_edge: int = 512, multiple: int = 8, minimum: int = 64) -> tuple[int, int]:
    """The (width, height) at which to animate a picture: PIA's rule (github.com/open-mmlab/PIA, its demo).

    The picture is shrunk, never enlarged, until its longer side is at most `long_edge`; both sides are then floored
    to a multiple of `multiple`, and a side shorter than `minimum` is raised to it. Integer arithmetic throughout:
    the original's float scale lands one multiple short on some sizes.
    """
    long = max(image.size)
    width, height = (side if long <= long_edge else side * long_edge // long for side in image.size)
    floor = -(-minimum // multiple) * multiple
    return max(floor, width // multiple * multiple), max(floor, height // multiple * multiple)


def fit(
    image: Image.Image, width: int, height: int, mode: Fit = "crop", *, fill: tuple[int, int, int] = (0, 0, 0)
) -> Image.Image:
    """Bring a picture to exactly `width` x `height` pixels with an antialiased Lanczos filter.

    Args:
        image: the picture; returned untouched, bit for bit, when it is RGB and already has the size.
        width: pixels, positive.
        height: pixels, positive.
        mode: "crop" fills the frame and cuts what hangs over, evenly; "pad" shows all of it on `fill`;
            "stretch" ignores the aspect.
        fill: the RGB colour of the bars of "pad".

    Raises:
        InputError: E-FIT-MODE or E-FIT-SIZE.
    """
    if mode not in ("crop", "pad", "stretch"):
        raise InputError("E-FIT-MODE", f"There is no fit {mode!r}.", "", "Use crop, pad or stretch.")
    if width < 1 or height < 1:
        raise InputError("E-FIT-SIZE", f"A picture cannot be {width} x {height} pixels.")
    if image.mode != "RGB":
        image = _to_rgb(image)[0]
    if image.size == (width, height):
        return image
    lanczos = Image.Resampling.LANCZOS
    if mode == "stretch":
        return image.resize((width, height), lanczos)
    scales = width / image.width, height / image.height
    if mode == "crop":
        scale = max(scales)
        dx, dy = max(0.0, image.width - width / scale) / 2, max(0.0, image.height - height / scale) / 2
        # Cropping inside the resize keeps sub-pixel positions and filters nothing that is cut away.
        return image.resize((width, height), lanczos, box=(dx, dy, image.width - dx, image.height - dy))
    scale = min(scales)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new("RGB", (width, height), fill)
    canvas.paste(image.resize(inner, lanczos), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def to_tensor(image: Image.Image) -> Float[Tensor, "1 3 h w"]:
    """An RGB picture as float32 in [-1, 1], rounded as the reference does: x / 255, then 2 x - 1."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32))
    return rearrange(pixels / 255, "h w c -> 1 c h w") * 2 - 1


@contextlib.contextmanager
def _opened(path: Path) -> Generator[BinaryFile, None, None]:
    """The file at a path; what the system refuses is E-IMAGE-MISSING."""
    try:
        if not path.is_file():  # a folder, device or pipe is not a picture either
            raise FileNotFoundError("There is no file of this name." if not path.exists() else "This is not a file.")
        with path.open("rb") as file:
            yield file
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        if isinstance(error, InputError | MissingPackage):
            raise
        raise InputError("E-IMAGE-MISSING", f"The picture {str(path)!r} cannot be read.", str(error)) from None


def _open(file: BinaryFile, num_bytes: int, name: str, max_pixels: int, min_side: int) -> Still:
    with _identify(file, num_bytes, name) as image:
        return _decode(image, max_pixels, min_side, name)


def _identify(file: BinaryFile, num_bytes: int, name: str) -> Image.Image:
    """Open a picture file by its content, whatever its name says; only its header is read."""
    if num_bytes == 0:
        raise InputError("E-IMAGE-EMPTY", f"{name} is empty (0 bytes).", "", "Save or download the picture again.")
    head = file.read(64)
    file.seek(0)
    if _is_heic(head):
        _register_heif(name)
    try:
        Image.init()  # registers all of Pillow's plugins; HEIF is there only once pillow-heif has added itself
        return Image.open(file, formats=[f for f in _FORMATS if f in Image.OPEN])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError("E-IMAGE-SIZE", f"{name} is too large to decode.", str(error), _SHRINK) from None
    except UnidentifiedImageError:
        if head.startswith(_MAGIC):
            raise _truncated(name, "Its header says that it is a picture, and the rest does not follow.") from None
        raise InputError(
            "E-IMAGE-FORMAT",
            f"{name} is not a picture that can be read.",
            "Its content, not its name, decides.",
            "Use PNG, JPEG, WebP, AVIF, HEIC (with pillow-heif), GIF, BMP, TIFF, JPEG 2000 or PPM.",
        ) from None
    except _DAMAGE as error:
        raise _truncated(name, str(error)) from error


def _is_heic(head: bytes) -> bool:
    """Whether a file's major brand, or else its compatible ones, say that a HEIC decoder is needed."""
    if head[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(head[:4], "big"), len(head))
    compatible = {head[i : i + 4] for i in range(16, end, 4)}
    return head[8:12] in _HEIC or (head[8:12] in _HEIC_OR_AVIF and compatible.isdisjoint(_AVIF))


def _register_heif(name: str) -> None:
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        raise MissingPackage(
            "E-IMAGE-HEIC", f"{name} is a HEIC picture.", "Reading it needs a plugin.", "pip install pillow-heif"
        ) from None


_SHRINK = "Make it smaller first; the model works at about 512 pixels."


def _decode(image: Image.Image, max_pixels: int, min_side: int, name: str = "The picture") -> Still:
    """Check the size that the header declares, then decode, take the first frame and turn it upright."""
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(
            "E-IMAGE-SIZE",
            f"{name} is {width} x {height} pixels, more than {max_pixels}.",
            "It was not decoded.",
            _SHRINK,
        )
    if min(width, height) < min_side:
        raise InputError(
            "E-IMAGE-SMALL",
            f"{name} is {width} x {height} pixels.",
            f"The shorter side must be at least {min_side}.",
            "Use a larger picture.",
        )
    notes: list[str] = []
    try:
        # Phones store a depth map or a second exposure in an MPO beside the photo: nothing is lost by taking the first.
        if getattr(image, "is_animated", False) and image.format != "MPO" and image.tell() == 0:
            frames = getattr(image, "n_frames", 2)
            notes.append(warn("W-IMAGE-ANIMATED", f"{name} holds {frames} frames or pages; the first one is used."))
        image.load()
    except _DAMAGE as error:
        raise _truncated(name, str(error)) from error
    upright, turned = _turn_upright(image)
    return Still(upright, (*notes, *turned))


def _turn_upright(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Apply the EXIF orientation. Always a new picture, so that a caller's own is never changed."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
        upright = ImageOps.exif_transpose(image)
    except _DAMAGE:
        return image.copy(), ("Its EXIF data is damaged and was not used.",)
    rotated = orientation in range(2, 9)
    return upright, (f"Turned upright (EXIF orientation {orientation}).",) if rotated else ()


def _to_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Any colour mode to RGB: transparency on white, 16 bits and floats scaled instead of clipped."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image, ()
    if mode.startswith("I") or mode == "F":
        return _deep_to_rgb(image), (f"Scaled from {mode} to 8 bits.",)
    if not image.has_transparency_data:
        return image.convert("RGB"), ()
    straight = (image.convert("LA") if mode == "La" else image).convert("RGBA")
    if straight.getchannel("A").getextrema() == (255, 255):
        return straight.convert("RGB"), ()
    white = Image.new("RGBA", straight.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, straight).convert("RGB"), ("Transparent parts were laid on white.",)


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (Pillow's I;16, or I when read from older files) or of floats in [0, 1]."""
    values = np.asarray(image)
    if image.mode == "F":
        return _from_array(values).convert("RGB")
    if values.min() < 0 or values.max() > 65535:
        raise InputError(
            "E-IMAGE-MODE", "The picture holds grey values beyond 16 bits.", "", "Save it with 8 or 16 bits."
        )
    return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")


def _tensor_to_array(tensor: Tensor) -> np.ndarray:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise _bad_array(f"a tensor of shape {tuple(tensor.shape)}")
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # numpy has no bfloat16
        tensor = tensor.float()
    return rearrange(tensor, "c h w -> h w c").numpy()


def _from_array(array: np.ndarray) -> Image.Image:
    """uint8, or floats in [0, 1], of shape (h w), (h w 1), (h w 3) or (h w 4)."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise _bad_array(f"an array of shape {array.shape}")
    if array.size == 0:
        raise InputError("E-IMAGE-EMPTY", f"The picture is an array of shape {array.shape}, without a pixel.")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise _bad_array("floats outside [0, 1]")
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise _bad_array(f"values of type {array.dtype}")
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))


def _bad_array(found: str) -> InputError:
    return InputError(
        "E-IMAGE-ARRAY",
        f"The picture is {found}.",
        "",
        "Pass uint8 or floats in [0, 1], as an array (h, w, 3) or a tensor (3, h, w).",
    )


def _truncated(name: str, why: str) -> InputError:
    return InputError(
        "E-IMAGE-TRUNCATED", f"{name} is cut short or damaged.", why, "Save or download the picture again."
    )
