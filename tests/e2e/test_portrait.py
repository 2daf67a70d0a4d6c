"""`vivant portrait`: from a face, its identity and a sentence to a file, and what is refused before."""

import dataclasses
import inspect
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_repo
import vivant
import vivant.api.portrait
from commands import CONSISID_ID, Vivant
from vivant.cli import portrait as options
from vivant.cli.screen import Code
from vivant.media.frames import frames_hash
from vivant.media.recipe import read_recipe
from vivant.media.video import ClipWriter, probe, read_clip
from vivant.request import ConsisIDRequest

HELD = ["anna.png", "anna.safetensors"]

# ---------------------------------------------------------------------------------------------------------- making


def test_a_portrait_of_the_right_size_count_and_rate(portrait: Vivant):
    ran = portrait("-o", "a.apng", "--fps", "12.5")
    assert ran.code == Code.OK, ran.err
    assert ran.out.split() == ["a.mp4", "a.apng"]
    for name in ran.out.split():
        found = probe(name)
        assert (found.width, found.height, found.num_frames, found.fps) == (80, 48, 9, 12.5), name
        frames, _ = read_clip(name)
        assert frames.std() > 5
    recipe = read_recipe("a.mp4")
    assert recipe["kind"] == "consisid"
    assert recipe["request"]["seed"] == 7
    assert frames_hash(read_clip("a.apng")[0]) == recipe["frames_hash"] == recipe["frames_hashes"][0]
    assert "Filming: 9 frames of 80 x 48, 2 steps, seed 7." in ran.err
    assert "float32: as asked" in ran.err


