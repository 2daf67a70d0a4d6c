"""Small models that ship with the package, and the drawn world that they were trained on. See README.md beside this."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vivant.pocket.world import STYLES, Style

__all__ = ["FOLDER", "PERSON", "PERSON_SETTINGS", "PICTURES", "SETTINGS", "base", "judge", "motion", "person"]

FOLDER = Path(__file__).parent
PICTURES: Mapping[str, Path] = {
    "drawing": FOLDER / "pictures" / "drawing.png",
    "photo": FOLDER / "pictures" / "photo.jpg",
}
"""A drawing and a photo to animate; neither was seen in training."""
SETTINGS: Mapping[str, Any] = MappingProxyType(
    {"num_frames": 8, "height": 64, "width": 64, "guidance_scale": 4.0, "negative_prompt": ""}
)
"""What `base` and `motion` are made for: fields of a request that differ from those for full-size models."""
PERSON = FOLDER / "pictures" / "person.png"
"""A picture of somebody to film, drawn as all that `person` knows; training saw no picture of them."""
PERSON_SETTINGS: Mapping[str, Any] = MappingProxyType({"num_inference_steps": 25, "guidance_scale": 3.0})
"""What `person` is made for. Size, length and tokens are in its configuration."""


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


def person() -> Path:
    """Folder of a ConsisID of drawn people, its face encoders included."""
    return FOLDER / "person"


def judge() -> Path:
    """Folder of a classifier of clips of drawn people, for measuring only (`vivant.evaluate.avatars`)."""
    return FOLDER / "judge"
