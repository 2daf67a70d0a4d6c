"""Picture prompts: what IP-Adapters show of pictures in a run. It does not change between steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vivant.errors import InputError
from vivant.pia.ip_adapter import IPAdapter, places
from vivant.pia.ip_scale import Scale, Scales
from vivant.pia.layers import PictureKeysValues
from vivant.pia.unet import StageText, Text, UNetMotionModel
from vivant.placement import MemoryPolicy, active


@dataclass(frozen=True, eq=False)
class PicturePrompt:
    """What one adapter is shown.

    Attributes:
        adapter: the adapter.
        scales: its strength at every attention.
        positive: CLIP's embeddings of n pictures for every prompt (k is the number of prompts), or for all (k is 1).
        negative: the same for the negative prompt; None without guidance.
        masks: where each of the n pictures is seen, 0 to 1; without masks all are seen together everywhere.
    """

    adapter: IPAdapter
    scales: Scales
    positive: Float[Tensor, "k n *l e"]
    negative: Float[Tensor, "k n *l e"] | None = None
    masks: Float[Tensor, "n i j"] | None = None


class SeenPictures(NamedTuple):
    """Keys and values of a run's pictures for every attention to the text, in the order of `places`."""

    positive: tuple[tuple[PictureKeysValues, ...], ...]
    negative: tuple[tuple[PictureKeysValues, ...], ...] | None


@torch.no_grad()
def see(
    prompts: Sequence[PicturePrompt],
    unet: UNetMotionModel,
    num_clips: int,
    size: tuple[int, int],
    memory: MemoryPolicy,
) -> SeenPictures | None:
    """Keys and values of all pictures, once for a run.

    Args:
        prompts: what each adapter is shown; nothing gives None.
        unet: the network that will read them; only its shape and data type matter.
        num_clips: a multiple of the number of prompts; clips of one prompt follow each other.
        size: of the latents, height and width.
        memory: where the adapters compute.
    """
    if not prompts:
        return None
    sizes = [size]
    while len(sizes) < len(unet.down_blocks):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    levels = [sizes[place.level] for place in places(unet)]
    positive, negative = [], []
    for prompt in prompts:
        with active(prompt.adapter, memory) as adapter:
            for seen, embeds in ((positive, prompt.positive), (negative, prompt.negative)):
                if embeds is not None:
                    pairs = adapter(embeds.to(memory.device))
                    parts = zip(pairs, prompt.scales, levels, strict=True)
                    seen.append([_at(*part, prompt.masks, num_clips, unet.dtype) for part in parts])
    return SeenPictures(_by_place(positive), _by_place(negative) if negative else None)


def _by_place(
    seen: Sequence[Sequence[tuple[PictureKeysValues, ...]]],
) -> tuple[tuple[PictureKeysValues, ...], ...]:
    """From adapters of places to places of adapters."""
    return tuple(sum(adapters, ()) for adapters in zip(*seen, strict=True))


