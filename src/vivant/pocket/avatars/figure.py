"""Avatars drawn: a head on shoulders before a ground, from any place, in any light."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from vivant.pocket.avatars.pose import BALL, EYES, MOUTH, MOUTH_WIDTH, NOSE, Pose
from vivant.pocket.avatars.traits import Avatar, EyeColour, HairColour, Lips, Skin
from vivant.pocket.world.canvas import RGB, Density, Picture, cover, coverage, fading, mix, rgb
from vivant.pocket.world.distance import Field, View, box, circle, ellipse, polygon, segment, union
from vivant.pocket.world.grounds import Ground
from vivant.pocket.world.paper import COLOURS, paint_plain
from vivant.pocket.world.scene import Colour, Tone

Part = Literal["ground", "face", "hair", "neck", "cloth"]
PARTS: tuple[Part, ...] = ("ground", "face", "hair", "neck", "cloth")

SKINS: dict[Skin, RGB] = {
    "porcelain": rgb("fbe6dc"),
    "peach": rgb("f6c9a8"),
    "sand": rgb("e3ad7c"),
    "olive": rgb("c79a63"),
    "bronze": rgb("a9703f"),
    "brown": rgb("7a4a2a"),
    "ebony": rgb("4a2b1d"),
}
HAIRS: dict[HairColour, RGB] = {
    "black": rgb("1d1a22"),
    "brown": rgb("5e3620"),
    "ginger": rgb("d2601a"),
    "blond": rgb("f1cf62"),
    "white": rgb("f1eff0"),
    "blue": rgb("2b62d9"),
    "green": rgb("2f9e58"),
    "pink": rgb("f062a6"),
    "purple": rgb("7b3fc4"),
}
EYE_COLOURS: dict[EyeColour, RGB] = {
    "brown": rgb("5a2f14"),
    "blue": rgb("2f7fe0"),
    "green": rgb("2f9a4a"),
    "grey": rgb("7d8894"),
}
LIPS: dict[Lips, RGB] = {"pale": rgb("c9836f"), "red": rgb("cf2438")}
DARK, WHITE, BLUSH = rgb("2a1f2b"), rgb("ffffff"), rgb("f0605c")


@runtime_checkable
class OnFace(Protocol):
    """Covers a shape, as far as it lies on the head."""

    def __call__(self, distance: Field, colour: RGB, amount: float = 1.0) -> None: ...


@dataclass(frozen=True)
class Setting:
    """What is around an avatar, and the light on all of it.

    Attributes:
        ground: pattern behind it.
        tone: its colour.
        phase: shifts the pattern, two numbers in [0, 1).
        shirt: colour of the clothes.
        light: what red, green and blue are multiplied by.
        side: how much brighter the right of the picture is than the left, as a part.
    """

    ground: Ground
    tone: Tone
    shirt: Colour
    phase: tuple[float, float] = (0.0, 0.0)
    light: RGB = (1.0, 1.0, 1.0)
    side: float = 0.0


@dataclass(frozen=True)
class Painted:
    """A picture and what is where in it.

    Attributes:
        pixels: bytes.
        labels: index into `PARTS` of what covers most of each pixel.
    """

    pixels: UInt8[np.ndarray, "f h w 3"]
    labels: UInt8[np.ndarray, "f h w"]


def paint(
    avatar: Avatar, pose: Pose, setting: Setting, x: View, y: View, unit: Float32[np.ndarray, " f2"] | float
) -> Painted:
    """Paint an avatar as seen at the points x, y of the world.

    Args:
        avatar: who.
        pose: how, in f frames.
        setting: where.
        x: place of each pixel, in the unit of `Pose.x`; one view, or one for each frame.
        y: likewise.
        unit: pixels for one unit.
    """
    x, y = x.astype(np.float32), y.astype(np.float32)
    density = np.asarray(unit, np.float32).reshape(-1, 1, 1)
    picture = paint_plain(setting.ground, setting.tone, setting.phase, x, y, density)
    num = len(pose.yaw)
    picture = np.repeat(picture, num // picture.shape[1], axis=1)
    canvas = _Canvas(picture, density, *_head_places(pose, x, y), pose)
    _paint_body(canvas, avatar, setting)
    _paint_head(canvas, avatar)
    if not np.isnan(pose.hand).any():
        _paint_hand(canvas, avatar)
    shade = 1 + setting.side * np.clip(x, -1.2, 1.2)
    picture = picture * np.array(setting.light, np.float32)[:, None, None, None] * shade.astype(np.float32)
    pixels = np.moveaxis(np.clip(picture, 0, 1) * 255 + 0.5, 0, -1).astype(np.uint8)
    return Painted(np.ascontiguousarray(pixels), canvas.labels)


def view(size: int) -> tuple[View, View, float]:
    """The points of the world behind the pixels of a square picture, and pixels for its unit."""
    side = (np.arange(size, dtype=np.float32) + (0.5 - size / 2)) / (size / 2)
    x, y = np.meshgrid(side, side)
    return x[None], y[None], size / 2


def _head_places(pose: Pose, x: View, y: View) -> tuple[Field, Field, Field, Field]:
    """Every pixel in the head's unit, and where it is on the face as if that were seen from the front."""
    across, along = (track[:, None, None] for track in (pose.x, pose.y))
    cos, sin = np.cos(pose.roll)[:, None, None], np.sin(pose.roll)[:, None, None]
    scale = pose.scale[:, None, None]
    u, v = (x - across) / scale, (y - along) / scale
    u, v = cos * u + sin * v, cos * v - sin * u
    a, b = (
        (BALL * np.sin(np.arcsin(np.clip(w / BALL, -1, 1)) - turn[:, None, None])).astype(np.float32)
        for w, turn in ((u, pose.yaw), (v, pose.pitch))
    )
    return u, v, a, b


