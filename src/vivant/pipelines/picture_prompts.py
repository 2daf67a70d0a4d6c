"""Picture prompts (IP-Adapter) of a pipeline: loading, strength, and what a call is given. No arithmetic."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch import device as Device

from vivant.errors import InputError, LoadError
from vivant.hub.family import identify, refuse
from vivant.hub.header import Header, flat, header_of, read_header
from vivant.hub.keywords import ALREADY_SO, without_loading
from vivant.hub.load import ENCODER_WEIGHTS, is_safetensors, read_file, read_object
from vivant.hub.repo import Source, locate, locate_file
from vivant.media.still import read_still
from vivant.pia.ip_adapter import IPAdapter, build, places, refuse_face_id
from vivant.pia.ip_scale import Scales, scales_at
from vivant.pia.picture_prompt import PicturePrompt, check_masks, is_stretched, join_embeds, split_embeds
from vivant.placement import active
from vivant.vision import CLIPImageProcessor, check_prepared, embed_pictures, load_image_encoder

USUAL = ("ip-adapter_sd15.safetensors", "ip-adapter_sd15.bin")
MASKS = "ip_adapter_masks"


class Loaded(NamedTuple):
    """The adapters of a pipeline, their strengths, and the names of the components that came with them."""

    adapters: tuple[IPAdapter, ...] = ()
    scales: tuple[Scales, ...] = ()
    brought: tuple[str, ...] = ()


class Shown(NamedTuple):
    """What a call is given for the adapters, under the names of its arguments."""

    image: Any = None
    embeds: Any = None
    masks: Any = None


NOTHING = Shown()


class Asked(NamedTuple):
    """What a call shows the adapters: prepared pictures in rows for each adapter, or ready embeddings; and masks."""

    pictures: list[list[list[Tensor]]] | None
    embeds: list[tuple[Tensor, Tensor | None]] | None
    masks: list[Tensor | None]


def load_ip_adapter(
    pipeline: Any,
    pretrained_model_name_or_path_or_dict: Any,
    subfolder: str | Sequence[str] | None = None,
    weight_name: str | Sequence[str] | None = None,
    image_encoder_folder: str | None = "image_encoder",
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    **given: Any,
) -> None:
    """Load one or several IP-Adapters of Stable Diffusion 1.5; they replace those that were loaded before.

    Every adapter starts at a strength of 1. The pipeline's network itself stays as it is.

    Args:
        pipeline: what to load them into.
        pretrained_model_name_or_path_or_dict: a hub id such as ``"h94/IP-Adapter"``, a folder, a file, or a dictionary
            of tensors; or a list with one for each adapter.
        subfolder: where in the repository the file is, such as ``"models"``; or a list.
        weight_name: name of the file, such as ``"ip-adapter_sd15.bin"``; a list loads several adapters. The kind is
            recognised by the tensors, whatever the name.
        image_encoder_folder: folder of CLIP's image encoder inside `subfolder`, or a path in the repository where it
            has a slash; read only if the pipeline has no encoder. None reads none: then calls need embeddings.
        revision: branch, tag or commit on the hub.
        cache_dir: hub cache.
        local_files_only: never touch the network.
        token: hub token.
        given: of diffusers' other keywords those that change nothing here.

    Raises:
        LoadError: E-FILE-FAMILY for adapters of SDXL and others, E-FILE-KIND, E-IP-ADAPTER-FACEID, E-IP-ADAPTER-FILE,
            E-KEYS-MISMATCH, E-IP-ADAPTER-ENCODER, and whatever is missing or broken. The pipeline is as it was then.
        InputError: E-ARG-VALUE, E-ARG-UNKNOWN, E-IP-ADAPTER-LIST for lists of different lengths.
    """
    unknown = without_loading(given, {**ALREADY_SO, "proxies": (None,)})
    if unknown:
        raise InputError("E-ARG-UNKNOWN", f"load_ip_adapter has no argument {', '.join(unknown)}.")
    sources, subfolders, names = _each(pretrained_model_name_or_path_or_dict, subfolder, weight_name)
    where = Source(".", None, None, revision, cache_dir, local_files_only, token)
    adapters = []
    for source, folder, name in zip(sources, subfolders, names, strict=True):
        if isinstance(source, Mapping):
            adapters.append(_adopt(source, pipeline.unet))
        else:
            path = locate_file(replace(where, source=source, subfolder=folder), name, USUAL)
            adapters.append(_read(path, pipeline.unet))
    brought: dict[str, Any] = {}
    encoder = pipeline.image_encoder
    if encoder is None and image_encoder_folder is not None:
        encoder = brought["image_encoder"] = _read_encoder(
            sources[0], subfolders[0], image_encoder_folder, where, pipeline
        )
    for adapter in adapters if encoder is not None else ():
        _check_encoder(adapter, encoder)
    if pipeline.feature_extractor is None:
        side = 224 if encoder is None else encoder.config.image_size
        brought["feature_extractor"] = CLIPImageProcessor(side, side)
    # Nothing can fail from here on.
    for name, component in brought.items():
        setattr(pipeline, name, component)
    scales = tuple(scales_at(1.0, places(pipeline.unet)) for _ in adapters)
    pipeline._ip_adapters = Loaded(tuple(adapters), scales, (*pipeline._ip_adapters.brought, *brought))


def _each(source: Any, subfolder: Any, weight_name: Any) -> list[list[Any]]:
    """The three arguments as lists of one length, as diffusers makes them."""
    lists = [list(value) if isinstance(value, list | tuple) else [value] for value in (source, subfolder, weight_name)]
    num = max(map(len, lists))
    if any(len(values) not in (1, num) for values in lists):
        counts = ", ".join(str(len(values)) for values in lists)
        raise InputError(
            "E-IP-ADAPTER-LIST",
            f"There are {counts} repositories, subfolders and weight names.",
            "",
            "Give one, or one for each adapter.",
        )
    return [values * num if len(values) == 1 else values for values in lists]


def _read(path: Path, unet: Any) -> IPAdapter:
    """An adapter from a file, refused by its header where it is something else."""
    _check_kind(read_header(path), path)
    state = read_file(path) if is_safetensors(path) else dict(flat(read_object(path), path))
    return build(state, unet, str(path))


def _adopt(tensors: Mapping[str, Any], unet: Any) -> IPAdapter:
    """An adapter from a dictionary, flat or nested, with the same refusals."""
    origin = Path("The dictionary")
    state = dict(flat(tensors, origin))
    _check_kind(header_of(state), origin)
    return build(state, unet, str(origin))


def _check_kind(header: Header, origin: Path) -> None:
    """Refuse what is no adapter that can be read here (E-IP-ADAPTER-FACEID, E-FILE-KIND, E-FILE-FAMILY)."""
    refuse_face_id(header.tensors, str(origin))
    refuse(origin, identify(header), ["IP-Adapter"])


def _read_encoder(source: Any, subfolder: str | None, folder: str, where: Source, pipeline: Any) -> Any:
    """The image encoder beside an adapter, where the pipeline computes."""
    advice = "Give image_encoder_folder, or None and call with ip_adapter_image_embeds."
    if isinstance(source, Mapping):
        raise LoadError(
            "E-IP-ADAPTER-ENCODER",
            "The dictionary has no image encoder beside it, and the pipeline has none.",
            "",
            "Pass image_encoder_folder=None, or give the pipeline an image_encoder before.",
        )
    if Path(source).expanduser().is_file():
        source = Path(source).expanduser().parent
    path = folder if "/" in folder or subfolder is None else f"{subfolder}/{folder}"
    try:
        found = locate(replace(where, source=source, subfolder=path), [*ENCODER_WEIGHTS, "config.json"])
    except LoadError as error:
        if error.code != "E-REPO-SUBFOLDER":
            raise
        what = f"There is no image encoder in {path} of {source}."
        raise LoadError("E-IP-ADAPTER-ENCODER", what, error.why, advice) from None
    return load_image_encoder(found, dtype=pipeline.unet.dtype).to(pipeline.unet.device)


def _check_encoder(adapter: IPAdapter, encoder: Any) -> None:
    """Refuse an encoder that this adapter was not made for (E-IP-ADAPTER-ENCODER)."""
    has = encoder.config.hidden_size if adapter.reads_positions else encoder.config.projection_dim
    if has != adapter.in_channels:
        raise InputError(
            "E-IP-ADAPTER-ENCODER",
            f"The adapter ({adapter.kind}) reads {adapter.in_channels} channels, and the image encoder gives {has}.",
            "Adapters of Stable Diffusion 1.5 were trained with ViT-H/14, models/image_encoder of h94/IP-Adapter.",
            "Load the image encoder that belongs to the adapter.",
        )


def set_ip_adapter_scale(pipeline: Any, scale: Any) -> None:
    """Set how strong the pictures are.

    Args:
        pipeline: whose adapters.
        scale: a number for all adapters; a list with an entry for each. An entry is a number, a list with a number
            for each masked picture, or a dictionary by blocks, see `vivant.pia.ip_scale.scales_at`.

    Raises:
        InputError: E-IP-ADAPTER without an adapter, E-IP-ADAPTER-SCALE.
    """
    loaded: Loaded = pipeline._ip_adapters
    num = len(loaded.adapters)
    if not num:
        raise _none_loaded("set_ip_adapter_scale")
    entries = list(scale) if isinstance(scale, list | tuple) else [scale] * num
    if len(entries) != num:
        raise InputError(
            "E-IP-ADAPTER-SCALE",
            f"There are {len(entries)} strengths for {num} adapters.",
            "",
            "Give one number, or a list with one entry for each adapter.",
        )
    at = places(pipeline.unet)
    pipeline._ip_adapters = loaded._replace(scales=tuple(scales_at(entry, at) for entry in entries))


def unload_ip_adapter(pipeline: Any) -> None:
    """Forget all adapters, and the image encoder and processor if they came with them. Without any, nothing happens."""
    for name in pipeline._ip_adapters.brought:
        setattr(pipeline, name, None)
    pipeline._ip_adapters = Loaded()


def encode_image(
    pipeline: Any,
    image: Any,
    device: Device | str | None = None,
    num_images_per_prompt: int = 1,
    output_hidden_states: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Embed pictures by CLIP.

    Args:
        pipeline: whose image encoder.
        image: a picture or a list of them; a tensor `n 3 s s` is taken to be prepared for CLIP already.
        device: where to return the embeddings.
        num_images_per_prompt: rows for each picture.
        output_hidden_states: the last layer but one, position by position, as plus and full adapters read.

    Returns:
        Embeddings of the pictures, and those that stand for no picture.

    Raises:
        InputError: E-IP-ADAPTER-ENCODER without an encoder, E-IMAGE-… for what cannot be read.
    """
    _check_has_encoder(pipeline)
    with active(pipeline.image_encoder, pipeline.memory) as encoder:
        halves = embed_pictures(encoder, _prepared(pipeline, image), bool(output_hidden_states))
    positive, negative = (
        half.repeat_interleave(num_images_per_prompt, dim=0).to(device or half.device) for half in halves
    )
    return positive, negative


