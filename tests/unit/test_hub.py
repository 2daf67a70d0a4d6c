"""Finding repositories, choosing files, reading, comparing and writing weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import tiny_repo
from tiny import noise
from vivant.config import dump_json, load_json
from vivant.errors import LoadError, OutputError, VivantWarning
from vivant.hub import load
from vivant.hub.load import check_keys, read_file, read_weights, shard_bytes, write_weights
from vivant.hub.repo import Source, WeightName, locate, locate_file, pick_weights, read_weight_name, variants, wanted
from vivant.hub.report import compare

STEM = "diffusion_pytorch_model"


def state() -> dict[str, Tensor]:
    return {"b.weight": noise(3, 5), "a.bias": noise(7, seed=1), "c": noise(2, 4, 6, seed=2)}


def assert_same(found: dict[str, Tensor], due: dict[str, Tensor]) -> None:
    assert found.keys() == due.keys()
    assert all(torch.equal(found[key], due[key]) for key in due)


def files(folder: Path) -> set[str]:
    return {child.name for child in folder.iterdir()}


# Names of weight files


@pytest.mark.parametrize(
    ("name", "due"),
    [
        (f"{STEM}.safetensors", (STEM, None, "safetensors", "whole")),
        (f"{STEM}.fp16.safetensors", (STEM, "fp16", "safetensors", "whole")),
        (f"{STEM}.non_ema.bin", (STEM, "non_ema", "bin", "whole")),
        ("pytorch_model.bin", ("pytorch_model", None, "bin", "whole")),
        ("model-00001-of-00002.safetensors", ("model", None, "safetensors", "shard")),
        (f"{STEM}.fp16-00001-of-00002.safetensors", (STEM, "fp16", "safetensors", "shard")),
        (f"{STEM}-00001-of-00002.fp16.bin", (STEM, "fp16", "bin", "shard")),
        (f"{STEM}.safetensors.index.json", (STEM, None, "safetensors", "index")),
        (f"{STEM}.fp16.safetensors.index.json", (STEM, "fp16", "safetensors", "index")),
        (f"{STEM}.safetensors.index.fp16.json", (STEM, "fp16", "safetensors", "index")),
        ("pytorch_model.bin.index.json", ("pytorch_model", None, "bin", "index")),
    ],
)
def test_weight_names(name, due):
    assert read_weight_name(name) == WeightName(*due)


@pytest.mark.parametrize(
    "name", ["config.json", "model.onnx", "flax_model.msgpack", f"{STEM}.safetensors.tmp", "merges.txt", "my_model.bin"]
)
def test_other_files_are_no_weights(name):
    assert read_weight_name(name) is None


def test_whole_files_come_before_shards_and_safetensors_before_pickles():
    names = [f"{STEM}.bin", f"{STEM}.safetensors.index.json", f"{STEM}.safetensors", f"{STEM}.fp16.bin"]
    assert pick_weights(names, None) == f"{STEM}.safetensors"
    assert pick_weights(names[:2], None) == f"{STEM}.safetensors.index.json"
    assert pick_weights(names, "fp16") == f"{STEM}.fp16.bin"
    assert pick_weights(names, "bf16") is None
    assert pick_weights(names, None, "model") is None
    assert pick_weights(["pytorch_model.bin"], None, "model") == "pytorch_model.bin"
    assert variants(names) == [None, "fp16"]


REPOSITORY = [
    "README.md",
    "model_index.json",
    "v1-5-pruned.safetensors",
    "unet/config.json",
    *(f"unet/{STEM}{v}.{f}" for v in ("", ".fp16", ".non_ema") for f in ("safetensors", "bin")),
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "big/diffusion_pytorch_model.safetensors.index.fp16.json",
    "big/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    "big/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
    "big/diffusion_pytorch_model-00001-of-00002.safetensors",
    "safety_checker/model.safetensors",
]
PATTERNS = [
    "model_index.json",
    *(f"{c}/{p}" for c in ("unet", "text_encoder", "big") for p in ("config.json", "*.json", "*.safetensors", "*.bin")),
]


def test_only_one_format_in_one_variant_is_fetched():
    assert wanted(REPOSITORY, PATTERNS, "fp16") == [
        "big/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "big/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
        "big/diffusion_pytorch_model.safetensors.index.fp16.json",
        "model_index.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",  # has no fp16: plain
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ]
    plain = wanted(REPOSITORY, PATTERNS, None)
    assert "unet/diffusion_pytorch_model.safetensors" in plain
    assert not [name for name in plain if "fp16" in name or "non_ema" in name or name.endswith(".bin")]


# Finding


def test_a_local_folder_comes_before_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "org" / "name" / "unet").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate(Source("org/name"), ["*"]) == Path("org/name")
    assert locate(Source("org/name", "unet"), ["*"]) == Path("org/name/unet")
    assert locate(Source(tmp_path / "org"), ["*"]) == tmp_path / "org"


def test_a_missing_subfolder_lists_what_there_is(tmp_path):
    (tmp_path / "vae").mkdir()
    with pytest.raises(LoadError, match=r"E-REPO-SUBFOLDER.*unet.*vae"):
        locate(Source(tmp_path, "unet"), ["*"])


@pytest.mark.parametrize("subfolder", ["..", "../..", "unet/../../x", "/etc", "..\\x", "C:\\x", "C:x", "a\0b"])
def test_hostile_subfolders(tmp_path, subfolder):
    (tmp_path / "inside").mkdir()
    with pytest.raises(LoadError, match="E-REPO-PATH"):
        locate(Source(tmp_path / "inside", subfolder), ["*"])


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("", "E-REPO-PATH"),
        ("a\0b", "E-REPO-PATH"),
        ("nowhere/at/all", "E-REPO-MISSING"),
        ("../nowhere", "E-REPO-MISSING"),
        ("org/..", "E-REPO-MISSING"),
        ("org/na--me", "E-REPO-MISSING"),
        ("a" * 97, "E-REPO-MISSING"),
        ("a" * 5000, "E-REPO-MISSING"),
        (Path("org/name"), "E-REPO-MISSING"),
        ("https://huggingface.co/org/name/tree/main", "E-REPO-PATH"),
        ("org/name", "E-REPO-OFFLINE"),
    ],
)
def test_sources_that_are_nothing(source, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoadError) as error:
        locate(Source(source, cache_dir=tmp_path / "cache"), ["*"])
    assert error.value.code == code


@pytest.mark.parametrize("revision", ["../../x", "/dev/zero", "/abs/ref", "C:\\x", "", "-x", "a b"])
def test_a_revision_names_no_file(tmp_path, revision):
    """The hub's client opens refs/<revision> of its cache; an absolute name would be any file of the machine."""
    with pytest.raises(LoadError, match="E-REPO-PATH"):
        locate(Source("org/name", revision=revision, cache_dir=tmp_path), ["*"])


