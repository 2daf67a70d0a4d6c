"""Many pictures on one."""

import math
from collections.abc import Sequence

from PIL import Image

from vivant.errors import InputError


def grid(images: Sequence[Image.Image], rows: int, columns: int, *, gap: int = 0) -> Image.Image:
    """Pictures of one size in reading order on white; cells left over at the end stay white.

    Raises:
        InputError: E-SHEET-COUNT when they do not fit into rows x columns, E-SHEET-SIZE when their sizes differ.
    """
    if not images or rows < 1 or columns < 1 or not len(images) <= rows * columns:
        raise InputError("E-SHEET-COUNT", f"{len(images)} pictures do not fit into {rows} rows and {columns} columns.")
    width, height = images[0].size
    if any(image.size != (width, height) for image in images):
        raise InputError("E-SHEET-SIZE", "The pictures of a sheet must have one size.")
    canvas = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        canvas.paste(image, (column * (width + gap), row * (height + gap)))
    return canvas


def contact_sheet(frames: Sequence[Image.Image], columns: int | None = None, *, gap: int = 4) -> Image.Image:
    """All frames of a clip at full size, in as many columns as make the sheet nearly square."""
    if not frames:
        raise InputError("E-FRAMES-EMPTY", "The clip has no frames.")
    if columns is None:
        columns = max(1, round(math.sqrt(len(frames) * frames[0].height / frames[0].width)))
        columns = min(columns, len(frames))
    return grid(frames, math.ceil(len(frames) / columns), columns, gap=gap)
