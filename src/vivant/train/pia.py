"""Training PIA's motion by the recipe of the original (arXiv 2312.13964, section 3; open-mmlab/PIA, train.py).

Clips of f frames; one of them, at random, is the picture: its latents stand beside the noisy latents of every frame,
with a mask that says how much each frame is like it. For a part of the clips picture and mask are zero, and for a part
the caption is empty. Motion modules and the input convolution learn; the base is frozen. Beyond the original,
a shorter window of each clip can be shown, some of them there and back, more often from their first frame, and only
some frames of each, at their own positions: what moves where is learnt from a few frames of many clips sooner than from
all frames of few.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from vivant.errors import InputError
from vivant.media.sheet import grid
from vivant.pia.decode import decode
from vivant.pia.generate import Given, Parts, generate
from vivant.pia.layers import ResnetBlock, SpatialTransformer
from vivant.pia.motion import MotionAdapter, MotionBlock, MotionModule, Positions
from vivant.pia.unet import UNetMotionModel
from vivant.placement import MemoryPolicy
from vivant.prompts import Prompts
from vivant.request import PIARequest
from vivant.rng import Rng
from vivant.text.clip import encode
from vivant.train.affinity import coefficients, differences
from vivant.train.base import Repository, check_part, latents_of
from vivant.train.diffusion import PRESET, Noise, add_noise, draw_eps, draw_timesteps, eps_loss, signal, weight
from vivant.train.loop import checkpoint_blocks
from vivant.train.samples import Batch, Draws
from vivant.train.vae import to_picture


@dataclass(frozen=True)
class PiaLoss:
    """What is learnt how. The defaults are those of the original.

    Attributes:
        noise: see `diffusion.Noise`.
        drop_picture: part of the clips whose picture and mask are zero.
        drop_text: part of the clips whose caption is emptied.
        conv_in: ``"all"`` of the input convolution learns, or only what reads the ``"picture"``. A personalised base
            brings its own weights for the latents, so the latter is what every base will run with.
        first: part of the clips whose first frame is the picture; it is a random one of the others.
        window: frames that are used of each clip, from a random one on; 0 uses all.
        frames: how many of those go through the network, the picture's and random others; 0 shows all.
        returning: part of the clips that are shown there and back, as loops, twice as fast.
        largest: see `affinity.statistics`; 1 is the original's.
    """

    noise: Noise = field(default_factory=Noise)
    drop_picture: float = 0.2
    drop_text: float = 0.1
    conv_in: Literal["all", "picture"] = "all"
    first: float = 0.0
    window: int = 0
    frames: int = 0
    returning: float = 0.0
    largest: float = 1.0

    def check_window(self, num_frames: int) -> None:
        """Refuse (E-TRAIN-SETTING) more frames than there are: a window of the clip's, shown ones of the window's."""
        if self.window > num_frames:
            raise InputError("E-TRAIN-SETTING", f"window is {self.window}, and the clips have {num_frames} frames.")
        if self.frames > (self.window or num_frames):
            total = self.window or num_frames
            raise InputError("E-TRAIN-SETTING", f"frames is {self.frames}, and there are {total} to choose from.")

    def __post_init__(self):
        for name in ("drop_picture", "drop_text", "first", "returning", "largest"):
            check_part(name, getattr(self, name))
        for name in ("window", "frames"):
            if getattr(self, name) < 0 or getattr(self, name) == 1:
                text = f"{name} is {getattr(self, name)}; it must be 0, or 2 or more."
                raise InputError("E-TRAIN-SETTING", text)
        if self.conv_in not in ("all", "picture"):
            raise InputError("E-TRAIN-SETTING", f"conv_in is {self.conv_in!r}.", "", "Use all or picture.")


def new_adapter(base: Any, seed: int, **config: Any) -> MotionAdapter:
    """Motion modules for a base that change nothing yet: their last layer is zero, and so is what reads the picture.

    Args:
        base: settings of the base UNet, which decide all sizes.
        seed: of the other weights.
        config: further fields of the adapter's `config.json`.
    """
    sizes = {
        "block_out_channels": base.block_out_channels,
        "motion_layers_per_block": base.layers_per_block,
        "motion_norm_num_groups": base.norm_num_groups,
        "conv_in_channels": 9,
        "use_motion_mid_block": False,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = MotionAdapter(**{**sizes, **config})
    for module in adapter.modules():
        if isinstance(module, MotionModule):
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(module.proj_out.bias)
    nn.init.zeros_(adapter.conv_in.weight)
    return adapter


class PiaTask:
    """Predict the noise of captioned clips that contain a known picture.

    Args:
        parts: the base, which stays as it is.
        adapter: motion modules to begin with.
        loss: how.
        table: `affinity.statistics` of the data set.
        shown: pictures and prompts for the sheets of samples.
        num_frames: length of the shown clips.
    """

    def __init__(
        self,
        parts: Repository,
        adapter: MotionAdapter,
        loss: PiaLoss,
        table: Float[np.ndarray, "f 2"],
        shown: Sequence[tuple[Float[Tensor, "1 3 h w"], str]],
        num_frames: int,
        *,
        gradient_checkpointing: bool = False,
    ):
        self.parts, self.loss, self.shown, self.num_frames = parts, loss, shown, num_frames
        self.adapter_config = adapter.config
        self.table, self.abar = torch.from_numpy(table).float(), signal()
        for frozen in (parts.vae, parts.text_encoder, parts.unet):
            frozen.requires_grad_(False)
        parts.vae.chunk_size = 1 << 30
        self.unet = UNetMotionModel.from_unet2d(parts.unet.float(), adapter.float(), numerics="original")
        for name, p in self.unet.named_parameters():
            if ".motion_modules." in name or name.startswith("conv_in."):
                p.data = p.data.clone()  # shared with the base and the adapter, which stay as they are
                p.requires_grad_(name != "conv_in.bias" or loss.conv_in == "all")
        learning = {name: p for name, p in self.unet.named_parameters() if p.requires_grad}
        if loss.conv_in == "picture":
            learning["conv_in.weight"] = learn_last(self.unet.conv_in, parts.unet.settings.in_channels)
        self.networks, self.weights = (parts.vae, parts.text_encoder, self.unet), learning
        self.places = Places()
        for module in self.unet.modules():
            if isinstance(module, MotionBlock):
                module.pos_embed = ChosenPositions(module.pos_embed, self.places)
        if gradient_checkpointing:
            checkpoint_blocks(self.unet, (ResnetBlock, SpatialTransformer, MotionModule))

    @staticmethod
    def prepare(clip: Any, rng: Any) -> dict[str, Any]:
        """All frames, as pixels or as latents, and how much they differ."""
        if hasattr(clip, "mean"):
            names = ("mean", "deviation", "differences", "caption")
            return {name: getattr(clip, name) for name in names}
        pairs = torch.from_numpy(differences(clip.pixels))
        return {"pixels": clip.pixels, "differences": pairs, "caption": clip.caption}

    def losses(self, batch: Batch, draws: Draws, dtype: torch.dtype) -> dict[str, Float[Tensor, " b"]]:
        """The weighed error of the noise of each clip."""
        x0 = latents_of(batch, self.parts.vae, draws, dtype)
        loss, total = self.loss, x0.shape[1]
        loss.check_window(total)
        num_frames = loss.window or total
        cond_frames = draws.integers(num_frames)
        shown = draws.uniform() >= loss.drop_picture
        kept = draws.uniform() >= loss.drop_text
        timesteps = draw_timesteps(draws, loss.noise)
        eps = draw_eps(draws, (x0.shape[2], loss.frames or num_frames, *x0.shape[3:]), loss.noise)
        cond_frames = torch.where(draws.uniform() < loss.first, 0, cond_frames)
        frames = which_frames(draws.integers(total - num_frames + 1), draws.uniform() < loss.returning, num_frames)
        clip = torch.arange(len(x0), device=x0.device)[:, None]
        pairs = batch["differences"][clip[..., None], frames[:, :, None], frames[:, None, :]]
        affinity = coefficients(pairs, cond_frames, self.table)
        places = which_places(draws, cond_frames, num_frames, loss.frames or num_frames)
        picture = condition(x0[clip, frames][clip[:, 0], cond_frames], affinity.gather(1, places), shown)
        x0 = rearrange(x0[clip, frames.gather(1, places)], "b f c h w -> b c f h w")
        prompts = [text if keep else "" for text, keep in zip(batch["caption"], kept.tolist(), strict=True)]
        text = encode(self.parts.tokenizer, self.parts.text_encoder, prompts)
        inputs = torch.cat([add_noise(x0, eps, timesteps, self.abar), picture], dim=1)
        self.places.of_clips = places
        predicted = self.unet.predict(inputs.to(dtype), timesteps, self.unet.read_text(text.to(dtype)))
        error = eps_loss(predicted, eps, weight(timesteps, self.abar, loss.noise))
        with_picture = torch.where(shown, error.detach(), 0.0) / max(1e-8, 1 - loss.drop_picture)
        return {"loss": error, "with picture": with_picture}

    @torch.no_grad()
    def show(self, folder: Path, step: int) -> None:
        """A row for each picture and prompt, made as a user's clip is."""
        self.places.of_clips = None  # here, not after the losses: gradient checkpointing computes once more
        parts = Parts(self.parts.vae, self.unet, PRESET, MemoryPolicy(str(self.unet.device)))
        rows = []
        for image, prompt in self.shown:
            positive, negative = encode(self.parts.tokenizer, self.parts.text_encoder, [prompt, ""]).split(1)
            request = PIARequest(
                prompt=(prompt,),
                num_frames=self.num_frames,
                height=image.shape[2],
                width=image.shape[3],
                num_inference_steps=25,
                motion="animate:moderate",
            )
            given = Given(image, Prompts(positive, negative))
            latents = generate(parts, request, given, Rng.of(torch.Generator().manual_seed(step), 1))
            frames = torch.cat(list(decode(self.parts.vae, latents)))
            rows += [to_picture(frame * 2 - 1) for frame in frames]
        grid(rows, len(self.shown), self.num_frames, gap=2).save(folder / f"{step:08d}.png")

    def export(self, folder: Path) -> None:
        """The adapter alone, for this and any other base."""
        with torch.device("meta"):
            names = set(MotionAdapter(**self.adapter_config).state_dict())
        state = {**self.unet.state_dict(), "conv_in.weight": self.unet.conv_in.weight}
        state = {k: v.detach().clone() for k, v in state.items() if k in names}
        MotionAdapter.from_state(self.adapter_config, state).save_pretrained(folder)


