"""CLIP's image encoder: preparing pictures, embedding them, and reading and writing encoder and processor.

The network is that of transformers. The processor is ours: theirs computes by another library, and other values, where
torchvision is installed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vivant.config import dump_json, load_json
from vivant.errors import InputError, LoadError
from vivant.hub.load import check_keys, read_weights, write_weights
from vivant.hub.repo import TRANSFORMERS
from vivant.media.still import read_still

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

_NOT_IMAGE = ("text_model.", "text_projection.", "logit_scale")
MAX_SIDE = 2048
"""Pixels of the longest side that a configuration may ask for."""


class Pixels(NamedTuple):
    """What a processor makes of pictures."""

    pixel_values: Float[Tensor, "n 3 s s"]


@dataclass(frozen=True)
class CLIPImageProcessor:
    """Pictures as CLIP's image encoder reads them.

    Equal to the bit to that of transformers without torchvision: shortest side to `size` by PIL's bicubic filter, the
    middle square of `crop_size` cut out, bytes to [0, 1], normalised by channel.

    Attributes:
        size: of the shortest side, in pixels.
        crop_size: of the square.
        image_mean: subtracted from every channel.
        image_std: by which every channel is divided.
    """

    size: int = 224
    crop_size: int = 224
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __call__(self, images: Any, return_tensors: str = "pt") -> Pixels:
        """Prepare one picture or a list of them: whatever `vivant.media.still.read_still` reads.

        Raises:
            InputError: E-IMAGE-… for what cannot be read, E-ARG-VALUE for another `return_tensors` than ``"pt"``.
        """
        if return_tensors != "pt":
            raise InputError("E-ARG-VALUE", f"return_tensors={return_tensors!r} is not supported.", "", 'Give "pt".')
        items = images if isinstance(images, list | tuple) else [images]
        return Pixels(torch.stack([self.prepare(read_still(item).image) for item in items]))

    def prepare(self, image: Image.Image) -> Float[Tensor, "3 s s"]:
        """One upright RGB picture."""
        short, long = sorted(image.size)
        longer = int(self.size * long / short)
        wide = image.width >= image.height
        image = image.resize((longer, self.size) if wide else (self.size, longer), Image.Resampling.BICUBIC)
        top, left = (image.height - self.crop_size) // 2, (image.width - self.crop_size) // 2
        image = image.crop((left, top, left + self.crop_size, top + self.crop_size))
        values = (np.asarray(image, dtype=np.float64) * (1 / 255)).astype(np.float32)
        mean, std = (np.array(each, dtype=np.float32) for each in (self.image_mean, self.image_std))
        return rearrange(torch.from_numpy((values - mean) / std), "h w c -> c h w")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """From the content of `preprocessor_config.json`, in any of the forms that were published.

        Raises:
            LoadError: E-CONFIG-VALUE for another preparation than CLIP's.
        """
        size, crop_size = config.get("size", cls.size), config.get("crop_size", cls.crop_size)
        size: Any = size.get("shortest_edge") if isinstance(size, Mapping) else size
        if isinstance(crop_size, Mapping):
            crop_size: Any = crop_size.get("height") if crop_size.get("height") == crop_size.get("width") else crop_size
        steps = {f"do_{name}": True for name in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")}
        fixed = {**steps, "resample": 3, "rescale_factor": 1 / 255}
        wrong = [name for name, value in fixed.items() if config.get(name, value) not in (value, None)]
        lists = [config.get(name, getattr(cls, name)) for name in ("image_mean", "image_std")]
        fits = all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in (size, crop_size))
        if wrong or not fits or crop_size > size or not all(map(_is_colour, lists)) or 0 in lists[1]:
            named = {"size": size, "crop_size": crop_size, **{name: config[name] for name in wrong}}
            what = f"The image processor is not CLIP's: {named}, {lists}."
            raise LoadError("E-CONFIG-VALUE", what, "", "Pass feature_extractor=None, or a processor of your own.")
        return cls(size, crop_size, *(tuple(map(float, values)) for values in lists))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read `preprocessor_config.json`.

        Raises:
            LoadError: E-FILE-MISSING, E-JSON-BROKEN or E-CONFIG-VALUE.
        """
        return cls.from_config(load_json(Path(folder) / "preprocessor_config.json"))

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write `preprocessor_config.json` as transformers does."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        steps = {f"do_{name}": True for name in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")}
        sides = {
            "size": {"shortest_edge": self.size},
            "crop_size": {"height": self.crop_size, "width": self.crop_size},
        }
        config = {**asdict(self), **sides, **steps, "resample": 3, "rescale_factor": 1 / 255}
        dump_json(
            {**config, "image_processor_type": "CLIPImageProcessor"}, Path(save_directory) / "preprocessor_config.json"
        )


