"""One step of ConsisID at its published size, from a repository on disk: same as diffusers, in how much memory.

    python benchmarks/full_width.py FOLDER           writes 22 GB of weights into FOLDER, then measures (20 minutes)
    python benchmarks/full_width.py FOLDER --quick   the same with narrow networks; writes no result

All 6.2 billion parameters of the transformer, T5-XXL's encoder and the video autoencoder lie in FOLDER in bfloat16,
filled by a rule, so that every run has the same. Each measurement is a fresh process that loads the repository, embeds
a prompt, encodes a picture and makes one step on a small latent. Peaks are VmHWM: everything resident, pages of mapped
files included. FOLDER is used again if it is complete.
"""

import argparse
import json
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SIZES = {
    "transformer": {
        "num_attention_heads": 48,
        "in_channels": 32,
        "num_layers": 42,
        "use_learned_positional_embeddings": True,
        "is_train_face": True,
    },
    "t5": {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
    "vae": {"block_out_channels": [128, 256, 256, 512], "layers_per_block": 3},
}
QUICK = {
    "transformer": SIZES["transformer"]
    | {
        **{"num_attention_heads": 3, "num_layers": 4, "text_embed_dim": 64, "LFE_depth": 5, "LFE_id_dim": 40},
        **{"LFE_vit_dim": 32, "LFE_num_heads": 2, "LFE_output_dim": 128, "cross_attn_num_heads": 2},
    },
    "t5": {"d_model": 64, "d_ff": 96, "num_layers": 2, "num_heads": 2},
    "vae": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
}
FRAMES, HEIGHT, WIDTH = 9, 128, 192  # 3 x 16 x 24 latents
BF16 = torch.bfloat16
MODES = ("resident", "component", "layer", "port transformer", "port text encoder")
SENTENCES = ("a person walking along a city street", "a woman smiles at the sea", "an old man reads in the park")
MOST_ERROR = 5e-2
"""Relative RMS between two orders of rounding in bfloat16 over 42 layers."""


# ------------------------------------------------------------------------------------------------- the weights


def rule(key: str, shape: tuple[int, ...]) -> Tensor:
    """The value of a tensor, by its name alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()) + 11)
    r = torch.randn(shape, generator=generator)
    if len(shape) >= 2:
        return r / r[0].numel() ** 0.5
    return 1 + 0.1 * r if key.endswith("weight") else 0.05 * r


def write_weights(folder: Path, module: nn.Module, stem: str, most: int = 4 * 10**9) -> None:
    """Shards of at most `most` bytes and their index; only one shard is in memory."""
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for key, tensor in module.state_dict().items():
        if size + 2 * tensor.numel() > most:
            shards.append([])
            size = 0
        shards[-1].append((key, tuple(tensor.shape)))
        size += 2 * tensor.numel()
    names = [f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_file({key: rule(key, shape).to(BF16) for key, shape in shard}, folder / name)
        print(f"    {name}", flush=True)
    where = {key: name for name, shard in zip(names, shards, strict=True) for key, _ in shard}
    dump(folder / f"{stem}.safetensors.index.json", {"metadata": {}, "weight_map": where})


def dump(path: Path, value: Any) -> None:
    """Write JSON, and the folder for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_repository(folder: Path, sizes: dict[str, Any]) -> None:
    """A repository as published: every network in bfloat16, a small sentencepiece model as tokenizer."""
    import sentencepiece
    from transformers import T5Config, T5EncoderModel

    from vivant import AutoencoderKLCogVideoX, CogVideoXDPMScheduler, ConsisIDTransformer3DModel

    rest = {"down_block_types": ["CogVideoXDownBlock3D"] * 4, "up_block_types": ["CogVideoXUpBlock3D"] * 4}
    with torch.device("meta"):
        transformer = ConsisIDTransformer3DModel(**sizes["transformer"])
        vae = AutoencoderKLCogVideoX(**sizes["vae"], **rest, latent_channels=16, scaling_factor=0.7)
        config = T5Config(**sizes["t5"], d_kv=64, vocab_size=32128, feed_forward_proj="gated-gelu")
        config.architectures, config.tie_word_embeddings = ["T5EncoderModel"], False
        encoder = T5EncoderModel(config)
    for name, model in (("transformer", transformer), ("vae", vae)):
        dump(folder / name / "config.json", {"_class_name": type(model).__name__, **model.config})
        write_weights(folder / name, model, "diffusion_pytorch_model")
    dump(folder / "text_encoder" / "config.json", json.loads(config.to_json_string()))
    write_weights(folder / "text_encoder", _without_twin(encoder), "model")
    (folder / "tokenizer").mkdir(exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(folder / "tokenizer" / "spiece"),
        **{"vocab_size": 60, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
        hard_vocab_limit=False,
        minloglevel=2,
    )
    dump(folder / "tokenizer" / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "extra_ids": 100})
    CogVideoXDPMScheduler(
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "ConsisIDPipeline",
        "scheduler": ["diffusers", "CogVideoXDPMScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "ConsisIDTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }
    dump(folder / "model_index.json", index)  # last: its presence says that the rest is complete


def _without_twin(encoder: nn.Module) -> nn.Module:
    """The encoder with its table of words under one name."""
    del encoder.encoder.embed_tokens
    return encoder


# ----------------------------------------------------------------------------------------------- one process


def identity(config: Any) -> tuple[Tensor, list[Tensor]]:
    """A person, by a seed."""
    generator = torch.Generator().manual_seed(5)
    hidden = [torch.randn(1, 577, config.LFE_vit_dim, generator=generator) for _ in range(config.LFE_num_scale)]
    return torch.randn(1, config.LFE_id_dim, generator=generator), hidden


def ours(folder: Path, mode: str) -> dict[str, Any]:
    """The whole pipeline up to its latents; what the network saw and said goes to a file for the comparison."""
    from vivant import ConsisIDPipeline
    from vivant.consisid import generate as module

    start = time.perf_counter()
    pipe = ConsisIDPipeline.from_pretrained(folder, torch_dtype=BF16)
    pipe.set_progress_bar_config(disable=True)
    if mode != "resident":
        (pipe.enable_model_cpu_offload if mode == "component" else pipe.enable_sequential_cpu_offload)(device="cpu")
    seconds = {"load": time.perf_counter() - start}
    seen: dict[str, Tensor] = {}
    predict = module.predict

    def recorded(transformer: Any, known: Any, state: Any, t: Any) -> Tensor:
        begun = time.perf_counter()
        seen["out"] = predict(transformer, known, state, t)
        seconds["step"] = time.perf_counter() - begun
        seen["x"] = torch.cat([state.x.to(BF16), state.conditioning.picture], dim=2)
        seen["text"] = state.conditioning.prompts.positive
        seen["t"] = torch.tensor([t.t], dtype=torch.float32)
        return seen["out"]

    module.predict = recorded
    id_cond, id_vit_hidden = identity(pipe.transformer.config)
    start = time.perf_counter()
    pipe(
        image=torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(6)),
        prompt=SENTENCES[0],
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=1,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(7),
        id_cond=id_cond,
        id_vit_hidden=id_vit_hidden,
        output_type="latent",
    )
    seconds["call"] = time.perf_counter() - start
    save_file({k: v.contiguous() for k, v in seen.items()}, folder / f"seen-{mode}.safetensors")
    return {"seconds": seconds, "peak": harness.peak_now()}


def port_transformer(folder: Path) -> dict[str, Any]:
    """diffusers' transformer on what ours saw."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.models.transformers.consisid_transformer_3d import ConsisIDTransformer3DModel
    from diffusers.pipelines.consisid.pipeline_consisid import get_resize_crop_region_for_grid

    start = time.perf_counter()
    network = ConsisIDTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=BF16).eval()
    seconds = {"load": time.perf_counter() - start}
    seen = load_file(folder / "seen-resident.safetensors")
    c = network.config
    grid = HEIGHT // 16, WIDTH // 16
    corners = get_resize_crop_region_for_grid(grid, c.sample_width // 2, c.sample_height // 2)
    rotary = get_3d_rotary_pos_embed(c.attention_head_dim, corners, grid, seen["x"].shape[1])
    id_cond, id_vit_hidden = identity(c)
    _use_our_table(network, folder)
    start = time.perf_counter()
    with torch.no_grad():
        out = network(
            hidden_states=seen["x"],
            encoder_hidden_states=seen["text"].to(BF16),
            timestep=seen["t"],
            image_rotary_emb=rotary,
            id_cond=id_cond.to(BF16),
            id_vit_hidden=[hidden.to(BF16) for hidden in id_vit_hidden],
        ).sample
    seconds["step"] = time.perf_counter() - start
    save_file({"out": out.float().contiguous()}, folder / "seen-port.safetensors")
    return {"seconds": seconds, "peak": harness.peak_now()}


def _use_our_table(network: Any, folder: Path) -> None:
    """The port refuses other sizes than the trained one with a learned table: it gets the one that ours reads."""
    from vivant.consisid.config import ConsisIDTransformer3DConfig
    from vivant.consisid.positions import fit_table

    fields = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
    c = ConsisIDTransformer3DConfig(**{k: v for k, v in fields.items() if not k.startswith("_")})
    embed = network.patch_embed
    text, video = embed.pos_embedding[0].split(
        [c.max_text_seq_length, len(embed.pos_embedding[0]) - c.max_text_seq_length]
    )
    grid = (FRAMES - 1) // 4 + 1, HEIGHT // 16, WIDTH // 16
    embed.pos_embedding = torch.cat([text, fit_table(video, c.grid, grid, "interpolate")])[None]
    embed.sample_height, embed.sample_width, embed.sample_frames = HEIGHT // 8, WIDTH // 8, FRAMES


def port_text_encoder(folder: Path) -> dict[str, Any]:
    """transformers' encoder as diffusers' pipeline uses it."""
    from transformers import T5EncoderModel

    start = time.perf_counter()
    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=BF16).eval()
    seconds = {"load": time.perf_counter() - start}
    start = time.perf_counter()
    with torch.no_grad():
        encoder(torch.arange(226)[None])
    return {"seconds": seconds | {"call": time.perf_counter() - start}, "peak": harness.peak_now()}


def one(mode: str, folder: Path) -> dict[str, Any]:
    """One measurement, in this process."""
    if mode == "port transformer":
        return port_transformer(folder)
    return port_text_encoder(folder) if mode == "port text encoder" else ours(folder, mode)


# ------------------------------------------------------------------------------------------------------ main


def compared(folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Gates: every residency gives the same bits, and these are the port's within rounding."""
    exact = load_file(folder / "seen-resident.safetensors")["out"]
    for mode in ("component", "layer"):
        error = harness.relative_rms(load_file(folder / f"seen-{mode}.safetensors")["out"], exact)
        yield mode, harness.require(f"{mode} against resident", error, 0.0)
    theirs = load_file(folder / "seen-port.safetensors")["out"]
    yield "port", harness.require("against the port", harness.relative_rms(exact, theirs), MOST_ERROR)


def main() -> None:
    """Write the repository if it is not there, measure, and write `results/full_width.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="narrow networks; no result is written")
    parser.add_argument("--one", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        write_repository(given.folder, QUICK if given.quick else SIZES)
        return
    if given.one:
        print(json.dumps(one(given.one, given.folder)))
        return
    if not (given.folder / "model_index.json").is_file():
        print("writing the repository", flush=True)
        size = ["--quick"] if given.quick else []
        subprocess.run([sys.executable, __file__, str(given.folder), "--write", *size], check=True)
    measured = {}
    for mode in MODES:
        measured[mode] = harness.in_fresh_process(__file__, [str(given.folder), "--one", mode])
        times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in measured[mode]["seconds"].items())
        print(f"{mode}: peak {measured[mode]['peak'] / 1e9:.2f} GB; {times}", flush=True)
    gates = dict(compared(given.folder))
    if not given.quick:
        harness.save("full_width", {"machine": harness.machine(), "gates": gates, "measured": measured})


if __name__ == "__main__":
    main()
