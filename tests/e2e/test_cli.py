"""The command line in its own process's place: what it makes, what it refuses, and with which exit code."""

import dataclasses
import inspect
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from skimage import data as photos

import tiny_repo
import vivant
import vivant.api
import vivant.hub.load
from vivant.cli import animate as animate_options
from vivant.cli import main
from vivant.cli.screen import Code
from vivant.freeinit import FreeInit
from vivant.media.recipe import read_recipe, sidecar_of
from vivant.media.video import probe, read_clip
from vivant.request import NEGATIVE_PROMPT, PIARequest

BASE_ID, ADAPTER_ID = "someone/base", "someone/adapter"
SMALL = ["--size", "64x48", "--frames", "5", "--steps", "2", "--seed", "7", "--dtype", "float32"]


class Ran(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on standard output."""
        return json.loads(self.out)


Vivant = Callable[..., Ran]

# The run-time type checker of the other test lane refuses some arguments before our own code can.
BY_TYPE = {"E-MOTION-TYPE", "E-PROMPT-TYPE", "E-FIT", "E-FREEINIT-METHOD"}
CHECKED = "--jaxtyping-packages" in " ".join(sys.argv)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, an adapter, a hub cache that holds both, and a photo."""
    folder = tmp_path_factory.mktemp("models")
    tiny_repo.write_base(folder / "base")
    tiny_repo.write_adapter(folder / "adapter")
    tiny_repo.into_cache(folder / "cache", BASE_ID, folder / "base")
    tiny_repo.into_cache(folder / "cache", ADAPTER_ID, folder / "adapter")
    Image.fromarray(photos.astronaut()).resize((96, 80)).save(folder / "photo.png")
    return folder


@pytest.fixture
def vivant_(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Vivant:
    """Runs a command line in an empty folder that holds `photo.png`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes((models / "photo.png").read_bytes())

    def run(*args: str) -> Ran:
        capfd.readouterr()
        code = main(list(args))
        return Ran(code, *capfd.readouterr())

    return run


@pytest.fixture
def loaded_once(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that were loaded in one test are taken from memory in the next, unless weights are watched."""
    real, read_file = vivant.api.Animator.from_pretrained, vivant.hub.load.read_file

    def from_pretrained(*args: Any, **options: Any) -> Any:
        if vivant.hub.load.read_file is not read_file:
            return real(*args, **options)
        key = (*args, *sorted(options.items(), key=str))
        if key not in LOADED:
            LOADED[key] = real(*args, **options)
        return LOADED[key]

    monkeypatch.setattr(vivant.api.Animator, "from_pretrained", from_pretrained)


LOADED: dict[Any, Any] = {}


@pytest.fixture
def animate(vivant_: Vivant, models: Path, loaded_once: None) -> Vivant:
    """Runs `vivant animate` on the photo with the small models; later options win over earlier ones."""
    fixed = ["--base", str(models / "base"), "--motion-adapter", str(models / "adapter"), *SMALL]

    def run(*args: str, photo: str = "photo.png", prompt: str = "cat in a field", output: str | None = "a.mp4") -> Ran:
        outputs = [] if output is None else ["-o", output]
        return vivant_("animate", photo, prompt, *fixed, *outputs, *args)

    return run


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Reading weights fails the test; the list tells whether it was tried."""
    tried: list[Path] = []

    def refuse(path: Path) -> Any:
        tried.append(path)
        raise AssertionError("weights were read")

    monkeypatch.setattr(vivant.hub.load, "read_file", refuse)
    return tried


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


def test_the_size_is_the_pictures_and_the_negative_prompt_pias_own(animate: Vivant):
    Image.fromarray(photos.astronaut()).resize((101, 75)).save("odd.png")
    recipe = animate("--json", "--size", "96x72", photo="odd.png").json["recipe"]
    assert recipe["request"]["negative_prompt"] == NEGATIVE_PROMPT
    found = read_recipe("a.mp4")["request"]
    assert (found["width"], found["height"]) == (96, 72)


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
    assert any("W-PROMPT-TRUNCATED" in text for text in ran.json["warnings"]) == (len(prompt) > 1000)


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
    *("photo", "output", "overwrite", "json", "size"),
    *("base", "motion_adapter", "numerics", "dtype", "device", "compile", "variant", "revision", "adapter_revision"),
    *("cache_dir", "offline"),
}


def option_names() -> set[str]:
    """The parameters of `vivant animate`."""
    return set(animate_options.animate.__annotations__) - {"return"}


def test_the_options_are_the_fields_of_the_request():
    fields = {field.name for field in dataclasses.fields(PIARequest)}
    passes = {f"free_init_{field.name}" for field in dataclasses.fields(FreeInit)}
    assert option_names() - NOT_OF_THE_REQUEST == fields | passes
    assert EVERY.keys() == fields


@pytest.mark.parametrize("field", EVERY)
def test_every_field_is_reached(animate: Vivant, monkeypatch: pytest.MonkeyPatch, field: str):
    asked: list[dict[str, Any]] = []

    def stop(self: Any, image: Any, *, progress: Any, cancel: Any, **fields: Any) -> Any:
        asked.append(PIARequest(**fields).to_json())
        raise vivant.Cancelled("E-CANCELLED", "Enough is known.")

    monkeypatch.setattr(vivant.api.Animator, "animate", stop)
    args, value = EVERY[field]
    animate(*args)
    assert asked[0][field] == value


def test_defaults_are_the_requests_own():
    defaults = {name: p.default for name, p in inspect.signature(animate_options.animate).parameters.items()}
    request = PIARequest()
    for field in dataclasses.fields(PIARequest):
        if field.name not in ("prompt", "free_init", "seed"):
            assert defaults[field.name] == getattr(request, field.name), field.name
    assert animate_options.seed_of(defaults["seed"]) == request.seed
    assert not defaults["free_init"]


# ---------------------------------------------------------------------------------------------------------- refusing


def _png_bomb(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (body, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


PICTURES = {
    "zero bytes": (b"", "E-IMAGE-EMPTY"),
    "text": (b"I am no picture, whatever my name says.", "E-IMAGE-FORMAT"),
    "absurd size": (_png_bomb(100_000, 100_000), "E-IMAGE-SIZE"),
    "cut short": (None, "E-IMAGE-TRUNCATED"),
    "one pixel": ((1, 1), "E-IMAGE-SMALL"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_that_are_refused(animate: Vivant, no_weights: list[Path], kind: str):
    content, code = PICTURES[kind]
    if content is None:
        content = Path("photo.png").read_bytes()[:2000]
    if isinstance(content, bytes):
        Path("bad.png").write_bytes(content)
    else:
        Image.new("RGB", content).save("bad.png")
    ran = animate("--json", photo="bad.png")
    assert (ran.code, ran.json["error"]["code"]) == (Code.INPUT, code)
    assert ran.json["error"].keys() == {"code", "what", "why", "fix"}
    assert not no_weights


REFUSED: list[tuple[Sequence[str], str, Code]] = [
    (["--motion", "animate:tiny"], "E-MOTION-NAME", Code.INPUT),
    (["--motion", "9"], "E-MOTION-NUMBER", Code.INPUT),
    (["--motion", "-1"], "E-MOTION-NUMBER", Code.INPUT),
    (["--motion", "0.5"], "E-MOTION-NAME", Code.INPUT),
    (["--motion", "1,0.5"], "E-MOTION-CURVE", Code.INPUT),
    (["--motion", "1,0.5,a,0,1"], "E-MOTION-CURVE", Code.INPUT),
    (["--motion", "1,0.5,nan,0,1"], "E-MOTION-CURVE", Code.INPUT),
    (["--motion", "1,0,0,0,0", "--cond-frame", "1"], "E-MOTION-COND-FRAME", Code.INPUT),
    (["--cond-frame", "5"], "E-MOTION-COND-FRAME", Code.INPUT),
    (["--frames", "0"], "E-FRAMES", Code.INPUT),
    (["--frames", "33"], "E-FRAMES-MAX", Code.INPUT),
    (["--frames", "1000000000"], "E-FRAMES", Code.INPUT),
    (["--steps", "0"], "E-STEPS", Code.INPUT),
    (["--steps", "1001"], "E-STEPS", Code.INPUT),
    (["--steps", "1000"], "E-SOLVER-STEPS", Code.INPUT),
    (["--guidance", "-1"], "E-GUIDANCE", Code.INPUT),
    (["--guidance", "nan"], "E-GUIDANCE", Code.INPUT),
    (["--image-guidance", "inf"], "E-GUIDANCE", Code.INPUT),
    (["--guidance", "1", "--negative-prompt", "dark"], "E-NEGATIVE-UNUSED", Code.INPUT),
    (["--strength", "0"], "E-STRENGTH", Code.INPUT),
    (["--strength", "1.5"], "E-STRENGTH", Code.INPUT),
    (["--strength", "0.1"], "E-STRENGTH-STEPS", Code.INPUT),
    (["--eta", "2"], "E-ETA", Code.INPUT),
    (["--clip-skip", "3"], "E-CLIP-SKIP", Code.INPUT),
    (["--clip-skip", "-1"], "E-CLIP-SKIP", Code.INPUT),
    (["--num-videos", "0"], "E-NUM-VIDEOS", Code.INPUT),
    (["--num-videos", "1000000"], "E-NUM-VIDEOS", Code.INPUT),
    (["--seed", "-2"], "E-SEED", Code.INPUT),
    (["--seed", str(2**64)], "E-SEED", Code.INPUT),
    (["--seed", "seven"], "E-SEED", Code.INPUT),
    (["--seed", "1,2"], "E-GENERATORS", Code.INPUT),
    (["--size", "65x48"], "E-SIZE", Code.INPUT),
    (["--size", "64"], "E-SIZE", Code.INPUT),
    (["--size", "64x9999999999999"], "E-SIZE", Code.INPUT),
    (["--width", "64"], "E-SIZE-TWICE", Code.INPUT),
    (["--fps", "0"], "E-FPS", Code.INPUT),
    (["--freeu", "1,1,1"], "E-FREEU-SCALE", Code.INPUT),
    (["--freeu", "1,1,0,1"], "E-FREEU-SCALE", Code.INPUT),
    (["--free-init-iters", "2"], "E-FREEINIT-OFF", Code.INPUT),
    (["--free-init", "--free-init-iters", "0"], "E-FREEINIT-ITERATIONS", Code.INPUT),
    (["--free-init", "--free-init-iters", "1000000000"], "E-FREEINIT-ITERATIONS", Code.INPUT),
    (["--free-init", "--free-init-method", "sharp"], "E-FREEINIT-METHOD", Code.INPUT),
    (["--free-init", "--free-init-order", "0"], "E-FREEINIT-ORDER", Code.INPUT),
    (["--free-init", "--free-init-spatial", "2"], "E-FREEINIT-FREQUENCY", Code.INPUT),
    (["--device", "abacus"], "E-DEVICE", Code.INPUT),
    (["--device", "meta"], "E-DEVICE", Code.INPUT),
    (["--base", "no/such/folder"], "E-REPO-MISSING", Code.LOAD),
    (["--base", "no/such", "--offline"], "E-REPO-OFFLINE", Code.LOAD),
    (["--base", "photo.png"], "E-REPO-FILE", Code.LOAD),
    (["--motion-adapter", "no/such", "--offline"], "E-REPO-OFFLINE", Code.LOAD),
    (["--variant", "fp16"], "E-WEIGHTS-VARIANT", Code.LOAD),
    (["-o", "a.avi"], "E-OUTPUT-SUFFIX", Code.INPUT),
    (["-o", "nowhere/a.mp4"], "E-OUTPUT-FOLDER", Code.OUTPUT),
    (["-o", "photo.png"], "E-OUTPUT-EXISTS", Code.OUTPUT),
    (["-o", "photo.png", "--overwrite"], "E-OUTPUT-TWICE", Code.OUTPUT),
    (["-o", "./a.mp4"], "E-OUTPUT-TWICE", Code.OUTPUT),
    (["-o", "a.gif", "--fps", "60"], "E-OUTPUT-FPS", Code.INPUT),
    (["-o", "old.mp4"], "E-OUTPUT-EXISTS", Code.OUTPUT),
    (["-o", "noted.mp4"], "E-OUTPUT-EXISTS", Code.OUTPUT),
    (["--no-such-option"], "E-USAGE", Code.INPUT),
    (["--frames", "many"], "E-USAGE", Code.INPUT),
    (["--fit", "squeeze"], "E-USAGE", Code.INPUT),
    (["--numerics", "mine"], "E-USAGE", Code.INPUT),
]


@pytest.mark.parametrize(
    ("args", "code", "leave"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_parameters_that_are_refused(
    animate: Vivant, no_weights: list[Path], args: Sequence[str], code: str, leave: Code
):
    if CHECKED and code in BY_TYPE:
        pytest.skip("refused by the type checker")
    Path("old.mp4").write_bytes(b"")
    Path("noted.mp4.json").write_bytes(b"{}")
    before = sorted(os.listdir())
    ran = animate("--json", *args)
    assert (ran.json["error"]["code"], ran.code) == (code, leave)
    assert not no_weights
    assert sorted(os.listdir()) == before


def test_prompts_that_are_refused(animate: Vivant, no_weights: list[Path]):
    assert animate("--json", prompt="half \ud83d").json["error"]["code"] == "E-PROMPT-TEXT"
    assert animate("--json", prompt="cat " * 300_000).json["error"]["code"] == "E-RECIPE-SIZE"
    assert not no_weights


def test_models_that_do_not_go_together(animate: Vivant, models: Path, tmp_path: Path, no_weights: list[Path]):
    import tiny

    def edited(name: str, **changes: Any) -> list[str]:
        folder = tmp_path / name
        folder.mkdir()
        for file in (models / "adapter").iterdir():
            (folder / file.name).symlink_to(file)
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps(config))
        return ["--json", "--motion-adapter", str(folder)]

    assert animate(*edited("blind", conv_in_channels=None)).json["error"]["code"] == "E-ADAPTER-NOT-PIA"
    assert animate(*edited("wide", block_out_channels=[32, 48])).json["error"]["code"] == "E-ADAPTER-FIT"
    assert animate(*edited("short", motion_max_seq_length=4)).json["error"]["code"] == "E-FRAMES-MAX"
    bare = edited("bare")
    for file in (tmp_path / "bare").glob("*.safetensors"):
        file.unlink()
    assert animate(*bare).json["error"]["code"] == "E-WEIGHTS-MISSING"
    assert animate("--json", "--base", str(models / "adapter")).json["error"]["code"] == "E-REPO-INDEX"
    assert tiny.ADAPTER["conv_in_channels"] == 9
    assert not no_weights


def test_good_input_reads_weights(animate: Vivant, no_weights: list[Path]):
    assert animate().code == Code.UNEXPECTED
    assert len(no_weights) == 1


def test_errors_are_sentences_without_control_characters(animate: Vivant):
    ran = animate("--motion", "\x1b[31mred\u202e", "--fps", "8")
    assert ran.code == Code.INPUT
    assert "Error [E-MOTION-NAME]" in ran.err
    assert "\x1b" not in ran.err
    assert "\u202e" not in ran.err
    assert ran.out == ""


def test_usage_errors_for_people(vivant_: Vivant):
    ran = vivant_("animate", "photo.png")
    assert (ran.code, ran.out) == (Code.INPUT, "")
    assert "--base" in ran.err or "PROMPT" in ran.err.upper()
    assert vivant_("anymate").code == Code.INPUT
    assert vivant_().code == Code.INPUT


# -------------------------------------------------------------------------------------------------------- bad results


def _decoding(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    real = vivant.api.decode
    monkeypatch.setattr(vivant.api, "decode", lambda vae, latents: (change(part) for part in real(vae, latents)))


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
    real = vivant.api.decode

    def broken(vae: Any, latents: Any) -> Any:
        if where == "latents":
            latents[0, 0, 1, 2, 3] = float("nan")
        else:
            tensor = vivant.api.torch.full((1, 3, 48, 64), float("nan"))
            monkeypatch.setattr(type(vae), "decode_tensor", lambda self, z: tensor)
        return real(vae, latents)

    monkeypatch.setattr(vivant.api, "decode", broken)
    ran = animate("--json")
    assert (ran.code, ran.json["error"]["code"]) == (Code.OUTPUT, "E-OUTPUT-NAN")
    assert os.listdir() == ["photo.png"]


def test_a_fault_of_ours_has_a_code_and_a_traceback(animate: Vivant, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vivant.api, "decode", lambda vae, latents: 1 / 0)
    ran = animate()
    assert ran.code == Code.UNEXPECTED
    assert "Traceback" in ran.err
    assert animate("--json").json["error"]["code"] == "E-UNEXPECTED"

    def full(vae: Any, latents: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")

    monkeypatch.setattr(vivant.api, "decode", full)
    assert animate("--json").json["error"]["code"] == "E-MEMORY"


# ------------------------------------------------------------------------------------------------------------- ending


def test_a_pressed_key_between_steps_cancels(animate: Vivant, monkeypatch: pytest.MonkeyPatch):
    def press(vae: Any, latents: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return pytest.fail("went on")

    monkeypatch.setattr(vivant.api, "decode", press)
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


def test_info_without_a_recipe_and_without_a_clip(vivant_: Vivant):
    assert vivant_("info", "photo.png", "--json").json["recipe"] is None
    assert vivant_("info", "photo.png").code == Code.OK
    ran = vivant_("info", "none.mp4", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (Code.LOAD, "E-CLIP-MISSING")


# --------------------------------------------------------------------------------------------------------------- redo


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
    from vivant.media.recipe import image_digest

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


def _deep() -> Any:
    value: Any = 1
    for _ in range(200):
        value = [value]
    return value


HOSTILE: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda r: r.update(kind="pickle"), "E-RECIPE-FIELD"),
    (lambda r: r.update(models=[]), "E-RECIPE-FIELD"),
    (lambda r: r.update(clip=7), "E-RECIPE-FIELD"),
    (lambda r: r.update(clip=True), "E-RECIPE-FIELD"),
    (lambda r: r.update(request="rm -rf"), "E-RECIPE-FIELD"),
    (lambda r: r.update(device=5), "E-RECIPE-FIELD"),
    (lambda r: r.update(device="abacus"), "E-DEVICE"),
    (lambda r: r.update(vivant=2), "E-RECIPE-SCHEME"),
    (lambda r: r["image"].update(sizes=[[1]]), "E-RECIPE-FIELD"),
    (lambda r: r["image"].update(sizes=[["a", "b"]]), "E-RECIPE-FIELD"),
    (lambda r: r["models"].update(base={"hub": "../../etc"}), "E-REPO-MISSING"),
    (lambda r: r["models"].update(base={"hub": "/etc/passwd"}), "E-REDO-MODEL"),
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
    (lambda r: r["request"].update(motion=_deep()), "E-RECIPE-FIELD" if CHECKED else "E-MOTION-CURVE"),
    (lambda r: r["request"].update(motion={"a": 1}), "E-MOTION-TYPE"),
    (lambda r: r["request"].update(prompt=5), "E-PROMPT-TYPE"),
    (lambda r: r["request"].update(free_init={"num_iters": 10**9}), "E-FREEINIT-ITERATIONS"),
    (lambda r: r["request"].update(free_init=[1]), "E-PARAM-TYPE"),
    (lambda r: r["request"].update(seed=-1), "E-RECIPE-FIELD"),
    (lambda r: r["request"].update(fit=["crop"]), "E-FIT"),
    (lambda r: r["request"].update(height=None), "E-RECIPE-FIELD"),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_recipes_of_strangers(vivant_: Vivant, no_weights: list[Path], number: int):
    change, code = HOSTILE[number]
    if CHECKED and code in BY_TYPE:
        pytest.skip("refused by the type checker")
    recipe = _recipe()
    change(recipe)
    Path("a.gif.json").write_text(json.dumps(recipe))
    ran = vivant_("redo", "a.gif.json", "--json")
    assert ran.json["error"]["code"] == code, ran.out
    assert ran.code in (Code.INPUT, Code.LOAD)
    assert not no_weights
    assert sorted(os.listdir()) == ["a.gif.json", "photo.png"]
