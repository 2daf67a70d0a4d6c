"""Compile the motion UNet with torch's compiler, on request. It needs a C++ compiler and minutes of time."""

from typing import Any

import torch

from vivant.errors import MissingPackage
from vivant.pia.unet import UNetMotionModel


def options_for(device: str) -> dict[str, Any]:
    """What the compiler may assume. On a CPU weights are frozen: packed once for its kernels, at twice the memory."""
    return {"freezing": True} if device == "cpu" else {}


def compile_unet(unet: UNetMotionModel) -> None:
    """Compile `unet.predict` in place; the first step of each size pays for it.

    With frozen weights later changes of the weights have no effect. The compiled function is not saved.

    Raises:
        MissingPackage: E-COMPILE where torch cannot compile.
    """
    try:
        unet.predict = torch.compile(
            type(unet).predict.__get__(unet), dynamic=False, options=options_for(unet.device.type)
        )
    except (ImportError, RuntimeError) as error:
        raise MissingPackage(
            "E-COMPILE",
            f"torch cannot compile here: {error}.",
            "Compiling needs a C++ compiler and a platform that torch supports.",
            "Leave compile out; the result is the same, more slowly.",
        ) from error
