"""`vivant portrait`: from a photo of a person and a sentence to a video."""

from typing import Annotated, Any

from typer import Argument

from vivant.cli.options import (
    CLIP,
    MODELS,
    OUTPUT,
    PERSON,
    RESIDENCY,
    SAMPLING,
    Dtype,
    Residency,
    option,
    seed_of,
    sides_of,
    weighted,
)
from vivant.cli.screen import reporting


def portrait(
    photo: Annotated[
        str,
        Argument(help="A photo of the person, a path or an http(s) address; or a face that --save-face wrote."),
    ],
    prompt: Annotated[str, Argument(help="What happens; the model was trained on long descriptions.")],
    output: Annotated[
        list[str],
        option(
            "--output -o",
            "Where to write: .mp4, .webm, .gif, .webp, .apng, .png (contact sheet) or a folder/ of PNG files. "
            "Can be given several times.",
            OUTPUT,
        ),
    ],
    # The person
    face: Annotated[
        str | None,
        option(
            "--face",
            "Which face of the photo: largest, center, a number from left to right (0, 1, …), or "
            "LEFT,TOP,RIGHT,BOTTOM in pixels.",
            PERSON,
        ),
    ] = None,
    more_photos: Annotated[
        list[str] | None,
        option("--photo", "Another photo of the same person; the identities are averaged. Several times.", PERSON),
    ] = None,
    identity: Annotated[
        str | None,
        option(
            "--identity",
            "The identity, if it is known: a safetensors file with id_cond, id_vit_hidden.0 to .4 and perhaps "
            "kps_cond. The photo is then the aligned crop of the face.",
            PERSON,
        ),
    ] = None,
    save_face: Annotated[
        str | None,
        option("--save-face", "Keep the face as a .safetensors file, for further clips and `vivant redo`.", PERSON),
    ] = None,
    # The clip
    negative_prompt: Annotated[
        str | None, option("--negative-prompt", "What to avoid; nothing if not given.", CLIP)
    ] = None,
    num_frames: Annotated[
        int | None,
        option("--frames", "Frames of the clip; what the model was trained on (49) if not given.", CLIP),
    ] = None,
    fps: Annotated[float, option("--fps", "Frames a second of the file; the frames are the same.", CLIP)] = 8.0,
    size: Annotated[
        str | None,
        option(
            "--size",
            "WIDTHxHEIGHT in pixels, multiples of 16; what the model was trained on (720x480) if not given.",
            CLIP,
        ),
    ] = None,
    height: Annotated[int | None, option("--height", "Height in pixels, in place of --size.", CLIP)] = None,
    width: Annotated[int | None, option("--width", "Width in pixels, in place of --size.", CLIP)] = None,
    num_videos_per_prompt: Annotated[
        int, option("--num-videos", "Clips to make; the names get -0, -1, … before the suffix.", CLIP)
    ] = 1,
    seed: Annotated[
        str, option("--seed", "Seed of the noise, or one for each clip (1,2,3); -1 draws and records one.", CLIP)
    ] = "-1",
    # Sampling
    num_inference_steps: Annotated[
        int | None,
        option("--steps", "Denoising steps; 50 if not given (25 for the model that ships).", SAMPLING),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        option(
            "--guidance",
            "How strictly to follow the prompt; 1 and below switch guidance off; 6 if not given (3 for the model that "
            "ships).",
            SAMPLING,
        ),
    ] = None,
    use_dynamic_cfg: Annotated[
        bool,
        option("--dynamic-guidance", "Let guidance fall over the run, from 1 + --guidance to 1.", SAMPLING),
    ] = False,
    eta: Annotated[
        float,
        option("--eta", "Share of fresh noise in every step, 0 to 1, for schedulers that have it (DDIM).", SAMPLING),
    ] = 0.0,
    max_sequence_length: Annotated[
        int | None,
        option("--max-sequence-length", "Tokens of the prompt that are read; 226 if not given.", SAMPLING),
    ] = None,
    # Models
    model: Annotated[
        str | None,
        option(
            "--model",
            "ConsisID: a folder or a hub id, such as BestWishYsh/ConsisID-preview; the small model of drawn people "
            "that ships with vivant (64 x 64 pixels) if not given.",
            MODELS,
        ),
    ] = None,
    dtype: Annotated[
        Dtype, option("--dtype", "Data type of the weights; auto: bfloat16 where it is native.", MODELS)
    ] = Dtype.auto,
    device: Annotated[
        str | None, option("--device", "cpu, cuda, cuda:1, mps, …; the best there is if not given.", MODELS)
    ] = None,
    loras: Annotated[
        list[str] | None,
        option(
            "--lora",
            "A LoRA of CogVideoX or ConsisID, or LORA=WEIGHT: a file, a folder or hub id with one, or "
            "ORGANISATION/NAME/FILE. Several times.",
            MODELS,
        ),
    ] = None,
    residency: Annotated[Residency, option("--residency", RESIDENCY, MODELS)] = Residency.resident,
    variant: Annotated[str | None, option("--variant", "File variant of the weights, such as fp16.", MODELS)] = None,
    revision: Annotated[str | None, option("--revision", "Branch, tag or commit of the model.", MODELS)] = None,
    cache_dir: Annotated[str | None, option("--cache-dir", "Hub cache; HF_HOME decides if not given.", MODELS)] = None,
    offline: Annotated[bool, option("--offline", "Never touch the network.", MODELS)] = False,
    # Output
    overwrite: Annotated[bool, option("--overwrite", "Replace files that exist.", OUTPUT)] = False,
    enlarge: Annotated[int, option("--enlarge", "Write every side that many times as long.", OUTPUT)] = 1,
    json: Annotated[bool, option("--json", "Print one JSON object, and nothing else.", OUTPUT)] = False,
) -> None:
    """Film the person in a picture.

    Everything that cannot be honoured is refused before a model is loaded. Ctrl-C stops at once and writes nothing.
    """
    with reporting(json) as screen:
        request: dict[str, Any] = {
            **sides_of(size, height, width),
            "use_dynamic_cfg": use_dynamic_cfg,
            "eta": eta,
            "num_videos_per_prompt": num_videos_per_prompt,
            "seed": seed_of(seed),
            "fps": fps,
            "negative_prompt": negative_prompt,
        }
        given = {
            "num_frames": num_frames,
            "max_sequence_length": max_sequence_length,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
        }
        request |= {name: value for name, value in given.items() if value is not None}

        from vivant.cli import filming

        if model is None:
            request = filming.for_shipped(screen, request)
        loading = filming.Loading(
            model=model or filming.SHIPPED,
            dtype=dtype.value,
            device=device,
            residency=residency.value,
            variant=variant,
            revision=revision,
            cache_dir=cache_dir,
            offline=offline,
            loras=tuple(weighted(text) for text in loras or ()),
        )
        person = filming.Person(photo, tuple(more_photos or ()), identity, face, save_face)
        filming.film(screen, loading, person, prompt, request, output, overwrite, enlarge)
