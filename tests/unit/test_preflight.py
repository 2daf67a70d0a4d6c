"""Repositories that are refused by their small files: of another family, incomplete, or of parts that do not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tiny_consisid as small
import tiny_pia
import tiny_repo
import vivant.hub.load
from vivant.api.animator import Animator
from vivant.api.portrait import Portrait
from vivant.consisid.conditioning import Face
from vivant.consisid.identity_file import People
from vivant.errors import InputError, LoadError
from vivant.media.still import Still
from vivant.preflight.consisid import Model, check_film


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A repository of ConsisID, its network in several files."""
    path = tmp_path_factory.mktemp("models") / "consisid"
    small.pipeline().save_pretrained(path, max_shard_size="100KB")
    return path


@pytest.fixture
def repo(whole, tmp_path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "repo"))


@pytest.fixture(autouse=True)
def no_weights(monkeypatch) -> None:
    """Reading weights fails the test."""
    monkeypatch.setattr(vivant.hub.load, "read_file", lambda path: pytest.fail(f"{path} was read"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_whole_repository_is_found(repo):
    model = Model.find(repo)
    assert model.traits.size == (48, 80)
    assert model.traits.transformer.sample_frames == 9
    assert type(model.traits.solver).__name__ == "CogVideoXDPM"
    assert model.origins() == {"model": {"folder": "repo"}, "variant": None, "additions": []}


def test_the_published_model_takes_identities_of_the_published_shapes(repo):
    published = json.loads((Path(__file__).parents[1] / "golden" / "configs.json").read_text())
    for name, file in {"transformer": "config", "vae": "config", "scheduler": "scheduler_config"}.items():
        config = {key: value for key, value in published[f"consisid_{name}"].items() if key != "inferred"}
        (repo / name / f"{file}.json").write_text(json.dumps(config))
    edit(repo / "text_encoder" / "config.json", d_model=published["consisid_text_encoder"]["d_model"])
    traits = Model.find(repo).traits
    stills = [Still(Image.new("RGB", (512, 512)))]
    people = People(Face(torch.zeros(1, 1280), (torch.zeros(1, 577, 1024),) * 5))
    request = check_film({}, "a person", stills, people, traits)
    assert (request.num_frames, request.height, request.width, request.max_sequence_length) == (49, 480, 720, 226)
    four = People(Face(torch.zeros(1, 1280), (torch.zeros(1, 577, 1024),) * 4))
    with pytest.raises(InputError, match="E-IDENTITY-SHAPE"):
        check_film({}, "a person", stills, four, traits)


def test_weights_are_read_once_nothing_is_wrong(repo):
    with pytest.raises(pytest.fail.Exception, match="was read"):
        Portrait.from_pretrained(repo, dtype=torch.float32, device="cpu")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda repo: (repo / "model_index.json").unlink(), "E-REPO-INDEX"),
    "no transformer": (lambda repo: shutil.rmtree(repo / "transformer"), "E-FILE-MISSING"),
    "no vae": (lambda repo: shutil.rmtree(repo / "vae"), "E-FILE-MISSING"),
    "no text encoder": (lambda repo: shutil.rmtree(repo / "text_encoder"), "E-FILE-MISSING"),
    "no tokenizer": (lambda repo: shutil.rmtree(repo / "tokenizer"), "E-REPO-SUBFOLDER"),
    "no scheduler": (lambda repo: shutil.rmtree(repo / "scheduler"), "E-FILE-MISSING"),
    "an empty tokenizer": (lambda repo: [path.unlink() for path in (repo / "tokenizer").iterdir()], "E-TOKENIZER"),
    "no weights of the vae": (
        lambda repo: [path.unlink() for path in (repo / "vae").glob("*.safetensors*")],
        "E-WEIGHTS-MISSING",
    ),
    "no weights of the text encoder": (
        lambda repo: [path.unlink() for path in (repo / "text_encoder").glob("*.safetensors*")],
        "E-WEIGHTS-MISSING",
    ),
    "a missing shard": (
        lambda repo: next((repo / "transformer").glob("*-00002-of-*")).unlink(),
        "E-WEIGHTS-SHARD",
    ),
    "a component listed as null": (
        lambda repo: edit(repo / "model_index.json", text_encoder=[None, None]),
        "E-REPO-COMPONENT",
    ),
    "another vae": (
        lambda repo: edit(repo / "model_index.json", vae=["diffusers", "AutoencoderKL"]),
        "E-COMPONENT-CLASS",
    ),
    "another tokenizer": (
        lambda repo: edit(repo / "model_index.json", tokenizer=["transformers", "CLIPTokenizer"]),
        "E-COMPONENT-CLASS",
    ),
    "another transformer": (
        lambda repo: edit(repo / "model_index.json", transformer=["diffusers", "CogVideoXTransformer3DModel"]),
        "E-REPO-FAMILY",
    ),
    "no scheduler of ours": (
        lambda repo: edit(repo / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"]),
        "E-SCHEDULER-UNKNOWN",
    ),
    "broken JSON": (lambda repo: (repo / "transformer" / "config.json").write_text("{"), "E-JSON-BROKEN"),
    "a later transformer": (
        lambda repo: edit(repo / "transformer" / "config.json", patch_size_t=2),
        "E-CONFIG-UNKNOWN",
    ),
    "other latents": (lambda repo: edit(repo / "transformer" / "config.json", in_channels=4), "E-CONFIG-VALUE"),
    "other text": (lambda repo: edit(repo / "text_encoder" / "config.json", d_model=64), "E-CONFIG-VALUE"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_repository_that_makes_no_pipeline_is_refused(repo, kind):
    damage, code = DAMAGES[kind]
    damage(repo)
    with pytest.raises((LoadError, InputError)) as refusal:
        Portrait.from_pretrained(repo, dtype=torch.float32, device="cpu")
    assert refusal.value.code == code


def test_a_variant_that_is_not_there_is_refused(repo):
    with pytest.raises(LoadError, match="E-WEIGHTS-VARIANT"):
        Portrait.from_pretrained(repo, variant="fp16")


def test_each_command_names_the_other(repo, tmp_path):
    tiny_pia.pipeline().save_pretrained(tmp_path / "pia")
    base, adapter = tiny_repo.write_base(tmp_path / "base"), tiny_repo.write_adapter(tmp_path / "adapter")
    for folder in (tmp_path / "pia", base):
        with pytest.raises(LoadError, match=r"E-REPO-FAMILY.*vivant animate"):
            Portrait.from_pretrained(folder)
    for given in ((repo,), (repo, adapter)):
        with pytest.raises(LoadError, match=r"E-REPO-FAMILY.*vivant portrait"):
            Animator.from_pretrained(*given)


def test_a_cached_repository_is_known_by_its_commit(repo, tmp_path):
    tiny_repo.into_cache(tmp_path / "cache", "someone/consisid", repo)
    model = Model.find("someone/consisid", cache_dir=tmp_path / "cache", local_files_only=True)
    assert model.origins()["model"] == {"hub": "someone/consisid", "revision": tiny_repo.COMMIT}
