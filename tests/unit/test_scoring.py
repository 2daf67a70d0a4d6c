"""Scores of files of clips, and AnimateBench's layout."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vivant.errors import InputError, LoadError
from vivant.evaluate import report, scoring
from vivant.evaluate.animatebench import read
from vivant.evaluate.clips import Measures
from vivant.media.still import fit
from vivant.media.video import write_clip

PROMPTS = "prompts:\n- - one\n  - two\n- - three\nn_prompt:\n- ugly\n- blurred\n"


def clip(num: int = 3, h: int = 32, w: int = 40, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (h // 8, w // 8, 3), dtype=np.uint8)
    still = np.asarray(Image.fromarray(small).resize((w, h), Image.Resampling.BICUBIC))
    return np.stack([np.roll(still, i, axis=1) for i in range(num)])


def bench(folder: Path, text: str = PROMPTS, suffixes: tuple[str, ...] = (".png", ".jpg")) -> Path:
    for path in (folder / "configs", folder / "img" / "lyriel"):
        path.mkdir(parents=True)
    (folder / "configs" / "lyriel.yaml").write_text(text)
    for number, suffix in enumerate(suffixes, 1):
        Image.fromarray(clip(1, seed=number)[0]).save(folder / "img" / "lyriel" / f"{number}{suffix}")
    return folder


def test_the_layout_of_animatebench(tmp_path):
    cases = read(bench(tmp_path))
    assert [(case.name, case.prompt, case.negative) for case in cases] == [
        ("lyriel/1-1", "one", "ugly"),
        ("lyriel/1-2", "two", "ugly"),
        ("lyriel/2-1", "three", "blurred"),
    ]
    assert [case.picture.name for case in cases] == ["1.png", "1.png", "2.jpg"]


def test_one_list_of_prompts_is_for_all_pictures(tmp_path):
    cases = read(bench(tmp_path, "prompts: [one, two]"))
    assert [case.prompt for case in cases] == ["one", "two"] * 2
    assert {case.negative for case in cases} == {None}


@pytest.mark.parametrize(
    "text",
    [
        "prompts:\n- [one]\n- [two]\n- [three]",  # three lists for two pictures
        "prompts: one",
        "prompts: [[1], [2]]",
        "prompts: []",
        "other: 1",
        "- a",
        "prompts: [",
        "prompts: [one]\nn_prompt: ugly",  # its letters would be taken one by one
        "prompts: !!python/object/apply:os.getcwd []",
    ],
)
def test_configs_that_make_no_sense_are_refused(tmp_path, text):
    with pytest.raises(LoadError, match="E-BENCH"):
        read(bench(tmp_path, text))


def test_a_folder_that_is_no_benchmark_is_refused(tmp_path):
    with pytest.raises(LoadError, match="E-BENCH"):
        read(tmp_path)


def test_clips_of_a_benchmark_are_measured_where_they_are(tmp_path):
    cases, clips = read(bench(tmp_path / "bench")), tmp_path / "clips"
    with pytest.raises(LoadError, match="E-BENCH"):
        scoring.score_bench(cases, clips, None)
    (clips / "lyriel").mkdir(parents=True)
    for name in ("1-1.gif", "2-1.mp4"):
        write_clip(clip(), clips / "lyriel" / name, 8)
    found = scoring.score_bench(cases, clips, None)
    assert [row["clip"] for row in found.facts["clips"]] == ["lyriel/1-1", "lyriel/2-1"]
    assert {figure.num for figure in found.figures} == {2}
    assert any("1 of 3 clips are missing" in note for note in found.notes)
    assert [figure.name for figure in found.figures if ":" in figure.name] == [
        f"lyriel: {name}" for name in Measures.__dataclass_fields__
    ]


def test_bases_are_named_with_their_model(tmp_path):
    cases = read(bench(tmp_path))
    assert scoring.bases_of(["lyriel=org/name"], cases) == {"lyriel": "org/name"}
    for given in (["other=x"], ["lyriel"], ["lyriel="], ["lyriel=a", "lyriel=b"]):
        with pytest.raises(InputError, match="E-EVAL-BASE"):
            scoring.bases_of(given, cases)


def test_files_are_measured_against_their_picture(tmp_path):
    frames = clip()
    picture = Image.fromarray(frames[0]).resize((80, 64))
    picture.save(tmp_path / "p.png")
    write_clip(frames, tmp_path / "a.apng", 8)
    found = scoring.score_files([str(tmp_path / "a.apng")], str(tmp_path / "p.png"), None, 0, None)
    expected = Measures.of(frames, np.asarray(fit(picture, 40, 32)))
    row = found.facts["clips"][0]
    assert {name: row[name] for name in Measures.__dataclass_fields__} == pytest.approx(expected.__dict__)
    with pytest.raises(InputError, match="E-EVAL-FRAME"):
        scoring.score_files([str(tmp_path / "a.apng")], str(tmp_path / "p.png"), None, 3, None)
    write_clip(frames[:1], tmp_path / "one.apng", 8)
    with pytest.raises(InputError, match="E-EVAL-FRAME"):
        scoring.score_files([str(tmp_path / "one.apng")], str(tmp_path / "p.png"), None, 0, None)


@pytest.mark.unchecked  # the score is never asked for
def test_a_clip_score_needs_a_prompt(tmp_path):
    Image.fromarray(clip()[0]).save(tmp_path / "p.png")
    write_clip(clip(), tmp_path / "a.gif", 8)
    with pytest.raises(InputError, match="E-EVAL-PROMPT"):
        scoring.score_files([str(tmp_path / "a.gif")], str(tmp_path / "p.png"), None, 0, object())
    write_clip(clip(), tmp_path / "b.gif", 8, recipe={"vivant": 1, "request": {"prompt": ["a cat"]}})
    assert scoring._prompt_of(str(tmp_path / "b.gif")) == "a cat"


def test_a_report_is_written_whole(tmp_path):
    frames = clip()
    Image.fromarray(frames[0]).save(tmp_path / "p.png")
    write_clip(frames, tmp_path / "a.gif", 8)
    found = scoring.score_files([str(tmp_path / "a.gif")], str(tmp_path / "p.png"), "a <b>", 0, None)
    page = report.write(tmp_path / "out", "Clips", found, overwrite=False)
    values = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert [figure["name"] for figure in values["figures"]] == list(Measures.__dataclass_fields__)
    assert values["figures"][0]["low"] is None  # one clip has no interval
    assert "| fidelity |" in (tmp_path / "out" / "table.md").read_text()
    assert "clips/000.gif" in page.read_text()
    with Image.open(tmp_path / "out" / "clips" / "000.gif") as shown:
        assert min(shown.size) >= report.CELL
    with pytest.raises(Exception, match="E-OUTPUT-EXISTS"):
        report.write(tmp_path / "out", "Clips", found, overwrite=False)
