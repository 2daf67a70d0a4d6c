"""A scene: everything that is to be known about one picture or clip."""

from dataclasses import dataclass
from typing import Literal, get_args

from vivant.pocket.world.grounds import Ground
from vivant.pocket.world.shapes import Kind

Style = Literal["paper", "neon"]
Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "pink", "white"]
Tone = Literal["blue", "green", "pink", "purple", "yellow"]
Size = Literal["tiny", "small", "medium", "large"]
ThingMotion = Literal[
    "still", "left", "right", "up", "down", "growing", "shrinking", "clockwise", "counterclockwise", "bouncing"
]
CameraMotion = Literal["zoom in", "zoom out", "pan left", "pan right", "turn"]
Motion = ThingMotion | CameraMotion
Magnitude = Literal["small", "moderate", "large"]

STYLES: tuple[Style, ...] = get_args(Style)
COLOURS: tuple[Colour, ...] = get_args(Colour)
TONES: tuple[Tone, ...] = get_args(Tone)
SIZES: tuple[Size, ...] = get_args(Size)
CAMERA_MOTIONS: tuple[CameraMotion, ...] = get_args(CameraMotion)
MOTIONS: tuple[Motion, ...] = (*get_args(ThingMotion), *CAMERA_MOTIONS)
MAGNITUDES: tuple[Magnitude, ...] = get_args(Magnitude)

RADII: dict[Size, float] = {"tiny": 0.24, "small": 0.33, "medium": 0.45, "large": 0.57}
"""In the world's unit, half the shorter side of the picture."""


@dataclass(frozen=True)
class Thing:
    """One thing in the picture.

    Attributes:
        x, y: its middle in the first frame; the middle of the picture is (0, 0), and 1 is half its shorter side.
        angle: how far it leans, in radians clockwise.
        faces_left: whether it is mirrored.
    """

    kind: Kind
    colour: Colour
    size: Size
    x: float = 0.0
    y: float = 0.0
    angle: float = 0.0
    faces_left: bool = False

    @property
    def radius(self) -> float:
        """About how far it reaches from its middle."""
        return RADII[self.size]


@dataclass(frozen=True)
class Scene:
    """Everything that a clip shows.

    Attributes:
        tone: the colour of the ground.
        phase: two numbers in [0, 1) that shift the ground's pattern.
        main: the thing that moves, unless the camera does.
        second: a smaller thing behind it that never moves by itself, or None.
        motion: a motion of the main thing or of the camera.
        magnitude: how far the motion goes from the first to the last frame, however many there are.
    """

    style: Style
    ground: Ground
    tone: Tone
    phase: tuple[float, float]
    main: Thing
    second: Thing | None
    motion: Motion
    magnitude: Magnitude
