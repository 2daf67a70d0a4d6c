"""The video autoencoder of CogVideoX, which ConsisID uses (Yang et al., arXiv 2408.06072, section 2.1).

`AutoencoderKLCogVideoX`: eight pixels a side and four frames for one latent, the first frame by itself. Tensor names
equal the published files. A video goes through in chunks of frames, and group normalisation sees one chunk at a time,
so where chunks begin is part of the numbers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vivant.config import check_groups, only
from vivant.errors import InputError
from vivant.hub.model import Model
from vivant.upsample import Upsample
from vivant.vae.causal import CausalConv3d, GroupNorm, Parts, Past, chunks, in_turn, layout
from vivant.vae.posterior import AutoencoderKLOutput, DecoderOutput, DiagonalGaussian
from vivant.vae.tiling import Grid, Tiling, join

ENCODED_AT_ONCE = 8
"""Frames of a chunk when encoding. Another number is another function, not another speed."""
DECODED_AT_ONCE = 2
"""Latent frames of a chunk when decoding."""
EPS = 1e-6


@dataclass(frozen=True)
class AutoencoderKLCogVideoXConfig:
    """Fields equal those of the published `config.json`.

    `scaling_factor` is the inverse standard deviation of the latents of the training set. `sample_height` and
    `sample_width` are those of the training videos in pixels, of which `enable_tiling` takes half. `force_upcast` and
    `invert_scale_latents` are for callers; ConsisID reads neither.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("CogVideoXDownBlock3D",) * 4
    up_block_types: tuple[str, ...] = ("CogVideoXUpBlock3D",) * 4
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    latent_channels: int = 16
    layers_per_block: int = 3
    act_fn: str = only("silu", "swish")
    norm_eps: float = only(EPS)
    norm_num_groups: int = 32
    temporal_compression_ratio: int = 4
    sample_height: int = 480
    sample_width: int = 720
    scaling_factor: float = 1.15258426
    shift_factor: float | None = only(None)
    latents_mean: tuple[float, ...] | None = only(None)
    latents_std: tuple[float, ...] | None = only(None)
    force_upcast: bool = True
    use_quant_conv: bool = only(False)
    use_post_quant_conv: bool = only(False)
    invert_scale_latents: bool = False

    def __post_init__(self):
        kinds = (*self.down_block_types, *self.up_block_types)
        num = len(self.block_out_channels)
        if kinds != ("CogVideoXDownBlock3D",) * num + ("CogVideoXUpBlock3D",) * num:
            raise InputError(
                "E-CONFIG-VALUE",
                f"AutoencoderKLCogVideoX of {num} resolutions has the blocks {', '.join(kinds)}.",
                "Implemented is one CogVideoXDownBlock3D and one CogVideoXUpBlock3D for each entry of "
                "block_out_channels.",
                "Use the checkpoint of ConsisID or CogVideoX.",
            )
        if self.temporal_compression_ratio not in [2**i for i in range(num)]:
            raise InputError(
                "E-CONFIG-VALUE",
                f"AutoencoderKLCogVideoX has temporal_compression_ratio = {self.temporal_compression_ratio!r}.",
                f"With {num} resolutions it is a power of two up to {2 ** (num - 1)}.",
                "Use the checkpoint of ConsisID or CogVideoX.",
            )
        check_groups("norm_num_groups", self.norm_num_groups, self.block_out_channels)

    def halves_time(self, level: int) -> bool:
        """Whether the step from `level`, counted from the side that the data come in, changes the number of frames."""
        return 2**level < self.temporal_compression_ratio


# ------------------------------------------------------------------------------------------------- both halves


def _shortcut(in_channels: int, out_channels: int) -> nn.Conv3d | None:
    return nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else None


def _chain(first: int, rest: int, num: int) -> list[tuple[int, int]]:
    """Channels of `num` residual blocks, of which the first changes their number."""
    return [(first if i == 0 else rest, rest) for i in range(num)]


# ----------------------------------------------------------------------------------------------------- encoder