class _Canvas:
    """A picture in the making, with what is where."""

    def __init__(self, picture: Picture, density: Density, u: Field, v: Field, a: Field, b: Field, pose: Pose):
        self.picture, self.u, self.v, self.a, self.b, self.pose = picture, u, v, a, b, pose
        self.density = density * pose.scale[:, None, None]
        self.labels = np.zeros(u.shape, np.uint8)

    def put(self, distance: Field, colour: RGB, part: Part | None = None, amount: float = 1.0) -> None:
        """Cover a shape, whose distances are in the head's unit, with a colour."""
        covered = coverage(distance, self.density)
        cover(self.picture, amount * covered, colour)
        if part is not None:
            self.labels[covered > 0.5] = PARTS.index(part)

    def shade(self, distance: Field, reach: float, amount: float) -> None:
        """Darken what is near a shape."""
        cover(self.picture, amount * fading(distance, reach), DARK)

    def track(self, name: str) -> Density:
        """A number of the pose for each frame."""
        return getattr(self.pose, name)[:, None, None]


def _paint_body(canvas: _Canvas, avatar: Avatar, setting: Setting) -> None:
    u, v = canvas.u, canvas.v
    skin, (body, shade, _) = SKINS[avatar.skin], COLOURS[setting.shirt]
    hair = HAIRS[avatar.hair_colour]
    lean = 0.25 * canvas.track("yaw")
    if avatar.hair == "long":
        canvas.put(box(u - lean * 0.3, v, (0, 0.45), (avatar.width + 0.2, 1.15), 0.5), mix(hair, DARK, 0.15), "hair")
    elif avatar.hair == "bob":
        canvas.put(box(u - lean * 0.3, v, (0, 0.0), (avatar.width + 0.2, 0.85), 0.45), mix(hair, DARK, 0.15), "hair")
    elif avatar.hair == "curly":
        canvas.put(circle(u + lean * 0.3, v, (0, -0.35), 1.12), hair, "hair")
    elif avatar.hair == "bun":
        canvas.put(circle(u + lean * 0.6, v, (0, -1.22), 0.34), mix(hair, DARK, 0.1), "hair")
    canvas.put(box(u, v, (0, 1.1), (0.32, 0.5), 0.1), mix(skin, DARK, 0.16), "neck")
    canvas.put(box(u, v, (0, 2.35), (1.45, 1.05), 0.55), body, "cloth")
    canvas.put(ellipse(u, v, (0, 1.3), (0.36, 0.2)), mix(skin, DARK, 0.12), "neck")
    canvas.put(np.abs(ellipse(u, v, (0, 1.3), (0.42, 0.26))) - 0.05, shade, "cloth")


def _outline(canvas: _Canvas, avatar: Avatar) -> Field:
    u, v, w = canvas.u, canvas.v, avatar.width
    low = np.maximum(v, 0)
    if avatar.head == "square":
        return box(u, v, (0, 0), (w, 1.0), 0.48)
    if avatar.head == "pointed":
        return ellipse(u * (1 + 0.32 * low), v, (0, 0), (w, 1.02))
    if avatar.head == "round":
        return ellipse(u, v, (0, 0.03), (w + 0.1, 0.95))
    return ellipse(u * (1 + 0.1 * low), v, (0, 0), (w, 1.0))


