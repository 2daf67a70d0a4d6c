"""A function or class for each file format: frames in, a file at the given path out; `encoder` chooses."""

import contextlib
import io
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av import Packet, VideoFormat, VideoFrame, VideoStream
from av.codec.codec import UnknownCodecError
from av.container import OutputContainer
from av.error import FFmpegError
from av.filter import Graph
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from jaxtyping import UInt8
from PIL import Image

from vivant.errors import InputError, OutputError, warn
from vivant.media import container, frames, sheet

Clip = UInt8[np.ndarray, "f h w 3"]

# FFmpeg's number for BT.709, the same in its lists of matrices, primaries and transfer curves.
_BT709 = 1
# Ordered dithering stands still from frame to frame, where error diffusion boils; it also packs smaller.
_GIF_DITHER = {"dither": "bayer", "bayer_scale": "4"}
_GIF_MAX_FPS = 50  # viewers slow frames shorter than 2/100 s down to 10 a second
_WEBP_MAX_SIDE = 16383
_NAME = "frame_{:05d}.png"


@dataclass(frozen=True)
class FilmFormat:
    """How film is encoded: by which encoder, with which of its options, and how it is put into its container."""

    codec: str
    options: dict[str, str]
    bitrate: int | None
    muxing: dict[str, str]


def film_format(suffix: str, quality: int | float | None = None, bitrate: int | None = None) -> FilmFormat:
    """H.264 (.mp4, index first) or VP9 (.webm); 4:2:0, BT.709 in TV range and tagged so."""
    if suffix == ".mp4":
        # crf 0 would be lossless 4:4:4, which few players show.
        rate = {"crf": str(max(1, int((1 - quality / 10) * 51)))} if quality is not None else {"crf": "18"}
        # The macroblock tree of x264 with AVX-512 gives other bits for equal frames, depending on what lay in memory.
        options = {"x264-params": "mbtree=0"} | ({} if bitrate else rate)
        return FilmFormat("libx264", options, bitrate, {"movflags": "+faststart"})
    crf = int((1 - quality / 10) * 63) if quality is not None else 24
    rate = {} if bitrate else {"crf": str(crf), "b:v": "0"}
    return FilmFormat("libvpx-vp9", {"cpu-used": "4", "row-mt": "1"} | rate, bitrate, {})


def check_rate(suffix: str, fps: Fraction) -> None:
    """Refuse (E-OUTPUT-FPS) a rate that the format of this suffix cannot show."""
    if suffix == ".gif" and fps > _GIF_MAX_FPS:
        raise InputError(
            "E-OUTPUT-FPS",
            f"A GIF cannot show {float(fps):g} frames a second.",
            f"Its clock ticks 100 times a second, and viewers slow down above {_GIF_MAX_FPS}.",
            "Write mp4, webm, webp or apng.",
        )


def gif(clip: Clip, path: Path, fps: Fraction, text: str | None) -> None:
    """One palette for the whole clip; frame times in centiseconds, each rounded from the exact time; loops."""
    check_rate(".gif", fps)
    ends = frames.frame_ends(len(clip), fps, 100)
    starts = [0, *ends[:-1]]
    options = {"loop": "0", "final_delay": str(ends[-1] - starts[-1])}
    file = io.BytesIO()
    with _refusing("gif"), av.open(file, "w", format="gif", options=options) as out:
        stream = _stream(out, "gif", Fraction(100), clip, "pal8")
        stream.codec_context.time_base = Fraction(1, 100)
        for frame in _with_one_palette(clip, starts):
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    data = file.getvalue()
    path.write_bytes(data if text is None else container.add_gif_text(data, text))


