"""Everything that cannot be honoured is refused before weights are read, with a code and an exit code."""

import json
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import tiny
from commands import Vivant
from vivant.cli.screen import Code


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
    (["--frames", "33", "--no-windows"], "E-FRAMES-MAX", Code.INPUT),
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
    (["-o", "."], "E-OUTPUT-SUFFIX", Code.INPUT),
    (["-o", "./", "--num-videos", "2"], "E-OUTPUT-SUFFIX", Code.INPUT),
    (["-o", "..", "--num-videos", "2"], "E-OUTPUT-SUFFIX", Code.INPUT),
    (["-o", "x" * 300 + ".gif"], "E-OUTPUT-WRITE", Code.OUTPUT),
    (["-o", "x" * 300, "--num-videos", "2"], "E-OUTPUT-SUFFIX", Code.INPUT),
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
    Path("old.mp4").write_bytes(b"")
    Path("noted.mp4.json").write_bytes(b"{}")
    before = sorted(os.listdir())
    ran = animate("--json", *args)
    assert (ran.json["error"]["code"], ran.code) == (code, leave)
    assert not no_weights
    assert sorted(os.listdir()) == before


def test_a_folder_is_not_replaced_while_something_in_it_is_read_or_written(animate: Vivant, no_weights: list[Path]):
    Path("seq").mkdir()
    Path("photo.png").rename("seq/frame_00000.png")
    Path("seq/frame_00001.png").symlink_to(Path("seq/frame_00000.png").absolute())
    Path("beside.png").symlink_to("seq/frame_00000.png")
    for photo in ("seq/frame_00000.png", "seq/frame_00001.png", "beside.png"):
        ran = animate("--json", "-o", "seq/", "--overwrite", photo=photo)
        assert (ran.code, ran.json["error"]["code"]) == (Code.OUTPUT, "E-OUTPUT-TWICE"), photo
    Path("other").mkdir()
    for outputs in (["-o", "other/", "-o", "other/a.gif"], ["-o", "other/a.gif", "-o", "other/"]):
        ran = animate("--json", *outputs, "--overwrite", photo="beside.png")
        assert (ran.code, ran.json["error"]["code"]) == (Code.OUTPUT, "E-OUTPUT-TWICE"), outputs
    assert len(os.listdir("seq")) == 2
    assert not no_weights


def test_prompts_that_are_refused(animate: Vivant, no_weights: list[Path]):
    assert animate("--json", prompt="half \ud83d").json["error"]["code"] == "E-PROMPT-TEXT"
    assert animate("--json", prompt="cat " * 300_000).json["error"]["code"] == "E-RECIPE-SIZE"
    assert not no_weights


def test_models_that_do_not_go_together(animate: Vivant, models: Path, tmp_path: Path, no_weights: list[Path]):
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
    assert animate(*edited("short", motion_max_seq_length=4), "--no-windows").json["error"]["code"] == "E-FRAMES-MAX"
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
