"""Files that change a model: found in every place, known by their content, refused by their headers."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tiny_repo
from vivant.errors import VivantError
from vivant.hub.repo import Source
from vivant.preflight.additions import find_additions

LORA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
PLACE = Source("unread")


def write(path: Path, name: str = LORA, shape: tuple[int, ...] = (2, 768)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.ones(shape)}, path)
    return path


def test_a_file_is_known_by_its_content(tmp_path: Path):
    path = write(tmp_path / "ink.safetensors")
    (found,) = find_additions([(path, 0.5)], [], [], PLACE)
    assert (found.kind, found.path, found.weight) == ("lora", path, 0.5)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.to_json() == {
        "kind": "lora",
        "sha256": digest,
        "file": "ink.safetensors",
        "weight": 0.5,
        "token": None,
    }


def test_loras_come_before_embeddings_in_the_order_given(tmp_path: Path):
    a, b = write(tmp_path / "a.safetensors"), write(tmp_path / "b.safetensors")
    word = write(tmp_path / "w.safetensors", "emb_params", (3, 768))
    found = find_additions([b, (str(a), 2)], [word, (word, "<ink>")], [], PLACE)
    assert [(f.kind, f.path, f.weight, f.token) for f in found] == [
        ("lora", b, 1.0, None),
        ("lora", a, 2.0, None),
        ("embedding", word, 1.0, None),
        ("embedding", word, 1.0, "<ink>"),
    ]


def test_a_file_on_the_hub_is_named_after_its_repository(tmp_path: Path):
    write(tmp_path / "repo" / "deep" / "ink.safetensors")
    write(tmp_path / "repo" / "pytorch_lora_weights.safetensors")
    tiny_repo.into_cache(tmp_path / "cache", "someone/ink", tmp_path / "repo")
    place = Source("unread", cache_dir=tmp_path / "cache", local_files_only=True)
    files = ["someone/ink/deep/ink.safetensors", "someone/ink"]
    named, usual = find_additions(files, [], [], place)
    # What belongs to the model itself is nothing to its additions.
    of_the_model = replace(place, revision="f" * 40, variant="fp16", subfolder="unet")
    assert [found.path for found in find_additions(files, [], [], of_the_model)] == [named.path, usual.path]
    common = {"hub": "someone/ink", "revision": tiny_repo.COMMIT}
    assert named.origin == {"file": "deep/ink.safetensors", **common}
    assert usual.origin == {"file": "pytorch_lora_weights.safetensors", **common}


def test_a_local_file_is_never_taken_for_one_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a" / "b" / "c.safetensors")
    offline = Source("unread", cache_dir=tmp_path / "cache", local_files_only=True)
    (found,) = find_additions(["a/b/c.safetensors"], [], [], offline)
    assert found.origin == {"file": "c.safetensors"}
    with pytest.raises(VivantError, match=r"E-FILE-MISSING.*a/b has no file"):
        find_additions(["a/b/d.safetensors"], [], [], offline)
    with pytest.raises(VivantError, match="E-FILE-MISSING"):
        find_additions([tmp_path / "a" / "b" / "d.safetensors"], [], [], offline)


@pytest.mark.parametrize(
    ("name", "shape", "code"),
    [
        (LORA, (2, 2048), "E-FILE-FAMILY.*Stable Diffusion XL"),
        ("emb_params", (2, 768), "E-FILE-KIND.*load_textual_inversion"),
        ("double_blocks.0.img_attn.qkv.weight", (4, 4), "E-FILE-FAMILY.*Flux"),
    ],
)
def test_something_else_is_refused_by_its_header(tmp_path: Path, name: str, shape: tuple[int, ...], code: str):
    with pytest.raises(VivantError, match=code):
        find_additions([write(tmp_path / "x.safetensors", name, shape)], [], [], PLACE)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("loras", "embeddings", "code"),
    [
        ([("a", math.nan)], [], "E-ADDITION-WEIGHT"),
        ([("a", True)], [], "E-ADDITION-WEIGHT"),
        ([("a", "0.5")], [], "E-ADDITION-WEIGHT"),
        ([("a", 1.0, 2.0)], [], "E-ADDITION-TYPE"),
        ([5], [], "E-ADDITION-TYPE"),
        ([], [("a", " ")], "E-ADDITION-TYPE"),
        (["absent.safetensors"], [], "E-FILE-MISSING"),
        (["absent"], [], "E-REPO-OFFLINE"),
    ],
)
def test_what_means_nothing_is_refused(
    loras: Any, embeddings: Any, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").rename(tmp_path / "a.safetensors")
    swapped = [tuple("a.safetensors" if x == "a" else x for x in p) if isinstance(p, tuple) else p for p in loras]
    words = [tuple("a.safetensors" if x == "a" else x for x in p) for p in embeddings]
    with pytest.raises(VivantError, match=code):
        find_additions(swapped, words, [], Source("unread", local_files_only=True))
