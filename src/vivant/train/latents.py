"""A data set encoded once: latents, captions and frame differences in files, so that training reads no pixels.

Encoding is resumed where it stopped. Every file is complete or not there.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vivant.config import dump_json, load_json
from vivant.errors import InputError
from vivant.media.atomic import replacing
from vivant.train.affinity import differences
from vivant.train.samples import Source, numpy_rng
from vivant.vae.image import AutoencoderKL

SHARD = 256
"""Clips in a file."""
PIXELS = 1 << 18
"""What is encoded together: one frame of 512 x 512, or 64 of 64 x 64."""
WORKERS = 1
"""Processes that read clips while others are encoded."""


@dataclass(frozen=True)
class Encoded:
    """A clip as the autoencoder sees it: mean and deviation of its latents, already scaled.

    Attributes:
        mean: of the latents of every frame.
        deviation: their standard deviation.
        differences: of every pair of frames (`affinity.differences`).
        caption: what is to be seen.
    """

    mean: Float[Tensor, "f c h w"]
    deviation: Float[Tensor, "f c h w"]
    differences: Float[Tensor, "f f"]
    caption: str


@dataclass(frozen=True)
class Latents:
    """A folder written by `encode`, as a source."""

    folder: Path
    num: int

    def __len__(self) -> int:
        return self.num

    def read(self, index: int, rng: np.random.Generator) -> Encoded:
        """Clip `index`; nothing is random about it."""
        tensors, caption = read_stored(self.folder, index)
        return Encoded(**tensors, caption=caption)

    def captions(self) -> list[str]:
        """Of every clip."""
        shards = range(-(-self.num // SHARD))
        return [text for shard in shards for text in _opened(self.folder / _name(shard))[1]]


@dataclass(frozen=True)
class Chosen:
    """Clips of a source: those of `indices`, in that order, as often as they are named."""

    source: Source
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int, rng: np.random.Generator) -> Any:
        """The clip that stands at `index`."""
        return self.source.read(self.indices[index], rng)


def repeated(latents: Latents, often: Mapping[str, int]) -> Chosen:
    """Clips as often as what their captions say: the largest number among the phrases of a caption, or once.

    Raises:
        InputError: E-TRAIN-SETTING for a phrase that no caption has, and where nothing is left.
    """
    captions = latents.captions()
    for phrase in often:
        if not any(phrase in text for text in captions):
            raise InputError("E-TRAIN-SETTING", f"often has {phrase!r}, which no caption of {latents.folder} has.")
    times = [max((num for phrase, num in often.items() if phrase in text), default=1) for text in captions]
    indices = [i for i, num in enumerate(times) for _ in range(num)]
    if not indices:
        raise InputError("E-TRAIN-SETTING", "often leaves no clip.", "Every caption has a phrase that counts 0 times.")
    return Chosen(latents, indices)


def _name(shard: int) -> str:
    return f"latents-{shard:05d}.safetensors"


@lru_cache(maxsize=64)
def _opened(path: Path) -> tuple[Any, list[str]]:
    file: Any = safe_open(path, framework="pt")
    return file, json.loads(file.metadata()["captions"])


@torch.no_grad()
def encode(
    source: Source,
    vae: AutoencoderKL,
    folder: Path,
    what: Mapping[str, Any],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> Latents:
    """Encode every clip of a source once, in bfloat16.

    Args:
        source: clips.
        vae: encodes and scales them.
        folder: where to write; what is there already is kept.
        what: describes source and autoencoder; a folder begun with another description is refused.
        seed: of the random choices of the source.
        dtype: in what to compute.
        on_clip: told how many clips are done, of how many.

    Raises:
        InputError: E-TRAIN-LATENTS for a folder of another data set.
    """
    frozen = copy.deepcopy(vae).to(dtype=dtype)

    def encoded(group: Sequence[_Clip]) -> dict[str, Tensor]:
        together = max(1, PIXELS // group[0].pixels[..., 0].size)
        pixels = [np.stack([clip.pixels for clip in group[i : i + together]]) for i in range(0, len(group), together)]
        parts = [_encoded(frozen, part) for part in pixels]
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {**tensors, "differences": torch.from_numpy(np.stack([clip.differences for clip in group]))}

    store(source, folder, what, _picked, encoded, seed=seed, on_clip=on_clip)
    return Latents(folder, len(source))


def store(
    source: Source,
    folder: Path,
    what: Mapping[str, Any],
    pick: Callable[[Any], Any],
    encoded: Callable[[Sequence[Any]], dict[str, Tensor]],
    *,
    seed: int = 0,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write what is made of every clip of a source, `SHARD` clips a file; what is there already is kept.

    Args:
        pick: from a clip to what is encoded, which has a caption; runs in the reading processes.
        encoded: from a group of those to tensors with the clips along their first axis.

    Raises:
        InputError: E-TRAIN-LATENTS for a folder of another data set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described = {"num": len(source), "seed": seed, "what": json.loads(json.dumps(what, default=str))}
    note = folder / "latents.json"
    if note.is_file() and load_json(note) != described:
        raise InputError(
            "E-TRAIN-LATENTS",
            f"{folder} holds latents of another data set or autoencoder.",
            "",
            "Choose another folder for the latents, or remove that one.",
        )
    dump_json(described, note)
    missing = [i for i in range(len(source)) if not (folder / _name(i // SHARD)).is_file()]
    read = DataLoader(_Read(source, seed, missing, pick), batch_size=None, num_workers=WORKERS, collate_fn=_as_it_is)
    clips = iter(read)
    for shard in sorted({i // SHARD for i in missing}):
        first, last = shard * SHARD, min(len(source), (shard + 1) * SHARD)
        group = list(islice(clips, last - first))
        tensors, captions = encoded(group), json.dumps([clip.caption for clip in group])
        with replacing(folder / _name(shard), overwrite=False) as temporary:
            save_file(tensors, temporary, metadata={"captions": captions})
        on_clip(last, len(source))


def read_stored(folder: Path, index: int) -> tuple[dict[str, Tensor], str]:
    """Everything that was stored of a clip, floating point numbers in float32, and its caption."""
    shard, place = divmod(index, SHARD)
    tensors, captions = _opened(folder / _name(shard))
    values = {name: tensors.get_slice(name)[place] for name in tensors.keys()}  # noqa: SIM118, no mapping
    return {name: v.float() if v.is_floating_point() else v for name, v in values.items()}, captions[place]


class _Clip(NamedTuple):
    pixels: UInt8[np.ndarray, "f h w 3"]
    differences: Float[np.ndarray, "f f"]
    caption: str


@dataclass(frozen=True)
class _Read(Dataset[Any]):
    """Clips of a source as torch's reading processes see them."""

    source: Source
    seed: int
    indices: Sequence[int]
    pick: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Any:
        i = self.indices[place]
        return self.pick(self.source.read(i, numpy_rng(self.seed, i)))


def _picked(clip: Any) -> _Clip:
    return _Clip(clip.pixels, differences(clip.pixels), clip.caption)


def _as_it_is(clip: Any) -> Any:
    """In place of torch's own collation, which would turn arrays into tensors."""
    return clip


def _encoded(vae: AutoencoderKL, pixels: UInt8[np.ndarray, "n f h w 3"]) -> dict[str, Tensor]:
    n, _, h, w, _ = pixels.shape
    frames = rearrange(torch.from_numpy(pixels), "n f h w c -> (n f) c h w").to(vae.device, vae.dtype) / 127.5 - 1
    vae.chunk_size = max(1, PIXELS // (h * w))
    moments = rearrange(vae.encode_moments(frames).float(), "(n f) c h w -> n f c h w", n=n)
    mean, logvar = moments.chunk(2, dim=2)
    scale = vae.settings.scaling_factor
    deviation = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
    return {"mean": (scale * mean).bfloat16(), "deviation": (scale * deviation).bfloat16()}
