"""Files that make a model personal, on the command line: they change the clip, and redo finds them by their content."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import tiny_consisid
import tiny_ip
import tiny_lora
import tiny_repo
import tiny_words
from commands import SMALL, Vivant
from vivant import Animator, PIAPipeline
from vivant.cli.again import source_of
from vivant.cli.recipes import Origin
from vivant.cli.screen import Code
from vivant.errors import VivantError
from vivant.hub.repo import Source
from vivant.hub.single_file import find
from vivant.media.recipe import read_recipe, sidecar_of
from vivant.preflight.repository import file_origin


@pytest.fixture(scope="session")
def personal(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """A folder with a LoRA, another for four steps, a word, an IP-Adapter, and the base in one file."""
    from vivant.cli import main
    from vivant.pia.motion import MotionAdapter

    folder = tmp_path_factory.mktemp("personal")
    adapter = MotionAdapter.from_pretrained(models / "adapter")
    pipe = PIAPipeline.from_pretrained(models / "base", motion_adapter=adapter)
    for name in ("ink", "lcm-lora-4steps"):
        written = tiny_lora.kohya(pipe.components)
        save_file({k: v.contiguous() for k, v in written.tensors.items()}, folder / f"{name}.safetensors")
    tiny_words.save(folder, "emb_params", "ink", "word.safetensors")
    tiny_ip.write(folder)
    # The processor of real bases fits the encoder of real adapters; this one has to be made to fit the small one.
    shutil.copytree(models / "base", folder / "base")
    sizes = {"size": tiny_ip.SIDE, "crop_size": tiny_ip.SIDE}
    (folder / "base" / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(sizes))
    assert main(["convert", str(models / "base"), str(folder / "base.safetensors")]) == Code.OK
    return folder


def hashes(name: str) -> list[str]:
    return read_recipe(name)["frames_hashes"]


@pytest.fixture
def additions(personal: Path) -> dict[str, list[str]]:
    """Options for each kind of addition; `seen.png` lies in the current folder."""
    tiny_ip.person().save("seen.png")
    return {
        "lora": ["--lora", f"{personal / 'ink.safetensors'}=0.5"],
        "word": ["--embedding", f"{personal / 'word.safetensors'}=<ink>"],
        "picture": ["--ip-adapter", f"{personal / 'models' / 'plain.safetensors'}=0.7", "--picture-prompt", "seen.png"],
    }


def test_weights_are_hashed_anew_when_they_were_changed(models: Path, personal: Path):
    animator = Animator.from_pretrained(models / "base", models / "adapter", loras=[personal / "ink.safetensors"])
    first = animator.weights()
    assert animator.weights() == first
    animator.pipeline.set_adapters("lora_0", 0.25)
    changed = animator.weights()
    assert [name for name in first if changed[name] != first[name]] == ["unet", "text_encoder"]
    animator.pipeline.unload_lora_weights()
    assert animator.weights() == Animator.from_pretrained(models / "base", models / "adapter").weights()


@pytest.mark.parametrize("kind", ["lora", "word", "picture"])
def test_an_addition_changes_the_clip(animate: Vivant, personal: Path, additions: dict[str, list[str]], kind: str):
    base = ["--base", str(personal / "base")]
    animate(*base, output="plain.png", prompt="cat in <ink>")
    ran = animate(*base, *additions[kind], output="other.png", prompt="cat in <ink>")
    assert ran.code == Code.OK, ran.err
    assert hashes("other.png") != hashes("plain.png")
    (recorded,) = read_recipe("other.png")["models"]["additions"]
    assert (recorded["weight"], recorded["token"]) == {
        "lora": (0.5, None),
        "word": (1.0, "<ink>"),
        "picture": (0.7, None),
    }[kind]
    assert "/" not in recorded["file"]


def test_redo_finds_additions_by_their_content(
    animate: Vivant, vivant_: Vivant, models: Path, personal: Path, additions: dict[str, list[str]]
):
    base = ["--base", str(personal / "base")]
    every = [*additions["lora"], *additions["word"], *additions["picture"]]
    animate(*base, *every, output="a.apng", prompt="cat in <ink>")
    fixed = [*base, "--motion-adapter", str(models / "adapter"), "--json"]
    ran = vivant_("redo", "a.apng", *fixed)
    assert (ran.code, ran.json["error"]["code"]) == (Code.INPUT, "E-REDO-ADDITION")
    files = [personal / "ink.safetensors", personal / "word.safetensors", personal / "models" / "plain.safetensors"]
    given = [part for path in files for part in ("--addition", str(path))]
    ran = vivant_("redo", "a.apng", *fixed, *given)
    assert (ran.code, ran.json["same"]) == (Code.OK, True), ran.out
    assert read_recipe("a-redo.apng") == read_recipe("a.apng")
    more = ["--addition", str(personal / "base.safetensors"), "-o", "b.apng"]
    other = vivant_("redo", "a.apng", *fixed, *given, *more)
    assert other.json["error"]["code"] == "E-REDO-ADDITION"


def test_redo_finds_a_file_beside_the_clip(animate: Vivant, vivant_: Vivant, models: Path, personal: Path):
    Path("ink.safetensors").write_bytes((personal / "ink.safetensors").read_bytes())
    animate("--lora", "ink.safetensors", output="a.apng")
    fixed = ["--base", str(models / "base"), "--motion-adapter", str(models / "adapter"), "--json"]
    assert vivant_("redo", "a.apng", *fixed).json["same"]
    Path("ink.safetensors").write_bytes((personal / "lcm-lora-4steps.safetensors").read_bytes() + b" ")
    assert vivant_("redo", "a.apng", *fixed, "--overwrite").json["error"]["code"] == "E-REDO-ADDITION"


def test_a_base_in_one_file_makes_the_same_clip_as_its_repository(
    animate: Vivant, vivant_: Vivant, models: Path, personal: Path
):
    animate(output="a.apng")
    single = ["--base", str(personal / "base.safetensors"), "--config", str(models / "base")]
    ran = animate(*single, "--vae", str(models / "base"), output="b.apng")
    assert ran.code == Code.OK, ran.err
    assert hashes("b.apng") == hashes("a.apng")
    models_of = read_recipe("b.apng")["models"]
    assert models_of["base"] == {"file": "base.safetensors"}
    fixed = [*single, "--motion-adapter", str(models / "adapter"), "--json"]
    assert vivant_("redo", "b.apng", *fixed).json["error"]["code"] == "E-REDO-MODEL"
    assert vivant_("redo", "b.apng", *fixed, "--vae", str(models / "base")).json["same"]
    assert read_recipe("b-redo.apng") == read_recipe("b.apng")


def test_a_lora_for_few_steps_says_how_it_wants_to_be_sampled(animate: Vivant, personal: Path):
    few = ["--lora", str(personal / "lcm-lora-4steps.safetensors")]
    base = ["--frames", "3"]
    args = [arg for arg in SMALL if arg not in ("--steps", "2")]
    assert "--steps" not in args
    ran = animate(*base, *few, output="a.apng")  # SMALL asks for two steps, and what is asked for wins
    made = read_recipe("a.apng")
    assert made["models"]["scheduler"]["_class_name"] == "LCMScheduler"
    assert made["request"]["num_inference_steps"] == 2
    assert made["request"]["guidance_scale"] <= 2
    assert "LCM-LoRA wants LCMScheduler" in ran.out + ran.err
    animate(*base, *few, "--sampler", "Euler a", output="b.apng")
    assert read_recipe("b.apng")["models"]["scheduler"]["_class_name"] == "EulerAncestralDiscreteScheduler"


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--sampler", "Euler z"], "E-SAMPLER"),
        (["--lora", "photo.png"], "E-WEIGHTS-PICKLE"),
        (["--lora", "absent.safetensors"], "E-FILE-MISSING"),
        (["--lora", "{personal}/word.safetensors"], "E-FILE-KIND"),
        (["--embedding", "{personal}/ink.safetensors"], "E-FILE-KIND"),
        (["--ip-adapter", "{personal}/models/plus.safetensors"], "E-IP-ADAPTER-IMAGES"),
        (["--picture-prompt", "photo.png"], "E-IP-ADAPTER-IMAGES"),
        (["--vae", "{personal}/ink.safetensors"], "E-FILE-KIND"),
        (["--config", "{personal}"], "E-BASE-CONFIG"),
        (["--base", "{personal}/ink.safetensors"], "E-FILE-KIND"),
        (["--motion-adapter", "{personal}/ink.safetensors"], "E-FILE-KIND"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_read(
    animate: Vivant, personal: Path, no_weights: list[Path], args: list[str], code: str
):
    ran = animate(*(arg.format(personal=personal) for arg in args), "--json", output="a.apng")
    assert ran.json["error"]["code"] == code
    assert not no_weights
    assert not Path("a.apng").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "pickle"},
        {"sha256": 5},
        {"file": "../../secret"},
        {"file": "/etc/passwd"},
        {"hub": "../x/y"},
        {"weight": "1"},
        {"weight": True},
        {"token": 7},
    ],
)
def test_additions_of_a_stranger_s_recipe_are_not_believed(
    animate: Vivant, vivant_: Vivant, models: Path, change: dict[str, Any]
):
    animate("--steps", "1", output="a.gif")
    recipe = read_recipe("a.gif")
    recorded = {"kind": "lora", "sha256": "0" * 64, "file": "a.safetensors", "weight": 1.0, "token": None}
    recipe["models"]["additions"] = [{**recorded, **change}]
    sidecar_of("a.gif").write_text(json.dumps(recipe), encoding="utf-8")
    ran = vivant_("redo", "a.gif.json", "--json", "--base", str(models / "base"))
    assert (ran.code, ran.json["error"]["code"]) == (Code.LOAD, "E-RECIPE-FIELD")


def test_a_person_is_filmed_with_a_lora(portrait: Vivant, vivant_: Vivant, faces: Path):
    written = tiny_lora.transformer(tiny_consisid.pipeline().components)
    save_file({k: v.contiguous() for k, v in written.tensors.items()}, "style.safetensors")
    portrait(output="plain.apng")
    ran = portrait("--lora", "style.safetensors=0.5", output="a.apng")
    assert ran.code == Code.OK, ran.err
    assert hashes("a.apng") != hashes("plain.apng")
    assert vivant_("redo", "a.apng", "--json", "--model", str(faces / "consisid")).json["same"]
    assert read_recipe("a-redo.apng") == read_recipe("a.apng")
    Path("style.safetensors").unlink()
    ran = vivant_("redo", "a.apng", "--json", "--model", str(faces / "consisid"), "--overwrite")
    assert ran.json["error"]["code"] == "E-REDO-ADDITION"


def test_a_file_of_the_hub_is_read_again_in_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    tiny_repo.into_cache(tmp_path / "cache", "someone/vae", tiny_ip.write(tmp_path / "repo"))
    place = Source("", cache_dir=tmp_path / "cache", local_files_only=True)
    path = find("someone/vae/models/plain.safetensors", place)
    origin = Origin(None, None, None, None)._replace(**file_origin(path))
    assert origin == Origin("someone/vae", tiny_repo.COMMIT, None, None, "models/plain.safetensors")
    again = source_of("vae", None, origin)
    assert tiny_repo.COMMIT in again
    (tmp_path / "cache" / "models--someone--vae" / "refs" / "main").write_text("f" * 40)  # it has moved on since
    assert find(again, place) == path
    with pytest.raises(VivantError):
        find("someone/vae/models/plain.safetensors", place)
