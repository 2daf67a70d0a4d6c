"""`vivant portrait` behind the reading of its options: check, load, film, write. Imports torch."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch

from vivant.api.portrait import Frames, Portrait
from vivant.api.result import Result
from vivant.cli.screen import Screen, stoppable
from vivant.cli.writing import DTYPES, check_targets, finish, numbered, without_bars, write
from vivant.consisid.identity_file import People, load_identity
from vivant.errors import VivantError
from vivant.media.frames import check_enlarge
from vivant.media.still import Still, read_still
from vivant.media.video import ClipWriter
from vivant.placement import check_place
from vivant.preflight.consisid import Model, check_film
from vivant.request import ConsisIDRequest, texts


@dataclass(frozen=True)
class Loading:
    """Which model, and how: the options of the group Models."""

    model: str
    dtype: str
    device: str | None
    residency: Any
    variant: str | None
    revision: str | None
    cache_dir: str | None
    offline: bool

    def _where(self) -> dict[str, Any]:
        return {
            "variant": self.variant,
            "revision": self.revision,
            "cache_dir": self.cache_dir,
            "local_files_only": self.offline,
        }

    def check(self) -> Model:
        """Refuse what cannot work, from small files and the names of large ones."""
        if self.device is not None:
            check_place(self.device, DTYPES[self.dtype] or torch.float32)
        return Model.find(self.model, **self._where())

    def load(self, screen: Screen) -> Portrait:
        """What films."""
        screen.say("Loading the model.")
        with without_bars() if screen.json else nullcontext():
            return Portrait.from_pretrained(
                self.model,
                dtype=DTYPES[self.dtype],
                device=self.device,
                residency=self.residency,
                **self._where(),
            )


def film(
    screen: Screen,
    loading: Loading,
    photo: str,
    identity: str,
    prompt: str,
    request: Mapping[str, Any],
    outputs: Sequence[str],
    overwrite: bool,
    enlarge: int,
) -> None:
    """All of `vivant portrait` behind the reading of its options."""
    check_enlarge(enlarge)
    still, people = read_still(photo), load_identity(identity)
    asked = check_film(request, prompt, [still], people)
    count = asked.num_videos_per_prompt
    targets = [numbered(outputs, k, count) for k in range(count)]
    check_targets([path for paths in targets for path in paths], [photo, identity], overwrite, asked.fps)
    decided = check_film(request, prompt, [still], people, loading.check().traits)
    with Writers(targets, asked.fps, overwrite, enlarge) as writers:
        with stoppable() as stopped:
            portrait = loading.load(screen)
            result = run(screen, portrait, [still], people, decided, stopped, writers.add)
        shown = write(screen, result, dict(enumerate(targets)), lambda path, clip: writers.save(result, path, clip))
    finish(screen, result, shown)


class Writers:
    """Files that are written while their frames are decoded; leaving the block removes those that were not saved."""

    def __init__(self, targets: Sequence[Sequence[str]], fps: float, overwrite: bool, enlarge: int):
        self._targets, self._fps, self._overwrite, self._enlarge = targets, fps, overwrite, enlarge
        self._writers: dict[str, ClipWriter] = {}
        self._failed: dict[str, VivantError] = {}

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, clip: int, frames: Frames) -> None:
        """The next frames of a clip. A file that cannot be written does not keep the others from it."""
        for path in self._targets[clip]:
            if path in self._failed:
                continue
            try:
                if path not in self._writers:
                    writer = ClipWriter(path, self._fps, overwrite=self._overwrite, enlarge=self._enlarge)
                    self._writers[path] = self._stack.enter_context(writer)
                self._writers[path].write(frames)
            except VivantError as error:
                self._failed[path] = error

    def save(self, result: Result, path: str, clip: int) -> None:
        """Complete a file, if its clip is well."""
        result.check(clip)
        if path in self._failed:
            raise self._failed[path]
        self._writers[path].finish(result.recipe_of(clip, self._enlarge))


def run(
    screen: Screen,
    portrait: Portrait,
    stills: list[Still],
    people: People,
    request: ConsisIDRequest,
    stopped: Callable[[], bool],
    more: Callable[[int, Frames], None] | None = None,
) -> Result:
    """Film with progress; `more` gets the frames as they are decoded."""
    f, w, h = request.num_frames, request.width, request.height
    total = f * request.num_videos_per_prompt * max(len(stills), len(people), len(texts(request.prompt)))
    screen.say(f"Filming: {f} frames of {w} x {h}, {request.num_inference_steps} steps, seed {request.seed}.")
    done = 0
    with screen.progress("Filming") as meter:

        def on_frames(clip: int, frames: Frames) -> None:
            nonlocal done
            done += len(frames)
            meter.decoded(done, total)
            if more is not None:
                more(clip, frames)

        return portrait.film(
            stills, identity=people, progress=meter.step, cancel=stopped, on_frames=on_frames, **request.fields()
        )
