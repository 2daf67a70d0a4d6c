"""`vivant portrait` behind the reading of its options: check, load, film, write. Imports torch."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image

from vivant import pocket
from vivant.api.portrait import Frames, Portrait, is_face_file
from vivant.api.result import Result
from vivant.cli.options import choice_of
from vivant.cli.screen import Screen, stoppable
from vivant.cli.writing import DTYPES, check_targets, finish, numbered, without_bars, write
from vivant.consisid.identity_file import People, load_identity, read_people
from vivant.errors import InputError, OutputError, VivantError
from vivant.faces.encoders import Encoders
from vivant.faces.face import Face
from vivant.faces.found import Choice
from vivant.media.atomic import check_target
from vivant.media.frames import check_enlarge
from vivant.media.still import Still, read_still
from vivant.media.video import ClipWriter
from vivant.placement import best_device, check_place
from vivant.preflight.additions import Weighted
from vivant.preflight.consisid import MODEL_ID, Model, check_film
from vivant.request import ConsisIDRequest, texts

SHIPPED = str(pocket.person())


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
    loras: tuple[Weighted, ...] = ()

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
        return Model.find(self.model, loras=self.loras, **self._where())

    def read_face(self, screen: Screen, photos: Sequence[Image.Image], choice: Choice) -> Face:
        """The person in the photos, by encoders that are let go of again before the model is loaded."""
        screen.say("Reading the face.")
        hub = {name: value for name, value in self._where().items() if name != "variant"}
        with without_bars() if screen.json else nullcontext():
            encoders = Encoders.from_pretrained(self.model, device=self.device or best_device(), **hub)
        return encoders.encode_all(photos, choice)

    def load(self, screen: Screen) -> Portrait:
        """What films."""
        screen.say("Loading the model.")
        with without_bars() if screen.json else nullcontext():
            return Portrait.from_pretrained(
                self.model,
                loras=self.loras,
                dtype=DTYPES[self.dtype],
                device=self.device,
                residency=self.residency,
                **self._where(),
            )


@dataclass(frozen=True)
class Person:
    """Who is filmed: the options of the group Person.

    Attributes:
        photo: a photo, a crop if `identity` is given, or the file of a face.
        more: further photos of the same person.
        identity: the file of an identity.
        choice: which face of a photo, as it was typed.
        save: where to keep the face.
    """

    photo: str
    more: tuple[str, ...] = ()
    identity: str | None = None
    choice: str | None = None
    save: str | None = None

    @property
    def is_known(self) -> bool:
        """Whether no face has to be found."""
        return self.identity is not None or is_face_file(self.photo)

    def check(self, overwrite: bool) -> None:
        """Refuse what nothing would read, and a face that could not be kept."""
        if self.is_known and (self.more or self.choice is not None or self.save is not None):
            flag = "--photo" if self.more else "--face" if self.choice is not None else "--save-face"
            raise InputError(
                "E-FACE-CHOICE", f"{flag} is given, and no face has to be found.", "", "Give a photo, or leave it out."
            )
        if self.identity is not None and is_face_file(self.photo):
            raise InputError(
                "E-ARG-VALUE", f"{self.photo} holds an identity, and --identity is given.", "", "Give one."
            )
        if self.save is not None and not is_face_file(self.save):
            raise OutputError("E-OUTPUT-SUFFIX", f"{self.save} does not end in .safetensors.", "", "Add it.")
        if self.save is not None:
            check_target(Path(self.save), overwrite=overwrite)

    @property
    def files(self) -> list[str]:
        """What is read, and the face that is kept; no clip may have the name of one."""
        return [self.photo, *self.more, *(path for path in (self.identity, self.save) if path is not None)]


def for_shipped(screen: Screen, request: Mapping[str, Any]) -> dict[str, Any]:
    """A request for the model that ships, with its own numbers where nothing was said, and a word about it."""
    screen.say(
        "No --model is given: this is the small model that ships with vivant. It knows drawn people only, in 64 x 64 "
        f"pixels.\nFor a photo in full size (fetches many GB, once): vivant pull {MODEL_ID}, and add --model {MODEL_ID}"
    )
    return {**pocket.PERSON_SETTINGS, **request}


def film(
    screen: Screen,
    loading: Loading,
    person: Person,
    prompt: str,
    request: Mapping[str, Any],
    outputs: Sequence[str],
    overwrite: bool,
    enlarge: int,
) -> None:
    """All of `vivant portrait` behind the reading of its options."""
    check_enlarge(enlarge)
    person.check(overwrite)
    choice: Any = "largest" if person.choice is None else choice_of(person.choice)
    face = Face.load(person.photo) if is_face_file(person.photo) else None
    photos = [] if face is not None else [read_still(path) for path in (person.photo, *person.more)]
    people = load_identity(person.identity) if person.identity else None if face is None else read_people(face)
    stills = photos[:1] if face is None else [Still(face.image)]
    asked = check_film(request, prompt, stills, people)
    count = asked.num_videos_per_prompt
    targets = [numbered(outputs, k, count) for k in range(count)]
    check_targets([path for paths in targets for path in paths], person.files, overwrite, asked.fps)
    traits = loading.check().traits
    if people is None and not traits.transformer.is_train_face and person != Person(person.photo):
        raise InputError("E-ARG-VALUE", "This model reads no identity.", "", "Leave out the options of the person.")
    decided = check_film(request, prompt, stills, people, traits)
    with Writers(targets, asked.fps, overwrite, enlarge) as writers:
        with stoppable() as stopped:
            if people is None and traits.transformer.is_train_face:
                face = loading.read_face(screen, [still.image for still in photos], choice)
                if person.save is not None:
                    face.save(person.save, overwrite=overwrite)
                stills, people = [Still(face.image, (*photos[0].notes, *face.notes))], read_people(face)
                check_film(decided.fields(), prompt, stills, people, traits)
            portrait = loading.load(screen)
            result = run(screen, portrait, stills, people, decided, stopped, writers.add)
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
    people: People | None,
    request: ConsisIDRequest,
    stopped: Callable[[], bool],
    more: Callable[[int, Frames], None] | None = None,
) -> Result:
    """Film with progress; `more` gets the frames as they are decoded."""
    f, w, h = request.num_frames, request.width, request.height
    total = f * request.num_videos_per_prompt * max(len(stills), len(people or ()), len(texts(request.prompt)))
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
