"""A small network that says what a drawn picture shows: the judge of how well a base follows its text.

It learns from pictures of the drawn world itself, never from what a model made.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from vivant.hub.load import check_keys, read_file
from vivant.pocket.world import COLOURS, KINDS, STYLES, Scene
from vivant.train.loop import trainable
from vivant.train.samples import Batch, Draws
from vivant.train.vae import to_unit

QUESTIONS: Mapping[str, Sequence[str]] = {"kind": KINDS, "colour": COLOURS, "style": STYLES}
"""What is asked of a picture, and the possible answers: kind and colour of its main thing, and how it is drawn."""
FILE = "recogniser.safetensors"
MAX_NOISE = 0.12
"""Largest deviation of the noise on what it learns from, in [-1, 1]: made pictures are never as clean as drawn ones."""


class Answers(NamedTuple):
    """The index of every picture's answer."""

    kind: Int[Tensor, " b"]
    colour: Int[Tensor, " b"]
    style: Int[Tensor, " b"]


class Recogniser(nn.Module):
    """A convolutional classifier with one head for each of `QUESTIONS`."""

    def __init__(self, width: int = 32):
        super().__init__()
        sizes = (width, 2 * width, 4 * width, 6 * width)
        layers: list[nn.Module] = []
        for before, after in zip((3, *sizes[:-1]), sizes, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * sizes[-1], len(said)) for name, said in QUESTIONS.items()})

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b k"]]:
        """Scores of every answer for pictures in [-1, 1]."""
        h = self.body(x)
        seen = torch.cat([h.mean((2, 3)), h.amax((2, 3))], dim=1)
        return {name: head(seen) for name, head in self.heads.items()}

    @torch.no_grad()
    def answers(self, x: Float[Tensor, "b 3 h w"]) -> Answers:
        """The likeliest answers."""
        scores = self(x)
        return Answers(*(scores[name].argmax(1) for name in Answers._fields))

    @classmethod
    def read(cls, folder: Path) -> "Recogniser":
        """The network that a training left in `folder`."""
        network, state = cls(), read_file(folder / FILE)
        check_keys(state, network.state_dict(), cls.__name__, str(folder))
        network.load_state_dict(state)
        return network.eval()


def truth(scene: Scene) -> dict[str, int]:
    """The right answers."""
    said = {"kind": scene.main.kind, "colour": scene.main.colour, "style": scene.style}
    return {name: QUESTIONS[name].index(value) for name, value in said.items()}


class RecogniserTask:
    """Learn the right answers about drawn stills, blurred and noised at random."""

    networks: Sequence[nn.Module]
    weights: Mapping[str, nn.Parameter]

    def __init__(self, network: Recogniser):
        self.network, self.networks, self.weights = network, (network,), trainable(network)

    @staticmethod
    def prepare(clip: Any, rng: Any) -> dict[str, Any]:
        """The first frame and what it shows."""
        return {"pixels": clip.pixels[0], **truth(clip.scene)}

    def losses(self, batch: Batch, draws: Draws, dtype: torch.dtype) -> dict[str, Float[Tensor, " b"]]:
        """Cross entropy, summed over the questions, and how many answers are right."""
        x = to_unit(batch["pixels"])
        blurred = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
        x = x.lerp(blurred, draws.uniform()[:, None, None, None])
        x = x + MAX_NOISE * draws.uniform()[:, None, None, None] * draws.normal(x.shape[1:])
        scores = self.network(x.to(dtype))
        values: dict[str, Tensor] = {"loss": torch.zeros(len(x), device=x.device)}
        for name in QUESTIONS:
            values["loss"] = values["loss"] + F.cross_entropy(scores[name].float(), batch[name], reduction="none")
            values[name] = (scores[name].argmax(1) == batch[name]).float()
        return values

    def show(self, folder: Path, step: int) -> None:
        """Answers are no picture: the log has their share that is right."""

    def export(self, folder: Path) -> None:
        """Write the network."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().clone() for name, value in self.network.state_dict().items()}, folder / FILE)