def _is_colour(values: object) -> bool:
    if not isinstance(values, list | tuple) or len(values) != 3:
        return False
    return all(isinstance(value, int | float) and abs(value) < 1e3 for value in values)


def check_prepared(pixels: Tensor, encoder: "CLIPVisionModelWithProjection") -> None:
    """Refuse a picture that is not prepared for this encoder.

    Raises:
        InputError: E-IP-ADAPTER-IMAGES.
    """
    side = encoder.config.image_size
    if tuple(pixels.shape) != (3, side, side) or not pixels.is_floating_point():
        raise InputError(
            "E-IP-ADAPTER-IMAGES",
            f"A picture prepared for CLIP is {list(pixels.shape)}, {str(pixels.dtype).removeprefix('torch.')}.",
            f"The image encoder reads [3, {side}, {side}]; tensors are taken to be prepared and normalised already.",
            "Give a path or a PIL picture, or what feature_extractor returns.",
        )


@torch.no_grad()
def embed_pictures(
    encoder: "CLIPVisionModelWithProjection", pixels: Sequence[Float[Tensor, "3 s s"]], positions: bool
) -> tuple[Float[Tensor, "n *l e"], Float[Tensor, "n *l e"]]:
    """What CLIP sees in pictures, and what stands for no picture.

    Args:
        encoder: the image encoder.
        pixels: prepared pictures.
        positions: the last layer but one at every position; no picture is then one of zeros, as CLIP sees it.
            Otherwise one embedding of each picture as a whole; no picture is zeros.
    """
    batch = torch.stack([each.to(encoder.device, encoder.dtype) for each in pixels])
    if not positions:
        embeds = encoder(batch).image_embeds
        return embeds, torch.zeros_like(embeds)
    embeds = encoder(batch, output_hidden_states=True).hidden_states[-2]
    nothing = encoder(torch.zeros_like(batch[:1]), output_hidden_states=True).hidden_states[-2]
    return embeds, nothing.expand_as(embeds)


def load_image_encoder(
    folder: Path, variant: str | None = None, dtype: torch.dtype | None = None
) -> "CLIPVisionModelWithProjection":
    """Read a CLIP image encoder, strictly: every tensor must be there and fit.

    The stored table `position_ids` of older files is left aside, as are the tensors of the text half in files of a
    whole CLIP.

    Args:
        folder: holds `config.json` and `model.safetensors` (or shards, or `pytorch_model.bin`).
        variant: file variant such as ``"fp16"``.
        dtype: data type of the weights; that of `torch.get_default_dtype()` if not given.

    Raises:
        LoadError: E-FILE-MISSING or E-JSON-BROKEN, E-CONFIG-VALUE, nothing readable, or E-KEYS-MISMATCH.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    values = load_json(folder / "config.json")
    try:
        half = values.get("vision_config")  # a whole CLIP has one for each half
        if half:
            values = {"projection_dim": values.get("projection_dim", 512), **half}
        config = CLIPVisionConfig.from_dict(values)
        with torch.device("meta"):
            encoder = CLIPVisionModelWithProjection(config)
    except Exception as error:  # whatever transformers makes of values that fit no network
        raise LoadError(
            "E-CONFIG-VALUE", f"{folder / 'config.json'} describes no CLIP image encoder: {error}."
        ) from error
    expected = encoder.state_dict()
    dtype = dtype or torch.get_default_dtype()
    state = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in read_weights(folder, variant, TRANSFORMERS).items()
        if not name.startswith(_NOT_IMAGE) and not name.endswith("position_ids")
    }
    check_keys(state, expected, "CLIPVisionModelWithProjection", str(folder))
    encoder.load_state_dict(state, strict=True, assign=True)
    embeddings: Any = encoder.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions).expand(1, -1)
    return encoder.eval().requires_grad_(False)


def save_image_encoder(
    encoder: "CLIPVisionModelWithProjection",
    folder: Path,
    variant: str | None = None,
    max_shard_size: int | str = "10GB",
) -> None:
    """Write the encoder under its published tensor names."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, encoder.state_dict(), variant, max_shard_size, TRANSFORMERS)
    values = {k: v for k, v in json.loads(encoder.config.to_json_string()).items() if not k.startswith("_")}
    dump_json({**values, "architectures": ["CLIPVisionModelWithProjection"]}, folder / "config.json")
