"""`vivant eval`: measure clips, the pocket models, and any models on AnimateBench."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Exit, Option

from vivant.cli.options import choice_of
from vivant.cli.screen import Code, Screen, Sections, print_json, reporting
from vivant.errors import InputError, OutputError

if TYPE_CHECKING:
    from vivant.evaluate.clip_score import ClipScorer
    from vivant.evaluate.report import Found

app = typer.Typer(help="Measure clips and models. The definitions are in docs/evaluation.md.", no_args_is_help=True)

Output = Annotated[Path, Option("--output", "-o", help="Folder for eval.json, table.md, index.html and clips/.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace files that exist.")]
Json = Annotated[bool, Option("--json", help="Print one JSON object, and nothing else.")]
Clip = Annotated[
    str | None,
    Option("--clip", help="CLIP model for CLIP scores: a folder or a hub id; there are none if not given."),
]
Offline = Annotated[bool, Option("--offline", help="Never touch the network.")]


@app.command(cls=Sections)
def pocket(
    output: Output,
    photos: Annotated[
        Path | None,
        Option(help="Folder of photos that training never saw; without it the camera moves over photos are left out."),
    ] = None,
    parts: Annotated[str | None, Option(help="Parts to run, with commas between them; all if not given.")] = None,
    percent: Annotated[int, Option(help="How many of the clips to make, 1 to 100.")] = 100,
    models: Annotated[
        Path | None, Option(help="Folder with paper/, neon/, motion/ and recogniser/; the shipped ones if not given.")
    ] = None,
    guidance_scale: Annotated[float | None, Option("--guidance", help="In place of the models' own.")] = None,
    num_inference_steps: Annotated[int, Option("--steps", help="Denoising steps.")] = 25,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Measure the small models that ship, on scenes and photos that they never saw."""
    with reporting(json) as screen:
        check_folder(output, overwrite)
        from vivant.evaluate.flow import opencv
        from vivant.evaluate.pocket import PARTS, Models, read_photos, run
        from vivant.pocket import FOLDER

        opencv()
        names = tuple(PARTS) if parts is None else tuple(part.strip() for part in parts.split(","))
        strange = [name for name in names if name not in PARTS]
        if strange or not 1 <= percent <= 100:
            what = f"There is no part {strange[0]!r}." if strange else f"--percent is {percent}."
            raise InputError("E-EVAL-PART", what, "", f"Parts are {', '.join(PARTS)}; percent is 1 to 100.")
        pictures = [] if photos is None else read_photos(photos)
        settings: dict[str, Any] = {"num_inference_steps": num_inference_steps}
        if guidance_scale is not None:
            settings["guidance_scale"] = guidance_scale
        screen.say("Loading the models.")
        loaded = Models.load(models or FOLDER, **settings)
        found = run(loaded, names, percent, pictures, screen.say)
        finish(screen, output, "The pocket models, measured", found, overwrite)


