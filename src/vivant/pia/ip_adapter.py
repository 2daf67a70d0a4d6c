"""IP-Adapter for Stable Diffusion 1.5 (arXiv 2308.06721): what CLIP sees of pictures, as further words of the prompt.

An adapter is a projection of CLIP's embedding to tokens, and for every attention to the text a second pair of keys and
values for these tokens. Tensor names are those of the published files. The kinds differ in the projection only:

* plain: one linear layer on the embedding of the picture as a whole;
* plus (and plus-face): a perceiver that reads the last layer but one of CLIP, position by position;
* full: two linear layers on each of these positions (full-face).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vivant.attention import attend
from vivant.errors import LoadError
from vivant.hub.load import check_keys
from vivant.pia.unet import UNetMotionModel

HEAD_CHANNELS = 64
"""Channels of a head in the perceiver; the files do not say, and no other number was ever used."""


class Place(NamedTuple):
    """An attention to the text: the name of its transformer, its channels, and how often the latents were halved."""

    name: str
    num_channels: int
    level: int


def places(unet: UNetMotionModel) -> tuple[Place, ...]:
    """All attentions to the text, in the order in which the files count them: down, up, middle."""
    last = len(unet.down_blocks) - 1
    stages: list[tuple[str, Any, int]] = [(f"down_blocks.{i}", block, i) for i, block in enumerate(unet.down_blocks)]
    stages += [(f"up_blocks.{i}", block, last - i) for i, block in enumerate(unet.up_blocks)]
    stages += [("mid_block", unet.mid_block, last)]
    return tuple(
        Place(f"{name}.attentions.{j}", layer.attn2.to_q.out_features, level)
        for name, block, level in stages
        for j, attention in enumerate(block.attentions)
        for layer in attention.transformer_blocks
    )


class ImageProjection(nn.Module):
    """Plain: the embedding of the whole picture to a few tokens."""

    kind: ClassVar = "plain"
    reads_positions: ClassVar = False

    def __init__(self, in_channels: int, num_tokens: int, out_channels: int):
        super().__init__()
        self.in_channels, self.num_tokens = in_channels, num_tokens
        self.proj = nn.Linear(in_channels, num_tokens * out_channels)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Float[Tensor, "n e"]) -> Float[Tensor, "n m d"]:
        return self.norm(rearrange(self.proj(x), "n (m d) -> n m d", m=self.num_tokens))


class FullProjection(nn.Module):
    """Full: every position of the picture is a token."""

    kind: ClassVar = "full"
    reads_positions: ClassVar = True

    def __init__(self, in_channels: int, inner: int, out_channels: int):
        super().__init__()
        self.in_channels = in_channels
        layers = nn.Linear(in_channels, inner), nn.GELU(), nn.Linear(inner, out_channels), nn.LayerNorm(out_channels)
        self.proj = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "n l e"]) -> Float[Tensor, "n l d"]:
        return self.proj(x)


class PerceiverAttention(nn.Module):
    """Latents read the picture and each other."""

    def __init__(self, num_channels: int, num_heads: int):
        super().__init__()
        inner = HEAD_CHANNELS * num_heads
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(num_channels)
        self.norm2 = nn.LayerNorm(num_channels)
        self.to_q = nn.Linear(num_channels, inner, bias=False)
        self.to_kv = nn.Linear(num_channels, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, num_channels, bias=False)

    def forward(self, x: Float[Tensor, "n l c"], latents: Float[Tensor, "n m c"]) -> Float[Tensor, "n m c"]:
        x, latents = self.norm1(x), self.norm2(latents)
        keys, values = self.to_kv(torch.cat([x, latents], dim=1)).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(latents), keys, values, self.num_heads))


class Resampler(nn.Module):
    """Plus: learnt latents read the positions of the picture in several layers."""

    kind: ClassVar = "plus"
    reads_positions: ClassVar = True

    def __init__(
        self,
        in_channels: int,
        num_channels: int,
        num_tokens: int,
        num_heads: int,
        inner: int,
        num_layers: int,
        out_channels: int,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.latents = nn.Parameter(torch.randn(1, num_tokens, num_channels) / num_channels**0.5)
        self.proj_in = nn.Linear(in_channels, num_channels)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(num_channels, num_heads), _feed_forward(num_channels, inner)])
            for _ in range(num_layers)
        )
        self.proj_out = nn.Linear(num_channels, out_channels)
        self.norm_out = nn.LayerNorm(out_channels)

    def forward(self, x: Float[Tensor, "n l e"]) -> Float[Tensor, "n m d"]:
        x = self.proj_in(x)
        latents = self.latents.expand(x.shape[0], -1, -1)
        for attention, feed_forward in cast(Sequence[tuple[nn.Module, nn.Module]], self.layers):
            latents = attention(x, latents) + latents
            latents = feed_forward(latents) + latents
        return self.norm_out(self.proj_out(latents))


def _feed_forward(num_channels: int, inner: int) -> nn.Sequential:
    layers = nn.Linear(num_channels, inner, bias=False), nn.GELU(), nn.Linear(inner, num_channels, bias=False)
    return nn.Sequential(nn.LayerNorm(num_channels), *layers)


class _KeysValues(nn.Module):
    """The second pair of projections of one attention."""

    def __init__(self, in_channels: int, num_channels: int):
        super().__init__()
        self.to_k_ip = nn.Linear(in_channels, num_channels, bias=False)
        self.to_v_ip = nn.Linear(in_channels, num_channels, bias=False)


class IPAdapter(nn.Module):
    """One adapter.

    Args:
        image_proj: its projection.
        text_channels: of a token.
        channels: of every attention to the text, in the order of `places`.
    """

    image_proj: ImageProjection | FullProjection | Resampler

    def __init__(
        self, image_proj: ImageProjection | FullProjection | Resampler, text_channels: int, channels: Sequence[int]
    ):
        super().__init__()
        self.text_channels, self.channels = text_channels, tuple(channels)
        self.image_proj = image_proj
        # The files count all attentions, and every second one reads the frame itself.
        pairs = {str(2 * i + 1): _KeysValues(text_channels, num) for i, num in enumerate(channels)}
        self.ip_adapter = nn.ModuleDict(pairs)

    @property
    def kind(self) -> str:
        """``"plain"``, ``"plus"`` or ``"full"``."""
        return self.image_proj.kind

    @property
    def reads_positions(self) -> bool:
        """Whether it reads the last layer but one of CLIP, position by position, and not the picture's embedding."""
        return self.image_proj.reads_positions

    @property
    def in_channels(self) -> int:
        """Channels of what it reads of CLIP."""
        return self.image_proj.in_channels

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return next(self.parameters()).device

    def fits(self, unet: UNetMotionModel) -> bool:
        """Whether it was made for a network of this shape."""
        shape = unet.settings.cross_attention_dim, tuple(place.num_channels for place in places(unet))
        return shape == (self.text_channels, self.channels)

    def tokens(self, embeds: Float[Tensor, "k n *l e"]) -> Float[Tensor, "k n m d"]:
        """What n pictures for each of k prompts say, as tokens like those of the text."""
        flat = self.image_proj(embeds.flatten(0, 1).to(self.dtype))
        return rearrange(flat, "(k n) m d -> k n m d", k=embeds.shape[0])

    def forward(
        self, embeds: Float[Tensor, "k n *l e"]
    ) -> list[tuple[Float[Tensor, "k n m c"], Float[Tensor, "k n m c"]]]:
        """Keys and values of pictures for every attention, in the order of `places`."""
        tokens = self.tokens(embeds)
        pairs = cast(Sequence[_KeysValues], self.ip_adapter.values())
        return [(pair.to_k_ip(tokens), pair.to_v_ip(tokens)) for pair in pairs]


