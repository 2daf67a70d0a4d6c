"""Whether a file is sound: every byte is read, every number looked at, and a damaged file never passes."""

import hashlib
import json
import os
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from tiny import noise
from vivant.errors import InputError, LoadError
from vivant.hub import soundness
from vivant.hub.soundness import NotFinite, check, checked_hash, files_of

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


def codes(path: Path, **options: Any) -> list[str]:
    return [problem.code for problem in check(path, **options).problems]


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_numbers_that_are_none_are_counted(tmp_path, monkeypatch, dtype, ending):
    """In every piece, the last one too, and at every place of a tensor."""
    monkeypatch.setattr(soundness, "PIECE", 64)
    infinite = dtype != torch.float8_e4m3fn  # which has none
    odd = noise(7, 23).to(dtype)
    flat = odd.view(-1)
    flat[0] = flat[80] = flat[-1] = float("nan")
    if infinite:
        flat[3] = float("inf")
        flat[100] = float("-inf")
    largest = torch.full((5, 3), torch.finfo(dtype).max, dtype=torch.float64).to(dtype)
    tensors = {"fine": noise(3, 5).to(dtype), "largest": largest, "odd": odd, "count": torch.tensor([2**40, -1])}
    tensors |= {"none": torch.zeros(0, 4, dtype=dtype), "one": torch.tensor(float("nan")).to(dtype)}
    path = tmp_path / f"a.{ending}"
    save_file(tensors, path) if ending == "safetensors" else torch.save({"state_dict": tensors}, path)
    result = check(path)
    wanted = {NotFinite("odd", 3, 2 if infinite else 0), NotFinite("one", 1, 0)}
    assert set(result.not_finite) == wanted
    assert [problem.code for problem in result.problems] == ["E-VERIFY-FINITE"]
    assert "odd (3 NaN" in result.problems[0].what or "one (1 NaN" in result.problems[0].what
    assert (result.tensors, result.size) == (6, path.stat().st_size)
    assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("ending", ["safetensors", "sft", "pt", "bin", "ckpt"])
def test_a_sound_file(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    tensors = {"a": noise(50, 70), "b": noise(3).half()}
    save_file(tensors, path) if ending.startswith("s") else torch.save(tensors, path)
    seen: list[int] = []
    result = check(path, progress=lambda name, count: seen.append(count))
    assert (result.problems, result.not_finite, result.tensors) == ((), (), 2)
    assert sum(seen) == result.size == path.stat().st_size
    assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_flipped_bit_is_seen_by_the_hash(tmp_path):
    good = save({"a": noise(5, 7), "b": noise(2).half()}, {"about": "b"})
    digest = hashlib.sha256(good).hexdigest()
    path = tmp_path / "a.safetensors"
    path.write_bytes(good)
    assert codes(path, sha256=digest) == []
    for i in range(0, 8 * len(good), 13):
        flipped = bytearray(good)
        flipped[i // 8] ^= 1 << i % 8
        path.write_bytes(flipped)
        found = codes(path, sha256=digest)
        assert found in (["E-VERIFY-HASH"], ["E-WEIGHTS-BROKEN"], ["E-VERIFY-FINITE", "E-VERIFY-HASH"]), i


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 30, -1, -20])
def test_files_cut_short(tmp_path, cut):
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"a": noise(5, 7)})[:cut])
    assert codes(path) == ["E-WEIGHTS-BROKEN"]
    torch.save({"a": noise(5, 7)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes()[: cut or 0])
    assert codes(tmp_path / "b.pt")[0] in ("E-WEIGHTS-BROKEN", "E-WEIGHTS-PICKLE")


def test_bytes_after_the_end(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"a": noise(5, 7)}) + b"more")
    assert codes(path) == ["E-WEIGHTS-BROKEN"]


