"""Photos of people for tests to look at. None is part of the project: they come out of packages.

Official portraits of the White House lie in the source archive of face_recognition 1.3.0 (MIT), which `make setup` lets
pip fetch; Eileen Collins (NASA, public domain) comes with scikit-image.
"""

import io
import tarfile
from functools import cache

import numpy as np
import pytest
import torch
from jaxtyping import Float
from PIL import Image
from skimage import data
from torch import Tensor

from sources import ROOT

ARCHIVE = ROOT / ".venv" / "photos" / "face_recognition-1.3.0.tar.gz"
PERSONS = {
    "obama.jpg": "Obama",
    "obama2.jpg": "Obama",
    "obama3.jpg": "Obama",
    "obama_partial_face.jpg": "Obama",
    "obama_partial_face2.jpg": "Obama",
    "biden.jpg": "Biden",
    "astronaut": "Collins",
}
"""Who is in each photo, alone."""
WHOLE = [name for name in PERSONS if "partial" not in name]
"""The photos that show the whole face."""


@cache
def portrait(name: str) -> Float[Tensor, "3 h w"]:
    """One of `PERSONS` as RGB from 0 to 255."""
    if name == "astronaut":
        return as_tensor(data.astronaut())
    if not ARCHIVE.is_file():
        pytest.fail(f"The portraits are not there: `make setup` fetches them into {ARCHIVE.parent.relative_to(ROOT)}.")
    with tarfile.open(ARCHIVE) as archive:
        content = archive.extractfile(f"face_recognition-1.3.0/tests/test_images/{name}")
        assert content is not None
        return as_tensor(np.array(Image.open(io.BytesIO(content.read())).convert("RGB")))


def as_tensor(pixels: np.ndarray) -> Float[Tensor, "3 h w"]:
    """Rows, columns and channels as a tensor."""
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).contiguous()
