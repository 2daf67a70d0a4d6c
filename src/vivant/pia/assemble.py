"""Which models go together: the checks that come before tensors are read, and the joining of base and adapter."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vivant.config import load_json
from vivant.errors import InputError, LoadError
from vivant.pia.config import Numerics
from vivant.pia.motion import MotionAdapter
from vivant.pia.unet import UNet2DConditionModel, UNetMotionModel

NEEDED = "PIA animates Stable Diffusion 1.5 models and what was fine-tuned from them."


def check_family(folder: Path, index: Mapping[str, Any], *, with_unet: bool = True) -> None:
    """Refuse a repository of another model family by its name, from `model_index.json` and the UNet's config.

    Args:
        folder: the repository.
        index: its `model_index.json`.
        with_unet: False when another UNet than the repository's will be used.

    Raises:
        LoadError: E-REPO-FAMILY.
    """
    config = folder / "unet" / "config.json"
    unet = load_json(config) if with_unet and config.is_file() else {}
    family = _family(index, unet)
    if family is not None:
        raise LoadError(
            "E-REPO-FAMILY",
            f"{folder} holds {family}.",
            NEEDED,
            "Choose a base of the Stable Diffusion 1.5 family.",
        )


def _family(index: Mapping[str, Any], unet: Mapping[str, Any]) -> str | None:
    """The name of a family that is not ours, or None."""
    if "transformer" in index:
        return f"a transformer model ({index.get('_class_name')})"
    if "text_encoder_2" in index or unet.get("addition_embed_type") == "text_time":
        return "a Stable Diffusion XL model"
    if unet.get("_class_name") == "UNet2DConditionModel" and unet.get("in_channels") == 9:
        return "an inpainting model; its nine input channels mean something else than PIA's"
    if unet.get("cross_attention_dim") == 1024:
        return "a Stable Diffusion 2 model"
    if unet.get("encoder_hid_dim_type") is not None:
        return f"a model with added conditions ({json.dumps(unet['encoder_hid_dim_type'])})"
    return None


def assemble(
    unet: UNet2DConditionModel | UNetMotionModel, adapter: MotionAdapter | None, numerics: Numerics | None
) -> UNetMotionModel:
    """The network of PIA from its parts; an assembled one is returned as it is.

    Raises:
        InputError: E-ADAPTER-NONE without motion modules, E-ADAPTER-NOT-PIA for modules that cannot see a picture,
            E-NUMERICS when an assembled network computes otherwise than asked.
    """
    if isinstance(unet, UNetMotionModel):
        check_sees_picture(unet.settings.in_channels)
        if numerics is not None and numerics != unet.numerics:
            raise InputError(
                "E-NUMERICS",
                f'The network was built with numerics="{unet.numerics}", and "{numerics}" is asked for.',
                "",
                f'Load it with UNetMotionModel.from_pretrained(…, numerics="{numerics}").',
            )
        return unet
    if adapter is None:
        raise InputError(
            "E-ADAPTER-NONE",
            "There is a base model and no motion adapter.",
            "A base alone draws single pictures.",
            'Pass motion_adapter=MotionAdapter.from_pretrained("openmmlab/PIA-condition-adapter").',
        )
    check_sees_picture(adapter.settings.conv_in_channels)
    return UNetMotionModel.from_unet2d(unet, adapter, numerics=numerics or "diffusers")


def check_sees_picture(channels: int | None) -> None:
    """Refuse (E-ADAPTER-NOT-PIA) motion modules whose input has no place for a picture."""
    if channels != 9:
        raise InputError(
            "E-ADAPTER-NOT-PIA",
            "These motion modules have no input for a picture: they can make clips from text only.",
            "PIA needs its own input convolution of nine channels.",
            "Use the PIA adapter, openmmlab/PIA-condition-adapter.",
        )