def prepare_ip_adapter_image_embeds(
    pipeline: Any,
    ip_adapter_image: Any,
    ip_adapter_image_embeds: Any,
    device: Device | str | None = None,
    num_images_per_prompt: int = 1,
    do_classifier_free_guidance: bool = True,
) -> list[Tensor]:
    """The embeddings of pictures in the form in which a call takes them back.

    Args:
        pipeline: whose adapters.
        ip_adapter_image: as of a call.
        ip_adapter_image_embeds: as of a call, in place of pictures.
        device: where to return them.
        num_images_per_prompt: repetitions of every row.
        do_classifier_free_guidance: add the negative rows, before the others.

    Returns:
        For each adapter rows of n pictures, `r n e` or `r n l e`.

    Raises:
        InputError: as a call.
    """
    guided = do_classifier_free_guidance
    if not pipeline._ip_adapters.adapters:
        raise _none_loaded("prepare_ip_adapter_image_embeds")
    asked = check(pipeline, Shown(ip_adapter_image, ip_adapter_image_embeds), None, guided)
    assert asked is not None
    joined = [join_embeds(*halves, num_images_per_prompt) for halves in _halves(pipeline, asked, guided)]
    return [embeds.to(device or embeds.device) for embeds in joined]


# ------------------------------------------------------------------------------------------------ what a call does


