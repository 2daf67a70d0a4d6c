"""From a photo to what ConsisID reads of a face: the published encoders, fed with one face that is chosen once.

The flow is that of ConsisID (arXiv 2411.17440; github.com/PKU-YuanGroup/ConsisID, models/utils.py) and of the port in
diffusers, without their mixing of two people in a picture of several: there the embedding is the largest face's, and
the crop is that of the most central one.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from vivant.errors import LoadError, warn
from vivant.faces.align import CROP, CROP_BORDER, CROP_POINTS, Similarity, robust, shrunken, warp
from vivant.faces.antelope import CPU, DETECTOR, RECOGNISER, ArcFace, Scrfd
from vivant.faces.detect import RetinaFace
from vivant.faces.eva import EvaVisual, Seen
from vivant.faces.face import Face, average
from vivant.faces.found import Choice, Detector, Found, Recogniser, choose, same_as, scaled
from vivant.faces.parse import LABELS, BiSeNet
from vivant.faces.quality import measure
from vivant.hub.converted import converted
from vivant.hub.repo import Source, locate
from vivant.media.still import Source as Photo
from vivant.media.still import read_still

FOLDER = "face_encoder"
DETECTION, PARSING, VISION = "detection_Resnet50_Final.pth", "parsing_bisenet.pth", "EVA02_CLIP_L_336_psz14_s6B.pt"
ANTELOPE = "models/antelopev2"

LONG_EDGE = 1024
"""Pixels of a photo's longer side, at most."""
WHITE = ("background", "left ear", "right ear", "earring", "neck", "necklace", "cloth", "hat")
"""What becomes white in a crop."""
GREY = (0.299, 0.587, 0.114)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Faces(NamedTuple):
    """The faces of a photo, as each detector found them."""

    scrfd: list[Found]
    retina: list[Found]

    @property
    def known(self) -> list[Found]:
        """Those among which one is chosen: the recogniser's, if there are any."""
        return self.scrfd or self.retina


@runtime_checkable
class CropRecogniser(Recogniser, Protocol):
    """One that can do without points."""

    def embed_crop(self, crop: Float[Tensor, "3 h w"]) -> Float[Tensor, "1 e"]:
        """The embedding of a picture that shows nothing but the face."""
        ...


