"""The UNet of Stable Diffusion 1.5, alone (`UNet2DConditionModel`) and with motion (`UNetMotionModel`).

Tensor names and shapes equal the published files. `numerics` chooses the scope of group normalisation:

* ``"original"``: residual blocks and the output over the whole clip, motion modules per frame. The published PIA
  weights were trained with this function (open-mmlab/PIA).
* ``"diffusers"``: residual blocks and the output per frame, motion modules over the clip, as diffusers computes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vivant.errors import InputError
from vivant.hub.model import Model
from vivant.hub.single_file import UNET
from vivant.pia.config import (
    Numerics,
    UNet2DConditionConfig,
    UNetMotionConfig,
    check_frames,
    check_numerics,
    per_block,
)
from vivant.pia.freeu import FreeU, freeu
from vivant.pia.layers import (
    Downsample,
    KeysValues,
    ResnetBlock,
    SpatialTransformer,
    TimeEmbedding,
    normalise,
    spread,
)
from vivant.pia.motion import MotionAdapter, MotionModule
from vivant.upsample import Upsample, layout

StageText = tuple[tuple[KeysValues, ...], ...]


class Text(NamedTuple):
    """Keys and values of a prompt for every attention of a UNet: constant over the steps of a clip."""

    down: tuple[StageText, ...]
    mid: StageText
    up: tuple[StageText, ...]

    def of_frames(self, frames: Sequence[int], num_frames: int) -> Self:
        """What some frames of every clip of `num_frames` read."""

        def stage(text: StageText) -> StageText:
            return tuple(tuple(layer.of_frames(frames, num_frames) for layer in attention) for attention in text)

        return self._replace(
            down=tuple(stage(text) for text in self.down),
            mid=stage(self.mid),
            up=tuple(stage(text) for text in self.up),
        )


class UNetMotionOutput(NamedTuple):
    """What the public call returns: `sample`, shaped like the latent part of the input."""

    sample: Tensor


@dataclass(frozen=True)
class _Blocks:
    """How to build the blocks of one resolution; the same for all stages but for the sizes."""

    time_channels: int
    text_channels: int
    num_groups: int
    eps: float
    linear: bool
    clip_resnets: bool = False
    clip_motion: bool = True
    num_positions: int = 32

    def resnet(self, in_channels: int, out_channels: int) -> ResnetBlock:
        """A residual block."""
        shape = (in_channels, out_channels, self.time_channels, self.num_groups, self.eps)
        return ResnetBlock(*shape, over_clip=self.clip_resnets)

    def attentions(self, num: int, channels: int, heads: int, depth: int) -> nn.ModuleList:
        """`num` spatial transformers of `depth` layers."""
        shape = (channels, heads, depth, self.text_channels, self.num_groups, self.linear)
        return nn.ModuleList([SpatialTransformer(*shape) for _ in range(num)])

    def motions(self, num: int, channels: int, heads: int, depth: int) -> nn.ModuleList:
        """`num` motion modules of `depth` layers."""
        shape = (channels, heads, depth, self.num_positions, self.num_groups)
        return nn.ModuleList([MotionModule(*shape, over_clip=self.clip_motion) for _ in range(num)])


class DownStage(nn.Module):
    """One resolution on the way down: residual block, text, motion, repeated; then half the size."""

    def __init__(self, resnets: list[ResnetBlock], attentions: nn.ModuleList, motions: nn.ModuleList, last: bool):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = attentions
        self.motion_modules = motions
        channels = resnets[-1].conv2.out_channels
        self.downsamplers = nn.ModuleList([] if last else [Downsample(channels)])

    def forward(
        self, x: Float[Tensor, "bf c h w"], time: Float[Tensor, "k t"], text: StageText, num_frames: int
    ) -> tuple[Float[Tensor, "n d i j"], tuple[Float[Tensor, "..."], ...]]:
        """Returns the result and what the way up will need of this stage."""
        skips: tuple[Tensor, ...] = ()
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time, num_frames)
            if self.attentions:
                x = self.attentions[i](x, text[i], num_frames)
            if self.motion_modules:
                x = self.motion_modules[i](x, num_frames)
            skips = (*skips, x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            skips = (*skips, x)
        return x, skips


class MidStage(nn.Module):
    """The lowest resolution: residual block, text, motion, residual block."""

    def __init__(self, resnets: list[ResnetBlock], attentions: nn.ModuleList, motions: nn.ModuleList):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = attentions
        self.motion_modules = motions

    def forward(
        self, x: Float[Tensor, "bf c h w"], time: Float[Tensor, "k t"], text: StageText, num_frames: int
    ) -> Float[Tensor, "n c h w"]:
        x = self.resnets[0](x, time, num_frames)
        x = self.attentions[0](x, text[0], num_frames)
        if self.motion_modules:
            x = self.motion_modules[0](x, num_frames)
        return self.resnets[1](x, time, num_frames)


class UpStage(nn.Module):
    """One resolution on the way up: each residual block reads one kept activation; then twice the size."""

    def __init__(self, resnets: list[ResnetBlock], attentions: nn.ModuleList, motions: nn.ModuleList, last: bool):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = attentions
        self.motion_modules = motions
        channels = resnets[-1].conv2.out_channels
        self.upsamplers = nn.ModuleList([] if last else [Upsample(channels)])

    def forward(
        self,
        x: Float[Tensor, "bf c h w"],
        skips: list[Float[Tensor, "..."]],
        time: Float[Tensor, "k t"],
        text: StageText,
        num_frames: int,
        freeu_scales: tuple[float, float] | None,
    ) -> Float[Tensor, "n d i j"]:
        """Consumes this stage's share of `skips` from the end."""
        for i, resnet in enumerate(self.resnets):
            skip = spread(skips.pop(), x.shape[0])
            if freeu_scales is not None:
                x, skip = freeu(x, skip, *freeu_scales)
            x = resnet(torch.cat([x, skip], dim=1), time, num_frames)
            if self.attentions:
                x = self.attentions[i](x, text[i], num_frames)
            if self.motion_modules:
                x = self.motion_modules[i](x, num_frames)
        for upsampler in self.upsamplers:
            x = upsampler(x, (skips[-1].shape[2], skips[-1].shape[3]))
        return x