def take_masks(cross_attention_kwargs: Any) -> tuple[Any, Any]:
    """The masks out of `cross_attention_kwargs`, and what is left of it."""
    if not isinstance(cross_attention_kwargs, Mapping) or MASKS not in cross_attention_kwargs:
        return None, cross_attention_kwargs
    return cross_attention_kwargs[MASKS], {k: v for k, v in cross_attention_kwargs.items() if k != MASKS}


def check(pipeline: Any, shown: Shown, batch: int | None, guided: bool) -> Asked | None:
    """What a call shows the adapters, checked before anything is computed; None where there are no adapters.

    Args:
        pipeline: whose adapters.
        shown: what it is given.
        batch: number of prompts, each of which may see pictures of its own; None admits any number.
        guided: whether guidance is on.

    Raises:
        InputError: E-IP-ADAPTER when pictures are given and there is no adapter, or the other way round, or pictures
            and embeddings both; E-IP-ADAPTER-ENCODER, -FIT, -IMAGES, -EMBEDS, -MASK or -SCALE.
    """
    image, embeds, masks = shown
    adapters, scales, _ = pipeline._ip_adapters
    if not adapters:
        for name, value in (("ip_adapter_image", image), ("ip_adapter_image_embeds", embeds), (MASKS, masks)):
            if value is not None:
                raise _none_loaded(name)
        return None
    if (image is None) == (embeds is None):
        raise InputError(
            "E-IP-ADAPTER",
            "An IP-Adapter is loaded, and there is no picture for it."
            if image is None
            else "Both ip_adapter_image and ip_adapter_image_embeds are given.",
            "",
            "Give ip_adapter_image or ip_adapter_image_embeds, or call unload_ip_adapter."
            if image is None
            else "Give one of them.",
        )
    if not all(adapter.fits(pipeline.unet) for adapter in adapters):
        raise InputError(
            "E-IP-ADAPTER-FIT",
            "The loaded IP-Adapter does not fit the pipeline's network.",
            "The network was exchanged after loading.",
            "Load the adapter again.",
        )
    pictures = halves = None
    if image is not None:
        _check_has_encoder(pipeline)
        for adapter in adapters:
            _check_encoder(adapter, pipeline.image_encoder)
        groups = rows(image, len(adapters), batch)
        counts = [len(of_one[0]) for of_one in groups]
        pictures = [[_prepared(pipeline, row) for row in of_one] for of_one in groups]
    else:
        tensors = embeds if isinstance(embeds, list | tuple) else [embeds]
        if len(tensors) != len(adapters):
            raise InputError(
                "E-IP-ADAPTER-EMBEDS",
                f"ip_adapter_image_embeds has {len(tensors)} tensors for {len(adapters)} adapters.",
                "",
                "Give a list with one tensor for each adapter.",
            )
        pairs = enumerate(zip(adapters, tensors, strict=True))
        halves = [split_embeds(adapter, tensor, guided, batch, i) for i, (adapter, tensor) in pairs]
        counts = [positive.shape[1] for positive, _ in halves]
    return Asked(pictures, halves, check_masks(masks, counts, scales))


