"""Compile the motion UNet with torch's compiler, on request. It needs a C++ compiler and minutes of time."""

import weakref
from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor

from vivant.compiling import compiling, refusal
from vivant.pia.unet import Text, UNetMotionModel


def freezes(device: str) -> bool:
    """Whether weights become constants, packed once for the kernels of the processor, at twice the memory."""
    return device == "cpu"


def compile_unet(unet: UNetMotionModel) -> None:
    """Compile `unet.predict` in place; the first step of each size pays for it.

    With frozen weights, parameters that are exchanged for others, as LoRA does, have the next prediction compile anew;
    numbers that are written into them are seen in part or not at all. The compiled function is not saved.

    Raises:
        MissingPackage: E-COMPILE where torch cannot compile; as a rule it finds out at the first prediction.
    """
    try:
        from torch._inductor import config

        compiled = _compiled(unet)
    except (ImportError, RuntimeError) as error:
        raise refusal(error) from error
    frozen = freezes(unet.device.type)
    packed = [weakref.ref(parameter) for parameter in unet.parameters()]

    def predict(x: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        # Not by torch.compile(options=…): they come after weights have become inputs, and nothing is frozen, without a
        # word (test_the_compiled_network_predicts_the_same_and_its_weights_are_packed).
        nonlocal compiled, packed
        if frozen and any(seen() is not now for seen, now in zip(packed, unet.parameters(), strict=True)):
            compiled, packed = _compiled(unet), [weakref.ref(parameter) for parameter in unet.parameters()]
        with compiling(), config.patch(freezing=frozen):
            return compiled(x, timesteps, text)

    unet.predict = predict


def _compiled(unet: UNetMotionModel) -> Callable[[Tensor, Tensor, Text], Tensor]:
    """The network's prediction, to be compiled at its first call; never taken from what was compiled before."""
    source = type(unet).predict
    # What was compiled belongs to the code object, so each compilation gets one of its own.
    own = FunctionType(source.__code__.replace(), source.__globals__, source.__name__, source.__defaults__)
    return torch.compile(own.__get__(unet), dynamic=False)
