"""The data of a recipe: one or several sources, each a table `[[data]]`."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from vivant.errors import InputError
from vivant.media.still import read_still
from vivant.pocket.avatars import AvatarClips
from vivant.pocket.world import STYLES, DrawnClips, Style
from vivant.train.samples import Source
from vivant.train.sources import FILMS, PICTURES, Films, Pictures, in_folder, in_webvid

Kind = Literal["drawn", "avatars", "films", "webvid", "pictures"]


_UNREAD: dict[str, tuple[str, ...]] = {
    "drawn": ("table", "caption", "stride", "part", "flip", "leave_out_short", "crosses"),
    "avatars": ("folder", "table", "caption", "stride", "style", "photos", "part", "flip", "leave_out_short"),
    "films": ("table", "num", "style", "photos", "part", "crosses"),
    "webvid": ("caption", "num", "style", "photos", "part", "crosses"),
    "pictures": ("table", "num_frames", "stride", "num", "style", "photos", "flip", "leave_out_short", "crosses"),
}
"""Fields that mean nothing to a kind; giving them is a mistake, and is said."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """One source of clips.

    Attributes:
        kind: ``"drawn"`` scenes; ``"avatars"``, drawn people; ``"films"`` or ``"pictures"`` of a folder with captions
            beside them; ``"webvid"``, a csv and a folder of films.
        folder: of films, pictures, or the photos of drawn camera moves; relative to the recipe.
        table: the csv of webvid.
        caption: one for all files of the folder, in place of texts beside them.
        size: height and width of a clip in pixels.
        num_frames: frames of a clip.
        stride: every how many frames of a film one is taken.
        num: how many drawn clips there are.
        style: of the drawn clips; all styles if not given.
        photos: part of the drawn clips that are camera moves over photos of `folder`.
        part: smallest part of a picture's side that a crop shows.
        flip: mirror half of the films; wrong where captions say left and right.
        leave_out_short: leave films out that are too short, rather than refuse.
        crosses: part of the avatars' clips whose picture of the face is another one than a frame of the clip.
        repeat: how often the source counts beside the others.
    """

    kind: Kind
    folder: Path | None = None
    table: Path | None = None
    caption: str | None = None
    size: tuple[int, int] = (64, 64)
    num_frames: int = 1
    stride: int = 1
    num: int = 10_000
    style: Style | None = None
    photos: float = 0.0
    part: float = 0.5
    flip: bool = False
    leave_out_short: bool = False
    crosses: float = 0.5
    repeat: int = 1

    def __post_init__(self):
        if self.kind not in get_args(Kind):
            raise InputError("E-TRAIN-SETTING", f"kind is {self.kind!r}.", "", f"Use {', '.join(get_args(Kind))}.")
        if self.style is not None and self.style not in STYLES:
            raise InputError("E-TRAIN-SETTING", f"style is {self.style!r}.", "", f"Use {', '.join(STYLES)}.")
        for name in ("num_frames", "stride", "num", "repeat"):
            if getattr(self, name) < 1:
                raise InputError("E-TRAIN-SETTING", f"{name} is {getattr(self, name)}; it must be 1 or more.")
        for name in _UNREAD[self.kind]:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise InputError("E-TRAIN-SETTING", f"Data of the kind {self.kind} does not read {name}.")
        if self.kind == "drawn" and (self.folder is None) != (self.photos == 0):
            what = "photos say how much of the drawn clips is of the photos in folder"
            raise InputError("E-TRAIN-SETTING", "Of folder and photos only one is given.", f"{what}.", "Give both.")
        needs = {"films": ("folder",), "pictures": ("folder",), "webvid": ("folder", "table")}
        for name in needs.get(self.kind, ()):
            if getattr(self, name) is None:
                raise InputError("E-TRAIN-SETTING", f"Data of the kind {self.kind} needs {name}.")
        if self.kind == "avatars" and self.size[0] != self.size[1]:
            raise InputError("E-TRAIN-SETTING", f"size is {self.size}; avatars are drawn in squares.")


@dataclass(frozen=True)
class Mixed:
    """Several sources as one."""

    sources: tuple[tuple[Source, int], ...]

    @property
    def _ends(self) -> list[int]:
        return list(accumulate(len(source) * repeat for source, repeat in self.sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int, rng: np.random.Generator) -> Any:
        """A clip of the source that `index` falls into."""
        ends = self._ends
        i = next(i for i, end in enumerate(ends) if index < end)
        source = self.sources[i][0]
        return source.read((index - (ends[i - 1] if i else 0)) % len(source), rng)


def open_source(data: Data) -> Source:
    """The clips that a table describes."""
    if data.kind == "avatars":
        return AvatarClips(data.num, data.num_frames, data.size[0], crosses=data.crosses)
    if data.kind == "drawn":
        files = in_folder(data.folder, PICTURES, "") if data.folder else []
        photos = [np.asarray(read_still(path).image) for path, _ in files]
        return DrawnClips(data.num, data.num_frames, data.size, data.style, "train", photos, data.photos)
    assert data.folder is not None
    if data.kind == "pictures":
        return Pictures(tuple(in_folder(data.folder, PICTURES, data.caption)), data.size, data.part)
    if data.kind == "webvid":
        assert data.table is not None
        films = in_webvid(data.table, data.folder)
    else:
        films = in_folder(data.folder, FILMS, data.caption)
    return Films.of(
        films, data.num_frames, data.stride, data.size, flip=data.flip, leave_out_short=data.leave_out_short
    )


def open_all(tables: Sequence[Data]) -> Source:
    """All sources of a recipe together."""
    opened = [(open_source(data), data.repeat) for data in tables]
    return opened[0][0] if len(opened) == 1 and opened[0][1] == 1 else Mixed(tuple(opened))
