"""The face encoders of ConsisID, small: the files of a repository's `face_encoder`, and parts that really see faces."""

import shutil
from pathlib import Path
from typing import TypeVar

import torch

import tiny
from vivant.faces.detect import RetinaFace
from vivant.faces.dlib import DlibResNet
from vivant.faces.encoders import ANTELOPE, DETECTION, FOLDER, PARSING, VISION, Encoders
from vivant.faces.eva import EvaVisual
from vivant.faces.parse import BiSeNet
from vivant.faces.small import SmallFaces

GOLDEN = Path(__file__).parent / "golden"
WIDTH, PATCHES, EMBEDDING, ARCFACE = 64, 10, 9, 20
N = TypeVar("N", bound=torch.nn.Module)
TRANSFORMER = {"LFE_id_dim": ARCFACE + EMBEDDING, "LFE_vit_dim": WIDTH, "LFE_num_scale": 5, "LFE_depth": 5}
"""What a transformer is to read of them."""


def vision() -> EvaVisual:
    """Six blocks that see 3x3 patches of 8 pixels."""
    return frozen(EvaVisual(width=WIDTH, depth=6, hidden=80, patch=8, grid=3, embedding=EMBEDDING))


def parser() -> BiSeNet:
    return frozen(BiSeNet(width=8))


def frozen(network: N) -> N:
    tiny.fill(network)
    network.requires_grad_(False)
    return network


def write(repository: Path) -> Path:
    """The five files, below a repository."""
    folder = repository / FOLDER
    (folder / ANTELOPE).mkdir(parents=True)
    detector = frozen(RetinaFace(width=4, depths=(1, 1, 1, 1), channels=8))
    torch.save({f"module.{name}": t for name, t in detector.state_dict().items()}, folder / DETECTION)
    torch.save(parser().state_dict(), folder / PARSING)
    torch.save({f"visual.{name}": t for name, t in vision().state_dict().items()}, folder / VISION)
    shutil.copy(GOLDEN / "small_scrfd.onnx", folder / ANTELOPE / "scrfd_10g_bnkps.onnx")
    shutil.copy(GOLDEN / "small_arcface.onnx", folder / ANTELOPE / "glintr100.onnx")
    return repository


class Recogniser(DlibResNet):
    """The small recogniser in the place of antelopev2's."""

    def embed_crop(self, crop: torch.Tensor) -> torch.Tensor:
        """Of a picture that shows nothing but the face, as ArcFace does."""
        points = torch.tensor([[0.38, 0.47], [0.62, 0.47], [0.5, 0.61], [0.39, 0.73], [0.61, 0.73]])
        return self.embed(crop, points * crop.shape[-1])


def seeing() -> Encoders:
    """Encoders that find and tell apart the faces of real photos; crop and vision are small."""
    small = SmallFaces()
    recogniser = Recogniser.from_state(small.recogniser.state_dict())
    return Encoders(small.detector, parser(), vision(), small.detector, recogniser)
