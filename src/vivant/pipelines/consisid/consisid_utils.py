"""The face encoders at diffusers' import path: two functions, their arguments, and the order of what they return.

They need none of the packages that are needed there, and no CUDA device. One face is chosen for everything that is
returned, and key points are in pixels of the returned picture; both differ from diffusers (docs/differences.md).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch import device as Device
from torch import dtype as Dtype

from vivant.faces.antelope import CPU
from vivant.faces.encoders import CLIP_MEAN, CLIP_STD, CropRecogniser, Encoders
from vivant.faces.eva import EvaVisual
from vivant.faces.found import Choice, Detector
from vivant.faces.parse import BiSeNet
from vivant.media.still import Source

Triple = tuple[float, float, float]


class FaceHelper(NamedTuple):
    """What crops a face and parses it."""

    face_det: Detector
    face_parse: BiSeNet


class FaceModels(NamedTuple):
    """What `prepare_face_models` returns."""

    face_helper_1: FaceHelper
    face_helper_2: CropRecogniser
    face_clip_model: EvaVisual
    face_main_model: Detector
    eva_transform_mean: Triple
    eva_transform_std: Triple


class FaceEmbeddings(NamedTuple):
    """What `process_face_embeddings_infer` returns.

    Attributes:
        id_cond: embedding of the identity, `1 1280`.
        id_vit_hidden: hidden states of the vision tower, five of `1 577 1024`.
        image: the aligned crop, white where there is no face.
        face_kps: eyes, nose and corners of the mouth, in pixels of `image`.
    """

    id_cond: Tensor
    id_vit_hidden: list[Tensor]
    image: Image.Image
    face_kps: Float[np.ndarray, "5 2"]


def prepare_face_models(
    model_path: str | Path, device: Device | str, dtype: Dtype, *, providers: Sequence[str] = CPU
) -> FaceModels:
    """Load the face encoders of a repository of ConsisID.

    Args:
        model_path: folder or hub id.
        device: where the torch networks run.
        dtype: data type of the vision tower.
        providers: what onnxruntime runs antelopev2 on.

    Raises:
        MissingPackage, LoadError: as `vivant.faces.encoders.Encoders.from_pretrained`.
    """
    e = Encoders.from_pretrained(model_path, device=device, dtype=dtype, providers=providers)
    return FaceModels(FaceHelper(e.detector, e.parser), e.arcface, e.vision, e.scrfd, CLIP_MEAN, CLIP_STD)


def process_face_embeddings_infer(
    face_helper_1: FaceHelper,
    clip_vision_model: EvaVisual,
    face_helper_2: CropRecogniser,
    eva_transform_mean: Triple,
    eva_transform_std: Triple,
    app: Detector,
    device: Device | str,
    weight_dtype: Dtype,
    img_file_path: Source,
    is_align_face: bool = True,
    *,
    choice: Choice = "largest",
) -> FaceEmbeddings:
    """What `ConsisIDPipeline` reads of the face in a photo.

    Args:
        face_helper_1: of `prepare_face_models`, as the next two.
        clip_vision_model: likewise.
        face_helper_2: likewise.
        eva_transform_mean: what the vision tower's pictures are normalised by.
        eva_transform_std: likewise.
        app: of `prepare_face_models`.
        device: where to return the tensors.
        weight_dtype: their data type.
        img_file_path: the photo, see `vivant.media.still.read_still`.
        is_align_face: crop and cut out the face; otherwise the whole photo is seen.
        choice: which face, where there are several.

    Raises:
        InputError: as `vivant.faces.encoders.Encoders.encode`.
    """
    encoders = Encoders(
        detector=face_helper_1.face_det,
        parser=face_helper_1.face_parse,
        vision=clip_vision_model,
        scrfd=app,
        arcface=face_helper_2,
        mean=eva_transform_mean,
        std=eva_transform_std,
    )
    face = encoders.encode(img_file_path, choice, align=is_align_face)
    id_cond = face.id_cond.to(device, weight_dtype)
    hidden = [states.to(device, weight_dtype) for states in face.id_vit_hidden]
    return FaceEmbeddings(id_cond, hidden, face.image, face.keypoints.numpy())
