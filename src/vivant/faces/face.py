"""`Face`: everything that ConsisID reads of a person, as one value that needs its photo no more."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from vivant.errors import InputError
from vivant.faces.file import BOX, COND, HIDDEN, IMAGE, POINTS, QUALITY, num_depths, read_tensors
from vivant.faces.found import Box
from vivant.faces.quality import Quality
from vivant.media.atomic import replacing


@dataclass(frozen=True, eq=False)
class Face:
    """One person.

    Attributes:
        id_cond: the recogniser's embedding, and behind it the picture's of EVA-CLIP.
        id_vit_hidden: EVA-CLIP's hidden states at five depths.
        image: the aligned crop, white where there is no face; what the video starts from.
        keypoints: eyes, nose and corners of the mouth, in pixels of `image`.
        box: where the face was, in pixels of the upright photo.
        quality: how well the photo showed it.
        notes: what was fallen back to.
    """

    id_cond: Float[Tensor, "1 e"]
    id_vit_hidden: tuple[Float[Tensor, "1 n c"], ...]
    image: Image.Image
    keypoints: Float[Tensor, "5 2"]
    box: Box
    quality: Quality
    notes: tuple[str, ...] = ()

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> Path:
        """Write it as a safetensors file: the tensors, the crop, no photo. Nothing remains of a failed attempt.

        Raises:
            OutputError: E-OUTPUT-EXISTS, E-OUTPUT-FOLDER, E-OUTPUT-WRITE.
        """
        named = {
            COND: self.id_cond,
            **{f"{HIDDEN}{i}": hidden for i, hidden in enumerate(self.id_vit_hidden)},
            IMAGE: torch.from_numpy(np.array(self.image))[None],
            POINTS: self.keypoints[None],
            BOX: torch.tensor([self.box], dtype=torch.float64),
            QUALITY: torch.tensor([self.quality], dtype=torch.float64),
        }
        with replacing(Path(path), overwrite=overwrite) as temporary:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}, temporary)
        return Path(path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what `save` wrote; files may come from strangers.

        Raises:
            InputError: as `vivant.faces.file.read_tensors`; E-IDENTITY-TENSORS for an identity without its picture, and
                E-IDENTITY-SHAPE for several people.
        """
        named = read_tensors(path)
        absent = sorted({IMAGE, POINTS, BOX, QUALITY} - named.keys())
        if absent:
            raise InputError(
                "E-IDENTITY-TENSORS",
                f"{path} lacks {', '.join(absent)}.",
                "It holds an identity and not the picture of its face.",
                "Give the picture of the face as well, or write the file again with Face.save.",
            )
        if len(named[COND]) != 1:
            raise InputError("E-IDENTITY-SHAPE", f"{path} holds {len(named[COND])} people; a Face is one of them.")
        hidden = tuple(named[f"{HIDDEN}{i}"] for i in range(num_depths(named)))
        left, top, right, bottom = named[BOX][0].tolist()
        image = Image.fromarray(named[IMAGE][0].numpy())
        quality = Quality(*named[QUALITY][0].tolist())
        return cls(named[COND], hidden, image, named[POINTS][0], (left, top, right, bottom), quality)


def average(faces: Sequence[Face]) -> Face:
    """One person from several photos: the mean of the embeddings and of the hidden states.

    An extension: the published checkpoint was trained on single photos. The crops are aligned, so that what lies at one
    place of them is the same part of the face. Crop, key points, box and quality are those of the first photo.

    Raises:
        InputError: E-FACE-NONE without any.
    """
    if not faces:
        raise InputError("E-FACE-NONE", "There is no face to average.", "", "Give one photo or several.")
    first = faces[0]
    if len(faces) == 1:
        return first
    hidden = tuple(torch.stack(states).mean(0) for states in zip(*[face.id_vit_hidden for face in faces], strict=True))
    notes = tuple(dict.fromkeys(note for face in faces for note in face.notes))
    cond = torch.stack([face.id_cond for face in faces]).mean(0)
    return replace(first, id_cond=cond, id_vit_hidden=hidden, notes=notes)
