"""Samples of a network in training, made as users will make them: the same loop, solver and guidance."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from vivant.denoise import State, run
from vivant.guidance import cfg
from vivant.pia.unet import UNet2DConditionModel
from vivant.solvers.ddim import DDIMStep
from vivant.train.diffusion import PRESET


@torch.no_grad()
def draw_stills(
    unet: UNet2DConditionModel,
    text: Float[Tensor, "b n d"],
    empty: Float[Tensor, "1 n d"],
    size: tuple[int, int],
    *,
    num_steps: int = 25,
    guidance: float = 5.0,
    seeds: Sequence[int] = (),
) -> Float[Tensor, "b 4 h w"]:
    """Text to latents with a base alone; PIA is not involved.

    Args:
        unet: the base.
        text: encoded prompts.
        empty: the encoded empty prompt.
        size: height and width of the latents.
        num_steps: of DDIM.
        guidance: scale.
        seeds: one for each prompt; 0, 1, 2, … if not given.
    """
    solver, num = PRESET, len(text)
    plan = solver.schedule(num_steps)
    shape = (1, unet.settings.in_channels, *size)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in (seeds or range(num))]
    start = torch.cat(noise).to(unet.device)
    known = unet.read_text(torch.cat([empty.expand(num, -1, -1), text]))

    def step(state: State, t: DDIMStep) -> State:
        x = torch.cat([state.x] * 2)[:, :, None].to(unet.dtype)
        without, with_ = unet.predict(x, torch.tensor([t.t], device=x.device), known)[:, :, 0].float().chunk(2)
        update = solver.step(cfg(without, with_, guidance), t, state.x, state.carry, lambda: torch.empty(0))
        return replace(state, x=update.x)

    return run(State(-1, start), plan, step).x
