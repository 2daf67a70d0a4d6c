"""Models are found in folders and described by their headers, whatever else lies there and whoever wrote it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sources import ROOT
from vivant.hub.catalogue import Entry, cached_hash, entries, git_hash, shipped, use_of, walk
from vivant.hub.family import Kind, identify
from vivant.hub.header import Header, Stored
from vivant.hub.remarks import MOST, MOST_WORDS, Remarks, line, of_card, of_header


def published(name: str) -> dict[str, Any]:
    """The tensors of a published file, from its manifest."""
    table = json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text(encoding="utf-8"))
    return table.get("tensors", table)


def hollow(path: Path, shapes: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file of this size whose numbers take no room on the disk."""
    table: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        table[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    head = json.dumps(table).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    os.truncate(path, 8 + len(head) + end)
    return path


def one(path: Path) -> Entry:
    (entry,) = entries([path])
    return entry


def lora(width: int = 768) -> dict[str, Any]:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    return {f"{name}.lora_down.weight": (4, width), f"{name}.lora_up.weight": (320, 4), f"{name}.alpha": ()}


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("sd15_single_file", "a base for PIA"),
        ("sd15_unet2d", "the network of a base for PIA"),
        ("sd15_vae", "the autoencoder of a base for PIA"),
        ("pia_ckpt_original", "drives PIA"),
        ("pia_motion_adapter", "drives PIA"),
        ("consisid_transformer", "makes portraits (ConsisID)"),
        ("cogvideox_vae", "a part of ConsisID"),
    ],
)
def test_published_files_of_full_size_are_described_by_their_headers(tmp_path, name, use):
    shapes = published(name)
    entry = one(hollow(tmp_path / "a.safetensors", shapes))
    assert entry.error is None
    assert (entry.use, entry.tensors, entry.dtypes) == (use, len(shapes), {"F16": len(shapes)})
    assert entry.size == (tmp_path / "a.safetensors").stat().st_size > 10**8


def test_a_motion_module_without_a_picture_to_look_at_is_of_no_use_to_pia():
    shapes = {name: shape for name, shape in published("pia_motion_adapter").items() if "conv_in" not in name}
    header = Header({name: Stored("F16", tuple(shape)) for name, shape in shapes.items()}, {})
    assert use_of(identify(header), header) == "text-to-video only: PIA refuses it"


@pytest.mark.parametrize(
    ("kind", "use"),
    [
        (Kind("LoRA", "Stable Diffusion 1.5", "kohya"), "changes a base for PIA"),
        (Kind("LoRA", "Stable Diffusion 1.5", "AnimateDiff"), "changes the motion of PIA"),
        (Kind("LoRA", "CogVideoX", "peft"), "changes ConsisID"),
        (Kind("LoRA", "unknown", "kohya"), ""),
        (Kind("textual inversion", "Stable Diffusion 1.5"), "a word for prompts of PIA"),
        (Kind("ControlNet", "Stable Diffusion 1.5"), "not used"),
        (
            Kind("model", "Stable Diffusion XL"),
            "refused: it is of Stable Diffusion XL, and PIA takes Stable Diffusion 1.5",
        ),
        (Kind("LoRA", "Flux"), "refused: it is of Flux, and PIA takes Stable Diffusion 1.5"),
        (Kind("unknown file", "unknown"), ""),
    ],
    ids=str,
)
def test_uses(kind, use):
    assert use_of(kind, Header({}, {})) == use


# ------------------------------------------------------------------------------------------------------- folders


def tree(folder: Path) -> Path:
    """Models among other things: single files, a repository, a component, a hub cache, links that lead in circles."""
    (folder / "loras" / "deep").mkdir(parents=True)
    hollow(folder / "loras" / "b.safetensors", lora())
    hollow(folder / "loras" / "deep" / "A.SAFETENSORS", lora())
    torch.save({"a": torch.ones(3)}, folder / "loras" / "deep" / "c.pt")
    (folder / "loras" / "notes.txt").write_text("no model")
    (folder / "repo" / "unet").mkdir(parents=True)
    (folder / "repo" / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]})
    )
    (folder / "repo" / "unet" / "config.json").write_text("{}")
    hollow(folder / "repo" / "unet" / "diffusion_pytorch_model.fp16.safetensors", published("sd15_unet2d"))
    (folder / "repo" / "README.md").write_text("---\nlicense: creativeml-openrail-m\nbase_model:\n- a/b\n---\n# hello")
    (folder / "motion").mkdir()
    (folder / "motion" / "config.json").write_text('{"_class_name": "MotionAdapter", "conv_in_channels": 9}')
    hollow(folder / "motion" / "diffusion_pytorch_model.safetensors", published("pia_motion_adapter"))
    (folder / "loras" / "deep" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "self").symlink_to(folder / "self")
    return folder


