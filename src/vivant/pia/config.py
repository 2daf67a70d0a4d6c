"""Configurations of PIA's networks: fields equal the published `config.json`; sizes are free, kinds are not."""

from dataclasses import dataclass
from typing import Literal, get_args

from vivant.config import check_groups, only
from vivant.errors import InputError
from vivant.pia.windows import LENGTH, Windows

PerBlock = int | tuple[int, ...]
Numerics = Literal["original", "diffusers"]


def check_numerics(numerics: object) -> None:
    """Refuse (E-NUMERICS) anything but one of the two."""
    if numerics not in get_args(Numerics):
        raise InputError("E-NUMERICS", f"numerics is {numerics!r}.", "", 'Choose "original" or "diffusers".')


def per_block(value: PerBlock, num_blocks: int, name: str) -> tuple[int, ...]:
    """One number for every resolution, from a single number or a list."""
    values = (value,) * num_blocks if isinstance(value, int) else tuple(value)
    if len(values) != num_blocks:
        raise InputError("E-CONFIG-VALUE", f"{name} has {len(values)} entries for {num_blocks} blocks.")
    return values


def default_size(sample_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of latents that a UNet was made for; 64 where its file does not say."""
    return sample_size if isinstance(sample_size, tuple) else (sample_size or 64, sample_size or 64)


def check_frames(num_frames: int, limit: int, windows: Windows | None = None) -> None:
    """Refuse (E-FRAMES-MAX) clips, or windows of them, that are longer than the motion modules' position table."""
    if windows is None and num_frames > limit:
        raise InputError(
            "E-FRAMES-MAX",
            f"{num_frames} frames are more than the {limit} positions of the motion modules.",
            "",
            f"Ask for at most {limit} frames, or for windows of them: windows=Windows({min(LENGTH, limit)}).",
        )
    if windows is not None and min(num_frames, windows.length) > limit:
        raise InputError(
            "E-FRAMES-MAX",
            f"Windows of {windows.length} frames are more than the {limit} positions of the motion modules.",
            "",
            f"Ask for windows of at most {limit} frames.",
        )


@dataclass(frozen=True)
class UNet2DConditionConfig:
    """Stable Diffusion 1.5's UNet. `attention_head_dim` is the *number* of heads: a misnomer of published files."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = only(False)
    flip_sin_to_cos: bool = only(True)
    freq_shift: int = only(0)
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    mid_block_type: str = only("UNetMidBlock2DCrossAttn")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    only_cross_attention: bool = only(False)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: PerBlock = 2
    downsample_padding: int = only(1)
    mid_block_scale_factor: float = only(1, 1.0)
    dropout: float = only(0.0)
    act_fn: str = only("silu", "swish")
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: PerBlock = 1
    attention_head_dim: PerBlock = 8
    num_attention_heads: PerBlock | None = None
    dual_cross_attention: bool = only(False)
    use_linear_projection: bool = False
    class_embed_type: str | None = only(None)
    num_class_embeds: int | None = only(None)
    upcast_attention: bool | None = only(None, False)
    resnet_time_scale_shift: str = only("default")
    resnet_skip_time_act: bool = only(False)
    resnet_out_scale_factor: float = only(1.0, 1)
    time_embedding_type: str = only("positional")
    conv_in_kernel: int = only(3)
    conv_out_kernel: int = only(3)
    attention_type: str = only("default")
    class_embeddings_concat: bool = only(False)
    addition_embed_type: str | None = only(None)
    addition_embed_type_num_heads: int = only(64)
    mid_block_only_cross_attention: bool | None = only(None, False)

    def __post_init__(self):
        _check_blocks(self.down_block_types, ("CrossAttnDownBlock2D", "DownBlock2D"), "down_block_types")
        _check_blocks(self.up_block_types, ("CrossAttnUpBlock2D", "UpBlock2D"), "up_block_types")
        _check_lengths(self.block_out_channels, self.down_block_types, self.up_block_types)
        check_groups("norm_num_groups", self.norm_num_groups, self.block_out_channels)

    @property
    def heads(self) -> tuple[int, ...]:
        """Number of attention heads for every resolution."""
        value = self.attention_head_dim if self.num_attention_heads is None else self.num_attention_heads
        return per_block(value, len(self.block_out_channels), "attention_head_dim")


@dataclass(frozen=True)
class UNetMotionConfig:
    """The UNet with motion modules, as `UNetMotionModel` files carry it."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlockMotion"] * 3, "DownBlockMotion")
    up_block_types: tuple[str, ...] = ("UpBlockMotion", *["CrossAttnUpBlockMotion"] * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: PerBlock = 2
    downsample_padding: int = only(1)
    mid_block_scale_factor: float = only(1, 1.0)
    act_fn: str = only("silu", "swish")
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: PerBlock = 1
    reverse_transformer_layers_per_block: PerBlock | None = only(None)
    temporal_transformer_layers_per_block: PerBlock = 1
    reverse_temporal_transformer_layers_per_block: PerBlock | None = only(None)
    transformer_layers_per_mid_block: int | None = only(None, 1)
    temporal_transformer_layers_per_mid_block: int | None = 1
    use_linear_projection: bool = False
    num_attention_heads: PerBlock = 8
    motion_max_seq_length: int = 32
    motion_num_attention_heads: PerBlock = 8
    reverse_motion_num_attention_heads: PerBlock | None = only(None)
    use_motion_mid_block: bool = True
    mid_block_layers: int = only(1)
    encoder_hid_dim: int | None = only(None)
    encoder_hid_dim_type: str | None = only(None)
    addition_embed_type: str | None = only(None)
    addition_time_embed_dim: int | None = only(None)
    projection_class_embeddings_input_dim: int | None = only(None)
    time_cond_proj_dim: int | None = only(None)

    def __post_init__(self):
        _check_blocks(self.down_block_types, ("CrossAttnDownBlockMotion", "DownBlockMotion"), "down_block_types")
        _check_blocks(self.up_block_types, ("CrossAttnUpBlockMotion", "UpBlockMotion"), "up_block_types")
        _check_lengths(self.block_out_channels, self.down_block_types, self.up_block_types)
        check_groups("norm_num_groups", self.norm_num_groups, self.block_out_channels)

    @property
    def heads(self) -> tuple[int, ...]:
        """Number of attention heads for every resolution."""
        return per_block(self.num_attention_heads, len(self.block_out_channels), "num_attention_heads")


@dataclass(frozen=True)
class MotionAdapterConfig:
    """Motion modules alone, with PIA's input convolution when `conv_in_channels` is set."""

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    motion_layers_per_block: PerBlock = 2
    motion_transformer_layers_per_block: PerBlock = 1
    motion_mid_block_layers_per_block: int = only(1)
    motion_transformer_layers_per_mid_block: int = 1
    motion_num_attention_heads: PerBlock = 8
    motion_norm_num_groups: int = 32
    motion_max_seq_length: int = 32
    use_motion_mid_block: bool = True
    conv_in_channels: int | None = None

    def __post_init__(self):
        check_groups("motion_norm_num_groups", self.motion_norm_num_groups, self.block_out_channels)


def _check_blocks(kinds: tuple[str, ...], allowed: tuple[str, ...], name: str) -> None:
    for kind in kinds:
        if kind not in allowed:
            raise InputError(
                "E-CONFIG-VALUE",
                f"{name} holds {kind!r}, which vivant does not implement.",
                f"Implemented: {', '.join(allowed)}.",
                "Use a checkpoint of the Stable Diffusion 1.5 family.",
            )


def _check_lengths(channels: tuple[int, ...], down: tuple[str, ...], up: tuple[str, ...]) -> None:
    if not len(channels) == len(down) == len(up):
        raise InputError(
            "E-CONFIG-VALUE",
            f"block_out_channels, down_block_types and up_block_types have {len(channels)}, {len(down)} and {len(up)} "
            "entries; they must agree.",
        )
