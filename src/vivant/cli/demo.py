"""`vivant demo`: what the package can do with what it ships, in a minute and without a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from vivant.cli.screen import Screen, duration, print_json, reporting, stoppable, unstoppable

if TYPE_CHECKING:
    import numpy as np

    from vivant.api.result import Result

ENLARGE, MOTION = 4, "animate:moderate"
TITLE = "vivant: what the small models make of three pictures"


@dataclass(frozen=True)
class Clip:
    """One clip of the demonstration.

    Attributes:
        name: of its files.
        picture: a key of `vivant.pocket.PICTURES`, or PERSON.
        prompt: what is to happen.
    """

    name: str
    picture: str
    prompt: str


PERSON = "person"
CLIPS = (
    Clip("drawing-right", "drawing", "a small orange fish moving right over a blue sea, paper cut"),
    Clip("drawing-bouncing", "drawing", "a small orange fish bouncing over a blue sea, paper cut"),
    Clip("drawing-growing", "drawing", "a small orange fish growing over a blue sea, paper cut"),
    Clip("photo-zoom-in", "photo", "a photo, zoom in"),
    Clip("photo-pan-right", "photo", "a photo, pan right"),
    Clip("photo-pan-left", "photo", "a photo, pan left"),
    Clip("person-waving", PERSON, "a person in a white shirt waves over a blue sea"),
    Clip("person-looking-left", PERSON, "a person in a green shirt looks left before green hills"),
    Clip("person-smiling", PERSON, "a person in a red shirt smiles over a blue sea"),
)


def demo(
    output: Annotated[Path, Option("--output", "-o", help="Folder for the clips and the page.")] = Path("out"),
    frames: Annotated[int, Option("--frames", help="Frames of each clip; those of the person have 9.")] = 8,
    steps: Annotated[int, Option("--steps", help="Denoising steps.")] = 25,
    seed: Annotated[int, Option("--seed", help="Seed of every clip.")] = 0,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace files that exist.")] = False,
    json: Annotated[bool, Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Animate a drawing and a photo that ship with vivant, and film a person, with the small models that ship with it.

    Writes each clip as mp4 and gif, all of them as demo.gif, and index.html with all of them side by side. The clips
    have 64 x 64 pixels and are written enlarged.
    """
    with reporting(json) as screen:
        from vivant import pocket
        from vivant.cli.writing import check_targets
        from vivant.media.atomic import check_target

        clips, pictures = CLIPS, {**pocket.PICTURES, PERSON: pocket.PERSON}
        if find_spec("onnxruntime") is None:
            screen.say("The person is left out: finding a face needs onnxruntime, pip install 'vivant[faces]'.")
            clips, pictures = tuple(clip for clip in CLIPS if clip.picture != PERSON), dict(pocket.PICTURES)
        names = [f"{clip.name}{suffix}" for clip in clips for suffix in (".mp4", ".gif")]
        if not output.exists():
            output.mkdir(parents=True)
        check_targets([str(output / name) for name in (*names, "demo.gif")], [], overwrite, 8)
        for name in ("index.html", *(f"{picture}.png" for picture in pictures)):
            check_target(output / name, overwrite=overwrite)
        settings = {"num_inference_steps": steps, "seed": seed}
        made = animate(screen, {"num_frames": frames, **settings})
        if PERSON in pictures:
            made |= film(screen, settings)
        with unstoppable():
            page = write(output, made, pictures, overwrite)
        seconds = sum(sum(result.report.seconds.values()) for result in made.values())
        if json:
            outputs = [str(output / name) for name in (*names, "demo.gif", "index.html")]
            print_json({"outputs": outputs, "seconds": seconds, "warnings": screen.warnings})
            return
        screen.say(f"{len(made)} clips in {duration(seconds)}.")
        screen.show(str(page))


