"""From a scene to pixels."""

import math

import numpy as np
from jaxtyping import Float32, UInt8

from vivant.pocket.world import neon, paper
from vivant.pocket.world.canvas import Density, Picture, coverage
from vivant.pocket.world.distance import View
from vivant.pocket.world.motion import Camera, Course, camera, course
from vivant.pocket.world.scene import Scene, Style, Thing
from vivant.pocket.world.shapes import outline

STYLES = {"paper": paper, "neon": neon}
# How far from a thing's middle there may be paint, shadow or light of it: a multiple of its unit, and a length.
REACH = 1.8
MARGIN = 0.1


def render(scene: Scene, num_frames: int, size: int | tuple[int, int]) -> UInt8[np.ndarray, "f h w 3"]:
    """The frames of a scene; one frame is a still, the first of every clip.

    Args:
        size: pixels of a side, or (height, width). The world's unit is half the shorter side, so that a longer side
            shows more of the ground.
    """
    view = camera(scene.motion, scene.magnitude, num_frames)
    if view.is_fixed:  # then all but the main thing is painted once
        view = camera(scene.motion, scene.magnitude, 1)
    num_views = len(view.x)
    x, y, density = _look(view, size)
    picture = STYLES[scene.style].paint_ground(scene, x, y, density)
    if scene.second is not None:
        stays = course("still", scene.magnitude, num_views)
        _put(picture, scene.style, scene.second, stays, view, x, y, density)
    picture = np.repeat(picture, num_frames // num_views, axis=1)
    _put(picture, scene.style, scene.main, course(scene.motion, scene.magnitude, num_frames), view, x, y, density)
    return np.ascontiguousarray(np.moveaxis(np.clip(picture, 0, 1) * 255 + 0.5, 0, -1).astype(np.uint8))


def mask(scene: Scene, num_frames: int, size: int | tuple[int, int]) -> Float32[np.ndarray, "f h w"]:
    """How much of each pixel the main thing covers, 0 to 1; arguments as for `render`."""
    x, y, density = _look(camera(scene.motion, scene.magnitude, num_frames), size)
    way = course(scene.motion, scene.magnitude, num_frames)
    return coverage(outline(scene.main.kind, *way.to_thing(scene.main, x, y)) * way.unit(scene.main), density)


def _look(view: Camera, size: int | tuple[int, int]) -> tuple[View, View, Density]:
    """The points of the world behind the middles of the pixels, and how many pixels its unit has."""
    h, w = (size, size) if isinstance(size, int) else size
    unit = min(h, w) / 2
    x = (np.arange(w, dtype=np.float32) + (0.5 - w / 2)) / unit
    y = (np.arange(h, dtype=np.float32) + (0.5 - h / 2)) / unit
    return *view.to_world(*np.meshgrid(x, y)), unit * view.zoom[:, None, None]


def _put(
    picture: Picture, style: Style, thing: Thing, way: Course, view: Camera, x: View, y: View, density: Density
) -> None:
    """Paint a thing, looking only at the pixels that it can reach."""
    middle = view.to_picture((thing.x + way.x)[None], (thing.y + way.y)[None])
    reach = (REACH * thing.radius * way.scale + MARGIN) * view.zoom
    h, w = x.shape[1:]
    unit = min(h, w) / 2
    across, along = (
        slice(_pixel(n / 2 + unit * float(np.min(m - reach))), _pixel(n / 2 + unit * float(np.max(m + reach))) + 1)
        for n, m in zip((w, h), middle, strict=True)
    )
    STYLES[style].paint_thing(
        picture[:, :, along, across], thing, way, x[:, along, across], y[:, along, across], density
    )


def _pixel(place: float) -> int:
    """The pixel at a place along a side; the first one for places before it."""
    return max(0, math.floor(place))
