"""Motion modules as AnimateDiff and PIA publish them: `mm_sd_v15.ckpt`, `v3_sd15_mm.ckpt`, `pia.ckpt` and others.

Source: the code of guoyww/AnimateDiff (`motion_module.py`) and `pia_ckpt_original.json` of the tests. All versions have
one layout: v1 has 24 positions and later ones 32, v2 a motion module in the middle block too, and `pia.ckpt` an input
convolution of nine channels beside the modules.
"""

import re
from collections.abc import Mapping
from typing import Any

from vivant.hub.header import Header
from vivant.hub.keymaps import Keymap, Row

LAYOUT = "AnimateDiff"
PREFIXES = ("", "module.", "unet.", "module.unet.")
"""What the names begin with; the longer ones come of how a training wrapped its network."""
_POSITIONS = "attention_blocks.0.pos_encoder."


def motion(config: Mapping[str, Any] | None = None, prefix: str = "") -> Keymap:
    """The names of a `MotionAdapter`, whatever its configuration.

    Both attentions of a block carry the same table of positions there.
    """
    rows = (
        Row(r"(motion_modules\.\d+)\.", r"\1.temporal_transformer."),
        Row(r"\.pos_embed\.", f".{_POSITIONS}"),
        Row(r"\.attn1\.", ".attention_blocks.0."),
        Row(r"\.attn2\.", ".attention_blocks.1."),
        Row(r"\.norm1\.", ".norms.0."),
        Row(r"\.norm2\.", ".norms.1."),
        Row(r"\.norm3\.", ".ff_norm."),
        Row(r"^", prefix),
    )
    twins = (Row(re.escape(_POSITIONS), _POSITIONS.replace("0", "1")),)
    return Keymap(LAYOUT, rows, drop=(r".*animatediff_config.*", r"(epoch|global_step)"), twins=twins)


def read_config(header: Header, prefix: str = "") -> dict[str, Any]:
    """The fields of `MotionAdapterConfig` that the shapes of a file tell; heads and groups they do not.

    Args:
        header: of a file of motion modules, in this layout or that of diffusers.
        prefix: what its names begin with.
    """
    down: dict[int, set[int]] = {}
    depth: dict[str, int] = {}
    channels: dict[int, int] = {}
    pattern = re.compile(
        rf"{re.escape(prefix)}(down_blocks\.(\d+)|up_blocks\.\d+|mid_block)\.motion_modules\.(\d+)(?:\.temporal_transformer)?\."
        r"(?:proj_in\.weight|transformer_blocks\.(\d+)\.\S+)"
    )
    num_positions = 0
    for name, stored in header.tensors.items():
        match = pattern.fullmatch(name)
        if match is None:
            continue
        block, stage, module, layer = match.groups()
        if layer is not None:
            depth[block] = max(depth.get(block, 0), int(layer) + 1)
            if name.endswith(".pe") and len(stored.shape) == 3:
                num_positions = max(num_positions, stored.shape[1])
        if stage is not None:
            down.setdefault(int(stage), set()).add(int(module))
            if layer is None and stored.shape:
                channels[int(stage)] = stored.shape[0]
    stages = sorted(down)
    first = header.shape(f"{prefix}conv_in.weight")
    return {
        "block_out_channels": [channels.get(stage, 0) for stage in stages],
        "motion_layers_per_block": _one([len(down[stage]) for stage in stages]),
        "motion_transformer_layers_per_block": _one([depth.get(f"down_blocks.{stage}", 1) for stage in stages]),
        "motion_transformer_layers_per_mid_block": depth.get("mid_block", 1),
        "motion_max_seq_length": num_positions or 32,
        "use_motion_mid_block": "mid_block" in depth,
        "conv_in_channels": first[1] if len(first) == 4 else None,
    }


def _one(values: list[int]) -> int | list[int]:
    """One number where all are equal, as published configurations have it."""
    return values[0] if len(set(values)) == 1 else values
