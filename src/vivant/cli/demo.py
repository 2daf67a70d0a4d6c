"""`vivant demo`: what the package can do with what it ships, in a minute and without a network."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from vivant.cli.screen import Screen, duration, print_json, reporting, stoppable, unstoppable

if TYPE_CHECKING:
    from vivant.api.result import Result

ENLARGE, MOTION = 4, "animate:moderate"
TITLE = "vivant: what the small models make of two pictures"


@dataclass(frozen=True)
class Clip:
    """One clip of the demonstration.

    Attributes:
        name: of its files.
        picture: a key of `vivant.pocket.PICTURES`.
        prompt: what is to happen.
    """

    name: str
    picture: str
    prompt: str


CLIPS = (
    Clip("drawing-right", "drawing", "a small orange fish moving right over a blue sea, paper cut"),
    Clip("drawing-bouncing", "drawing", "a small orange fish bouncing over a blue sea, paper cut"),
    Clip("drawing-growing", "drawing", "a small orange fish growing over a blue sea, paper cut"),
    Clip("photo-zoom-in", "photo", "a photo, zoom in"),
    Clip("photo-pan-right", "photo", "a photo, pan right"),
    Clip("photo-pan-left", "photo", "a photo, pan left"),
)


def demo(
    output: Annotated[Path, Option("--output", "-o", help="Folder for the clips and the page.")] = Path("out"),
    frames: Annotated[int, Option("--frames", help="Frames of each clip.")] = 8,
    steps: Annotated[int, Option("--steps", help="Denoising steps.")] = 25,
    seed: Annotated[int, Option("--seed", help="Seed of every clip.")] = 0,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace files that exist.")] = False,
    json: Annotated[bool, Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Animate a drawing and a photo that ship with vivant, with the small models that ship with it.

    Writes each clip as mp4 and gif, all of them as demo.gif, and index.html with all of them side by side. The clips
    have 64 x 64 pixels and are written enlarged.
    """
    with reporting(json) as screen:
        from vivant import pocket
        from vivant.cli.writing import check_targets
        from vivant.media.atomic import check_target

        names = [f"{clip.name}{suffix}" for clip in CLIPS for suffix in (".mp4", ".gif")]
        if not output.exists():
            output.mkdir(parents=True)
        check_targets([str(output / name) for name in (*names, "demo.gif")], [], overwrite, 8)
        for name in ("index.html", *(f"{picture}.png" for picture in pocket.PICTURES)):
            check_target(output / name, overwrite=overwrite)
        made = animate(screen, {"num_frames": frames, "num_inference_steps": steps, "seed": seed})
        with unstoppable():
            page = write(output, made, pocket.PICTURES, overwrite)
        seconds = sum(sum(result.report.seconds.values()) for result in made.values())
        if json:
            outputs = [str(output / name) for name in (*names, "demo.gif", "index.html")]
            print_json({"outputs": outputs, "seconds": seconds, "warnings": screen.warnings})
            return
        screen.say(f"{len(made)} clips of {frames} frames in {duration(seconds)}.")
        screen.show(str(page))


def animate(screen: Screen, settings: dict[str, Any]) -> "dict[Clip, Result]":
    """All clips, in their order."""
    from vivant import pocket
    from vivant.api.animator import Animator
    from vivant.preflight.pia import check_animate

    settings = {**pocket.SETTINGS, **settings}
    for clip in CLIPS:
        check_animate(pocket.PICTURES[clip.picture], clip.prompt, motion=MOTION, **settings)
    with stoppable() as stopped:
        screen.say("Loading the small models that ship with vivant.")
        animator = Animator.from_pretrained(pocket.base(), pocket.motion(), local_files_only=True)
        made: dict[Clip, Result] = {}
        for clip in CLIPS:
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


def write(folder: Path, made: "dict[Clip, Result]", pictures: Any, overwrite: bool) -> Path:
    """Files of every clip, one of all, and the page."""
    import numpy as np
    from PIL import Image

    from vivant.media.atomic import replacing
    from vivant.media.frames import enlarged
    from vivant.media.page import Shown, heading, page, paragraph, row
    from vivant.media.still import fit
    from vivant.media.video import write_clip

    rows: list[np.ndarray] = []
    parts = [
        paragraph(
            "A drawing and a photo, and what the small models of vivant (64 x 64 pixels, enlarged here) make of them "
            "and of a sentence. Both pictures were never seen in training. Click a clip for its film."
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
            shown.append(Shown(f"{clip.name}.gif", f"{clip.prompt} ({MOTION})", f"{clip.name}.mp4"))
        parts += [heading(f"The {name}"), row(shown)]
        films = [np.stack([np.asarray(still)] * len(first))]
        films += [enlarged(result.clips[0], ENLARGE) for result in clips.values()]
        rows.append(np.concatenate(films, axis=2))
    write_clip(np.concatenate(rows, axis=1), folder / "demo.gif", 8, overwrite=overwrite)
    with replacing(folder / "index.html", overwrite=overwrite) as temporary:
        temporary.write_text(page(TITLE, parts), encoding="utf-8")
    return folder / "index.html"