class Beside(nn.Module):
    """An input convolution whose first columns are given, and whose last learn."""

    def __init__(self, given: Tensor):
        super().__init__()
        self.register_buffer("given", given, persistent=False)

    def forward(self, learnt: Tensor) -> Tensor:
        return torch.cat([self.get_buffer("given"), learnt], dim=1)


def learn_last(module: nn.Module, num_given: int) -> nn.Parameter:
    """Let the weight of a convolution learn but for its first `num_given` input channels, which never change.

    Masking their gradient would not do: weight decay moves what has no gradient, too.

    Returns:
        The part that learns.
    """
    weight = module.get_parameter("weight").detach()
    part = nn.Parameter(weight[:, num_given:].clone())
    module.weight = part
    register_parametrization(module, "weight", Beside(weight[:, :num_given].clone()), unsafe=True)  # of another shape
    return part


def which_frames(first: Int[Tensor, " b"], returning: Bool[Tensor, " b"], num_frames: int) -> Int[Tensor, "b f"]:
    """Frames that are shown of each clip: a window that begins with `first`; for loops, the same there and back."""
    there = torch.arange(num_frames, device=first.device)
    loop = ((1 - torch.linspace(-1, 1, num_frames, device=first.device).abs()) * (num_frames - 1)).round().long()
    return first[:, None] + torch.where(returning[:, None], loop, there)


