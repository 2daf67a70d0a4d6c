"""How much every frame of a PIA clip should look like the picture: the motion control.

PIA reads one number per frame, its affinity to the picture: 1 is the picture itself, smaller is freer (Zhang et al.
2023, arXiv 2312.13964). The nine curves below are those that its authors published with the model.
"""

import difflib
from collections.abc import Sequence

from vivant.errors import InputError

# In the order of the numbers 0..8 that `motion_scale` takes. Entry k is the affinity k frames away from the picture.
TABLES: dict[str, tuple[float, ...]] = {
    "animate:small": (1.0, 0.9, 0.85, 0.85, 0.85, 0.8),
    "animate:moderate": (1.0, 0.8, 0.8, 0.8, 0.79, 0.78, 0.75),
    "animate:large": (1.0, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.5),
    "loop:small": (1.0, 0.9, 0.85, 0.85, 0.85, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.85, 0.85, 0.9, 1.0),
    "loop:moderate": (1.0, 0.8, 0.8, 0.8, 0.79, 0.78, 0.75, 0.75, 0.75, 0.75, 0.75, 0.78, 0.79, 0.8, 0.8, 1.0),
    "loop:large": (1.0, 0.8, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.5, 0.6, 0.7, 0.7, 0.7, 0.7, 0.8, 1.0),
    "style:small": (0.5, 0.4, 0.4, 0.4, 0.35, 0.3),
    "style:moderate": (0.5, 0.4, 0.4, 0.4, 0.35, 0.35, 0.3, 0.25, 0.2),
    "style:large": (0.5, 0.2),
}
NAMES = tuple(TABLES)

# The authors' own numbering has the style rows the other way round; their command line counts those from the end.
ORIGINAL: dict[int, str] = {
    **dict(enumerate(NAMES[:6])),
    6: "style:large",
    7: "style:moderate",
    8: "style:small",
    -1: "style:small",
    -2: "style:moderate",
    -3: "style:large",
}

# A name of `NAMES`, its number, or one affinity for every frame.
Motion = str | int | Sequence[float]


def parse(motion: object) -> str | tuple[float, ...]:
    """A motion in its one spelling: a name of `NAMES`, or a free curve as a tuple.

    Args:
        motion: a name, its number 0 to 8, or a sequence of affinities in [0, 1], one a frame (lists, numpy, torch).

    Raises:
        InputError: E-MOTION-NAME, E-MOTION-NUMBER, E-MOTION-CURVE or E-MOTION-TYPE.
    """
    plain = _plain(motion)
    if isinstance(plain, str):
        return _check_name(plain)
    if isinstance(plain, int | float):
        return NAMES[_check_number(plain)]
    if isinstance(plain, Sequence) and not isinstance(plain, bytes | bytearray):
        return _check_values(plain)
    raise InputError(
        "E-MOTION-TYPE",
        f"A motion cannot be a {type(motion).__name__}.",
        "It is a name, a number from 0 to 8, or a list with one affinity for every frame.",
        f"Names: {', '.join(NAMES)}.",
    )


def from_original(scale: int) -> str:
    """The name of a motion in the numbering of the authors' own program.

    0 to 8 are rows of its table, where 6 is the large and 8 the small style; -1, -2 and -3 are the small, moderate and
    large style of its command line.

    Raises:
        InputError: E-MOTION-ORIGINAL.
    """
    if not isinstance(scale, int) or isinstance(scale, bool) or scale not in ORIGINAL:
        raise InputError(
            "E-MOTION-ORIGINAL",
            f"{scale!r} is not a motion of the original program.",
            "It numbers them 0 to 8, and the styles also -1 (small), -2 (moderate) and -3 (large).",
        )
    return ORIGINAL[scale]


def nearest(num_frames: int, pictures: Sequence[int]) -> tuple[int, ...]:
    """For every frame of a clip the index of the picture that is nearest to it; of two, that of the earlier frame.

    Args:
        num_frames: length of the clip.
        pictures: the frames that pictures belong to, in any order.
    """
    order = sorted(range(len(pictures)), key=lambda k: pictures[k])
    return tuple(min(order, key=lambda k: abs(i - pictures[k])) for i in range(num_frames))


def curve(motion: Motion, num_frames: int, cond_frame: int = 0, keyframes: Sequence[int] = ()) -> tuple[float, ...]:
    """The affinity of every frame of a clip to its picture, which is the nearest one.

    Named rows are read by the distance from that; the last entry continues, extra ones are cut off. Loop rows
    are different: they are stretched to the clip's length, so that a loop of any length closes. The row is read at the
    normalised positions i / (num_frames - 1) with linear interpolation (16 frames give the row itself), and
    `cond_frame` turns the closed curve, whose period is num_frames - 1, so that it starts there. The first and the last
    frame then still have equal affinities; only with `cond_frame` at an end are both the picture itself.
    A free curve already says everything; `cond_frame` then only says, with `keyframes`, which picture is nearest.

    Args:
        motion: anything that `parse` takes.
        num_frames: length of the clip, at least 1.
        cond_frame: the frame that the picture belongs to, 0 to num_frames - 1.
        keyframes: the frames that further pictures belong to.

    Raises:
        InputError: those of `parse`, E-MOTION-FRAMES, E-MOTION-COND-FRAME, E-MOTION-CURVE for a wrong length,
            E-KEYFRAME, and E-KEYFRAME-LOOP for loop rows with keyframes.
    """
    _check_clip(num_frames, cond_frame)
    _check_keyframes(num_frames, cond_frame, keyframes)
    named = parse(motion)
    if not isinstance(named, str):
        return _check_fit(named, num_frames, 0 if keyframes else cond_frame)
    table, pictures = TABLES[named], (cond_frame, *keyframes)
    if named.startswith("loop:"):
        if keyframes:
            raise InputError(
                "E-KEYFRAME-LOOP",
                f"The motion {named} leads from one picture back to it, and there are keyframes.",
                "",
                "Use an animate: or style: motion, or a free curve; or leave the keyframes out.",
            )
        return _loop(table, num_frames, cond_frame)
    distances = (abs(i - pictures[k]) for i, k in enumerate(nearest(num_frames, pictures)))
    return tuple(table[min(distance, len(table) - 1)] for distance in distances)


