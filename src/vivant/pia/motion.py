"""Motion modules: attention over the frames of a clip at every position, and the adapter that carries them.

Source: AnimateDiff (arXiv 2307.04725) and PIA (arXiv 2312.13964); names and shapes as in
openmmlab/PIA-condition-adapter.
"""

import math
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vivant.errors import InputError
from vivant.hub.model import Model
from vivant.hub.single_file import MOTION
from vivant.pia.config import MotionAdapterConfig, per_block
from vivant.pia.layers import Attention, FeedForward, normalise


def sinusoids(num_positions: int, num_channels: int) -> Float[Tensor, "1 f c"]:
    """Position table of arXiv 1706.03762, section 3.5: sines on even channels, cosines on odd ones."""
    position = torch.arange(num_positions)[:, None]
    rates = torch.exp(torch.arange(0, num_channels, 2) * (-math.log(10000.0) / num_channels))
    table = torch.zeros(1, num_positions, num_channels)
    table[0, :, 0::2] = torch.sin(position * rates)
    table[0, :, 1::2] = torch.cos(position * rates)
    return table


class Positions(nn.Module):
    """Adds the position of each frame; `pe` stands in published files although it is analytic."""

    pe: Tensor

    def __init__(self, num_positions: int, num_channels: int):
        super().__init__()
        self.register_buffer("pe", sinusoids(num_positions, num_channels))

    def forward(self, x: Float[Tensor, "n f c"]) -> Float[Tensor, "n f c"]:
        return x + self.pe[:, : x.shape[1]].to(x.dtype)


class MotionBlock(nn.Module):
    """Two self-attentions over the frames, each with positions, then a feed-forward."""

    def __init__(self, num_channels: int, num_heads: int, num_positions: int):
        super().__init__()
        self.pos_embed = Positions(num_positions, num_channels)
        self.norm1 = nn.LayerNorm(num_channels)
        self.attn1 = Attention(num_channels, num_heads)
        self.norm2 = nn.LayerNorm(num_channels)
        self.attn2 = Attention(num_channels, num_heads)
        self.norm3 = nn.LayerNorm(num_channels)
        self.ff = FeedForward(num_channels)

    def forward(self, x: Float[Tensor, "n f c"]) -> Float[Tensor, "n f c"]:
        x = x + self.attn1(self.pos_embed(self.norm1(x)))
        x = x + self.attn2(self.pos_embed(self.norm2(x)))
        return x + self.ff(self.norm3(x))


class MotionModule(nn.Module):
    """Temporal transformer at every position; `over_clip` decides the scope of its normalisation."""

    def __init__(
        self, num_channels: int, num_heads: int, num_layers: int, num_positions: int, num_groups: int, over_clip: bool
    ):
        super().__init__()
        self.over_clip = over_clip
        self.norm = nn.GroupNorm(num_groups, num_channels, eps=1e-6)
        self.proj_in = nn.Linear(num_channels, num_channels)
        blocks = [MotionBlock(num_channels, num_heads, num_positions) for _ in range(num_layers)]
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Linear(num_channels, num_channels)

    def forward(self, x: Float[Tensor, "bf c h w"], num_frames: int) -> Float[Tensor, "bf c h w"]:
        h = normalise(self.norm, x, num_frames if self.over_clip else 1)
        tokens = self.proj_in(rearrange(h, "(b f) c h w -> (b h w) f c", f=num_frames))
        for block in self.transformer_blocks:
            tokens = block(tokens)
        height, width = x.shape[2:]
        tokens = rearrange(self.proj_out(tokens), "(b h w) f c -> (b f) c h w", h=height, w=width)
        return x + tokens


class _Stage(nn.Module):
    """The motion modules of one resolution, under the name that files give them."""

    def __init__(self, modules: list[MotionModule]):
        super().__init__()
        self.motion_modules = nn.ModuleList(modules)


class MotionAdapter(Model):
    """The motion modules of a UNet and, for PIA, its input convolution. It holds tensors; the UNet computes."""

    Config = MotionAdapterConfig
    settings: MotionAdapterConfig
    part = MOTION

    def __init__(self, **config: Any):
        super().__init__(**config)
        s = self.settings
        num_blocks = len(s.block_out_channels)
        heads = per_block(s.motion_num_attention_heads, num_blocks, "motion_num_attention_heads")
        counts = per_block(s.motion_layers_per_block, num_blocks, "motion_layers_per_block")
        depths = per_block(s.motion_transformer_layers_per_block, num_blocks, "motion_transformer_layers_per_block")

        def stage(i: int, num: int, depth: int) -> _Stage:
            shape = (s.block_out_channels[i], heads[i], depth, s.motion_max_seq_length, s.motion_norm_num_groups)
            return _Stage([MotionModule(*shape, over_clip=False) for _ in range(num)])

        if s.conv_in_channels:
            self.conv_in = nn.Conv2d(s.conv_in_channels, s.block_out_channels[0], 3, padding=1)
        order = range(num_blocks)
        self.down_blocks = nn.ModuleList([stage(i, counts[i], depths[i]) for i in order])
        self.up_blocks = nn.ModuleList([stage(i, counts[i] + 1, depths[i]) for i in reversed(order)])
        if s.use_motion_mid_block:
            self.mid_block = stage(num_blocks - 1, 1, s.motion_transformer_layers_per_mid_block)

    def published_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Files without position tables get them: they are analytic."""
        tables = {k: v for k, v in self.state_dict().items() if k.endswith("pos_embed.pe") and k not in state}
        return {**state, **{k: sinusoids(v.shape[1], v.shape[2]) for k, v in tables.items()}}

    def unet_fields(self) -> dict[str, Any]:
        """The fields of a UNetMotionModel configuration that this adapter decides."""
        s = self.settings
        chosen = {
            "motion_num_attention_heads": s.motion_num_attention_heads,
            "motion_max_seq_length": s.motion_max_seq_length,
            "use_motion_mid_block": s.use_motion_mid_block,
            "temporal_transformer_layers_per_mid_block": s.motion_transformer_layers_per_mid_block,
            "temporal_transformer_layers_per_block": s.motion_transformer_layers_per_block,
        }
        return {**chosen, "in_channels": s.conv_in_channels} if s.conv_in_channels else chosen

    def check_fits(self, unet_config: Any) -> None:
        """Refuse a base that this adapter was not trained on, see `check_adapter_fits`."""
        check_adapter_fits(self.settings, unet_config)


def check_adapter_fits(adapter: MotionAdapterConfig, unet_config: Any) -> None:
    """Refuse a base whose resolutions, layers or groups are not those that an adapter was trained on.

    Raises:
        InputError: E-ADAPTER-FIT naming the field that differs.
    """
    num_blocks = len(adapter.block_out_channels)
    ours = {
        "block_out_channels": adapter.block_out_channels,
        "layers_per_block": per_block(adapter.motion_layers_per_block, num_blocks, "motion_layers_per_block"),
        "norm_num_groups": adapter.motion_norm_num_groups,
    }
    base = {name: getattr(unet_config, name) for name in ours}
    if isinstance(base["layers_per_block"], int):
        base["layers_per_block"] = (base["layers_per_block"],) * len(unet_config.block_out_channels)
    for name, value in ours.items():
        if base[name] != value:
            raise InputError(
                "E-ADAPTER-FIT",
                f"The motion adapter does not fit this base model: {name} is {value} in the adapter "
                f"and {base[name]} in the base.",
                "Motion modules work on the model family that they were trained on.",
                "Use a Stable Diffusion 1.5 base with a Stable Diffusion 1.5 adapter.",
            )
