"""The condition pictures of a request as one tensor of the clip's size."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vivant.errors import InputError, warn
from vivant.media.still import Fit, fit, read_still, to_tensor


def pictures(source: Any, height: int, width: int, how: Fit) -> Float[Tensor, "k 3 h w"]:
    """One or several pictures, RGB in [-1, 1].

    Args:
        source: a path, PIL picture, numpy array `h w 3` or `k h w 3` (bytes, or floats in [0, 1]), tensor `3 h w` or
            `k 3 h w` in [0, 1], or a list of such. Negative values in one of several floating pictures say that all
            of these are in [-1, 1] already (W-IMAGE-SIGNED).
        height: of the clip, in pixels.
        width: likewise.
        how: how a picture of another size is brought to this one, see `vivant.media.still.fit`. Floating pictures of
            the right size are not rounded to bytes.

    Raises:
        InputError: E-IMAGE-… for what cannot be read.
    """
    items = listed(source)
    exact = [_floats(item) for item in items]
    signed = any(item is not None and item.min() < 0 for item in exact)
    if signed:
        warn("W-IMAGE-SIGNED", "A floating picture has negative values: it is taken to be in [-1, 1] already.")
    found = []
    for item, floats in zip(items, exact, strict=True):
        if floats is None:
            found.append(to_tensor(fit(read_still(item).image, width, height, how)))
        elif tuple(floats.shape[1:]) == (height, width):
            found.append((floats if signed else floats * 2 - 1)[None])
        else:
            rounded = ((floats / 2 + 0.5 if signed else floats) * 255).round().clamp(0, 255).byte()
            image = Image.fromarray(rearrange(rounded, "c h w -> h w c").numpy())
            found.append(to_tensor(fit(read_still(image).image, width, height, how)))
    return torch.cat(found)


def num_pictures(source: Any) -> int:
    """How many pictures `pictures` makes of `source`, without reading them.

    Raises:
        InputError: E-IMAGE-NONE when there is none.
    """
    return len(listed(source))


def picture_sizes(source: Any) -> list[tuple[int, int]]:
    """Width and height in pixels of the pictures that `pictures` reads, upright."""
    sizes = []
    for item in listed(source):
        floats = _floats(item)
        sizes.append(read_still(item).image.size if floats is None else (floats.shape[2], floats.shape[1]))
    return sizes


def listed(source: Any) -> list[Any]:
    """The single pictures of a list, an array or a tensor, unread.

    Raises:
        InputError: E-IMAGE-NONE when there is none.
    """
    items = [part for item in (source if isinstance(source, list | tuple) else [source]) for part in _split(item)]
    if not items or any(item is None for item in items):
        raise InputError(
            "E-IMAGE-NONE", "No picture was given.", "", "Give a path, a PIL picture, an array or a tensor."
        )
    return items


def _split(item: Any) -> Sequence[Any]:
    batched = isinstance(item, np.ndarray | Tensor) and item.ndim == 4
    return list(item) if batched else [item]


def _floats(item: Any) -> Tensor | None:
    """A floating array or tensor as `3 h w`, without rounding; None for everything else."""
    if isinstance(item, np.ndarray) and np.issubdtype(item.dtype, np.floating) and item.ndim == 3:
        item = rearrange(torch.from_numpy(np.ascontiguousarray(item, dtype=np.float32)), "h w c -> c h w")
    if not isinstance(item, Tensor) or not item.is_floating_point() or item.ndim != 3 or item.shape[0] != 3:
        return None
    if item.numel() == 0:  # `read_still` says so
        return None
    item = item.detach().float().cpu()
    if not torch.isfinite(item).all() or item.abs().max() > 1.0 + 1e-3:
        raise InputError(
            "E-IMAGE-RANGE",
            f"The picture's values reach from {float(item.min()):g} to {float(item.max()):g}.",
            "Floating pictures lie in [0, 1].",
            "Divide bytes by 255.",
        )
    return item
