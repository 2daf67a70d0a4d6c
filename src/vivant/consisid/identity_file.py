"""Identities in and out: tensors that stand for faces, as values and as safetensors files.

For p people a file holds `id_cond` (p, 1280), `id_vit_hidden.0` to `.4` (p, 577, 1024) and perhaps `kps_cond`
(p, 5, 2); the sizes are those of the published checkpoint. It may come from a stranger: its header is checked before
any tensor is read, and it can hold nothing but these.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vivant.consisid.conditioning import Face
from vivant.errors import InputError
from vivant.media.atomic import replacing

COND, HIDDEN, POINTS = "id_cond", "id_vit_hidden.", "kps_cond"
MAX_BYTES = 2**28  # twenty people in float32
MAX_HEADER = 2**16
MAX_PEOPLE, MAX_DEPTHS = 64, 32
DTYPES = ("F64", "F32", "F16", "BF16")
LAYOUT = "A file holds id_cond (people, 1280), id_vit_hidden.0 to .4 (people, 577, 1024) and perhaps kps_cond."


@dataclass(frozen=True, eq=False)
class People:
    """Identities in float32, on the CPU, and the key points of their faces.

    Attributes:
        face: the identities.
        points: five points of each face, in pixels of its aligned picture; None where they are not known.
    """

    face: Face
    points: Float[Tensor, "p 5 2"] | None = None

    def __len__(self) -> int:
        return len(self.face.id_cond)

    def person(self, i: int) -> "People":
        """One of them."""
        return _people({name: tensor[i, None] for name, tensor in _named(self).items()})

    @property
    def digests(self) -> tuple[str, ...]:
        """sha256 of each person's tensors: the same in every data type that holds the values."""
        found: list[str] = []
        for i in range(len(self)):
            digest = hashlib.sha256()
            for name, tensor in _named(self).items():
                digest.update(f"{name} {tuple(tensor.shape[1:])} ".encode())
                digest.update(tensor[i].contiguous().reshape(-1).view(torch.uint8).numpy().data)
            found.append(f"sha256:{digest.hexdigest()}")
        return tuple(found)


Identities = str | PathLike[str] | Face | People | Sequence[str | PathLike[str] | Face | People]


def read_people(identity: Identities) -> People:
    """Identities from wherever they are.

    Args:
        identity: the path of a file, a `Face`, `People`, or a list of such for several people.

    Raises:
        InputError: E-IDENTITY-NONE for an empty list, E-IDENTITY-TYPE, E-IDENTITY-SHAPE, E-IDENTITY-VALUES,
            E-KEY-POINTS where some have key points and others none, and what `load_identity` raises.
    """
    items = list(identity) if isinstance(identity, list | tuple) else [identity]
    if not items:
        raise InputError("E-IDENTITY-NONE", "No identity was given.", "", "Give one for all, or one for each picture.")
    people = [_one(item) for item in items]
    if len(people) == 1:
        return people[0]
    tables = [_named(one) for one in people]
    if any((POINTS in table) != (POINTS in tables[0]) for table in tables):
        raise InputError("E-KEY-POINTS", "Some identities have key points, and others have none.")
    shapes = [[(name, tuple(tensor.shape[1:])) for name, tensor in table.items()] for table in tables]
    if any(shape != shapes[0] for shape in shapes):
        raise InputError("E-IDENTITY-SHAPE", "The identities have tensors of different shapes.", "", LAYOUT)
    return _people({name: torch.cat([table[name] for table in tables]) for name in tables[0]})


def load_identity(path: str | PathLike[str]) -> People:
    """Read the identities of a file.

    Raises:
        InputError: E-IDENTITY-MISSING for a file that cannot be opened, E-IDENTITY-SIZE for one that is too large,
            E-IDENTITY-FILE for one that is no safetensors file or damaged, E-IDENTITY-TENSORS for tensors that are
            missing, left over or not floating, all before any tensor is read; then E-IDENTITY-SHAPE, E-IDENTITY-VALUES.
    """
    path = Path(path)
    _check_size(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            _check_header(path, {name: file.get_slice(name).get_dtype() for name in names})
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            _check_shapes(shapes)
            return _people({name: file.get_tensor(name) for name in names})
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "E-IDENTITY-FILE", f"{path} cannot be read: {str(error)[:200]}.", "It is no safetensors file, or damaged."
        ) from None


