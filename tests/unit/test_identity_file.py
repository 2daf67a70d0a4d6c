"""Identities as values and files: what is written is what is read, and strange files are refused by their header."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import tiny
import tiny_consisid as small
from vivant.consisid.conditioning import Face
from vivant.consisid.identity_file import People, load_identity, read_people, save_identity
from vivant.errors import InputError, OutputError
from vivant.faces import file as face_file


def face(num: int = 1, dtype: torch.dtype = torch.float32) -> Face:
    """People, no two of them alike."""
    given: Any = small.to(small.face(num), dtype)
    return Face(given["id_cond"], tuple(given["id_vit_hidden"]))


def points(num: int = 1) -> Tensor:
    """Five points of each face."""
    return 10 + tiny.noise(num, 5, 2, seed=9).abs()


def tensors(num: int = 1, **changes: Tensor | None) -> dict[str, Tensor]:
    """The content of a file."""
    made = face(num)
    named = {"id_cond": made.id_cond, **{f"id_vit_hidden.{i}": x for i, x in enumerate(made.id_vit_hidden)}}
    return {name: tensor for name, tensor in {**named, **changes}.items() if tensor is not None}


def written(path: Path, named: dict[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, path)
    return path


@pytest.fixture
def no_tensors(monkeypatch) -> None:
    """Reading a tensor fails the test; headers may be read."""
    real = face_file.safe_open

    class Header:
        def __init__(self, *args: Any, **options: Any):
            self.file = real(*args, **options)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error: Any):
            return self.file.__exit__(*error)

        def keys(self):
            return self.file.keys()

        def get_slice(self, name: str):
            return self.file.get_slice(name)

        def get_tensor(self, name: str):
            pytest.fail(f"{name} was read")

    monkeypatch.setattr(face_file, "safe_open", Header)


@pytest.mark.parametrize("with_points", [False, True])
def test_what_is_written_is_read(tmp_path, with_points):
    given = People(face(2), points(2) if with_points else None)
    path = save_identity(given, tmp_path / "face.safetensors")
    found = load_identity(path)
    assert torch.equal(found.face.id_cond, given.face.id_cond)
    assert all(map(torch.equal, found.face.id_vit_hidden, given.face.id_vit_hidden))
    assert (found.points is not None) == with_points
    assert found.points is None or torch.equal(found.points, points(2))
    assert found.digests == given.digests
    assert len(found) == len(set(found.digests)) == 2
    with pytest.raises(OutputError, match="E-OUTPUT-EXISTS"):
        save_identity(given, path)
    save_identity(face(), path, overwrite=True)
    assert len(load_identity(path)) == 1
    assert [child.name for child in tmp_path.iterdir()] == [path.name]
    assert len(found) == 2, "not a view of the file"


def test_a_file_has_the_names_that_are_documented(tmp_path):
    path = save_identity(People(face(), points()), tmp_path / "face.safetensors")
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert sorted(header) == ["id_cond", "id_vit_hidden.0", "id_vit_hidden.1", "kps_cond"]


def test_a_digest_is_of_the_values_of_one_person(tmp_path):
    half = face(2, torch.bfloat16)
    exact = Face(half.id_cond.float(), tuple(x.float() for x in half.id_vit_hidden))
    digests = read_people(half).digests
    assert digests == read_people(exact).digests
    alone = [Face(exact.id_cond[i, None], tuple(x[i, None] for x in exact.id_vit_hidden)) for i in range(2)]
    assert digests == tuple(read_people(one).digests[0] for one in alone)
    for i in range(3):
        parts = [exact.id_cond.clone(), *(x.clone() for x in exact.id_vit_hidden)]
        parts[i][1].view(-1)[-1] += 1
        changed = read_people(Face(parts[0], tuple(parts[1:]))).digests
        assert (changed[0], changed[1]) == (digests[0], changed[1])
        assert changed[1] != digests[1]
    assert read_people(People(exact, points(2))).digests[0] != digests[0]


def test_several_people_are_put_together(tmp_path):
    one, two = face(1), face(2)
    path = save_identity(two, tmp_path / "two.safetensors")
    found = read_people([one, str(path), People(one)])
    assert len(found) == 4
    assert torch.equal(found.face.id_cond, torch.cat([one.id_cond, two.id_cond, one.id_cond]))
    with pytest.raises(InputError, match="E-KEY-POINTS"):
        read_people([one, People(one, points())])
    wide = Face(torch.zeros(1, 99), one.id_vit_hidden)
    with pytest.raises(InputError, match="E-IDENTITY-SHAPE"):
        read_people([one, wide])
    with pytest.raises(InputError, match="E-IDENTITY-NONE"):
        read_people([])


def test_a_value_does_not_change_with_what_it_was_made_from():
    given = face()
    found = read_people(given)
    before = found.digests
    given.id_cond.zero_()
    assert found.digests == before


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"id_cond": None}, "E-IDENTITY-TENSORS"),
        ({"id_vit_hidden.0": None}, "E-IDENTITY-TENSORS"),
        ({"id_vit_hidden.0": None, "id_vit_hidden.1": None}, "E-IDENTITY-TENSORS"),
        ({"id_vit_hidden.3": torch.zeros(1, 11, 18)}, "E-IDENTITY-TENSORS"),
        ({"unet.weight": torch.zeros(1)}, "E-IDENTITY-TENSORS"),
        ({"id_cond": torch.zeros(1, 14, dtype=torch.int64)}, "E-IDENTITY-TENSORS"),
        ({"id_cond": torch.zeros(14)}, "E-IDENTITY-SHAPE"),
        ({"id_cond": torch.zeros(2, 14)}, "E-IDENTITY-SHAPE"),
        ({"id_cond": torch.zeros(0, 14)}, "E-IDENTITY-SHAPE"),
        ({"id_vit_hidden.1": torch.zeros(1, 12, 18)}, "E-IDENTITY-SHAPE"),
        ({"id_vit_hidden.1": torch.zeros(11, 18)}, "E-IDENTITY-SHAPE"),
        ({"kps_cond": torch.zeros(5, 2)}, "E-KEY-POINTS"),
        ({"kps_cond": torch.zeros(2, 5, 2)}, "E-KEY-POINTS"),
    ],
)
def test_tensors_that_are_no_identity_are_refused_unread(tmp_path, no_tensors, changes, code):
    path = written(tmp_path / "face.safetensors", tensors(**changes))
    with pytest.raises(InputError) as refusal:
        load_identity(path)
    assert refusal.value.code == code


def test_many_people_are_refused_unread(tmp_path, no_tensors):
    num = face_file.MAX_PEOPLE + 1
    path = written(
        tmp_path / "crowd.safetensors", {"id_cond": torch.zeros(num, 1), "id_vit_hidden.0": torch.zeros(num, 1, 1)}
    )
    with pytest.raises(InputError, match="E-IDENTITY-SHAPE"):
        load_identity(path)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(tmp_path, broken):
    values = tensors()
    values["id_vit_hidden.1"] = values["id_vit_hidden.1"].clone()
    values["id_vit_hidden.1"][0, 3, 4] = broken
    with pytest.raises(InputError, match=r"E-IDENTITY-VALUES.*id_vit_hidden\.1"):
        load_identity(written(tmp_path / "face.safetensors", values))


def _claiming(header: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header


CONTENTS = {
    "nothing": b"",
    "text": b"I am no identity, whatever my name says.",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "a pickle": b"\x80\x02}q\x00." + bytes(100),
    "a long header": _claiming(b" " * (2**16 + 8)),
    "a header beyond the end": _claiming(b"{}", 2**62),
    "no JSON": _claiming(b"{" * 50),
    "nested JSON": _claiming(b'{"a":' * 5000),
    "no data": _claiming(b'{"id_cond":{"dtype":"F32","shape":[1,1280],"data_offsets":[0,5120]}}'),
    "a shape without data": _claiming(b'{"id_cond":{"dtype":"F32","shape":[1099511627776,1280],"data_offsets":[0,0]}}'),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_what_is_no_safetensors_file_is_refused(tmp_path, no_tensors, kind):
    path = tmp_path / "face.safetensors"
    path.write_bytes(CONTENTS[kind])
    with pytest.raises(InputError, match="E-IDENTITY-FILE"):
        load_identity(path)


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    path = written(tmp_path / "face.safetensors", tensors())
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="E-IDENTITY-FILE"):
        load_identity(path)


def test_the_file_of_a_model_is_refused_by_its_size(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(face_file.MAX_BYTES + 1)  # a hole: it takes no space
    monkeypatch.setattr(face_file, "safe_open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(InputError, match="E-IDENTITY-SIZE"):
        load_identity(path)


@pytest.mark.parametrize("name", ["none.safetensors", ".", "x" * 300, ""])
def test_what_is_no_file_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="E-IDENTITY-MISSING"):
        load_identity(name)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("made", "code"),
    [
        (lambda: 5, "E-IDENTITY-TYPE"),
        (lambda: {"id_cond": 1}, "E-IDENTITY-TYPE"),
        (lambda: None, "E-IDENTITY-NONE"),
        (lambda: [None], "E-IDENTITY-NONE"),
        (lambda: Face([1.0], ([2.0],)), "E-IDENTITY-TYPE"),
        (lambda: Face(torch.zeros(14), face().id_vit_hidden), "E-IDENTITY-SHAPE"),
        (lambda: Face(torch.zeros(1, 14), ()), "E-IDENTITY-SHAPE"),
        (lambda: People(face(), torch.zeros(5, 2)), "E-KEY-POINTS"),
    ],
)
def test_objects_that_are_no_identity_are_refused(made, code):
    with pytest.raises(InputError) as refusal:
        read_people(made())
    assert refusal.value.code == code
