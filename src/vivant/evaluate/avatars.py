"""How well clips of avatars show the right person doing the right thing: a judge of its own, and what it is asked.

The judge is a small network that saw drawn clips only. It shares nothing with the networks that see faces for ConsisID:
neither weights nor architecture, and it looks at whole frames. Who a person is, it says trait by trait.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn

from vivant.evaluate.recogniser import MAX_NOISE
from vivant.hub.load import check_keys, read_file
from vivant.pocket.avatars import ACTIONS, TRAITS, Avatar, Filmed
from vivant.pocket.world import COLOURS, GROUNDS, TONES
from vivant.train.loop import trainable
from vivant.train.samples import Batch, Draws
from vivant.train.vae import to_unit

SHOWN: Mapping[str, Sequence[str]] = {"action": ACTIONS, "ground": GROUNDS, "tone": TONES, "shirt": COLOURS}
"""What a sentence says, and the possible answers."""
QUESTIONS: Mapping[str, Sequence[str]] = {**TRAITS, **SHOWN}
FILE = "judge.safetensors"
NUM_CANDIDATES = 20
"""Persons of whom one is to be told in a clip."""


class Judge(nn.Module):
    """A convolutional classifier of clips with one head for each of `QUESTIONS`; only the action is read over time."""

    def __init__(self, width: int = 24, num_frames: int = 9):
        super().__init__()
        sizes = (width, 2 * width, 3 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in zip((3, *sizes[:-1]), sizes, strict=True):
            layers += [nn.Conv2d(before, after, 5, stride=2, padding=2), nn.GroupNorm(8, after), nn.GELU()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.still = nn.Sequential(nn.Linear(16 * sizes[-1], 256), nn.GELU())
        self.moving = nn.Sequential(nn.Linear(16 * sizes[-1], 32), nn.GELU())
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(said)) for name, said in QUESTIONS.items()})
        self.heads["action"] = nn.Sequential(nn.Linear(32 * num_frames, 64), nn.GELU(), nn.Linear(64, len(ACTIONS)))

    def forward(self, x: Float[Tensor, "b f 3 h w"]) -> dict[str, Float[Tensor, "b k"]]:
        """Logarithms of the probabilities of every answer for clips of 64 x 64 pixels in [-1, 1]."""
        seen = self.body(rearrange(x, "b f c h w -> (b f) c h w"))
        moving = rearrange(self.moving(seen), "(b f) c -> b (f c)", b=len(x))
        still = rearrange(self.still(seen), "(b f) c -> b f c", b=len(x)).mean(1)
        return {
            name: head(moving if name == "action" else still).float().log_softmax(1)
            for name, head in self.heads.items()
        }

    @classmethod
    def read(cls, folder: Path) -> "Judge":
        """The network that a training left in `folder`."""
        network, state = cls(), read_file(folder / FILE)
        check_keys(state, network.state_dict(), cls.__name__, str(folder))
        network.load_state_dict(state)
        return network.eval()


def truth(clip: Filmed) -> dict[str, int]:
    """The right answers."""
    said = {
        "action": clip.action,
        "ground": clip.setting.ground,
        "tone": clip.setting.tone,
        "shirt": clip.setting.shirt,
    }
    shown = {name: SHOWN[name].index(value) for name, value in said.items()}
    return {**dict(zip(TRAITS, clip.avatar.indices, strict=True)), **shown}


class JudgeTask:
    """Learn the right answers about drawn clips, blurred and noised at random."""

    networks: Sequence[nn.Module]
    weights: Mapping[str, nn.Parameter]

    def __init__(self, network: Judge):
        self.network, self.networks, self.weights = network, (network,), trainable(network)

    @staticmethod
    def prepare(clip: Filmed, rng: Any) -> dict[str, Any]:
        """The clip and what it shows."""
        return {"pixels": clip.pixels, **truth(clip)}

    def losses(self, batch: Batch, draws: Draws, dtype: torch.dtype) -> dict[str, Float[Tensor, " b"]]:
        """Cross entropy, summed over the questions, and the parts that are right."""
        x = to_unit(batch["pixels"])
        frames = x.flatten(0, 1)
        blurred = F.interpolate(F.avg_pool2d(frames, 2), scale_factor=2, mode="bilinear").unflatten(0, x.shape[:2])
        share = draws.uniform().view(-1, 1, 1, 1, 1)
        x = x.lerp(blurred, share) + MAX_NOISE * draws.uniform().view(-1, 1, 1, 1, 1) * draws.normal(x.shape[1:])
        scores = self.network(x.to(dtype))
        losses = {name: F.nll_loss(scores[name], batch[name], reduction="none") for name in QUESTIONS}
        right = {name: (scores[name].argmax(1) == batch[name]).float() for name in QUESTIONS}
        traits = torch.stack([right[name] for name in TRAITS]).mean(0)
        return {"loss": torch.stack(list(losses.values())).sum(0), "traits": traits, **{k: right[k] for k in SHOWN}}

    def show(self, folder: Path, step: int) -> None:
        """Answers are no picture: the log has their share that is right."""

    def export(self, folder: Path) -> None:
        """Write the network."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().clone() for name, value in self.network.state_dict().items()}, folder / FILE)


@torch.no_grad()
def answers(judge: Judge, clips: UInt8[np.ndarray, "n f h w 3"], batch: int = 32) -> dict[str, Float[Tensor, "n k"]]:
    """What the judge says of clips, see `Judge.forward`."""
    parts = [judge(to_unit(torch.from_numpy(clips[i : i + batch]))) for i in range(0, len(clips), batch)]
    return {name: torch.cat([part[name] for part in parts]) for name in QUESTIONS}


def identified(
    said: Mapping[str, Float[Tensor, "n k"]], avatars: Sequence[Avatar], num_candidates: int = NUM_CANDIDATES
) -> list[bool]:
    """Whether each clip's person is the likeliest of so many: its own, and those of the clips that follow in a circle.

    Args:
        said: what the judge says of each clip.
        avatars: who each clip is to show; at least as many as there are candidates, no two alike.

    Raises:
        ValueError: for fewer persons than candidates, or the same one twice.
    """
    if len(avatars) < num_candidates or len({avatar.names for avatar in avatars}) < len(avatars):
        raise ValueError(f"There are not {num_candidates} different persons.")
    right: list[bool] = []
    for i in range(len(avatars)):
        candidates = [avatars[(i + k) % len(avatars)] for k in range(num_candidates)]
        scores = [
            sum(said[name][i, index].item() for name, index in zip(TRAITS, avatar.indices, strict=True))
            for avatar in candidates
        ]
        right.append(scores[0] > max(scores[1:]))
    return right


def answered(said: Mapping[str, Float[Tensor, "n k"]], clips: Sequence[Filmed], name: str) -> list[bool]:
    """Whether the likeliest answer to one of `QUESTIONS` is right for each clip."""
    wanted = torch.tensor([truth(clip)[name] for clip in clips])
    return (said[name].argmax(1) == wanted).tolist()