def _loop(table: tuple[float, ...], num_frames: int, cond_frame: int) -> tuple[float, ...]:
    """The closed curve through `table`, sampled at every frame."""
    period = max(1, num_frames - 1)  # a clip of one frame is the picture
    values: list[float] = []
    for i in range(num_frames):
        # In whole numbers: at a table's own length the rest is exactly zero.
        k, rest = divmod((i - cond_frame) % period * (len(table) - 1), period)
        values.append(table[k] + (table[k + 1] - table[k]) * rest / period)
    return tuple(values)


def _plain(value: object) -> object:
    """Python's own value for one of numpy or torch, without importing either."""
    as_list = getattr(value, "tolist", None)
    return value if as_list is None else as_list()


def _check_name(name: str) -> str:
    if name in TABLES:
        return name
    wanted = name.strip().lower()
    near = [known for known in NAMES if wanted and wanted in known]
    near = near or difflib.get_close_matches(wanted, NAMES, n=3, cutoff=0.5)
    hint = f"Nearest: {', '.join(near)}." if near else f"Motions: {', '.join(NAMES)}."
    raise InputError("E-MOTION-NAME", f"There is no motion {name!r}.", fix=hint)


def _check_number(number: int | float) -> int:
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(NAMES):
        return number
    rows = ", ".join(f"{i} {name}" for i, name in enumerate(NAMES))
    why = f"Motions are whole numbers: {rows}."
    fix = "Use a name, which is harder to mistake."
    if number in (-1, -2, -3):
        fix = f"In the numbering of the original program this is {ORIGINAL[int(number)]} (see from_original)."
    raise InputError("E-MOTION-NUMBER", f"There is no motion number {number!r}.", why, fix)


def _check_values(values: Sequence[object]) -> tuple[float, ...]:
    if not values:
        raise InputError("E-MOTION-CURVE", "The motion curve is empty.", fix="Give one affinity for every frame.")
    affinities: list[float] = []
    for i, value in enumerate(map(_plain, values)):
        # The comparison is also false for NaN.
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise InputError(
                "E-MOTION-CURVE",
                f"The motion curve has {value!r} for frame {i}.",
                "An affinity is a number from 0 (free) to 1 (the picture itself).",
            )
        affinities.append(float(value))
    return tuple(affinities)


def _check_fit(values: tuple[float, ...], num_frames: int, cond_frame: int) -> tuple[float, ...]:
    if len(values) != num_frames:
        raise InputError(
            "E-MOTION-CURVE",
            f"The motion curve has {len(values)} values and the clip {num_frames} frames.",
            fix=f"Give {num_frames} values, or set the number of frames to {len(values)}.",
        )
    if cond_frame != 0:
        raise InputError(
            "E-MOTION-COND-FRAME",
            f"cond_frame = {cond_frame} has no effect on a free motion curve.",
            "The curve gives the affinity of every frame already.",
            "Leave cond_frame out, or use a named motion.",
        )
    return values


def _check_clip(num_frames: int, cond_frame: int) -> None:
    if not isinstance(num_frames, int) or isinstance(num_frames, bool) or num_frames < 1:
        raise InputError("E-MOTION-FRAMES", f"A clip cannot have {num_frames!r} frames.", fix="Use 1 or more.")
    if not isinstance(cond_frame, int) or isinstance(cond_frame, bool) or not 0 <= cond_frame < num_frames:
        raise InputError(
            "E-MOTION-COND-FRAME",
            f"cond_frame = {cond_frame!r} is not a frame of this clip.",
            f"Its frames are 0 to {num_frames - 1}.",
        )


def _check_keyframes(num_frames: int, cond_frame: int, keyframes: Sequence[int]) -> None:
    for k, frame in enumerate(keyframes):
        if not isinstance(frame, int) or isinstance(frame, bool) or not 0 <= frame < num_frames:
            raise InputError(
                "E-KEYFRAME",
                f"keyframes has {frame!r}, which is not a frame of this clip.",
                f"Its frames are 0 to {num_frames - 1}.",
            )
        if frame == cond_frame or frame in keyframes[:k]:
            raise InputError(
                "E-KEYFRAME",
                f"keyframes gives frame {frame} a second picture.",
                f"The first picture belongs to frame {cond_frame} (cond_frame).",
                "Give every picture a frame of its own.",
            )