def _paint_head(canvas: _Canvas, avatar: Avatar) -> None:
    skin, hair = SKINS[avatar.skin], HAIRS[avatar.hair_colour]
    u, v, a, b = canvas.u, canvas.v, canvas.a, canvas.b
    yaw = canvas.track("yaw")
    dark_skin = mix(skin, DARK, 0.22)
    head = _outline(canvas, avatar)
    for side in (-1, 1):
        ear = ellipse(u + 0.25 * yaw, v, (side * (avatar.width + 0.04), 0.05), (0.14, 0.22))
        canvas.put(ear, dark_skin, "neck")
    canvas.shade(head + 0.02, 0.12, 0.35)
    canvas.put(head, skin, "face")
    inside = coverage(head, canvas.density) > 0.5

    def on_face(distance: Field, colour: RGB, amount: float = 1.0) -> None:
        canvas.put(np.where(inside, distance, 1.0).astype(np.float32), colour, None, amount)

    if avatar.cheeks == "rosy":
        for side in (-1, 1):
            cover(canvas.picture, 0.45 * fading(ellipse(a, b, (side * 0.46, 0.3), (0.12, 0.1)), 0.2) * inside, BLUSH)
    elif avatar.cheeks == "freckles":
        spots = [(0.3, 0.22), (0.46, 0.2), (0.38, 0.32), (0.54, 0.3), (0.2, 0.34)]
        for side in (-1, 1):
            on_face(union(circle(a, b, (side * s, t), 0.035) for s, t in spots), mix(skin, rgb("6b2d0c"), 0.65))
    _paint_beard(canvas, avatar, on_face)
    _paint_eyes(canvas, avatar, on_face)
    half, long = {"small": (0.09, 0.1), "long": (0.09, 0.24), "wide": (0.2, 0.12)}[avatar.nose]
    nose = polygon(a, b, ((0, NOSE - 1.6 * long), (half, NOSE + 0.04), (-half, NOSE + 0.04)), 0.05)
    on_face(nose, mix(skin, DARK, 0.3))
    on_face(ellipse(a, b, (-0.02, NOSE - 0.5 * long), (0.35 * half, 0.6 * long)), mix(skin, WHITE, 0.25))
    _paint_mouth(canvas, avatar, on_face)
    _paint_hair(canvas, avatar, head, hair)
    if avatar.glasses != "none":
        _paint_glasses(canvas, avatar, head)


def _paint_beard(canvas: _Canvas, avatar: Avatar, on_face: OnFace) -> None:
    a, b = canvas.a, canvas.b
    colour = mix(HAIRS[avatar.hair_colour], DARK, 0.1)
    if avatar.beard == "full":
        around = np.maximum(-ellipse(a, b, (0, 0.12), (0.62, 0.56)), 0.2 - b)
        on_face(around.astype(np.float32), colour)
    if avatar.beard == "goatee":
        on_face(ellipse(a, b, (0, 0.84), (0.22, 0.2)), colour)
    if avatar.beard in ("full", "moustache"):
        on_face(segment(np.abs(a), b, (0.06, 0.37), (0.27, 0.43), 0.065), colour)


def _paint_eyes(canvas: _Canvas, avatar: Avatar, on_face: OnFace) -> None:
    a, b, gap = canvas.a, canvas.b, avatar.eye_gap
    closing = canvas.track("closing")
    height = 0.125 * (1 - 0.85 * closing)
    lid = mix(SKINS[avatar.skin], DARK, 0.45)
    brow = mix(HAIRS[avatar.hair_colour], DARK, 0.35)
    for side in (-1, 1):
        wide = _stretched(b, EYES, height, 0.125)
        eye = ellipse(a, wide, (side * gap, EYES), (0.165, 0.125))
        on_face(eye - 0.035, lid)
        on_face(eye, WHITE)
        iris = circle(a, wide, (side * gap, EYES), 0.1)
        on_face(np.maximum(iris, eye), EYE_COLOURS[avatar.eyes])
        on_face(np.maximum(circle(a, wide, (side * gap, EYES), 0.045), eye), DARK)
        thick = {"thin": 0.03, "thick": 0.075, "joined": 0.06}[avatar.brows]
        inner = 0.0 if avatar.brows == "joined" else gap - 0.17
        on_face(segment(side * a, b, (inner, EYES - 0.22), (gap + 0.18, EYES - 0.25), thick), brow)


def _stretched(b: Field, middle: float, height: Density, full: float) -> Field:
    """Lengthen along y, so that what is as high as `full` appears as high as `height`."""
    return (middle + (b - middle) * (full / height)).astype(np.float32)


