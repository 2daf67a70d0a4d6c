"""Single files of small models, written by rules of their own: how CompVis' and AnimateDiff's programs build networks.

The names follow from walking a network in the order in which those programs append its layers, not from tables.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import tiny
import tiny_repo

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."

DEEP = {
    **tiny.UNET2D,
    "block_out_channels": [8, 16, 24],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
}
"""Other numbers of stages and layers than `tiny.UNET2D`."""

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_modules(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Modules of a UNet here and there, in the order of `openaimodel.py`: one number for every appended block."""
    stages, layers = len(config["block_out_channels"]), config["layers_per_block"]
    yield "time_embedding.linear_1", "time_embed.0"
    yield "time_embedding.linear_2", "time_embed.2"
    blocks: list[list[str]] = [["conv_in"]]
    for i in range(stages):
        for j in range(layers):
            attends = config["down_block_types"][i].startswith("Cross")
            blocks.append([f"down_blocks.{i}.resnets.{j}", *([f"down_blocks.{i}.attentions.{j}"] if attends else [])])
        if i < stages - 1:
            blocks.append([f"down_blocks.{i}.downsamplers.0.conv"])
    for number, block in enumerate(blocks):
        for place, module in enumerate(block):
            yield module, f"input_blocks.{number}.{place}{'.op' if 'downsamplers' in module else ''}"
    for place, module in enumerate(("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")):
        yield module, f"middle_block.{place}"
    blocks = []
    for i in range(stages):
        for j in range(layers + 1):
            attends = config["up_block_types"][i].startswith("Cross")
            block = [f"up_blocks.{i}.resnets.{j}", *([f"up_blocks.{i}.attentions.{j}"] if attends else [])]
            if j == layers and i < stages - 1:
                block.append(f"up_blocks.{i}.upsamplers.0")
            blocks.append(block)
    for number, block in enumerate(blocks):
        for place, module in enumerate(block):
            yield module, f"output_blocks.{number}.{place}"
    yield "conv_norm_out", "out.0"
    yield "conv_out", "out.2"


def unet(state: Mapping[str, Tensor], config: Mapping[str, Any], prefix: str = UNET) -> dict[str, Tensor]:
    """A UNet's tensors as such a file has them."""
    result = {}
    for ours, theirs in unet_modules(config):
        for name, value in state.items():
            if name.startswith(f"{ours}."):
                rest = name[len(ours) + 1 :]
                if ".resnets." in ours:
                    module, _, kind = rest.rpartition(".")
                    rest = f"{_RESNET[module]}.{kind}"
                result[f"{prefix}{theirs}.{rest}"] = value
    assert len(result) == len(state)
    return result


def vae(state: Mapping[str, Tensor], prefix: str = VAE) -> dict[str, Tensor]:
    """An autoencoder's tensors as such a file has them; the attention's linear layers are 1x1 convolutions."""
    num_stages = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.down_blocks."))
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    result = {}
    for name, value in state.items():
        parts = name.split(".")
        if "down_blocks" in name or "up_blocks" in name:
            stage = int(parts[2]) if parts[1] == "down_blocks" else num_stages - 1 - int(parts[2])
            way = "down" if parts[1] == "down_blocks" else "up"
            if parts[3] == "resnets":
                rest = ["block", parts[4], "nin_shortcut" if parts[5] == "conv_shortcut" else parts[5], parts[6]]
            else:
                rest = [f"{way}sample", "conv", parts[6]]
            parts = [parts[0], way, str(stage), *rest]
        elif "mid_block.resnets" in name:
            parts = [parts[0], "mid", f"block_{int(parts[3]) + 1}", *parts[4:]]
        elif "mid_block.attentions" in name:
            parts = [parts[0], "mid", "attn_1", attention[".".join(parts[4:-1])], parts[-1]]
            value = value.reshape(*value.shape, 1, 1) if value.ndim == 2 else value
        elif "conv_norm_out" in name:
            parts[1] = "norm_out"
        result[prefix + ".".join(parts)] = value
    return result


def former_vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder in the names that diffusers had for its attention before 2023."""
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    result = dict(state)
    for name in state:
        for now, then in former.items():
            if f".attentions.0.{now}." in name:
                result[name.replace(now, then)] = result.pop(name)
    return result


def text(state: Mapping[str, Tensor], prefix: str = TEXT) -> dict[str, Tensor]:
    """A text encoder's tensors as such a file has them, with the table of positions."""
    renamed = {prefix + name.removeprefix("text_model."): value for name, value in state.items()}
    return {**renamed, f"{prefix}embeddings.position_ids": torch.arange(77)[None]}


def motion(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Motion modules as AnimateDiff has them: attentions and norms in lists, positions with each attention."""
    inner = {"attn1": "attention_blocks.0", "attn2": "attention_blocks.1", "ff": "ff"}
    inner |= {"norm1": "norms.0", "norm2": "norms.1", "norm3": "ff_norm"}
    result = {}
    for name, value in state.items():
        parts = name.split(".")
        at = parts.index("motion_modules") + 2 if "motion_modules" in parts else None
        if at is None:
            result[prefix + name] = value
            continue
        head, tail = parts[:at], parts[at:]
        if tail[0] == "transformer_blocks" and tail[2] == "pos_embed":
            for i in range(2):
                path = [*head, "temporal_transformer", *tail[:2], f"attention_blocks.{i}.pos_encoder.pe"]
                result[prefix + ".".join(path)] = value.clone()
            continue
        if tail[0] == "transformer_blocks":
            tail = [*tail[:2], inner[tail[2]], *tail[3:]]
        result[prefix + ".".join([*head, "temporal_transformer", *tail])] = value
    return result


def oracle_parts() -> dict[str, Any]:
    """The networks of `tiny_repo.write_base`, by the oracle."""
    import diffusers

    return {
        "unet": tiny.fill(diffusers.UNet2DConditionModel(**tiny_repo.public(tiny.UNET2D))),
        "vae": tiny.fill(diffusers.AutoencoderKL(**tiny_repo.public(tiny.VAE))),
        "text_encoder": tiny_repo.text_encoder(),
    }


def whole(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """A whole model as such a file has it."""
    return {
        **unet(parts["unet"].state_dict(), tiny.UNET2D),
        **vae(parts["vae"].state_dict()),
        **text(parts["text_encoder"].state_dict()),
    }


def write(state: Mapping[str, Tensor], path: Path) -> Path:
    """As safetensors, or by the ending of the name as a pickle, with the table one level down."""
    plain = {name: value.detach().clone().contiguous() for name, value in state.items()}
    if path.suffix == ".safetensors":
        save_file(plain, path)
    else:
        torch.save({"state_dict": plain, "epoch": 3, "global_step": 17}, path)
    return path


def configurations(folder: Path) -> Path:
    """The small files of the repository that `oracle_parts` would make: `config=` of the loaders."""
    import json

    tiny_repo.write_tokenizer(folder / "tokenizer")
    text_config = {**tiny.TEXT, "bos_token_id": tiny_repo.BOS, "eos_token_id": tiny_repo.EOS}
    text_config |= {"pad_token_id": tiny_repo.EOS, "model_type": "clip_text_model"}
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", tiny.SCHEDULER["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    files = {
        "model_index.json": index,
        "unet/config.json": tiny.UNET2D,
        "vae/config.json": tiny.VAE,
        "text_encoder/config.json": text_config,
        "scheduler/scheduler_config.json": tiny.SCHEDULER,
    }
    for name, values in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    return folder