def test_film_is_encoded_while_it_is_decoded(portrait: Vivant, monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []
    real = ClipWriter.write
    monkeypatch.setattr(ClipWriter, "write", lambda self, frames: order.append("written") or real(self, frames))
    _decoding(monkeypatch, lambda part: order.append("decoded") or part)
    ran = portrait("--frames", "17", "--num-videos", "2", output="a.apng")
    assert ran.code == Code.OK, ran.err
    assert order == ["decoded", "written"] * 4
    for k in range(2):
        recipe = read_recipe(f"a-{k}.apng")
        assert frames_hash(read_clip(f"a-{k}.apng")[0]) == recipe["frames_hash"] == recipe["frames_hashes"][k]


def test_a_file_that_cannot_be_written_does_not_keep_another_from_it(portrait: Vivant, monkeypatch: pytest.MonkeyPatch):
    real = ClipWriter.write

    def write(self: ClipWriter, frames: Any) -> None:
        if self._suffix == ".mp4":
            raise vivant.OutputError("E-OUTPUT-WRITE", "The disk is full.")
        real(self, frames)

    monkeypatch.setattr(ClipWriter, "write", write)
    ran = portrait("--json", "-o", "a.gif")
    assert ran.code == Code.OUTPUT
    assert [shown.get("error", {}).get("code") for shown in ran.json["outputs"]] == ["E-OUTPUT-WRITE", None]
    assert sorted(os.listdir()) == ["a.gif", "a.gif.json", *HELD]


def test_json_is_one_object_and_nothing_else(portrait: Vivant, faces: Path):
    ran = portrait("--json", "--num-videos", "2", output="a.webp")
    assert (ran.code, ran.err) == (Code.OK, "")
    assert [shown["path"] for shown in ran.json["outputs"]] == ["a-0.webp", "a-1.webp"]
    assert (ran.json["width"], ran.json["height"], ran.json["frames"], ran.json["fps"]) == (80, 48, 9, 8.0)
    assert [shown["frames_hash"] for shown in ran.json["outputs"]] == ran.json["recipe"]["frames_hashes"]
    assert ran.json["outputs"][0]["frames_hash"] != ran.json["outputs"][1]["frames_hash"]
    assert (ran.json["report"]["findings"], ran.json["warnings"]) == ([], [])
    assert read_recipe("a-1.webp")["clip"] == 1
    for text in (ran.out, json.dumps(read_recipe("a-0.webp"))):
        assert not any(found in text for found in (str(Path.cwd()), str(faces), "anna"))


def test_info_shows_the_recipe(portrait: Vivant, vivant_: Vivant):
    portrait()
    shown = vivant_("info", "a.mp4")
    assert shown.code == Code.OK
    for line in ("kind: consisid", "  use_dynamic_cfg: False", "identity:", "  digests: sha256:"):
        assert f"\n{line}" in shown.out
    assert vivant_("info", "a.mp4", "--json").json["recipe"] == read_recipe("a.mp4")


def test_a_model_from_the_hub_cache(portrait: Vivant, faces: Path):
    ran = portrait("--model", CONSISID_ID, "--cache-dir", str(faces / "cache"), "--offline", output="a.gif")
    assert ran.code == Code.OK, ran.err
    assert read_recipe("a.gif")["models"]["model"] == {"hub": CONSISID_ID, "revision": tiny_repo.COMMIT}


def test_another_size_is_made_enlarged_and_with_a_note(portrait: Vivant):
    ran = portrait("--json", "--size", "64x32", "--frames", "5", "--enlarge", "2", output="a.webp")
    assert ran.code == Code.OK, ran.out
    assert [text for text in ran.json["report"]["notes"] if "W-OFF-SIZE" in text]  # warned once, noted every time
    found = probe("a.webp")
    assert (found.width, found.height, found.num_frames) == (128, 64, 5)
    assert (ran.json["width"], ran.json["height"]) == (64, 32)


def test_the_progress_bar_counts_frames_too(portrait: Vivant, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's word for a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    bar = portrait("--steps", "3", "--num-videos", "2").err
    assert re.search(r"Decoding .* 18/18", bar), bar


# ----------------------------------------------------------------------------------------- the request's vocabulary

EVERY = {
    "prompt": ([], "a sea"),
    "negative_prompt": (["--negative-prompt", "dark"], "dark"),
    "num_frames": (["--frames", "3"], 3),
    "height": (["--size", "64x32"], 32),
    "width": (["--width", "64"], 64),
    "num_inference_steps": (["--steps", "3"], 3),
    "guidance_scale": (["--guidance", "4"], 4.0),
    "use_dynamic_cfg": (["--dynamic-guidance"], True),
    "eta": (["--eta", "0"], 0.0),
    "max_sequence_length": (["--max-sequence-length", "5"], 5),
    "num_videos_per_prompt": (["--num-videos", "3"], 3),
    "seed": (["--seed", "9"], 9),
    "fps": (["--fps", "10"], 10.0),
}
NOT_OF_THE_REQUEST = {
    *("photo", "more_photos", "face", "save_face", "identity", "output", "overwrite", "enlarge", "json", "size"),
    *("model", "loras", "dtype", "device", "variant", "revision", "cache_dir", "offline", "residency"),
}


def test_the_options_are_the_fields_of_the_request():
    fields = {field.name for field in dataclasses.fields(ConsisIDRequest)}
    assert set(options.portrait.__annotations__) - {"return"} - NOT_OF_THE_REQUEST == fields == EVERY.keys()


@pytest.mark.parametrize("field", EVERY)
def test_every_field_is_reached(portrait: Vivant, monkeypatch: pytest.MonkeyPatch, field: str):
    asked: list[dict[str, Any]] = []

    def stop(self: Any, image: Any, *, identity: Any, progress: Any, cancel: Any, on_frames: Any, **fields: Any) -> Any:
        asked.append(ConsisIDRequest(**fields).to_json())
        raise vivant.Cancelled("E-CANCELLED", "Enough is known.")

    monkeypatch.setattr(vivant.api.portrait.Portrait, "film", stop)
    args, value = EVERY[field]
    portrait(*args)
    assert asked[0][field] == value


def test_defaults_are_the_request_s_own():
    defaults = {name: p.default for name, p in inspect.signature(options.portrait).parameters.items()}
    request = ConsisIDRequest()
    depends_on_the_model = ("num_frames", "max_sequence_length", "num_inference_steps", "guidance_scale")
    assert {defaults[name] for name in depends_on_the_model} == {None}
    for field in dataclasses.fields(ConsisIDRequest):
        if field.name not in ("prompt", "seed", *depends_on_the_model):
            assert defaults[field.name] == getattr(request, field.name), field.name
    assert options.seed_of(defaults["seed"]) == request.seed


# -------------------------------------------------------------------------------------------------------- bad results


def _decoding(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    real = vivant.api.portrait.decode
    monkeypatch.setattr(vivant.api.portrait, "decode", lambda *args: (change(part) for part in real(*args)))


@pytest.mark.parametrize("kind", ["black", "frozen"])
def test_a_bad_clip_is_not_written(portrait: Vivant, monkeypatch: pytest.MonkeyPatch, kind: str):
    _decoding(monkeypatch, lambda part: part * 0 + (0.5 if kind == "frozen" else 0))
    ran = portrait("--json", "-o", "a.gif")
    assert ran.code == Code.OUTPUT
    assert ran.json["error"]["code"] == "E-OUTPUT-BAD"
    assert ran.json["report"]["findings"][0]["code"] == f"W-OUTPUT-{kind.upper()}"
    assert sorted(os.listdir()) == HELD


def test_a_bad_clip_does_not_keep_another_from_being_written(portrait: Vivant, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []

    def first_black(part: torch.Tensor) -> torch.Tensor:
        seen.append(len(part))
        return part * 0 if sum(seen) <= 9 else part

    _decoding(monkeypatch, first_black)
    ran = portrait("--json", "--num-videos", "2")
    assert ran.code == Code.OUTPUT
    assert [shown.get("error", {}).get("code") for shown in ran.json["outputs"]] == ["E-OUTPUT-BAD", None]
    assert sorted(os.listdir()) == ["a-1.mp4", "a-1.mp4.json", *HELD]


def test_nan_is_not_written(portrait: Vivant, monkeypatch: pytest.MonkeyPatch):
    real = vivant.api.portrait.decode

    def broken(vae: Any, latents: torch.Tensor, num_frames: int) -> Any:
        latents[0, 1, 2, 3, 4] = float("nan")
        return real(vae, latents, num_frames)

    monkeypatch.setattr(vivant.api.portrait, "decode", broken)
    ran = portrait("--json")
    assert (ran.code, ran.json["error"]["code"]) == (Code.OUTPUT, "E-OUTPUT-NAN")
    assert sorted(os.listdir()) == HELD


def test_a_fault_while_decoding_leaves_nothing(
    portrait: Vivant, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
):
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def half(part: torch.Tensor) -> torch.Tensor:
        if half.done:  # pyright: ignore[reportFunctionMemberAccess]
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")
        half.done = True  # pyright: ignore[reportFunctionMemberAccess]
        return part

    half.done = False  # pyright: ignore[reportFunctionMemberAccess]
    _decoding(monkeypatch, half)
    ran = portrait("--json", "-o", "a.gif", "--num-videos", "2")
    assert (ran.code, ran.json["error"]["code"]) == (Code.UNEXPECTED, "E-MEMORY")
    assert sorted(os.listdir()) == HELD
    assert list(scratch.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ refused

REFUSED: list[tuple[Sequence[str], str, Code]] = [
    (["--frames", "0"], "E-FRAMES", Code.INPUT),
    (["--frames", "1000000000"], "E-FRAMES", Code.INPUT),
    (["--steps", "0"], "E-STEPS", Code.INPUT),
    (["--steps", "1001"], "E-STEPS", Code.INPUT),
    (["--guidance", "-1"], "E-GUIDANCE", Code.INPUT),
    (["--guidance", "nan"], "E-GUIDANCE", Code.INPUT),
    (["--guidance", "1", "--negative-prompt", "dark"], "E-NEGATIVE-UNUSED", Code.INPUT),
    (["--eta", "0.5"], "E-ETA-UNUSED", Code.INPUT),
    (["--eta", "2"], "E-ETA", Code.INPUT),
    (["--max-sequence-length", "8"], "E-PROMPT-LENGTH", Code.INPUT),
    (["--max-sequence-length", "0"], "E-PROMPT-LENGTH", Code.INPUT),
    (["--num-videos", "0"], "E-NUM-VIDEOS", Code.INPUT),
    (["--seed", "-2"], "E-SEED", Code.INPUT),
    (["--seed", "seven"], "E-SEED", Code.INPUT),
    (["--seed", "1,2"], "E-GENERATORS", Code.INPUT),
    (["--size", "72x48"], "E-SIZE", Code.INPUT),
    (["--size", "64"], "E-SIZE", Code.INPUT),
    (["--size", "64x48", "--width", "64"], "E-SIZE-TWICE", Code.INPUT),
    (["--fps", "0"], "E-FPS", Code.INPUT),
    (["--enlarge", "99"], "E-ENLARGE", Code.INPUT),
    (["--device", "abacus"], "E-DEVICE", Code.INPUT),
    (["--model", "no/such/folder"], "E-REPO-MISSING", Code.LOAD),
    (["--model", "no/such", "--offline"], "E-REPO-OFFLINE", Code.LOAD),
    (["--model", "anna.png"], "E-REPO-FILE", Code.LOAD),
    (["--variant", "fp16"], "E-WEIGHTS-VARIANT", Code.LOAD),
    (["-o", "a.avi"], "E-OUTPUT-SUFFIX", Code.INPUT),
    (["-o", "nowhere/a.mp4"], "E-OUTPUT-FOLDER", Code.OUTPUT),
    (["-o", "anna.png"], "E-OUTPUT-EXISTS", Code.OUTPUT),
    (["-o", "anna.png", "--overwrite"], "E-OUTPUT-TWICE", Code.OUTPUT),
    (["-o", "./a.mp4"], "E-OUTPUT-TWICE", Code.OUTPUT),
    (["-o", "old.mp4"], "E-OUTPUT-EXISTS", Code.OUTPUT),
    (["--identity", "none.safetensors"], "E-IDENTITY-MISSING", Code.INPUT),
    (["--identity", "anna.png"], "E-IDENTITY-FILE", Code.INPUT),
    (["--identity", "wide.safetensors"], "E-IDENTITY-SHAPE", Code.INPUT),
    (["--identity", "half.safetensors"], "E-IDENTITY-TENSORS", Code.INPUT),
    (["--motion", "5"], "E-USAGE", Code.INPUT),
    (["--frames", "many"], "E-USAGE", Code.INPUT),
]


@pytest.mark.parametrize(
    ("args", "code", "leave"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_parameters_that_are_refused(
    portrait: Vivant, no_weights: list[Path], args: Sequence[str], code: str, leave: Code
):
    Path("old.mp4").write_bytes(b"")
    tensors = load_file("anna.safetensors")
    save_file({**tensors, "id_cond": torch.zeros(1, 1280)}, "wide.safetensors")
    save_file({"id_cond": tensors["id_cond"]}, "half.safetensors")
    before = sorted(os.listdir())
    ran = portrait("--json", *args)
    assert (ran.json["error"]["code"], ran.code) == (code, leave)
    assert not no_weights
    assert sorted(os.listdir()) == before


def test_each_command_names_the_other(
    portrait: Vivant, animate: Vivant, faces: Path, models: Path, no_weights: list[Path]
):
    ran = portrait("--json", "--model", str(models / "base"))
    assert (ran.code, ran.json["error"]["code"]) == (Code.LOAD, "E-REPO-FAMILY")
    assert "vivant animate" in ran.json["error"]["fix"]
    ran = animate("--json", "--base", str(faces / "consisid"), photo="anna.png")
    assert (ran.code, ran.json["error"]["code"]) == (Code.LOAD, "E-REPO-FAMILY")
    assert "vivant portrait" in ran.json["error"]["fix"]
    assert portrait("--json", "--model", str(models / "adapter")).json["error"]["code"] == "E-REPO-INDEX"
    assert not no_weights


def test_good_input_reads_weights(portrait: Vivant, no_weights: list[Path]):
    assert portrait().code == Code.UNEXPECTED
    assert len(no_weights) == 1
