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
from vivant.media.still import fit, read_still, to_tensor
from vivant.request import Fit


def pictures(source: Any, height: int, width: int, how: Fit) -> Float[Tensor, "k 3 h w"]:
    """One or several pictures, RGB in [-1, 1].

    Args:
        source: a path, PIL picture, numpy array `h w 3` or `k h w 3` (bytes, or floats in [0, 1]), tensor `3 h w` or
            `k 3 h w` in [0, 1] (negative values say that it already is in [-1, 1]), or a list of such.
        height: of the clip, in pixels.
        width: likewise.
        how: how a picture of another size is brought to this one, see `vivant.media.still.fit`. Arrays and tensors of
            the right size are not rounded to bytes.

    Raises:
        InputError: E-IMAGE-… for what cannot be read.
    """
    items = [part for item in (source if isinstance(source, list | tuple) else [source]) for part in _split(item)]
    if not items:
        raise InputError(
            "E-IMAGE-NONE", "No picture was given.", "", "Give a path, a PIL picture, an array or a tensor."
        )
    return torch.cat([_picture(item, height, width, how) for item in items])


def num_pictures(source: Any) -> int:
    """How many pictures `pictures` makes of `source`, without reading them."""
    return sum(len(_split(item)) for item in (source if isinstance(source, list | tuple) else [source]))


def _split(item: Any) -> Sequence[Any]:
    batched = isinstance(item, np.ndarray | Tensor) and item.ndim == 4
    return list(item) if batched else [item]


def _picture(item: Any, height: int, width: int, how: Fit) -> Tensor:
    if item is None:
        raise InputError(
            "E-IMAGE-NONE", "No picture was given.", "", "Give a path, a PIL picture, an array or a tensor."
        )
    exact = _floats(item)
    if exact is not None and tuple(exact.shape[1:]) == (height, width):
        return exact[None]
    if exact is not None:
        item = Image.fromarray(((exact / 2 + 0.5) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
    return to_tensor(fit(read_still(item).image, width, height, how))


def _floats(item: Any) -> Tensor | None:
    """A floating array or tensor as `3 h w` in [-1, 1], without rounding; None for everything else."""
    if isinstance(item, np.ndarray) and np.issubdtype(item.dtype, np.floating) and item.ndim == 3:
        item = rearrange(torch.from_numpy(np.ascontiguousarray(item, dtype=np.float32)), "h w c -> c h w")
    if not isinstance(item, Tensor) or not item.is_floating_point() or item.ndim != 3 or item.shape[0] != 3:
        return None
    item = item.detach().float().cpu()
    if not torch.isfinite(item).all() or item.abs().max() > 1.0 + 1e-3:
        raise InputError(
            "E-IMAGE-RANGE",
            f"The picture's values reach from {float(item.min()):g} to {float(item.max()):g}.",
            "Floating pictures lie in [0, 1].",
            "Divide bytes by 255.",
        )
    if item.min() < 0:
        warn("W-IMAGE-SIGNED", "A picture tensor has negative values: it is taken to be in [-1, 1] already.")
        return item
    return item * 2 - 1
