"""Measure a ConsisID of drawn people: is it the right person, and does the person do what the sentence says?

    python recipes/evaluate_avatars.py runs/consisid/export runs/judge/export docs

writes `people.json`, a table to the screen and `images/people.png` below the given folder. Every person is of the split
"held out" and is given as a photo of 256 x 256 pixels of another pose, light and place than the clip's, from which the
repository's own encoders have to find the face. Nothing is chosen by its result.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vivant import Portrait
from vivant.consisid.conditioning import Face
from vivant.errors import InputError
from vivant.evaluate.avatars import NUM_CANDIDATES, SHOWN, Judge, answered, answers, identified
from vivant.evaluate.figures import Figure, markdown
from vivant.media.sheet import grid
from vivant.pocket import PERSON_SETTINGS
from vivant.pocket.avatars import AvatarClips, Filmed, photograph, sentence
from vivant.train.samples import numpy_rng
from vivant.train.vae import to_bytes, to_unit

NUM, PHOTO, TOGETHER = 100, 256, 20
ASKED = {"person": 0.8}


def main(repo: Path, judge_folder: Path, docs: Path) -> None:
    """Measure, draw and write."""
    judge, portrait = Judge.read(judge_folder), Portrait.from_pretrained(repo, local_files_only=True)
    clips = [AvatarClips(NUM, split="held out").read(i, numpy_rng(7, i)) for i in range(NUM)]
    photos = [
        Image.fromarray(photograph(clip.avatar, PHOTO, np.random.default_rng([8, i]))) for i, clip in enumerate(clips)
    ]
    faces: list[Any] = []
    for photo in photos:
        try:
            faces.append(portrait.face(photo))
        except InputError:
            faces.append(None)
    found = [face is not None for face in faces]
    if sum(found) < NUM_CANDIDATES:
        raise SystemExit(f"Only {sum(found)} of {NUM} faces were found.")
    kept = [clip for clip, has in zip(clips, found, strict=True) if has]
    seen = [face for face in faces if face is not None]
    made = filmed(portrait, seen, kept)
    others = filmed(portrait, [*seen[1:], seen[0]], kept)
    nobody = filmed(portrait, [None] * len(kept), kept)
    drawn = np.stack([clip.pixels for clip in kept])
    figures = [Figure.share("faces found in photos", found)]
    for name, films in (
        ("drawn clips", drawn),
        ("drawn clips, reconstructed", reconstructed(portrait, drawn)),
        ("clips made", made),
        ("clips made of the next person", others),
        ("clips made without a face", nobody),
    ):
        figures += judged(judge, name, films, kept)
    (docs / "people.json").write_text(json.dumps([figure.to_json() for figure in figures], indent=2) + "\n", "utf-8")
    rows = 8
    pictures = [Image.fromarray(frame) for i in range(rows) for frame in (thumbnail(photos[i]), *made[i])]
    (docs / "images").mkdir(exist_ok=True)
    grid(pictures, rows, 1 + made.shape[1], gap=2).save(docs / "images" / "people.png")
    print(markdown(figures))


def thumbnail(photo: Image.Image) -> np.ndarray:
    """A photo as large as a frame."""
    return np.asarray(photo.resize((64, 64), Image.Resampling.BOX))


def filmed(portrait: Portrait, faces: Sequence[Any], clips: Sequence[Filmed]) -> np.ndarray:
    """A clip of each face, in which happens what happens in the drawn clip; of None nothing is known."""
    config = portrait.pipeline.transformer.settings
    hidden = torch.zeros(config.LFE_num_scale, 1, 65, config.LFE_vit_dim)
    nobody = Face(torch.zeros(1, config.LFE_id_dim), tuple(hidden))
    films: list[np.ndarray] = []
    for first in range(0, len(clips), TOGETHER):
        some = range(first, min(first + TOGETHER, len(clips)))
        given: dict[str, Any] = {**PERSON_SETTINGS, "seed": tuple(some)}
        images: list[Any] = [faces[i] for i in some]
        if images[0] is None:
            images, given["identity"] = [Image.new("RGB", (64, 64), "white") for _ in some], [nobody for _ in some]
        films += portrait.film(images, [sentence(clips[i].action, clips[i].setting) for i in some], **given).clips
    return np.stack(films)


@torch.no_grad()
def reconstructed(portrait: Portrait, clips: np.ndarray) -> np.ndarray:
    """Clips once through the autoencoder: what is lost before anything is learnt about people."""
    vae = portrait.pipeline.vae
    films: list[np.ndarray] = []
    for clip in clips:
        x = to_unit(torch.from_numpy(clip)).transpose(0, 1)[None].to(vae.dtype)
        seen = vae.decode_tensor(vae.encode_moments(x).chunk(2, dim=1)[0])[0].transpose(0, 1)
        films.append(to_bytes(seen).numpy())
    return np.stack(films)


def judged(judge: Judge, name: str, films: np.ndarray, clips: Sequence[Filmed]) -> list[Figure]:
    """What the judge says: the person among 20, and what the sentence says."""
    said = answers(judge, films)
    asked = ASKED["person"] if name == "clips made" else None
    right = identified(said, [clip.avatar for clip in clips])
    figures = [Figure.share(f"{name}: person of {NUM_CANDIDATES}", right, asked=asked, chance=1 / NUM_CANDIDATES)]
    for question, options in SHOWN.items():
        figures.append(Figure.share(f"{name}: {question}", answered(said, clips, question), chance=1 / len(options)))
    return figures


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
