"""What can be asked for: one vocabulary for Python, command line, recipe and server.

A request is a frozen value that names everything which decides the result, apart from the models. It checks itself
before anything heavy is loaded.
"""

import dataclasses
import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeGuard, cast, get_args

from vivant.config import as_python
from vivant.errors import InputError
from vivant.freeinit import FreeInit
from vivant.pia.affinity import Motion, curve, nearest, parse
from vivant.pia.freeu import FreeU
from vivant.pia.windows import Windows
from vivant.text.prompt import PromptSyntax, check_syntax, check_weights

Fit = Literal["crop", "pad", "stretch"]
FITS = get_args(Fit)
Travel = Mapping[int, str | Sequence[str]] | Sequence[tuple[int, str | Sequence[str]]]
"""Prompts by frames: one sentence, or one for each clip."""
MAX_SIDE = 8192
MAX_SEED = 2**64 - 1
# Far beyond what any model takes. A recipe may come from a stranger, and even a list of numbers can fill a memory.
MAX_FRAMES = MAX_VIDEOS = MAX_ITERATIONS = 1024
MAX_STEPS = 1000  # one for every timestep of the training
NEGATIVE_PROMPT = "wrong white balance, dark, sketches, worst quality, low quality"


class _Request:
    """What requests of both models share: checks, and reading and writing."""

    _parts: ClassVar[Mapping[str, type]] = {}
    """Fields that are values with fields of their own, or None."""

    def _check_shared(self) -> None:
        """Make the values Python's own, and check the fields that every request has."""
        values: Any = self
        for field in dataclasses.fields(values):
            value = getattr(self, field.name)
            several = field.name in ("prompt", "negative_prompt", "seed") and isinstance(value, list)
            object.__setattr__(self, field.name, as_python(tuple(value) if several else value))
        for name, kind in self._parts.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise InputError("E-PARAM-TYPE", f"{name} is {value!r}.", "", f"Give a {kind.__name__}, or None.")
        check_text("prompt", values.prompt)
        if values.negative_prompt is not None:
            check_text("negative_prompt", values.negative_prompt)
        _check_int("num_frames", values.num_frames, 1, MAX_FRAMES)
        _check_int("num_inference_steps", values.num_inference_steps, 1, MAX_STEPS)
        _check_int("num_videos_per_prompt", values.num_videos_per_prompt, 1, MAX_VIDEOS)
        _check_number("guidance_scale", values.guidance_scale, 0, math.inf)
        _check_number("eta", values.eta, 0, 1)
        _check_number("fps", values.fps, 0.1, 240)
        for seed in (values.seed or (None,)) if isinstance(values.seed, tuple) else (values.seed,):
            _check_int("seed", seed, -1, MAX_SEED)

    @classmethod
    def build(cls, **values: Any) -> Self:
        """As the constructor, with a sentence for unknown names instead of Python's TypeError."""
        names = [f.name for f in dataclasses.fields(cast(Any, cls))]
        for name in values:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=2)
                raise InputError(
                    "E-PARAM-UNKNOWN",
                    f"There is no parameter {name!r}.",
                    f"Nearest: {', '.join(near)}." if near else "",
                    f"Known: {', '.join(names)}.",
                )
        return cls(**values)

    @property
    def num_prompts(self) -> int:
        """How many prompts there are for a batch."""
        return len(texts(cast(Any, self).prompt))

    def fields(self) -> dict[str, Any]:
        """Every field as it is; `build` is its inverse."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(cast(Any, self))}

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field; `from_json` is its inverse."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(cast(Any, self)).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read what `to_json` wrote, from a source that need not be friendly."""
        if not isinstance(values, dict):
            raise InputError("E-PARAM-TYPE", f"A request is an object with fields, not {values!r}.")
        read = dict(values)
        for name, part in cls._parts.items():
            value = read.get(name)
            if value is not None:
                listed = dataclasses.fields(cast(Any, part))
                known = {f.name for f in listed}
                needed = {f.name for f in listed if f.default is dataclasses.MISSING}
                if not isinstance(value, dict) or not needed <= set(value) <= known:
                    raise InputError(
                        "E-PARAM-TYPE", f"{name} is {value!r}.", "", f"It is an object with {', '.join(sorted(known))}."
                    )
                read[name] = part(**value)
        return cls.build(**read)


