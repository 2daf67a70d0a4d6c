"""Animate: from a request to the latents of a clip. Every random draw stands on a line of its own, in order."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vivant import guidance as guide
from vivant.denoise import OnStep, State, keep, run
from vivant.errors import InputError
from vivant.freeinit import last_signal_timestep, low_pass, reinitialise, renoise
from vivant.pia.conditioning import (
    Conditioning,
    Guidance,
    encode_still,
    picture_channels,
    reader,
    stills_on_frames,
)
from vivant.pia.freeu import FreeU
from vivant.pia.picture_prompt import PicturePrompt, SeenPictures, see
from vivant.pia.unet import Text, UNetMotionModel
from vivant.pia.windows import Window, repeated_noise, windows
from vivant.placement import MemoryPolicy, active
from vivant.prompts import Prompts
from vivant.request import PIARequest
from vivant.rng import Rng
from vivant.solvers.schedule import Solver, Step
from vivant.vae.image import AutoencoderKL

Schedule = tuple[Step, ...]


@dataclass(frozen=True)
class Parts:
    """The components that a run needs, and where they live. The text encoder has done its work before."""

    vae: AutoencoderKL
    unet: UNetMotionModel
    solver: Solver
    memory: MemoryPolicy


@dataclass(frozen=True, eq=False)
class Given:
    """The tensors of a request.

    Attributes:
        pixels: pictures of the clip's size, RGB in [-1, 1]; one, or one for each prompt.
        prompts: encoded prompts for all b clips.
        latents: initial noise in place of the first draw, before scaling by the solver.
        pictures: what IP-Adapters are shown.
        keyframes: pictures like `pixels` for the keyframes of the request, in their order.
    """

    pixels: Float[Tensor, "k 3 i j"]
    prompts: Prompts
    latents: Float[Tensor, "b 4 f h w"] | None = None
    pictures: tuple[PicturePrompt, ...] = ()
    keyframes: tuple[Float[Tensor, "..."], ...] = ()


def schedules(solver: Solver, request: PIARequest) -> tuple[Schedule, ...]:
    """The steps of every FreeInit iteration (of the one run without it), shortened by `strength`.

    Raises:
        InputError: E-STRENGTH-STEPS when no step is left.
    """
    freeinit, num_steps = request.free_init, request.num_inference_steps
    if int(num_steps * request.strength) == 0:
        raise InputError(
            "E-STRENGTH-STEPS",
            f"strength {request.strength} of {num_steps} steps leaves no step.",
            "",
            "Raise strength or num_inference_steps.",
        )
    counts = [num_steps]
    if freeinit is not None:
        counts = [freeinit.num_steps(k, num_steps) for k in range(freeinit.num_iters)]
    plans = []
    for count in counts:
        kept = max(1, int(count * request.strength))  # a coarse iteration of FreeInit takes a step at least
        plans.append(solver.schedule(count)[(count - kept) * solver.order :])
    return tuple(plans)


@torch.no_grad()
def generate(parts: Parts, request: PIARequest, given: Given, rng: Rng, on_step: OnStep = keep) -> Tensor:
    """Denoise the clips of a request.

    Args:
        parts: the components.
        request: what is asked for; its height and width are set.
        given: its tensors.
        rng: source of all draws: initial noise, the picture's posterior, those of the keyframes, the second noise of
            `strength`, the shuffles of FreeNoise, then the solver's and FreeInit's.
        on_step: see `vivant.denoise.run`; `State.i` counts over all FreeInit iterations.

    Returns:
        Latents `b 4 f h w` in float32, ready to decode.
    """
    plans = schedules(parts.solver, request)
    batch = given.prompts.num_clips(request.num_frames)
    height, width = (given.pixels.shape[i] // parts.vae.factor for i in (2, 3))
    shape = (batch, parts.unet.settings.out_channels, request.num_frames, height, width)
    device = parts.memory.device

    # In one step, since not every device holds the float64 that may be given.
    noise = rng.normal(shape, device) if given.latents is None else given.latents.to(device, torch.float32)
    with active(parts.vae, parts.memory) as vae:
        stills = [encode_still(vae, given.pixels, batch, rng).to(device)]
        stills += [encode_still(vae, pixels, batch, rng).to(device) for pixels in given.keyframes]
    restart = rng.normal(shape, device) if request.strength < 1 and given.latents is None else noise
    shuffle = rng.normal((batch, request.num_frames), device) if _repeats(request, given) else None
    restart = _repeated(restart, shuffle, request)
    seen = see(given.pictures, parts.unet, batch, (height, width), parts.memory)

    with active(parts.unet, parts.memory) as unet, _reweighed(unet, request.freeu):
        unet.prepare()
        clean = stills_on_frames(stills, request.nearest)
        conditioning = Conditioning(picture_channels(clean, request.affinity, unet.dtype), given.prompts)
        guidance = Guidance(request.guidance_scale, request.image_guidance_scale)
        cuts = windows(request.num_frames, request.windows)
        step = stepper(unet, parts.solver, lambda: rng.normal(shape, device), request.eta, cuts, seen)
        filter_ = low_pass(*shape[2:], request.free_init) if request.free_init else None

        done, x = 0, torch.empty(0)
        for k, plan in enumerate(plans):
            if k == 0 and request.strength < 1:
                x = parts.solver.add_noise(clean, restart, plan[0])
            elif k == 0:
                x = restart * parts.solver.init_sigma(plan)
            else:
                assert filter_ is not None, "only FreeInit plans a second pass"
                fresh = rng.normal(shape, device)
                fresh = _repeated(fresh, shuffle, request)
                x = _reinitialised(parts.solver, plan, x, restart, fresh, filter_, request)
            state = State(-1, x, conditioning=conditioning, guidance=guidance)
            final = run(state, plan, step, _counted(on_step, done))
            x, conditioning, guidance = final.x, final.conditioning, final.guidance
            done += len(plan)
    return x


def stepper(
    unet: UNetMotionModel,
    solver: Solver,
    noise: Callable[[], Tensor],
    eta: float,
    cuts: Sequence[Window],
    pictures: SeenPictures | None = None,
) -> Callable[[State, Step], State]:
    """One step: what the network predicts under guidance, then what the solver makes of it."""
    read = reader(unet, pictures)

    def step(state: State, t: Step) -> State:
        evaluations = state.guidance.num_evaluations
        x = t.model_input(state.x)
        eps = blended(unet, x, t.t, state, read(state.conditioning.prompts, evaluations), cuts)
        update = solver.step(eps, t, state.x, state.carry, noise, eta)
        return replace(state, x=update.x, x0=update.x0, carry=update.carry)

    return step


def blended(
    unet: UNetMotionModel, x: Float[Tensor, "b 4 f h w"], t: float, state: State, text: Text, cuts: Sequence[Window]
) -> Float[Tensor, "b 4 f h w"]:
    """The predictions of windows, one after the other, as one: every frame's weighted mean, in float32."""
    if len(cuts) == 1:
        return predict(unet, x, t, state, text)
    eps = torch.zeros(x.shape, device=x.device)
    for window in cuts:
        frames, weights = list(window.frames), torch.tensor(window.weights, device=x.device)
        seen = replace(state, conditioning=state.conditioning.of_frames(frames))
        part = predict(unet, x[:, :, frames], t, seen, text.of_frames(frames, x.shape[2]))
        eps[:, :, frames] += part * rearrange(weights, "f -> f 1 1")
    return eps


