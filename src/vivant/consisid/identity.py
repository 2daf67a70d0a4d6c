"""ConsisID's local facial extractor and the attention of the video to the face (arXiv 2411.17440, section 3.2).

A face does not change while a video is made. So its tokens are extracted once, and what every attention does with them
is folded into two matrices: the scores of a token x are ``norm(x) (Wq^T K)``, and the result is ``softmax (V Wo)``. For
32 tokens of the face that is a quarter of the work of projecting queries and outputs of a whole video.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vivant.consisid.config import ConsisIDTransformer3DConfig


class FoldedAttention(NamedTuple):
    """Attention to one set of tokens for each row: what remains of normalisation, queries, keys, values and output.

    It holds all that a step needs, so that the layer's own parameters need not be in memory meanwhile.
    """

    weight: Float[Tensor, " c"]
    bias: Float[Tensor, " c"]
    scores: Float[Tensor, "b c hm"]
    values: Float[Tensor, "b hm c"]

    def of(self, row: int) -> "FoldedAttention":
        """That of one row of a batch in which the people repeat in order."""
        i = row % len(self.scores)
        return self._replace(scores=self.scores[i : i + 1], values=self.values[i : i + 1])


Identity = tuple[FoldedAttention, ...]
"""Of a face: one for every attention to it."""


def _mix(
    q: Float[Tensor, "b n hd"], k: Float[Tensor, "b m hd"], v: Float[Tensor, "b m hd"], num_heads: int
) -> Float[Tensor, "b n hd"]:
    """Attention whose softmax is computed in float32, in whatever precision the network runs."""
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=num_heads) for x in (q, k, v))
    scale = q.shape[-1] ** -0.25  # half of it on either side: in float16 a product could overflow
    weights = ((q * scale) @ (k * scale).mT).softmax(dim=-1, dtype=torch.float32).to(v.dtype)
    return rearrange(weights @ v, "b h n d -> b n (h d)")


class PerceiverAttention(nn.Module):
    """Latent tokens read a context and themselves (Perceiver, arXiv 2103.03206)."""

    def __init__(self, num_channels: int, num_heads: int, head_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(num_channels)
        self.norm2 = nn.LayerNorm(num_channels)
        self.to_q = nn.Linear(num_channels, num_heads * head_dim, bias=False)
        self.to_kv = nn.Linear(num_channels, 2 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, num_channels, bias=False)

    def forward(self, context: Float[Tensor, "b m c"], latents: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        latents = self.norm2(latents)
        k, v = self.to_kv(torch.cat([self.norm1(context), latents], dim=1)).chunk(2, dim=-1)
        return self.to_out(_mix(self.to_q(latents), k, v, self.num_heads))


def _mapping(num_inputs: int, num_channels: int, num_outputs: int) -> nn.Sequential:
    """Three linear layers with normalisation between them."""
    return nn.Sequential(
        nn.Linear(num_inputs, num_channels),
        nn.LayerNorm(num_channels),
        nn.LeakyReLU(),
        nn.Linear(num_channels, num_channels),
        nn.LayerNorm(num_channels),
        nn.LeakyReLU(),
        nn.Linear(num_channels, num_outputs),
    )


class LocalFacialExtractor(nn.Module):
    """Tokens of a face from the embedding of its identity and a vision transformer's hidden states at five depths."""

    def __init__(self, config: ConsisIDTransformer3DConfig):
        super().__init__()
        c = config
        self.num_id_tokens, self.num_queries = c.LFE_num_id_token, c.LFE_num_querie
        self.num_scales, self.num_layers = c.LFE_num_scale, c.LFE_depth // c.LFE_num_scale
        width = c.LFE_vit_dim
        self.latents = nn.Parameter(torch.randn(1, c.LFE_num_querie, width) * width**-0.5)
        self.proj_out = nn.Parameter(torch.randn(width, c.LFE_output_dim) * width**-0.5)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(width, c.LFE_num_heads, c.LFE_dim_head),
                    nn.Sequential(
                        nn.LayerNorm(width),
                        nn.Linear(width, width * c.LFE_ff_mult, bias=False),
                        nn.GELU(),
                        nn.Linear(width * c.LFE_ff_mult, width, bias=False),
                    ),
                ]
            )
            for _ in range(c.LFE_depth)
        )
        for i in range(c.LFE_num_scale):
            self.add_module(f"mapping_{i}", _mapping(width, width, width))
        self.id_embedding_mapping = _mapping(c.LFE_id_dim, width, width * c.LFE_num_id_token)

    def forward(
        self, id_cond: Float[Tensor, "b e"], id_vit_hidden: Sequence[Float[Tensor, "b p d"]]
    ) -> Float[Tensor, "b m o"]:
        """One identity a row: its embedding, and the hidden states from shallow to deep."""
        identity = rearrange(self.id_embedding_mapping(id_cond), "b (t d) -> b t d", t=self.num_id_tokens)
        latents = torch.cat([self.latents.expand(len(id_cond), -1, -1), identity], dim=1)
        for i, hidden in enumerate(id_vit_hidden):
            context = torch.cat([identity, self.get_submodule(f"mapping_{i}")(hidden)], dim=1)
            for layer in self.layers[i * self.num_layers : (i + 1) * self.num_layers]:
                attention, feed_forward = cast(nn.ModuleList, layer)
                latents = attention(context, latents) + latents
                latents = feed_forward(latents) + latents
        return latents[:, : self.num_queries] @ self.proj_out


