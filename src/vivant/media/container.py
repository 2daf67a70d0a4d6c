"""File formats from the inside: which one a file is, and a line of text kept in it.

PNG and APNG carry a tEXt chunk, GIF a comment extension, WebP an EXIF description, mp4 and WebM a comment tag (set
by the encoder, read through PyAV). Files may be hostile: every length is checked against what is there.
"""

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import av
from av.container import InputContainer
from av.error import FFmpegError
from PIL import Image

from vivant.errors import LoadError

Container = Literal["mp4", "webm", "gif", "webp", "apng", "png"]
BinaryFile = io.BufferedReader | io.BytesIO

MAX_TEXT = 1_000_000
_PNG = b"\x89PNG\r\n\x1a\n"
_KEYWORD = b"vivant\0"
_DESCRIPTION = 0x010E  # EXIF ImageDescription
_MAX_BLOCKS = 10_000


def container_of(path: Path) -> Container:
    """The format by content, whatever the name says.

    Raises:
        LoadError: E-CLIP-MISSING, or E-CLIP-FORMAT for anything else than the formats that we write.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
            if head.startswith(_PNG):
                return "apng" if any(kind == b"acTL" for kind, _, _ in _png_chunks(file)) else "png"
    except OSError as error:
        raise LoadError("E-CLIP-MISSING", f"{path} cannot be read.", f"{type(error).__name__}: {error}.") from None
    if head[:4] == b"GIF8":
        return "gif"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        return "mp4"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "webm"
    raise LoadError(
        "E-CLIP-FORMAT", f"{path} is not a clip that can be read.", "", "Known are mp4, webm, gif, webp, apng and png."
    )


def open_av(file: BinaryFile, container: Container) -> InputContainer:
    """Open mp4 or WebM. The format is given, since FFmpeg would otherwise obey a playlist that names other files."""
    return av.open(file, "r", format=container, metadata_errors="replace")


def read_text(path: Path, container: Container) -> bytes | None:
    """The text that a writer of ours put into the file, or some other comment, or None. At most MAX_TEXT + 1 bytes.

    Raises:
        LoadError: E-CLIP-BROKEN when the file is damaged.
    """
    try:
        with path.open("rb") as file:
            if container in ("png", "apng"):
                return _png_text(file)
            if container == "gif":
                return _gif_text(file)
            if container == "webp":
                with Image.open(file, formats=["WEBP"]) as image:
                    text = image.getexif().get(_DESCRIPTION)
                return text.encode()[: MAX_TEXT + 1] if isinstance(text, str) else None
            with open_av(file, container) as clip:
                tags = {key.lower(): value for key, value in clip.metadata.items()}
                return tags["comment"].encode()[: MAX_TEXT + 1] if "comment" in tags else None
    except (
        OSError,
        SyntaxError,
        ValueError,
        struct.error,
        zlib.error,
        FFmpegError,
        Image.DecompressionBombError,
    ) as e:
        raise LoadError("E-CLIP-BROKEN", f"{path} is damaged.", f"{type(e).__name__}: {e}.") from e


def add_png_text(data: bytes, text: str) -> bytes:
    """A PNG or APNG with `text` (Latin-1) in a tEXt chunk right after its header."""
    end_of_header = len(_PNG) + 12 + struct.unpack_from(">I", data, len(_PNG))[0]
    body = b"tEXt" + _KEYWORD + text.encode("latin-1")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:end_of_header] + chunk + data[end_of_header:]


def add_gif_text(data: bytes, text: str) -> bytes:
    """A GIF with `text` (ASCII) in a comment extension before its first frame."""
    comment = b"".join(bytes([len(part)]) + part for part in _split(text.encode("ascii"), 255))
    start = _gif_first_frame(data)
    return data[:start] + b"\x21\xfe" + comment + b"\0" + data[start:]


def join_webp(stills: Sequence[bytes], durations: Sequence[int], size: tuple[int, int], text: str | None) -> bytes:
    """An endless animated WebP of whole frames from lossy still WebP files.

    libwebp's own animation encoder merges equal neighbours, which loses frames; on moving pictures whole frames are
    no larger.

    Args:
        stills: WebP files of one size, without transparency.
        durations: milliseconds, one for each.
        size: (width, height).
        text: ASCII, kept as the EXIF description.
    """
    width, height = (side - 1 for side in size)
    canvas = _uint24(width) + _uint24(height)
    animation, exif = 0x02, 0x08 if text is not None else 0
    chunks = [_riff(b"VP8X", bytes([animation | exif, 0, 0, 0]) + canvas)]
    chunks.append(_riff(b"ANIM", b"\xff\xff\xff\xff\0\0"))  # white behind the frames; loop for ever
    for still, duration in zip(stills, durations, strict=True):
        # Two frame offsets of zero; the last byte says: do not blend, do not dispose.
        header = bytes(6) + canvas + _uint24(duration) + b"\x02"
        chunks.append(_riff(b"ANMF", header + _vp8_chunk(still)))
    if text is not None:
        tags = Image.Exif()
        tags[_DESCRIPTION] = text
        chunks.append(_riff(b"EXIF", tags.tobytes().removeprefix(b"Exif\0\0")))
    return _riff(b"RIFF", b"WEBP" + b"".join(chunks))


def _png_chunks(file: BinaryFile) -> Iterator[tuple[bytes, int, int]]:
    """(type, offset of the data, length) of the chunks before the picture data; our text and acTL are there."""
    offset = len(_PNG)
    for _ in range(_MAX_BLOCKS):
        file.seek(offset)
        header = file.read(8)
        if len(header) < 8 or header[4:] in (b"IDAT", b"IEND"):
            return
        length = struct.unpack(">I", header[:4])[0]
        yield header[4:], offset + 8, length
        offset += length + 12


def _png_text(file: BinaryFile) -> bytes | None:
    for kind, offset, length in _png_chunks(file):
        if kind == b"tEXt":
            file.seek(offset)
            data = file.read(min(length, MAX_TEXT + len(_KEYWORD) + 1))
            if data.startswith(_KEYWORD):
                return data[len(_KEYWORD) :]
    return None


def _gif_text(file: BinaryFile) -> bytes | None:
    """The first comment before the first frame. Reads the head of the file only, where our writer puts it."""
    data = file.read(2 * MAX_TEXT)
    for kind, start, end in _gif_extensions(data):
        if kind == 0xFE:
            return b"".join(_gif_sub_blocks(data, start, end))[: MAX_TEXT + 1]
    return None


def _gif_first_frame(data: bytes) -> int:
    """Where the first frame begins: behind the palette and the extensions that concern the whole file."""
    return max((end for kind, _, end in _gif_extensions(data) if kind != 0xF9), default=_gif_header_size(data))


def _gif_header_size(data: bytes) -> int:
    flags = data[10]
    return 13 + (3 << (1 + (flags & 7)) if flags & 0x80 else 0)


def _gif_extensions(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(label, start of the sub-blocks, end) of the extensions before the first frame's control block or image."""
    if len(data) < 13:
        raise ValueError("The GIF header is cut short.")
    offset = _gif_header_size(data)
    while offset + 2 < len(data) and data[offset] == 0x21 and data[offset + 1] != 0xF9:
        start = end = offset + 2
        while end < len(data) and data[end]:
            end += data[end] + 1
        if end >= len(data):
            raise ValueError("A GIF extension is cut short.")
        yield data[offset + 1], start, end + 1
        offset = end + 1


def _gif_sub_blocks(data: bytes, start: int, end: int) -> Iterator[bytes]:
    while start < end and data[start]:
        yield data[start + 1 : start + 1 + data[start]]
        start += data[start] + 1


def _vp8_chunk(still: bytes) -> bytes:
    """The picture chunk of a simple lossy WebP file, its header included."""
    if still[12:16] != b"VP8 ":
        raise ValueError("not a simple lossy WebP file")
    length = struct.unpack_from("<I", still, 16)[0]
    return still[12 : 20 + length + length % 2]


def _riff(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _uint24(value: int) -> bytes:
    return struct.pack("<I", value)[:3]


def _split(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))
