"""The command line: what it makes, and how it ends."""

import dataclasses
import inspect
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from skimage import data as photos

import tiny_repo
import vivant
import vivant.api.animator
from commands import ADAPTER_ID, BASE_ID, SMALL, Ran, Vivant
from vivant.cli import animate as animate_options
from vivant.cli.screen import Code
from vivant.freeinit import FreeInit
from vivant.media.recipe import read_recipe
from vivant.media.video import probe, read_clip
from vivant.pia.windows import Windows
from vivant.request import NEGATIVE_PROMPT, PIARequest

# ---------------------------------------------------------------------------------------------------------- making


def test_a_clip_of_the_right_size_count_and_rate(animate: Vivant):
    ran = animate("-o", "a.gif", "--fps", "12.5")
    assert ran.code == Code.OK
    assert ran.out.split() == ["a.mp4", "a.gif"]
    for name in ran.out.split():
        found = probe(name)
        assert (found.width, found.height, found.num_frames, found.fps) == (64, 48, 5, 12.5), name
        frames, _ = read_clip(name)
        assert frames.std() > 5
        assert read_recipe(name)["request"]["seed"] == 7
    assert "Animating: 5 frames of 64 x 48, 2 steps, seed 7." in ran.err
    assert "float32: as asked" in ran.err


def test_json_is_one_object_and_nothing_else(animate: Vivant):
    ran = animate("--json", "--num-videos", "2", "--motion", "loop:large", output="a.webp")
    assert (ran.code, ran.err) == (Code.OK, "")
    assert [shown["path"] for shown in ran.json["outputs"]] == ["a-0.webp", "a-1.webp"]
    assert (ran.json["width"], ran.json["height"], ran.json["frames"], ran.json["fps"]) == (64, 48, 5, 8.0)
    assert ran.json["outputs"][1]["frames_hash"] == ran.json["recipe"]["frames_hashes"][1]
    assert ran.json["outputs"][0]["frames_hash"] != ran.json["outputs"][1]["frames_hash"]
    assert ran.json["report"]["findings"] == []
    assert str(Path.cwd()) not in ran.out
    assert read_recipe("a-1.webp")["clip"] == 1


