"""What autoencoders hand out: the distribution of the latents, and the results of the public calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vivant.rng import Rng


@dataclass(frozen=True, eq=False)
class DiagonalGaussian:
    """The posterior q(z|x): independent normal distributions, for pictures and (with the axis f) for videos.

    Attributes:
        parameters: mean and log variance, one after the other along the channels.
    """

    parameters: Float[Tensor, "b d *f h w"]

    @property
    def mean(self) -> Float[Tensor, "b c *f h w"]:
        """The mean."""
        return self.parameters.chunk(2, dim=1)[0]

    @property
    def logvar(self) -> Float[Tensor, "b c *f h w"]:
        """The log variance, kept in [-30, 20]."""
        return self.parameters.chunk(2, dim=1)[1].clamp(-30.0, 20.0)

    @property
    def std(self) -> Float[Tensor, "b c *f h w"]:
        """The standard deviation."""
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Float[Tensor, "b c *f h w"]:
        """The variance."""
        return torch.exp(self.logvar)

    def mode(self) -> Float[Tensor, "b c *f h w"]:
        """The most likely value, which is the mean."""
        return self.mean

    def sample(
        self, generator: "torch.Generator | Sequence[torch.Generator] | None" = None
    ) -> Float[Tensor, "b c *f h w"]:
        """One draw for the whole batch, or one for each entry when there is a generator for each.

        Raises:
            InputError: E-GENERATORS when there is another number of generators.
        """
        mean = self.mean
        noise = Rng.of(generator, mean.shape[0]).normal(mean.shape, mean.device)
        return mean + self.std * noise.to(mean.dtype)


class AutoencoderKLOutput(NamedTuple):
    """What the public `encode` returns."""

    latent_dist: DiagonalGaussian


class DecoderOutput(NamedTuple):
    """What the public `decode` returns."""

    sample: Float[Tensor, "b c *f i j"]