def webp(clip: Clip, path: Path, fps: Fraction, text: str | None, quality: int | float | None) -> None:
    """Lossy WebP frames; times in milliseconds, each rounded from the exact time; loops."""
    height, width = clip.shape[1:3]
    if max(height, width) > _WEBP_MAX_SIDE:
        raise InputError("E-OUTPUT-SIZE", f"WebP holds at most {_WEBP_MAX_SIDE} pixels a side, not {width} x {height}.")
    ends = frames.frame_ends(len(clip), fps, 1000)
    durations = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    level = 90 if quality is None else round(10 * quality)
    stills = [_still_bytes(frame, "WEBP", quality=level, method=4) for frame in clip]
    path.write_bytes(container.join_webp(stills, durations, (width, height), text))


def apng(clip: Clip, path: Path, fps: Fraction, text: str | None) -> None:
    """Lossless, with the exact rate as a fraction; loops."""
    file = io.BytesIO()
    options = {"plays": "0", "final_delay": f"{1 / fps}"}
    with _refusing("apng"), av.open(file, "w", format="apng", options=options) as out:
        stream = _stream(out, "apng", fps, clip, "rgb24")
        for i, pixels in enumerate(clip):
            frame = VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, 1 / fps
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    data = file.getvalue()
    path.write_bytes(data if text is None else container.add_png_text(data, text))


def contact_sheet(clip: Clip, path: Path, text: str | None) -> None:
    """All frames on one PNG, in reading order."""
    image = sheet.contact_sheet([Image.fromarray(frame) for frame in clip])
    data = _still_bytes(np.asarray(image), "PNG")
    path.write_bytes(data if text is None else container.add_png_text(data, text))


class Gathered:
    """Formats that look at all frames at once, for a palette or a sheet, or that are quickly made: one at the end."""

    def __init__(self, suffix: str, path: Path, fps: Fraction, quality: int | float | None):
        self._suffix, self._path, self._fps, self._quality = suffix, path, fps, quality
        self._parts: list[Clip] = []
        self.encoded = 0

    def add(self, clip: Clip) -> None:
        """Keep the next frames."""
        self._parts.append(clip)

    def finish(self, text: str | None) -> None:
        """Encode all frames."""
        clip = self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts)
        match self._suffix:
            case ".gif":
                gif(clip, self._path, self._fps, text)
            case ".webp":
                webp(clip, self._path, self._fps, text, self._quality)
            case ".apng":
                apng(clip, self._path, self._fps, text)
            case _:
                contact_sheet(clip, self._path, text)
        self.encoded = len(clip)

    def close(self) -> None:
        """Drop the frames."""
        self._parts.clear()


