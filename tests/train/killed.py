"""A run that the test kills: `python killed.py FOLDER STEPS [resume]`."""

import sys
from pathlib import Path

from world import Squares, settings, vae_task

from vivant.train.loop import train

if __name__ == "__main__":
    train(
        vae_task(),
        Squares(),
        settings(steps=int(sys.argv[2]), checkpoint_every=4, ema=0.9, workers=1),
        Path(sys.argv[1]),
        resume="resume" in sys.argv,
        on_step=lambda at: print(at.step, flush=True),
    )
