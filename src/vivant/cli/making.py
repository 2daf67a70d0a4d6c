"""`vivant animate` behind the reading of its options: check, load, animate, write. Imports torch."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from vivant import pocket
from vivant.api.animator import Animator
from vivant.api.result import Result
from vivant.cli.screen import Screen, stoppable
from vivant.cli.writing import DTYPES, check_targets, finish, numbered, saving, without_bars, write
from vivant.errors import InputError
from vivant.freeinit import FreeInit
from vivant.media.frames import check_enlarge
from vivant.media.still import Still, read_still
from vivant.pia.freeu import FreeU
from vivant.pia.windows import Windows, windows
from vivant.placement import check_place
from vivant.preflight.additions import Embedding, Weighted
from vivant.preflight.models import Models, scheduler_of
from vivant.preflight.pia import check_animate
from vivant.request import PIARequest

SHIPPED_BASE, SHIPPED_MOTION = str(pocket.base()), str(pocket.motion())
FULL_SIZE = "SG161222/Realistic_Vision_V6.0_B1_noVAE"


class Seen(NamedTuple):
    """The pictures of a run: those that clips begin with, those of the keyframes, and picture prompts."""

    first: list[Still]
    keyframes: Mapping[int, Sequence[Still]]
    prompts: list[Still]


@dataclass(frozen=True)
class Loading:
    """Which models, and how: the options of the group Models."""

    base: str
    motion_adapter: str | None
    numerics: Any
    dtype: str
    device: str | None
    residency: Any
    compile: bool
    variant: str | None
    revision: str | None
    adapter_revision: str | None
    cache_dir: str | None
    offline: bool
    loras: tuple[Weighted, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    ip_adapters: tuple[Weighted, ...] = ()
    sampler: str | None = None
    config: str | None = None
    vae: str | None = None

    def _where(self) -> dict[str, Any]:
        return {
            "variant": self.variant,
            "revision": self.revision,
            "adapter_revision": self.adapter_revision,
            "cache_dir": self.cache_dir,
            "local_files_only": self.offline,
            "loras": self.loras,
            "embeddings": self.embeddings,
            "ip_adapters": self.ip_adapters,
            "sampler": self.sampler,
            "config": self.config,
            "vae": self.vae,
        }

    def check(self) -> Models:
        """Refuse what cannot work, from small files and the names of large ones."""
        if self.device is not None:
            check_place(self.device, DTYPES[self.dtype] or torch.float32)
        return Models.find(self.base, self.motion_adapter, **self._where())

    def load(self, screen: Screen) -> Animator:
        """The animator."""
        screen.say("Loading the models.")
        with without_bars() if screen.json else nullcontext():
            return Animator.from_pretrained(
                self.base,
                self.motion_adapter,
                numerics=self.numerics,
                dtype=DTYPES[self.dtype],
                device=self.device,
                residency=self.residency,
                compile=self.compile,
                **self._where(),
            )


def settings(
    passes: Mapping[str, Any] | None, scales: Sequence[float] | None, cut: Mapping[str, Any] | bool | None
) -> dict[str, Any]:
    """FreeInit, FreeU and windows of a request; windows are not in it where nothing was said of them."""
    said = {} if cut is None else {"windows": Windows(**cut) if isinstance(cut, Mapping) else None}
    return {
        "free_init": None if passes is None else FreeInit(**passes),
        "freeu": None if scales is None else FreeU(*scales),
        **said,
    }


def for_shipped(screen: Screen, motion_adapter: str | None, request: Mapping[str, Any]) -> dict[str, Any]:
    """A request for the model that ships, in its own size and guidance where nothing was said, and a word about it.

    Raises:
        InputError: E-BASE-NONE for an adapter without its base.
    """
    if motion_adapter is not None:
        raise InputError(
            "E-BASE-NONE",
            "--motion-adapter is given, and no --base.",
            "The small model that ships has a motion adapter of its own.",
            "Add --base, or leave --motion-adapter out.",
        )
    screen.say(
        "No --base is given: this is the small model that ships with vivant, for 64 x 64 pixels.\n"
        f"For a full-size clip (fetches several GB, once): add --base {FULL_SIZE}"
    )
    sized = request.get("height") or request.get("width")
    own: dict[str, Any] = {
        name: value for name, value in pocket.SETTINGS.items() if not (sized and name in ("height", "width"))
    }
    merged: dict[str, Any] = {
        **own,
        **{name: value for name, value in request.items() if value is not None or name not in own},
    }
    guided = merged["guidance_scale"] > 1 or merged.get("image_guidance_scale") is not None
    if not guided and not request.get("negative_prompt"):
        del merged["negative_prompt"]  # nothing would read it
    return merged


def animate(
    screen: Screen,
    loading: Loading,
    photo: str,
    prompt: str,
    request: Mapping[str, Any],
    picture_prompts: Sequence[str],
    outputs: Sequence[str],
    overwrite: bool,
    enlarge: int,
) -> None:
    """All of `vivant animate` behind the reading of its options."""
    check_enlarge(enlarge)
    still, keyframe_paths = read_still(photo), dict(request["keyframes"])
    keyframes = {frame: [read_still(path)] for frame, path in keyframe_paths.items()}
    seen = Seen([still], keyframes, [read_still(path) for path in picture_prompts])
    request = {**request, "keyframes": keyframes}
    decided = check_animate(still, prompt, solver=scheduler_of(loading.sampler).solver, **request)
    count = decided.num_videos_per_prompt
    targets = [numbered(outputs, k, count) for k in range(count)]
    sources = [photo, *keyframe_paths.values(), *picture_prompts]
    check_targets([path for paths in targets for path in paths], sources, overwrite, decided.fps)
    models = loading.check()
    models.check_picture_prompts(len(picture_prompts))
    known: dict[str, Any] = {**request, "seed": decided.seed, "defaults": models.defaults}
    decided = check_animate(still, prompt, solver=models.scheduler.solver, limits=models.limits, **known)
    with stoppable() as stopped:
        animator = loading.load(screen)
        result = run(screen, animator, seen, decided, stopped)
    shown = write(screen, result, dict(enumerate(targets)), saving(result, overwrite, enlarge))
    finish(screen, result, shown)


def run(
    screen: Screen,
    animator: Animator,
    seen: Seen,
    request: PIARequest,
    stopped: Callable[[], bool],
) -> Result:
    """Animate with progress, as everything was decided."""
    f, w, h = request.num_frames, request.width, request.height
    cuts = len(windows(f, request.windows))
    cut = f" in {cuts} windows" if cuts > 1 else ""
    steps, seed = request.num_inference_steps, request.seed
    screen.say(f"Animating: {f} frames of {w} x {h}{cut}, {steps} steps, seed {seed}.")
    fields: dict[str, Any] = {**request.fields(), "keyframes": seen.keyframes, "picture_prompts": seen.prompts}
    with screen.progress() as meter:
        return animator.animate(seen.first, progress=meter.step, cancel=stopped, **fields)