@dataclass(frozen=True, kw_only=True)
class PIARequest(_Request):
    """Animate pictures with PIA. Batch rule: prompts and pictures have length 1 or B and broadcast.

    Attributes:
        prompt: a sentence, or one for each clip.
        prompt_travel: prompts at further frames, ``{32: "…"}``; between two of them their embeddings are interpolated,
            before the first and after the last one nothing changes. `prompt`, unless empty, is the one at frame 0. Kept
            as pairs in the order of frames.
        negative_prompt: what to avoid; read only with guidance. None is the empty prompt.
        motion: a name such as ``"animate:small"``, its number 0 to 8, or a free curve of one affinity a frame; kept
            as the name or as a tuple.
        cond_frame: the frame that is the given picture.
        keyframes: the frames that further pictures belong to, in rising order; every frame sees the picture that is
            nearest to it, of two the earlier one.
        num_frames: length of the clip, in frames.
        windows: how a clip is made that is longer than the motion modules were trained for, or None: all at once.
        height, width: size in pixels, multiples of 8. None is the model's own size.
        fit: how a picture of another shape is brought to that size.
        num_inference_steps: denoising steps (of each FreeInit iteration).
        guidance_scale: strength of the prompt; at 1 and below it is followed as it is.
        image_guidance_scale: separate strength of the picture, at the price of a third evaluation. None is off.
        strength: how far to move from the picture: 1 starts from noise, less starts from the noised picture.
        eta: share of fresh noise, for the solvers that have one (DDIM).
        clip_skip: how many last layers of the text encoder to leave out.
        prompt_syntax: ``"weighted"`` reads `(word:1.3)`, `[word]`, `BREAK` and prompts of any length; ``"plain"`` takes
            every character as text and cuts what CLIP does not read. See `vivant.text.encode`.
        num_videos_per_prompt: n clips for each prompt; output index is ``b * n + k``.
        seed: seed of the noise, or one for each clip; -1 draws one and records it.
        free_init: settings of FreeInit, or None.
        freeu: settings of FreeU, or None.
        fps: frames a second of the written clip; it does not change the frames.
    """

    prompt: str | Sequence[str] = ""
    prompt_travel: Travel | None = None
    negative_prompt: str | Sequence[str] | None = None
    motion: Motion = "animate:small"
    cond_frame: int = 0
    keyframes: Sequence[int] = ()
    num_frames: int = 16
    windows: Windows | None = None
    height: int | None = None
    width: int | None = None
    fit: Fit = "crop"
    num_inference_steps: int = 25
    guidance_scale: float = 7.5
    image_guidance_scale: float | None = None
    strength: float = 1.0
    eta: float = 0.0
    clip_skip: int | None = None
    prompt_syntax: PromptSyntax = "weighted"
    num_videos_per_prompt: int = 1
    seed: int | Sequence[int] = -1
    free_init: FreeInit | None = None
    freeu: FreeU | None = None
    fps: float = 8.0

    _parts: ClassVar[Mapping[str, type]] = {"windows": Windows, "free_init": FreeInit, "freeu": FreeU}

    def __post_init__(self):
        self._check_shared()
        if self.free_init is not None:
            _check_int("free_init.num_iters", self.free_init.num_iters, 1, MAX_ITERATIONS)
        for name in ("height", "width"):
            if (value := getattr(self, name)) is not None:
                _check_side(name, value, 8)
        if self.clip_skip is not None:
            _check_int("clip_skip", self.clip_skip, 0)
        if self.image_guidance_scale is not None:
            _check_number("image_guidance_scale", self.image_guidance_scale, 0, math.inf)
        _check_number("strength", self.strength, 0, 1)
        if self.strength == 0:
            raise InputError(
                "E-STRENGTH", "strength is 0: nothing would be generated.", "", "Use more than 0, at most 1."
            )
        if self.fit not in FITS:
            raise InputError("E-FIT", f"fit is {self.fit!r}.", "", f"Choose one of {', '.join(FITS)}.")
        check_syntax(self.prompt_syntax)
        object.__setattr__(self, "motion", parse(self.motion))
        if not isinstance(self.keyframes, list | tuple) or not all(type(as_python(i)) is int for i in self.keyframes):
            raise InputError("E-KEYFRAME", f"keyframes is {self.keyframes!r}.", "", "Give a list of frames.")
        curve(self.motion, self.num_frames, self.cond_frame, self.keyframes)
        object.__setattr__(self, "keyframes", tuple(sorted(self.keyframes)))
        object.__setattr__(self, "prompt_travel", _travel(self.prompt_travel, self.num_frames))
        if 0 in self._travelled and any(texts(self.prompt)):
            raise InputError(
                "E-PROMPT-TWICE",
                "Both prompt and prompt_travel at frame 0 are given.",
                "prompt is the one at frame 0.",
                "Give one of them.",
            )
        _ = self.num_prompts
        if self.prompt_syntax == "weighted":
            for prompt in (*self.prompts_at.values(), self.negative_prompt):
                for text in texts(prompt):
                    check_weights(text)

    @property
    def affinity(self) -> tuple[float, ...]:
        """The motion as one coefficient a frame."""
        return curve(self.motion, self.num_frames, self.cond_frame, self.keyframes)

    @property
    def nearest(self) -> tuple[int, ...]:
        """For every frame its picture: 0 is the one at `cond_frame`, then come those of the keyframes."""
        return nearest(self.num_frames, (self.cond_frame, *self.keyframes))

    @property
    def _travelled(self) -> dict[int, str | Sequence[str]]:
        return dict(cast(Any, self.prompt_travel or ()))

    @property
    def prompts_at(self) -> dict[int, str | Sequence[str]]:
        """The prompts by the frames that they stand at, in their order; at 0 alone where nothing changes."""
        first = {} if self.prompt_travel and not any(texts(self.prompt)) else {0: self.prompt}
        return {**first, **self._travelled}

    @property
    def num_prompts(self) -> int:
        """How many prompts there are for a batch, at any of the frames (E-BATCH)."""
        return batch_size(**{f"prompt at frame {i}": len(texts(text)) for i, text in self.prompts_at.items()})

    @property
    def needs_negative(self) -> bool:
        """Whether guidance reads the negative prompt."""
        return self.guidance_scale > 1 or self.image_guidance_scale is not None


