"""Scores of files of clips: of one picture, or of AnimateBench."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vivant.api.animator import Animator
from vivant.errors import InputError, LoadError
from vivant.evaluate.animatebench import Case
from vivant.evaluate.clip_score import ClipScorer
from vivant.evaluate.clips import UNITS, Frames, Measures
from vivant.evaluate.figures import Figure
from vivant.evaluate.report import Found, Sample
from vivant.media.recipe import read_recipe
from vivant.media.still import fit, read_still
from vivant.media.video import read_clip

SUFFIXES = (".mp4", ".webm", ".gif", ".webp", ".apng")
NOTE = "Motion is measured by optical flow (OpenCV, dense inverse search). Definitions: docs/evaluation.md."


def score_files(
    files: Sequence[str], picture: str, prompt: str | None, cond_frame: int, scorer: ClipScorer | None
) -> Found:
    """Measure clips of one picture.

    Raises:
        InputError: E-EVAL-FRAME, E-EVAL-PROMPT, or what is wrong with the picture.
        LoadError: a clip that cannot be read.
    """
    still = read_still(picture).image
    rows: list[dict[str, Any]] = []
    samples: list[Sample] = []
    for number, file in enumerate(files):
        frames, rate = read_clip(file)
        said = prompt or _prompt_of(file)
        if scorer is not None and said is None:
            raise InputError("E-EVAL-PROMPT", f"{file} does not say its prompt.", "", "Give it with --prompt.")
        rows.append({"file": Path(file).name, **_scores(frames, still, said, cond_frame, scorer)})
        samples.append(Sample(f"{number:03}", f"{Path(file).name}: {said or ''}", frames, float(rate or 8)))
    return Found(_figures(rows), {"Clips": samples}, [NOTE], {"clips": rows})


def _prompt_of(file: str) -> str | None:
    """What the recipe of a clip says, where it has one with one prompt."""
    try:
        prompt = read_recipe(file)["request"]["prompt"]
    except (LoadError, KeyError, TypeError):
        return None
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    return prompt if isinstance(prompt, str) else None


def _scores(
    frames: Frames, picture: Image.Image, prompt: str | None, cond_frame: int, scorer: ClipScorer | None
) -> dict[str, float]:
    if len(frames) < 2:
        raise InputError("E-EVAL-FRAME", "A clip of one frame has no motion.", "", "Give clips of two frames or more.")
    if not 0 <= cond_frame < len(frames):
        raise InputError("E-EVAL-FRAME", f"There is no frame {cond_frame} in a clip of {len(frames)}.")
    height, width = frames.shape[1:3]
    brought = np.asarray(fit(picture, width, height))
    scores = asdict(Measures.of(frames, brought, cond_frame))
    if scorer is not None and prompt is not None:
        found = asdict(scorer.score(frames, brought, prompt, cond_frame))
        scores |= {f"CLIP {name.replace('_', ' ')}": value for name, value in found.items()}
    return scores


def _figures(rows: Sequence[Mapping[str, Any]], prefix: str = "") -> list[Figure]:
    """The mean of every number over clips."""
    names = [name for name, value in rows[0].items() if isinstance(value, float)]
    return [Figure.mean(prefix + name, [row[name] for row in rows], UNITS.get(name, "")) for name in names]


def bases_of(given: Sequence[str], cases: Sequence[Case]) -> dict[str, str]:
    """MODEL=BASE as typed.

    Raises:
        InputError: E-EVAL-BASE.
    """
    models = sorted({case.model for case in cases})
    bases: dict[str, str] = {}
    for text in given:
        model, _, base = text.partition("=")
        if model not in models or not base or model in bases:
            raise InputError(
                "E-EVAL-BASE",
                f"--base is {text!r}.",
                "",
                f"Give MODEL=FOLDER or MODEL=HUB-ID, once a model, for one of {', '.join(models)}.",
            )
        bases[model] = base
    return bases


def make_missing(
    cases: Sequence[Case],
    clips: Path,
    bases: Mapping[str, str],
    motion_adapter: str | None,
    settings: Mapping[str, Any],
    offline: bool,
    say: Callable[[str], None],
) -> None:
    """Make the clips of the given bases that are not there; one base is in memory at a time."""
    for model, base in bases.items():
        todo = [case for case in cases if case.model == model and _file_of(clips, case) is None]
        if not todo:
            continue
        say(f"{model}: making {len(todo)} clips.")
        animator = Animator.from_pretrained(base, motion_adapter, local_files_only=offline)
        for case in todo:
            request: dict[str, Any] = {**settings}
            if case.negative is not None:
                request["negative_prompt"] = case.negative
            result = animator.animate(case.picture, case.prompt, **request)
            target = clips / f"{case.name}.mp4"
            target.parent.mkdir(parents=True, exist_ok=True)
            result.save(target)
            say(f"  {case.name}: {case.prompt}")


def _file_of(clips: Path, case: Case) -> Path | None:
    """The clip of a case, in whatever format it is."""
    names = [clips / f"{case.name}{suffix}" for suffix in SUFFIXES]
    return next((path for path in names if path.is_file()), None)


def score_bench(cases: Sequence[Case], clips: Path, scorer: ClipScorer | None) -> Found:
    """Measure all clips of a benchmark that are there: over all, and for every model; what is missing is said.

    Raises:
        LoadError: E-BENCH without any clip.
    """
    rows: list[dict[str, Any]] = []
    samples: dict[str, list[Sample]] = {}
    for case in cases:
        path = _file_of(clips, case)
        if path is None:
            continue
        frames, rate = read_clip(path)
        scores = _scores(frames, read_still(str(case.picture)).image, case.prompt, 0, scorer)
        rows.append({"clip": case.name, "model": case.model, **scores})
        sample = Sample(case.name.replace("/", "-"), case.prompt, frames, float(rate or 8))
        samples.setdefault(case.model, []).append(sample)
    if not rows:
        raise LoadError(
            "E-BENCH", f"{clips} holds no clip of the benchmark.", "", f"One is named {cases[0].name}.mp4, for example."
        )
    figures = _figures(rows)
    for model in samples:
        figures += _figures([row for row in rows if row["model"] == model], f"{model}: ")
    notes = [NOTE]
    if len(rows) < len(cases):
        notes.append(f"{len(cases) - len(rows)} of {len(cases)} clips are missing and counted nowhere.")
    return Found(figures, samples, notes, {"clips": rows})
