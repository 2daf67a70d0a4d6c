"""Measure the pocket models on what training never saw, and draw a contact sheet of each base.

    python recipes/evaluate.py runs/recogniser "runs/photos/held out" docs

writes `pocket.json` and `images/paper.jpg`, `images/neon.jpg` below the given folder. Photos come from
`runs/photos/held out` (recipes/photos.py). A native crop is 64 x 64 pixels of a photo as it is; a shrunken one is a
quarter to all of its shorter side.
"""

import json
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from vivant import pocket
from vivant.evaluate.recogniser import Recogniser
from vivant.evaluate.stills import GUIDANCE, NUM_STEPS, draw, held_out, judge, reconstruction
from vivant.media.sheet import grid
from vivant.pocket.world import STYLES, caption, render
from vivant.train.recipe import open_repository
from vivant.train.sources import random_crop
from vivant.train.vae import to_bytes, to_unit

SIZE, NUM = 64, 200
COLUMNS, ROWS, CELL, LABEL = 6, 4, 160, 40  # of a contact sheet, in pixels


def main(judge_folder: Path, photo_folder: Path, docs: Path) -> None:
    """Measure, draw and write."""
    torch.manual_seed(0)
    recogniser = Recogniser.read(judge_folder)
    found: dict[str, object] = {"pictures": NUM, "guidance": GUIDANCE, "steps": NUM_STEPS}
    vae = open_repository(pocket.base()).vae
    photos = [Image.open(path).convert("RGB") for path in sorted(photo_folder.glob("*.png"))]
    for name, cut in (("native", native_crop), ("shrunken", shrunken_crop)):
        rng = np.random.default_rng(5)
        crops = np.stack([cut(photos[i % len(photos)], rng) for i in range(NUM)])
        found[f"{name} photo crops, dB"] = reconstruction(vae, torch.from_numpy(crops)).mean().item()
    for style in STYLES:
        scenes = held_out(style, NUM)
        frames = torch.from_numpy(np.stack([render(scene, 1, SIZE)[0] for scene in scenes]))
        again = to_bytes(vae.decode_tensor(vae.encode_moments(to_unit(frames)).chunk(2, dim=1)[0]))
        made = draw(open_repository(pocket.base(style)), scenes)
        found[style] = {
            "reconstruction, dB": reconstruction(vae, frames).mean().item(),
            "recogniser on drawn frames": asdict(judge(recogniser, frames, scenes)),
            "recogniser on reconstructions": asdict(judge(recogniser, again, scenes)),
            "text control": asdict(judge(recogniser, made, scenes)),
        }
        words = [caption(scene, with_motion=False) for scene in scenes]
        sheet(made[: COLUMNS * ROWS].numpy(), words).save(docs / "images" / f"{style}.jpg", quality=90)
        print(style, json.dumps(found[style], indent=2), flush=True)
    text = json.dumps(found, indent=2, default=float)
    (docs / "pocket.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def native_crop(photo: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """A random square of a photo, pixel by pixel."""
    left, top = (int(rng.integers(side - SIZE + 1)) for side in photo.size)
    return np.asarray(photo.crop((left, top, left + SIZE, top + SIZE)))


def shrunken_crop(photo: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """A random square of a photo, a quarter to all of its shorter side, shrunk."""
    return random_crop(photo, (SIZE, SIZE), 0.25, rng)


def sheet(pictures: np.ndarray, words: list[str]) -> Image.Image:
    """Pictures above their captions."""
    cells: list[Image.Image] = []
    for pixels, text in zip(pictures, words, strict=False):
        cell = Image.new("RGB", (CELL, CELL + LABEL), "white")
        cell.paste(Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.BICUBIC))
        ImageDraw.Draw(cell).multiline_text((2, CELL + 2), "\n".join(textwrap.wrap(text, 30)[:3]), "black", spacing=1)
        cells.append(cell)
    return grid(cells, ROWS, COLUMNS, gap=6)


if __name__ == "__main__":
    with torch.inference_mode():
        main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
