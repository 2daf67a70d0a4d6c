"""Film: from a request to the latents of a video. Every random draw stands on a line of its own, in order."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vivant import guidance as guide
from vivant.consisid.conditioning import Conditioning, Face, Guidance, Known, encode_picture, read
from vivant.consisid.transformer import ConsisIDTransformer3DModel
from vivant.denoise import OnStep, State, keep, run
from vivant.placement import MemoryPolicy, active, give_back
from vivant.prompts import Prompts
from vivant.request import ConsisIDRequest
from vivant.rng import Rng
from vivant.solvers.schedule import Solver, Step
from vivant.vae.video import AutoencoderKLCogVideoX

Compat = Literal["diffusers"] | None


@dataclass(frozen=True)
class Parts:
    """The components that a run needs, and where they live. The text encoder has done its work before.

    `compat` keeps the state in the network's data type between steps and lets guidance fall by timesteps, as diffusers.
    """

    vae: AutoencoderKLCogVideoX
    transformer: ConsisIDTransformer3DModel
    solver: Solver
    memory: MemoryPolicy
    compat: Compat = None


@dataclass(frozen=True, eq=False)
class Given:
    """The tensors of a request.

    Attributes:
        pixels: aligned crops of faces, stretched to the video's size, RGB in [-1, 1]; one, or one for each prompt.
        prompts: encoded prompts for all b videos.
        face: identities: one, or one for each prompt; None for a network that reads none.
        points: drawings of the key points of the faces, as `pixels`; None for a network that reads none.
        latents: initial noise in place of the draw, before scaling by the solver.
    """

    pixels: Float[Tensor, "k 3 i j"]
    prompts: Prompts
    face: Face | None = None
    points: Float[Tensor, "k 3 i j"] | None = None
    latents: Float[Tensor, "b f c h w"] | None = None


def num_generated(num_frames: int) -> int:
    """How many frames are made so that so many can be returned: the autoencoder gives 8k + 1 and no other number."""
    return -(-(num_frames - 1) // 8) * 8 + 1


@torch.no_grad()
def generate(parts: Parts, request: ConsisIDRequest, given: Given, rng: Rng, on_step: OnStep = keep) -> Tensor:
    """Denoise the videos of a request.

    Args:
        parts: the components.
        request: what is asked for.
        given: its tensors; the size of the videos is that of the pictures.
        rng: source of all draws: the pictures' posteriors, those of the key points, the initial noise, then the
            solver's.
        on_step: see `vivant.denoise.run`.

    Returns:
        Latents `b f c h w` in float32 (in the network's data type with `compat`), ready to decode.
    """
    batch = given.prompts.positive.shape[0]
    schedule = parts.solver.schedule(request.num_inference_steps)
    factor, config = parts.vae.factor, parts.transformer.settings
    height, width = (side // factor for side in given.pixels.shape[2:])
    num_latents = (num_generated(request.num_frames) - 1) // config.temporal_compression_ratio + 1
    shape = (batch, num_latents, config.out_channels, height, width)
    device = parts.memory.device
    dtype = parts.transformer.dtype if parts.compat else torch.float32

    with active(parts.vae, parts.memory) as vae:
        pictures = [encode_picture(vae, given.pixels, batch, rng)]
        if given.points is not None:
            pictures.append(encode_picture(vae, given.points, batch, rng))
    # In one step, since not every device holds the float64 that may be given.
    noise = rng.normal(shape, device) if given.latents is None else given.latents.to(device, torch.float32)

    with active(parts.transformer, parts.memory) as transformer:
        first = torch.cat(pictures, dim=1).to(device, transformer.dtype)
        rest = first.new_zeros(batch, num_latents - first.shape[1], *shape[2:])
        conditioning = Conditioning(torch.cat([first, rest], dim=1), given.prompts)
        guidance = Guidance(
            request.guidance_scale, request.use_dynamic_cfg, request.num_inference_steps, parts.compat is not None
        )
        known = read(transformer, schedule, given.face, batch, (num_latents, height, width))
        give_back(transformer.read_once())
        step = stepper(transformer, parts.solver, known, lambda: rng.normal(shape, device).to(dtype), request.eta)
        x = noise.to(dtype) * parts.solver.init_sigma(schedule)
        return run(State(-1, x, conditioning=conditioning, guidance=guidance), schedule, step, on_step).x


def stepper(
    transformer: ConsisIDTransformer3DModel,
    solver: Solver,
    known: Known,
    noise: Callable[[], Tensor],
    eta: float,
) -> Callable[[State, Step], State]:
    """One step: what the network predicts under guidance, then what the solver makes of it."""

    def step(state: State, t: Step) -> State:
        v = predict(transformer, known, state, t)
        update = solver.step(v, t, state.x, state.carry, noise, eta)
        return replace(state, x=update.x.to(state.x.dtype), x0=update.x0, carry=update.carry)

    return step


def predict(transformer: ConsisIDTransformer3DModel, known: Known, state: State, t: Step) -> Tensor:
    """The network's output under the state's guidance, in float32."""
    guidance, conditioning = state.guidance, state.conditioning
    text = known.text(conditioning.prompts, guidance.num_evaluations)
    inputs = torch.cat([t.model_input(state.x).to(transformer.dtype), conditioning.picture], dim=2)
    outputs = transformer.predict(inputs, text, known.modulations(t), known.places, known.identity).float()
    if guidance.num_evaluations == 1:
        return outputs
    without, with_text = outputs.chunk(2)
    return guide.cfg(without, with_text, guidance.at(state.i + 1, t.t))