def animate(screen: Screen, settings: dict[str, Any]) -> "dict[Clip, Result]":
    """The clips of `vivant.pocket.PICTURES`, in their order."""
    from vivant import pocket
    from vivant.api.animator import Animator
    from vivant.preflight.pia import check_animate

    settings = {**pocket.SETTINGS, **settings}
    clips = [clip for clip in CLIPS if clip.picture in pocket.PICTURES]
    for clip in clips:
        check_animate(pocket.PICTURES[clip.picture], clip.prompt, motion=MOTION, **settings)
    with stoppable() as stopped:
        screen.say("Loading the small models that ship with vivant.")
        animator = Animator.from_pretrained(pocket.base(), pocket.motion(), local_files_only=True)
        made: dict[Clip, Result] = {}
        for clip in clips:
            screen.say(f"{clip.picture}: {clip.prompt}")
            with screen.progress() as meter:
                made[clip] = animator.animate(
                    pocket.PICTURES[clip.picture],
                    clip.prompt,
                    motion=MOTION,
                    progress=meter.step,
                    cancel=stopped,
                    **settings,
                )
    return made


def film(screen: Screen, settings: dict[str, Any]) -> "dict[Clip, Result]":
    """The clips of the person, whose face is found once."""
    from vivant import pocket
    from vivant.api.portrait import Portrait

    with stoppable() as stopped:
        screen.say("Loading the small model of people, and finding the face.")
        portrait = Portrait.from_pretrained(pocket.person(), local_files_only=True)
        face = portrait.face(pocket.PERSON)
        made: dict[Clip, Result] = {}
        for clip in CLIPS:
            if clip.picture != PERSON:
                continue
            screen.say(f"{PERSON}: {clip.prompt}")
            given = {**pocket.PERSON_SETTINGS, **settings}
            with screen.progress() as meter:
                made[clip] = portrait.film(face, clip.prompt, progress=meter.step, cancel=stopped, **given)
    return made


def write(folder: Path, made: "dict[Clip, Result]", pictures: Mapping[str, Path], overwrite: bool) -> Path:
    """Files of every clip, one of all, and the page."""
    import numpy as np
    from PIL import Image

    from vivant.media.atomic import replacing
    from vivant.media.frames import enlarged
    from vivant.media.page import Shown, heading, page, paragraph, row
    from vivant.media.still import fit
    from vivant.media.video import write_clip

    rows: list[list[np.ndarray]] = []
    parts = [
        paragraph(
            "Pictures, and what the small models of vivant (64 x 64 pixels, enlarged here) make of them and of a "
            "sentence. None of the pictures was seen in training. Click a clip for its film."
        )
    ]
    for name, path in pictures.items():
        clips = {clip: result for clip, result in made.items() if clip.picture == name}
        first = next(iter(clips.values())).clips[0]
        height, width = (side * ENLARGE for side in first.shape[1:3])
        still = fit(Image.open(path), width, height)
        with replacing(folder / f"{name}.png", overwrite=overwrite) as temporary:
            still.save(temporary, "PNG")
        shown = [Shown(f"{name}.png", f"the {name}")]
        for clip, result in clips.items():
            for suffix in (".mp4", ".gif"):
                result.save(folder / f"{clip.name}{suffix}", overwrite=overwrite, enlarge=ENLARGE)
            how = "" if name == PERSON else f" ({MOTION})"
            shown.append(Shown(f"{clip.name}.gif", f"{clip.prompt}{how}", f"{clip.name}.mp4"))
        parts += [heading(f"The {name}"), row(shown)]
        rows.append([np.asarray(still)[None], *(enlarged(result.clips[0], ENLARGE) for result in clips.values())])
    write_clip(together(rows), folder / "demo.gif", 8, overwrite=overwrite)
    with replacing(folder / "index.html", overwrite=overwrite) as temporary:
        temporary.write_text(page(TITLE, parts), encoding="utf-8")
    return folder / "index.html"


def together(rows: "Sequence[Sequence[np.ndarray]]") -> "np.ndarray":
    """Rows of clips as one; the last frame of what is shorter than the others stays."""
    import numpy as np

    length = max(len(clip) for row in rows for clip in row)

    def held(clip: np.ndarray) -> np.ndarray:
        return np.concatenate([clip, np.repeat(clip[-1:], length - len(clip), axis=0)])

    return np.concatenate([np.concatenate([held(clip) for clip in row], axis=2) for row in rows], axis=1)
