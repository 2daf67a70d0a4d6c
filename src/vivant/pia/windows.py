"""Clips longer than motion modules were trained for: overlapping windows of frames, whose predictions are blended.

At every step the network sees one window after the other, and a frame's prediction is the weighted mean of those of
the windows that hold it (MultiDiffusion, Bar-Tal et al. 2023, arXiv 2302.08113, eq. 5, along the frames). The solver
sees one clip. FreeNoise (Qiu et al. 2023, arXiv 2310.15169) gives windows related initial noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, get_args

from einops import repeat
from jaxtyping import Float
from torch import Tensor

from vivant.config import as_python
from vivant.errors import InputError

Blend = Literal["uniform", "pyramid"]
Noise = Literal["fresh", "freenoise"]
BLENDS: tuple[str, ...] = get_args(Blend)
NOISES: tuple[str, ...] = get_args(Noise)
LENGTH = 16


@dataclass(frozen=True)
class Windows:
    """How a clip is cut into windows. A clip that is not longer than one window is not changed by any of it.

    Attributes:
        length: frames of a window; what the motion modules were trained with is best, 16 for PIA.
        stride: frames from one window to the next; half of `length` (rounded up) if None. Time grows with
            `length / stride`.
        weights: of the predictions in a window: ``"pyramid"``, most in its middle, or ``"uniform"``.
        noise: ``"fresh"`` for every frame, or ``"freenoise"``: that of the first window again and again, shuffled.
        closed: let windows go over the end to the beginning, so that the last frame leads to the first.

    Raises:
        InputError: E-WINDOWS-LENGTH, -STRIDE, -WEIGHTS, -NOISE or -CLOSED.
    """

    length: int = LENGTH
    stride: int | None = None
    weights: Blend = "pyramid"
    noise: Noise = "fresh"
    closed: bool = False

    def __post_init__(self):
        for field in fields(self):
            object.__setattr__(self, field.name, as_python(getattr(self, field.name)))
        _check_count("E-WINDOWS-LENGTH", "length", self.length, 2, None)
        if self.stride is not None:
            _check_count("E-WINDOWS-STRIDE", "stride", self.stride, 1, self.length)
        _check_choice("E-WINDOWS-WEIGHTS", "weights", self.weights, BLENDS)
        _check_choice("E-WINDOWS-NOISE", "noise", self.noise, NOISES)
        if not isinstance(self.closed, bool):
            raise InputError("E-WINDOWS-CLOSED", f"closed is {self.closed!r}.", "", "Give true or false.")

    @property
    def step(self) -> int:
        """Frames from one window to the next."""
        return (self.length + 1) // 2 if self.stride is None else self.stride


class Window(NamedTuple):
    """Frames that the network sees together.

    Attributes:
        frames: their numbers in the clip, in the order in which the network sees them.
        weights: of their predictions; over all windows those of a frame sum to 1.
    """

    frames: tuple[int, ...]
    weights: tuple[float, ...]


def windows(num_frames: int, settings: Windows | None) -> tuple[Window, ...]:
    """The windows of a clip, all of one length.

    They begin at multiples of the stride; the last one ends with the clip. Closed ones go round instead. Without
    settings, and in clips that fit into one window, there is one window with all frames.
    """
    if settings is None or num_frames <= settings.length:
        return (Window(tuple(range(num_frames)), (1.0,) * num_frames),)
    length, last = settings.length, num_frames - settings.length
    starts = list(range(0, num_frames if settings.closed else last + 1, settings.step))
    if not settings.closed and starts[-1] != last:
        starts.append(last)
    shares = _shares(length, settings.weights)
    members = [tuple((start + k) % num_frames for k in range(length)) for start in starts]
    totals = [0.0] * num_frames
    for frames in members:
        for frame, share in zip(frames, shares, strict=True):
            totals[frame] += share
    return tuple(
        Window(frames, tuple(share / totals[frame] for frame, share in zip(frames, shares, strict=True)))
        for frames in members
    )


def _shares(length: int, blend: Blend) -> list[float]:
    """Weights inside a window before normalisation: 1, 2, …, 2, 1 for the pyramid."""
    if blend == "uniform":
        return [1.0] * length
    return [float(min(k + 1, length - k)) for k in range(length)]


def repeated_noise(
    noise: Float[Tensor, "b c f h w"], keys: Float[Tensor, "b f"], settings: Windows
) -> Float[Tensor, "b c f h w"]:
    """FreeNoise's initial noise: frames after the first window repeat the noise `length` frames before, shuffled.

    Every `stride` frames are shuffled among themselves, each clip by its own keys (arXiv 2310.15169, section 3.2).

    Args:
        noise: standard normal; that of the first `length` frames is used.
        keys: random numbers, whose order within each group of frames is the shuffle.
        settings: length and stride.
    """
    num_frames, (length, stride) = noise.shape[2], (settings.length, settings.step)
    shuffled = noise.clone()
    for start in range(length, num_frames, stride):
        here = slice(start, min(start + stride, num_frames))
        # Of a group that the clip's end cuts off, the frames that come first in the whole group's shuffle.
        order = (
            start - length + keys[:, start - length : start - length + stride].argsort(dim=1)[:, : here.stop - start]
        )
        index = repeat(order, "b k -> b c k h w", c=noise.shape[1], h=noise.shape[3], w=noise.shape[4])
        shuffled[:, :, here] = shuffled.gather(2, index)
    return shuffled


def _check_count(code: str, name: str, value: object, low: int, high: int | None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        limits = f"{low} or more" if high is None else f"from {low} to {high}, the length of a window"
        raise InputError(code, f"Windows cannot have {name} = {value!r}.", "", f"Give a whole number, {limits}.")


def _check_choice(code: str, name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        what = f"Windows cannot have {name} = {value!r}."
        raise InputError(code, what, "", f"Choose one of {', '.join(allowed)}.")