@dataclass(frozen=True, kw_only=True)
class ConsisIDRequest(_Request):
    """Film a person with ConsisID. Batch rule: prompts, pictures and identities have length 1 or B and broadcast.

    Attributes:
        prompt: a sentence, or one for each video; the model was trained on long ones.
        negative_prompt: what to avoid; read only with guidance. None is the empty prompt.
        num_frames: length of the video, in frames; 49 is what the model was trained on.
        height, width: size in pixels, multiples of 16. None is the model's own size, 480 x 720.
        num_inference_steps: denoising steps.
        guidance_scale: strength of the prompt; at 1 and below it is followed as it is.
        use_dynamic_cfg: let guidance fall over the run, from 1 + guidance_scale to 1.
        eta: share of fresh noise, for the solvers that have one (DDIM).
        max_sequence_length: tokens of a prompt that are read.
        num_videos_per_prompt: n videos for each prompt; output index is ``b * n + k``.
        seed: seed of the noise, or one for each video; -1 draws one and records it.
        fps: frames a second of the written video; it does not change the frames.
    """

    prompt: str | Sequence[str] = ""
    negative_prompt: str | Sequence[str] | None = None
    num_frames: int = 49
    height: int | None = None
    width: int | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 6.0
    use_dynamic_cfg: bool = False
    eta: float = 0.0
    max_sequence_length: int = 226
    num_videos_per_prompt: int = 1
    seed: int | Sequence[int] = -1
    fps: float = 8.0

    def __post_init__(self):
        self._check_shared()
        for name in ("height", "width"):
            if (value := getattr(self, name)) is not None:
                _check_side(name, value, 16)
        if not isinstance(self.use_dynamic_cfg, bool):
            raise InputError("E-PARAM-TYPE", f"use_dynamic_cfg is {self.use_dynamic_cfg!r}.", "", "Give true or false.")
        _check_int("max_sequence_length", self.max_sequence_length, 1, 4096)

    @property
    def needs_negative(self) -> bool:
        """Whether guidance reads the negative prompt."""
        return self.guidance_scale > 1


