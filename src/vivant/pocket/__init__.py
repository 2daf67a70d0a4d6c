"""Small models that ship with the package, and the drawn world that they were trained on. See README.md beside this."""

from pathlib import Path

from vivant.pocket.world import STYLES, Style

__all__ = ["FOLDER", "base"]

FOLDER = Path(__file__).parent


def base(style: Style = "paper") -> Path:
    """Folder of a text-to-image base in the published layout of Stable Diffusion 1.5.

    Raises:
        ValueError: there is no base of this style.
    """
    if style not in STYLES:
        raise ValueError(f"There is no base of the style {style!r}; choose one of {', '.join(STYLES)}.")
    return FOLDER / style
