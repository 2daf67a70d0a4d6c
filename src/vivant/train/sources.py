"""Where clips come from: folders of films or pictures with captions beside them, and the csv of WebVid.

Nothing is left out silently. What cannot be read ends the run with its name; going on with another clip, as the
original does, would hide how much of a data set is broken. Films that are too short are refused together, at the
beginning, or left out and counted on request.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av import VideoFrame
from av.container import InputContainer
from av.error import FFmpegError
from jaxtyping import UInt8
from PIL import Image

from vivant.errors import InputError, LoadError
from vivant.media.still import fit, read_still

FILMS = frozenset({".mp4", ".m4v", ".webm", ".mkv", ".avi", ".mov", ".mpg", ".mpeg", ".ogv", ".gif"})
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,ogg,gif,flv,asf"
"""Without this list FFmpeg obeys a playlist that is called .mp4 and names other files."""


@dataclass(frozen=True)
class Captioned:
    """A clip and what is to be seen in it."""

    pixels: UInt8[np.ndarray, "f h w 3"]
    caption: str


@dataclass(frozen=True)
class Films:
    """Clips cut from films: a random stretch of each, resized by its shorter side and cropped in the middle.

    Attributes:
        films: path and caption of each.
        num_frames: frames of a clip.
        stride: every how many frames of the film one is taken.
        size: height and width of a clip.
        flip: mirror half of the clips; wrong where captions say left and right.
        left_out: films that were too short.
    """

    films: tuple[tuple[Path, str], ...]
    num_frames: int
    stride: int
    size: tuple[int, int]
    flip: bool = False
    left_out: tuple[Path, ...] = field(default=(), compare=False)

    @classmethod
    def of(
        cls,
        films: Sequence[tuple[Path, str]],
        num_frames: int,
        stride: int,
        size: tuple[int, int],
        *,
        flip: bool = False,
        leave_out_short: bool = False,
    ) -> "Films":
        """Look into every film once.

        Raises:
            InputError: E-TRAIN-DATA when there is no film, or some are too short and are not to be left out.
            LoadError: E-CLIP-BROKEN, E-CLIP-MISSING.
        """
        needed = (num_frames - 1) * stride + 1
        short = tuple(path for path, _ in films if count_frames(path) < needed)
        kept = tuple(film for film in films if film[0] not in short)
        if (short and not leave_out_short) or not kept:
            found = f"{len(short)} of {len(films)} films are shorter" if films else "There are no films"
            raise InputError(
                "E-TRAIN-DATA",
                f"{found} than the {needed} frames that a clip needs: {', '.join(p.name for p in short[:3])}."
                if films
                else f"{found}.",
                f"A clip has {num_frames} frames, each {stride} frames after the one before.",
                "Lower num_frames or stride, or set leave_out_short = true.",
            )
        return cls(kept, num_frames, stride, size, flip, short)

    def __len__(self) -> int:
        return len(self.films)

    def read(self, index: int, rng: np.random.Generator) -> Captioned:
        """A clip of film `index`."""
        path, caption = self.films[index]
        needed = (self.num_frames - 1) * self.stride + 1
        start = int(rng.integers(count_frames(path) - needed + 1))
        frames = [_cropped(frame, self.size) for frame in stretch(path, start, self.num_frames, self.stride)]
        pixels = np.stack(frames)
        return Captioned(pixels[:, :, ::-1].copy() if self.flip and rng.random() < 0.5 else pixels, caption)


@dataclass(frozen=True)
class Pictures:
    """Stills as clips of one frame: a random square of each, at least `part` of its shorter side."""

    pictures: tuple[tuple[Path, str], ...]
    size: tuple[int, int]
    part: float = 1.0

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int, rng: np.random.Generator) -> Captioned:
        """A crop of picture `index`."""
        path, caption = self.pictures[index]
        return Captioned(random_crop(read_still(path).image, self.size, self.part, rng)[None], caption)


def random_crop(
    image: Image.Image, size: tuple[int, int], part: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """A random rectangle of the shape of `size`, whose area in each direction is `part` to 1 of the largest."""
    height, width = size
    scale = min(image.width / width, image.height / height) * rng.uniform(part, 1)
    w, h = scale * width, scale * height
    left, top = rng.uniform(0, image.width - w), rng.uniform(0, image.height - h)
    box = (left, top, left + w, top + h)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box))


def in_folder(folder: Path, suffixes: frozenset[str], caption: str | None = None) -> list[tuple[Path, str]]:
    """Files of a folder with their captions: the text beside each (`cat.mp4` and `cat.txt`), or one for all.

    Raises:
        InputError: E-TRAIN-DATA when there is none, or one has no caption.
    """
    if not folder.is_dir():
        raise InputError("E-TRAIN-DATA", f"There is no folder {folder}.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    if not files:
        raise InputError("E-TRAIN-DATA", f"{folder} holds no files of the kinds {', '.join(sorted(suffixes))}.")
    if caption is not None:
        return [(path, caption) for path in files]
    mute = [path.name for path in files if not path.with_suffix(".txt").is_file()]
    if mute:
        raise InputError(
            "E-TRAIN-DATA",
            f"{len(mute)} of {len(files)} files in {folder} have no caption: {', '.join(mute[:3])}.",
            "The caption of cat.mp4 stands in cat.txt.",
            "Write the captions, or give one for all (caption = …).",
        )
    return [(path, path.with_suffix(".txt").read_text(encoding="utf-8").strip()) for path in files]


def in_webvid(table: Path, folder: Path) -> list[tuple[Path, str]]:
    """Films of a csv with the columns videoid, name and page_dir, as folder/page_dir/videoid.mp4 or folder/videoid.mp4.

    Raises:
        InputError: E-TRAIN-DATA for another table, or a film that is not there.
    """
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("E-TRAIN-DATA", f"{table} cannot be read: {error}.") from None
    if not rows or not {"videoid", "name"} <= rows[0].keys():
        raise InputError("E-TRAIN-DATA", f"{table} is not a table with the columns videoid, name and page_dir.")
    films: list[tuple[Path, str]] = []
    absent: list[str] = []
    for row in rows:
        name = f"{row['videoid']}.mp4"
        places = [folder / (row.get("page_dir") or "") / name, folder / name]
        found = next((path for path in places if _inside(path, folder) and path.is_file()), None)
        if found is None:
            absent.append(name)
        else:
            films.append((found, row["name"]))
    if absent:
        raise InputError(
            "E-TRAIN-DATA",
            f"{len(absent)} of {len(rows)} films of {table.name} are not in {folder}: {', '.join(absent[:3])}.",
            "",
            "Remove their rows, or fetch them.",
        )
    return films


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


@lru_cache(maxsize=100_000)
def count_frames(path: Path) -> int:
    """Frames of a film: as its header says, or by counting.

    Raises:
        LoadError: E-CLIP-MISSING, E-CLIP-BROKEN.
    """
    with _opened(path) as film:
        stream = film.streams.video[0]
        return stream.frames or sum(1 for packet in film.demux(stream) if packet.size)


def stretch(path: Path, start: int, num: int, stride: int) -> list[Image.Image]:
    """`num` frames of a film from frame `start`, every `stride`-th.

    Raises:
        LoadError: E-CLIP-BROKEN when it ends before.
    """
    wanted = {start + i * stride for i in range(num)}
    frames: list[Image.Image] = []
    with _opened(path) as film:
        for i, frame in enumerate(_decoded(path, film)):
            if i in wanted:
                frames.append(frame.to_image())
            if len(frames) == num:
                return frames
    raise LoadError(
        "E-CLIP-BROKEN",
        f"{path} ends before its frame {max(wanted)}.",
        "Its header promises more frames than it holds.",
        "Repair or remove it.",
    )


def _opened(path: Path) -> InputContainer:
    try:
        film = av.open(str(path), "r", options={"format_whitelist": _FORMATS}, metadata_errors="replace")
    except FileNotFoundError:
        raise LoadError("E-CLIP-MISSING", f"There is no film {path}.") from None
    except (FFmpegError, OSError, ValueError) as error:
        raise LoadError("E-CLIP-BROKEN", f"{path} is not a film that can be read.", f"{error}.") from None
    if not film.streams.video:
        film.close()
        raise LoadError("E-CLIP-BROKEN", f"{path} holds no pictures.")
    return film


def _decoded(path: Path, film: InputContainer) -> Iterator[VideoFrame]:
    try:
        yield from film.decode(video=0)
    except FFmpegError as error:
        raise LoadError("E-CLIP-BROKEN", f"{path} is damaged.", f"{error}.") from None


def _cropped(image: Image.Image, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(fit(image, size[1], size[0], "crop"))
