"""`vivant redo`: the same frames again, from a recipe that anyone may have written."""

import json
import os
import sys
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny_repo
from commands import ADAPTER_ID, BASE_ID, Vivant
from vivant.cli import originals
from vivant.cli.screen import Code
from vivant.media import still
from vivant.media.recipe import image_digest, read_recipe, sidecar_of
from vivant.media.video import probe, read_clip
from vivant.request import PIARequest


@pytest.fixture
def redo(vivant_: Vivant, models: Path) -> Vivant:
    """Runs `vivant redo --json` with the small models, on the CPU."""
    fixed = ["--json", "--base", str(models / "base"), "--motion-adapter", str(models / "adapter")]
    return lambda *args: vivant_("redo", *args, *fixed)


def _edit(name: str, change: Callable[[dict[str, Any]], None]) -> None:
    recipe = read_recipe(name)
    change(recipe)
    sidecar_of(name).write_text(json.dumps(recipe), encoding="utf-8")


def test_redo_makes_the_same_frames(animate: Vivant, redo: Vivant):
    passes = ["--free-init", "--free-init-iters", "2", "--eta", "0.5", "--freeu", "1,0.5,1.1,1.2"]
    animate("--num-videos", "2", *passes, output="a.apng")
    ran = redo("a-1.apng")
    assert (ran.code, ran.json["same"]) == (Code.OK, True), ran.out
    assert ran.json["outputs"][0]["path"] == "a-1-redo.apng"
    assert (read_clip("a-1-redo.apng")[0] == read_clip("a-1.apng")[0]).all()
    assert (read_clip("a-0.apng")[0] != read_clip("a-1.apng")[0]).any()
    assert read_recipe("a-1-redo.apng") == read_recipe("a-1.apng")


def test_redo_without_guidance(animate: Vivant, redo: Vivant):
    animate("--guidance", "1", output="a.gif")
    assert redo("a.gif.json", "-o", "b.webp").json["same"]
    assert probe("b.webp").num_frames == 5


def test_brackets_of_older_recipes_are_brackets(animate: Vivant, redo: Vivant):
    animate("--steps", "1", "--prompt-syntax", "plain", prompt="a (cat:1.9) in a field", output="a.apng")
    _edit("a.apng", lambda recipe: recipe["request"].pop("prompt_syntax"))
    assert redo("a.apng.json").json["same"]
    _edit("a.apng", lambda recipe: recipe["request"].update(prompt_syntax="weighted"))
    assert not redo("a.apng.json", "-o", "b.apng").json["same"]


def test_redo_tells_that_frames_differ(animate: Vivant, redo: Vivant):
    animate("--steps", "1", output="a.gif")
    _edit("a.gif", lambda recipe: recipe["request"].update(seed=8))
    ran = redo("a.gif.json")
    assert (ran.code, ran.json["same"]) == (Code.DIFFERENT, False)


def test_redo_wants_the_same_picture(animate: Vivant, redo: Vivant, vivant_: Vivant, models: Path):
    animate("--steps", "1", output="a.gif")
    os.rename("photo.png", "kept.bin")
    ran = redo("a.gif")
    assert (ran.code, ran.json["error"]["code"]) == (Code.INPUT, "E-REDO-IMAGE")
    Image.fromarray(255 - np.asarray(Image.open("kept.bin"))).save("other.png")
    assert redo("a.gif", "--image", "other.png").json["error"]["code"] == "E-REDO-IMAGE"
    assert redo("a.gif", "--image", "kept.bin").code == Code.OK


def test_redo_wants_the_same_weights(animate: Vivant, redo: Vivant):
    animate("--steps", "1", output="a.gif")
    _edit("a.gif", lambda recipe: recipe["models"]["weights"].update(vae="sha256:0"))
    ran = redo("a.gif.json")
    assert (ran.code, ran.json["error"]["code"]) == (Code.LOAD, "E-REDO-WEIGHTS")
    assert "vae" in ran.json["error"]["what"]


