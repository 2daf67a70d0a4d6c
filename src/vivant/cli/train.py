"""`vivant train`: make a run of a recipe."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from vivant.cli.screen import duration, print_json, reporting


class Kind(StrEnum):
    """What can be trained."""

    VAE = "vae"
    VIDEO_VAE = "video-vae"
    BASE = "base"
    STYLE = "style"
    PIA = "pia"
    CONSISID = "consisid"


def train(
    kind: Annotated[
        Kind,
        Argument(
            help="What to train: an autoencoder of pictures or of videos, a text-to-image base, its style, PIA's "
            "motion, or ConsisID."
        ),
    ],
    config: Annotated[Path, Option(help="The recipe, a TOML file; see docs/training.md.")],
    output: Annotated[Path, Option("--output", "-o", help="Folder of the run: checkpoints, log, samples, result.")],
    resume: Annotated[bool, Option("--resume", help="Go on from the newest checkpoint, bit for bit.")] = False,
    steps: Annotated[int | None, Option(help="Updates to make, in place of the recipe's.")] = None,
    json: Annotated[bool, Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Train a network by a recipe.

    Ctrl-C stops at once; --resume goes on from the last checkpoint. Several processes share a run under torchrun:
    torchrun --nproc-per-node 2 -m vivant.cli train …
    """
    with reporting(json) as screen:
        from vivant.train.loop import Progress
        from vivant.train.recipe import read_recipe, run

        recipe = read_recipe(kind.value, config, steps=steps)
        last: list[Progress] = []

        def on_step(at: Progress) -> None:
            last[:] = [at]
            if at.step % recipe.settings.log_every == 0 or at.step == at.total:
                numbers = ", ".join(f"{name} {value:.4g}" for name, value in at.values.items())
                screen.say(f"{at.step}/{at.total}, {duration(at.remaining)} left: {numbers}")

        folder = run(recipe, output, resume=resume, on_step=on_step, say=screen.say)
        if json:
            at = last[0] if last else None
            print_json({"output": str(folder), "steps": recipe.settings.steps, "values": dict(at.values) if at else {}})
            return
        screen.show(str(folder))