def test_a_file_is_not_a_repository(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(LoadError, match=r"E-REPO-FILE.*Give the folder; from_single_file reads"):
        locate(Source(path), ["*"])


@pytest.fixture
def cache(tmp_path) -> Path:
    """A hub cache that holds org/name with unet/config.json."""
    (tmp_path / "repository" / "unet").mkdir(parents=True)
    (tmp_path / "repository" / "unet" / "config.json").write_text("{}")
    tiny_repo.into_cache(tmp_path / "cache", "org/name", tmp_path / "repository")
    return tmp_path / "cache"


@pytest.mark.parametrize("revision", [None, "main", tiny_repo.COMMIT])
def test_the_hub_cache(cache, revision):
    folder = locate(Source("org/name", "unet", revision=revision, cache_dir=cache), ["config.json"])
    assert (folder / "config.json").read_text() == "{}"


def test_what_the_cache_lacks(cache):
    with pytest.raises(LoadError, match="E-REPO-OFFLINE"):
        locate(Source("org/name", revision="v2", cache_dir=cache), ["*"])
    with pytest.raises(LoadError, match="E-REPO-SUBFOLDER"):
        locate(Source("org/name", "vae", cache_dir=cache), ["config.json"])


def test_the_environment_chooses_the_cache(cache):
    code = "from vivant.hub.repo import *; print(locate(Source('org/name', 'unet'), ['config.json']))"
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert Path(run.stdout.strip()) == cache / "models--org--name" / "snapshots" / tiny_repo.COMMIT / "unet"


class Hub:
    """Stands in for the hub: lists `names`, or raises, and records what is downloaded."""

    def __init__(self, folder: Path, names: list[str] | Exception):
        self.folder, self.names, self.asked = folder, names, {}

    def __call__(self, token=None):
        self.token = token
        return self

    def list_repo_files(self, name, revision=None):
        if isinstance(self.names, Exception):
            raise self.names
        return self.names

    def download(self, name, **asked):
        self.asked = {"name": name, **asked}
        return str(self.folder)


def online(monkeypatch, hub: Hub) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    if not isinstance(hub.names, Exception):
        monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)


