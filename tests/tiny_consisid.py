"""Small ConsisID parts whose axis sizes are pairwise distinct."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from PIL import Image
from torch import Tensor
from transformers import T5Config, T5EncoderModel

import tiny
from vivant.consisid.transformer import ConsisIDTransformer3DModel
from vivant.pipelines.consisid.pipeline_consisid import ConsisIDPipeline
from vivant.schedulers import CogVideoXDPMScheduler
from vivant.text.t5 import load_tokenizer
from vivant.vae.video import AutoencoderKLCogVideoX

# b2 f3 c8 h6 w10 in latents: 3 x 3 x 5 tokens; text of 7 words and 28 channels; faces of 4 + 3 tokens, 11 patches.
BATCH, FRAMES, CHANNELS, HEIGHT, WIDTH, WORDS, TEXT_DIM, PATCHES = 2, 3, 8, 6, 10, 7, 28, 11

TRANSFORMER = {
    "_class_name": "ConsisIDTransformer3DModel",
    "num_attention_heads": 3,
    "attention_head_dim": 16,
    "in_channels": CHANNELS,
    "out_channels": 4,
    "time_embed_dim": 20,
    "text_embed_dim": TEXT_DIM,
    "num_layers": 4,
    "sample_width": WIDTH,
    "sample_height": HEIGHT,
    "sample_frames": 9,
    "max_text_seq_length": WORDS,
    "use_rotary_positional_embeddings": True,
    "use_learned_positional_embeddings": True,
    "is_train_face": True,
    "cross_attn_interval": 2,
    "cross_attn_dim_head": 10,
    "cross_attn_num_heads": 5,
    "LFE_id_dim": 14,
    "LFE_vit_dim": 18,
    "LFE_depth": 4,
    "LFE_dim_head": 6,
    "LFE_num_heads": 2,
    "LFE_num_id_token": 3,
    "LFE_num_querie": 4,
    "LFE_output_dim": 32,
    "LFE_ff_mult": 2,
    "LFE_num_scale": 2,
    "local_face_scale": 0.8,
}


def latents(batch: int = BATCH, num_frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Latents and their condition."""
    return tiny.noise(batch, num_frames, CHANNELS, height, width, seed=1)


def text(batch: int = BATCH, num_words: int = WORDS) -> Tensor:
    """Encoded prompts."""
    return tiny.noise(batch, num_words, TEXT_DIM, seed=2)


def face(num_people: int = BATCH) -> dict[str, Tensor | list[Tensor]]:
    """Identities, no two of them alike."""
    hidden = [tiny.noise(num_people, PATCHES, 18, seed=4 + i) for i in range(2)]
    return {"id_cond": tiny.noise(num_people, 14, seed=3), "id_vit_hidden": hidden}


def to(values: dict[str, Tensor | list[Tensor]], dtype: torch.dtype) -> dict[str, Tensor | list[Tensor]]:
    """The same in another precision."""
    return {k: [x.to(dtype) for x in v] if isinstance(v, list) else v.to(dtype) for k, v in values.items()}


T5 = {
    "d_model": TEXT_DIM,
    "d_kv": 6,
    "d_ff": 34,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 80,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "relative_attention_num_buckets": 8,
}
VAE = {
    "_class_name": "AutoencoderKLCogVideoX",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["CogVideoXDownBlock3D"] * 4,
    "up_block_types": ["CogVideoXUpBlock3D"] * 4,
    "block_out_channels": [8, 12, 16, 20],
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "temporal_compression_ratio": 4,
    "sample_height": 48,
    "sample_width": 80,
    "scaling_factor": 0.7,
}
SCHEDULER = {
    "_class_name": "CogVideoXDPMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "snr_shift_scale": 1.0,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
}
SENTENCES = ("a person walking along a city street", "a woman smiles at the sea", "an old man reads in the park")


def save_t5_tokenizer(folder: Path) -> None:
    """A tokenizer as published ones are: a sentencepiece model and its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": WORDS, "extra_ids": 5}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def t5_encoder() -> T5EncoderModel:
    """A text encoder by the rule."""
    encoder = tiny.fill(T5EncoderModel(T5Config(**T5)))
    assert isinstance(encoder, T5EncoderModel)
    return encoder


@cache
def text_parts() -> dict[str, Any]:
    """Tokenizer and text encoder, the same objects at every call."""
    folder = Path(tempfile.mkdtemp())
    save_t5_tokenizer(folder)
    return {"tokenizer": load_tokenizer(folder), "text_encoder": t5_encoder()}


@cache
def parts(**changes: Any) -> dict[str, Any]:
    """The networks, likewise, filled by the rule; `changes` are fields of the transformer's configuration."""
    transformer = tiny.fill(ConsisIDTransformer3DModel.from_config({**TRANSFORMER, **changes}))
    return {"vae": tiny.fill(AutoencoderKLCogVideoX.from_config(VAE), seed=12), "transformer": transformer}


def pipeline(compat: str | None = None, scheduler: Any = None, **changes: Any) -> ConsisIDPipeline:
    """A new pipeline around the shared components, quiet."""
    scheduler = scheduler or CogVideoXDPMScheduler.from_config(SCHEDULER)
    pipe = ConsisIDPipeline(**text_parts(), **parts(**changes), scheduler=scheduler, compat=compat)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def asked(**changes: Any) -> dict[str, Any]:
    """Arguments of a short call."""
    image = Image.fromarray((tiny.noise(50, 60, 3, seed=8).sigmoid() * 255).byte().numpy())
    return {
        "image": image,
        "prompt": "a sea",
        "num_frames": 9,
        "num_inference_steps": 3,
        "max_sequence_length": WORDS,
        "generator": torch.Generator().manual_seed(5),
        "output_type": "pt",
        **face(1),
        **changes,
    }