def test_a_folder_is_searched_and_repositories_are_one_entry(tmp_path):
    folder = tree(tmp_path)
    found = {entry.path.relative_to(folder).as_posix(): entry for entry in entries([folder])}
    assert list(found) == ["loras/b.safetensors", "loras/deep/A.SAFETENSORS", "loras/deep/c.pt", "motion", "repo"]
    assert all(entry.error is None for entry in found.values())
    repo = found["repo"]
    assert (repo.kind, repo.use) == (Kind("model", "Stable Diffusion 1.5", "diffusers"), "a base for PIA")
    assert repo.tensors == len(published("sd15_unet2d"))
    assert repo.size > 10**9
    assert repo.parts == {".": "StableDiffusionPipeline", "unet": "UNet2DConditionModel"}
    assert repo.remarks == Remarks(base_model="a/b", licence="creativeml-openrail-m")
    assert found["motion"].use == "drives PIA"
    assert found["loras/b.safetensors"].use == "changes a base for PIA"


def test_shards_are_one_network(tmp_path):
    shapes = list(published("pia_motion_adapter").items())
    (tmp_path / "config.json").write_text('{"_class_name": "MotionAdapter"}')
    table: dict[str, str] = {}
    for i, part in enumerate((shapes[:40], shapes[40:]), start=1):
        name = f"diffusion_pytorch_model-0000{i}-of-00002.safetensors"
        hollow(tmp_path / name, dict(part))
        table |= {key: name for key, _ in part}
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    entry = one(tmp_path)
    assert (entry.tensors, entry.use, entry.error) == (len(shapes), "drives PIA", None)
    (tmp_path / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    error = one(tmp_path).error
    assert error is not None
    assert error.code == "E-WEIGHTS-SHARD"


def test_what_ships_is_of_use():
    uses = {entry.path.name: entry.use for entry in entries([shipped()])}
    assert uses == {
        "motion": "drives PIA",
        "neon": "a base for PIA",
        "paper": "a base for PIA",
        "person": "makes portraits (ConsisID)",
        "recogniser.safetensors": "",
        "judge.safetensors": "",
    }


def test_the_cache_tells_hashes(tmp_path):
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name, digest in (("large.safetensors", "ab" * 32), ("small.safetensors", "cd" * 20)):
        hollow(blobs / digest, lora())
        (snapshot / name).symlink_to(blobs / digest)
    assert [e.sha256 for e in entries([tmp_path])] == ["ab" * 32, None]
    assert cached_hash(snapshot / "large.safetensors") == "ab" * 32
    assert git_hash(snapshot / "small.safetensors") == "cd" * 20
    other = tmp_path / "blobs" / ("ef" * 32)
    assert cached_hash(other) is None, "a file that nobody links to says nothing"
    assert list(walk(tmp_path)) == [snapshot / "large.safetensors", snapshot / "small.safetensors"]


# ------------------------------------------------------------------------------------------------- hostile things


class Canary:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_broken_files_are_listed_with_their_errors_and_the_rest_too(tmp_path):
    good = hollow(tmp_path / "good.safetensors", lora()).read_bytes()
    flipped = bytearray(good)
    flipped[20] ^= 0x80
    (tmp_path / "flipped.safetensors").write_bytes(flipped)
    (tmp_path / "header.safetensors").write_bytes((2**31).to_bytes(8, "little") + b"{" * 100)
    (tmp_path / "overlap.safetensors").write_bytes(
        overlapping := (lambda head: len(head).to_bytes(8, "little") + head + bytes(8))(
            json.dumps({name: {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]} for name in ("a", "b")}).encode()
        )
    )
    assert overlapping
    (tmp_path / "zero.safetensors").touch()
    (tmp_path / "zero.ckpt").touch()
    (tmp_path / "short.safetensors").write_bytes(good[:-5])
    torch.save({"a": Canary(tmp_path / "canary")}, tmp_path / "run.ckpt")
    (tmp_path / "dangling.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    os.mkfifo(tmp_path / "README.md")
    for name, text in (
        ("deep", "[" * 200_000),
        ("none", ""),
        ("list", "[]"),
        ("parts", '{"../x": ["a", "b"], "u": 3}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(text)
    os.truncate(tmp_path / "none" / "model_index.json", 2 * 10**9)
    (tmp_path / "piped").mkdir()
    os.mkfifo(tmp_path / "piped" / "config.json")
    os.mkfifo(tmp_path / "piped" / "diffusion_pytorch_model.safetensors")
    found = {e.path.name: None if e.error is None else e.error.code for e in entries([tmp_path])}
    assert found == {
        "dangling.safetensors": "E-FILE-MISSING",
        "flipped.safetensors": "E-WEIGHTS-BROKEN",
        "good.safetensors": None,
        "header.safetensors": "E-WEIGHTS-BROKEN",
        "loop.safetensors": "E-WEIGHTS-BROKEN",
        "overlap.safetensors": "E-WEIGHTS-BROKEN",
        "pipe.safetensors": "E-WEIGHTS-BROKEN",
        "run.ckpt": "E-WEIGHTS-PICKLE",
        "short.safetensors": "E-WEIGHTS-BROKEN",
        "zero.ckpt": "E-WEIGHTS-BROKEN",
        "zero.safetensors": "E-WEIGHTS-BROKEN",
        "deep": "E-JSON-BROKEN",
        "list": "E-JSON-BROKEN",
        "none": "E-JSON-BROKEN",
        "parts": None,
        "piped": "E-WEIGHTS-BROKEN",
    }
    assert "which no configuration has" in str(one(tmp_path / "none").error), "2 GB were read"
    assert not (tmp_path / "canary").exists()


def test_what_may_not_be_read_is_listed(tmp_path, monkeypatch):
    hollow(tmp_path / "a.safetensors", lora())
    (tmp_path / "closed").mkdir()
    real = os.listdir

    def listdir(path: Any) -> list[str]:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    found = {e.path.name: None if e.error is None else e.error.code for e in entries([tmp_path])}
    assert found == {"a.safetensors": None, "closed": "E-WEIGHTS-BROKEN"}


# -------------------------------------------------------------------------------------------------------- remarks


def test_remarks_of_kohya_and_modelspec():
    tags = {"10_cat": {"cat": 30, "sitting": 12, "bad": -1, "worse": "x"}, "1_dog": {"sitting": 20, "dog": 31}}
    assert of_header(
        {
            "ss_output_name": "cat_v2",
            "modelspec.title": "Cats",
            "modelspec.author": "somebody",
            "modelspec.architecture": "stable-diffusion-v1/lora",
            "ss_base_model_version": "sd_v1",
            "modelspec.license": "CC-BY-4.0",
            "modelspec.trigger_phrase": "a cat,\n sitting",
            "ss_tag_frequency": json.dumps(tags),
        }
    ) == Remarks("Cats", "somebody", "sd_v1", "CC-BY-4.0", "a cat, sitting", ("sitting", "dog", "cat"))
    assert of_header({}) == Remarks()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "3",
        "[" * 100_000,
        '{"a": 3}',
        '{"a": {"b": {}}}',
        '{"a": {"": 5, "c": NaN, "d": true}}',
        "{}" * 3_000_000,
    ],
    ids=lambda text: text[:20],
)
def test_tables_of_words_that_are_none(text):
    assert of_header({"ss_tag_frequency": text}).trained_words == ()


def test_remarks_are_short_and_on_one_line():
    table = json.dumps({"a": {"w" * 10_000 + str(i): i + 1 for i in range(40)}})
    remarks = of_header({"modelspec.title": "a\n\r\u2028\tb" + "x" * 10**7, "ss_tag_frequency": table})
    assert remarks.title.startswith("a bx")
    assert len(remarks.title) == MOST
    assert len(remarks.trained_words) <= MOST_WORDS
    assert all(len(word) <= MOST for word in remarks.trained_words)
    assert line(" one \n two ") == "one two"


@pytest.mark.parametrize(
    ("card", "remarks"),
    [
        ("---\nlicense: mit\n---\n", Remarks(licence="mit")),
        (
            "---\nlicense: other\nlicense_name: 'cogvideox'\nlicense_link: LICENSE\n---",
            Remarks(licence="cogvideox (LICENSE)"),
        ),
        (
            "---\nbase_model: [a/b, 'c/d']\ninstance_prompt: a photo of sks\n---\n",
            Remarks("", "", "a/b, c/d", "", "a photo of sks"),
        ),
        ("---\ntags:\n- license\n  - x\nlicense: |\n---\n", Remarks()),
        ("# license: mit\n", Remarks()),
        ("---\nlicense: mit\n", Remarks()),
        ("---\nlicense: &a [*a, *a]\n---\n", Remarks(licence="&a [*a, *a]")),
        ("\x00\xff" * 50_000, Remarks()),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_cards(tmp_path, card, remarks):
    (tmp_path / "README.md").write_text(card)
    assert of_card(tmp_path) == remarks


def test_no_card(tmp_path):
    assert of_card(tmp_path) == Remarks()
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", {"name": "x"})
    assert one(tmp_path / "a.safetensors").remarks.title == "x"