class ResnetBlock(nn.Module):
    """Two causal convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int):
        super().__init__()
        self.norm1 = GroupNorm(num_groups, in_channels, eps=EPS)
        self.norm2 = GroupNorm(num_groups, out_channels, eps=EPS)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.conv_shortcut = _shortcut(in_channels, out_channels)

    def forward(self, x: Float[Tensor, "b c f h w"], past: Past) -> Float[Tensor, "b d f h w"]:
        h = past.window(self.conv1, x, self.norm1.parts(x))
        h = self.conv1(h)
        h = past.window(self.conv2, h, self.norm2.parts(h))
        h = self.conv2(h)
        return h.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Pairs of frames averaged, a first odd one apart, and a 3x3 convolution of every second pixel."""

    def __init__(self, num_channels: int, halves_time: bool):
        super().__init__()
        self.conv = nn.Conv2d(num_channels, num_channels, 3, stride=2)
        self.halves_time = halves_time

    def forward(self, x: Float[Tensor, "b c k i j"]) -> Float[Tensor, "b c f h w"]:
        b, _, k, _, _ = x.shape
        if self.halves_time and k > 1:
            first = k % 2
            pairs = (x[:, :, first::2] + x[:, :, first + 1 :: 2]) / 2
            x = torch.cat([x[:, :, :first], pairs], dim=2)
        pictures = rearrange(x.contiguous(memory_format=layout(x)), "b c f i j -> (b f) c i j")
        x = rearrange(self.conv(with_edge(pictures)), "(b f) c h w -> b c f h w", b=b)
        return x.contiguous(memory_format=layout(x))


def with_edge(x: Float[Tensor, "n c i j"]) -> Float[Tensor, "n c h w"]:
    """Zeros as a last row and a last column. Unlike F.pad, channels stay last where they are."""
    if torch.is_grad_enabled() or not x.is_contiguous(memory_format=torch.channels_last):
        return F.pad(x, (0, 1, 0, 1))
    n, c, i, j = x.shape
    edged = torch.empty((n, c, i + 1, j + 1), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    edged[:, :, :i, :j] = x
    edged[:, :, i] = 0
    edged[:, :, :, j] = 0
    return edged


class DownBlock(nn.Module):
    """One resolution on the way down: residual blocks, then half the size."""

    def __init__(self, resnets: Iterable[ResnetBlock], downsamplers: Iterable[Downsample]):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.downsamplers = nn.ModuleList(downsamplers)

    def forward(self, x: Float[Tensor, "b c k i j"], past: Past) -> Float[Tensor, "b d f h w"]:
        for resnet in self.resnets:
            x = resnet(x, past)
        for downsampler in self.downsamplers:
            x = downsampler(x)
        return x


class MidBlock(nn.Module):
    """The lowest resolution on the way down."""

    def __init__(self, num_channels: int, num_groups: int):
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(num_channels, num_channels, num_groups) for _ in range(2)])

    def forward(self, x: Float[Tensor, "b c f h w"], past: Past) -> Float[Tensor, "b c f h w"]:
        for resnet in self.resnets:
            x = resnet(x, past)
        return x


class Encoder(nn.Module):
    """A chunk of a video to means and log variances."""

    def __init__(self, config: AutoencoderKLCogVideoXConfig):
        super().__init__()
        channels, groups = config.block_out_channels, config.norm_num_groups
        last = len(channels) - 1
        self.conv_in = CausalConv3d(config.in_channels, channels[0])
        self.down_blocks = nn.ModuleList(
            DownBlock(
                [ResnetBlock(*ends, groups) for ends in _chain(channels[max(i - 1, 0)], num, config.layers_per_block)],
                [Downsample(num, config.halves_time(i))] if i < last else [],
            )
            for i, num in enumerate(channels)
        )
        self.mid_block = MidBlock(channels[-1], groups)
        self.norm_out = GroupNorm(groups, channels[-1], eps=EPS)
        self.conv_out = CausalConv3d(channels[-1], 2 * config.latent_channels)

    def forward(self, x: Float[Tensor, "b c k i j"], past: Past) -> Float[Tensor, "b d f h w"]:
        x = self.conv_in(past.window(self.conv_in, x))
        for block in self.down_blocks:
            x = block(x, past)
        x = self.mid_block(x, past)
        x = past.window(self.conv_out, x, self.norm_out.parts(x))
        return self.conv_out(x)