def _travel(value: object, num_frames: int) -> tuple[tuple[int, Any], ...] | None:
    """Prompts at frames in their one spelling, from a mapping or from pairs (E-TRAVEL)."""
    pairs: Any = list(value.items()) if isinstance(value, Mapping) else value
    if pairs is None or pairs == [] or pairs == ():
        return None
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise InputError("E-TRAVEL", f"prompt_travel is {value!r}.", "", 'Give prompts by frames, such as {32: "…"}.')
    stops: dict[int, Any] = {}
    for frame, text in pairs:
        frame = as_python(frame)
        if not _is_whole(frame) or not 0 <= frame < num_frames:
            raise InputError(
                "E-TRAVEL",
                f"prompt_travel has a prompt at {frame!r}, which is not a frame of this clip.",
                f"Its frames are 0 to {num_frames - 1}.",
            )
        if frame in stops:
            raise InputError("E-TRAVEL", f"prompt_travel has two prompts at frame {frame}.", "", "Give one.")
        check_text(f"prompt_travel at frame {frame}", text)
        stops[frame] = text if isinstance(text, str) else tuple(text)
    return tuple(sorted(stops.items()))


def texts(value: str | Sequence[str] | None) -> list[str]:
    """One or several prompts as a list; None is the empty prompt."""
    return [value or ""] if value is None or isinstance(value, str) else list(value)


def batch_size(**lengths: int) -> int:
    """The B of a batch whose inputs have length 1 or B.

    Raises:
        InputError: E-BATCH naming the lengths that do not agree.
    """
    batch = max(lengths.values())
    if any(length not in (1, batch) for length in lengths.values()):
        found = ", ".join(f"{length} x {name}" for name, length in lengths.items())
        raise InputError("E-BATCH", f"The batch does not agree: {found}.", "", f"Give 1 or {batch} of each.")
    return batch


def check_text(name: str, value: object) -> None:
    """Refuse what is neither a string nor a list of them (E-PROMPT-TYPE), or no valid Unicode (E-PROMPT-TEXT)."""
    texts: tuple[Any, ...] = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError("E-PROMPT-TYPE", f"{name} is {value!r}.", "", "Give a string or a list of strings.")
    for text in texts:
        if any("\ud800" <= char <= "\udfff" for char in text):
            shown = ascii(text[:60])
            raise InputError("E-PROMPT-TEXT", f"{name} is not valid Unicode: {shown}.", "It holds half a character.")


_CODES = {
    "num_frames": "E-FRAMES",
    "num_inference_steps": "E-STEPS",
    "num_videos_per_prompt": "E-NUM-VIDEOS",
    "free_init.num_iters": "E-FREEINIT-ITERATIONS",
    "guidance_scale": "E-GUIDANCE",
    "image_guidance_scale": "E-GUIDANCE",
    "clip_skip": "E-CLIP-SKIP",
    "max_sequence_length": "E-PROMPT-LENGTH",
    "strength": "E-STRENGTH",
    "eta": "E-ETA",
    "fps": "E-FPS",
    "seed": "E-SEED",
}


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_int(name: str, value: object, low: int, high: int | None = None) -> None:
    if not (_is_whole(value) and low <= value and (high is None or value <= high)):
        limits = f"{low} or more" if high is None else f"from {low} to {high}"
        raise InputError(_CODES[name], f"{name} is {value!r}.", "", f"Give a whole number, {limits}.")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    # NaN fails every comparison; a whole number can be too large for a float.
    if not (_is_number(value) and low <= value <= high and value <= sys.float_info.max):
        limits = f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
        raise InputError(_CODES[name], f"{name} is {value!r}.", "", f"Give a number, {limits}.")


def _check_side(name: str, value: object, multiple: int) -> None:
    if not (_is_whole(value) and multiple <= value <= MAX_SIDE and value % multiple == 0):
        near = max(multiple, min(MAX_SIDE, (value + multiple // 2) // multiple * multiple)) if _is_whole(value) else 480
        raise InputError(
            "E-SIZE",
            f"{name} is {value!r}.",
            f"Sizes are multiples of {multiple}, from {multiple} to {MAX_SIDE} pixels.",
            f"Use {near}.",
        )
