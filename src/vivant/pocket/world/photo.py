"""Camera moves over photographs, beside those over drawn scenes."""

import math

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from vivant.pocket.world.motion import Camera, camera
from vivant.pocket.world.scene import CAMERA_MOTIONS, Magnitude, Motion

PHOTO_MOTIONS: tuple[Motion, ...] = ("still", *CAMERA_MOTIONS)
Pair = Float64[np.ndarray, " 2"]
MIN_SHARE = 0.6  # of the largest piece of the photo that the camera could move over
# Samples for each pixel along a side, and pixels of the photo for each pixel of the first frame. Together they neither
# skip pixels of the photo when the camera has zoomed out nor blur when it has zoomed in.
NUM_SAMPLES = 3
DETAIL = 2


def move_over(
    photo: UInt8[np.ndarray, "h w 3"],
    rng: np.random.Generator,
    motion: Motion,
    magnitude: Magnitude,
    num_frames: int,
    size: int | tuple[int, int],
) -> UInt8[np.ndarray, "f i j 3"]:
    """A clip of the camera moving over a random piece of a photo, all of it inside the photo.

    Args:
        motion: one of `PHOTO_MOTIONS`.
        size: pixels of a side, or (height, width).

    Raises:
        ValueError: a photo stands still but for the camera.
    """
    if motion not in PHOTO_MOTIONS:
        raise ValueError(f"Nothing in a photo can be {motion}; choose one of {', '.join(PHOTO_MOTIONS)}.")
    h, w = (size, size) if isinstance(size, int) else size
    view = camera(motion, magnitude, num_frames)
    sides = np.array([[-w, w], [-h, h]], dtype=np.float32) / min(h, w)
    x, y = view.to_world(*np.meshgrid(*sides))
    low, high = (np.array([find(x), find(y)], dtype=np.float64) for find in (np.min, np.max))
    # From here on in pixels of the photo: the length of the world's unit, and where the world's middle lies.
    shape = np.array(photo.shape[1::-1])
    unit = rng.uniform(MIN_SHARE, 1) * np.min(shape / (high - low))
    middle = rng.uniform(-low * unit, shape - high * unit)
    (left, top), (right, bottom) = ([float(v) for v in np.clip(middle + p * unit, 0, shape)] for p in (low, high))
    fine = np.ceil((high - low) * min(unit, DETAIL * min(h, w) / 2)).astype(int)
    detail = (int(fine[0]), int(fine[1]))
    piece = Image.fromarray(photo).resize(detail, Image.Resampling.LANCZOS, (left, top, right, bottom))
    return np.stack([_frame(piece, _affine(view, i, low, fine / (high - low), h, w), h, w) for i in range(num_frames)])


def _affine(view: Camera, frame: int, low: Pair, unit: Pair, h: int, w: int) -> tuple[float, ...]:
    """From samples of a frame to pixels of the piece: a, b, c, d, e, f of x' = a x + b y + c, y' = d x + e y + f.

    Args:
        low: the point of the world in the upper left corner of the piece.
        unit: how many of its pixels the world's unit has, across and down.
    """
    step = 2 / (NUM_SAMPLES * min(h, w) * float(view.zoom[frame]))  # from sample to sample in the world
    cos, sin = step * math.cos(view.roll[frame]), step * math.sin(view.roll[frame])
    x, y = NUM_SAMPLES * w / 2, NUM_SAMPLES * h / 2  # the middle of the frame
    left, top = float(view.x[frame] - low[0]), float(-low[1])
    rows = ((cos, sin, left - cos * x - sin * y), (-sin, cos, top + sin * x - cos * y))
    return tuple(float(u) * value for u, row in zip(unit, rows, strict=True) for value in row)


def _frame(piece: Image.Image, affine: tuple[float, ...], h: int, w: int) -> UInt8[np.ndarray, "h w 3"]:
    samples = (NUM_SAMPLES * w, NUM_SAMPLES * h)
    frame = piece.transform(samples, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return np.asarray(frame.reduce(NUM_SAMPLES))