# ----------------------------------------------------------------------------------------------------- decoder


class Pointwise(nn.Module):
    """A linear layer over the channels, under the name that the published files give it."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b d f h w"]:
        return self.conv(x)


class SpatialNorm(nn.Module):
    """Group normalisation whose scale and shift depend on the latent at the place (MoVQ, arXiv 2209.09002, eq. 4)."""

    def __init__(self, num_channels: int, latent_channels: int, num_groups: int):
        super().__init__()
        self.norm_layer = GroupNorm(num_groups, num_channels, eps=EPS)
        self.conv_y = Pointwise(latent_channels, num_channels)
        self.conv_b = Pointwise(latent_channels, num_channels)

    def parts(self, x: Float[Tensor, "b c f i j"], z: Float[Tensor, "b d k h w"]) -> Parts:
        """`x` normalised, as `GroupNorm.parts`.

        `z` is as small as the latents are: its convolutions commute with repeating pixels and frames. Only rows of
        pixels are repeated in memory, so that the arithmetic has long ones; the rest is broadcast.
        """
        wide = (*z.shape[2:4], x.shape[4])
        scale, shift = (F.interpolate(conv(z), wide, mode="nearest") for conv in (self.conv_y, self.conv_b))

        def guided(channels: slice) -> Tensor:
            normed = self.norm_layer(x, channels)
            for k, frames in enumerate(spread(x.shape[2], z.shape[2])):
                rows = normed[:, :, frames].unflatten(3, (z.shape[3], -1))
                rows.mul_(scale[:, channels, k : k + 1, :, None]).add_(shift[:, channels, k : k + 1, :, None])
            return normed

        yield from ((channels, guided(channels)) for channels in self.norm_layer.split(x))


def spread(num_frames: int, num_latents: int) -> tuple[slice, ...]:
    """The frames that belong to each latent frame of a chunk; of an odd number the first has the first by itself."""
    first = num_frames % 2 if num_frames > 1 else 0
    each = (num_frames - first) // (num_latents - first)
    rest = (slice(start, start + each) for start in range(first, num_frames, each))
    return (*[slice(0, 1)] * first, *rest)


class SpatialResnetBlock(nn.Module):
    """Two causal convolutions beside a shortcut, normalised under the guidance of the latents."""

    def __init__(self, in_channels: int, out_channels: int, latent_channels: int, num_groups: int):
        super().__init__()
        self.norm1 = SpatialNorm(in_channels, latent_channels, num_groups)
        self.norm2 = SpatialNorm(out_channels, latent_channels, num_groups)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.conv_shortcut = _shortcut(in_channels, out_channels)

    def forward(
        self, x: Float[Tensor, "b c f i j"], z: Float[Tensor, "b l k h w"], past: Past
    ) -> Float[Tensor, "b d f i j"]:
        h = past.window(self.conv1, x, self.norm1.parts(x, z))
        h = self.conv1(h)
        h = past.window(self.conv2, h, self.norm2.parts(h, z))
        h = self.conv2(h)
        return h.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))


class SpatialMidBlock(nn.Module):
    """The lowest resolution on the way up."""

    def __init__(self, num_channels: int, latent_channels: int, num_groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(
            [SpatialResnetBlock(num_channels, num_channels, latent_channels, num_groups) for _ in range(2)]
        )

    def forward(
        self, x: Float[Tensor, "b c f h w"], z: Float[Tensor, "b l k h w"], past: Past
    ) -> Float[Tensor, "b c f h w"]:
        for resnet in self.resnets:
            x = resnet(x, z, past)
        return x


class UpBlock(nn.Module):
    """One resolution on the way up: residual blocks, then twice the size and, with `doubles_time`, twice the frames."""

    def __init__(self, resnets: Iterable[SpatialResnetBlock], upsamplers: Iterable[Upsample], doubles_time: bool):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.upsamplers = nn.ModuleList(upsamplers)
        self.doubles_time = doubles_time

    def forward(
        self, x: Float[Tensor, "b c f i j"], z: Float[Tensor, "b l k h w"], past: Past
    ) -> Float[Tensor, "b d g m n"]:
        for resnet in self.resnets:
            x = resnet(x, z, past)
        for upsampler in self.upsamplers:
            x = enlarged(upsampler, x, self.doubles_time)
        return x


def enlarged(upsampler: nn.Module, x: Float[Tensor, "b c f h w"], doubles_time: bool) -> Float[Tensor, "b c g i j"]:
    """Twice the size, and with `doubles_time` twice the frames but for a first odd one.

    The convolution does not reach along the time, so a frame is convolved once and then repeated.
    """
    b, c, f, h, w = x.shape
    num = 2 * f - f % 2 if doubles_time else f
    out = torch.empty((b, c, num, 2 * h, 2 * w), dtype=x.dtype, device=x.device, memory_format=layout(x))
    for k, frames in enumerate(spread(num, f)):
        out[:, :, frames] = upsampler(x[:, :, k]).unsqueeze(2)
    return out


class Decoder(nn.Module):
    """A chunk of latents to frames."""

    def __init__(self, config: AutoencoderKLCogVideoXConfig):
        super().__init__()
        channels, groups, latent = config.block_out_channels[::-1], config.norm_num_groups, config.latent_channels
        last = len(channels) - 1
        self.conv_in = CausalConv3d(latent, channels[0])
        self.mid_block = SpatialMidBlock(channels[0], latent, groups)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                [
                    SpatialResnetBlock(*ends, latent, groups)
                    for ends in _chain(channels[max(i - 1, 0)], num, config.layers_per_block + 1)
                ],
                [Upsample(num)] if i < last else [],
                config.halves_time(i),
            )
            for i, num in enumerate(channels)
        )
        self.norm_out = SpatialNorm(channels[-1], latent, groups)
        self.conv_out = CausalConv3d(channels[-1], config.out_channels)

    def forward(self, z: Float[Tensor, "b c k h w"], past: Past) -> Float[Tensor, "b d f i j"]:
        x = self.conv_in(past.window(self.conv_in, z))
        x = self.mid_block(x, z, past)
        for block in self.up_blocks:
            x = block(x, z, past)
        x = past.window(self.conv_out, x, self.norm_out.parts(x, z))
        return self.conv_out(x)


# ------------------------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class VideoTiling:
    """How videos are cut.

    Attributes:
        rows: tiles along the height.
        columns: tiles along the width.
        is_fitted: take these for a measure only, and cut evenly (`Grid.fitted`).
    """

    rows: Tiling
    columns: Tiling
    is_fitted: bool

    def grids(self, height: int, width: int, factor: int) -> tuple[Grid, Grid] | None:
        """The tiles along both axes for a video of so many pixels; None if one tile holds it."""
        sides = (self.rows, height), (self.columns, width)
        rows, columns = grids = [tiling.grid(factor) for tiling, _ in sides]
        if height <= rows.tile * factor and width <= columns.tile * factor:
            return None
        if self.is_fitted:
            rows, columns = (grid.fitted(side // factor) for grid, (_, side) in zip(grids, sides, strict=True))
        return rows, columns


class AutoencoderKLCogVideoX(Model):
    """Encodes videos in [-1, 1] to a distribution of latents and decodes latents to videos.

    The latents are as the network makes them: callers multiply by `config.scaling_factor` after encoding and divide
    before decoding. With the published `temporal_compression_ratio` of 4, an odd number 2k + 1 of latent frames gives
    8k + 1 frames, as ConsisID has them, and an even number 2k gives 8k.

    Attributes:
        tiling: see `enable_tiling`; None computes every video whole.
    """

    Config = AutoencoderKLCogVideoXConfig
    settings: AutoencoderKLCogVideoXConfig
    use_slicing: bool = False
    tiling: VideoTiling | None = None

    def __init__(self, **fields: Any):
        super().__init__(**fields)
        self.encoder = Encoder(self.settings)
        self.decoder = Decoder(self.settings)

    @property
    def factor(self) -> int:
        """How many pixels a latent is wide and high."""
        return 2 ** (len(self.settings.block_out_channels) - 1)

    # ------------------------------------------------------------------------------------------------ memory

    def enable_slicing(self) -> None:
        """Encode and decode one video at a time."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode all videos of a batch together."""
        self.use_slicing = False

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_overlap_factor_height: float | None = None,
        tile_overlap_factor_width: float | None = None,
    ) -> None:
        """Cut videos that are larger than a tile into overlapping tiles, so that memory does not grow with size.

        Every tile is normalised by itself, so the result is close to the whole video's, not equal.

        Without arguments the tiles are fitted to each video: as few of equal size as there are halves of the
        training size in it, which overlap by at least the sixth (height) and the fifth (width) of such a half. At
        480x720 these are 2x2 tiles of 264x400 pixels. With any argument tiles are laid out as diffusers does, from the
        upper left and cut short at the ends; ``enable_tiling(tile_sample_min_height=240)`` is its default plan,
        3x3 tiles of up to 240x360.

        Args:
            tile_sample_min_height: height of a tile in pixels; half of `config.sample_height` if not given.
            tile_sample_min_width: width of a tile in pixels; half of `config.sample_width` if not given.
            tile_overlap_factor_height: the part of a tile that it shares with the next below, 1/6 if not given.
            tile_overlap_factor_width: the part that it shares with the next to the right, 1/5 if not given.

        Raises:
            InputError: E-TILING when these make no tiles.
        """
        height, width = (
            side // 2 // self.factor * self.factor for side in (self.settings.sample_height, self.settings.sample_width)
        )
        rows = Tiling(
            height if tile_sample_min_height is None else tile_sample_min_height,
            1 / 6 if tile_overlap_factor_height is None else tile_overlap_factor_height,
        )
        columns = Tiling(
            width if tile_sample_min_width is None else tile_sample_min_width,
            1 / 5 if tile_overlap_factor_width is None else tile_overlap_factor_width,
        )
        for tiling in (rows, columns):
            tiling.grid(self.factor)
        given = tile_sample_min_height, tile_sample_min_width, tile_overlap_factor_height, tile_overlap_factor_width
        self.tiling = VideoTiling(rows, columns, is_fitted=all(value is None for value in given))

    def disable_tiling(self) -> None:
        """Compute every video whole."""
        self.tiling = None

    def _samples(self, x: Float[Tensor, "b c f h w"]) -> tuple[Tensor, ...]:
        return x.split(1) if self.use_slicing else (x,)

    # ------------------------------------------------------------------------------------------- computation

    def encode_moments(self, x: Float[Tensor, "b c k i j"]) -> Float[Tensor, "b d f h w"]:
        """Means and log variances of the latents, one after the other along the channels.

        Args:
            x: videos in [-1, 1]. A picture is a video of one frame. Sides that are no multiple of `factor` lose the
                rest.

        Raises:
            InputError: E-LATENTS-SHAPE for another number of axes or channels, no frames, or sides below `factor`.
        """
        check_sample(x, self.settings.in_channels, self.factor)
        return torch.cat([self._encode(video) for video in self._samples(x)])

    def _encode(self, x: Float[Tensor, "b c k i j"]) -> Float[Tensor, "b d f h w"]:
        grids = self.tiling.grids(x.shape[3], x.shape[4], self.factor) if self.tiling else None
        if grids is None:
            return self._encode_whole(x)
        rows, columns = (
            grid.spans(side // self.factor, self.factor) for grid, side in zip(grids, x.shape[3:], strict=True)
        )
        tiles = (self._encode_whole(x[..., i, j]) for i, j in product(rows, columns))
        return join(tiles, len(rows), len(columns), *grids)

    def _encode_whole(self, x: Float[Tensor, "b c k i j"]) -> Float[Tensor, "b d f h w"]:
        return torch.cat(list(_stream(self.encoder, x, ENCODED_AT_ONCE)), dim=2)

    def decode_tensor(self, z: Float[Tensor, "b c k h w"]) -> Float[Tensor, "b d f i j"]:
        """Videos, about in [-1, 1] and not clipped, from latents that are already divided by the scaling factor."""
        return torch.cat(list(self.decode_frames(z)), dim=2)

    def decode_frames(self, z: Float[Tensor, "b c k h w"]) -> Iterator[Float[Tensor, "b d f i j"]]:
        """The frames of `decode_tensor` chunk by chunk, each as soon as it is ready.

        Between two chunks only what the convolutions need of the last one is held; a generator that is given up
        leaves nothing. With slicing or tiling it holds that for one video or tile at a time, since memory is what
        they are for: all tiles but the last are decoded to their end before the first frames come.

        Args:
            z: latents that are already divided by the scaling factor.

        Yields:
            Frames about in [-1, 1], not clipped.

        Raises:
            InputError: E-LATENTS-SHAPE for another number of axes or channels, or for none of them.
        """
        check_sample(z, self.settings.latent_channels, 1)
        for parts in in_turn([self._decode(latents) for latents in self._samples(z)]):
            yield torch.cat(parts)

    def _decode(self, z: Float[Tensor, "b c k h w"]) -> Iterator[Float[Tensor, "b d f i j"]]:
        height, width = (side * self.factor for side in z.shape[3:])
        grids = self.tiling.grids(height, width, self.factor) if self.tiling else None
        if grids is None:
            yield from _stream(self.decoder, z, DECODED_AT_ONCE)
            return
        rows, columns = (grid.spans(side) for grid, side in zip(grids, z.shape[3:], strict=True))
        streams = [_stream(self.decoder, z[..., i, j], DECODED_AT_ONCE) for i, j in product(rows, columns)]
        down, across = (grid.scaled(self.factor) for grid in grids)
        for tiles in in_turn(streams):
            yield join(tiles, len(rows), len(columns), down, across)

    # --------------------------------------------------------------------------------------- public protocol

    def encode(
        self, x: Float[Tensor, "b c k i j"], return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussian]:
        """The distribution of the latents `b c f h w` of videos `b 3 k i j` in [-1, 1], as `.latent_dist`."""
        posterior = DiagonalGaussian(self.encode_moments(x))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def decode(self, z: Float[Tensor, "b c k h w"], return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """The videos `b 3 f i j` of latents, as `.sample`."""
        sample = self.decode_tensor(z)
        return DecoderOutput(sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Float[Tensor, "b c f i j"],
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: "torch.Generator | Sequence[torch.Generator] | None" = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode.

        Args:
            sample: videos in [-1, 1].
            sample_posterior: decode a draw from the distribution instead of its mode.
            return_dict: return a named tuple instead of a plain one.
            generator: for that draw, see `DiagonalGaussian.sample`.
        """
        posterior = DiagonalGaussian(self.encode_moments(sample))
        return self.decode(posterior.sample(generator) if sample_posterior else posterior.mode(), return_dict)


def check_sample(x: Tensor, num_channels: int, side: int) -> None:
    """Refuse (E-LATENTS-SHAPE) what is no batch of videos with so many channels and at least such sides."""
    if x.ndim != 5 or x.shape[1] != num_channels or 0 in x.shape or min(x.shape[3:]) < side:
        raise InputError(
            "E-LATENTS-SHAPE",
            f"The sample has the shape {tuple(x.shape)}.",
            f"It has five axes: videos, {num_channels} channels, frames, height and width, of {side} or more.",
            "A picture is a video of one frame: picture[:, :, None].",
        )


def _stream(half: nn.Module, x: Float[Tensor, "b c f h w"], size: int) -> Iterator[Tensor]:
    """What a half of the autoencoder makes of each chunk."""
    past, parts = Past(), chunks(x.shape[2], size)
    for k, part in enumerate(parts):
        past.is_last = k == len(parts) - 1
        yield half(x[:, :, part].contiguous(memory_format=layout(x)), past).contiguous()