@dataclass(frozen=True, eq=False)
class Encoders:
    """The five networks of ConsisID's `face_encoder`.

    Attributes:
        detector: finds the landmarks that crops are aligned by.
        parser: tells the face from what is around it.
        vision: sees the crop.
        scrfd: finds faces for the recogniser.
        arcface: knows whose they are.
        mean: what the vision tower's pictures are normalised by.
        std: likewise.
    """

    detector: Detector
    parser: BiSeNet
    vision: EvaVisual
    scrfd: Detector
    arcface: CropRecogniser
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @classmethod
    def from_pretrained(
        cls,
        repo: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        providers: Sequence[str] = CPU,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Load the encoders of a repository of ConsisID.

        Args:
            repo: folder or hub id.
            device: where all but the ONNX files run.
            dtype: data type of the vision tower; detector and parser stay in float32.
            providers: what onnxruntime runs the ONNX files on, the best first.
            revision: branch, tag or commit.
            cache_dir: hub cache.
            local_files_only: never touch the network.
            token: hub token.

        Raises:
            MissingPackage: E-FACE-ONNX.
            LoadError: E-FACE-MODEL for a file that is missing, E-FACE-PROVIDER, E-KEYS-MISMATCH and what the reading
                of weights raises.
        """
        source = Source(repo, None, None, revision, cache_dir, local_files_only, token)
        return cls.from_source(source, device=device, dtype=dtype, providers=providers)

    @classmethod
    def from_source(
        cls,
        source: Source,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        providers: Sequence[str] = CPU,
    ) -> Self:
        """As `from_pretrained`."""
        if not os.path.isdir(source.source):
            warn(
                "W-FACE-LICENCE",
                "The recogniser antelopev2, which the repository holds, is licensed for non-commercial research only.",
            )
        folder = locate(source, [f"{FOLDER}/{name}" for name in FILES]) / FOLDER
        files = {name: converted(folder / name) for name in FILES}
        absent = [name for name, path in files.items() if not path.is_file()]
        if absent:
            raise LoadError(
                "E-FACE-MODEL",
                f"{source.source} has no {FOLDER}/{absent[0]}.",
                f"{len(absent)} of {len(FILES)} files of the face encoders are missing.",
                "Give a complete repository of ConsisID, such as BestWishYsh/ConsisID-preview, or an identity.",
            )
        scrfd = Scrfd(folder / ANTELOPE / DETECTOR, providers)
        arcface = ArcFace(folder / ANTELOPE / RECOGNISER, providers)
        detector = RetinaFace.from_file(files[DETECTION]).to(device, torch.float32)
        parser = BiSeNet.from_file(files[PARSING]).to(device, torch.float32)
        vision = EvaVisual.from_file(files[VISION]).to(device, dtype)
        return cls(detector, parser, vision, scrfd, arcface)

    def encode(self, photo: Photo, choice: Choice = "largest", *, align: bool = True) -> Face:
        """Everything that ConsisID reads of a face in a photo.

        Args:
            photo: see `vivant.media.still.read_still`.
            choice: which face, where there are several; a box is in pixels of the upright photo.
            align: crop the face and make white what is around it; otherwise the whole photo is seen, stretched to the
                vision tower's square.

        Raises:
            InputError: E-IMAGE-…, E-FACE-NONE, E-FACE-CHOICE, E-FACE-POINTS.
        """
        still = read_still(photo)
        return self.encode_pixels(pixels_of(still.image), choice, align=align, notes=still.notes)

    def encode_all(self, photos: Sequence[Photo], choice: Choice = "largest") -> Face:
        """One person from several photos, see `vivant.faces.face.average`."""
        return average([self.encode(photo, choice) for photo in photos])

    @torch.no_grad()
    def encode_pixels(
        self,
        whole: Float[Tensor, "3 i j"],
        choice: Choice = "largest",
        *,
        align: bool = True,
        notes: Sequence[str] = (),
    ) -> Face:
        """As `encode`, of an upright RGB photo from 0 to 255."""
        photo, notes = shrunken(whole, LONG_EDGE), list(notes)
        factor = whole.shape[2] / photo.shape[2]
        if isinstance(choice, tuple):
            choice = scaled(choice, 1 / factor)
        found = self.find(photo)
        chosen = choose(found.known, choice, photo.shape[2], photo.shape[1])
        landmarks = (same_as(chosen, found.retina) or chosen).points
        to_crop = robust(landmarks, torch.tensor(CROP_POINTS))
        crop = warp(photo, to_crop, CROP, CROP_BORDER)
        if found.scrfd:
            embedding = self.arcface.embed(photo, chosen.points)
        else:
            text = "The recogniser's detector found no face; the embedding is that of the crop."
            warn("W-FACE-CROP", text)
            notes.append(text)
            embedding = self.arcface.embed_crop(crop)
        if align:
            coloured, grey = self.cut_out(crop)
        else:
            to_crop, coloured = Similarity(1, 0), photo / 255
            grey = coloured
        seen = self.see(grey)
        pooled = seen.pooled / seen.pooled.norm(dim=1, keepdim=True)
        return Face(
            id_cond=torch.cat([embedding.to(pooled), pooled], dim=1),
            id_vit_hidden=seen.hidden,
            image=_as_image(coloured),
            keypoints=to_crop.apply(chosen.points).float(),
            box=scaled(chosen.box, factor),
            quality=measure(photo, chosen)._replace(size=min(chosen.width, chosen.height) * factor),
            notes=tuple(notes),
        )

    @torch.no_grad()
    def find(self, photo: Float[Tensor, "3 h w"]) -> Faces:
        """The faces in a photo (RGB, 0 to 255), by both detectors."""
        return Faces(self.scrfd.faces_in(photo), self.detector.faces_in(photo))

    def cut_out(self, crop: Float[Tensor, "3 h w"]) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "3 h w"]]:
        """A crop (0 to 255) in colour and in grey (0 to 1), white where there is no face."""
        colours = crop / 255
        around = self.around(colours)
        grey = (colours * colours.new_tensor(GREY)[:, None, None]).sum(0, keepdim=True)
        return colours.masked_fill(around, 1.0), grey.expand(3, -1, -1).masked_fill(around, 1.0)

    def around(self, crop: Float[Tensor, "3 h w"]) -> Bool[Tensor, "h w"]:
        """What of a crop (0 to 1) is no face."""
        labels = self.parser.labels(_normalised(crop, IMAGENET_MEAN, IMAGENET_STD)[None].to(self.parser.device))[0]
        return torch.isin(labels.cpu(), torch.tensor([LABELS.index(name) for name in WHITE]))

    def see(self, picture: Float[Tensor, "3 i j"]) -> Seen:
        """What the vision tower makes of a picture (0 to 1), in float32."""
        side = self.vision.size
        resized = F.interpolate(picture[None], (side, side), mode="bicubic", antialias=True, align_corners=False)
        x = _normalised(resized[0], self.mean, self.std)[None]
        seen = self.vision(x.to(self.vision.device, self.vision.dtype))
        return Seen(seen.pooled.float().cpu(), tuple(hidden.float().cpu() for hidden in seen.hidden))


FILES = (DETECTION, PARSING, VISION, f"{ANTELOPE}/{DETECTOR}", f"{ANTELOPE}/{RECOGNISER}")
"""What a repository holds of them, below `FOLDER`."""


def pixels_of(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """An RGB picture, 0 to 255."""
    return rearrange(torch.from_numpy(np.array(image)).float(), "h w c -> c h w")


def _normalised(
    x: Float[Tensor, "3 h w"], mean: tuple[float, float, float], deviation: tuple[float, float, float]
) -> Float[Tensor, "3 h w"]:
    return (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(deviation)[:, None, None]


def _as_image(picture: Float[Tensor, "3 h w"]) -> Image.Image:
    return Image.fromarray(rearrange(picture * 255, "c h w -> h w c").round().byte().numpy())
