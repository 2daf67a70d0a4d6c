"""Clips in memory: uint8 frames `f h w 3`, their rate as a fraction, their hash."""

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vivant.errors import InputError

Rate = int | float | Fraction
Frames = Sequence[Image.Image] | Sequence[np.ndarray] | np.ndarray

MIN_FPS, MAX_FPS = Fraction(1, 100), Fraction(240)
_NTSC = (Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001))
# Decoders and half precision leave a float frame a little outside [0, 1]; more than this is another convention.
_SLACK = 2e-3


MAX_ENLARGE = 16


def as_frames(frames: Frames) -> UInt8[np.ndarray, "f h w 3"]:
    """Bring a clip into one array.

    Args:
        frames: RGB (or grey) pictures, or arrays (h, w, 3), or one array (f, h, w, 3); arrays hold uint8, taken as
            they are, or floats in [0, 1], rounded.

    Raises:
        InputError: E-FRAMES-EMPTY, E-FRAMES-SHAPE (not RGB, or of different sizes), E-FRAMES-RANGE (not uint8 and
            not floats in [0, 1]).
    """
    if len(frames) == 0:
        raise InputError("E-FRAMES-EMPTY", "The clip has no frames.")
    if isinstance(frames, np.ndarray):
        return _to_uint8(frames, f"The clip is an array of shape {frames.shape}")
    arrays = [_frame(frame, i) for i, frame in enumerate(frames)]
    sizes = {array.shape for array in arrays}
    if len(sizes) > 1:
        found = ", ".join(sorted(f"{shape[1]} x {shape[0]}" for shape in sizes))
        raise InputError("E-FRAMES-SHAPE", f"The frames of the clip have different sizes: {found}.")
    return np.stack(arrays)


def frames_hash(frames: Frames) -> str:
    """sha256 over shape and pixels, before any encoding: equal for the same clip on every machine."""
    pixels = as_frames(frames)
    digest = hashlib.sha256("f{} h{} w{} rgb8 ".format(*pixels.shape[:3]).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return f"sha256:{digest.hexdigest()}"


def check_enlarge(times: int) -> None:
    """Refuse (E-ENLARGE) what is no small whole number of times."""
    if type(times) is not int or not 1 <= times <= MAX_ENLARGE:
        raise InputError("E-ENLARGE", f"enlarge is {times!r}.", "", f"Give a whole number from 1 to {MAX_ENLARGE}.")


def enlarged(frames: UInt8[np.ndarray, "f h w 3"], times: int) -> UInt8[np.ndarray, "f h2 w2 3"]:
    """Frames with sides `times` as long, by Pillow's Lanczos filter.

    Raises:
        InputError: E-ENLARGE.
    """
    check_enlarge(times)
    if times == 1:
        return frames
    height, width = frames.shape[1:3]
    size, lanczos = (width * times, height * times), Image.Resampling.LANCZOS
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, lanczos)) for frame in frames])


def as_rate(fps: Rate) -> Fraction:
    """Frames a second as an exact fraction: 12.5 is 25/2, and NTSC's rate is Fraction(30000, 1001)."""
    allowed = f"A rate lies between {MIN_FPS} and {MAX_FPS}."
    if isinstance(fps, bool) or not isinstance(fps, int | float | Fraction) or not abs(fps) < math.inf:
        raise InputError("E-OUTPUT-FPS", f"{fps!r} is not a number of frames a second.", allowed)
    # A float such as 8.1 means the short decimal, not its binary expansion; containers hold 16 bits of denominator.
    rate = Fraction(fps).limit_denominator(10_000)
    if not MIN_FPS <= rate <= MAX_FPS:
        raise InputError("E-OUTPUT-FPS", f"A clip cannot have {fps} frames a second.", allowed)
    return rate


def pad_to_even(frames: UInt8[np.ndarray, "f h w 3"]) -> UInt8[np.ndarray, "f h2 w2 3"]:
    """Repeat the last row or column where a side is odd: 4:2:0 colour comes in blocks of 2 x 2 pixels."""
    _, height, width, _ = frames.shape
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def frame_ends(num_frames: int, fps: Fraction, ticks: int) -> list[int]:
    """When each frame ends, in 1/`ticks` s, every one rounded from the exact time so that no error accumulates."""
    return [math.floor(Fraction((i + 1) * ticks) / fps + Fraction(1, 2)) for i in range(num_frames)]


def rate_of(ends: Sequence[int | float], ticks: int, rounding: Fraction = Fraction(1, 2)) -> Fraction | None:
    """The simplest rate whose frames end at `ends` (in 1/`ticks` s, off by `rounding` at most); else the mean rate.

    The inverse of `frame_ends`: 8 frames a second in centiseconds end at 13, 25, 38, 50, and give 8 again.
    """
    if not ends or ends[-1] <= rounding:
        return None
    times = [Fraction(end).limit_denominator(1_000_000) for end in ends]
    low = max((i + 1) * ticks / (end + rounding) for i, end in enumerate(times))
    high = min((i + 1) * ticks / (end - rounding) for i, end in enumerate(times) if end > rounding)
    if low > high:
        return len(times) * ticks / times[-1]
    simplest = _simplest_between(low, high)
    if simplest.denominator > 2:
        return next((ntsc for ntsc in _NTSC if low <= ntsc <= high), simplest)
    return simplest


def _simplest_between(low: Fraction, high: Fraction) -> Fraction:
    """The fraction of smallest denominator in [low, high] (both positive), by the Stern-Brocot tree."""
    whole = math.ceil(low)
    if whole <= high:
        return Fraction(whole)
    base = math.floor(low)
    return base + 1 / _simplest_between(1 / (high - base), 1 / (low - base))


def _frame(frame: Image.Image | np.ndarray, i: int) -> np.ndarray:
    if isinstance(frame, Image.Image):
        if frame.mode not in ("RGB", "L"):
            raise _bad_shape(f"Frame {i} has the colour mode {frame.mode}")
        return np.asarray(frame.convert("RGB"))
    if not isinstance(frame, np.ndarray):
        raise _bad_shape(f"Frame {i} is a {type(frame).__name__}")
    if frame.ndim != 3:
        raise _bad_shape(f"Frame {i} is an array of shape {frame.shape}")
    return _to_uint8(frame[None], f"Frame {i} is an array of shape {frame.shape}")[0]


def _to_uint8(pixels: np.ndarray, what: str) -> np.ndarray:
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise _bad_shape(what)
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise _bad_range(f"{what} and type {pixels.dtype}")
    if not np.isfinite(pixels).all():
        raise _bad_range(f"{what} and holds values that are not finite")
    if pixels.min() < -_SLACK or pixels.max() > 1 + _SLACK:
        raise _bad_range(f"{what} and holds values from {pixels.min():.3g} to {pixels.max():.3g}")
    return np.rint(pixels.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)


def _bad_shape(what: str) -> InputError:
    return InputError("E-FRAMES-SHAPE", f"{what}.", "", "Pass RGB pictures, or arrays (h, w, 3).")


def _bad_range(what: str) -> InputError:
    return InputError("E-FRAMES-RANGE", f"{what}.", "", "Pass uint8, or floats in [0, 1].")
