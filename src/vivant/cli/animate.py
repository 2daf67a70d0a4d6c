"""`vivant animate`: from a picture and a sentence to a clip."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from typer import Argument

from vivant.cli.options import (
    CLIP,
    MODELS,
    OUTPUT,
    RESIDENCY,
    SAMPLING,
    Dtype,
    Residency,
    numbers_of,
    option,
    seed_of,
    sides_of,
)
from vivant.cli.screen import reporting
from vivant.errors import InputError

MOTION, FREEINIT, WINDOWS = "Motion", "FreeInit", "Long clips"


class Numerics(StrEnum):
    """Values of --numerics."""

    original = "original"
    diffusers = "diffusers"


class PromptSyntax(StrEnum):
    """Values of --prompt-syntax."""

    weighted = "weighted"
    plain = "plain"


class Fit(StrEnum):
    """Values of --fit."""

    crop = "crop"
    pad = "pad"
    stretch = "stretch"


def animate(
    photo: Annotated[str, Argument(help="The picture: a path or an http(s) address.")],
    prompt: Annotated[str, Argument(help="What happens, in a sentence.")],
    output: Annotated[
        list[str],
        option(
            "--output -o",
            "Where to write: .mp4, .webm, .gif, .webp, .apng, .png (contact sheet) or a folder/ of PNG files. "
            "Can be given several times.",
            OUTPUT,
        ),
    ],
    base: Annotated[
        str | None,
        option(
            "--base",
            "Stable Diffusion 1.5: a folder, a hub id or a file of a whole model; the small model that ships with "
            "vivant (64 x 64 pixels) if not given.",
            MODELS,
        ),
    ] = None,
    motion_adapter: Annotated[
        str | None,
        option(
            "--motion-adapter",
            "PIA's motion adapter: a folder, a hub id or a file; openmmlab/PIA-condition-adapter if not given.",
            MODELS,
        ),
    ] = None,
    vae: Annotated[
        str | None, option("--vae", "A VAE in place of the base's: a file, a folder or a hub id.", MODELS)
    ] = None,
    config: Annotated[
        str | None,
        option(
            "--config",
            "Repository with the configurations of a base in one file that is not plain Stable Diffusion 1.5.",
            MODELS,
        ),
    ] = None,
    loras: Annotated[
        list[str] | None,
        option(
            "--lora",
            "A LoRA, or LORA=WEIGHT: a file, a folder or hub id with one, or ORGANISATION/NAME/FILE. Several times.",
            MODELS,
        ),
    ] = None,
    embeddings: Annotated[
        list[str] | None,
        option("--embedding", "A textual inversion, or FILE=WORD with the word that calls it. Several times.", MODELS),
    ] = None,
    ip_adapters: Annotated[
        list[str] | None,
        option(
            "--ip-adapter",
            "An IP-Adapter, or FILE=WEIGHT; its image_encoder lies beside it. Several times.",
            MODELS,
        ),
    ] = None,
    picture_prompts: Annotated[
        list[str] | None,
        option("--picture-prompt", "A picture for each IP-Adapter, of which the clip takes up subject or style.", CLIP),
    ] = None,
    # The clip
    prompt_travel: Annotated[
        list[str] | None,
        option(
            "--at",
            "FRAME=PROMPT: what happens from that frame on, such as 32='it snows'; PROMPT is that of frame 0, and what "
            "lies between two is blended. Can be given several times.",
            CLIP,
        ),
    ] = None,
    negative_prompt: Annotated[
        str | None, option("--negative-prompt", "What to avoid; a list of PIA's own if not given.", CLIP)
    ] = None,
    prompt_syntax: Annotated[
        PromptSyntax,
        option(
            "--prompt-syntax",
            "weighted: (word:1.3), [word] and BREAK are read, and prompts may be long; plain: all is text, and cut "
            "after 75 tokens.",
            CLIP,
        ),
    ] = PromptSyntax.weighted,
    num_frames: Annotated[
        int | None, option("--frames", "Frames of the clip; 16 if not given (8 for the model that ships).", CLIP)
    ] = None,
    fps: Annotated[float, option("--fps", "Frames a second of the file; the frames are the same.", CLIP)] = 8.0,
    size: Annotated[
        str | None,
        option(
            "--size",
            "WIDTHxHEIGHT in pixels, multiples of 8; the picture's, with its longer side at most 512, if not given "
            "(64x64 for the model that ships).",
            CLIP,
        ),
    ] = None,
    height: Annotated[int | None, option("--height", "Height in pixels, in place of --size.", CLIP)] = None,
    width: Annotated[int | None, option("--width", "Width in pixels, in place of --size.", CLIP)] = None,
    fit: Annotated[Fit, option("--fit", "How a picture of another shape is brought to the size.", CLIP)] = Fit.crop,
    num_videos_per_prompt: Annotated[
        int, option("--num-videos", "Clips to make; the names get -0, -1, … before the suffix.", CLIP)
    ] = 1,
    seed: Annotated[
        str, option("--seed", "Seed of the noise, or one for each clip (1,2,3); -1 draws and records one.", CLIP)
    ] = "-1",
    # Motion
    motion: Annotated[
        str,
        option(
            "--motion",
            "animate:, loop: or style: with small, moderate or large; or a number 0 to 8; or one affinity to the "
            "picture for every frame (1,0.9,0.8,…).",
            MOTION,
        ),
    ] = "animate:small",
    cond_frame: Annotated[int, option("--cond-frame", "The frame that is the picture, from 0.", MOTION)] = 0,
    keyframes: Annotated[
        list[str] | None,
        option(
            "--keyframe",
            "FRAME=PICTURE: a picture at a further frame; every frame sees the nearest. Can be given several times.",
            MOTION,
        ),
    ] = None,
    # Sampling
    sampler: Annotated[
        str | None,
        option(
            "--sampler",
            "Such as DPM++ 2M Karras, Euler a, LCM; PIA's preset of DDIM if not given, or what a LoRA for few steps "
            "wants.",
            SAMPLING,
        ),
    ] = None,
    num_inference_steps: Annotated[
        int | None, option("--steps", "Denoising steps; 25 if not given, or what a LoRA for few steps wants.", SAMPLING)
    ] = None,
    guidance_scale: Annotated[
        float | None,
        option(
            "--guidance",
            "How strictly to follow the prompt; 1 and below switch guidance off; 7.5 if not given (4 for the model "
            "that ships).",
            SAMPLING,
        ),
    ] = None,
    image_guidance_scale: Annotated[
        float | None,
        option("--image-guidance", "Separate strength of the picture, for half more time; off if not given.", SAMPLING),
    ] = None,
    strength: Annotated[
        float, option("--strength", "How far to move from the picture: above 0, at most 1.", SAMPLING)
    ] = 1.0,
    eta: Annotated[
        float | None, option("--eta", "Share of fresh noise in every step, 0 to 1; 0 if not given.", SAMPLING)
    ] = None,
    clip_skip: Annotated[
        int | None, option("--clip-skip", "Last layers of the text encoder to leave out.", SAMPLING)
    ] = None,
    freeu: Annotated[
        str | None,
        option("--freeu", "FreeU's scales S1,S2,B1,B2, such as 0.9,0.2,1.2,1.4; off if not given.", SAMPLING),
    ] = None,
    # Long clips
    windows: Annotated[
        bool | None,
        option(
            "--windows/--no-windows",
            "Make the clip in overlapping windows. If not given, only one that is longer than the motion adapter "
            "allows; --no-windows refuses that.",
            WINDOWS,
        ),
    ] = None,
    windows_length: Annotated[
        int | None, option("--window-length", "Frames of a window; 16 if not given.", WINDOWS)
    ] = None,
    windows_stride: Annotated[
        int | None,
        option("--window-stride", "Frames from one window to the next; half the length if not given.", WINDOWS),
    ] = None,
    windows_weights: Annotated[
        str | None, option("--window-weights", "How windows are blended: pyramid (if not given) or uniform.", WINDOWS)
    ] = None,
    windows_noise: Annotated[
        str | None,
        option(
            "--window-noise",
            "fresh (if not given) for every frame, or freenoise: that of the first window again, shuffled.",
            WINDOWS,
        ),
    ] = None,
    windows_closed: Annotated[
        bool,
        option("--window-closed", "Let windows go over the end, so that the last frame leads to the first.", WINDOWS),
    ] = False,
    # FreeInit
    free_init: Annotated[
        bool, option("--free-init", "Denoise several times for a steadier clip; takes that much longer.", FREEINIT)
    ] = False,
    free_init_num_iters: Annotated[
        int | None, option("--free-init-iters", "How many times; 3 if not given.", FREEINIT)
    ] = None,
    free_init_use_fast_sampling: Annotated[
        bool, option("--free-init-fast", "Fewer steps in the early iterations.", FREEINIT)
    ] = False,
    free_init_method: Annotated[
        str | None,
        option("--free-init-method", "butterworth (if not given), gaussian, ideal or box.", FREEINIT),
    ] = None,
    free_init_order: Annotated[
        float | None, option("--free-init-order", "Order of the butterworth filter; 4 if not given.", FREEINIT)
    ] = None,
    free_init_spatial_stop_frequency: Annotated[
        float | None, option("--free-init-spatial", "Stop frequency in space; 0.25 if not given.", FREEINIT)
    ] = None,
    free_init_temporal_stop_frequency: Annotated[
        float | None, option("--free-init-temporal", "Stop frequency in time; 0.25 if not given.", FREEINIT)
    ] = None,
    # Models
    numerics: Annotated[
        Numerics,
        option("--numerics", "What the weights were trained with, or what diffusers computes.", MODELS),
    ] = Numerics.original,
    dtype: Annotated[
        Dtype, option("--dtype", "Data type of the weights; auto: bfloat16 where it is native.", MODELS)
    ] = Dtype.auto,
    device: Annotated[
        str | None, option("--device", "cpu, cuda, cuda:1, mps, …; the best there is if not given.", MODELS)
    ] = None,
    residency: Annotated[Residency, option("--residency", RESIDENCY, MODELS)] = Residency.resident,
    compile: Annotated[
        bool, option("--compile", "Compile the network: minutes at the start, every step faster.", MODELS)
    ] = False,
    variant: Annotated[str | None, option("--variant", "File variant of the weights, such as fp16.", MODELS)] = None,
    revision: Annotated[str | None, option("--revision", "Branch, tag or commit of the base.", MODELS)] = None,
    adapter_revision: Annotated[
        str | None, option("--adapter-revision", "Branch, tag or commit of the adapter.", MODELS)
    ] = None,
    cache_dir: Annotated[str | None, option("--cache-dir", "Hub cache; HF_HOME decides if not given.", MODELS)] = None,
    offline: Annotated[bool, option("--offline", "Never touch the network.", MODELS)] = False,
    # Output
    overwrite: Annotated[bool, option("--overwrite", "Replace files that exist.", OUTPUT)] = False,
    enlarge: Annotated[
        int, option("--enlarge", "Write every side that many times as long, for small clips.", OUTPUT)
    ] = 1,
    json: Annotated[bool, option("--json", "Print one JSON object, and nothing else.", OUTPUT)] = False,
) -> None:
    """Make a clip of a picture.

    Everything that cannot be honoured is refused before a model is loaded. Ctrl-C stops at once and writes nothing.
    """
    with reporting(json) as screen:
        request: dict[str, Any] = {
            "motion": motion_of(motion),
            "cond_frame": cond_frame,
            "keyframes": by_frames(keyframes, "E-KEYFRAME", "--keyframe"),
            "prompt_travel": by_frames(prompt_travel, "E-TRAVEL", "--at") or None,
            **sides_of(size, height, width),
            "fit": fit.value,
            "image_guidance_scale": image_guidance_scale,
            "strength": strength,
            "clip_skip": clip_skip,
            "prompt_syntax": prompt_syntax.value,
            "num_videos_per_prompt": num_videos_per_prompt,
            "seed": seed_of(seed),
            "fps": fps,
        }
        given = {
            "num_frames": num_frames,
            "num_inference_steps": num_inference_steps,
            "eta": eta,
            "negative_prompt": negative_prompt,
            "guidance_scale": guidance_scale,
        }
        request |= {name: value for name, value in given.items() if value is not None}
        scales = scales_of(freeu)
        passes = passes_of(
            free_init,
            num_iters=free_init_num_iters,
            use_fast_sampling=free_init_use_fast_sampling or None,
            method=free_init_method,
            order=free_init_order,
            spatial_stop_frequency=free_init_spatial_stop_frequency,
            temporal_stop_frequency=free_init_temporal_stop_frequency,
        )
        cut = cut_of(
            windows,
            length=windows_length,
            stride=windows_stride,
            weights=windows_weights,
            noise=windows_noise,
            closed=windows_closed or None,
        )

        from vivant.cli import making

        request |= making.settings(passes, scales, cut)
        if base is None:
            request = making.for_shipped(screen, motion_adapter, request)
        loading = making.Loading(
            base=base or making.SHIPPED_BASE,
            motion_adapter=motion_adapter if base else making.SHIPPED_MOTION,
            numerics=numerics.value,
            dtype=dtype.value,
            device=device,
            residency=residency.value,
            compile=compile,
            variant=variant,
            revision=revision,
            adapter_revision=adapter_revision,
            cache_dir=cache_dir,
            offline=offline,
            loras=tuple(weighted(text) for text in loras or ()),
            embeddings=tuple(worded(text) for text in embeddings or ()),
            ip_adapters=tuple(weighted(text) for text in ip_adapters or ()),
            sampler=sampler,
            config=config,
            vae=vae,
        )
        making.animate(screen, loading, photo, prompt, request, picture_prompts or [], output, overwrite, enlarge)


def motion_of(text: str) -> str | int | tuple[float, ...]:
    """A motion's name, number or curve as typed."""
    if "," in text:
        return tuple(numbers_of(text, "E-MOTION-CURVE", "--motion"))
    try:
        return int(text)
    except ValueError:
        return text


