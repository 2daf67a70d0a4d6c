"""`vivant models` and `vivant verify`: what they list and find, exit codes, and what strangers' files do to them."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

import tiny_repo
from commands import BASE_ID, Vivant
from tiny import noise
from vivant.cli.screen import Code

TO_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
LORA = {f"{TO_K}.lora_down.weight": noise(4, 768), f"{TO_K}.lora_up.weight": noise(320, 4)}
METADATA = {
    "ss_output_name": "Hyper-SD15-4steps-lora",
    "ss_base_model_version": "sd_v1",
    "modelspec.license": "CC-BY-4.0",
    "ss_tag_frequency": json.dumps({"10_cat": {"cat": 9, "field": 4}}),
}


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    path = tmp_path / "fast.safetensors"
    save_file(LORA, path, METADATA)
    return path


def test_a_file_is_described(vivant_: Vivant, lora: Path):
    ran = vivant_("models", str(lora))
    digest = hashlib.sha256(lora.read_bytes()).hexdigest()
    assert ran.code == Code.OK
    assert ran.out.splitlines() == [
        str(lora),
        "  kind:           LoRA, Stable Diffusion 1.5, kohya",
        "  use:            changes a base for PIA",
        "  holds:          17.5 KiB, 2 tensors: 2 F32",
        "  title:          Hyper-SD15-4steps-lora",
        "  base model:     sd_v1",
        "  licence:        CC-BY-4.0",
        "  trained words:  cat, field",
        "  few steps:      Hyper-SD wants DDIMScheduler, 4 steps, guidance 1.",
        f"  sha256:         {digest}, short {digest[:10]}",
    ]
    assert ran.err == f"1 model in {lora}.\n"
    (one,) = vivant_("models", str(lora), "--json").json["models"]
    assert one == {
        **{"path": str(lora), "kind": "LoRA", "family": "Stable Diffusion 1.5", "layout": "kohya"},
        **{"use": "changes a base for PIA", "size": lora.stat().st_size, "sha256": digest, "short_hash": digest[:10]},
        **{"tensors": 2, "dtypes": {"F32": 2}, "parts": {}, "title": "Hyper-SD15-4steps-lora", "author": ""},
        **{"base_model": "sd_v1", "licence": "CC-BY-4.0", "trigger": "", "trained_words": ["cat", "field"]},
        **{"few_steps": "Hyper-SD wants DDIMScheduler, 4 steps, guidance 1.", "error": None},
    }


def test_hashes_are_of_files_that_are_named_unless_said_otherwise(vivant_: Vivant, lora: Path):
    def hashed(*args: str) -> list[bool]:
        return [one["sha256"] is not None for one in vivant_("models", *args, "--json").json["models"]]

    assert hashed(str(lora)) == [True]
    assert hashed(str(lora), "--no-hash") == [False]
    assert hashed(str(lora.parent)) == [False]
    assert hashed(str(lora.parent), "--hash") == [True]


def test_without_a_path_the_cache_and_what_ships(vivant_: Vivant, models: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(models / "cache"))
    listed = vivant_("models", "--json").json["models"]
    paths = [Path(one["path"]) for one in listed]
    assert f"models--{BASE_ID.replace('/', '--')}" in str(paths[1])
    shipped = ["judge.safetensors", "motion", "neon", "paper", "person", "recogniser.safetensors"]
    assert [path.name for path in paths[2:]] == shipped
    uses = ["drives PIA", "a base for PIA"]
    assert [one["use"] for one in listed[:2]] == uses
    assert [one["use"] for one in listed[3:7]] == [*uses, "a base for PIA", "makes portraits (ConsisID)"]
    assert listed[1]["parts"]["."] == "StableDiffusionPipeline"
    assert listed[1]["size"] > 10_000
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(models / "nowhere"))
    assert len(vivant_("models", "--json").json["models"]) == len(shipped)
    assert paths[1].parent.name == "snapshots"
    assert paths[1].name == tiny_repo.COMMIT


def test_what_strangers_write_does_not_steer_the_terminal(vivant_: Vivant, tmp_path: Path):
    evil = "\x1b[2J\x1b]0;owned\x07\u202ekcah\x9b31m\nSECOND LINE\r"
    folder = tmp_path / "a\x1b[31mb\nc"
    folder.mkdir()
    tags = json.dumps({"a": {evil + str(i): 5 for i in range(50)}})
    save_file(LORA, folder / "x.safetensors", {"modelspec.title": evil * 99, "ss_tag_frequency": tags})
    (folder / "repo").mkdir()
    (folder / "repo" / "model_index.json").write_text(json.dumps({"_class_name": evil, evil: ["a", evil]}))
    (folder / "repo" / "README.md").write_text(f"---\nlicense: {evil}\n---\n")
    save_file({evil: torch.tensor([float("nan")])}, folder / f"{evil[:4]}.safetensors")
    for command in ("models", "verify"):
        ran = vivant_(command, str(folder))
        assert not set(ran.out + ran.err) & {"\x1b", "\x07", "\x9b", "\u202e", "\r"}
        assert all(len(one) < 1500 for one in (ran.out + ran.err).splitlines())
        assert not any(one.startswith(("SECOND", "c/")) for one in (ran.out + ran.err).splitlines())
        assert "\x1b" not in vivant_(command, str(folder), "--json").out


class Canary:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def hostile(folder: Path) -> dict[str, str]:
    """Files that are none, each with the code of its error; a canary file appears if one of them is run."""
    folder.mkdir()
    good = save(LORA)
    overlap = json.dumps({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"}).encode()
    files = {
        "flipped.safetensors": bytes([good[0] ^ 0x40]) + good[1:],
        "header.safetensors": (2**31).to_bytes(8, "little") + b"{}",
        "overlap.safetensors": len(overlap).to_bytes(8, "little") + overlap + bytes(8),
        "zero.safetensors": b"",
        "zero.ckpt": b"",
        "text.pt": b"<html>not found</html>",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    torch.save({"a": Canary(folder / "canary")}, folder / "run.ckpt")
    (folder / "circle").symlink_to(folder, target_is_directory=True)
    (folder / "self.safetensors").symlink_to(folder / "self.safetensors")
    os.mkfifo(folder / "pipe.safetensors")
    broken = dict.fromkeys((*files, "self.safetensors", "pipe.safetensors"), "E-WEIGHTS-BROKEN")
    # What is no pickle at all and what holds more than tensors is the same to whoever must not read it.
    return {**broken, "run.ckpt": "E-WEIGHTS-PICKLE", "text.pt": "E-WEIGHTS-PICKLE"}


@pytest.mark.parametrize("command", ["models", "verify"])
def test_hostile_files_are_named_quickly_and_do_not_stop_the_rest(vivant_: Vivant, tmp_path: Path, command: str):
    folder = tmp_path / "loot"
    expected = hostile(folder)
    save_file(LORA, folder / "good.safetensors")
    vivant_(command, str(folder / "good.safetensors"))  # imports are not what is timed
    start = time.perf_counter()
    ran = vivant_(command, str(folder), "--json")
    assert time.perf_counter() - start < 2
    listed = ran.json["models" if command == "models" else "files"]
    found = {
        Path(one["path"]).name: [problem["code"] for problem in one.get("problems", [one.get("error")]) if problem]
        for one in listed
    }
    assert found == {**{name: [code] for name, code in expected.items()}, "good.safetensors": []}
    assert ran.code == (Code.OK if command == "models" else Code.LOAD)
    assert not (folder / "canary").exists()
    for name in expected:
        start = time.perf_counter()
        assert vivant_(command, str(folder / name)).code == Code.LOAD
        assert time.perf_counter() - start < 2
    assert not (folder / "canary").exists()


def test_a_path_that_is_not_there(vivant_: Vivant, tmp_path: Path):
    assert vivant_("models", str(tmp_path / "a")).code == Code.LOAD
    assert "E-FILE-MISSING" in vivant_("models", str(tmp_path / "a")).out
    ran = vivant_("verify", str(tmp_path / "a"), "--json")
    assert (ran.code, ran.json["error"]["code"]) == (Code.LOAD, "E-FILE-MISSING")
    (tmp_path / "empty").mkdir()
    assert vivant_("models", str(tmp_path / "empty")).code == Code.OK
    assert vivant_("verify", str(tmp_path / "empty"), "--json").json["error"]["code"] == "E-VERIFY-NONE"


def test_sound_files_and_the_hash_that_was_expected(vivant_: Vivant, lora: Path):
    digest = hashlib.sha256(lora.read_bytes()).hexdigest()
    ran = vivant_("verify", str(lora))
    assert (ran.code, ran.err) == (Code.OK, "1 file read: sound.\n")
    assert ran.out == f"sound: {lora} (17.5 KiB, 2 tensors, sha256 {digest})\n"
    assert vivant_("verify", str(lora), "--sha256", digest[:10]).out.endswith("as expected)\n")
    wrong = vivant_("verify", str(lora), "--sha256", "0" * 64, "--json")
    (one,) = wrong.json["files"]
    assert wrong.code == Code.GRADED
    assert (one["sound"], one["sha256"], one["expected"]) == (False, digest, "0" * 64)
    assert [problem["code"] for problem in one["problems"]] == ["E-VERIFY-HASH"]
    for args in ([str(lora), "--sha256", "xyz"], [str(lora), str(lora.parent), "--sha256", digest[:9]]):
        assert vivant_("verify", *args, "--json").json["error"]["code"] == "E-VERIFY-SHA256"
    save_file(LORA, lora.parent / "b.safetensors")
    ran = vivant_("verify", str(lora.parent), "--sha256", digest, "--json")
    assert (ran.code, ran.json["error"]["code"]) == (Code.INPUT, "E-VERIFY-SHA256")


def test_numbers_that_are_none_are_named(vivant_: Vivant, tmp_path: Path):
    bad = noise(4, 6)
    bad[1, 2], bad[3, 3] = float("nan"), float("-inf")
    save_file({"fine": noise(3), "bad.weight": bad.half()}, tmp_path / "a.safetensors")
    ran = vivant_("verify", str(tmp_path / "a.safetensors"))
    assert ran.code == Code.GRADED
    assert "1 of 2 tensors" in ran.out
    assert "bad.weight (1 NaN, 1 infinite)" in ran.out
    (one,) = vivant_("verify", str(tmp_path), "--json").json["files"]
    assert one["not_finite"] == [{"name": "bad.weight", "nan": 1, "infinite": 1}]
    (tmp_path / "b.safetensors").touch()
    assert vivant_("verify", str(tmp_path)).code == Code.LOAD, "a file that cannot be read weighs more"
