"""The file of a face: tensors by name, in safetensors.

For p people it holds `id_cond` (p, 1280), `id_vit_hidden.0` to `.4` (p, 577, 1024) and perhaps `kps_cond` (p, 5, 2); of
a `vivant.faces.face.Face` also its aligned crop `image` (p, h, w, 3) in bytes, `box` (p, 4) and `quality` (p, 5). The
sizes are those of the published checkpoint. It may come from a stranger: its header is checked before any tensor is
read, and it can hold nothing but these.
"""

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vivant.errors import InputError

COND, HIDDEN, POINTS = "id_cond", "id_vit_hidden.", "kps_cond"
IMAGE, BOX, QUALITY = "image", "box", "quality"
MAX_BYTES = 2**28  # twenty people in float32
MAX_HEADER = 2**16
MAX_PEOPLE, MAX_DEPTHS, MAX_SIDE = 64, 32, 4096
DTYPES = ("F64", "F32", "F16", "BF16")
LAYOUT = "A file holds id_cond (people, 1280), id_vit_hidden.0 to .4 (people, 577, 1024) and perhaps kps_cond."


def read_tensors(path: str | PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file, as it holds them.

    Raises:
        InputError: E-IDENTITY-MISSING for a file that cannot be opened, E-IDENTITY-SIZE for one that is too large,
            E-IDENTITY-FILE for one that is no safetensors file or damaged, E-IDENTITY-TENSORS for tensors that are
            missing, left over or of another type, all before any tensor is read; then E-IDENTITY-SHAPE, E-KEY-POINTS.
    """
    path = Path(path)
    _check_size(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            _check_header(path, {name: file.get_slice(name).get_dtype() for name in names})
            check_shapes({name: tuple(file.get_slice(name).get_shape()) for name in names})
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "E-IDENTITY-FILE", f"{path} cannot be read: {str(error)[:200]}.", "It is no safetensors file, or damaged."
        ) from None


def _check_size(path: Path) -> None:
    """The size of the file and of its header, before anything parses it."""
    if not os.path.isfile(path):  # unlike Path.is_file, it answers for names that the system cannot hold
        raise InputError("E-IDENTITY-MISSING", f"There is no file {path}.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise InputError("E-IDENTITY-MISSING", f"{path} cannot be read.", f"{error}.") from None
    if size > MAX_BYTES:
        raise InputError("E-IDENTITY-SIZE", f"{path} has {size:,} bytes.", f"At most {MAX_BYTES:,} are read.")
    if size < 8 or header > min(MAX_HEADER, size - 8):
        raise InputError("E-IDENTITY-FILE", f"{path} is no file of an identity.", "Its header has no possible size.")


def _check_header(path: Path, dtypes: Mapping[str, str]) -> None:
    depths = num_depths(dtypes)
    needed = {COND, f"{HIDDEN}0", *(f"{HIDDEN}{i}" for i in range(depths))}
    absent, over = sorted(needed - dtypes.keys()), sorted(dtypes.keys() - needed - {POINTS, IMAGE, BOX, QUALITY})
    if absent or over:
        said = f"lacks {', '.join(absent)}" if absent else f"holds {', '.join(name[:60] for name in over[:3])} too"
        raise InputError("E-IDENTITY-TENSORS", f"{path} {said}.", "", LAYOUT)
    other = {name: t for name, t in dtypes.items() if t not in (("U8",) if name == IMAGE else DTYPES)}
    if other:
        raise InputError(
            "E-IDENTITY-TENSORS", f"{path} holds {other}.", "Identities are floating numbers, and pictures are bytes."
        )


def num_depths(named: Mapping[str, object]) -> int:
    """How many hidden states there are, from 0 without a gap."""
    return next((i for i in range(MAX_DEPTHS) if f"{HIDDEN}{i}" not in named), MAX_DEPTHS)


def check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Shapes that fit each other; whether they fit a network is asked where there is one."""
    cond, points = shapes[COND], shapes.get(POINTS)
    hidden = [shapes[f"{HIDDEN}{i}"] for i in range(num_depths(shapes))]
    fits = len(cond) == 2 and bool(hidden) and all(len(s) == 3 and s[0] == cond[0] and s == hidden[0] for s in hidden)
    if not fits or 0 in cond or 0 in hidden[0] or cond[0] > MAX_PEOPLE:
        raise InputError(
            "E-IDENTITY-SHAPE",
            f"id_cond has the shape {cond}, id_vit_hidden {', '.join(map(str, hidden)) or 'no tensors'}.",
            f"They are of the same people, 1 to {MAX_PEOPLE} of them.",
            LAYOUT,
        )
    if points is not None and points != (cond[0], 5, 2):
        raise InputError("E-KEY-POINTS", f"kps_cond has the shape {points}.", f"It must be ({cond[0]}, 5, 2).")
    sides = shapes.get(IMAGE, ())[1:3]
    fit = {IMAGE: (cond[0], *sides, 3), BOX: (cond[0], 4), QUALITY: (cond[0], 5)}
    wrong = [name for name, shape in fit.items() if name in shapes and shapes[name] != shape]
    if wrong or not all(0 < side <= MAX_SIDE for side in sides):
        name = wrong[0] if wrong else IMAGE
        raise InputError("E-IDENTITY-SHAPE", f"{name} has the shape {shapes[name]}, of {cond[0]} people.", "", LAYOUT)
