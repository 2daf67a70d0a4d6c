"""What `animate` and `redo` have in common: check, load, animate, write, and say so. Imports torch."""

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import typer

from vivant import pocket
from vivant.api import Animator, Result
from vivant.cli.screen import Screen, code_of, duration, error_json, print_json, size, stoppable, unstoppable
from vivant.errors import InputError, OutputError, VivantError
from vivant.freeinit import FreeInit
from vivant.media.frames import check_enlarge
from vivant.media.recipe import sidecar_of
from vivant.media.still import Still, read_still
from vivant.media.video import check_output
from vivant.pia.freeu import FreeU
from vivant.placement import check_place
from vivant.preflight import Models, check_animate

SHIPPED_BASE, SHIPPED_MOTION = str(pocket.base()), str(pocket.motion())
FULL_SIZE = "SG161222/Realistic_Vision_V6.0_B1_noVAE"
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Loading:
    """Which models, and how: the options of the group Models."""

    base: str
    motion_adapter: str | None
    numerics: Any
    dtype: str
    device: str | None
    compile: bool
    variant: str | None
    revision: str | None
    adapter_revision: str | None
    cache_dir: str | None
    offline: bool

    def _where(self) -> dict[str, Any]:
        return {
            "variant": self.variant,
            "revision": self.revision,
            "adapter_revision": self.adapter_revision,
            "cache_dir": self.cache_dir,
            "local_files_only": self.offline,
        }

    def check(self) -> Models:
        """Refuse what cannot work, from small files and the names of large ones."""
        if self.device is not None:
            check_place(self.device, DTYPES[self.dtype] or torch.float32)
        return Models.find(self.base, self.motion_adapter, **self._where())

    def load(self, screen: Screen) -> Animator:
        """The animator."""
        screen.say("Loading the models.")
        with _without_bars() if screen.json else nullcontext():
            return Animator.from_pretrained(
                self.base,
                self.motion_adapter,
                numerics=self.numerics,
                dtype=DTYPES[self.dtype],
                device=self.device,
                compile=self.compile,
                **self._where(),
            )


@contextmanager
def _without_bars() -> Generator[None]:
    """No progress bars of downloads, which would stand between the lines of JSON."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


def settings(passes: Mapping[str, Any] | None, scales: Sequence[float] | None) -> dict[str, Any]:
    """FreeInit and FreeU of a request."""
    return {
        "free_init": None if passes is None else FreeInit(**passes),
        "freeu": None if scales is None else FreeU(*scales),
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
    outputs: Sequence[str],
    overwrite: bool,
    enlarge: int,
) -> None:
    """All of `vivant animate` behind the reading of its options."""
    check_enlarge(enlarge)
    still = read_still(photo)
    decided = check_animate(still, prompt, **request)
    count = decided.num_videos_per_prompt
    targets = [numbered(outputs, k, count) for k in range(count)]
    check_targets([path for paths in targets for path in paths], [photo], overwrite, decided.fps)
    models = loading.check()
    check_animate(still, prompt, limits=models.limits, **request)
    with stoppable() as stopped:
        animator = loading.load(screen)
        fields = {name: getattr(decided, name) for name in decided.__dataclass_fields__}
        result = run(screen, animator, [still], fields, stopped)
    shown = write(screen, result, dict(enumerate(targets)), overwrite, enlarge)
    finish(screen, result, shown)


def run(screen: Screen, animator: Animator, stills: list[Still], fields: Mapping[str, Any], stopped: Any) -> Result:
    """Animate with progress; `fields` are those of a request."""
    f, w, h = (fields[name] for name in ("num_frames", "width", "height"))
    screen.say(f"Animating: {f} frames of {w} x {h}, {fields['num_inference_steps']} steps, seed {fields['seed']}.")
    with screen.progress() as progress:
        return animator.animate(stills, progress=progress, cancel=stopped, **fields)


def numbered(outputs: Sequence[str], k: int, count: int) -> list[str]:
    """The names for clip k of count: one clip has the names as given, several get -0, -1, …"""
    if count == 1:
        return list(outputs)
    return [_numbered(path, k) for path in outputs]


def _numbered(spelled: str, k: int) -> str:
    path = Path(spelled)
    if path.name in ("", ".."):  # refused later, as it is
        return spelled
    if spelled.endswith("/") or os.path.isdir(path):
        return f"{spelled.rstrip('/')}-{k}/"
    return str(path.with_name(f"{path.stem}-{k}{path.suffix}"))


def check_targets(
    paths: Sequence[str], sources: Sequence[str | PathLike[str]], overwrite: bool, fps: float | None
) -> None:
    """Refuse paths that cannot be written, name one file twice, or would replace a file that is read.

    A folder of frames is replaced with all that is in it, so that nothing else may be read or written there.

    Raises:
        InputError, OutputError: as `vivant.media.video.check_output`; E-OUTPUT-TWICE.
    """
    taken = {Path(source).resolve(): "is read" for source in sources if "://" not in str(source)}
    for path in paths:
        target = check_output(path, overwrite=overwrite, fps=fps)
        places = target.resolve(), sidecar_of(target).resolve()
        for place, (other, use) in product(places, taken.items()):
            written_around = use == "is written" and other in place.parents
            if place == other or place in other.parents or written_around:
                raise OutputError(
                    "E-OUTPUT-TWICE",
                    f"{place} would be written, and {other} {use} too.",
                    "One is the other, or lies in it.",
                    "Choose another name.",
                )
        taken |= dict.fromkeys(places, "is written")


def write(
    screen: Screen, result: Result, targets: Mapping[int, Sequence[str]], overwrite: bool, enlarge: int = 1
) -> list[dict[str, Any]]:
    """Write clips under their names. A clip that cannot be written does not keep the others from it.

    Args:
        screen: where to say so.
        result: holds the clips.
        targets: index of a clip to its names.
        overwrite: replace files.
        enlarge: see `Result.save`.

    Returns:
        For every file its path and hash, or its error.
    """
    shown: list[dict[str, Any]] = []
    failed: VivantError | None = None
    with unstoppable():
        for clip, paths in targets.items():
            for path in paths:
                try:
                    result.save(path, clip=clip, overwrite=overwrite, enlarge=enlarge)
                except VivantError as error:
                    failed = failed or error
                    shown.append({"path": path, "clip": clip, "error": error_json(error)})
                else:
                    shown.append({"path": path, "clip": clip, "frames_hash": result.recipe["frames_hashes"][clip]})
                    screen.show(path)
    if failed is not None:
        screen.failed(failed, {"outputs": shown, **as_json(screen, result)})
        raise typer.Exit(code_of(failed))
    return shown


def finish(screen: Screen, result: Result, shown: Sequence[Mapping[str, Any]], more: Mapping[str, Any] = {}) -> None:
    """Say how it went; `more` joins the object."""
    if screen.json:
        print_json({"outputs": shown, **as_json(screen, result), **more})
        return
    report = result.report
    memory = "" if report.peak_memory is None else f", {size(report.peak_memory)} at most"
    screen.say(f"{duration(sum(report.seconds.values()))} on {report.device}{memory}, {report.dtype}.")
    for note in report.notes:
        if note not in screen.warnings:
            screen.say(f"Note: {note}")


def as_json(screen: Screen, result: Result) -> dict[str, Any]:
    """A result as an object."""
    num_frames, height, width = result.clips[0].shape[:3]
    return {
        "width": width,
        "height": height,
        "frames": num_frames,
        "fps": result.fps,
        "report": result.report.to_json(),
        "warnings": screen.warnings,
        "recipe": result.recipe,
    }
