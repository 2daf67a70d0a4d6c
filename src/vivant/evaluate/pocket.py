"""How well the pocket models do what they are for, on scenes and photos that training never saw; seeds are fixed.

Every clip is made as users make them, by `Animator.animate`. Prompts are canonical captions, which do not say how far
a motion goes: that is the mask's part. What moved is measured by `flow`, what is seen is named by the recogniser.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from vivant import pocket
from vivant.api.animator import Animator
from vivant.errors import InputError
from vivant.evaluate.clips import Measures
from vivant.evaluate.figures import Figure
from vivant.evaluate.flow import Motion, measure
from vivant.evaluate.recogniser import Recogniser, truth
from vivant.evaluate.report import Found, Sample
from vivant.freeinit import FreeInit
from vivant.media.still import read_still
from vivant.pocket.world import (
    MOTIONS,
    SPLITS,
    Magnitude,
    Scene,
    Style,
    caption,
    photo_caption,
    photo_clip,
    render,
    sample_scene,
)
from vivant.pocket.world import Motion as Move
from vivant.train.vae import to_unit

SIZE, BATCH = pocket.SETTINGS["width"], 10
DIRECTIONS: tuple[Move, ...] = ("left", "right", "up", "down")
GROWTH: tuple[Move, ...] = ("growing", "shrinking")
CAMERA: tuple[Move, ...] = ("zoom in", "zoom out", "pan left", "pan right")
EVERYTHING: tuple[Move, ...] = tuple(move for move in MOTIONS if move != "still")
MAGNITUDES: tuple[Magnitude, ...] = ("small", "moderate", "large")
Photo = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Case:
    """One clip to be made.

    Attributes:
        picture: its first frame.
        prompt: what is to happen.
        move: the motion that the prompt names.
        scene: what the picture shows, if it is a drawing.
        seed: of the noise.
    """

    picture: UInt8[np.ndarray, "h w 3"]
    prompt: str
    move: Move
    scene: Scene | None
    seed: int


@dataclass(frozen=True)
class Made:
    """A case and the clip that came of it."""

    case: Case
    frames: UInt8[np.ndarray, "f h w 3"]

    @property
    def measures(self) -> Measures:
        """See `Measures`."""
        return Measures.of(self.frames, self.case.picture)

    @property
    def thing(self) -> Motion:
        """How the thing in it moves."""
        return measure(self.frames, "moving")

    @property
    def camera(self) -> Motion:
        """How the whole picture moves."""
        return measure(self.frames, "all")

    @property
    def is_right(self) -> bool:
        """Whether the motion measured is the one named: among four directions, two growths or five camera moves."""
        if self.case.move in DIRECTIONS:
            return self.thing.direction == self.case.move
        if self.case.move in GROWTH:
            return self.thing.growth == self.case.move
        return self.camera.camera == self.case.move


def drawn(style: Style, moves: Sequence[Move], num: int, magnitude: Magnitude = "moderate", tag: int = 0) -> list[Case]:
    """Scenes of the split "held out" with the given motions in turn, and room for motions of that magnitude."""
    cases: list[Case] = []
    for i in range(num):
        rng = np.random.default_rng([SPLITS.index("held out"), i, 0xE7A1, tag])
        scene = sample_scene(rng, style=style, motion=moves[i % len(moves)], magnitude=magnitude)
        prompt = caption(replace(scene, magnitude="moderate"))
        cases.append(Case(render(scene, 1, SIZE)[0], prompt, scene.motion, scene, i))
    return cases


def photographed(photos: Sequence[Photo], moves: Sequence[Move], num: int) -> list[Case]:
    """Pieces of photos over which the camera can move, with the motions in turn."""
    cases: list[Case] = []
    for i in range(num):
        rng, move = np.random.default_rng([SPLITS.index("held out"), i, 0xF070]), moves[i % len(moves)]
        clip = photo_clip(photos[i // len(moves) % len(photos)], rng, move, 2, SIZE, "moderate")
        cases.append(Case(clip.pixels[0], photo_caption(move, "moderate"), move, None, i))
    return cases


@dataclass(frozen=True)
class Models:
    """The models under test, and how clips are made with them.

    Attributes:
        animators: one for each style of base, with the numerics of the original; "diffusers" is the paper base with
            those of diffusers.
        recogniser: the judge of what is seen.
        settings: fields of the request.
    """

    animators: Mapping[str, Animator]
    recogniser: Recogniser
    settings: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path = pocket.FOLDER, **settings: Any) -> "Models":
        """Read `paper/`, `neon/`, `motion/` and `recogniser/`; `settings` replace those of `pocket.SETTINGS`."""
        numerics: dict[str, tuple[str, Literal["original", "diffusers"]]] = {
            "paper": ("paper", "original"),
            "neon": ("neon", "original"),
            "diffusers": ("paper", "diffusers"),
        }
        animators = {
            name: Animator.from_pretrained(folder / base, folder / "motion", numerics=kind, device="cpu")
            for name, (base, kind) in numerics.items()
        }
        request = {**pocket.SETTINGS, "motion": "animate:moderate", **settings}
        return cls(animators, Recogniser.read(folder / "recogniser"), request)

    def make(
        self,
        cases: Sequence[Case],
        animator: str = "paper",
        on_clip: Callable[[], None] = lambda: None,
        **settings: Any,
    ) -> Iterator[Made]:
        """Clips of cases, in their order."""
        for first in range(0, len(cases), BATCH):
            group = cases[first : first + BATCH]
            request: dict[str, Any] = {**self.settings, "seed": tuple(case.seed for case in group), **settings}
            pictures, prompts = [Image.fromarray(case.picture) for case in group], [case.prompt for case in group]
            result = self.animators[animator].animate(pictures, prompts, **request)
            for case, frames in zip(group, result.clips, strict=True):
                on_clip()
                yield Made(case, frames)

    def sees(self, made: Made, what: Literal["kind", "colour", "style"]) -> list[bool]:
        """Whether the recogniser names what the scene shows, for every frame."""
        assert made.case.scene is not None
        answers = getattr(self.recogniser.answers(to_unit(torch.from_numpy(made.frames))), what)
        return (answers == truth(made.case.scene)[what]).tolist()


Part = Callable[[Models, int, Sequence[Photo], Callable[[], None]], list[Figure]]
"""A part of the evaluation: models, how many clips of the full number in percent, photos, told of every clip."""


def _of(num: int, percent: int, least: int = 4) -> int:
    return max(least, num * percent // 100)


def first_frame(models: Models, percent: int, photos: Sequence[Photo], on_clip: Callable[[], None]) -> list[Figure]:
    """At small motion: how near the first frame and all frames are to the picture."""
    cases = drawn("paper", EVERYTHING, _of(56, percent), "small", tag=1)
    found = [made.measures for made in models.make(cases, motion="animate:small", on_clip=on_clip)]
    return [
        Figure.mean("first frame against the picture, small motion", [m.fidelity for m in found], "dB", asked=25),
        Figure.mean("all frames against the picture, small motion", [m.similarity for m in found], "dB"),
        Figure.mean("temporal consistency, small motion", [m.consistency for m in found], "dB"),
    ]


def directions(models: Models, percent: int, photos: Sequence[Photo], on_clip: Callable[[], None]) -> list[Figure]:
    """Four directions, and whether the thing is still the same at the end."""
    made = list(models.make(drawn("paper", DIRECTIONS, _of(100, percent), tag=2), on_clip=on_clip))
    kept = [models.sees(m, "kind")[-1] and models.sees(m, "colour")[-1] for m in made]
    return [
        Figure.share("direction named = direction measured", [m.is_right for m in made], asked=0.9, chance=0.25),
        Figure.share("kind and colour recognised in the last frame", kept),
    ]


def growth(models: Models, percent: int, photos: Sequence[Photo], on_clip: Callable[[], None]) -> list[Figure]:
    """Growing and shrinking."""
    made = models.make(drawn("paper", GROWTH, _of(100, percent), tag=3), on_clip=on_clip)
    return [Figure.share("growing or shrinking as named", [m.is_right for m in made], asked=0.9, chance=0.5)]


def camera(models: Models, percent: int, photos: Sequence[Photo], on_clip: Callable[[], None]) -> list[Figure]:
    """Zooms and pans over photos."""
    made = list(models.make(photographed(photos, CAMERA, _of(100, percent)), on_clip=on_clip))
    zooms, pans = ([m.is_right for m in made if kind in m.case.move] for kind in ("zoom", "pan"))
    return [
        Figure.share("camera move named = measured, photos", [m.is_right for m in made], asked=0.8, chance=0.2),
        Figure.share("of these, zooms", zooms, chance=0.2),
        Figure.share("of these, pans", pans, chance=0.2),
        Figure.mean("first frame against the picture, photos", [m.measures.fidelity for m in made], "dB"),
    ]


def magnitudes(models: Models, percent: int, photos: Sequence[Photo], on_clip: Callable[[], None]) -> list[Figure]:
    """The same scenes, prompts and noise with masks for small, moderate and large motion."""
    cases = drawn("paper", EVERYTHING, _of(56, percent), "large", tag=4)
    return [
        Figure.mean(
            f"measured motion, animate:{name}",
            [made.measures.motion for made in models.make(cases, motion=f"animate:{name}", on_clip=on_clip)],
            "sides",
        )
        for name in MAGNITUDES
    ]


def loops(models: Models, percent: int, photos: Sequence[Photo], on_clip: Callable[[], None]) -> list[Figure]:
    """How much nearer the last frame is to the first in loops, pair by pair with the same noise."""
    cases = drawn("paper", EVERYTHING, _of(28, percent), "large", tag=5)
    figures: list[Figure] = []
    for name in MAGNITUDES:
        ends = [
            [made.measures.closure for made in models.make(cases, motion=f"{kind}:{name}", on_clip=on_clip)]
            for kind in ("loop", "animate")
        ]
        gain = [loop - open_ for loop, open_ in zip(*ends, strict=True)]
        figures.append(Figure.mean(f"last frame nearer to the first, loop:{name}", gain, "dB", asked=3))
    return figures


def swapped(models: Models, percent: int, photos: Sequence[Photo], on_clip: Callable[[], None]) -> list[Figure]:
    """The base that the motion modules never saw: its style in all frames, and the same directions."""
    made = list(models.make(drawn("neon", DIRECTIONS, _of(100, percent), tag=2), "neon", on_clip))
    style = [all(models.sees(m, "style")) for m in made]
    return [
        Figure.share("other base: its style in every frame", style, asked=0.9, chance=0.5),
        Figure.share("other base: direction as named", [m.is_right for m in made], asked=0.75, chance=0.25),
    ]


def free_init(models: Models, percent: int, photos: Sequence[Photo], on_clip: Callable[[], None]) -> list[Figure]:
    """What FreeInit changes: the same clips with three iterations, less those without."""
    cases = drawn("paper", DIRECTIONS, _of(24, percent), tag=6)
    without = list(models.make(cases, on_clip=on_clip))
    with_ = list(models.make(cases, on_clip=on_clip, free_init=FreeInit()))
    pairs = [(a.measures, b.measures) for a, b in zip(without, with_, strict=True)]
    return [
        Figure.mean(
            "FreeInit: change of temporal consistency", [b.consistency - a.consistency for a, b in pairs], "dB"
        ),
        Figure.mean("FreeInit: change of the first frame", [b.fidelity - a.fidelity for a, b in pairs], "dB"),
        Figure.mean("FreeInit: change of motion", [b.motion - a.motion for a, b in pairs], "sides"),
        Figure.share("direction as named without FreeInit", [m.is_right for m in without], chance=0.25),
        Figure.share("direction as named with FreeInit", [m.is_right for m in with_], chance=0.25),
    ]


def numerics(models: Models, percent: int, photos: Sequence[Photo], on_clip: Callable[[], None]) -> list[Figure]:
    """The same clips with the numerics of the original, less those with diffusers'."""
    cases = drawn("paper", EVERYTHING, _of(42, percent), tag=7)
    made = {name: list(models.make(cases, name, on_clip)) for name in ("paper", "diffusers")}
    pairs = [(a.measures, b.measures) for a, b in zip(made["paper"], made["diffusers"], strict=True)]
    named = [i for i, case in enumerate(cases) if case.move in (*DIRECTIONS, *GROWTH, *CAMERA)]
    return [
        Figure.mean('"original" less "diffusers": first frame', [a.fidelity - b.fidelity for a, b in pairs], "dB"),
        Figure.mean(
            '"original" less "diffusers": consistency', [a.consistency - b.consistency for a, b in pairs], "dB"
        ),
        Figure.share('motion as named, "original"', [made["paper"][i].is_right for i in named]),
        Figure.share('motion as named, "diffusers"', [made["diffusers"][i].is_right for i in named]),
    ]


