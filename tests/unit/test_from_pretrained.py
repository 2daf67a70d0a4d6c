"""Single components by folder or hub id: the base class of networks, schedulers, and every keyword of their loaders."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import Tensor, nn

import tiny_repo
from tiny import SCHEDULER, noise
from tiny_pia import adapter
from vivant.errors import InputError, LoadError
from vivant.hub.load import read_weights, write_weights
from vivant.hub.model import Model
from vivant.hub.repo import wanted
from vivant.pia.motion import MotionAdapter
from vivant.schedulers import DDIMScheduler

STEM = "diffusion_pytorch_model"
OTHER_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


class Linear(Model):
    @dataclass(frozen=True)
    class Config:
        width: int = 3

    def __init__(self, **fields):
        super().__init__(**fields)
        self.layer = nn.Linear(self.settings.width, 2)


def to_pickle(folder: Path, stem: str = STEM, variant: str | None = None, shards: int = 1) -> dict[str, Tensor]:
    """Replace the weights of a folder by pickles, one tensor each if in several; returns the tensors."""
    state = read_weights(folder, variant, "model" if stem == "pytorch_model" else stem)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    dotted = f".{variant}" if variant else ""
    if shards == 1:
        torch.save(state, folder / f"{stem}{dotted}.bin")
        return state
    parts = [f"{stem}{dotted}-{i:05d}-of-{shards:05d}.bin" for i in range(1, shards + 1)]
    table = {name: parts[i % shards] for i, name in enumerate(state)}
    for part in parts:
        torch.save({name: state[name] for name in state if table[name] == part}, folder / part)
    (folder / f"{stem}.bin.index{dotted}.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return state


def assert_same(found: dict[str, Tensor], due: dict[str, Tensor]) -> None:
    assert found.keys() == due.keys()
    assert all(torch.equal(found[key], due[key]) for key in due)


# The base class of all networks, on one linear layer


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_models_are_read_in_the_data_type_asked_for(tmp_path, dtype):
    model = Linear(width=5).half()
    model.save_pretrained(tmp_path, variant="fp16")
    found = Linear.from_pretrained(tmp_path, variant="fp16", dtype=dtype)
    assert found.dtype == (dtype or torch.float32)
    assert torch.equal(found.layer.weight, model.layer.weight.to(found.dtype))
    assert found.config.width == 5
    assert not found.training


@pytest.mark.unchecked
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["float16", torch.int8, torch.bool, torch.complex64, 16])
def test_what_is_no_data_type_of_weights(tmp_path, name, value):
    with pytest.raises(InputError, match="E-DTYPE"):
        Model.from_pretrained(tmp_path, **{name: value})


def test_a_configuration_that_does_not_fit_its_weights(tmp_path):
    Linear(width=5).save_pretrained(tmp_path)
    with pytest.raises(LoadError, match=r"E-KEYS-MISMATCH.*layer.weight is \[2, 5\], should be \[2, 4\]"):
        Linear.from_pretrained(tmp_path, width=4)


# Keywords of diffusers' loaders

LOADING = {"low_cpu_mem_usage": True, "device_map": None, "force_download": False}


def test_keywords_about_loading_are_no_fields(tmp_path):
    """The first argument has the name that it has there."""
    Linear(width=5).save_pretrained(tmp_path)
    found = Linear.from_pretrained(pretrained_model_name_or_path=tmp_path, use_safetensors=True, **LOADING)
    assert found.config.width == 5
    assert not LOADING.keys() & found.config.keys()
    DDIMScheduler(**{k: v for k, v in SCHEDULER.items() if k[0] != "_"}).save_pretrained(tmp_path)
    scheduler = DDIMScheduler.from_pretrained(pretrained_model_name_or_path=tmp_path, **LOADING)
    assert not LOADING.keys() & scheduler.config.keys()


@pytest.mark.parametrize("cls", [Linear, DDIMScheduler], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(
    "given",
    [{"low_cpu_mem_usage": False}, {"device_map": "auto"}, {"force_download": True}, {"use_safetensors": False}],
    ids=str,
)
def test_keywords_about_loading_that_would_be_ignored_are_refused(tmp_path, cls, given):
    Linear().save_pretrained(tmp_path)
    DDIMScheduler().save_pretrained(tmp_path)
    (name,) = given
    with pytest.raises(InputError, match=rf"E-ARG-VALUE.*{name}={given[name]!r}"):
        cls.from_pretrained(tmp_path, **given)


def test_pickles_are_refused_where_safetensors_are_asked_for(tmp_path):
    Linear().save_pretrained(tmp_path)
    state = to_pickle(tmp_path)
    with pytest.raises(LoadError, match="E-REPO-PICKLE"):
        Linear.from_pretrained(tmp_path, use_safetensors=True)
    assert_same(Linear.from_pretrained(tmp_path).state_dict(), state)


# The hub

Loader = Callable[..., Any]
LOADERS: list[tuple[str, Loader]] = [("unet", Linear.from_pretrained), ("scheduler", DDIMScheduler.from_pretrained)]
EACH = pytest.mark.parametrize(("subfolder", "load"), LOADERS, ids=["network", "scheduler"])


def write_repository(folder: Path, size: int) -> Path:
    """A network of this width, and a scheduler of that many hundred timesteps."""
    Linear(width=size).save_pretrained(folder / "unet")
    DDIMScheduler(num_train_timesteps=100 * size).save_pretrained(folder / "scheduler")
    return folder


def size_of(component: Any) -> int:
    return component.config.get("width") or component.config.num_train_timesteps // 100


@pytest.fixture
def cache(tmp_path) -> Path:
    """A hub cache with two revisions of org/name: main has size 5, v2 has size 7."""
    snapshot = tiny_repo.into_cache(tmp_path / "cache", "org/name", write_repository(tmp_path / "main", 5))
    write_repository(snapshot.with_name(OTHER_COMMIT), 7)
    (snapshot.parents[1] / "refs" / "v2").write_text(OTHER_COMMIT)
    return tmp_path / "cache"


@EACH
@pytest.mark.parametrize(("revision", "size"), [(None, 5), ("main", 5), ("v2", 7), (OTHER_COMMIT, 7)])
def test_a_revision_of_the_cache(cache, subfolder, load, revision, size):
    assert size_of(load("org/name", subfolder=subfolder, revision=revision, cache_dir=cache)) == size


@EACH
def test_the_cache_is_the_one_that_is_named(cache, tmp_path, subfolder, load):
    with pytest.raises(LoadError, match="E-REPO-OFFLINE"):
        load("org/name", subfolder=subfolder, cache_dir=tmp_path / "elsewhere")


@EACH
def test_no_network_is_asked_with_local_files_only(cache, monkeypatch, subfolder, load):
    monkeypatch.setattr(huggingface_hub, "HfApi", None)  # calling it would fail, and a warning say so
    assert size_of(load("org/name", subfolder=subfolder, cache_dir=cache, local_files_only=True)) == 5


class Hub:
    """Stands in for the hub: `folder` is its repository; records what it is asked, and downloads everything."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder = folder
        self.asked: list[Any] = []
        monkeypatch.setattr(huggingface_hub, "HfApi", self.api)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def api(self, token: Any) -> "Hub":
        self.asked.append(token)
        return self

    def list_repo_files(self, name: str, revision: str | None) -> list[str]:
        self.asked.append((name, revision))
        return [str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()]

    def download(self, name: str, allow_patterns: list[str], **place: Any) -> str:
        self.asked.append((name, place, allow_patterns))
        return str(self.folder)


