"""CLIP scores of clips: as published, and corrected.

Published (PIA, arXiv 2312.13964, section 5: cosine between the embedding of each frame and that of the input picture,
or of the prompt, mean over frames, times 100). Two things make these numbers say less than they seem to:

* The frame that is the picture is compared with itself, so that short and frozen clips score best. `image` leaves that
  frame out.
* The prompt says what the picture shows, so that a frozen clip has the score of its picture. `text_gain` is what the
  clip has more than its picture: 0 for a frozen clip.

And CLIP sees only the middle square of a picture; the corrected scores shrink all of it into that square instead.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from vivant.errors import LoadError
from vivant.text.clip import load_tokenizer, tokenise

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own normalisation (openai/CLIP, clip.py)."""
Picture = UInt8[np.ndarray, "h w 3"]
Frames = UInt8[np.ndarray, "f h w 3"]


@dataclass(frozen=True)
class ClipScores:
    """Cosines times 100.

    Attributes:
        published_image: frames against the picture, all frames, middle squares.
        published_text: frames against the prompt, likewise.
        image: frames against the picture without the frame that is the picture, whole pictures; nan for one frame.
        text: frames against the prompt, whole pictures.
        text_gain: `text` less the score of the picture itself.
    """

    published_image: float
    published_text: float
    image: float
    text: float
    text_gain: float


class ClipScorer:
    """A CLIP model, its tokenizer and its size of pictures."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.size = int(model.config.vision_config.image_size)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, local_files_only: bool = False) -> Self:
        """Read a CLIP repository, such as openai/clip-vit-base-patch32: a folder or a hub id; safetensors only.

        Raises:
            LoadError: E-CLIP-MODEL.
        """
        from transformers import CLIPModel

        from vivant.hub.repo import Source, locate

        try:
            model = CLIPModel.from_pretrained(source, use_safetensors=True, local_files_only=local_files_only)
        except Exception as error:  # whatever transformers raises
            raise LoadError(
                "E-CLIP-MODEL",
                f"{source} cannot be read as a CLIP model: {str(error)[:200]}.",
                "",
                "Give a folder or a hub id with config.json, model.safetensors and the tokenizer.",
            ) from error
        folder = locate(
            Source(source, local_files_only=local_files_only),
            ["config.json", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"],
        )
        return cls(model, load_tokenizer(folder))

    @torch.no_grad()
    def score(self, frames: Frames, picture: Picture, prompt: str, cond_frame: int = 0) -> ClipScores:
        """Score a clip.

        Args:
            frames: the clip.
            picture: what it was made of.
            prompt: what was to happen.
            cond_frame: the frame that is the picture.
        """
        text = self._text(prompt)
        middle, whole = (self._pictures([picture, *frames], square) for square in (True, False))
        others = [i for i in range(len(frames)) if i != cond_frame]
        whole_text = 100 * whole @ text
        return ClipScores(
            published_image=float(100 * (middle[1:] @ middle[0]).mean()),
            published_text=float(100 * (middle[1:] @ text).mean()),
            image=float(100 * (whole[1:][others] @ whole[0]).mean()),
            text=float(whole_text[1:].mean()),
            text_gain=float(whole_text[1:].mean() - whole_text[0]),
        )

    def _text(self, prompt: str) -> Float[Tensor, " d"]:
        tokens = tokenise(self.tokenizer, [prompt])
        return _unit(self.model.get_text_features(input_ids=tokens.ids, attention_mask=tokens.mask))[0]

    def _pictures(self, pictures: list[Picture], square: bool) -> Float[Tensor, "n d"]:
        seen = [np.asarray(_resized(Image.fromarray(picture), self.size, square)) for picture in pictures]
        x = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).float() / 255
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
        return torch.cat([_unit(self.model.get_image_features(part)) for part in ((x - mean) / deviation).split(16)])


def _resized(picture: Image.Image, size: int, square: bool) -> Image.Image:
    """The middle square of a picture, as CLIP was made to see, or all of it squeezed into a square."""
    if not square:
        return picture.resize((size, size), Image.Resampling.BICUBIC)
    short = min(picture.size)
    width, height = (size * side // short for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


def _unit(found: Any) -> Float[Tensor, "n d"]:
    """Embeddings of length 1; newer versions of transformers wrap them."""
    embeddings = found if isinstance(found, Tensor) else found.pooler_output
    return F.normalize(embeddings.float(), dim=-1)
