"""FreeInit: steadier clips by re-initialising the noise (Wu et al. 2023, arXiv 2312.07537).

A clip is denoised several times. Between two iterations the result is noised again with the noise it came from,
and only its low frequencies (in time and space) are kept; the high ones are drawn afresh. Everything here is
arithmetic in variance-preserving space: a solver that works in sigma space multiplies by its initial sigma afterwards.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from vivant.config import as_python
from vivant.errors import InputError, warn

Method = Literal["butterworth", "gaussian", "ideal", "box"]
METHODS: tuple[str, ...] = get_args(Method)
DEFAULT_ORDER = 4
# Below this the squares in the filters leave the range of a float; nobody means such a frequency.
MIN_FREQUENCY = 1e-6

# abar at or below this is "no signal": zero-terminal-SNR schedules end in 0, or in 2^-24 where a solver divides by it.
NO_SIGNAL = 2.0**-24
# abar at which re-noising still carries the clip. The schedules that FreeInit was published with end at 0.0016
# (linear betas) and 0.0047 (scaled linear). On a zero-terminal-SNR schedule the step just before the last has 6e-8,
# which is above zero but as good as nothing.
MIN_SIGNAL = 1e-3

CLIP_AXES = (-3, -2, -1)
NATIVE_FFT = frozenset({"cpu", "cuda", "xpu", "meta"})


@dataclass(frozen=True)
class FreeInit:
    """Settings of FreeInit; the defaults are those of the method's authors.

    Attributes:
        num_iters: how many times the clip is denoised, the first time included.
        use_fast_sampling: coarse to fine: the early iterations take fewer steps.
        method: the low-pass filter, one of `METHODS`.
        order: order of the butterworth filter; the other methods have none.
        spatial_stop_frequency: d_s in the paper, 0 (nothing is kept) or 1e-6 to 1, where 1 is the Nyquist frequency.
        temporal_stop_frequency: d_t in the paper, same range.

    Raises:
        InputError: E-FREEINIT-ITERATIONS, -FAST, -METHOD, -ORDER or -FREQUENCY.
    """

    num_iters: int = 3
    use_fast_sampling: bool = False
    method: Method = "butterworth"
    order: int | float = DEFAULT_ORDER
    spatial_stop_frequency: float = 0.25
    temporal_stop_frequency: float = 0.25

    def __post_init__(self):
        for field in fields(self):
            object.__setattr__(self, field.name, as_python(getattr(self, field.name)))
        if not isinstance(self.num_iters, int) or isinstance(self.num_iters, bool) or self.num_iters < 1:
            raise InputError(
                "E-FREEINIT-ITERATIONS",
                f"FreeInit cannot run {self.num_iters!r} iterations.",
                "num_iters is a whole number and counts the first pass.",
                "Use 1 or more; 3 is usual.",
            )
        if not isinstance(self.use_fast_sampling, bool):
            raise InputError("E-FREEINIT-FAST", f"use_fast_sampling is True or False, not {self.use_fast_sampling!r}.")
        if self.method not in METHODS:
            raise InputError(
                "E-FREEINIT-METHOD",
                f"FreeInit has no filter {self.method!r}.",
                fix=f"Choose one of {', '.join(METHODS)}.",
            )
        if not _is_finite(self.order) or self.order <= 0:
            raise InputError("E-FREEINIT-ORDER", f"The order of a filter is a positive number, not {self.order!r}.")
        if self.method != "butterworth" and self.order != DEFAULT_ORDER:
            warn("W-FREEINIT-ORDER", f"order={self.order} has no effect: the {self.method} filter has no order.")
        for name in ("spatial_stop_frequency", "temporal_stop_frequency"):
            value = getattr(self, name)
            if not _is_finite(value) or not (value == 0 or MIN_FREQUENCY <= value <= 1):
                raise InputError(
                    "E-FREEINIT-FREQUENCY",
                    f"{name} = {value!r} is not a stop frequency.",
                    f"It is 0 or lies between {MIN_FREQUENCY} and 1 (the highest frequency of the clip).",
                    "0.25 is usual.",
                )

    def num_steps(self, iteration: int, num_steps: int) -> int:
        """How many of `num_steps` solver steps iteration `iteration` (from 0) takes: the share (k + 1) / num_iters.

        In whole numbers, so that the last iteration takes all of them whatever num_iters is.
        """
        if not self.use_fast_sampling:
            return num_steps
        return max(1, num_steps * (iteration + 1) // self.num_iters)


def low_pass(f: int, h: int, w: int, settings: FreeInit) -> Float[Tensor, "f h w"]:
    """The low-pass filter for latents of f frames and h x w, zero frequency in the middle (fftshift order).

    With d2 = ((ds/dt)(2i/f - 1))^2 + (2j/h - 1)^2 + (2k/w - 1)^2 the methods are butterworth `1/(1 + (d2/ds^2)^order)`,
    gaussian `exp(-d2 / (2 ds^2))` and ideal `d2 <= 2 ds`; box keeps a block around the middle. A stop frequency of
    zero lets nothing pass.

    Returns:
        Values in [0, 1], float32, on the CPU.
    """
    ds, dt = settings.spatial_stop_frequency, settings.temporal_stop_frequency
    if ds == 0 or dt == 0:
        return torch.zeros(f, h, w)
    if settings.method == "box":
        return _box(f, h, w, ds, dt)
    # float64 up to the last line: the squared distance decides about equality in "ideal".
    d2 = _squares(f, ds / dt)[:, None, None] + _squares(h, 1.0)[:, None] + _squares(w, 1.0)
    match settings.method:
        case "butterworth":
            values = 1 / (1 + (d2 / ds**2) ** settings.order)
        case "gaussian":
            values = torch.exp(-1 / (2 * ds**2) * d2)
        case "ideal":
            # parity: d2 is a square and 2 ds is not; both references compare the two (test_low_pass_is_bit_equal).
            values = d2 <= 2 * ds
    return values.float()


def _squares(n: int, scale: float) -> Float[Tensor, " n"]:
    """Squared coordinates of one axis of the centred spectrum, in Python floats so that no rounding can differ."""
    # parity: for odd n the zero frequency is at -1/n instead of 0 (test_low_pass_is_bit_equal).
    return torch.tensor([(scale * (2 * i / n - 1)) ** 2 for i in range(n)], dtype=torch.float64)


def _box(f: int, h: int, w: int, ds: float, dt: float) -> Float[Tensor, "f h w"]:
    """A block of ones around the middle, as high as wide, without its last bin on the positive side."""
    near_t, near_s = round(f // 2 * dt), round(h // 2 * ds)
    mask = torch.zeros(f, h, w)
    inside = [slice(max(0, n // 2 - near), n // 2 + near) for n, near in ((f, near_t), (h, near_s), (w, near_s))]
    mask[tuple(inside)] = 1
    return mask


def renoise(
    z0: Float[Tensor, "b c f h w"], noise: Float[Tensor, "b c f h w"], abar: float
) -> Float[Tensor, "b c f h w"]:
    """The forward process in variance-preserving space: z_t = sqrt(abar) z0 + sqrt(1 - abar) noise, in float32."""
    return math.sqrt(abar) * z0.float() + math.sqrt(1 - abar) * noise.float()


def reinitialise(
    z_t: Float[Tensor, "b c f h w"], z_rand: Float[Tensor, "b c f h w"], low_pass: Float[Tensor, "f h w"]
) -> Float[Tensor, "b c f h w"]:
    """Low frequencies of the re-noised clip, high ones of fresh noise: the method's one idea.

    Args:
        z_t: the previous result, noised again with its own initial noise.
        z_rand: fresh standard normal noise.
        low_pass: from `low_pass()`.

    Returns:
        Noise to start the next iteration from, computed in float32, with the dtype and device of `z_t`.
    """
    device = fft_device(z_t.device)
    low = torch.fft.ifftshift(low_pass.to(device))
    clip, fresh = (torch.fft.fftn(z.to(device, torch.float32), dim=CLIP_AXES) for z in (z_t, z_rand))
    # The filters are not symmetric about the zero frequency, so a real transform would give another result.
    mixed = torch.fft.ifftn(clip * low + fresh * (1 - low), dim=CLIP_AXES).real
    return mixed.to(z_t)


def fft_device(device: torch.device) -> torch.device:
    """Where to transform data of `device`: backends without a complete FFT copy to the CPU, once an iteration."""
    return device if device.type in NATIVE_FFT else torch.device("cpu")


def last_signal_timestep(alphas_cumprod: Sequence[float] | Float[Tensor, " steps"]) -> int:
    """The training timestep to re-noise at: the last one, unless it holds no signal (zero-terminal-SNR).

    Re-noising at a step without signal would return the old noise and lose the clip; then it is the last step whose
    abar is at least `MIN_SIGNAL`.
    """
    last = len(alphas_cumprod) - 1
    if alphas_cumprod[last] > NO_SIGNAL:
        return last
    return max(t for t, abar in enumerate(alphas_cumprod) if abar >= MIN_SIGNAL)


def _is_finite(value: object) -> bool:
    """Whether `value` is an ordinary number: True is none, nor are NaN, infinity and what no float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