class PerceiverCrossAttention(nn.Module):
    """The tokens of the video read those of the face."""

    def __init__(self, num_channels: int, num_face_channels: int, num_heads: int, head_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(num_face_channels)
        self.norm2 = nn.LayerNorm(num_channels)
        self.to_q = nn.Linear(num_channels, num_heads * head_dim, bias=False)
        self.to_kv = nn.Linear(num_face_channels, 2 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, num_channels, bias=False)

    def fold(self, face: Float[Tensor, "b m o"], scale: float) -> FoldedAttention:
        """All that reading this face needs. Computed in float32, so that half precision rounds once.

        Args:
            face: result of the local facial extractor.
            scale: of what is read.
        """
        heads = self.num_heads
        k, v = nn.functional.linear(self.norm1(face), self.to_kv.weight).float().chunk(2, dim=-1)
        k, v = (rearrange(x, "b m (h d) -> b h m d", h=heads) for x in (k, v))
        w_q = rearrange(self.to_q.weight.float(), "(h d) c -> h c d", h=heads)
        w_out = rearrange(self.to_out.weight.float(), "c (h d) -> h d c", h=heads)
        scores = rearrange(w_q @ k.mT / math.sqrt(k.shape[-1]), "b h c m -> b c (h m)")
        values = rearrange(v @ w_out * scale, "b h m c -> b (h m) c")
        norm = self.norm2.weight.clone(), self.norm2.bias.clone()
        return FoldedAttention(*norm, scores.to(face.dtype), values.to(face.dtype))

    def forward(self, x: Float[Tensor, "b n c"], folded: FoldedAttention) -> Float[Tensor, "b n c"]:
        """`folded` has one row for all of x, or as many as divide those of x: x then repeats the people in order."""
        x = nn.functional.layer_norm(x, x.shape[-1:], folded.weight, folded.bias, self.norm2.eps)
        scores = rearrange(_times(x, folded.scores), "b n (h m) -> b n h m", h=self.num_heads)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(x.dtype)
        return _times(rearrange(weights, "b n h m -> b n (h m)"), folded.values)


def _times(x: Float[Tensor, "b n c"], matrices: Float[Tensor, "r c d"]) -> Float[Tensor, "b n d"]:
    """Every row of x times its matrix; rows of x repeat the matrices as whole blocks."""
    if len(matrices) == 1:
        return x @ matrices[0]
    blocks = rearrange(x, "(g r) n c -> g r n c", r=len(matrices))
    return rearrange(blocks @ matrices, "g r n d -> (g r) n d")