@app.command(cls=Sections)
def clips(
    files: Annotated[list[str], Argument(help="Clips: files or folders of PNG frames.")],
    picture: Annotated[str, Option("--picture", "-p", help="The picture that they were made of.")],
    output: Output,
    prompt: Annotated[
        str | None, Option(help="What was to happen; what each clip's own recipe says if not given.")
    ] = None,
    cond_frame: Annotated[int, Option("--cond-frame", help="The frame that is the picture, from 0.")] = 0,
    clip: Clip = None,
    offline: Offline = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Measure clips that were made of one picture, by whatever program."""
    with reporting(json) as screen:
        check_folder(output, overwrite)
        from vivant.evaluate.flow import opencv
        from vivant.evaluate.scoring import score_files

        opencv()
        scorer = scorer_of(clip, offline, screen)
        found = score_files(files, picture, prompt, cond_frame, scorer)
        finish(screen, output, "Clips, measured", found, overwrite)


@app.command(cls=Sections)
def animatebench(
    folder: Annotated[Path, Argument(help="AnimateBench: configs/MODEL.yaml and img/MODEL/1.png …")],
    clips: Annotated[Path, Option(help="Clips as MODEL/PICTURE-PROMPT.mp4 (or .gif, .webm), such as lyriel/1-3.mp4.")],
    output: Output,
    base: Annotated[
        list[str] | None,
        Option(
            help="MODEL=FOLDER or MODEL=HUB-ID: a base with which clips that are missing are made. Once a model.",
        ),
    ] = None,
    motion_adapter: Annotated[str | None, Option("--motion-adapter", help="As for `vivant animate`.")] = None,
    motion: Annotated[str, Option(help="As for `vivant animate`.")] = "animate:moderate",
    num_inference_steps: Annotated[int, Option("--steps", help="Denoising steps.")] = 25,
    seed: Annotated[int, Option(help="Seed of every clip that is made.")] = 0,
    clip: Clip = None,
    offline: Offline = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Measure clips of AnimateBench, and make those that are missing where a base is given."""
    with reporting(json) as screen:
        check_folder(output, overwrite)
        from vivant.evaluate.animatebench import read
        from vivant.evaluate.flow import opencv
        from vivant.evaluate.scoring import bases_of, make_missing, score_bench

        opencv()
        cases = read(folder)
        bases = bases_of(base or [], cases)
        scorer = scorer_of(clip, offline, screen)
        settings = {"motion": motion, "num_inference_steps": num_inference_steps, "seed": seed}
        make_missing(cases, clips, bases, motion_adapter, settings, offline, screen.say)
        finish(screen, output, "AnimateBench", score_bench(cases, clips, scorer), overwrite)


@app.command(cls=Sections)
def identity(
    photo: Annotated[str, Argument(help="Photo of the person: a path or an http(s) address.")],
    clips: Annotated[list[str], Argument(help="Clips: files or folders of PNG frames.")],
    face: Annotated[
        str,
        Option(
            help="Which face of the photo is meant: largest, center, a number from left to right (0, 1, …), or "
            "LEFT,TOP,RIGHT,BOTTOM in pixels."
        ),
    ] = "largest",
    faces: Annotated[
        Path | None,
        Option(
            help="Folder of antelopev2 with scrfd_10g_bnkps.onnx and glintr100.onnx, for FaceSim-Arc; "
            "the small networks that ship if not given."
        ),
    ] = None,
    every: Annotated[int, Option(help="Look at one frame of so many.")] = 1,
    json: Json = False,
) -> None:
    """Say how much the person in clips is the person in a photo.

    Numbers of two recognisers cannot be compared: what is printed names the space that they are of. The exit code is 6
    if no face was found in a clip.
    """
    with reporting(json) as screen:
        choice: Any = choice_of(face)
        from vivant.evaluate.identity import Stack, check_clips, check_every, likeness

        check_every(every)
        check_clips(clips)
        stack = Stack.shipped() if faces is None else Stack.antelope(faces)
        person = stack.person(photo, choice)
        found = [likeness(stack, person, clip, every) for clip in clips]
        for one in found:
            screen.show(f"{one.file}: {one.summary()}")
        if screen.json:
            facts = {"photo": photo, "space": stack.space, "threshold": stack.same_person, "every": every}
            print_json({**facts, "clips": [one.to_json() for one in found], "warnings": screen.warnings})
    if any(one.grades for one in found):
        raise Exit(Code.GRADED)


def scorer_of(source: str | None, offline: bool, screen: Screen) -> "ClipScorer | None":
    """The CLIP model, if one is wanted."""
    if source is None:
        return None
    from vivant.evaluate.clip_score import ClipScorer

    screen.say("Loading CLIP.")
    return ClipScorer.from_pretrained(source, local_files_only=offline)


def check_folder(output: Path, overwrite: bool) -> None:
    """Refuse (E-OUTPUT-EXISTS) an evaluation that is there, before any work."""
    if (output / "eval.json").exists() and not overwrite:
        raise OutputError(
            "E-OUTPUT-EXISTS", f"{output / 'eval.json'} exists.", "", "Choose another folder, or add --overwrite."
        )


def finish(screen: Screen, output: Path, title: str, found: "Found", overwrite: bool) -> None:
    """Write the report and say what it holds."""
    from vivant.evaluate import report

    page = report.write(output, title, found, overwrite=overwrite)
    if screen.json:
        print_json({"output": str(output), "figures": [f.to_json() for f in found.figures], **found.facts})
        return
    for figure in found.figures:
        name, value, interval, num, asked, _ = figure.row()
        screen.show(f"{name}: {value} ({interval}; {num} clips){f', asked {asked}' if asked else ''}")
    screen.show(str(page))