class Pages:
    """A lossless PNG for each frame, numbered from 0, in a folder that may exist; the text goes into the first."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.encoded = 0
        folder.mkdir(exist_ok=True)

    def add(self, clip: Clip) -> None:
        """Write the next frames."""
        for frame in clip:
            self._page(self.encoded).write_bytes(_still_bytes(frame, "PNG"))
            self.encoded += 1

    def finish(self, text: str | None) -> None:
        """Put the text in its place."""
        if text is not None:
            first = self._page(0)
            first.write_bytes(container.add_png_text(first.read_bytes(), text))

    def close(self) -> None:
        """Nothing is open."""

    def _page(self, i: int) -> Path:
        return self._folder / _NAME.format(i)


class Film:
    """A film that is encoded as its frames come. An odd side is padded by one pixel (warned).

    Packets wait in memory until `finish`, since the container begins with what is known last, its comment.
    """

    def __init__(self, path: Path, fps: Fraction, form: FilmFormat):
        self._fps, self._form = fps, form
        self._stream: VideoStream | None = None
        self._packets: list[Packet[VideoStream]] = []
        self.encoded = 0
        with _refusing(form.codec):
            self._out = av.open(str(path), "w", format=path.suffix[1:].lower(), options=form.muxing)

    def add(self, clip: Clip) -> None:
        """Encode the next frames."""
        even = frames.pad_to_even(clip)
        with _refusing(self._form.codec):
            stream = self._stream or self._begin(even)
            for pixels in even:
                frame = VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                    format="yuv420p",
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=ColorRange.MPEG,
                    interpolation=Interpolation.AREA,
                )
                frame.pts, frame.time_base = self.encoded, 1 / self._fps
                self._packets += stream.encode(frame)
                self.encoded += 1

    def finish(self, text: str | None) -> None:
        """Write the container, with the text as its comment."""
        assert self._stream is not None, "a clip has frames"
        with _refusing(self._form.codec), self._out as out:
            if text is not None:
                out.metadata["comment"] = text
            out.mux([*self._packets, *self._stream.encode(None)])

    def close(self) -> None:
        """Give up: what was encoded is dropped."""
        self._packets.clear()
        self._out.close()

    def _begin(self, even: Clip) -> VideoStream:
        self._stream = stream = _stream(self._out, self._form.codec, self._fps, even, "yuv420p", self._form.options)
        context = stream.codec_context
        context.color_range = ColorRange.MPEG
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        if self._form.bitrate is not None:
            context.bit_rate = self._form.bitrate
        return stream


# Each takes the frames of a clip part by part, `encoded` of them so far; `close` comes last, also after a failure.
Encoder = Film | Pages | Gathered


def encoder(suffix: str, path: Path, fps: Fraction, quality: int | float | None, bitrate: int | None) -> Encoder:
    """What writes the format of this suffix, which is empty for a folder of PNG files."""
    if suffix == "":
        return Pages(path)
    if suffix in (".mp4", ".webm"):
        return Film(path, fps, film_format(suffix, quality, bitrate))
    return Gathered(suffix, path, fps, quality)


def warn_of_padding(clip: Clip) -> None:
    """Say (W-VIDEO-PADDED) that film of these frames gets even sides."""
    (h, w), (h2, w2) = clip.shape[1:3], (side + side % 2 for side in clip.shape[1:3])
    if (h, w) != (h2, w2):
        warn(
            "W-VIDEO-PADDED",
            f"The clip is {w} x {h}; 4:2:0 film needs even sides, so its last pixels are repeated to {w2} x {h2}.",
        )


def _stream(
    out: OutputContainer,
    codec: str,
    rate: Fraction,
    clip: Clip,
    pixels: str,
    options: dict[str, str] | None = None,
) -> VideoStream:
    stream = out.add_stream(codec, rate=rate, options=options or {})
    assert isinstance(stream, VideoStream)
    stream.height, stream.width = clip.shape[1:3]
    stream.pix_fmt = pixels
    return stream


def _with_one_palette(clip: Clip, starts: list[int]) -> Iterator[VideoFrame]:
    """The clip in 255 colours chosen over all frames, and one for "unchanged"; times in centiseconds."""
    tick = Fraction(1, 100)
    graph = Graph()
    height, width = clip.shape[1:3]
    source = graph.add_buffer(width=width, height=height, format=VideoFormat("rgb24"), time_base=tick)
    split, choose, use = graph.add("split"), graph.add("palettegen"), graph.add("paletteuse", **_GIF_DITHER)
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(choose, 0, 0)
    split.link_to(use, 1, 0)
    choose.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for pixels, start in zip(clip, starts, strict=True):
        frame = VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = start, tick
        source.push(frame)
    source.push(None)
    for _ in starts:  # nothing comes out before everything is in: the palette needs every frame
        frame = sink.pull()
        assert isinstance(frame, VideoFrame)
        yield frame


def _still_bytes(pixels: UInt8[np.ndarray, "h w 3"], kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@contextlib.contextmanager
def _refusing(codec: str) -> Generator[None, None, None]:
    """FFmpeg's errors as ours. Those that are about the disk stay OSErrors, for the writer to name the file."""
    try:
        yield
    except UnknownCodecError:
        raise OutputError(
            "E-OUTPUT-CODEC", f"This build of PyAV has no {codec} encoder.", "", "pip install --force-reinstall av"
        ) from None
    except FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise OutputError("E-OUTPUT-CODEC", f"{codec} cannot encode this clip.", f"{error}.") from error
