"""The style "neon": glowing tubes bent to outlines, on a dark board whose pattern glows faintly."""

import numpy as np

from vivant.pocket.world.canvas import RGB, Density, Picture, cover, coverage, fading, fill, light_up, mix, rgb
from vivant.pocket.world.distance import Field, View, length
from vivant.pocket.world.grounds import layers
from vivant.pocket.world.motion import Course
from vivant.pocket.world.scene import Colour, Scene, Thing, Tone
from vivant.pocket.world.shapes import Ink, outline, parts

BOARD = rgb("0d0c1d")
WHITE = rgb("ffffff")
TONES: dict[Tone, RGB] = {
    "blue": rgb("4a8dff"),
    "green": rgb("2fd08a"),
    "pink": rgb("ff5fa8"),
    "purple": rgb("9a62ff"),
    "yellow": rgb("f2b93b"),
}
COLOURS: dict[Colour, RGB] = {
    "red": rgb("ff3340"),
    "orange": rgb("ff8a24"),
    "yellow": rgb("ffe23f"),
    "green": rgb("3dff7c"),
    "blue": rgb("3f8bff"),
    "purple": rgb("ab55ff"),
    "pink": rgb("ff74c4"),
    "white": rgb("f4f6ff"),
}
# How strongly each layer of a ground is lit, from back to front.
LAYERS = (0.16, 0.2, 0.24, 0.28)
STARS = (0.85, 0.13)
LINE = 0.022  # its lines, in the world's unit
# The tube of a thing and how far it shines, in the thing's unit: small things have thin tubes.
TUBE = 0.115
GLOW = 0.3
HALO = 0.6


def paint_ground(scene: Scene, x: Field, y: Field, density: Density) -> Picture:
    """A picture of the ground alone, at the points x, y of the world."""
    tone = TONES[scene.tone]
    # The board is lit from its middle.
    picture = fill(np.minimum(length(x, y) / 1.8, 1), mix(BOARD, tone, 0.16), mix(BOARD, tone, 0.04))
    lights = STARS if scene.ground == "night" else LAYERS
    for distance, light in zip(layers(scene.ground, x, y, scene.phase), lights, strict=False):
        cover(picture, coverage(distance, density), mix(BOARD, tone, light))
        edge = np.abs(distance) - LINE / 2
        light_up(picture, 0.22 * fading(edge, 0.12), tone)
        cover(picture, 0.45 * coverage(edge, density), tone)
    return picture


def paint_thing(picture: Picture, thing: Thing, way: Course, x: View, y: View, density: Density) -> None:
    """Put a thing, where its way takes it, on a picture of the points x, y of the world."""
    unit = way.unit(thing)
    colour = COLOURS[thing.colour]
    x, y = way.to_thing(thing, x, y)
    light_up(picture, 0.5 * fading(outline(thing.kind, x, y), HALO), colour)
    for part in parts(thing.kind, x, y):
        glow = _ink(colour, part.ink)
        # The tube lies inside the edge, so that a thing is as large as in other styles.
        tube = np.abs(part.distance + TUBE / 2) - TUBE / 2
        cover(picture, 0.9 * coverage(part.distance, density * unit), mix(BOARD, colour, 0.2))
        light_up(picture, 0.5 * fading(tube, GLOW), glow)
        cover(picture, coverage(tube, density * unit), glow)
        cover(picture, 0.6 * coverage(tube + TUBE / 3, density * unit), WHITE)


def _ink(colour: RGB, ink: Ink) -> RGB:
    """The gas in the tube of a part."""
    return {"body": colour, "shade": colour, "light": mix(colour, WHITE, 0.5), "dark": mix(colour, BOARD, 0.15)}[ink]
