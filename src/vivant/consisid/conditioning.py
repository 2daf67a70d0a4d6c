"""What ConsisID looks at and what does not change between steps: picture, identity, prompts, times, places."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vivant.consisid.identity import Identity
from vivant.consisid.transformer import ConsisIDTransformer3DModel, Modulations, Places
from vivant.guidance import dynamic_scale
from vivant.prompts import Prompts
from vivant.rng import Rng
from vivant.solvers.schedule import Step
from vivant.vae.posterior import DiagonalGaussian
from vivant.vae.video import AutoencoderKLCogVideoX


@dataclass(frozen=True, eq=False)
class Face:
    """An identity as the face encoders give it. Compared by identity: another value is extracted anew.

    Attributes:
        id_cond: one embedding a person.
        id_vit_hidden: hidden states at several depths.
    """

    id_cond: Float[Tensor, "p e"]
    id_vit_hidden: tuple[Float[Tensor, "p k v"], ...]


@dataclass(frozen=True)
class Guidance:
    """Strength of the prompt, and how it changes over a run of `num_steps`.

    Attributes:
        text: at 1 and below the prompt is followed as it is.
        falls: from 1 + text to 1, see `vivant.guidance.dynamic_scale`.
        num_steps: of the run.
        by_timestep: put the timestep where the step belongs, as diffusers does.
    """

    text: float
    falls: bool
    num_steps: int
    by_timestep: bool = False

    @property
    def num_evaluations(self) -> int:
        """How often the network runs in a step."""
        return 2 if self.text > 1 else 1

    def at(self, done: int, t: float) -> float:
        """The scale after `done` steps, at timestep t."""
        return dynamic_scale(self.text, t if self.by_timestep else done, self.num_steps) if self.falls else self.text


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Latents of the face's picture on the first frames and zeros after them, and the prompts."""

    picture: Float[Tensor, "b f c h w"]
    prompts: Prompts


@dataclass(frozen=True, eq=False)
class Known:
    """Computed before the first step, and again only where what it was computed from is exchanged.

    Attributes:
        text: tokens of prompts for so many evaluations.
        identity: of the people of the run; empty for a network that reads none.
        modulations: of the timestep of a step.
        places: of the tokens.
    """

    text: Callable[[Prompts, int], Float[Tensor, "n m d"]]
    identity: Identity
    modulations: Callable[[Step], Modulations]
    places: Places


def read(
    transformer: ConsisIDTransformer3DModel,
    schedule: Sequence[Step],
    face: Face | None,
    batch: int,
    shape: tuple[int, int, int],
) -> Known:
    """Compute what a run knows beforehand.

    Args:
        transformer: the network.
        schedule: of the run.
        face: the people: one for all, or as many as divide the videos, each for as many neighbouring ones.
        batch: number of videos.
        shape: latent frames, height and width.
    """

    @lru_cache(maxsize=1)
    def text(prompts: Prompts, num_evaluations: int) -> Tensor:
        return transformer.read_text(prompts.stacked(num_evaluations).to(transformer.device, transformer.dtype))

    times = sorted({step.t for step in schedule})
    table = transformer.modulate(torch.tensor(times, dtype=torch.float32, device=transformer.device))
    rows = {t: i for i, t in enumerate(times)}
    identity: Identity = ()
    if face is not None:
        place = transformer.device, transformer.dtype
        people = [x.to(*place) for x in (face.id_cond, *face.id_vit_hidden)]
        if len(face.id_cond) > 1:
            people = [x.repeat_interleave(batch // len(x), dim=0) for x in people]
        identity = transformer.read_identity(people[0], people[1:])
    return Known(text, identity, lambda step: table.at(rows[step.t]), transformer.place(*shape))


def encode_picture(
    vae: AutoencoderKLCogVideoX, pixels: Float[Tensor, "k 3 i j"], batch: int, rng: Rng
) -> Float[Tensor, "b 1 c h w"]:
    """Latents of pictures as videos of one frame: the posterior sampled with `rng`, times the scaling factor.

    Args:
        pixels: one picture or one for each prompt, RGB in [-1, 1].
        batch: number of videos, a multiple of k. Videos of one prompt share the encoding, and the sample too unless
            every video has its own generator.
    """
    posterior = DiagonalGaussian(vae.encode_moments(pixels[:, :, None].to(vae.device, vae.dtype)).float())
    mean, deviation = posterior.mean, posterior.std
    if rng.per_entry:
        mean, deviation = (x.repeat_interleave(batch // len(x), dim=0) for x in (mean, deviation))
        noise = rng.normal(mean.shape, mean.device)
    else:  # picture by picture, as the reference draws
        noise = torch.cat([rng.normal((1, *mean.shape[1:]), mean.device) for _ in mean])
    latents = (mean + deviation * noise) * vae.settings.scaling_factor
    return rearrange(latents, "k c f h w -> k f c h w").repeat_interleave(batch // len(latents), dim=0)
