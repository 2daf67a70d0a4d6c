"""What a file of weights is, by its tensors' names and shapes alone: never by its own name, nor by what it says.

The rules are rows of a table, tried in order; each knows the marks of one layout. Names and shapes were read off the
published files (`tests/golden/*.json`) and off the code that writes the others.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vivant.errors import LoadError
from vivant.hub.header import Header

What = Literal[
    "model",
    "unet",
    "transformer",
    "vae",
    "text encoder",
    "motion module",
    "LoRA",
    "textual inversion",
    "IP-Adapter",
    "ControlNet",
    "unknown file",
]
Family = Literal[
    "Stable Diffusion 1.5",
    "Stable Diffusion 1.5 inpainting",
    "InstructPix2Pix",
    "Stable Diffusion 2",
    "Stable Diffusion XL",
    "Stable Diffusion 3",
    "Flux",
    "CogVideoX",
    "ConsisID",
    "unknown",
]
SD15: Family = "Stable Diffusion 1.5"


@dataclass(frozen=True)
class Kind:
    """What a file is.

    Attributes:
        what: its part in a pipeline.
        family: the models that it belongs to.
        layout: who lays files out like this.
    """

    what: What
    family: Family
    layout: str = ""

    def __str__(self) -> str:
        written = f", as {self.layout} writes it" if self.layout else ""
        if self.what == "unknown file":
            return "a file of unknown content"
        article = "an" if self.what[0] in "AEIOUaeio" else "a"
        family = "an unknown family" if self.family == "unknown" else self.family
        return f"{article} {self.what} of {family}{written}"


UNKNOWN = Kind("unknown file", "unknown")
Rule = Callable[[Header], Kind | None]


def identify(header: Header) -> Kind:
    """What a file is, by its header."""
    return next((kind for rule in RULES if (kind := rule(header)) is not None), UNKNOWN)


def refuse(path: Path, kind: Kind, wanted: Iterable[What], families: Iterable[Family] = (SD15,)) -> None:
    """Refuse a file that is something else, or of another family, than what can be read here.

    Args:
        path: the file.
        kind: what `identify` says of it.
        wanted: what it may be. A file of unknown content passes: whoever reads it says what it lacks.
        families: of which families; unknown ones pass.

    Raises:
        LoadError: E-FILE-KIND or E-FILE-FAMILY.
    """
    wanted, families = tuple(wanted), tuple(families)
    if kind.family not in (*families, "unknown"):
        raise LoadError(
            "E-FILE-FAMILY",
            f"{path} is {kind}.",
            f"Only files of {' or '.join(families)} can be used here.",
            "Choose a file that was made for that family.",
        )
    if kind.what not in (*wanted, "unknown file"):
        raise LoadError("E-FILE-KIND", f"{path} is {kind}.", f"Here is wanted: {' or '.join(wanted)}.", _where(kind))


def _where(kind: Kind) -> str:
    verbs = {
        "model": "from_single_file",
        "LoRA": "load_lora_weights",
        "textual inversion": "load_textual_inversion",
        "IP-Adapter": "load_ip_adapter",
        "vae": "AutoencoderKL.from_single_file",
        "motion module": "MotionAdapter.from_single_file",
    }
    return f"Load it with {verbs[kind.what]}." if kind.what in verbs else ""


_WIDTHS: Mapping[int, Family] = {
    768: SD15,
    1024: "Stable Diffusion 2",
    1280: "Stable Diffusion XL",
    2048: "Stable Diffusion XL",
}
_INPUTS: Mapping[int, Family] = {8: "InstructPix2Pix", 9: "Stable Diffusion 1.5 inpainting"}


def _by_width(width: int) -> Family:
    """The family by the width of the text that a layer reads."""
    return _WIDTHS.get(width, "unknown")


def _last(header: Header, *patterns: str) -> int:
    """The last axis of the first tensor that fits one of the patterns; 0 where none does."""
    for pattern in patterns:
        found = next((header.shape(name) for name in header.tensors if re.search(pattern, name)), ())
        if found:
            return found[-1]
    return 0


def _any(header: Header, pattern: str) -> bool:
    return any(re.search(pattern, name) for name in header.tensors)


_TEXT_KEYS = r"attn2[._]to_k"
"""The layer whose width tells the family, in every layout of names."""


def _lora(header: Header) -> Kind | None:
    layouts = {
        "LyCORIS": r"\.(hada_w1_[ab]|lokr_w[12](_[ab])?)$",
        "AnimateDiff": r"motion_modules\.\d+\.temporal_transformer.*lora",
        "kohya": r"^lora_\w+\.lora_(up|down)\.weight$",
        "peft": r"\.lora_(A|B)(\.\w+)?\.weight$",
        "diffusers": r"(to_[qkv]|to_out)_lora\.(up|down)\.weight$|\.lora\.(up|down)\.weight$|lora_linear_layer",
        "other programs": r"\.lora_(up|down)\.weight$",
    }
    layout = next((name for name, pattern in layouts.items() if _any(header, pattern)), None)
    if layout is None:
        return None
    if _any(header, r"double_blocks|single_transformer_blocks"):
        return Kind("LoRA", "Flux", layout)
    if _any(header, r"joint_blocks|(^|\.)transformer_blocks\.\d+\.attn\.add_k_proj"):
        return Kind("LoRA", "Stable Diffusion 3", layout)
    if _any(header, r"lora_te2|text_encoder_2|lora_unet_label_emb"):
        return Kind("LoRA", "Stable Diffusion XL", layout)
    if _any(header, r"^(transformer\.|base_model\.model\.)?(transformer\.)?transformer_blocks\.\d+\.attn1\."):
        return Kind("LoRA", "CogVideoX", layout)
    # The width of the text is the last axis of the half that reads it; of that alone.
    width = _last(header, rf"{_TEXT_KEYS}.*(lora[._]?(down|A)|\.hada_w1_b|down\.weight)")
    return Kind("LoRA", _by_width(width), layout)


def _ip_adapter(header: Header) -> Kind | None:
    if not _any(header, r"^ip_adapter\.\d+\.to_k_ip\.weight$"):
        return None
    width = _last(header, r"^ip_adapter\.1\.to_k_ip\.weight$")
    # The first attention of XL's UNet has 640 channels, that of 1.5 has 320.
    wide = header.shape("ip_adapter.1.to_k_ip.weight")[:1] == (640,)
    return Kind("IP-Adapter", "Stable Diffusion XL" if wide else _by_width(width), "the original")


def _inversion(header: Header) -> Kind | None:
    names = set(header.tensors)
    if "clip_g" in names:
        return Kind("textual inversion", "Stable Diffusion XL")
    stored = [name for name in names if name == "emb_params" or name.startswith("string_to_param.")]
    if not stored and len(names) <= 2 and all(len(header.shape(name)) <= 2 for name in names):
        stored = [name for name in names if header.shape(name)[-1:] in ((768,), (1024,), (1280,))]
    return Kind("textual inversion", _by_width(header.shape(stored[0])[-1])) if stored else None


def _motion(header: Header) -> Kind | None:
    if _any(header, r"(^|\.)down_blocks\.0\.motion_modules\.0\.temporal_transformer\."):
        layout = "AnimateDiff"
    elif _any(header, r"(^|\.)down_blocks\.0\.motion_modules\.0\."):
        layout = "diffusers"
    else:
        return None
    if _any(header, r"(^|\.)down_blocks\.0\.resnets\."):
        return Kind("unet", _by_width(_last(header, _TEXT_KEYS)), f"{layout}, with motion")
    stages = [_last(header, rf"(^|\.)down_blocks\.{i}\.motion_modules\.0\..*proj_in\.weight$") for i in range(4)]
    family: Family = SD15 if stages == [320, 640, 1280, 1280] else "unknown"
    return Kind("motion module", "Stable Diffusion XL" if stages == [320, 640, 1280, 0] else family, layout)


def _original(header: Header) -> Kind | None:
    """Whole models as their authors and Civitai's users write them."""
    prefix = "model.diffusion_model."
    first = header.shape(f"{prefix}input_blocks.0.0.weight") or header.shape("input_blocks.0.0.weight")
    if not first:
        if _any(header, r"(^|\.)double_blocks\.\d+\.img_attn\."):
            return Kind("model", "Flux", "the original")
        if _any(header, r"(^|\.)joint_blocks\.\d+\."):
            return Kind("model", "Stable Diffusion 3", "the original")
        return None
    what = "model" if header.shape(f"{prefix}input_blocks.0.0.weight") else "unet"
    layout = "the original"
    if _any(header, r"(^|\.)label_emb\.|^conditioner\.embedders\."):
        return Kind(what, "Stable Diffusion XL", layout)
    width = _last(header, r"input_blocks\.\d+\.1\.transformer_blocks\.0\.attn2\.to_k\.weight")
    if _any(header, r"^cond_stage_model\.model\.transformer\.") or _by_width(width) == "Stable Diffusion 2":
        return Kind(what, "Stable Diffusion 2", layout)
    return Kind(what, _INPUTS.get(first[1], _by_width(width)), layout)


