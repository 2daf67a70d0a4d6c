"""The picture autoencoder of Stable Diffusion (Rombach et al., arXiv 2112.10752, section 3.1): `AutoencoderKL`.

Tensor names equal the published files. In half precision activations are kept in channels-last memory, where
convolutions are fastest on CPUs and the tokens of the attention are a view. Work goes in chunks of a few samples, since
memory, not speed, is what grows with the batch.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vivant.attention import attend
from vivant.config import check_groups, only
from vivant.errors import InputError
from vivant.hub.model import Model
from vivant.hub.single_file import VAE
from vivant.upsample import Upsample, layout
from vivant.vae.posterior import AutoencoderKLOutput, DecoderOutput, DiagonalGaussian
from vivant.vae.tiling import Tiling, join


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """Fields equal those of the published `config.json`.

    `scaling_factor` is the inverse standard deviation of the latents of the training set; files older than the field
    mean 0.18215. `force_upcast` says that float16 overflows in this checkpoint: callers may read it, we do not act.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = only("silu", "swish")
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = only(None)
    latents_mean: tuple[float, ...] | None = only(None)
    latents_std: tuple[float, ...] | None = only(None)
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self):
        kinds = (*self.down_block_types, *self.up_block_types)
        num = len(self.block_out_channels)
        if kinds != ("DownEncoderBlock2D",) * num + ("UpDecoderBlock2D",) * num:
            raise InputError(
                "E-CONFIG-VALUE",
                f"AutoencoderKL of {num} resolutions has the blocks {', '.join(kinds)}.",
                "Implemented is one DownEncoderBlock2D and one UpDecoderBlock2D for each entry of block_out_channels.",
                "Use a checkpoint of the Stable Diffusion 1.5 family.",
            )
        check_groups("norm_num_groups", self.norm_num_groups, self.block_out_channels)


def activated(norm: nn.GroupNorm, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """SiLU of the normalised input. The normalised tensor is nobody else's, so SiLU may overwrite it."""
    x = norm(x)
    return F.silu(x, inplace=not x.requires_grad)


class ResnetBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(num_groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        h = self.conv1(activated(self.norm1, x))
        h = self.conv2(activated(self.norm2, h))
        return h.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Self-attention over the positions of a picture, one head as wide as the channels."""

    def __init__(self, num_channels: int, num_groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(num_groups, num_channels, eps=1e-6)
        self.to_q = nn.Linear(num_channels, num_channels)
        self.to_k = nn.Linear(num_channels, num_channels)
        self.to_v = nn.Linear(num_channels, num_channels)
        self.to_out = nn.ModuleList([nn.Linear(num_channels, num_channels)])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        tokens = rearrange(self.group_norm(x), "b c h w -> b (h w) c")
        mixed = attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), num_heads=1)
        return x + rearrange(self.to_out[0](mixed), "b (h w) c -> b c h w", h=x.shape[2])


class MidBlock(nn.Module):
    """The lowest resolution: residual block, attention, residual block."""

    def __init__(self, num_channels: int, num_groups: int, has_attention: bool):
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(num_channels, num_channels, num_groups) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(num_channels, num_groups)] if has_attention else [])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Downsample(nn.Module):
    """A 3x3 convolution of every second pixel; the padding lies below and to the right only."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(num_channels, num_channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class DownBlock(nn.Module):
    """One resolution on the way down: residual blocks, then half the size."""

    def __init__(self, resnets: Iterable[ResnetBlock], downsamplers: Iterable[Downsample]):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.downsamplers = nn.ModuleList(downsamplers)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """One resolution on the way up: residual blocks, then twice the size."""

    def __init__(self, resnets: Iterable[ResnetBlock], upsamplers: Iterable[Upsample]):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.upsamplers = nn.ModuleList(upsamplers)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


def _chain(first: int, rest: int, num: int, num_groups: int) -> list[ResnetBlock]:
    """`num` residual blocks, of which the first changes the number of channels."""
    return [ResnetBlock(first if i == 0 else rest, rest, num_groups) for i in range(num)]


class Encoder(nn.Module):
    """Pictures to means and log variances, before `quant_conv`."""

    def __init__(self, config: AutoencoderKLConfig):
        super().__init__()
        channels, groups = config.block_out_channels, config.norm_num_groups
        last = len(channels) - 1
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                _chain(channels[max(i - 1, 0)], num, config.layers_per_block, groups),
                [Downsample(num)] if i < last else [],
            )
            for i, num in enumerate(channels)
        )
        self.mid_block = MidBlock(channels[-1], groups, config.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c i j"]) -> Float[Tensor, "b d h w"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(activated(self.conv_norm_out, x))


class Decoder(nn.Module):
    """Latents, after `post_quant_conv`, to pictures."""

    def __init__(self, config: AutoencoderKLConfig):
        super().__init__()
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        last = len(channels) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0], groups, config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                _chain(channels[max(i - 1, 0)], num, config.layers_per_block + 1, groups),
                [Upsample(num)] if i < last else [],
            )
            for i, num in enumerate(channels)
        )
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(activated(self.conv_norm_out, x))