def note_masks(pipeline: Any, asked: Asked | None, height: int, width: int) -> None:
    """Say (W-IP-ADAPTER-MASK) that a mask is not of the clip's shape."""
    for mask in asked.masks if asked else ():
        if mask is not None and is_stretched(mask, height, width):
            shapes = f"A mask of {mask.shape[2]} x {mask.shape[1]} is stretched to a clip of {width} x {height}"
            pipeline._say("W-IP-ADAPTER-MASK", f"{shapes}; give it the clip's aspect.", 5)


def embedded(pipeline: Any, asked: Asked | None, guided: bool) -> tuple[PicturePrompt, ...]:
    """What a call shows the adapters, as they read it."""
    if asked is None:
        return ()
    adapters, scales, _ = pipeline._ip_adapters
    halves = _halves(pipeline, asked, guided)
    parts = zip(adapters, scales, halves, asked.masks, strict=True)
    return tuple(PicturePrompt(adapter, scale, *half, mask) for adapter, scale, half, mask in parts)


def _halves(pipeline: Any, asked: Asked, guided: bool) -> list[tuple[Tensor, Tensor | None]]:
    """Positive and negative embeddings for each adapter, `k n e` or `k n l e`."""
    if asked.pictures is None:
        assert asked.embeds is not None
        return asked.embeds
    found = []
    for adapter, rows in zip(pipeline._ip_adapters.adapters, asked.pictures, strict=True):
        halves = encode_image(pipeline, [picture for row in rows for picture in row], None, 1, adapter.reads_positions)
        positive, negative = (half.unflatten(0, (len(rows), -1)) for half in halves)
        found.append((positive, negative if guided else None))
    return found