def save_identity(identity: Identities, path: str | PathLike[str], *, overwrite: bool = False) -> Path:
    """Write identities as one file; nothing remains of a failed attempt.

    Raises:
        InputError: as `read_people`.
        OutputError: E-OUTPUT-EXISTS, E-OUTPUT-FOLDER, E-OUTPUT-WRITE.
    """
    named = {name: tensor.contiguous() for name, tensor in _named(read_people(identity)).items()}
    with replacing(Path(path), overwrite=overwrite) as temporary:
        save_file(named, temporary)
    return Path(path)


def _one(item: object) -> People:
    if isinstance(item, Face):
        return _people({COND: item.id_cond, **{f"{HIDDEN}{i}": x for i, x in enumerate(item.id_vit_hidden)}})
    if isinstance(item, People):
        return _people(_named(item))
    if isinstance(item, str | PathLike):
        return load_identity(item)
    if item is None:
        raise InputError("E-IDENTITY-NONE", "No identity was given.", "", LAYOUT)
    raise InputError(
        "E-IDENTITY-TYPE",
        f"An identity cannot be a {type(item).__name__}.",
        "",
        "Give the path of a file, or a vivant.consisid.conditioning.Face.",
    )


def _named(people: People) -> dict[str, Tensor]:
    """Tensors by their names in a file, in one order."""
    named = {COND: people.face.id_cond, **{f"{HIDDEN}{i}": x for i, x in enumerate(people.face.id_vit_hidden)}}
    return named if people.points is None else {**named, POINTS: people.points}


def _people(named: Mapping[str, Tensor]) -> People:
    """Checked values of tensors that have their names."""
    if not all(isinstance(tensor, Tensor) for tensor in named.values()):
        raise InputError("E-IDENTITY-TYPE", "An identity holds something that is no tensor.", "", LAYOUT)
    _check_shapes({name: tuple(tensor.shape) for name, tensor in named.items()})
    plain = {
        name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in named.items()
    }  # not the file
    broken = [name for name, tensor in plain.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise InputError("E-IDENTITY-VALUES", f"{broken[0]} of the identity holds NaN or infinity.")
    hidden = tuple(plain[f"{HIDDEN}{i}"] for i in range(_num_depths(plain)))
    return People(Face(plain[COND], hidden), plain.get(POINTS))


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
    depths = _num_depths(dtypes)
    needed = {COND, f"{HIDDEN}0", *(f"{HIDDEN}{i}" for i in range(depths))}
    absent, over = sorted(needed - dtypes.keys()), sorted(dtypes.keys() - needed - {POINTS})
    if absent or over:
        said = f"lacks {', '.join(absent)}" if absent else f"holds {', '.join(name[:60] for name in over[:3])} too"
        raise InputError("E-IDENTITY-TENSORS", f"{path} {said}.", "", LAYOUT)
    other = {name: dtype for name, dtype in dtypes.items() if dtype not in DTYPES}
    if other:
        raise InputError("E-IDENTITY-TENSORS", f"{path} holds {other}.", "Identities are floating numbers.")


def _num_depths(named: Mapping[str, object]) -> int:
    """How many hidden states there are, from 0 without a gap."""
    return next((i for i in range(MAX_DEPTHS) if f"{HIDDEN}{i}" not in named), MAX_DEPTHS)


def _check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Shapes that fit each other; whether they fit a network is asked where there is one."""
    cond, points = shapes[COND], shapes.get(POINTS)
    hidden = [shapes[f"{HIDDEN}{i}"] for i in range(_num_depths(shapes))]
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