def build(state: Mapping[str, Tensor], unet: UNetMotionModel, origin: str) -> IPAdapter:
    """An adapter from the tensors of a file; its kind is read off them. Nothing is copied.

    Args:
        state: by their names in a safetensors file: ``image_proj.…`` and ``ip_adapter.…``.
        unet: the network that it is for; it is not changed. The adapter takes its data type and device.
        origin: where the tensors come from, for messages.

    Raises:
        LoadError: E-IP-ADAPTER-FILE for tensors that are no adapter of a known kind,
            E-KEYS-MISMATCH for an adapter of another network.
    """
    with torch.device("meta"):
        channels = [place.num_channels for place in places(unet)]
        adapter = IPAdapter(_projection(state, origin), unet.settings.cross_attention_dim, channels)
    check_keys(state, adapter.state_dict(), f"an IP-Adapter ({adapter.kind}) of this network", origin)
    broken = [name for name, value in state.items() if not value.is_floating_point() or not value.isfinite().all()]
    if broken:
        raise _no_adapter(origin, f"{broken[0]} holds values that are no numbers.")
    adapter.load_state_dict({k: v.to(unet.device, unet.dtype) for k, v in state.items()}, strict=True, assign=True)
    return adapter.eval().requires_grad_(False)


def refuse_face_id(names: Mapping[str, object], origin: str) -> None:
    """Refuse an adapter of the FaceID family by its name.

    Raises:
        LoadError: E-IP-ADAPTER-FACEID.
    """
    marks = any("_lora." in name for name in names if name.startswith("ip_adapter."))
    network = "image_proj.proj.0.weight" in names and "image_proj.norm.weight" in names
    if marks or network or any(name.startswith("image_proj.perceiver_resampler.") for name in names):
        raise LoadError(
            "E-IP-ADAPTER-FACEID",
            f"{origin} is an IP-Adapter FaceID.",
            "It reads faces by another network than CLIP, which is not supported.",
            "Use ip-adapter-plus-face_sd15, which reads the picture by CLIP.",
        )


