"""A run that several processes share: `torchrun … shared.py FOLDER`."""

import sys
from pathlib import Path

from world import Squares, settings, vae_task

from vivant.train.loop import train
from vivant.train.processes import joined

if __name__ == "__main__":
    with joined() as processes:
        train(vae_task(), Squares(), settings(batch=5), Path(sys.argv[1]), processes=processes)
