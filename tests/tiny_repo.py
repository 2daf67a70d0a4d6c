"""Small repositories on disk, shaped like published ones: an SD 1.5 base, a PIA adapter, a hub cache around them.

The networks are written by the oracle, so that what we read was not written by us.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import tiny

BOS, EOS = tiny.TEXT["vocab_size"] - 2, tiny.TEXT["vocab_size"] - 1
COMMIT = "0123456789abcdef0123456789abcdef01234567"
_WORDS = ("cat", "in", "a", "field", "the", "walking", "running", "photo", "of")


def merges() -> list[tuple[str, str]]:
    """Byte-pair merges that build `_WORDS` from the left, each once."""
    pairs: dict[tuple[str, str], None] = {}
    for word in _WORDS:
        left, *rest = [*word[:-1], word[-1] + "</w>"]
        for right in rest:
            pairs[left, right] = None
            left += right
    return list(pairs)


def write_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer over ASCII: `vocab.json`, `merges.txt` and their JSON files; start and end close the table."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1) if not chr(c).isupper()]
    rare = set('"$%&*+/<=>@[\\]^`{|}~#;')
    units = [c for c in letters if c not in rare]
    table = [*units, *(c + "</w>" for c in units), *("".join(pair) for pair in merges())]
    assert len(table) <= BOS, f"{len(table)} tokens do not fit below {BOS}"
    vocab = {token: i for i, token in enumerate(table)}
    vocab |= {"<|startoftext|>": BOS, "<|endoftext|>": EOS}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges())]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = "<|endoftext|>"
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    config = {**special, "model_max_length": 77, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def text_encoder(seed: int = 11) -> Any:
    """A filled CLIPTextModel of transformers: equal values whether or not its names have the prefix `text_model.`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(**tiny.TEXT, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS)
    encoder = CLIPTextModel(config)
    published = {"text_model." + k.removeprefix("text_model."): k for k in encoder.state_dict()}
    state = tiny.filled({name: encoder.state_dict()[key] for name, key in published.items()}, seed)
    encoder.load_state_dict({published[name]: value for name, value in state.items()})
    return encoder.eval()


def public(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without its metadata."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def write_base(folder: Path, variant: str | None = None, scheduler: dict[str, Any] | None = None) -> Path:
    """A repository of StableDiffusionPipeline, with the leftovers that real ones carry.

    Args:
        folder: where to.
        variant: write the weights as this variant, in float16 if it is ``"fp16"``.
        scheduler: replaces the scheduler's configuration.
    """
    import diffusers

    unet = tiny.fill(diffusers.UNet2DConditionModel(**public(tiny.UNET2D)))
    vae = tiny.fill(diffusers.AutoencoderKL(**public(tiny.VAE)))
    encoder = text_encoder()
    if variant == "fp16":
        unet, vae, encoder = unet.half(), vae.half(), encoder.half()
    unet.save_pretrained(folder / "unet", variant=variant)
    vae.save_pretrained(folder / "vae", variant=variant)
    encoder.save_pretrained(folder / "text_encoder", variant=variant)
    write_tokenizer(folder / "tokenizer")
    scheduler = scheduler or tiny.SCHEDULER
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    processor = {"feature_extractor_type": "CLIPFeatureExtractor", "image_processor_type": "CLIPFeatureExtractor"}
    _write_json(folder / "feature_extractor" / "preprocessor_config.json", {**processor, "size": 224})
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / "model_index.json", index)
    return folder


def write_adapter(folder: Path, variant: str | None = None) -> Path:
    """A PIA motion adapter in the diffusers layout."""
    import diffusers

    adapter = tiny.fill(diffusers.MotionAdapter(**public(tiny.ADAPTER)))
    if variant == "fp16":
        adapter = adapter.half()
    adapter.save_pretrained(folder, variant=variant)
    return folder


def into_cache(cache: Path, hub_id: str, repository: Path) -> Path:
    """Place a repository in a hub cache as `hub_id` at its branch main; returns the snapshot folder."""
    root = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    shutil.copytree(repository, snapshot)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    return snapshot


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")
