"""Train the recogniser that judges the drawn pictures: minutes on two cores.

python recipes/recogniser.py runs/recogniser
"""

import sys
from pathlib import Path

import torch

from vivant.evaluate.recogniser import Recogniser, RecogniserTask
from vivant.pocket.world import DrawnClips
from vivant.train.loop import Progress, train
from vivant.train.settings import Settings

SETTINGS = Settings(
    steps=4000, batch=48, learning_rate=2e-3, warmup=100, decay="cosine", seed=4, ema=0.995, sample_every=0
)


def main(folder: Path) -> None:
    """Train, resuming what was begun."""

    def say(at: Progress) -> None:
        if at.step % 100 == 0:
            print(at.step, {name: round(value, 3) for name, value in at.values.items()}, flush=True)

    torch.manual_seed(SETTINGS.seed)
    train(RecogniserTask(Recogniser()), DrawnClips(100_000, 1, 64), SETTINGS, folder, resume=True, on_step=say)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