def predict(unet: UNetMotionModel, x: Float[Tensor, "b 4 f h w"], t: float, state: State, text: Text) -> Tensor:
    """The network's output under the state's guidance, in float32."""
    picture, guidance = state.conditioning.picture, state.guidance
    inputs = torch.cat([x.to(picture.dtype), picture], dim=1)
    if guidance.image is not None:
        without = torch.cat([x.to(picture.dtype), torch.zeros_like(picture)], dim=1)
        inputs = torch.cat([without, inputs, inputs])
    outputs = unet.predict(inputs, torch.tensor([t], device=x.device), text).float()
    outputs = outputs.chunk(guidance.num_evaluations)
    if guidance.image is not None:
        neither, negative, positive = outputs
        return guide.cfg_image(neither, negative, positive, guidance.image, max(guidance.text, 1.0))
    return guide.cfg(outputs[0], outputs[1], guidance.text) if len(outputs) == 2 else outputs[0]


def _reinitialised(
    solver: Solver,
    plan: Schedule,
    z0: Tensor,
    noise: Tensor,
    fresh: Tensor,
    filter_: Tensor,
    request: PIARequest,
) -> Tensor:
    """FreeInit (arXiv 2312.07537): the start of a further iteration from the result of the one before.

    Mixing happens where signal and noise together have unit variance, so that it means the same for every solver.
    With `strength` the run starts in the middle, where the fresh noise needs the signal beside it.
    """
    if request.strength == 1:
        abar = float(solver.signal[last_signal_timestep(solver.signal)])
        return reinitialise(renoise(z0, noise, abar), fresh, filter_) * solver.init_sigma(plan)
    return solver.add_noise(z0, reinitialise(noise, fresh, filter_), plan[0])


def _repeats(request: PIARequest, given: Given) -> bool:
    """Whether frames after the first window repeat its noise; noise that was given is taken as it is."""
    cut = request.windows
    return cut is not None and cut.noise == "freenoise" and request.num_frames > cut.length and given.latents is None


def _repeated(noise: Tensor, shuffle: Tensor | None, request: PIARequest) -> Tensor:
    """FreeNoise for one draw of noise, where it is wanted."""
    if shuffle is None or request.windows is None:
        return noise
    return repeated_noise(noise, shuffle, request.windows)


@contextmanager
def _reweighed(unet: UNetMotionModel, scales: FreeU | None) -> Generator[None]:
    """FreeU of the request for the time of the run; afterwards the network is what its owner made it."""
    before, unet.freeu = unet.freeu, scales
    try:
        yield
    finally:
        unet.freeu = before


def _counted(on_step: OnStep, done: int) -> OnStep:
    return lambda state: on_step(replace(state, i=state.i + done))


def timesteps(plans: Sequence[Schedule]) -> Tensor:
    """What the network is told at every step of a run, over all FreeInit iterations."""
    return torch.tensor([step.t for plan in plans for step in plan])
