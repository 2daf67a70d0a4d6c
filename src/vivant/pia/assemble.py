"""Which models go together: the checks that come before tensors are read, and the joining of base and adapter."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vivant.config import load_json, read
from vivant.errors import InputError, LoadError
from vivant.pia.config import (
    MotionAdapterConfig,
    Numerics,
    UNet2DConditionConfig,
    UNetMotionConfig,
    check_numerics,
)
from vivant.pia.motion import MotionAdapter, check_adapter_fits
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


def check_repository(folder: Path, index: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Refuse by its small files a repository that makes no network of PIA with what is given.

    Args:
        folder: the repository; of its components only the configurations are read.
        index: its `model_index.json`.
        given: the arguments of `PIAPipeline` that were passed beside it.

    Returns:
        Whether the repository's own motion adapter is needed: an assembled network holds its modules already.

    Raises:
        LoadError: E-REPO-FAMILY.
        InputError: E-NUMERICS, E-CONFIG-…, and what `check_together` refuses.
    """
    check_family(folder, index, with_unet="unet" not in given)
    _check_numerics(given.get("unet"), given.get("numerics"))
    if "unet" in given:
        unet = given["unet"].settings
    else:
        kind = UNetMotionConfig if index["unet"][1] == "UNetMotionModel" else UNet2DConditionConfig
        unet, _ = read(kind, load_json(folder / "unet" / "config.json"))
    own = "motion_adapter" not in given and not isinstance(unet, UNetMotionConfig)
    adapter = None if given.get("motion_adapter") is None else given["motion_adapter"].settings
    if own and any(index.get("motion_adapter") or ()):
        adapter, _ = read(MotionAdapterConfig, load_json(folder / "motion_adapter" / "config.json"))
    check_together(unet, adapter)
    return own


def check_together(unet: UNet2DConditionConfig | UNetMotionConfig, adapter: MotionAdapterConfig | None) -> None:
    """Refuse a UNet and an adapter that do not make one network of PIA, by their configurations.

    Raises:
        InputError: E-ADAPTER-NONE without motion modules, E-ADAPTER-TWICE with two sets of them, E-ADAPTER-NOT-PIA for
            modules that cannot see a picture, E-ADAPTER-FIT for those of another family.
    """
    if isinstance(unet, UNetMotionConfig):
        if adapter is not None:
            raise two_adapters("The unet")
        check_sees_picture(unet.in_channels)
        return
    if adapter is None:
        raise InputError(
            "E-ADAPTER-NONE",
            "There is a base model and no motion adapter.",
            "A base alone draws single pictures.",
            'Pass motion_adapter=MotionAdapter.from_pretrained("openmmlab/PIA-condition-adapter").',
        )
    check_sees_picture(adapter.conv_in_channels)
    check_adapter_fits(adapter, unet)


def assemble(
    unet: UNet2DConditionModel | UNetMotionModel, adapter: MotionAdapter | None, numerics: Numerics | None
) -> UNetMotionModel:
    """The network of PIA from its parts; an assembled one is returned as it is.

    Raises:
        InputError: what `check_together` refuses, and E-NUMERICS.
    """
    check_together(unet.settings, None if adapter is None else adapter.settings)
    _check_numerics(unet, numerics)
    if isinstance(unet, UNetMotionModel):
        return unet
    return UNetMotionModel.from_unet2d(unet, adapter, numerics=numerics or "diffusers")


def _check_numerics(unet: object, numerics: Numerics | None) -> None:
    """Refuse (E-NUMERICS) numerics that do not exist, or that an assembled network was not built with."""
    if numerics is None:
        return
    check_numerics(numerics)
    if isinstance(unet, UNetMotionModel) and numerics != unet.numerics:
        raise InputError(
            "E-NUMERICS",
            f'The network was built with numerics="{unet.numerics}", and "{numerics}" is asked for.',
            "",
            f'Load it with UNetMotionModel.from_pretrained(…, numerics="{numerics}").',
        )


def check_sees_picture(channels: int | None) -> None:
    """Refuse (E-ADAPTER-NOT-PIA) motion modules whose input has no place for a picture."""
    if channels != 9:
        raise InputError(
            "E-ADAPTER-NOT-PIA",
            "These motion modules have no input for a picture: they can make clips from text only.",
            "PIA needs its own input convolution of nine channels.",
            "Use the PIA adapter, openmmlab/PIA-condition-adapter.",
        )


def two_adapters(holder: object) -> InputError:
    """What to raise when `holder` has motion modules and others are given beside it."""
    return InputError(
        "E-ADAPTER-TWICE",
        f"{holder} holds motion modules already, and a motion adapter is given too.",
        "",
        "Leave motion_adapter out, or give a plain Stable Diffusion 1.5 base.",
    )