def _at(
    pair: tuple[Tensor, Tensor],
    scale: Scale,
    size: tuple[int, int],
    masks: Tensor | None,
    num_clips: int,
    dtype: torch.dtype,
) -> tuple[PictureKeysValues, ...]:
    """What one attention reads of one adapter; nothing at a strength of zero."""
    k, n = pair[0].shape[:2]
    keys, values = (x.to(dtype).repeat_interleave(num_clips // k, dim=0) for x in pair)
    if masks is None:
        assert not isinstance(scale, tuple), "a strength for each picture goes with masks"
        keys, values = (rearrange(x, "b n m c -> b (n m) c") for x in (keys, values))
        return (PictureKeysValues(keys, values * scale),) if scale else ()
    scales = scale if isinstance(scale, tuple) else (scale,) * n
    small = F.interpolate(masks[:, None].float(), size=size, mode="bicubic")
    small = rearrange(small, "n 1 h w -> n (h w) 1").to(keys)
    return tuple(PictureKeysValues(keys[:, i], values[:, i] * scales[i], small[i]) for i in range(n) if scales[i])


def beside(text: Text, pictures: SeenPictures, num_evaluations: int) -> Text:
    """The text of every evaluation with the pictures: the positive ones come last, as of the prompts."""
    halves = [pictures.positive]
    if num_evaluations > 1:
        assert pictures.negative is not None, "guidance without the negative half of pictures"
        halves = [pictures.negative] * (num_evaluations - 1) + halves
    each = iter([tuple(_joined(rows) for rows in zip(*at, strict=True)) for at in zip(*halves, strict=True)])

    def stage(texts: StageText) -> StageText:
        return tuple(tuple(read._replace(pictures=next(each)) for read in layers) for layers in texts)

    down = tuple(stage(texts) for texts in text.down)
    up = tuple(stage(texts) for texts in text.up)
    return Text(down, stage(text.mid), up)  # the middle comes last in the order of `places`


def _joined(rows: Sequence[PictureKeysValues]) -> PictureKeysValues:
    return PictureKeysValues(
        torch.cat([row.keys for row in rows]), torch.cat([row.values for row in rows]), rows[0].mask
    )


def split_embeds(
    adapter: IPAdapter, embeds: object, guided: bool, batch: int | None, index: int
) -> tuple[Float[Tensor, "k n *l e"], Float[Tensor, "k n *l e"] | None]:
    """Ready embeddings for one adapter as their positive and their negative half.

    Args:
        adapter: which reads them.
        embeds: rows of n pictures, with guidance the negative ones first, as diffusers lays them out.
        guided: whether guidance is on.
        batch: number of prompts; there is one row for all or one for each. None admits any number.
        index: of the adapter, for messages.

    Raises:
        InputError: E-IP-ADAPTER-EMBEDS.
    """
    axes = "rows, pictures, positions and channels" if adapter.reads_positions else "rows, pictures and channels"
    num_axes = 4 if adapter.reads_positions else 3
    name = f"ip_adapter_image_embeds[{index}]"
    if not isinstance(embeds, Tensor) or embeds.ndim != num_axes or embeds.shape[-1] != adapter.in_channels:
        found = list(embeds.shape) if isinstance(embeds, Tensor) else type(embeds).__name__
        raise InputError(
            "E-IP-ADAPTER-EMBEDS",
            f"{name} is {found}.",
            f"An adapter of the kind {adapter.kind} reads {axes}, {adapter.in_channels} channels.",
            "Take what prepare_ip_adapter_image_embeds returns.",
        )
    num, rest = divmod(embeds.shape[0], 2 if guided else 1)
    if rest or 0 in embeds.shape or (batch is not None and num not in (1, batch)):
        rows = f"{'negative first, ' if guided else ''}one row for all prompts or one for each of {batch or 'them'}"
        raise InputError(
            "E-IP-ADAPTER-EMBEDS",
            f"{name} has {embeds.shape[0]} rows, and guidance is {'on' if guided else 'off'}.",
            f"Wanted: {rows}.",
            "Take what prepare_ip_adapter_image_embeds returns.",
        )
    if not guided:
        return embeds, None
    negative, positive = embeds.chunk(2)
    return positive, negative


def join_embeds(
    positive: Float[Tensor, "k n *l e"], negative: Float[Tensor, "k n *l e"] | None, num: int
) -> Float[Tensor, "r n *l e"]:
    """The inverse of `split_embeds`, every row repeated `num` times."""
    halves = [positive] if negative is None else [negative, positive]
    return torch.cat([half.repeat_interleave(num, dim=0) for half in halves])


def check_masks(masks: object, num_pictures: Sequence[int], scales: Sequence[Scales]) -> list[Tensor | None]:
    """Masks for every adapter, as `n i j`.

    Args:
        masks: a list with a tensor `1 n i j` or None for each adapter, or a tensor `a 1 i j` of one mask for each.
        num_pictures: of every adapter.
        scales: likewise.

    Raises:
        InputError: E-IP-ADAPTER-MASK when number, shape or values do not fit; E-IP-ADAPTER-SCALE when there are
            strengths for single pictures, and no masks or another number of them.
    """
    given = masks
    if isinstance(given, Tensor):
        given = list(given[:, None]) if given.ndim == 4 else [given]
    given = [None] * len(num_pictures) if given is None else given
    if not isinstance(given, list | tuple) or len(given) != len(num_pictures):
        found = f"{len(given)} entries" if isinstance(given, list | tuple) else type(masks).__name__
        raise _bad_mask(f"ip_adapter_masks has {found} for {len(num_pictures)} adapters.")
    found_masks: list[Tensor | None] = []
    for i, (mask, num, scale) in enumerate(zip(given, num_pictures, scales, strict=True)):
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[:2] != (1, num) or 0 in mask.shape:
                shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
                raise _bad_mask(
                    f"ip_adapter_masks[{i}] is {shape}; there are {num} pictures: wanted is [1, {num}, h, w]."
                )
            if not (mask.ge(0) & mask.le(1)).all():
                raise _bad_mask(f"ip_adapter_masks[{i}] has values outside of 0 to 1.")
        counts = {len(at) for at in scale if isinstance(at, tuple)}
        if counts - ({num} if mask is not None else set[int]()):
            raise InputError(
                "E-IP-ADAPTER-SCALE",
                f"Adapter {i} has {sorted(counts)[0]} strengths for single pictures, and {num} pictures.",
                "" if mask is not None else "Without masks all pictures of an adapter are seen together.",
                "Give one number, or masks and a number for each of their pictures.",
            )
        found_masks.append(None if mask is None else mask[0])
    return found_masks


def is_stretched(mask: Float[Tensor, "n i j"], height: int, width: int) -> bool:
    """Whether a mask has another shape than the clip, by a pixel of the mask or more."""
    return abs(mask.shape[1] * width / height - mask.shape[2]) >= 1


def _bad_mask(what: str) -> InputError:
    return InputError(
        "E-IP-ADAPTER-MASK",
        what,
        "",
        "Give a list with one tensor [1, pictures, height, width] in 0 to 1, or None, for each adapter.",
    )
