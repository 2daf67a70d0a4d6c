"""Small networks and recipes for the tests of training: seconds, not hours."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivant.cli import main
from vivant.train.settings import Settings
from vivant.train.sources import Captioned
from vivant.train.vae import VaeLoss, VaeTask, to_unit
from vivant.vae.image import AutoencoderKL

VAE: dict[str, Any] = {
    "block_out_channels": [8, 12],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 16,
    "mid_block_add_attention": False,
}


class Squares:
    """Clips of one coloured square on grey, different for every index; 16 x 24 pixels."""

    def __init__(self, num: int = 20, num_frames: int = 1):
        self.num, self.num_frames = num, num_frames

    def __len__(self) -> int:
        return self.num

    def read(self, index: int, rng: np.random.Generator) -> Captioned:
        own = np.random.default_rng(index)
        colour, row = own.integers(0, 256, 3), int(own.integers(2, 9))
        pixels = np.full((self.num_frames, 16, 24, 3), 128, np.uint8)
        for i in range(self.num_frames):
            pixels[i, row : row + 6, 3 + i : 9 + i] = colour
        return Captioned(pixels, f"square {index}")


def settings(**changes: Any) -> Settings:
    """Numbers of a short run in float32."""
    values: dict[str, Any] = {"steps": 6, "batch": 6, "learning_rate": 3e-3, "precision": "float32", "workers": 0}
    return Settings(**{**values, "sample_every": 0, "log_every": 1, "seed": 5, **changes})


def vae_task() -> VaeTask:
    """A small autoencoder, the same every time."""
    torch.manual_seed(0)
    shown = np.stack([Squares().read(i, np.random.default_rng(0)).pixels[0] for i in range(2)])
    return VaeTask(AutoencoderKL(**VAE), VaeLoss(), to_unit(torch.from_numpy(shown)))


def write(path: Path, text: str) -> Path:
    """A recipe as a file."""
    path.write_text(text, encoding="utf-8")
    return path


def make(folder: Path, kind: str, name: str, text: str, *more: str) -> dict[str, Any]:
    """A run of a recipe by the command line."""
    recipe, out = write(folder / f"{name}.toml", text), io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["train", kind, "--config", str(recipe), "-o", str(folder / name), "--json", *more])
    assert code == 0, out.getvalue()
    return json.loads(out.getvalue())