def weighted(text: str) -> str | tuple[str, float]:
    """A file, or FILE=WEIGHT; a name may have an equals sign of its own."""
    name, sign, weight = text.rpartition("=")
    try:
        return (name, float(weight)) if sign else text
    except ValueError:
        return text


def worded(text: str) -> str | tuple[str, str]:
    """A file, or FILE=WORD."""
    name, sign, word = text.rpartition("=")
    return (name, word) if sign and not Path(text).exists() else text


def scales_of(text: str | None) -> Sequence[float] | None:
    """FreeU's four scales."""
    if text is None:
        return None
    scales = numbers_of(text, "E-FREEU-SCALE", "--freeu")
    if len(scales) != 4:
        raise InputError(
            "E-FREEU-SCALE", f"--freeu has {len(scales)} scales.", "", "Give four, S1,S2,B1,B2: 0.9,0.2,1.2,1.4."
        )
    return scales


def by_frames(given: list[str] | None, code: str, flag: str) -> dict[int, str]:
    """What was given as FRAME=VALUE, by frames."""
    found: dict[int, str] = {}
    for text in given or []:
        frame, equals, value = text.partition("=")
        if not equals or not value or not frame.strip().isdecimal() or len(frame) > 9:
            raise InputError(code, f"{flag} is {text!r}.", "", f"Give the number of a frame: {flag} 32=…")
        if int(frame) in found:
            raise InputError(code, f"{flag} is given twice for frame {int(frame)}.", "", "Give one.")
        found[int(frame)] = value
    return found


def cut_of(enabled: bool | None, **settings: Any) -> dict[str, Any] | bool | None:
    """The settings of windows that were given; False where they are off, None where nothing was said."""
    given = {name: value for name, value in settings.items() if value is not None}
    if given and enabled is False:
        raise InputError(
            "E-WINDOWS-OFF",
            f"{', '.join(given)} of windows is given, and --no-windows.",
            "It would be ignored.",
            "Leave one of them out.",
        )
    return given if given or enabled else enabled


def passes_of(enabled: bool, **settings: Any) -> dict[str, Any] | None:
    """The settings of FreeInit that were given; None where it is off."""
    given = {name: value for name, value in settings.items() if value is not None}
    if given and not enabled:
        raise InputError(
            "E-FREEINIT-OFF",
            f"{', '.join(given)} of FreeInit is given, and FreeInit is off.",
            "It would be ignored.",
            "Add --free-init.",
        )
    return given if enabled else None