def _projection(state: Mapping[str, Tensor], origin: str) -> ImageProjection | FullProjection | Resampler:
    def shape(name: str, num_axes: int) -> tuple[int, ...]:
        found = tuple(state[name].shape) if name in state else ()
        if len(found) != num_axes or 0 in found:
            raise _no_adapter(origin, f"{name} is {list(found)}." if name in state else f"It has no {name}.")
        return found

    if "image_proj.proj.weight" in state:
        out, width = shape("image_proj.proj.weight", 2)
        (num_channels,) = shape("image_proj.norm.weight", 1)
        return ImageProjection(width, out // num_channels, num_channels)
    if "image_proj.proj.3.weight" in state:
        inner, width = shape("image_proj.proj.0.weight", 2)
        return FullProjection(width, inner, shape("image_proj.proj.3.weight", 1)[0])
    _, num_tokens, num_channels = shape("image_proj.latents", 3)
    inner = shape("image_proj.layers.0.0.to_q.weight", 2)[0]
    if inner % HEAD_CHANNELS:
        raise _no_adapter(origin, f"{inner} channels are not heads of {HEAD_CHANNELS}.")
    num_layers = len({name.split(".")[2] for name in state if name.startswith("image_proj.layers.")})
    return Resampler(
        in_channels=shape("image_proj.proj_in.weight", 2)[1],
        num_channels=num_channels,
        num_tokens=num_tokens,
        num_heads=inner // HEAD_CHANNELS,
        inner=shape("image_proj.layers.0.1.1.weight", 2)[0],
        num_layers=num_layers,
        out_channels=shape("image_proj.proj_out.weight", 2)[0],
    )


def _no_adapter(origin: str, why: str) -> LoadError:
    return LoadError(
        "E-IP-ADAPTER-FILE",
        f"{origin} holds no IP-Adapter of a kind that is known.",
        why,
        "The plain, plus, plus-face and full-face adapters of Stable Diffusion 1.5 are read.",
    )
