"""`vivant redo` of portraits: the same frames again, from a recipe that anyone may have written."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tiny_repo
import vivant
from commands import CONSISID_ID, Vivant
from vivant.cli.screen import Code
from vivant.consisid.identity_file import load_identity, save_identity
from vivant.media.recipe import image_digest, read_recipe, sidecar_of
from vivant.media.video import read_clip
from vivant.request import ConsisIDRequest

HELD = ["anna.png", "anna.safetensors"]


@pytest.fixture
def redo(vivant_: Vivant, faces: Path) -> Vivant:
    """Runs `vivant redo --json` with the small model."""
    return lambda *args: vivant_("redo", *args, "--json", "--model", str(faces / "consisid"))


def _edit(name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    recipe = read_recipe(name)
    change(recipe)
    sidecar_of(name).write_text(json.dumps(recipe), encoding="utf-8")


def test_redo_makes_the_same_frames(portrait: Vivant, redo: Vivant):
    portrait("--num-videos", "2", "--dynamic-guidance", "--negative-prompt", "a park", output="a.apng")
    ran = redo("a-1.apng")
    assert (ran.code, ran.json["same"]) == (Code.OK, True), ran.out
    assert ran.json["outputs"][0]["path"] == "a-1-redo.apng"
    assert (read_clip("a-1-redo.apng")[0] == read_clip("a-1.apng")[0]).all()
    assert (read_clip("a-0.apng")[0] != read_clip("a-1.apng")[0]).any()
    assert read_recipe("a-1-redo.apng") == read_recipe("a-1.apng")


def test_redo_of_an_mp4(portrait: Vivant, vivant_: Vivant, faces: Path):
    portrait()
    ran = vivant_("redo", "a.mp4", "--model", str(faces / "consisid"))
    assert ran.code == Code.OK, ran.err
    assert ran.out.splitlines() == ["a-redo.mp4", "The same frames as before."]


def test_redo_of_one_of_several_people(redo: Vivant, faces: Path, tmp_path: Path):
    pictures, people = ([faces / f"{name}{suffix}" for name in ("anna", "ben")] for suffix in (".png", ".safetensors"))
    portrait = vivant.Portrait.from_pretrained(faces / "consisid", dtype=torch.float32, device="cpu")
    made = portrait.film(pictures, ["a sea", "a park"], identity=people, num_inference_steps=1, seed=[3, 4])
    made.save("a.apng", clip=1)
    for path in (*pictures, *people):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    given = [f"--identity={path}" for path in people]
    for args in ([], given):
        ran = redo("a.apng", "--overwrite", *args)
        assert (ran.code, ran.json["same"]) == (Code.OK, True), ran.out
    ran = redo("a.apng", "--overwrite", *given[::-1])
    assert (ran.code, ran.json["error"]["code"]) == (Code.INPUT, "E-REDO-IDENTITY")


def test_redo_tells_that_frames_differ(portrait: Vivant, redo: Vivant):
    portrait(output="a.gif")
    _edit("a.gif", lambda recipe: recipe["request"].update(seed=8))
    ran = redo("a.gif.json")
    assert (ran.code, ran.json["same"]) == (Code.DIFFERENT, False)


def test_redo_samples_with_the_recipe_s_scheduler(portrait: Vivant, redo: Vivant):
    portrait(output="a.gif")
    _edit("a.gif", lambda recipe: recipe["models"]["scheduler"].update(_class_name="CogVideoXDDIMScheduler"))
    ran = redo("a.gif.json")
    assert (ran.code, ran.json["same"]) == (Code.DIFFERENT, False)
    assert read_recipe("a-redo.gif")["models"]["scheduler"]["_class_name"] == "CogVideoXDDIMScheduler"


def test_redo_wants_the_same_identity(portrait: Vivant, redo: Vivant, faces: Path, no_weights: list[Path]):
    Path("a.gif.json").write_text(json.dumps(_recipe()))
    os.rename("anna.safetensors", "kept.bin")
    save_identity(load_identity(faces / "ben.safetensors"), "anna.safetensors")
    Path("torn.safetensors").write_bytes(b"torn")
    ran = redo("a.gif.json")
    assert (ran.code, ran.json["error"]["code"]) == (Code.INPUT, "E-REDO-IDENTITY")
    assert redo("a.gif.json", "--identity", "anna.safetensors").json["error"]["code"] == "E-REDO-IDENTITY"
    assert redo("a.gif.json", "--identity", "none").json["error"]["code"] == "E-IDENTITY-MISSING"
    assert not no_weights
    assert redo("a.gif.json", "--identity", "kept.bin").code == Code.UNEXPECTED
    assert no_weights, "all but the weights was found"


def test_redo_wants_the_same_picture(portrait: Vivant, redo: Vivant, faces: Path, no_weights: list[Path]):
    Path("a.gif.json").write_text(json.dumps(_recipe()))
    os.remove("anna.png")
    assert redo("a.gif.json").json["error"]["code"] == "E-REDO-IMAGE"
    assert redo("a.gif.json", "--image", str(faces / "ben.png")).json["error"]["code"] == "E-REDO-IMAGE"
    assert not no_weights
    redo("a.gif.json", "--image", str(faces / "anna.png"))
    assert no_weights


def test_redo_wants_the_same_weights(portrait: Vivant, redo: Vivant):
    portrait(output="a.gif")
    _edit("a.gif", lambda recipe: recipe["models"]["weights"].update(transformer="sha256:0"))
    ran = redo("a.gif.json")
    assert (ran.code, ran.json["error"]["code"]) == (Code.LOAD, "E-REDO-WEIGHTS")
    assert "transformer" in ran.json["error"]["what"]


def test_redo_takes_no_option_that_it_would_not_read(portrait: Vivant, redo: Vivant, no_weights: list[Path]):
    Path("a.gif.json").write_text(json.dumps(_recipe()))
    for option in ("--base", "--motion-adapter"):
        ran = redo("a.gif.json", option, "x")
        assert (ran.code, ran.json["error"]["code"]) == (Code.INPUT, "E-REDO-OPTION")
        assert option in ran.json["error"]["what"]
    assert not no_weights


@pytest.mark.parametrize(("name", "option"), [("anna.png", "--image"), ("anna.safetensors", "--identity")])
def test_redo_does_not_replace_what_it_reads(
    portrait: Vivant, redo: Vivant, no_weights: list[Path], name: str, option: str
):
    Path("a.gif.json").write_text(json.dumps(_recipe()))
    Path("seq").mkdir()
    read = Path(name).rename("seq/frame_00000.png")
    ran = redo("a.gif.json", option, str(read), "-o", "seq/", "--overwrite")
    assert (ran.code, ran.json["error"]["code"]) == (Code.OUTPUT, "E-OUTPUT-TWICE")
    assert read.is_file()
    assert not no_weights


def test_redo_asks_the_recipe_s_own_solver(portrait: Vivant, redo: Vivant, no_weights: list[Path]):
    def answer(scheduler: dict[str, Any], **request: Any) -> str:
        recipe = _recipe()
        recipe["models"]["scheduler"] = scheduler
        recipe["request"].update(request)
        Path("a.gif.json").write_text(json.dumps(recipe))
        return redo("a.gif.json").json["error"]["code"]

    assert answer({"_class_name": "CogVideoXDPMScheduler"}, eta=0.5) == "E-ETA-UNUSED"
    few = {"_class_name": "CogVideoXDDIMScheduler", "num_train_timesteps": 50}
    assert answer(few, num_inference_steps=60) == "E-SOLVER-STEPS"
    assert not no_weights
    assert answer({"_class_name": "DDIMScheduler"}, eta=0.5) == "E-UNEXPECTED"
    assert no_weights, "the repository's own has no eta, and it is not asked"


def _recipe() -> dict[str, Any]:
    """A recipe as a stranger could write it."""
    hub: dict[str, Any] = {"hub": CONSISID_ID, "revision": tiny_repo.COMMIT}
    models = {
        "model": hub,
        "variant": None,
        "weights": {"transformer": "sha256:0"},
        "dtype": "float32",
        "scheduler": {"_class_name": "CogVideoXDPMScheduler"},
    }
    asked = {"num_frames": 9, "num_inference_steps": 2, "height": 48, "width": 80, "max_sequence_length": 7, "seed": 1}
    image = Image.open("anna.png")
    return {
        "vivant": 1,
        "kind": "consisid",
        "request": ConsisIDRequest(prompt="a sea", **asked).to_json(),
        "models": models,
        "device": "cpu",
        "image": {"digests": [image_digest(image)], "sizes": [list(image.size)], "dark": [False]},
        "identity": {"digests": list(load_identity("anna.safetensors").digests)},
        "frames_hashes": ["sha256:0"],
        "versions": {"torch": "1.0"},
    }


def test_redo_fetches_nothing_without_consent(portrait: Vivant, vivant_: Vivant, faces: Path, no_weights: list[Path]):
    Path("a.gif.json").write_text(json.dumps(_recipe()))
    ran = vivant_("redo", "a.gif.json", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (Code.INPUT, "E-REDO-FETCH")
    assert CONSISID_ID in ran.json["error"]["what"]
    # With consent it goes to the hub, which is switched off here.
    assert vivant_("redo", "a.gif.json", "--json", "--yes").json["error"]["code"] == "E-REPO-OFFLINE"
    assert not no_weights
    vivant_("redo", "a.gif.json", "--json", "--cache-dir", str(faces / "cache"))
    assert no_weights, "what is in the cache is used without asking"


def test_redo_asks_where_a_folder_is(portrait: Vivant, vivant_: Vivant, no_weights: list[Path]):
    recipe = _recipe()
    recipe["models"]["model"] = {"folder": "consisid"}
    Path("a.gif.json").write_text(json.dumps(recipe))
    ran = vivant_("redo", "a.gif.json", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (Code.INPUT, "E-REDO-MODEL")
    assert "--model" in ran.json["error"]["fix"]
    assert not no_weights


HOSTILE: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda r: r.update(kind="pia"), "E-PARAM-UNKNOWN"),
    (lambda r: r.update(kind=["consisid"]), "E-RECIPE-FIELD"),
    (lambda r: r.update(models=[]), "E-RECIPE-FIELD"),
    (lambda r: r.update(clip=7), "E-RECIPE-FIELD"),
    (lambda r: r.update(frames_hashes=[]), "E-RECIPE-FIELD"),
    (lambda r: r.update(frames_hashes=["sha256:0"] * 2), "E-RECIPE-FIELD"),
    (lambda r: r.update(request=[1]), "E-RECIPE-FIELD"),
    (lambda r: r.update(device=5), "E-RECIPE-FIELD"),
    (lambda r: r.update(device="abacus"), "E-DEVICE"),
    (lambda r: r.update(enlarged=10**9), "E-ENLARGE"),
    (lambda r: r.pop("identity"), "E-RECIPE-FIELD"),
    (lambda r: r.update(identity=[]), "E-RECIPE-FIELD"),
    (lambda r: r["identity"].update(digests=[]), "E-RECIPE-FIELD"),
    (lambda r: r["identity"].update(digests=[[1]]), "E-RECIPE-FIELD"),
    (lambda r: r["identity"].update(digests=["sha256:0"] * 3), "E-RECIPE-FIELD"),
    (lambda r: r["identity"].update(digests=["../../anna.safetensors"]), "E-REDO-IDENTITY"),
    (lambda r: r["image"].update(sizes=[[1]]), "E-RECIPE-FIELD"),
    (lambda r: r["image"].update(sizes=[[None, 2]]), "E-RECIPE-FIELD"),
    (lambda r: r["models"].update(model={"hub": "../../etc"}), "E-RECIPE-FIELD"),
    (lambda r: r["models"].update(model={"shipped": "paper"}), "E-RECIPE-FIELD"),
    (lambda r: r["models"].update(model={"hub": "a/b", "revision": "../../x"}), "E-REPO-PATH"),
    (lambda r: r["models"].pop("model"), "E-RECIPE-FIELD"),
    (lambda r: r["models"].update(variant=5), "E-RECIPE-FIELD"),
    (lambda r: r["models"].update(dtype="float64"), "E-RECIPE-FIELD"),
    (lambda r: r["models"].update(scheduler={"_class_name": "os.system"}), "E-RECIPE-FIELD"),
    (lambda r: r["models"]["scheduler"].update(num_train_timesteps=10**12), "E-RECIPE-FIELD"),
    (lambda r: r["models"]["scheduler"].update(shutdown=True), "E-CONFIG-UNKNOWN"),
    (lambda r: r["models"].update(weights={"vae": 5}), "E-RECIPE-FIELD"),
    (lambda r: r["request"].update(command="x"), "E-PARAM-UNKNOWN"),
    (lambda r: r["request"].update(num_frames=10**9), "E-FRAMES"),
    (lambda r: r["request"].update(guidance_scale=10**400), "E-GUIDANCE"),
    (lambda r: r["request"].update(use_dynamic_cfg="yes"), "E-PARAM-TYPE"),
    (lambda r: r["request"].update(max_sequence_length=10**9), "E-PROMPT-LENGTH"),
    (lambda r: r["request"].update(prompt={"a": 1}), "E-PROMPT-TYPE"),
    (lambda r: r["request"].update(seed=-1), "E-RECIPE-FIELD"),
    (lambda r: r["request"].update(seed=[-1]), "E-RECIPE-FIELD"),
    (lambda r: r["request"].update(height=None), "E-RECIPE-FIELD"),
    (lambda r: r["request"].update(height=40), "E-SIZE"),
]


@pytest.mark.unchecked
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_recipes_of_strangers(portrait: Vivant, vivant_: Vivant, no_weights: list[Path], number: int):
    change, code = HOSTILE[number]
    recipe = _recipe()
    change(recipe)
    Path("a.gif.json").write_text(json.dumps(recipe))
    ran = vivant_("redo", "a.gif.json", "--json")
    assert ran.json["error"]["code"] == code, ran.out
    assert ran.code in (Code.INPUT, Code.LOAD)
    assert not no_weights
    assert sorted(os.listdir()) == ["a.gif.json", *HELD]
