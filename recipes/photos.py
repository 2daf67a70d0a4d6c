"""Write the free photos that the pocket recipes read: pictures of scikit-image in the public domain or under CC0.

    python recipes/photos.py runs/photos

The astronaut is left out: it is what the models are shown to people with.
"""

import sys
from pathlib import Path

from PIL import Image
from skimage import data

NAMES = ("brick", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field", "moon", "rocket")


def main(folder: Path) -> None:
    """Write the photos as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        Image.fromarray(getattr(data, name)()).convert("RGB").save(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
