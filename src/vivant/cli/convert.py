"""`vivant convert`: a single file as a repository folder, and a repository as a single file."""

from dataclasses import asdict
from typing import Annotated

from typer import Argument, Option

from vivant.cli.screen import print_json, reporting, size


def convert(
    source: Annotated[str, Argument(help="A file of weights, or a repository: a folder or a hub id.")],
    dest: Annotated[str, Argument(help="A folder for a file, a .safetensors file for a repository.")],
    vae: Annotated[str | None, Option("--vae", help="File or folder of the VAE, for a file without one.")] = None,
    config: Annotated[
        str | None, Option("--config", help="Repository whose configurations fit the file, if not those of SD 1.5.")
    ] = None,
    variant: Annotated[
        str | None, Option("--variant", help="Variant of the repository's weights, such as fp16.")
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an earlier target.")] = False,
    offline: Annotated[bool, Option("--offline", help="Never touch the network.")] = False,
    json: Annotated[bool, Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Convert between single files and repositories, in both directions.

    Whole Stable Diffusion 1.5 models, and UNets, VAEs, text encoders and motion modules alone. Tensors keep their
    values and their data type. The target appears whole or not at all.
    """
    with reporting(json) as screen:
        from vivant.convert import convert as run

        done = run(source, dest, vae=vae, config=config, variant=variant, overwrite=overwrite, local_files_only=offline)
        if json:
            print_json({**asdict(done), "warnings": screen.warnings})
            return
        dtypes = ", ".join(f"{count} {name}" for name, count in done.dtypes.items())
        screen.say(f"{done.source} is {done.what}. It is a {done.form} now.")
        screen.say(f"{done.tensors} tensors, {size(done.bytes)} ({dtypes}), as they were stored.")
        if done.aside:
            screen.say(f"{len(done.aside)} tensors were left out, such as {done.aside[0]}.")
        for note in done.notes:
            screen.say(note)
        screen.show(done.target)
