"""Compile the motion UNet with torch's compiler, on request. It needs a C++ compiler and minutes of time."""

import torch
from torch import Tensor

from vivant.errors import MissingPackage
from vivant.pia.unet import Text, UNetMotionModel


def freezes(device: str) -> bool:
    """Whether weights become constants, packed once for the kernels of the processor, at twice the memory."""
    return device == "cpu"


def compile_unet(unet: UNetMotionModel) -> None:
    """Compile `unet.predict` in place; the first step of each size pays for it.

    With frozen weights later changes of the weights are seen in part or not at all. The compiled function is not saved.

    Raises:
        MissingPackage: E-COMPILE where torch cannot compile; as a rule it finds out at the first prediction.
    """
    try:
        from torch._inductor import config

        compiled = torch.compile(type(unet).predict.__get__(unet), dynamic=False)
    except (ImportError, RuntimeError) as error:
        raise _refusal(error) from error
    frozen = freezes(unet.device.type)

    def predict(x: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        # Not by torch.compile(options=…): they come after weights have become inputs, and nothing is frozen, without a
        # word (test_the_compiled_network_predicts_the_same_and_its_weights_are_packed).
        try:
            with config.patch(freezing=frozen):
                return compiled(x, timesteps, text)
        except Exception as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise _refusal(error) from error
            raise

    unet.predict = predict


def _refusal(error: Exception) -> MissingPackage:
    return MissingPackage(
        "E-COMPILE",
        f"torch cannot compile here: {str(error).splitlines()[0]}",
        "Compiling needs a C++ compiler and a platform that torch supports.",
        "Install a C++ compiler, or leave compile out: the result is the same, more slowly.",
    )
