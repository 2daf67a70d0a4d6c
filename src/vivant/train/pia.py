"""Training PIA's motion by the recipe of the original (arXiv 2312.13964, section 3; open-mmlab/PIA, train.py).

Clips of f frames; one of them, at random, is the picture: its latents stand beside the noisy latents of every frame,
with a mask that says how much each frame is like it. For a part of the clips picture and mask are zero, and for a part
the caption is empty. Motion modules and the input convolution learn; the base is frozen. Beyond the original, parts of
the clips can be shown shorter, there and back, or always from their first frame; and a base that never read a word of
motion can learn the words.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization, remove_parametrizations

from vivant.errors import InputError
from vivant.media.sheet import grid
from vivant.pia.conditioning import Prompts
from vivant.pia.decode import decode
from vivant.pia.generate import Given, Parts, generate
from vivant.pia.layers import ResnetBlock, SpatialTransformer
from vivant.pia.motion import MotionAdapter, MotionModule
from vivant.pia.unet import UNetMotionModel
from vivant.pipelines.components import save_component
from vivant.placement import MemoryPolicy
from vivant.request import PIARequest
from vivant.rng import Rng
from vivant.text.clip import encode
from vivant.train.affinity import coefficients, differences
from vivant.train.base import Repository, check_part, latents_of
from vivant.train.diffusion import PRESET, Noise, add_noise, draw_eps, eps_loss, signal, weight
from vivant.train.loop import checkpoint_blocks, trainable
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
        halved: part of the clips of which every second frame is shown, so that both lengths are learnt.
        returning: part of the clips that are shown there and back, as loops, twice as fast.
        largest: see `affinity.statistics`; 1 is the original's.
        words: words of the captions that the base can only spell become tokens of their own, and their embeddings
            learn with the motion. What the base makes of other words stays as it is.
        base: the base, its UNet and its text encoder, learns too, from the clips and, alone, from the frame of each
            that is the picture, captioned without the words above: for small bases that have not the size to carry
            what they were not made for. The result is another base, on which styles are taught anew.
    """

    noise: Noise = field(default_factory=Noise)
    drop_picture: float = 0.2
    drop_text: float = 0.1
    conv_in: Literal["all", "picture"] = "all"
    first: float = 0.0
    halved: float = 0.0
    returning: float = 0.0
    largest: float = 1.0
    words: bool = False
    base: bool = False

    def __post_init__(self):
        for name in ("drop_picture", "drop_text", "first", "halved", "returning", "largest"):
            check_part(name, getattr(self, name))
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
        words: new words, whose embeddings are the last of the text encoder's.
        num_known: the embeddings before them; they stay as they are unless the base learns.
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
        words: Sequence[str] = (),
        num_known: int = 0,
        gradient_checkpointing: bool = False,
    ):
        self.parts, self.loss, self.shown, self.num_frames = parts, loss, shown, num_frames
        self.adapter_config, self.words = adapter.config, words
        self.table, self.abar = torch.from_numpy(table).float(), signal()
        for frozen in (parts.vae, parts.text_encoder, parts.unet):
            frozen.requires_grad_(False)
        parts.vae.chunk_size = 1 << 30
        self.unet = UNetMotionModel.from_unet2d(parts.unet.float(), adapter.float(), numerics="original")
        for name, p in self.unet.named_parameters():
            if ".motion_modules." in name or name.startswith("conv_in."):
                p.data = p.data.clone()  # shared with the base and the adapter, which stay as they are
                p.requires_grad_(name != "conv_in.bias" or loss.conv_in == "all")
        if loss.base:
            share(parts.unet, self.unet)
            self.unet.requires_grad_(True)
        learning = {name: p for name, p in self.unet.named_parameters() if p.requires_grad}
        if loss.base:
            learning |= trainable(parts.text_encoder, "text_encoder.")
        elif loss.conv_in == "picture":
            learning["conv_in.weight"] = learn_last(self.unet.conv_in, parts.unet.settings.in_channels, dim=1)
        if words and not loss.base:
            embeddings: Any = parts.text_encoder.get_input_embeddings()
            learning["token_embedding.weight"] = learn_last(embeddings, num_known, dim=0)
        self.networks, self.weights = (parts.vae, parts.text_encoder, self.unet), learning
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
        x0 = rearrange(latents_of(batch, self.parts.vae, draws, dtype), "b f c h w -> b c f h w")
        num_frames, loss = x0.shape[2], self.loss
        cond_frames = draws.integers(num_frames)
        shown = draws.uniform() >= loss.drop_picture
        kept = draws.uniform() >= loss.drop_text
        timesteps = draws.integers(len(self.abar))
        eps = draw_eps(draws, x0.shape[1:], loss.noise)
        first, halved, returning = (
            draws.uniform() < part if part else torch.zeros_like(shown)
            for part in (loss.first, loss.halved, loss.returning)
        )
        prompts = [text if keep else "" for text, keep in zip(batch["caption"], kept.tolist(), strict=True)]
        text = encode(self.parts.tokenizer, self.parts.text_encoder, prompts)
        errors = torch.zeros(len(x0), device=x0.device)
        for stride, group in ((1, ~halved), (2, halved)):  # the network reads clips of one length together
            chosen = group.nonzero()[:, 0]
            if len(chosen):
                frames = which_frames(returning[chosen], num_frames, stride)
                own = torch.arange(len(chosen), device=x0.device)[:, None]
                clips = rearrange(
                    rearrange(x0[chosen], "b c f h w -> b f c h w")[own, frames], "b f c h w -> b c f h w"
                )
                pairs = batch["differences"][chosen]
                pairs = pairs[own[..., None], frames[:, :, None], frames[:, None, :]]
                cond = torch.where(first, 0, cond_frames)[chosen] // stride
                affinity = coefficients(pairs, cond, self.table[::stride])
                picture = condition(clips, affinity, cond, shown[chosen])
                own_eps, t = eps[chosen, :, ::stride], timesteps[chosen]
                inputs = torch.cat([add_noise(clips, own_eps, t, self.abar), picture], dim=1)
                predicted = self.unet.predict(inputs.to(dtype), t, self.unet.read_text(text[chosen].to(dtype)))
                error = eps_loss(predicted, own_eps, weight(t, self.abar, loss.noise))
                errors = errors.index_put((chosen,), error)
        with_picture = torch.where(shown, errors.detach(), 0.0) / max(1e-8, 1 - loss.drop_picture)
        values = {"loss": errors, "with picture": with_picture}
        if loss.base:
            values["still"] = self._stills(x0, cond_frames, prompts, draws, dtype)
            values["loss"] = errors + values["still"]
        return values

    def _stills(
        self, x0: Float[Tensor, "b c f h w"], frames: Tensor, prompts: Sequence[str], draws: Draws, dtype: torch.dtype
    ) -> Float[Tensor, " b"]:
        """The weighed error of the base alone for one frame of each clip."""
        still = x0[torch.arange(len(x0), device=x0.device), :, frames][:, :, None]
        timesteps, unet = draws.integers(len(self.abar)), self.parts.unet
        eps = draw_eps(draws, still.shape[1:], self.loss.noise)
        said = [without(prompt, self.words) for prompt in prompts]
        text = encode(self.parts.tokenizer, self.parts.text_encoder, said)
        noisy = add_noise(still, eps, timesteps, self.abar)
        predicted = unet.predict(noisy.to(dtype), timesteps, unet.read_text(text.to(dtype)))
        return eps_loss(predicted, eps, weight(timesteps, self.abar, self.loss.noise))

    @torch.no_grad()
    def show(self, folder: Path, step: int) -> None:
        """A row for each picture and prompt, made as a user's clip is."""
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
        """The adapter alone, for this and any other base; and the text encoder and tokenizer if words were learnt."""
        with torch.device("meta"):
            names = set(MotionAdapter(**self.adapter_config).state_dict())
        state = {**self.unet.state_dict(), "conv_in.weight": self.unet.conv_in.weight}
        state = {k: v.detach().clone() for k, v in state.items() if k in names}
        MotionAdapter.from_state(self.adapter_config, state).save_pretrained(folder)
        if not self.words and not self.loss.base:
            return
        encoder = copy.deepcopy(self.parts.text_encoder)
        embeddings: Any = encoder.get_input_embeddings()
        if is_parametrized(embeddings):
            remove_parametrizations(embeddings, "weight")
        if self.loss.base:
            replace(self.parts, text_encoder=encoder).save(folder / "base")
            return
        save_component(encoder, folder / "text_encoder", None, "10GB")
        save_component(self.parts.tokenizer, folder / "tokenizer", None, "10GB")