@EACH
def test_every_keyword_reaches_the_hub(tmp_path, monkeypatch, subfolder, load):
    hub = Hub(write_repository(tmp_path / "hub", 5), monkeypatch)
    place = {"revision": "v2", "cache_dir": tmp_path / "cache", "token": "secret"}
    assert size_of(load("org/name", subfolder=subfolder, **place)) == 5
    token, listed, downloaded = hub.asked
    assert (token, listed, downloaded[:2]) == ("secret", ("org/name", "v2"), ("org/name", place))


# Shards of pickles, as older large repositories have them


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("stem", [STEM, "pytorch_model"])
def test_sharded_pickles(tmp_path, stem, variant):
    ours = "model" if stem == "pytorch_model" else stem
    write_weights(tmp_path, {"b.weight": noise(3, 5), "a": noise(7, seed=1), "c": noise(2, seed=2)}, variant, stem=ours)
    state = to_pickle(tmp_path, stem, variant, shards=2)
    assert_same(read_weights(tmp_path, variant, ours), state)
    (tmp_path / f"{stem}{'.fp16' if variant else ''}-00002-of-00002.bin").unlink()
    with pytest.raises(LoadError, match=r"E-WEIGHTS-SHARD.*1 of 2.*00002-of-00002.bin"):
        read_weights(tmp_path, variant, ours)