class _UNet(Model):
    """What both UNets are: stages down, a middle, stages up."""

    freeu: FreeU | None = None
    time_embedding: TimeEmbedding

    def _build(
        self,
        blocks: _Blocks,
        heads: tuple[int, ...],
        motion_heads: tuple[int, ...] | None,
        motion_depths: tuple[int, ...],
        mid_motion_depth: int | None,
    ) -> None:
        s = self.settings
        channels = s.block_out_channels
        num_blocks = len(channels)
        counts = per_block(s.layers_per_block, num_blocks, "layers_per_block")
        depths = per_block(s.transformer_layers_per_block, num_blocks, "transformer_layers_per_block")

        def attentions(kind: str, i: int, num: int) -> nn.ModuleList:
            cross = kind.startswith("CrossAttn")
            return blocks.attentions(num, channels[i], heads[i], depths[i]) if cross else nn.ModuleList()

        def motions(i: int, num: int) -> nn.ModuleList:
            return (
                blocks.motions(num, channels[i], motion_heads[i], motion_depths[i]) if motion_heads else nn.ModuleList()
            )

        self.conv_in = nn.Conv2d(s.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(channels[0])

        down = []
        for i, kind in enumerate(s.down_block_types):
            inputs = [channels[max(i - 1, 0)], *[channels[i]] * (counts[i] - 1)]
            resnets = [blocks.resnet(num, channels[i]) for num in inputs]
            parts = attentions(kind, i, counts[i]), motions(i, counts[i])
            down.append(DownStage(resnets, *parts, last=i == num_blocks - 1))
        self.down_blocks = nn.ModuleList(down)

        self.mid_block = MidStage(
            [blocks.resnet(channels[-1], channels[-1]) for _ in range(2)],
            blocks.attentions(1, channels[-1], heads[-1], depths[-1]),
            blocks.motions(1, channels[-1], motion_heads[-1], mid_motion_depth)
            if motion_heads and mid_motion_depth
            else nn.ModuleList(),
        )

        up = []
        for kind, i in zip(s.up_block_types, reversed(range(num_blocks)), strict=True):
            num = counts[i] + 1
            below = channels[min(i + 1, num_blocks - 1)]
            skips = [*[channels[i]] * (num - 1), channels[max(i - 1, 0)]]
            inputs = [(below if j == 0 else channels[i]) + skip for j, skip in enumerate(skips)]
            resnets = [blocks.resnet(n, channels[i]) for n in inputs]
            up.append(UpStage(resnets, attentions(kind, i, num), motions(i, num), last=i == 0))
        self.up_blocks = nn.ModuleList(up)

        self.conv_norm_out = nn.GroupNorm(s.norm_num_groups, channels[0], s.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], s.out_channels, 3, padding=1)

    def read_text(self, text: Float[Tensor, "b m d"], per_frame: bool = False) -> Text:
        """Keys and values of encoded prompts for all attentions; compute once per prompt.

        Args:
            text: encoded prompts, one for each clip, or one for each frame of each clip.
            per_frame: the batch axis of `text` is `(b f)`.
        """

        def stage(block: Any) -> StageText:
            return tuple(attention.project(text, per_frame) for attention in block.attentions)

        return Text(
            tuple(stage(block) for block in self.down_blocks),
            stage(self.mid_block),
            tuple(stage(block) for block in self.up_blocks),
        )

    def prepare(self) -> None:
        """Lay the convolutions' weights out as the activations are; otherwise torch does so at every call."""
        self.to(memory_format=layout(self.dtype))  # pyright: ignore[reportCallIssue]

    def predict(self, x: Float[Tensor, "b c f h w"], timesteps: Tensor, text: Text) -> Float[Tensor, "n o f h w"]:
        """The network itself.

        Args:
            x: latents and their condition. The batch may be smaller than that of `text`, in whole blocks.
            timesteps: one for all clips `(1,)`, or one for each `(b,)`.
            text: result of `read_text`, batch n.
        """
        num_frames = x.shape[2]
        time = F.silu(self.time_embedding(timesteps))
        h = rearrange(x, "b c f h w -> (b f) c h w").contiguous(memory_format=layout(x.dtype))
        h = self.conv_in(h)
        skips = [h]
        for block, stage_text in zip(self.down_blocks, text.down, strict=True):
            h, kept = block(h, time, stage_text, num_frames)
            skips.extend(kept)
        h = self.mid_block(h, time, text.mid, num_frames)
        for i, (block, stage_text) in enumerate(zip(self.up_blocks, text.up, strict=True)):
            scales = self.freeu.stage(i) if self.freeu else None
            h = block(h, skips, time, stage_text, num_frames, scales)
        h = F.silu(normalise(self.conv_norm_out, h, self._output_scope(num_frames)), inplace=True)
        return rearrange(self.conv_out(h), "(b f) c h w -> b c f h w", f=num_frames)

    def _output_scope(self, num_frames: int) -> int:
        return 1

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Scale backbone and skip features of the first two up stages (FreeU, arXiv 2309.11497)."""
        self.freeu = FreeU(s1, s2, b1, b2)

    def disable_freeu(self) -> None:
        """Back to the plain network."""
        self.freeu = None

    def _timesteps(self, timestep: Tensor | float | int, batch: int) -> Tensor:
        """One timestep for all, or one for each entry (E-TIMESTEPS-SHAPE)."""
        timesteps = torch.as_tensor(timestep, device=self.conv_in.weight.device).reshape(-1)
        if len(timesteps) not in (1, batch):
            raise InputError(
                "E-TIMESTEPS-SHAPE",
                f"There are {len(timesteps)} timesteps for a batch of {batch}.",
                "",
                "Give one for all, or one for each.",
            )
        return timesteps

    def _check(self, sample: Tensor, text: Tensor, num_rows: tuple[int, ...]) -> None:
        """Refuse a sample or a text that this network does not read (E-LATENTS-SHAPE, E-PROMPT-EMBEDS-SHAPE)."""
        s = self.settings
        if sample.shape[1] != s.in_channels:
            raise InputError(
                "E-LATENTS-SHAPE",
                f"The sample has the shape {tuple(sample.shape)}.",
                f"This network reads {s.in_channels} channels.",
                "",
            )
        if text.shape[0] not in num_rows or text.shape[2] != s.cross_attention_dim:
            raise InputError(
                "E-PROMPT-EMBEDS-SHAPE",
                f"encoder_hidden_states has the shape {tuple(text.shape)} for a batch of {sample.shape[0]}.",
                f"This network reads {s.cross_attention_dim} channels.",
                f"Give {' or '.join(map(str, sorted(set(num_rows))))} rows.",
            )


class UNet2DConditionModel(_UNet):
    """Stable Diffusion 1.5's UNet for single pictures: the base that a motion adapter extends."""

    Config = UNet2DConditionConfig
    settings: UNet2DConditionConfig
    part = UNET

    def __init__(self, **config: Any):
        super().__init__(**config)
        s = self.settings
        time_channels = 4 * s.block_out_channels[0]
        blocks = _Blocks(time_channels, s.cross_attention_dim, s.norm_num_groups, s.norm_eps, s.use_linear_projection)
        self._build(blocks, s.heads, motion_heads=None, motion_depths=(), mid_motion_depth=None)

    def forward(
        self,
        sample: Float[Tensor, "b c h w"],
        timestep: Tensor | float | int,
        encoder_hidden_states: Float[Tensor, "b m d"],
        return_dict: bool = True,
        *,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
    ) -> UNetMotionOutput | tuple[Tensor]:
        """Predict the noise of pictures: `sample` with the channels of `config.in_channels`, text by CLIP.

        Raises:
            InputError: E-CROSS-ATTENTION for `cross_attention_kwargs` other than None, E-LATENTS-SHAPE,
                E-PROMPT-EMBEDS-SHAPE, E-TIMESTEPS-SHAPE.
        """
        _refuse(cross_attention_kwargs)
        self._check(sample, encoder_hidden_states, (sample.shape[0],))
        timesteps = self._timesteps(timestep, sample.shape[0])
        out = self.predict(sample[:, :, None], timesteps, self.read_text(encoder_hidden_states))[:, :, 0]
        return UNetMotionOutput(out) if return_dict else (out,)