def _paint_mouth(canvas: _Canvas, avatar: Avatar, on_face: OnFace) -> None:
    a, b = canvas.a, canvas.b
    smile, opening = canvas.track("smile"), canvas.track("opening")
    half = MOUTH_WIDTH * (0.8 + 0.35 * smile)
    bend = (b + smile * 0.85 * (a * a - 0.03)).astype(np.float32)  # the corners rise
    lips = LIPS[avatar.lips]
    if avatar.skin in ("brown", "ebony"):
        lips = mix(lips, DARK, 0.15)
    wide = (a * (MOUTH_WIDTH / half)).astype(np.float32)
    tall = _stretched(bend, MOUTH, 0.075 + 0.14 * opening + 0.05 * smile, 0.075)
    mouth = ellipse(wide, tall, (0, MOUTH), (MOUTH_WIDTH, 0.075))
    on_face(mouth, lips)
    inner = ellipse(wide, tall, (0, MOUTH), (0.78 * MOUTH_WIDTH, 0.045))
    for colour, amount in ((rgb("5a0f1c"), opening), (WHITE, smile * (1 - opening))):
        covered = coverage(inner, canvas.density) * amount
        cover(canvas.picture, covered.astype(np.float32), colour)


def _paint_hair(canvas: _Canvas, avatar: Avatar, head: Field, hair: RGB) -> None:
    u, v, a, b = canvas.u, canvas.v, canvas.a, canvas.b
    if avatar.hair == "bald":
        canvas.put(ellipse(a, b, (-0.25, -0.72), (0.16, 0.08)), mix(SKINS[avatar.skin], WHITE, 0.4), None, 0.7)
        return
    cap = head - 0.1  # around the head
    line = {
        "short": b + 0.48,
        "parted": b + 0.62 - 0.42 * np.abs(a + 0.32),
        "spiky": b + 0.5 - 0.1 * np.abs(np.sin(9 * a)),
        "curly": b + 0.46 + 0.05 * np.cos(14 * a),
        "bob": np.minimum(b + 0.4, 0.66 - np.abs(a)),
        "long": np.minimum(b + 0.62 - 0.5 * np.abs(a), 0.74 - np.abs(a)),
        "bun": b + 0.6 - 0.18 * np.abs(a),
    }[avatar.hair]
    if avatar.hair in ("bob", "long"):
        line = np.maximum(line, v - {"bob": 0.75, "long": 1.4}[avatar.hair])
    top = np.maximum(cap, line).astype(np.float32)
    if avatar.hair == "spiky":
        spikes = [
            polygon(u, v, ((s - 0.2, -0.7), (s * 1.25, -1.42), (s + 0.2, -0.7))) for s in (-0.55, -0.2, 0.2, 0.55)
        ]
        top = np.minimum(top, union(spikes))
    if avatar.hair == "curly":
        top = np.minimum(
            top, union(circle(u, v, (s, -0.86 + 0.3 * abs(s)), 0.26) for s in (-0.75, -0.38, 0.0, 0.38, 0.75))
        )
    canvas.put(top, mix(hair, DARK, 0.25), "hair")
    canvas.put(top + 0.05, hair, "hair")
    gleam = ellipse(a, b, (-0.25, -0.84), (0.22, 0.07))
    canvas.put(np.maximum(gleam, top).astype(np.float32), mix(hair, WHITE, 0.35), None, 0.8)


def _paint_glasses(canvas: _Canvas, avatar: Avatar, head: Field) -> None:
    a, b, gap = canvas.a, canvas.b, avatar.eye_gap
    beside = head - 0.1  # what stands out of a turned head
    if avatar.glasses == "square":
        lens = box(np.abs(a), b, (gap, EYES + 0.02), (0.235, 0.2), 0.05)
    else:
        lens = circle(np.abs(a), b, (gap, EYES + 0.02), 0.24)
    if avatar.glasses == "dark":
        canvas.put(np.maximum(lens, beside).astype(np.float32), rgb("16161c"), "face")
    frame = np.abs(lens) - 0.035
    bridge = segment(a, b, (-gap + 0.22, EYES - 0.04), (gap - 0.22, EYES - 0.04), 0.03)
    arms = segment(np.abs(a), b, (gap + 0.24, EYES - 0.02), (0.9, EYES - 0.05), 0.03)
    colour = rgb("16161c") if avatar.glasses != "round" else rgb("c23a1f")
    canvas.put(np.maximum(union([frame, bridge, arms]), beside).astype(np.float32), colour, "face")


def _paint_hand(canvas: _Canvas, avatar: Avatar) -> None:
    u, v = canvas.u - canvas.track("hand"), canvas.v
    skin = SKINS[avatar.skin]
    palm = ellipse(u, v, (1.18, 0.72), (0.22, 0.26))
    fingers = union(
        segment(u, v, (1.18, 0.6), (1.18 + s, 0.18 + 0.8 * abs(s)), 0.075) for s in (-0.26, -0.09, 0.09, 0.26)
    )
    arm = segment(canvas.u, v, (1.18, 1.7), (1.18, 0.85), 0.14)
    hand = np.minimum(palm, fingers)
    canvas.put(arm, mix(skin, DARK, 0.2), "neck")
    canvas.put(hand - 0.04, mix(skin, DARK, 0.4), "neck")
    canvas.put(hand, mix(skin, WHITE, 0.08), "neck")
