"""`vivant face`: what can be asked of photos of faces."""

from typing import Annotated

from typer import Argument, Exit, Typer

from vivant.cli.options import OUTPUT, PERSON, option
from vivant.cli.screen import Code, Sections, reporting

app = Typer(help="Ask about faces in photos.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Ask about faces in photos."""


@app.command(cls=Sections)
def check(
    photos: Annotated[list[str], Argument(help="Photos: paths or http(s) addresses.")],
    face: Annotated[
        str | None,
        option(
            "--face",
            "Which face is meant: largest, center, a number from left to right (0, 1, …), or "
            "LEFT,TOP,RIGHT,BOTTOM in pixels; the largest if not given.",
            PERSON,
        ),
    ] = None,
    output: Annotated[
        str | None,
        option(
            "--output -o", "Draw what was found into this picture; of several photos the names get -0, -1, ….", OUTPUT
        ),
    ] = None,
    overwrite: Annotated[bool, option("--overwrite", "Replace files that exist.", OUTPUT)] = False,
    json: Annotated[bool, option("--json", "Print one JSON object, and nothing else.", OUTPUT)] = False,
) -> None:
    """Say how well photos show a face: none, several, small, profile, blurred, cut off.

    No large model is loaded. The exit code is 0 if there is nothing to complain of, and 6 if there is.
    """
    with reporting(json) as screen:
        from vivant.cli import checking

        code = checking.check_photos(screen, photos, face, output, overwrite)
    if code != Code.OK:
        raise Exit(code)