def test_redo_asks_where_folders_are(animate: Vivant, vivant_: Vivant, no_weights: list[Path]):
    Path("a.gif.json").write_text(json.dumps(_recipe(base={"folder": "base"})))
    ran = vivant_("redo", "a.gif.json", "--json", "--image", "photo.png")
    assert (ran.code, ran.json["error"]["code"]) == (Code.INPUT, "E-REDO-MODEL")
    assert not no_weights


def _recipe(base: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A recipe as a stranger could write it."""
    hub: dict[str, Any] = {"hub": BASE_ID, "revision": tiny_repo.COMMIT}
    models = {
        "base": base or hub,
        "motion_adapter": {"hub": ADAPTER_ID, "revision": tiny_repo.COMMIT},
        "variant": None,
        "weights": {"unet": "sha256:0"},
        "numerics": "original",
        "dtype": "float32",
        "compiled": False,
        "scheduler": {"_class_name": "DDIMScheduler"},
    }
    request = PIARequest(prompt="cat", num_frames=2, num_inference_steps=1, height=48, width=64, seed=1).to_json()
    image = Image.open("photo.png")
    picture = {"digests": [image_digest(image)], "sizes": [list(image.size)], "dark": False}
    recipe = {
        "vivant": 1,
        "kind": "pia",
        "request": request,
        "models": models,
        "device": "cpu",
        "image": picture,
        "frames_hashes": ["sha256:0"],
        "versions": {"torch": "1.0"},
    }
    return recipe | changes


def test_redo_fetches_nothing_without_consent(vivant_: Vivant, models: Path, no_weights: list[Path]):
    Path("a.gif.json").write_text(json.dumps(_recipe()))
    ran = vivant_("redo", "a.gif.json", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (Code.INPUT, "E-REDO-FETCH")
    assert BASE_ID in ran.json["error"]["what"]
    assert vivant_("redo", "a.gif.json").code == Code.INPUT  # standard input is not a terminal
    # With consent it goes to the hub, which is switched off here.
    assert vivant_("redo", "a.gif.json", "--json", "--yes").json["error"]["code"] == "E-REPO-OFFLINE"
    assert not no_weights


def test_redo_uses_the_hub_cache_without_asking(vivant_: Vivant, models: Path):
    Path("a.gif.json").write_text(json.dumps(_recipe()))
    ran = vivant_("redo", "a.gif.json", "--json", "--cache-dir", str(models / "cache"))
    assert ran.json["error"]["code"] == "E-REDO-WEIGHTS"


def test_redo_takes_no_local_folder_for_a_hub_id(vivant_: Vivant):
    Path(BASE_ID).mkdir(parents=True)
    Path("a.gif.json").write_text(json.dumps(_recipe()))
    assert vivant_("redo", "a.gif.json", "--json").json["error"]["code"] == "E-REDO-MODEL"


def test_redo_of_a_folder_of_frames(animate: Vivant, redo: Vivant, monkeypatch: pytest.MonkeyPatch):
    animate("--steps", "1", output="frames/")
    os.remove("frames.json")
    assert redo("frames").json["outputs"][0]["path"] == "frames-redo/"
    monkeypatch.chdir("frames")
    ran = redo(".", "--overwrite")
    assert (ran.code, ran.json["same"]) == (Code.OK, True), ran.out
    assert (read_clip("../frames-redo")[0] == read_clip(".")[0]).all()


def test_redo_keeps_no_other_picture_and_leaves_the_clip_alone(
    animate: Vivant, redo: Vivant, monkeypatch: pytest.MonkeyPatch
):
    animate("--steps", "1", "--size", "96x80", output="a.gif")
    for i, name in enumerate("bcdef"):
        Image.new("RGB", (96, 80), (i, 0, 0)).save(f"{name}.png")
    read_still = originals.read_still
    names: list[str] = []
    images: list[weakref.ref[Image.Image]] = []
    most = 0

    def watched(path: Path) -> still.Still:
        nonlocal most
        read = read_still(path)
        names.append(path.name)
        images.append(weakref.ref(read.image))
        most = max(most, sum(image() is not None for image in images))
        return read

    monkeypatch.setattr(originals, "read_still", watched)
    ran = redo("a.gif")
    assert ran.json["same"]
    assert ran.json["warnings"] == [], "the clip is an animation, and no picture to look at"
    assert names == ["b.png", "c.png", "d.png", "e.png", "f.png", "photo.png"]
    assert most <= 2, "one that was read, and the next one"


def test_redo_finds_a_heic(redo: Vivant, monkeypatch: pytest.MonkeyPatch, no_weights: list[Path]):
    photo = Image.open("photo.png")
    photo.load()

    class HeifFile(Image.Image):
        format = "HEIF"

        def __init__(self, file: Any, name: str):
            super().__init__()
            self._mode, self._size, self.im = "RGB", photo.size, photo.im.copy()

    def register() -> None:
        Image.register_open("HEIF", HeifFile, lambda head: head[4:12] == b"ftypheic")  # pyright: ignore[reportArgumentType]

    plugin = types.ModuleType("pillow_heif")
    monkeypatch.setattr(plugin, "register_heif_opener", register, raising=False)
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    Path("a.gif.json").write_text(json.dumps(_recipe()))
    os.remove("photo.png")
    Path("photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    redo("a.gif.json")
    assert no_weights, "all but the weights was found"


def test_a_folder_that_may_not_be_listed_holds_no_picture(redo: Vivant, monkeypatch: pytest.MonkeyPatch):
    Path("a.gif.json").write_text(json.dumps(_recipe()))

    def denied(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", denied)
    assert redo("a.gif.json").json["error"]["code"] == "E-REDO-IMAGE"


def test_redo_does_not_replace_what_it_reads(redo: Vivant, monkeypatch: pytest.MonkeyPatch, no_weights: list[Path]):
    Path("a.gif.json").write_text(json.dumps(_recipe()))
    Path("seq").mkdir()
    picture = Path("photo.png").rename(Path("seq/frame_00000.png").absolute())
    monkeypatch.chdir("seq")
    for args in (["-o", "../seq/"], ["-o", "../seq/", "--image", picture.name], ["-o", "../a.gif"]):
        ran = redo("../a.gif.json", *args, "--overwrite")
        assert (ran.code, ran.json["error"]["code"]) == (Code.OUTPUT, "E-OUTPUT-TWICE"), args
    assert not no_weights
    assert picture.is_file()


def test_redo_asks_the_recipes_own_solver(redo: Vivant, no_weights: list[Path]):
    def answer(scheduler: dict[str, Any], **request: Any) -> str:
        recipe = _recipe()
        recipe["models"]["scheduler"] = scheduler
        recipe["request"].update(request)
        Path("a.gif.json").write_text(json.dumps(recipe))
        return redo("a.gif.json").json["error"]["code"]

    assert answer({"_class_name": "EulerDiscreteScheduler"}, eta=0.5) == "E-ETA-UNUSED"
    few = {"_class_name": "DDIMScheduler", "num_train_timesteps": 50}
    assert answer(few, num_inference_steps=60) == "E-SOLVER-STEPS"
    assert not no_weights
    trailing = {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"}
    assert answer(trailing, num_inference_steps=1000) == "E-UNEXPECTED"
    assert no_weights, "the preset could not make so many steps, and it is not asked"


def _deep() -> Any:
    value: Any = 1
    for _ in range(200):
        value = [value]
    return value


HOSTILE: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda r: r.update(kind="pickle"), "E-RECIPE-FIELD"),
    (lambda r: r.update(models=[]), "E-RECIPE-FIELD"),
    (lambda r: r.update(clip=7), "E-RECIPE-FIELD"),
    (lambda r: r.update(frames_hashes=["sha256:0"] * 5, clip=4), "E-RECIPE-FIELD"),
    (lambda r: r.update(clip=True), "E-RECIPE-FIELD"),
    (lambda r: r.update(request="rm -rf"), "E-RECIPE-FIELD"),
    (lambda r: r.update(device=5), "E-RECIPE-FIELD"),
    (lambda r: r.update(device="abacus"), "E-DEVICE"),
    (lambda r: r.update(vivant=2), "E-RECIPE-SCHEME"),
    (lambda r: r["image"].update(sizes=[[1]]), "E-RECIPE-FIELD"),
    (lambda r: r["image"].update(sizes=[["a", "b"]]), "E-RECIPE-FIELD"),
    (lambda r: r["image"].update(keyframes=[{}]), "E-RECIPE-FIELD"),
    (lambda r: r["request"].update(keyframes=[1]), "E-RECIPE-FIELD"),
    (lambda r: (r["request"].update(keyframes=[1]), r["image"].update(keyframes=[5])), "E-RECIPE-FIELD"),
    (lambda r: r["request"].update(keyframes={"a": 1}), "E-KEYFRAME"),
    (lambda r: r["request"].update(prompt_travel={"1": "a"}), "E-TRAVEL"),
    (lambda r: r["request"].update(windows=[16]), "E-PARAM-TYPE"),
    (lambda r: r["request"].update(windows={"length": 16, "stride": 0}), "E-WINDOWS-STRIDE"),
    (lambda r: r["models"].update(base={"hub": "../../etc"}), "E-RECIPE-FIELD"),
    (lambda r: r["models"].update(base={"hub": "/etc/passwd"}), "E-RECIPE-FIELD"),
    (lambda r: r["models"].update(base={"hub": "https://example.org/a/b"}), "E-RECIPE-FIELD"),
    (lambda r: r["models"].update(motion_adapter={"hub": "a" * 5000}), "E-RECIPE-FIELD"),
    (lambda r: r["models"].update(base={"hub": "", "folder": "x"}), "E-RECIPE-FIELD"),
    (lambda r: r["models"].update(base={}), "E-RECIPE-FIELD"),
    (lambda r: r["models"].update(base={"hub": "a/b", "revision": "../../x"}), "E-REPO-PATH"),
    (lambda r: r["models"].update(variant="../../x"), "E-REDO-FETCH"),
    (lambda r: r["models"].update(dtype="float64"), "E-RECIPE-FIELD"),
    (lambda r: r["models"].update(numerics="mine"), "E-RECIPE-FIELD"),
    (lambda r: r["models"].update(scheduler={"_class_name": "os.system"}), "E-RECIPE-FIELD"),
    (lambda r: r["models"]["scheduler"].update(num_train_timesteps=10**12), "E-RECIPE-FIELD"),
    (lambda r: r["models"]["scheduler"].update(shutdown=True), "E-CONFIG-UNKNOWN"),
    (lambda r: r["models"].update(weights={"unet": 5}), "E-RECIPE-FIELD"),
    (lambda r: r["request"].update(command="x"), "E-PARAM-UNKNOWN"),
    (lambda r: r["request"].update(num_frames=10**9), "E-FRAMES"),
    (lambda r: r["request"].update(guidance_scale=10**400), "E-GUIDANCE"),
    (lambda r: r["request"].update(motion=_deep()), "E-MOTION-CURVE"),
    (lambda r: r["request"].update(motion={"a": 1}), "E-MOTION-TYPE"),
    (lambda r: r["request"].update(prompt=5), "E-PROMPT-TYPE"),
    (lambda r: r["request"].update(free_init={"num_iters": 10**9}), "E-FREEINIT-ITERATIONS"),
    (lambda r: r["request"].update(free_init=[1]), "E-PARAM-TYPE"),
    (lambda r: r["request"].update(seed=-1), "E-RECIPE-FIELD"),
    (lambda r: r["request"].update(fit=["crop"]), "E-FIT"),
    (lambda r: r["request"].update(height=None), "E-RECIPE-FIELD"),
]


@pytest.mark.unchecked
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_recipes_of_strangers(vivant_: Vivant, no_weights: list[Path], number: int):
    change, code = HOSTILE[number]
    recipe = _recipe()
    change(recipe)
    Path("a.gif.json").write_text(json.dumps(recipe))
    ran = vivant_("redo", "a.gif.json", "--json")
    assert ran.json["error"]["code"] == code, ran.out
    assert ran.code in (Code.INPUT, Code.LOAD)
    assert not no_weights
    assert sorted(os.listdir()) == ["a.gif.json", "photo.png"]
