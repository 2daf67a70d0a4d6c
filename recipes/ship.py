"""Put trained models into the package: bfloat16, with their licence in the header of every file of weights.

python recipes/ship.py runs/words/base src/vivant/pocket/paper
"""

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HEADER = {
    "format": "pt",
    "license": "Apache-2.0",
    "description": "Trained from scratch with vivant on its drawn world and free photos; see vivant/pocket/README.md.",
}


def main(exported: Path, target: Path) -> None:
    """Replace `target` by what a training exported."""
    shutil.rmtree(target, ignore_errors=True)
    for path in sorted(exported.rglob("*")):
        copy = target / path.relative_to(exported)
        if path.suffix == ".safetensors":
            state = {name: rounded(value) for name, value in load_file(path).items()}
            copy.parent.mkdir(parents=True, exist_ok=True)
            save_file(state, copy, metadata=HEADER)
        elif path.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


def rounded(value: torch.Tensor) -> torch.Tensor:
    """Numbers in bfloat16, indices as they are."""
    return value.bfloat16().contiguous() if value.is_floating_point() else value


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