class AutoencoderKL(Model):
    """Encodes pictures in [-1, 1] to a distribution of latents and decodes latents to pictures.

    The latents are as the network makes them: callers multiply by `config.scaling_factor` after encoding and divide
    before decoding.

    Attributes:
        chunk_size: how many samples are encoded or decoded at a time. The result does not depend on it.
        tiling: see `enable_tiling`; None computes every picture whole.
    """

    Config = AutoencoderKLConfig
    settings: AutoencoderKLConfig
    part = VAE
    chunk_size: int = 2
    use_slicing: bool = False
    tiling: Tiling | None = None

    def __init__(self, **fields: Any):
        super().__init__(**fields)
        s = self.settings
        self.encoder = Encoder(s)
        self.decoder = Decoder(s)
        latent = s.latent_channels
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if s.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if s.use_post_quant_conv else nn.Identity()

    @property
    def factor(self) -> int:
        """How many pixels a latent is wide and high."""
        return 2 ** (len(self.settings.block_out_channels) - 1)

    def published_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The attention of files from before 2023: other names, and 1x1 convolutions instead of linear layers."""
        return {_published_name(key, state): _published_shape(key, value) for key, value in state.items()}

    # ------------------------------------------------------------------------------------------------ memory

    def enable_slicing(self) -> None:
        """Encode and decode one sample at a time."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode `chunk_size` samples at a time."""
        self.use_slicing = False

    def enable_tiling(self, tile_sample_min_size: int | None = None, tile_overlap_factor: float | None = None) -> None:
        """Cut pictures that are larger than a tile into overlapping tiles, so that memory does not grow with size.

        Every tile is normalised by itself, so the result is close to the whole picture's, not equal.

        Args:
            tile_sample_min_size: side of a tile in pixels; the config's `sample_size` if not given.
            tile_overlap_factor: the part of a tile that it shares with its neighbour, 0.25 if not given.

        Raises:
            InputError: E-TILING when these make no tiles.
        """
        size = self.settings.sample_size
        default = min(size) if isinstance(size, tuple) else size
        tiling = Tiling(
            default // self.factor * self.factor if tile_sample_min_size is None else tile_sample_min_size,
            0.25 if tile_overlap_factor is None else tile_overlap_factor,
        )
        tiling.grid(self.factor)
        self.tiling = tiling

    def disable_tiling(self) -> None:
        """Compute every picture whole."""
        self.tiling = None

    def _chunks(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.chunk_size < 1:
            raise InputError("E-VAE-CHUNK", f"chunk_size={self.chunk_size!r} is not a number of samples.")
        return x.split(1 if self.use_slicing else self.chunk_size)

    # ------------------------------------------------------------------------------------------- computation

    def encode_moments(self, x: Float[Tensor, "b c i j"]) -> Float[Tensor, "b d h w"]:
        """Means and log variances of the latents, one after the other along the channels.

        Args:
            x: pictures in [-1, 1]. Sides that are no multiple of `factor` lose the rest.
        """
        return torch.cat([self._encode(chunk) for chunk in self._chunks(x)])

    def _encode(self, x: Float[Tensor, "b c i j"]) -> Float[Tensor, "b d h w"]:
        grid = self.tiling.grid(self.factor) if self.tiling else None
        if grid is None or max(x.shape[-2:]) <= grid.tile * self.factor:
            return self._encode_whole(x)
        rows, columns = (grid.spans(size // self.factor, self.factor) for size in x.shape[-2:])
        tiles = (self._encode_whole(x[..., i, j]) for i, j in product(rows, columns))
        return join(tiles, len(rows), len(columns), grid, grid)

    def _encode_whole(self, x: Float[Tensor, "b c i j"]) -> Float[Tensor, "b d h w"]:
        return self.quant_conv(self.encoder(x.contiguous(memory_format=layout(x.dtype)))).contiguous()

    def decode_tensor(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Pictures, about in [-1, 1] and not clipped, from latents that are already divided by the scaling factor."""
        return torch.cat([self._decode(chunk) for chunk in self._chunks(z)])

    def _decode(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        grid = self.tiling.grid(self.factor) if self.tiling else None
        if grid is None or max(z.shape[-2:]) <= grid.tile:
            return self._decode_whole(z)
        rows, columns = (grid.spans(size) for size in z.shape[-2:])
        tiles = (self._decode_whole(z[..., i, j]) for i, j in product(rows, columns))
        return join(tiles, len(rows), len(columns), grid.scaled(self.factor), grid.scaled(self.factor))

    def _decode_whole(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return self.decoder(self.post_quant_conv(z.contiguous(memory_format=layout(z.dtype)))).contiguous()

    # --------------------------------------------------------------------------------------- public protocol

    def encode(
        self, x: Float[Tensor, "b c i j"], return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussian]:
        """The distribution of the latents of pictures in [-1, 1], as `.latent_dist`."""
        posterior = DiagonalGaussian(self.encode_moments(x))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def decode(
        self,
        z: Float[Tensor, "b c h w"],
        return_dict: bool = True,
        generator: "torch.Generator | Sequence[torch.Generator] | None" = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """The pictures `b 3 i j` of latents, as `.sample`. Nothing is drawn: `generator` has no effect, as there."""
        sample = self.decode_tensor(z)
        return DecoderOutput(sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Float[Tensor, "b c i j"],
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: "torch.Generator | Sequence[torch.Generator] | None" = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode.

        Args:
            sample: pictures in [-1, 1].
            sample_posterior: decode a draw from the distribution instead of its mode.
            return_dict: return a named tuple instead of a plain one.
            generator: for that draw, see `DiagonalGaussian.sample`.
        """
        posterior = DiagonalGaussian(self.encode_moments(sample))
        return self.decode(posterior.sample(generator) if sample_posterior else posterior.mode(), return_dict)


_ATTENTION = re.compile(r"((?:en|de)coder\.mid_block\.attentions\.\d+)\.(\w+(?:\.0)?)\.(weight|bias)")
_FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _published_name(key: str, state: dict[str, Tensor]) -> str:
    """The present name of a tensor, unless the file has that one too: then the stray name is reported as such."""
    match = _ATTENTION.fullmatch(key)
    name = f"{match[1]}.{_FORMER.get(match[2], match[2])}.{match[3]}" if match else key
    return key if name in state else name


def _published_shape(key: str, value: Tensor) -> Tensor:
    """Linear weights that were stored as 1x1 convolutions lose the two axes."""
    is_convolution = _ATTENTION.fullmatch(key) is not None and value.ndim == 4 and value.shape[2:] == (1, 1)
    return rearrange(value, "d c 1 1 -> d c") if is_convolution else value
