"""The style "paper": bright shapes cut from paper, lying on each other in the light of one lamp."""

import numpy as np

from vivant.pocket.world.canvas import RGB, Density, Picture, cover, coverage, fading, fill, mix, rgb
from vivant.pocket.world.distance import Field, View
from vivant.pocket.world.grounds import Ground, layers
from vivant.pocket.world.motion import Course
from vivant.pocket.world.scene import Colour, Scene, Thing, Tone
from vivant.pocket.world.shapes import Ink, outline, parts

DARK = rgb("3d3550")
CREAM = rgb("fdf8ee")
SHADE = rgb("2b2d52")
TONES: dict[Tone, RGB] = {
    "blue": rgb("6fb1ee"),
    "green": rgb("84cf96"),
    "pink": rgb("f79dba"),
    "purple": rgb("b198ee"),
    "yellow": rgb("fad163"),
}
NIGHTS: dict[Tone, RGB] = {
    "blue": rgb("1b2a66"),
    "green": rgb("0d464c"),
    "pink": rgb("6f2148"),
    "purple": rgb("38216f"),
    "yellow": rgb("7d4d14"),
}
# Body, shade and light of each colour.
COLOURS: dict[Colour, tuple[RGB, RGB, RGB]] = {
    "red": (rgb("e23b36"), rgb("b9252f"), rgb("ffd9cf")),
    "orange": (rgb("f5871f"), rgb("d9650f"), rgb("ffe6c2")),
    "yellow": (rgb("fbcb2c"), rgb("e9a916"), rgb("fff6d1")),
    "green": (rgb("3fa653"), rgb("24803f"), rgb("d8f2cf")),
    "blue": (rgb("2f74d8"), rgb("1d55ae"), rgb("d3e7ff")),
    "purple": (rgb("8a4cc4"), rgb("6a349f"), rgb("e7d8fa")),
    "pink": (rgb("f57fb2"), rgb("dc5a94"), rgb("ffe3ef")),
    "white": (rgb("fffdf8"), rgb("dfe3ec"), rgb("c5cfe2")),
}
# How strong the tone is in the plain colour and in each layer on it: 0 is cream, 1 the tone, 2 its night.
STRENGTHS: dict[Ground, tuple[float, ...]] = {
    "plain": (0.4,),
    "stripes": (0.35, 0.68),
    "dots": (0.42, 0.85),
    "checks": (0.32, 0.62),
    "rays": (0.32, 0.62),
    "hills": (0.2, 0.6, 0.88, 1.2),
    "sea": (0.14, 0.55, 0.78, 1.02, 1.22),
    "night": (1.76, 0.02, 2.05),
    "clouds": (0.75, 0.35, 0.02),
}
LAMP = (0.05, 0.08)  # how far a thing's shadow lies from it
SHADOW = 0.16  # how soft it is; both in the world's unit


def paint_ground(scene: Scene, x: Field, y: Field, density: Density) -> Picture:
    """A picture of the ground alone, at the points x, y of the world."""
    return paint_plain(scene.ground, scene.tone, scene.phase, x, y, density)


def paint_plain(
    ground: Ground, tone: Tone, phase: tuple[float, float], x: Field, y: Field, density: Density
) -> Picture:
    """The same without a scene."""
    base, *strengths = STRENGTHS[ground]
    # A little paler at the top.
    slope = np.clip(0.5 + 0.5 * y, -0.3, 1.3)
    picture = fill(slope, _ramp(tone, base - 0.1), _ramp(tone, base + 0.08))
    for distance, strength in zip(layers(ground, x, y, phase), strengths, strict=True):
        cover(picture, 0.12 * fading(distance, 0.12), NIGHTS[tone])
        cover(picture, coverage(distance, density), _ramp(tone, strength))
    return picture


def paint_thing(picture: Picture, thing: Thing, way: Course, x: View, y: View, density: Density) -> None:
    """Put a thing, where its way takes it, on a picture of the points x, y of the world."""
    unit = way.unit(thing)
    shadow = outline(thing.kind, *way.to_thing(thing, x - LAMP[0], y - LAMP[1])) * unit
    cover(picture, 0.4 * fading(shadow + SHADOW / 2, SHADOW), SHADE)
    x, y = way.to_thing(thing, x, y)
    # The paper is a little lighter where it is nearer to the lamp.
    slope = np.clip(0.5 + 0.3 * x + 0.4 * y, 0, 1)
    for part in parts(thing.kind, x, y):
        distance = part.distance * unit
        cover(picture, 0.22 * fading(distance, 0.05), DARK)
        colour = _ink(thing.colour, part.ink)
        paint = fill(slope, mix(colour, CREAM, 0.1), mix(colour, DARK, 0.08))
        picture += coverage(distance, density) * (paint - picture)


def _ramp(tone: Tone, strength: float) -> RGB:
    """From cream over the tone to its night."""
    if strength < 1:
        return mix(CREAM, TONES[tone], strength)
    return mix(TONES[tone], NIGHTS[tone], strength - 1)


def _ink(colour: Colour, ink: Ink) -> RGB:
    body, shade, light = COLOURS[colour]
    return {"body": body, "shade": shade, "light": light, "dark": DARK}[ink]