def test_the_progress_bar_shows_steps_time_and_memory(animate: Vivant, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's word for a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    bar = animate("--steps", "3").err
    assert re.search(r"Decoding .*3/3 0:00 left, \d+ MiB", bar), bar
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", bar), "a colour"
    assert "left" not in animate("--overwrite", "--json").err


def test_the_size_is_the_pictures_and_the_negative_prompt_pias_own(vivant_: Vivant, models: Path):
    Image.fromarray(photos.astronaut()).resize((101, 75)).save("odd.png")
    given = ["--base", str(models / "base"), "--motion-adapter", str(models / "adapter"), "--steps", "1"]
    ran = vivant_("animate", "odd.png", "cat", *given, "--frames", "3", "-o", "a.gif", "--json")
    assert ran.json["recipe"]["request"]["negative_prompt"] == NEGATIVE_PROMPT
    found = read_recipe("a.gif")["request"]
    assert (found["width"], found["height"]) == (96, 72)
    assert (probe("a.gif").width, probe("a.gif").height) == (96, 72)


def test_models_from_the_hub_cache(vivant_: Vivant, models: Path):
    cache = ["--cache-dir", str(models / "cache"), "--offline"]
    ran = vivant_(
        "animate", "photo.png", "cat", "--base", BASE_ID, "--motion-adapter", ADAPTER_ID, *cache, *SMALL, "-o", "a.gif"
    )
    assert ran.code == Code.OK, ran.err
    origin = {"hub": BASE_ID, "revision": tiny_repo.COMMIT}
    assert read_recipe("a.gif")["models"]["base"] == origin


def test_folders_of_frames_and_sheets(animate: Vivant):
    assert animate("-o", "frames/", "-o", "sheet.png").code == Code.OK
    assert len(list(Path("frames").glob("*.png"))) == 5
    assert probe("sheet.png").num_frames == 1


PROMPTS = ["", "🐱🏞️", "חתול בשדה", "cat " * 2560, "line\nline", "[bold]cat[/bold]"]


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_prompts_that_must_work(animate: Vivant, prompt: str):
    ran = animate("--json", "--steps", "1", "--frames", "2", prompt=prompt)
    assert ran.code == Code.OK, ran.out
    assert ran.json["recipe"]["request"]["prompt"] == prompt
    notes = ran.json["report"]["notes"]
    assert any("tokens, read in" in text for text in notes) == (len(prompt) > 1000)
    assert not any("W-PROMPT-TRUNCATED" in text for text in notes)


def test_a_long_prompt_is_cut_only_in_plain_syntax(animate: Vivant):
    ran = animate("--json", "--steps", "1", "--frames", "2", "--prompt-syntax", "plain", prompt="cat " * 100)
    assert any("W-PROMPT-TRUNCATED" in text for text in ran.json["warnings"])
    assert ran.json["recipe"]["request"]["prompt_syntax"] == "plain"


@pytest.mark.parametrize("seed", [0, 2**63, -1])
def test_seeds_that_must_work(animate: Vivant, seed: int):
    ran = animate("--json", "--steps", "1", "--frames", "2", "--seed", str(seed))
    used = ran.json["recipe"]["request"]["seed"]
    assert used == seed if seed >= 0 else used >= 0


# ----------------------------------------------------------------------------------------- the request's vocabulary

EVERY = {
    "prompt": ([], "cat in a field"),
    "negative_prompt": (["--negative-prompt", "dark"], "dark"),
    "motion": (["--motion", "5"], "loop:large"),
    "cond_frame": (["--cond-frame", "2"], 2),
    "prompt_travel": (["--at", "3=dog = cat", "--at", "2=bird"], ((2, "bird"), (3, "dog = cat"))),
    "keyframes": (["--keyframe", "4=photo.png", "--keyframe", "2=photo.png"], (2, 4)),
    "windows": (
        [
            *("--window-length", "4", "--window-stride", "1", "--window-weights", "uniform"),
            *("--window-noise", "freenoise", "--window-closed"),
        ],
        dataclasses.asdict(Windows(4, 1, "uniform", "freenoise", True)),
    ),
    "num_frames": (["--frames", "3"], 3),
    "height": (["--size", "80x56"], 56),
    "width": (["--size", "80x56"], 80),
    "fit": (["--fit", "pad"], "pad"),
    "num_inference_steps": (["--steps", "3"], 3),
    "guidance_scale": (["--guidance", "4"], 4.0),
    "image_guidance_scale": (["--image-guidance", "2.5"], 2.5),
    "strength": (["--strength", "0.5"], 0.5),
    "eta": (["--eta", "0.25"], 0.25),
    "clip_skip": (["--clip-skip", "1"], 1),
    "prompt_syntax": (["--prompt-syntax", "plain"], "plain"),
    "num_videos_per_prompt": (["--num-videos", "3"], 3),
    "seed": (["--seed", "9"], 9),
    "free_init": (
        [
            *("--free-init", "--free-init-iters", "2", "--free-init-fast", "--free-init-method", "butterworth"),
            *("--free-init-order", "3", "--free-init-spatial", "0.5", "--free-init-temporal", "0.75"),
        ],
        dataclasses.asdict(FreeInit(2, True, "butterworth", 3, 0.5, 0.75)),
    ),
    "freeu": (["--freeu", "0.9,0.2,1.2,1.4"], {"s1": 0.9, "s2": 0.2, "b1": 1.2, "b2": 1.4}),
    "fps": (["--fps", "10"], 10.0),
}
NOT_OF_THE_REQUEST = {
    *("photo", "output", "overwrite", "enlarge", "json", "size"),
    *("base", "motion_adapter", "numerics", "dtype", "device", "compile", "variant", "revision", "adapter_revision"),
    *(
        "cache_dir",
        "offline",
        "residency",
        "loras",
        "embeddings",
        "ip_adapters",
        "picture_prompts",
        "sampler",
        "vae",
        "config",
    ),
}


def option_names() -> set[str]:
    """The parameters of `vivant animate`."""
    return set(animate_options.animate.__annotations__) - {"return"}


def test_the_options_are_the_fields_of_the_request():
    fields = {field.name for field in dataclasses.fields(PIARequest)}
    parts = {"free_init": FreeInit, "windows": Windows}
    inner = {f"{name}_{field.name}" for name, part in parts.items() for field in dataclasses.fields(part)}
    assert option_names() - NOT_OF_THE_REQUEST == fields | inner
    assert EVERY.keys() == fields


@pytest.mark.parametrize("field", EVERY)
def test_every_field_is_reached(animate: Vivant, monkeypatch: pytest.MonkeyPatch, field: str):
    asked: list[dict[str, Any]] = []

    def stop(self: Any, image: Any, *, keyframes: Any, picture_prompts: Any, progress: Any, cancel: Any, **fields: Any):
        asked.append(PIARequest(**fields, keyframes=tuple(keyframes)).to_json())
        raise vivant.Cancelled("E-CANCELLED", "Enough is known.")

    monkeypatch.setattr(vivant.api.animator.Animator, "animate", stop)
    args, value = EVERY[field]
    animate(*args)
    assert asked[0][field] == (list(value) if isinstance(value, tuple) else value)


def test_defaults_are_the_requests_own():
    defaults = {name: p.default for name, p in inspect.signature(animate_options.animate).parameters.items()}
    request = PIARequest()
    depends_on_the_model = ("num_frames", "guidance_scale", "num_inference_steps", "eta")
    assert [defaults[name] for name in depends_on_the_model] == [None] * 4
    for field in dataclasses.fields(PIARequest):
        if field.name not in ("prompt", "keyframes", "free_init", "seed", *depends_on_the_model):
            assert defaults[field.name] == getattr(request, field.name), field.name
    assert animate_options.seed_of(defaults["seed"]) == request.seed
    assert not defaults["free_init"]


# -------------------------------------------------------------------------------------------------------- bad results


def _decoding(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    real = vivant.api.animator.decode
    monkeypatch.setattr(
        vivant.api.animator, "decode", lambda vae, latents: (change(part) for part in real(vae, latents))
    )


@pytest.mark.parametrize("kind", ["black", "frozen"])
def test_a_bad_clip_is_not_written(animate: Vivant, monkeypatch: pytest.MonkeyPatch, kind: str):
    _decoding(monkeypatch, lambda part: part * 0 + (0.5 if kind == "frozen" else 0))
    ran = animate("--json", "-o", "a.gif")
    assert ran.code == Code.OUTPUT
    assert ran.json["error"]["code"] == "E-OUTPUT-BAD"
    assert ran.json["report"]["findings"][0]["code"] == f"W-OUTPUT-{kind.upper()}"
    assert os.listdir() == ["photo.png"]


@pytest.mark.parametrize("where", ["latents", "frames"])
def test_nan_is_not_written(animate: Vivant, monkeypatch: pytest.MonkeyPatch, where: str):
    real = vivant.api.animator.decode

    def broken(vae: Any, latents: Any) -> Any:
        if where == "latents":
            latents[0, 0, 1, 2, 3] = float("nan")
        else:
            tensor = vivant.api.animator.torch.full((1, 3, 48, 64), float("nan"))
            monkeypatch.setattr(type(vae), "decode_tensor", lambda self, z: tensor)
        return real(vae, latents)

    monkeypatch.setattr(vivant.api.animator, "decode", broken)
    ran = animate("--json")
    assert (ran.code, ran.json["error"]["code"]) == (Code.OUTPUT, "E-OUTPUT-NAN")
    assert os.listdir() == ["photo.png"]


def test_a_fault_of_ours_has_a_code_and_a_traceback(animate: Vivant, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vivant.api.animator, "decode", lambda vae, latents: 1 / 0)
    ran = animate()
    assert ran.code == Code.UNEXPECTED
    assert "Traceback" in ran.err
    assert animate("--json").json["error"]["code"] == "E-UNEXPECTED"

    def full(vae: Any, latents: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")

    monkeypatch.setattr(vivant.api.animator, "decode", full)
    assert animate("--json").json["error"]["code"] == "E-MEMORY"


# ------------------------------------------------------------------------------------------------------------- ending


def test_a_pressed_key_between_steps_cancels(animate: Vivant, monkeypatch: pytest.MonkeyPatch):
    def press(vae: Any, latents: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return pytest.fail("went on")

    monkeypatch.setattr(vivant.api.animator, "decode", press)
    handler = signal.getsignal(signal.SIGINT)
    ran = animate("--json")
    assert (ran.code, ran.json["error"]["code"]) == (Code.CANCELLED, "E-CANCELLED")
    assert os.listdir() == ["photo.png"]
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for single processes")
def test_ctrl_c_stops_a_process_and_nothing_is_written(models: Path, tmp_path: Path):
    command = [sys.executable, "-m", "vivant.cli", "animate", str(models / "photo.png"), "cat", *SMALL]
    command += ["--base", str(models / "base"), "--motion-adapter", str(models / "adapter"), "-o", "a.mp4"]
    with subprocess.Popen([*command, "--steps", "900"], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("Animating"):
                break
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        start = time.perf_counter()
        said = process.stderr.read()
        process.wait(timeout=30)
    assert process.returncode == Code.CANCELLED
    assert time.perf_counter() - start < 10
    assert "E-CANCELLED" in said
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", ["", "animate", "redo"])
def test_help_is_quick_and_imports_no_torch(command: str):
    arguments = [*command.split(), "--help"]
    code = f"import sys; from vivant.cli import main; main({arguments}); assert 'torch' not in sys.modules"
    times = []
    for _ in range(2):
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(times) < 0.5


def test_version(vivant_: Vivant):
    assert vivant_("--version") == vivant_("version") == Ran(0, f"{vivant.__version__}\n", "")


# --------------------------------------------------------------------------------------------------------------- info


def test_info(animate: Vivant, vivant_: Vivant):
    animate(output="a.gif", prompt="\x1b]0;title\x07cat\u202e")
    ran = vivant_("info", "a.gif")
    assert ran.code == Code.OK
    assert ran.out.startswith("gif, 64 x 48, 5 frames, 8 frames a second\n")
    assert "\x1b" not in ran.out
    assert "\u202e" not in ran.out
    found = vivant_("info", "a.gif", "--json").json
    assert found["clip"] | {"fps_exact": "8/1"} == found["clip"]
    assert found["recipe"] == read_recipe("a.gif")
    assert vivant_("info", "a.gif.json", "--json").json["recipe"]["request"]["seed"] == 7


def test_info_of_folders(animate: Vivant, vivant_: Vivant, monkeypatch: pytest.MonkeyPatch):
    animate("--steps", "1", output="frames/")
    os.remove("frames.json")
    assert vivant_("info", "frames", "--json").json["recipe"]["request"]["seed"] == 7
    monkeypatch.chdir("frames")
    assert vivant_("info", ".", "--json").json["recipe"]["request"]["seed"] == 7
    assert vivant_("info", "x" * 300, "--json").json["error"]["code"] == "E-CLIP-MISSING"


def test_info_without_a_recipe_and_without_a_clip(vivant_: Vivant):
    assert vivant_("info", "photo.png", "--json").json["recipe"] is None
    assert vivant_("info", "photo.png").code == Code.OK
    ran = vivant_("info", "none.mp4", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (Code.LOAD, "E-CLIP-MISSING")