def share(base: nn.Module, whole: nn.Module) -> None:
    """Let a base be the part of a motion network that it is: the same parameters, learnt by both.

    Of the input convolution the base has the first columns; the network's is put together of them and its own.
    """
    columns = base.get_parameter("conv_in.weight")
    learn_last(whole.get_submodule("conv_in"), columns.shape[1], dim=1, given=columns)
    for name, _ in list(base.named_parameters()):
        if name != "conv_in.weight":
            path, _, leaf = name.rpartition(".")
            setattr(base.get_submodule(path), leaf, whole.get_parameter(name))


def without(caption: str, words: Sequence[str]) -> str:
    """A caption without some of its words."""
    kept = [word for word in re.findall(r"[^\s,]+|,", caption) if word not in words]
    return re.sub(r"( ,)+", ",", " ".join(kept)).strip(" ,")


class Beside(nn.Module):
    """A tensor whose first part is given and whose last part learns."""

    def __init__(self, given: Tensor, dim: int):
        super().__init__()
        self.given = given if isinstance(given, nn.Parameter) else nn.Parameter(given, requires_grad=False)
        self.dim = dim

    def forward(self, learnt: Tensor) -> Tensor:
        return torch.cat([self.given, learnt], dim=self.dim)


def learn_last(module: nn.Module, num_given: int, dim: int, given: nn.Parameter | None = None) -> nn.Parameter:
    """Let the weight of a layer learn but for its first `num_given` rows (`dim` 0) or columns (1); they never change.

    Masking their gradient would not do: weight decay moves what has no gradient, too.

    Args:
        module: the layer.
        num_given: how many do not learn here.
        dim: see above.
        given: in place of the first ones, a parameter that belongs to another layer and may learn.

    Returns:
        The part that learns.
    """
    weight = module.get_parameter("weight").detach()
    own, learnt = (part.clone() for part in weight.split([num_given, weight.shape[dim] - num_given], dim))
    part = nn.Parameter(learnt)
    module.weight = part
    beside = Beside(own if given is None else given, dim)
    register_parametrization(module, "weight", beside, unsafe=True)  # another shape than the part
    return part


def which_frames(returning: Bool[Tensor, " b"], num_frames: int, stride: int) -> Int[Tensor, "b f"]:
    """Frames that are shown of each clip: every `stride`-th one; or, for loops, as many that go there and back."""
    there = torch.arange(0, num_frames, stride, device=returning.device)
    way = 1 - (torch.linspace(-1, 1, len(there), device=returning.device)).abs()
    loop = (way * (num_frames - 1)).round().long()
    return torch.where(returning[:, None], loop, there)


def condition(
    x0: Float[Tensor, "b c f h w"],
    affinity: Float[Tensor, "b f"],
    cond_frames: Tensor,
    shown: Tensor,
) -> Float[Tensor, "b d f h w"]:
    """Mask and picture as the network reads them: the clip's own frame on all frames; zero where it is not shown."""
    b, _, f, h, w = x0.shape
    still = x0[torch.arange(b, device=x0.device), :, cond_frames]
    picture = torch.cat(
        [repeat(affinity, "b f -> b 1 f h w", h=h, w=w), repeat(still, "b c h w -> b c f h w", f=f)], dim=1
    )
    return picture * shown.view(-1, 1, 1, 1, 1)
