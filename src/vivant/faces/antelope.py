"""antelopev2, insightface's pair of ONNX files: SCRFD finds faces, glintr100 recognises them.

SCRFD is Guo et al., arXiv 2105.04714; the recogniser is an ArcFace network, Deng et al., arXiv 1801.07698. Both run by
onnxruntime. What is done before and after them follows insightface 0.7 and 2.1, with which the published checkpoints of
ConsisID were trained.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vivant.errors import LoadError, MissingPackage
from vivant.faces.align import ARCFACE, ARCFACE_POINTS, least_squares, resized, warp
from vivant.faces.found import Found, found

SIDE = 640
"""Pixels a side of what SCRFD looks at."""
STRIDES = (8, 16, 32)
NUM_ANCHORS = 2
THRESHOLD = 0.5
DETECTOR, RECOGNISER = "scrfd_10g_bnkps.onnx", "glintr100.onnx"
CPU = ("CPUExecutionProvider",)


def session(path: str | Path, providers: Sequence[str] = CPU, num_outputs: int = 1) -> Any:
    """An ONNX file ready to run.

    Args:
        path: the file.
        providers: what onnxruntime runs it on, the best first.
        num_outputs: how many results the network must have.

    Raises:
        MissingPackage: E-FACE-ONNX without onnxruntime.
        LoadError: E-FACE-MODEL for a file that is missing, damaged or another network, E-FACE-PROVIDER for a provider
            that this onnxruntime does not have.
    """
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError:
        raise MissingPackage(
            "E-FACE-ONNX", "antelopev2 runs by onnxruntime, which is not installed.", "", "pip install 'vivant[faces]'"
        ) from None
    absent = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if absent or not providers:
        raise LoadError(
            "E-FACE-PROVIDER",
            f"onnxruntime has no {', '.join(absent) or 'provider to run on'}.",
            f"Here it has {', '.join(onnxruntime.get_available_providers())}.",
            "Choose one of these, or install the onnxruntime that has yours.",
        )
    if not Path(path).is_file():
        raise LoadError("E-FACE-MODEL", f"{path} is not there.", "", "Check that the download is complete.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings speak of nodes that it removes
    try:
        opened = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # onnxruntime has no base class of its own for these
        raise LoadError(
            "E-FACE-MODEL", f"{path} cannot be read: {str(error).splitlines()[0][:200]}.", "", "Download it again."
        ) from None
    if len(opened.get_inputs()) != 1 or len(opened.get_outputs()) != num_outputs:
        raise LoadError(
            "E-FACE-MODEL",
            f"{path} has {len(opened.get_outputs())} results.",
            f"The network that belongs here has {num_outputs}.",
            "Check that this is the file of antelopev2.",
        )
    return opened


def run(opened: Any, x: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
    """All results of a network."""
    return [torch.from_numpy(value) for value in opened.run(None, {opened.get_inputs()[0].name: x.numpy()})]


class Scrfd:
    """Finds faces and five points in each."""

    def __init__(self, path: str | Path, providers: Sequence[str] = CPU):
        self.session = session(path, providers, num_outputs=3 * len(STRIDES))

    def faces_in(self, photo: Float[Tensor, "3 h w"], threshold: float = THRESHOLD) -> list[Found]:
        """The faces in a photo (RGB, 0 to 255), the surest first."""
        x, factor = letterboxed(photo)
        parts = run(self.session, (x[None] - 127.5) / 128)
        scores, boxes, points = (torch.cat([p.float() for p in parts[i : i + 3]]) for i in (0, 3, 6))
        centers = torch.cat([_centers(stride) for stride in STRIDES])
        strides = torch.cat([torch.full((len(_centers(stride)), 1), float(stride)) for stride in STRIDES])
        boxes, points = boxes * strides, points * strides
        boxes = torch.cat([centers - boxes[:, :2], centers + boxes[:, 2:]], dim=1)
        points = centers[:, None] + points.reshape(-1, 5, 2)
        return found(boxes / factor, scores[:, 0], points / factor, threshold, pixel=1.0)


def _centers(stride: int) -> Float[Tensor, "n 2"]:
    side = torch.arange(SIDE // stride) * float(stride)
    y, x = torch.meshgrid(side, side, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2).repeat_interleave(NUM_ANCHORS, dim=0)


def letterboxed(photo: Float[Tensor, "3 i j"]) -> tuple[Float[Tensor, "3 h w"], float]:
    """The photo made as large as a square of `SIDE` holds, in its upper left corner; and by which factor."""
    height, width = photo.shape[1:]
    if height > width:
        size = SIDE, int(SIDE / (height / width))
    else:
        size = int(SIDE * (height / width)), SIDE
    return F.pad(resized(photo, size), (0, SIDE - size[1], 0, SIDE - size[0])), size[0] / height


class ArcFace:
    """Tells faces apart: 512 numbers, whose direction is the person's."""

    SPACE = "antelopev2-512"
    """The name of what its embeddings can be compared with: those of the same space only."""

    def __init__(self, path: str | Path, providers: Sequence[str] = CPU):
        self.session = session(path, providers)

    def embed(self, photo: Float[Tensor, "3 h w"], points: Float[Tensor, "5 2"]) -> Float[Tensor, "1 e"]:
        """The embedding, not normalised, of a face in a photo (RGB, 0 to 255)."""
        return self.embed_crop(warp(photo, least_squares(points, torch.tensor(ARCFACE_POINTS)), ARCFACE))

    def embed_crop(self, crop: Float[Tensor, "3 h w"]) -> Float[Tensor, "1 e"]:
        """The embedding of a picture that shows nothing but the face."""
        x = resized(crop, (ARCFACE, ARCFACE))
        return run(self.session, (x[None] - 127.5) / 127.5)[0].float()