def test_all_shards_of_the_chosen_index_are_fetched(tmp_path, monkeypatch):
    """And no others: not of another variant, not of another stem."""
    folder = tmp_path / "hub" / "unet"
    Linear(width=5).save_pretrained(folder)
    state = to_pickle(folder, shards=2)
    (folder / f"{STEM}.fp16-00001-of-00001.bin").touch()
    (folder / "pytorch_model-00001-of-00001.bin").touch()
    hub = Hub(tmp_path / "hub", monkeypatch)
    assert_same(Linear.from_pretrained("org/name", subfolder="unet").state_dict(), state)
    shards = [f"unet/{STEM}-0000{i}-of-00002.bin" for i in (1, 2)]
    assert hub.asked[-1][2] == sorted([*shards, f"unet/{STEM}.bin.index.json", "unet/config.json"])
    both = [f"{STEM}.safetensors.index.json", f"{STEM}-00001-of-00001.safetensors", f"{STEM}.bin.index.json", shards[0]]
    both = [name.removeprefix("unet/") for name in both]
    assert wanted(both, ["*"], None) == sorted(both[:2]), "one format is enough"


def test_sharded_pickles_in_the_cache(cache):
    snapshot = cache / "models--org--name" / "snapshots" / tiny_repo.COMMIT
    state = to_pickle(snapshot / "unet", shards=2)
    assert_same(Linear.from_pretrained("org/name", subfolder="unet", cache_dir=cache).state_dict(), state)
    (snapshot / "unet" / f"{STEM}-00001-of-00002.bin").unlink()
    with pytest.raises(LoadError, match=r"E-WEIGHTS-SHARD.*00001-of-00002.bin"):
        Linear.from_pretrained("org/name", subfolder="unet", cache_dir=cache)


# What older files leave behind, and what they lack


def test_an_old_pickle_beside_new_safetensors_goes(tmp_path):
    """Encoders call theirs pytorch_model, under which a reader could prefer it; those of other components stay."""
    for stem in ("pytorch_model", STEM):
        torch.save({"old": noise(2)}, tmp_path / f"{stem}.bin")
    shutil.copy(tmp_path / "pytorch_model.bin", tmp_path / "pytorch_model.fp16.bin")
    write_weights(tmp_path, {"new": noise(3)}, stem="model")
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"model.safetensors", f"{STEM}.bin", "pytorch_model.fp16.bin"}
    write_weights(tmp_path, {"new": noise(3)})
    assert not (tmp_path / f"{STEM}.bin").exists()
    assert (tmp_path / "model.safetensors").exists()


def test_a_motion_adapter_without_position_tables(tmp_path):
    """They are analytic; files of the original do without."""
    due = adapter()
    due.save_pretrained(tmp_path)
    state = read_weights(tmp_path)
    tables = {name for name in state if name.endswith("pos_embed.pe")}
    assert len(tables) == 10
    write_weights(tmp_path, {name: value for name, value in state.items() if name not in tables})
    assert_same(MotionAdapter.from_pretrained(tmp_path).state_dict(), due.state_dict())
    half = MotionAdapter.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {value.dtype for value in half.state_dict().values()} == {torch.bfloat16}
