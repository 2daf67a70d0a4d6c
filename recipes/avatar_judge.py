"""Train the judge of clips of avatars, minutes on two cores.

python recipes/avatar_judge.py runs/judge
"""

import sys
from pathlib import Path

import torch

from vivant.evaluate.avatars import Judge, JudgeTask
from vivant.pocket.avatars import AvatarClips
from vivant.train.loop import Progress, train
from vivant.train.settings import Settings

SETTINGS = Settings(
    steps=1500, batch=24, learning_rate=2e-3, warmup=50, decay="cosine", seed=21, ema=0.99, sample_every=0
)


def main(folder: Path) -> None:
    """Train, resuming what was begun."""

    def say(at: Progress) -> None:
        if at.step % 20 == 0:
            print(at.step, {name: round(value, 3) for name, value in at.values.items()}, flush=True)

    torch.manual_seed(SETTINGS.seed)
    train(JudgeTask(Judge()), AvatarClips(16384), SETTINGS, folder, resume=True, on_step=say)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
