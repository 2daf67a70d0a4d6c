"""The command line with the models that ship: nothing to be fetched, nothing to be said about models."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vivant import pocket
from vivant.cli import main
from vivant.media.recipe import read_recipe
from vivant.media.video import read_clip

QUICK = ["--frames", "4", "--steps", "2", "--seed", "5"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with Image.open(pocket.PICTURES["photo"]) as photo:
        photo.resize((90, 70)).save("photo.png")
    return tmp_path


def test_a_picture_and_a_sentence_suffice(capsys):
    assert main(["animate", "photo.png", "zoom in", "-o", "a.gif", *QUICK]) == 0
    said = capsys.readouterr().err
    assert "small model that ships" in said
    assert "--base SG161222/Realistic_Vision_V6.0_B1_noVAE" in said
    frames, _ = read_clip("a.gif")
    assert frames.shape == (4, 64, 64, 3)
    recipe = read_recipe("a.gif")
    assert recipe["models"]["base"] == {"shipped": "paper"}
    assert recipe["models"]["motion_adapter"] == {"shipped": "motion"}
    assert (recipe["request"]["guidance_scale"], recipe["request"]["negative_prompt"]) == (4.0, "")


def test_what_is_said_is_kept(capsys):
    more = ["--guidance", "1", "--size", "72x64", "--enlarge", "3", "--json"]
    assert main(["animate", "photo.png", "pan left", "-o", "a.gif", *QUICK, *more]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["recipe"]["request"]["guidance_scale"] == 1
    assert made["recipe"]["request"]["negative_prompt"] is None
    assert (made["width"], made["height"]) == (72, 64)
    assert read_clip("a.gif")[0].shape == (4, 192, 216, 3)
    assert read_recipe("a.gif")["enlarged"] == 3
    assert main(["redo", "a.gif", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same"] is True
    assert np.array_equal(read_clip("a.gif")[0], read_clip("a-redo.gif")[0])


def test_sixty_four_frames_with_a_turn_and_a_second_picture(capsys, folder):
    """Longer than the positions: made in windows, which is said; and made again from the recipe."""
    Image.open("photo.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("mirror.png")
    more = ["--frames", "64", "--steps", "1", "--guidance", "1", "--at", "40=pan left", "--keyframe", "48=mirror.png"]
    assert main(["animate", "photo.png", "pan right", "-o", "a.gif", *QUICK, *more]) == 0
    said = capsys.readouterr().err
    assert "Animating: 64 frames of 64 x 64 in 7 windows" in said
    assert "Note: 64 frames are made in 7 windows of 16" in said
    frames, _ = read_clip("a.gif")
    assert frames.shape == (64, 64, 64, 3)
    recipe = read_recipe("a.gif")
    assert recipe["request"]["windows"]["length"] == 16
    assert recipe["request"]["prompt_travel"] == [[40, "pan left"]]
    assert recipe["request"]["keyframes"] == [48]
    assert len(recipe["image"]["keyframes"][0]["digests"]) == 1
    assert main(["redo", "a.gif", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same"] is True
    Image.open("mirror.png").transpose(Image.Transpose.FLIP_TOP_BOTTOM).save("mirror.png")
    assert main(["redo", "a.gif", "--json", "--overwrite"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E-REDO-IMAGE"
    given = ["--image", "photo.png", "--image", "mirror.png"]
    assert main(["redo", "a.gif", "--json", "--overwrite", *given]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E-REDO-IMAGE"


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--motion-adapter", "x"], "E-BASE-NONE"),
        (["--enlarge", "0"], "E-ENLARGE"),
        (["--enlarge", "17"], "E-ENLARGE"),
        (["--frames", "33", "--no-windows"], "E-FRAMES-MAX"),
        (["--frames", "64", "--window-length", "33"], "E-FRAMES-MAX"),
        (["--no-windows", "--window-length", "8"], "E-WINDOWS-OFF"),
        (["--window-stride", "17"], "E-WINDOWS-STRIDE"),
        (["--at", "zoom out"], "E-TRAVEL"),
        (["--at", "2=a", "--at", "2=b"], "E-TRAVEL"),
        (["--at", "8=zoom out"], "E-TRAVEL"),
        (["--keyframe", "2"], "E-KEYFRAME"),
        (["--keyframe", "0=photo.png"], "E-KEYFRAME"),
        (["--keyframe", "2=photo.png", "--motion", "loop:small"], "E-KEYFRAME-LOOP"),
        (["--keyframe", "2=none.png"], "E-IMAGE-MISSING"),
        (["--keyframe", "2=a.gif"], "E-IMAGE-MISSING"),
        (["--guidance", "1", "--negative-prompt", "ugly"], "E-NEGATIVE-UNUSED"),
    ],
)
def test_what_cannot_be_is_refused(more, code, capsys):
    assert main(["animate", "photo.png", "zoom in", "-o", "a.gif", "--json", *more]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    assert not Path("a.gif").exists()


@pytest.mark.parametrize(
    "field",
    [
        {"shipped": "recogniser"},
        {"shipped": "../paper"},
        {"shipped": "../../..", "folder": "paper"},
        {"shipped": "../../..", "hub": "org/name"},
        {"shipped": 1},
        {},
    ],
)
def test_a_recipe_names_only_what_ships(field, capsys):
    assert main(["animate", "photo.png", "zoom in", "-o", "a.gif", *QUICK]) == 0
    recipe = read_recipe("a.gif")
    recipe["models"]["base"] = field
    Path("b.json").write_text(json.dumps(recipe))
    capsys.readouterr()
    assert main(["redo", "b.json", "-o", "c.gif", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E-RECIPE-FIELD"


# -------------------------------------------------------------------------------------------------- evaluation


def test_the_shipped_models_are_measured(capsys):
    Path("photos").mkdir()
    with Image.open(pocket.PICTURES["photo"]) as photo:
        photo.save("photos/one.jpg")
    command = ["eval", "pocket", "-o", "report", "--percent", "1", "--steps", "2"]
    assert main([*command, "--photos", "photos", "--parts", "first_frame, camera,swapped"]) == 0
    said = capsys.readouterr()
    assert "camera move named = measured, photos:" in said.out
    values = json.loads(Path("report/eval.json").read_text())
    assert len(values["figures"]) == 3 + 4 + 2
    assert {figure["num"] for figure in values["figures"]} <= {2, 4}
    assert values["percent"] == 1
    assert len(list(Path("report/clips").iterdir())) == 14 + 7 + 8
    assert main(command) == 4  # the report exists
    assert main([*command, "--parts", "camera,flying", "--overwrite"]) == 2
    assert "flying" in capsys.readouterr().err


def test_without_photos_the_report_says_so(capsys):
    assert (
        main(["eval", "pocket", "-o", "report", "--percent", "1", "--steps", "1", "--parts", "camera", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["figures"] == []
    assert "left out" in Path("report/index.html").read_text()


def test_a_folder_without_photos_is_refused(folder, capsys):
    (folder / "empty").mkdir()
    for name in ("empty", "none"):
        assert main(["eval", "pocket", "-o", "report", "--photos", name, "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "E-EVAL-PHOTOS"


def test_clips_are_measured():
    assert main(["animate", "photo.png", "zoom in", "-o", "a.gif", "-o", "b.mp4", *QUICK]) == 0
    assert main(["eval", "clips", "a.gif", "b.mp4", "-p", "photo.png", "-o", "report"]) == 0
    values = json.loads(Path("report/eval.json").read_text())
    assert [clip["file"] for clip in values["clips"]] == ["a.gif", "b.mp4"]
    assert "zoom in" in Path("report/index.html").read_text()
    assert main(["eval", "clips", "none.gif", "-p", "photo.png", "-o", "other"]) == 3


def test_animatebench_is_made_and_measured(capsys):
    for path in ("bench/configs", "bench/img/lyriel"):
        Path(path).mkdir(parents=True)
    Path("bench/configs/lyriel.yaml").write_text("prompts: [[zoom in, pan left]]\nn_prompt: ['']\n")
    with Image.open("photo.png") as photo:
        photo.resize((64, 64)).save("bench/img/lyriel/1.png")
    command = ["eval", "animatebench", "bench", "--clips", "clips", "-o", "report", "--steps", "2"]
    assert main([*command, "--base", "other=x"]) == 2
    assert main([*command, "--base", f"lyriel={pocket.base()}", "--motion-adapter", str(pocket.motion())]) == 0
    assert sorted(path.name for path in Path("clips/lyriel").iterdir() if path.suffix == ".mp4") == [
        "1-1.mp4",
        "1-2.mp4",
    ]
    values = json.loads(Path("report/eval.json").read_text())
    assert [clip["clip"] for clip in values["clips"]] == ["lyriel/1-1", "lyriel/1-2"]
    assert "lyriel: motion" in Path("report/table.md").read_text()
