"""`vivant portrait` behind the reading of its options: check, load, film, write. Imports torch."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from vivant.api.portrait import Frames, Portrait
from vivant.api.result import Result
from vivant.cli.screen import Screen, stoppable
from vivant.cli.writing import DTYPES, check_targets, finish, numbered, without_bars, write
from vivant.consisid.identity_file import People, load_identity
from vivant.media.frames import check_enlarge
from vivant.media.still import Still, read_still
from vivant.placement import check_place
from vivant.preflight.consisid import Model, check_film
from vivant.request import ConsisIDRequest, texts


@dataclass(frozen=True)
class Loading:
    """Which model, and how: the options of the group Models."""

    model: str
    dtype: str
    device: str | None
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
            return Portrait.from_pretrained(self.model, dtype=DTYPES[self.dtype], device=self.device, **self._where())


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
    with stoppable() as stopped:
        portrait = loading.load(screen)
        result = run(screen, portrait, [still], people, decided, stopped)
    shown = write(screen, result, dict(enumerate(targets)), overwrite, enlarge)
    finish(screen, result, shown)


def run(
    screen: Screen,
    portrait: Portrait,
    stills: list[Still],
    people: People,
    request: ConsisIDRequest,
    stopped: Callable[[], bool],
) -> Result:
    """Film with progress."""
    f, w, h = request.num_frames, request.width, request.height
    total = f * request.num_videos_per_prompt * max(len(stills), len(people), len(texts(request.prompt)))
    screen.say(f"Filming: {f} frames of {w} x {h}, {request.num_inference_steps} steps, seed {request.seed}.")
    done = 0
    with screen.progress("Filming") as meter:

        def on_frames(clip: int, frames: Frames) -> None:
            nonlocal done
            done += len(frames)
            meter.decoded(done, total)

        return portrait.film(
            stills, identity=people, progress=meter.step, cancel=stopped, on_frames=on_frames, **request.fields()
        )