def test_only_the_chosen_files_are_downloaded(tmp_path, monkeypatch):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").touch()
    hub = Hub(tmp_path, REPOSITORY)
    online(monkeypatch, hub)
    source = Source("org/name", "unet", "fp16", "v2", tmp_path / "cache", token="secret")
    assert locate(source, [*load.WEIGHTS, "config.json"]) == tmp_path / "unet"
    assert hub.asked == {
        "name": "org/name",
        "allow_patterns": ["unet/config.json", f"unet/{STEM}.fp16.safetensors"],
        "revision": "v2",
        "cache_dir": tmp_path / "cache",
        "token": "secret",
    }
    assert hub.token == "secret"


def test_a_variant_that_the_hub_lacks_is_refused_before_downloading(tmp_path, monkeypatch):
    hub = Hub(tmp_path, REPOSITORY)
    online(monkeypatch, hub)
    with pytest.raises(LoadError, match=r'E-WEIGHTS-VARIANT.*"bf16".*no variant, variant="fp16", variant="non_ema"'):
        locate(Source("org/name", "unet", "bf16"), load.WEIGHTS)
    assert hub.asked == {}


def _hub_error(name: str) -> Exception:
    kind = getattr(huggingface_hub.errors, name)
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (_hub_error("GatedRepoError"), "E-REPO-GATED"),
        (_hub_error("RepositoryNotFoundError"), "E-REPO-NOTFOUND"),
        (_hub_error("RevisionNotFoundError"), "E-REPO-REVISION"),
        (ConnectionError("no route"), "E-REPO-UNREACHABLE"),
        (TimeoutError("slow"), "E-REPO-UNREACHABLE"),
        (OfflineModeIsEnabled("off"), "E-REPO-OFFLINE"),
    ],
)
def test_each_failure_has_its_sentence(tmp_path, monkeypatch, error, code):
    online(monkeypatch, Hub(tmp_path, error))
    with pytest.raises(LoadError) as raised:
        locate(Source("org/name", cache_dir=tmp_path / "cache"), ["*"])
    assert raised.value.code == code


def test_the_cache_helps_out_and_says_so(cache, monkeypatch):
    online(monkeypatch, Hub(cache, ConnectionError("no route")))
    with pytest.warns(VivantWarning, match=r"W-REPO-CACHED.*no route"):
        folder = locate(Source("org/name", "unet", cache_dir=cache), ["config.json"])
    assert (folder / "config.json").is_file()