def _diffusers(header: Header) -> Kind | None:
    """Networks as diffusers names their tensors."""
    if _any(header, r"^local_facial_extractor\."):
        return Kind("transformer", "ConsisID", "diffusers")
    if _any(header, r"^controlnet_(cond_embedding|down_blocks)\.|^control_model\."):
        return Kind("ControlNet", _by_width(_last(header, _TEXT_KEYS)), "")
    if _any(header, r"^(x_embedder|context_embedder)\."):
        flux = _any(header, r"^single_transformer_blocks\.")
        return Kind("transformer", "Flux" if flux else "Stable Diffusion 3", "diffusers")
    if _any(header, r"^transformer_blocks\.0\.attn1\.to_q\.weight$"):
        return Kind("transformer", "CogVideoX", "diffusers")
    if not header.shape("time_embedding.linear_1.weight") or not header.shape("conv_in.weight"):
        return None
    if _any(header, r"^add_embedding\."):
        return Kind("unet", "Stable Diffusion XL", "diffusers")
    family = _by_width(_last(header, rf"{_TEXT_KEYS}\.weight"))
    return Kind("unet", _INPUTS.get(header.shape("conv_in.weight")[1], family), "diffusers")


def _autoencoder(header: Header) -> Kind | None:
    if _any(header, r"^encoder\.down_blocks\.0\.resnets\.0\.conv1\.conv\.weight$"):
        return Kind("vae", "CogVideoX", "diffusers")
    for prefix in ("", "first_stage_model."):
        for mark, layout in (("down.0.block.0", "the original"), ("down_blocks.0.resnets.0", "diffusers")):
            if header.shape(f"{prefix}encoder.{mark}.conv1.weight"):
                latent = header.shape(f"{prefix}decoder.conv_in.weight")[1:2]
                return Kind("vae", "Flux" if latent == (16,) else SD15 if latent == (4,) else "unknown", layout)
    return None


def _text_encoder(header: Header) -> Kind | None:
    name = r"(^|\.)embeddings\.token_embedding\.weight$"
    return Kind("text encoder", _by_width(_last(header, name)), "transformers") if _any(header, name) else None


RULES: tuple[Rule, ...] = (
    _ip_adapter,
    _lora,
    _original,
    _motion,
    _diffusers,
    _autoencoder,
    _text_encoder,
    _inversion,
)
"""In this order: some IP-Adapters hold LoRA, a changed layer has the layer's name, a whole model those of its parts."""
