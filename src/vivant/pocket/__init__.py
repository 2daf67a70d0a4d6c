"""Small models that ship with the package, and the drawn world that they were trained on. See README.md beside this."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vivant.pocket.world import STYLES, Style

__all__ = ["FOLDER", "PICTURES", "SETTINGS", "base", "motion"]

FOLDER = Path(__file__).parent
PICTURES: Mapping[str, Path] = {
    "drawing": FOLDER / "pictures" / "drawing.png",
    "photo": FOLDER / "pictures" / "photo.jpg",
}
"""A drawing and a photo to animate; neither was seen in training."""
SETTINGS: Mapping[str, Any] = MappingProxyType(
    {"num_frames": 8, "height": 64, "width": 64, "guidance_scale": 4.0, "negative_prompt": ""}
)
"""What the models are made for: fields of a request that differ from those for full-size models."""


def base(style: Style = "paper") -> Path:
    """Folder of a text-to-image base in the published layout of Stable Diffusion 1.5.

    Raises:
        ValueError: there is no base of this style.
    """
    if style not in STYLES:
        raise ValueError(f"There is no base of the style {style!r}; choose one of {', '.join(STYLES)}.")
    return FOLDER / style


def motion() -> Path:
    """Folder of the motion adapter for both bases."""
    return FOLDER / "motion"