def rows(image: Any, num_adapters: int, batch: int | None) -> list[list[list[Any]]]:
    """The pictures of a call in rows for each adapter: one row for all prompts, or one for each, all of one length.

    Args:
        image: as diffusers reads it, a list with an entry for each adapter: a picture, or a list of pictures that
            every prompt sees together. Beyond that an entry may be a list of such lists, one for each prompt; and
            with one adapter ``[a, b]`` is short for ``[[[a], [b]]]``. A single entry needs no list around it.
        num_adapters: how many are loaded.
        batch: number of prompts; None admits any number of rows.

    Raises:
        InputError: E-IP-ADAPTER-IMAGES for another number of entries, rows or pictures.
    """
    entries = list(image) if isinstance(image, list | tuple) else [image]
    if num_adapters == 1 and len(entries) > 1:
        entries = [[list(entry) if isinstance(entry, list | tuple) else [entry] for entry in entries]]
    if len(entries) != num_adapters:
        raise _bad_pictures(f"ip_adapter_image has {len(entries)} entries for {num_adapters} adapters.")
    groups = [_rows_of_one(entry) for entry in entries]
    for group in groups:
        lengths = {len(row) for row in group}
        if not group or len(lengths) != 1 or 0 in lengths:
            raise _bad_pictures(f"An adapter gets rows of {sorted(lengths) or 'no'} pictures.")
        if batch is not None and len(group) not in (1, batch):
            raise _bad_pictures(f"An adapter gets {len(group)} rows of pictures for {batch} prompts.")
    return groups


def _rows_of_one(entry: Any) -> list[list[Any]]:
    """One adapter's rows: a picture, a list of pictures that every prompt sees together, or a list of such lists."""
    if isinstance(entry, list | tuple) and any(isinstance(part, list | tuple) for part in entry):
        return [_split(row if isinstance(row, list | tuple) else [row]) for row in entry]
    return [_split(entry if isinstance(entry, list | tuple) else [entry])]


def _split(pictures: Sequence[Any]) -> list[Any]:
    """Single pictures; arrays and tensors with a batch axis are taken apart."""
    return [one for item in pictures for one in (list(item) if getattr(item, "ndim", 0) == 4 else [item])]


def _prepared(pipeline: Any, image: Any) -> list[Tensor]:
    """Every picture as CLIP reads it; tensors are so already."""
    found = []
    for one in _split(image if isinstance(image, list | tuple) else [image]):
        if not isinstance(one, Tensor):
            one = pipeline.feature_extractor(read_still(one).image, return_tensors="pt").pixel_values[0]
        check_prepared(one, pipeline.image_encoder)
        found.append(one)
    return found


def _check_has_encoder(pipeline: Any) -> None:
    if pipeline.image_encoder is None or pipeline.feature_extractor is None:
        raise InputError(
            "E-IP-ADAPTER-ENCODER",
            "A picture has to be embedded, and this pipeline has no image encoder.",
            "",
            "Load one with the adapter (image_encoder_folder), or give ip_adapter_image_embeds.",
        )


def _none_loaded(name: str) -> InputError:
    return InputError(
        "E-IP-ADAPTER", f"{name} needs an IP-Adapter, and none is loaded.", "", "Call load_ip_adapter, or leave it out."
    )


def _bad_pictures(what: str) -> InputError:
    return InputError(
        "E-IP-ADAPTER-IMAGES",
        what,
        "A picture is for all prompts; [a, b] for one adapter is one for each prompt, [[a, b]] both for every prompt.",
        "Give a list with one entry for each adapter.",
    )