def test_no_network_is_asked_with_local_files_only(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", None)  # calling it would fail
    locate(Source("org/name", "unet", cache_dir=cache, local_files_only=True), ["config.json"])


# Reading


def test_tensors_are_mapped_not_copied(tmp_path):
    values = {"a": noise(64, 64), "b": noise(64, 64, seed=1)}
    path = tmp_path / f"{STEM}.safetensors"
    save_file(values, path)
    found = read_weights(tmp_path)
    assert_same(found, values)
    # Neighbours in the file are neighbours in memory: one mapping, no copy for each tensor.
    assert found["b"].data_ptr() - found["a"].data_ptr() == values["a"].nbytes
    found["a"].zero_()  # changes this process's view only
    assert_same(read_weights(tmp_path), values)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("legacy_index", [False, True])
def test_shards(tmp_path, variant, legacy_index):
    write_weights(tmp_path, state(), variant, max_shard_size=100)
    dotted = f".{variant}" if variant else ""
    index = tmp_path / f"{STEM}.safetensors.index{dotted}.json"
    assert json.loads(index.read_text())["metadata"]["total_size"] == 4 * (15 + 7 + 48)
    assert len(files(tmp_path)) == 3
    if legacy_index:
        index.rename(tmp_path / f"{STEM}{dotted}.safetensors.index.json")
    assert_same(read_weights(tmp_path, variant), state())


def test_a_missing_shard_is_named(tmp_path):
    write_weights(tmp_path, state(), None, max_shard_size=100)
    (tmp_path / f"{STEM}-00002-of-00002.safetensors").unlink()
    with pytest.raises(LoadError, match=r"E-WEIGHTS-SHARD.*1 of 2.*00002-of-00002"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..\\secret", "", ".."])
def test_an_index_may_not_leave_its_folder(tmp_path, name):
    save_file(state(), tmp_path / "secret.safetensors")
    folder = tmp_path / "unet"
    folder.mkdir()
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(LoadError, match=r"E-WEIGHTS-SHARD.*outside"):
        read_weights(folder)


@pytest.mark.parametrize("table", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_an_index_without_a_table(tmp_path, table):
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(json.dumps(table))
    with pytest.raises(LoadError, match="E-WEIGHTS-SHARD"):
        read_weights(tmp_path)


def test_an_absent_variant_lists_those_present(tmp_path):
    write_weights(tmp_path, state(), "fp16")
    with pytest.raises(LoadError, match=r'E-WEIGHTS-VARIANT.*variant="fp16"'):
        read_weights(tmp_path)
    with pytest.raises(LoadError, match=r'E-WEIGHTS-VARIANT.*"bf16".*variant="fp16"'):
        read_weights(tmp_path, "bf16")
    with pytest.raises(LoadError, match="E-WEIGHTS-MISSING"):
        read_weights(tmp_path, None, "model")  # another kind of component


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_of_tensors(tmp_path, zipped):
    torch.save(state(), tmp_path / f"{STEM}.bin", _use_new_zipfile_serialization=zipped)
    assert_same(read_weights(tmp_path), state())


class Canary:
    """Writes a file when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "ran")


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_pickle_runs(tmp_path, zipped):
    canary = tmp_path / "canary"
    torch.save({"a": noise(2), "b": Canary(canary)}, tmp_path / f"{STEM}.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(LoadError, match="E-WEIGHTS-PICKLE"):
        read_weights(tmp_path)
    assert not canary.exists()
    torch.load(tmp_path / f"{STEM}.bin", weights_only=False)  # the canary does sing
    assert canary.exists()


def test_a_pickle_must_be_a_flat_table(tmp_path):
    torch.save({"state_dict": state()}, tmp_path / f"{STEM}.bin")
    with pytest.raises(LoadError, match="E-WEIGHTS-PICKLE"):
        read_weights(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("damage", ["empty", "text", "half", "pointer"])
def test_damaged_files(tmp_path, suffix, damage):
    path = tmp_path / f"{STEM}.{suffix}"
    save_file(state(), path) if suffix == "safetensors" else torch.save(state(), path)
    half = path.read_bytes()[: path.stat().st_size // 2]
    content = {"empty": b"", "text": b"not weights", "half": half, "pointer": b"version https://git-lfs.github.com/x"}
    path.write_bytes(content[damage])
    with pytest.raises(LoadError, match=r"E-WEIGHTS-(BROKEN|PICKLE)") as error:
        read_file(path)
    if damage == "pointer" and suffix == "safetensors":
        assert "git-lfs" in str(error.value)


# Comparing


def test_matching_tensors_pass():
    check_keys(state(), state(), "Net", "here")


def test_differences_are_counted_and_named():
    found = {"conv_in.wieght": noise(2), "norm.weight": noise(3), "extra": noise(1)}
    due = {"conv_in.weight": noise(2), "norm.weight": noise(4), "bias": noise(1), "far": noise(1), "away": noise(1)}
    report = compare(found, due)
    assert (report.matched, len(report.missing), len(report.unexpected)) == ((), 4, 2)
    assert report.misshapen == (("norm.weight", (3,), (4,)),)
    with pytest.raises(LoadError) as error:
        check_keys(found, due, "Net", "somewhere")
    text = str(error.value)
    assert error.value.code == "E-KEYS-MISMATCH"
    assert "tensors of somewhere do not fit Net" in text
    assert "4 missing: conv_in.weight, bias, far and 1 more." in text
    assert "2 unexpected: conv_in.wieght (nearest missing: conv_in.weight), extra." in text
    assert "1 of the wrong shape: norm.weight is [3], should be [4]." in text


# Writing


def test_written_files_are_plain_safetensors(tmp_path):
    write_weights(tmp_path, state(), "fp16")
    assert files(tmp_path) == {f"{STEM}.fp16.safetensors"}
    with safe_open(tmp_path / f"{STEM}.fp16.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_shared_and_strided_memory(tmp_path):
    x = noise(4, 6)
    values = {"last": x[3], "whole": x, "again": x, "transposed": x.t(), "row": x[1], "stretched": x[:1].expand(3, 6)}
    write_weights(tmp_path, values)
    assert_same(read_weights(tmp_path), {k: v.contiguous() for k, v in values.items()})


def test_older_files_of_the_same_component_are_replaced(tmp_path):
    old = {"old": noise(9)}
    write_weights(tmp_path, {**old, "older": noise(9)}, max_shard_size=40)
    torch.save(old, tmp_path / f"{STEM}.bin")
    write_weights(tmp_path, old, "fp16")
    write_weights(tmp_path, old, None, stem="model")
    write_weights(tmp_path, state())
    assert files(tmp_path) == {f"{STEM}.safetensors", f"{STEM}.fp16.safetensors", "model.safetensors"}
    assert_same(read_weights(tmp_path), state())


def test_a_failed_write_leaves_the_old_files(tmp_path, monkeypatch):
    write_weights(tmp_path, state())
    calls = []

    def fail_at_the_second(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 2:
            raise OSError("no space left")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(load, "save_file", fail_at_the_second)
    with pytest.raises(OutputError, match=r"E-WEIGHTS-WRITE.*no space left"):
        write_weights(tmp_path, {k: v + 1 for k, v in state().items()}, max_shard_size=100)
    assert len(calls) == 2
    assert files(tmp_path) == {f"{STEM}.safetensors"}
    assert_same(read_weights(tmp_path), state())


def test_a_failed_write_of_json_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    dump_json({"a": 1}, path)
    write_text = Path.write_text

    def fail_halfway(self: Path, text: str, **given: str) -> None:
        write_text(self, text[:3], **given)
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", fail_halfway)
    with pytest.raises(OSError, match="no space left"):
        dump_json({"a": 2}, path)
    assert load_json(path) == {"a": 1}
    assert files(tmp_path) == {"config.json"}


def test_saving_over_the_file_that_is_read(tmp_path):
    write_weights(tmp_path, state())
    found = read_weights(tmp_path)
    write_weights(tmp_path, {k: v * 2 for k, v in found.items()})
    assert_same(found, state())
    assert_same(read_weights(tmp_path), {k: v * 2 for k, v in state().items()})


def test_tensors_without_values_are_not_written(tmp_path):
    with pytest.raises(OutputError, match=r"E-WEIGHTS-META.*1 tensors.*lost"):
        write_weights(tmp_path, {**state(), "lost": torch.empty(3, device="meta")})
    assert files(tmp_path) == set()


@pytest.mark.parametrize(("size", "due"), [(7, 7), ("10GB", 10**10), ("1.5 MiB", 3 * 2**19), ("200kb", 200_000)])
def test_shard_sizes(size, due):
    assert shard_bytes(size) == due


@pytest.mark.parametrize("size", ["", "GB", "-1GB", 0, "3 elephants"])
def test_sizes_that_are_none(size):
    with pytest.raises(OutputError, match="E-SHARD-SIZE"):
        shard_bytes(size)


# The oracle reads what we write, and the other way round


@pytest.mark.parametrize("shard", ["10GB", "20KB"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_round_trip_with_the_oracle(tmp_path, shard, variant):
    diffusers = pytest.importorskip("diffusers")
    import tiny

    vae = tiny.fill(diffusers.AutoencoderKL(**tiny_repo.public(tiny.VAE)))
    vae.save_pretrained(tmp_path / "theirs", variant=variant, max_shard_size=shard)
    read = read_weights(tmp_path / "theirs", variant)
    assert_same(read, vae.state_dict())
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "config.json").write_bytes((tmp_path / "theirs" / "config.json").read_bytes())
    write_weights(tmp_path / "ours", read, variant, shard)
    assert (len(files(tmp_path / "ours")) > 2) == (shard == "20KB")
    back = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours", variant=variant)
    assert_same(back.state_dict(), vae.state_dict())


def test_one_file_is_found_by_its_path_by_its_name_or_by_being_the_usual_one(tmp_path: Path):
    usual = ("lora.safetensors", "lora.bin")
    inner = tmp_path / "deep" / "er"
    inner.mkdir(parents=True)
    for path in (inner / "a.safetensors", inner / "b.txt"):
        path.write_bytes(b"x")
    assert locate_file(Source(inner / "b.txt"), None, usual) == inner / "b.txt"
    assert locate_file(Source(tmp_path), "deep/er/b.txt", usual) == inner / "b.txt"
    assert locate_file(Source(tmp_path, "deep"), "er/b.txt", usual) == inner / "b.txt"
    assert locate_file(Source(inner), None, usual) == inner / "a.safetensors"  # the only one of the kind
    (inner / "c.bin").write_bytes(b"x")
    with pytest.raises(LoadError, match=r"E-FILE-NAME.*weight_name"):
        locate_file(Source(inner), None, usual)
    (inner / "lora.bin").write_bytes(b"x")
    assert locate_file(Source(inner), None, usual) == inner / "lora.bin"
    (inner / "lora.safetensors").write_bytes(b"x")
    assert locate_file(Source(inner), None, usual) == inner / "lora.safetensors"


@pytest.mark.parametrize(
    ("name", "code"), [("../x.bin", "E-REPO-PATH"), ("/etc/passwd", "E-REPO-PATH"), ("absent.bin", "E-FILE-MISSING")]
)
def test_one_file_is_looked_for_inside_the_repository_only(tmp_path: Path, name: str, code: str):
    (tmp_path / "x.bin").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "y.bin").write_bytes(b"x")
    with pytest.raises(LoadError, match=code):
        locate_file(Source(tmp_path / "folder"), name, ("a.bin",))
    with pytest.raises(LoadError, match="E-FILE-NAME"):
        locate_file(Source(tmp_path / "x.bin"), "y.bin", ("a.bin",))