def which_places(draws: Draws, cond_frames: Int[Tensor, " b"], total: int, num: int) -> Int[Tensor, "b k"]:
    """Which `num` of a window's `total` frames are shown, in order: the picture's, and random others."""
    if num == total:
        return torch.arange(total, device=cond_frames.device).expand(len(cond_frames), -1)
    order = draws.normal((total,)).scatter(1, cond_frames[:, None], torch.inf)
    return order.topk(num, dim=1).indices.sort(dim=1).values


@dataclass
class Places:
    """At which positions of a clip the frames are that the network is shown just now; None for the first ones."""

    of_clips: Int[Tensor, "b f"] | None = None


class ChosenPositions(Positions):
    """A position table of which the rows are chosen for each clip, for the time of training."""

    def __init__(self, table: Positions, places: Places):
        nn.Module.__init__(self)
        self.register_buffer("pe", table.pe)
        self.places = places

    def forward(self, x: Float[Tensor, "n f c"]) -> Float[Tensor, "n f c"]:
        places = self.places.of_clips
        if places is None:
            return super().forward(x)
        rows = self.pe[0, places].to(x.dtype)
        return x + rows.repeat_interleave(len(x) // len(rows), dim=0)


def condition(
    still: Float[Tensor, "b c h w"], affinity: Float[Tensor, "b f"], shown: Bool[Tensor, " b"]
) -> Float[Tensor, "b d f h w"]:
    """Mask and picture as the network reads them: the picture on all frames; zero where it is not shown."""
    (h, w), f = still.shape[2:], affinity.shape[1]
    picture = torch.cat(
        [repeat(affinity, "b f -> b 1 f h w", h=h, w=w), repeat(still, "b c h w -> b c f h w", f=f)], dim=1
    )
    return picture * shown.view(-1, 1, 1, 1, 1)