class UNetMotionModel(_UNet):
    """The UNet with a motion module after every residual block (and text attention) of the stages.

    Args:
        numerics: ``"original"`` or ``"diffusers"``, see the module's docstring. Not part of `config.json`.
        config: the fields of `config.json`.
    """

    Config = UNetMotionConfig
    settings: UNetMotionConfig

    def __init__(self, *, numerics: Numerics = "diffusers", **config: Any):
        super().__init__(**config)
        check_numerics(numerics)
        self.numerics: Numerics = numerics
        original = numerics == "original"
        s = self.settings
        num_blocks = len(s.block_out_channels)
        blocks = _Blocks(
            4 * s.block_out_channels[0],
            s.cross_attention_dim,
            s.norm_num_groups,
            s.norm_eps,
            s.use_linear_projection,
            clip_resnets=original,
            clip_motion=not original,
            num_positions=s.motion_max_seq_length,
        )
        self._build(
            blocks,
            s.heads,
            per_block(s.motion_num_attention_heads, num_blocks, "motion_num_attention_heads"),
            per_block(s.temporal_transformer_layers_per_block, num_blocks, "temporal_transformer_layers_per_block"),
            (s.temporal_transformer_layers_per_mid_block or 1) if s.use_motion_mid_block else None,
        )

    def _output_scope(self, num_frames: int) -> int:
        return num_frames if self.numerics == "original" else 1

    def forward(
        self,
        sample: Float[Tensor, "b c f h w"],
        timestep: Tensor | float | int,
        encoder_hidden_states: Float[Tensor, "n m d"],
        return_dict: bool = True,
        *,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
    ) -> UNetMotionOutput | tuple[Tensor]:
        """Predict the noise of clips.

        Args:
            sample: latents `b 4 f h w`, for PIA followed by the mask (1) and the picture's latents (4).
            timestep: a number, or a tensor of one or b entries.
            encoder_hidden_states: text per clip `b m d`, or repeated for every frame `(b f) m d` as diffusers does.
            return_dict: return `UNetMotionOutput`; otherwise a tuple.
            cross_attention_kwargs: None; attention reads nothing of it.

        Raises:
            InputError: E-FRAMES-MAX when there are more frames than the motion modules have positions, E-LATENTS-SHAPE,
                E-PROMPT-EMBEDS-SHAPE, E-TIMESTEPS-SHAPE, E-CROSS-ATTENTION.
        """
        _refuse(cross_attention_kwargs)
        num_clips, _, num_frames = sample.shape[:3]
        check_frames(num_frames, self.settings.motion_max_seq_length)
        self._check(sample, encoder_hidden_states, (num_clips, num_clips * num_frames))
        timesteps = self._timesteps(timestep, num_clips)
        text = self.read_text(encoder_hidden_states, encoder_hidden_states.shape[0] == num_clips * num_frames)
        out = self.predict(sample, timesteps, text)
        return UNetMotionOutput(out) if return_dict else (out,)

    @classmethod
    def from_unet2d(
        cls,
        unet: UNet2DConditionModel,
        motion_adapter: MotionAdapter | None = None,
        load_weights: bool = True,
        *,
        numerics: Numerics = "diffusers",
        conv_in: str = "base",
    ) -> Self:
        """Assemble base and adapter into one network.

        Nothing is initialised at random and nothing is copied but `conv_in`: the result shares the tensors of both,
        in parameters of its own, so that moving or converting it leaves base and adapter as they are.

        Args:
            unet: base of four input channels.
            motion_adapter: motion modules; without one they start at random, for training.
            load_weights: False gives the architecture with random weights.
            numerics: see the class.
            conv_in: whose first four input channels and bias to use: ``"base"``, as for every personalised model, or
                ``"adapter"``, as the original does without a personalised base.

        Raises:
            InputError: E-BASE-INPAINTING for an inpainting base, E-ADAPTER-FIT for an adapter of another family.
        """
        base = unet.settings
        if base.in_channels != 4:
            kind = "an inpainting model" if base.in_channels == 9 else "not a plain Stable Diffusion 1.5 model"
            raise InputError(
                "E-BASE-INPAINTING",
                f"The base UNet takes {base.in_channels} channels: it is {kind}.",
                "PIA adds its own mask and picture channels to a base of four.",
                "Use the text-to-image version of this model.",
            )
        if conv_in not in ("base", "adapter"):
            raise InputError("E-CONV-IN", f"conv_in is {conv_in!r}.", "", 'Choose "base" or "adapter".')
        config = _motion_config(unet, motion_adapter)
        if motion_adapter is None or not load_weights:
            model = cls(numerics=numerics, **config)
            if load_weights:
                model.load_state_dict({**model.state_dict(), **unet.state_dict()})
            return model

        motion_adapter.check_fits(base)
        dtype, device = unet.dtype, unet.device
        state = {k: v.to(device, dtype) for k, v in motion_adapter.state_dict().items() if not k.startswith("conv_in.")}
        state |= unet.state_dict()
        if motion_adapter.settings.conv_in_channels:
            adapter_in = {k: v.to(device, dtype) for k, v in motion_adapter.conv_in.state_dict().items()}
            first = unet.conv_in.state_dict() if conv_in == "base" else adapter_in
            weight = torch.cat([first["weight"][:, :4], adapter_in["weight"][:, 4:]], dim=1)
            state |= {"conv_in.weight": weight, "conv_in.bias": first["bias"].clone()}
        else:
            state |= {k: v.clone() for k, v in state.items() if k.startswith("conv_in.")}
        model = cls.from_state({**config, "numerics": numerics}, state, origin="base and motion adapter")
        return model.train(unet.training)


def _refuse(cross_attention_kwargs: Mapping[str, Any] | None) -> None:
    """Refuse (E-CROSS-ATTENTION) what would be ignored."""
    if cross_attention_kwargs is not None:
        raise InputError(
            "E-CROSS-ATTENTION",
            f"cross_attention_kwargs={cross_attention_kwargs!r} would be ignored.",
            "Attention reads no further arguments here.",
            "Leave it out.",
        )


def _motion_config(unet: UNet2DConditionModel, adapter: MotionAdapter | None) -> dict[str, Any]:
    """The configuration of base plus adapter: the base's fields that both classes have, block types renamed."""
    base = unet.settings
    names = UNetMotionConfig.__dataclass_fields__
    config = {k: v for k, v in unet.config.items() if k in names}
    config["num_attention_heads"] = base.heads if len(set(base.heads)) > 1 else base.heads[0]
    for side in ("down_block_types", "up_block_types"):
        config[side] = tuple(kind.replace("2D", "Motion") for kind in getattr(base, side))
    return {**config, **(adapter.unet_fields() if adapter else {})}
