"""`vivant redo`: make a clip again from its recipe. The recipe may come from a stranger: nothing in it is believed."""

from typing import Annotated

from typer import Argument, Option

from vivant.cli.options import RESIDENCY, Residency
from vivant.cli.screen import reporting


def redo(
    file: Annotated[str, Argument(help="A clip of vivant, a folder of its frames, or its recipe (.json).")],
    image: Annotated[
        list[str] | None,
        Option("--image", help="The picture; if not given, it is looked for beside the file. Once for each picture."),
    ] = None,
    identity: Annotated[
        list[str] | None,
        Option("--identity", help="The identity, of a portrait; likewise."),
    ] = None,
    base: Annotated[str | None, Option("--base", help="The base, where the recipe names a folder or file.")] = None,
    motion_adapter: Annotated[
        str | None, Option("--motion-adapter", help="The adapter, where the recipe names a folder or file.")
    ] = None,
    vae: Annotated[str | None, Option("--vae", help="The VAE, where the recipe names a folder or file.")] = None,
    config: Annotated[
        str | None, Option("--config", help="The configurations of a base in one file, likewise.")
    ] = None,
    model: Annotated[
        str | None, Option("--model", help="The model of a portrait, where the recipe names a folder.")
    ] = None,
    addition: Annotated[
        list[str] | None,
        Option("--addition", help="A LoRA or embedding of the recipe; if not given, it is looked for beside the file."),
    ] = None,
    output: Annotated[
        list[str] | None, Option("--output", "-o", help="Where to write; FILE-redo with its suffix if not given.")
    ] = None,
    device: Annotated[str | None, Option("--device", help="Where to compute; as the recipe says if not given.")] = None,
    residency: Annotated[Residency, Option("--residency", help=RESIDENCY)] = Residency.resident,
    cache_dir: Annotated[str | None, Option("--cache-dir", help="Hub cache; HF_HOME decides if not given.")] = None,
    offline: Annotated[bool, Option("--offline", help="Never touch the network.")] = False,
    yes: Annotated[bool, Option("--yes", "-y", help="Fetch what the recipe names without asking.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace files that exist.")] = False,
    json: Annotated[bool, Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Make a clip again from the recipe that it carries, and say whether it is the same.

    Picture, identity and weights are compared with the recipe's hashes first. Exit code 5: made, and not the same.
    """
    with reporting(json) as screen:
        from vivant.cli import redo_consisid, redo_pia
        from vivant.cli.again import Asked
        from vivant.cli.originals import default_output
        from vivant.cli.recipes import wrong
        from vivant.media.recipe import read_recipe

        recipe = read_recipe(file)
        kind = recipe.get("kind")
        kinds = {"pia": redo_pia.again, "consisid": redo_consisid.again}
        if not isinstance(kind, str) or kind not in kinds:
            raise wrong("kind", kind)
        asked = Asked(
            file=file,
            images=image,
            identities=identity,
            base=base,
            motion_adapter=motion_adapter,
            vae=vae,
            config=config,
            model=model,
            additions=addition,
            outputs=output or [default_output(file)],
            device=device,
            residency=residency.value,
            cache_dir=cache_dir,
            offline=offline,
            yes=yes,
            overwrite=overwrite,
        )
        kinds[kind](screen, recipe, asked)
