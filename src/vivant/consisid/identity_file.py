"""Identities in and out: tensors that stand for faces, as values and as files (`vivant.faces.file`)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from vivant.consisid.conditioning import Face
from vivant.errors import InputError
from vivant.faces.face import Face as SeenFace
from vivant.faces.file import BOX, COND, HIDDEN, IMAGE, LAYOUT, POINTS, QUALITY, check_shapes, num_depths, read_tensors
from vivant.media.atomic import replacing


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


_One = str | PathLike[str] | Face | SeenFace | People
Identities = _One | Sequence[_One]


def read_people(identity: Identities) -> People:
    """Identities from wherever they are.

    Args:
        identity: the path of a file, a `Face` of either kind, `People`, or a list of such for several people.

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
        InputError: as `vivant.faces.file.read_tensors`, and E-IDENTITY-VALUES.
    """
    return _people({name: tensor for name, tensor in read_tensors(path).items() if name not in (IMAGE, BOX, QUALITY)})


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
    if isinstance(item, Face | SeenFace):
        named = {COND: item.id_cond, **{f"{HIDDEN}{i}": x for i, x in enumerate(item.id_vit_hidden)}}
        return _people({**named, POINTS: item.keypoints[None]} if isinstance(item, SeenFace) else named)
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
    check_shapes({name: tuple(tensor.shape) for name, tensor in named.items()})
    plain = {
        name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in named.items()
    }  # not the file
    broken = [name for name, tensor in plain.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise InputError("E-IDENTITY-VALUES", f"{broken[0]} of the identity holds NaN or infinity.")
    hidden = tuple(plain[f"{HIDDEN}{i}"] for i in range(num_depths(plain)))
    return People(Face(plain[COND], hidden), plain.get(POINTS))
