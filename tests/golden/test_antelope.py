"""What is done before and after antelopev2's networks, against insightface 2.1; see make_antelope.py."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from skimage import data
from torch import Tensor

from tolerances import assert_parity
from vivant.errors import LoadError, MissingPackage
from vivant.faces import antelope
from vivant.faces.antelope import ArcFace, Scrfd, session

HERE = Path(__file__).parent
GOLDEN = load_file(HERE / "antelope.safetensors")
PHOTOS = {"wide": data.coffee(), "tall": np.ascontiguousarray(data.rocket().transpose(1, 0, 2))}


def tensor(photo: np.ndarray) -> Tensor:
    return torch.tensor(photo).permute(2, 0, 1).float()


@pytest.mark.parametrize("name", PHOTOS)
def test_faces_are_found_as_insightface_does(name):
    faces = Scrfd(HERE / "small_scrfd.onnx").faces_in(tensor(PHOTOS[name]))
    assert len(faces) == len(GOLDEN[f"{name}_boxes"]) > 5
    assert_parity(torch.tensor([face.box for face in faces]), GOLDEN[f"{name}_boxes"])
    assert_parity(torch.tensor([face.score for face in faces]), GOLDEN[f"{name}_scores"])
    assert_parity(torch.stack([face.points for face in faces]), GOLDEN[f"{name}_points"])


@pytest.mark.parametrize("name", PHOTOS)
def test_faces_are_recognised_as_insightface_does(name):
    """skimage estimates the similarity by another decomposition: a pixel of the crop may round to its neighbour."""
    network, photo = ArcFace(HERE / "small_arcface.onnx"), tensor(PHOTOS[name])
    seen, due = network.embed(photo, GOLDEN[f"{name}_points"][0])[0], GOLDEN[f"{name}_embedding"]
    assert (seen - due).norm() < 2e-4 * due.norm()
    crop = tensor(cv2.resize(PHOTOS[name], (512, 512)))
    assert_parity(network.embed_crop(crop)[0], GOLDEN[f"{name}_crop_embedding"])


def test_other_files_and_providers_are_refused(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no network")
    for path, outputs in ((broken, 1), (tmp_path / "none.onnx", 1), (HERE / "small_arcface.onnx", 9)):
        with pytest.raises(LoadError, match="E-FACE-MODEL"):
            session(path, num_outputs=outputs)
    for providers in (["TarotExecutionProvider"], []):
        with pytest.raises(LoadError, match="E-FACE-PROVIDER"):
            session(HERE / "small_arcface.onnx", providers)


def test_without_onnxruntime_the_package_is_named(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(antelope.importlib, "import_module", absent)
    with pytest.raises(MissingPackage, match=r"E-FACE-ONNX(.|\n)*vivant\[faces\]"):
        session(HERE / "small_arcface.onnx")