def test_memory_does_not_grow_with_the_file(tmp_path):
    """200 MB, of which no more than two pieces are held."""
    head = json.dumps({"a": {"dtype": "F16", "shape": [10**8], "data_offsets": [0, 2 * 10**8]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    os.truncate(path, 8 + len(head) + 2 * 10**8)
    check(tmp_path / "nothing")
    tracemalloc.start()
    assert check(path).problems == ()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * soundness.PIECE


# ----------------------------------------------------------------------------------------------------------- hashes


@pytest.mark.parametrize("length", [64, 10])
def test_a_hash_that_is_expected(tmp_path, length):
    path = tmp_path / "a.safetensors"
    save_file({"a": noise(3)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:length]
    assert codes(path, sha256=checked_hash(f" sha256:{digest.upper()} ")) == []
    other = ("0" if digest[-1] != "0" else "1").join([digest[:-1], ""])
    assert codes(path, sha256=checked_hash(other)) == ["E-VERIFY-HASH"]


@pytest.mark.parametrize("text", ["", "abc", "g" * 64, "0" * 63, "0" * 11, "0" * 40, "\x1b[31m" + "0" * 64])
def test_what_is_no_hash(text):
    with pytest.raises(InputError, match="E-VERIFY-SHA256") as error:
        checked_hash(text)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("kind", ["sha256", "git"])
def test_files_of_the_cache_are_compared_with_the_hash_that_the_hub_gave(tmp_path, kind):
    data = save({"a": noise(3)})
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    name = hashlib.sha256(data).hexdigest() if kind == "sha256" else git
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    blob, link = tmp_path / "blobs" / name, tmp_path / "snapshots" / "a.safetensors"
    blob.write_bytes(data)
    link.symlink_to(blob)
    assert codes(link) == []
    blob.write_bytes(save({"a": noise(3, seed=9)}))
    assert codes(link) == ["E-VERIFY-HASH"]
    assert name in check(link).problems[0].why


# ----------------------------------------------------------------------------------------------------------- shards


def sharded(folder: Path) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    files = {f"m-0000{i}-of-00002.safetensors": {f"{i}.a": noise(3, seed=i), f"{i}.b": noise(2)} for i in (1, 2)}
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    table = {key: name for name, tensors in files.items() for key in tensors}
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return table


def test_an_index_and_its_shards(tmp_path):
    table = sharded(tmp_path)
    index = tmp_path / "m.safetensors.index.json"
    found = check(index)
    assert (found.problems, found.tensors, found.sha256) == ((), 4, None)
    assert [path.name for path in files_of([tmp_path])] == [*dict.fromkeys(table.values())]
    for wrong in (
        {**table, "1.a": table["2.a"]},  # elsewhere
        {**table, "3.a": table["2.a"]},  # nowhere
        {key: name for key, name in table.items() if key != "1.b"},  # not told of
    ):
        index.write_text(json.dumps({"weight_map": wrong}))
        assert codes(index) == ["E-WEIGHTS-SHARD"]
    index.write_text(json.dumps({"weight_map": {**table, "x": "../outside.safetensors"}}))
    assert codes(index) == ["E-WEIGHTS-SHARD"]
    sharded(tmp_path)
    (tmp_path / table["2.a"]).unlink()
    assert codes(index) == ["E-WEIGHTS-SHARD"]
    index.write_text("[")
    assert codes(index) == ["E-JSON-BROKEN"]


def test_all_files_of_a_repository_are_looked_into(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    sharded(tmp_path / "unet")
    (tmp_path / "vae").mkdir()
    save_file({"a": noise(3)}, tmp_path / "vae" / "x.safetensors")
    torch.save({"a": noise(3)}, tmp_path / "vae" / "x.bin")
    (tmp_path / "vae" / "config.json").write_text("{}")
    names = [path.relative_to(tmp_path).as_posix() for path in files_of([tmp_path, tmp_path / "vae"])]
    assert names == [
        *("unet/m-00001-of-00002.safetensors", "unet/m-00002-of-00002.safetensors", "unet/m.safetensors.index.json"),
        *("vae/x.bin", "vae/x.safetensors"),
    ]


def test_nothing_to_look_into(tmp_path):
    with pytest.raises(LoadError, match="E-VERIFY-NONE"):
        files_of([tmp_path])
    with pytest.raises(LoadError, match="E-FILE-MISSING"):
        files_of([tmp_path / "a.safetensors"])


# -------------------------------------------------------------------------------------------------- hostile pickles


class Canary:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_in_a_pickle_is_run(tmp_path):
    torch.save({"a": noise(3), "b": Canary(tmp_path / "canary")}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    assert codes(tmp_path / "a.ckpt") == codes(tmp_path / "b.ckpt") == ["E-WEIGHTS-PICKLE"]
    assert not (tmp_path / "canary").exists()


def test_a_tensor_that_never_ends(tmp_path):
    """One number of the file, repeated: a thousand billion of them."""
    torch.save({"a": noise(3), "b": torch.zeros(1).expand(10**12)}, tmp_path / "a.pt")
    assert codes(tmp_path / "a.pt") == ["E-VERIFY-SIZE"]


def test_names_for_the_same_tensor_are_usual(tmp_path):
    whole = noise(300, 70)
    torch.save({f"name{i}": whole for i in range(9)}, tmp_path / "a.pt")
    assert codes(tmp_path / "a.pt") == []


@pytest.mark.parametrize("odd", ["sparse", "meta"])
def test_tensors_of_other_kinds(tmp_path, odd):
    tensor = noise(4, 4).to_sparse() if odd == "sparse" else torch.zeros(3, device="meta")
    torch.save({"a": tensor}, tmp_path / "a.pt")
    assert codes(tmp_path / "a.pt")[0] in ("E-WEIGHTS-BROKEN", "E-WEIGHTS-PICKLE")


def test_what_the_system_refuses(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").symlink_to(tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "d.safetensors").write_bytes(struct.pack("<Q", 2**31) + b"{}")
    found = [codes(path) for path in files_of([tmp_path])]
    assert found == [["E-WEIGHTS-BROKEN"], ["E-WEIGHTS-BROKEN"], ["E-FILE-MISSING"], ["E-WEIGHTS-BROKEN"]]