PARTS: Mapping[str, Part] = {
    part.__name__: part
    for part in (first_frame, directions, growth, camera, magnitudes, loops, swapped, free_init, numerics)
}
"""Parts by name, in the order in which they are reported."""
NEEDS_PHOTOS = ("camera",)


def read_photos(folder: Path) -> list[Photo]:
    """All PNG and JPEG pictures of a folder, by name.

    Raises:
        InputError: E-EVAL-PHOTOS where there are none.
    """
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [path for path in found if path.suffix.lower() in (".png", ".jpg", ".jpeg")]
    if not files:
        raise InputError("E-EVAL-PHOTOS", f"{folder} holds no photos.", "", "Give a folder of PNG or JPEG pictures.")
    return [np.asarray(read_still(str(path)).image) for path in files]


def run(
    models: Models, names: Sequence[str], percent: int, photos: Sequence[Photo], say: Callable[[str], None]
) -> Found:
    """Measure parts.

    Args:
        models: what is measured.
        names: of `PARTS`.
        percent: how many of the clips of the full evaluation to make.
        photos: pictures that training never saw; without them `NEEDS_PHOTOS` are left out, with a note.
        say: told what is going on.
    """
    figures: list[Figure] = []
    request = models.settings
    notes = [
        f'Scenes are of the split "held out"; {request["num_frames"]} frames of {SIZE} x {SIZE} pixels, '
        f"{request['num_inference_steps']} steps of DDIM, guidance {request['guidance_scale']:g}, seeds from 0. "
        "Nothing was chosen by its result.",
        "Motion is measured by optical flow, what is seen is named by the recogniser that ships beside the models.",
    ]
    for name in names:
        if name in NEEDS_PHOTOS and not photos:
            notes.append(f'The part "{name}" was left out: no photos were given.')
            continue
        start, made = time.perf_counter(), Counter[str]()
        figures += PARTS[name](models, percent, photos, lambda made=made: made.update(["clips"]))
        say(f"{name}: {made['clips']} clips, {time.perf_counter() - start:.0f} s")
    facts = {
        "percent": percent,
        "request": dict(request),
        "weights": models.animators["paper"].weights(),
    }
    return Found(figures, gallery(models, photos), notes, facts)


def gallery(models: Models, photos: Sequence[Photo]) -> dict[str, list[Sample]]:
    """A few clips of each kind, the first of their lists."""
    groups = {
        "Paper": ("paper", drawn("paper", EVERYTHING, len(EVERYTHING), tag=8)),
        "Neon: a base that the motion modules never saw": ("neon", drawn("neon", EVERYTHING, 7, tag=8)),
        "Photos": ("paper", photographed(photos, CAMERA, 2 * len(CAMERA)) if photos else []),
    }
    return {
        title: [
            Sample(f"{title.split(':')[0].lower()}-{i:02}", made.case.prompt, made.frames)
            for i, made in enumerate(models.make(cases, animator))
        ]
        for title, (animator, cases) in groups.items()
        if cases
    }
