"""ConsisID's diffusion transformer: `ConsisIDTransformer3DModel` (CogVideoX, arXiv 2408.06072; ConsisID, 2411.17440).

Text and video are one sequence in one piece of memory, text first: both go through the same layers and differ in how
they are normalised. What a run knows beforehand is computed before its first step: `read_text`, `read_identity`,
`modulate` and `place`. `predict` is what remains of a step. Tensor names equal the published files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Complex, Float
from torch import Tensor, nn

from vivant.attention import Facts, attend, choose, facts_of
from vivant.consisid.config import ConsisIDTransformer3DConfig
from vivant.consisid.identity import FoldedAttention, Identity, LocalFacialExtractor, PerceiverCrossAttention
from vivant.consisid.pieces import Piece, pieces_of, result_like
from vivant.consisid.positions import OffSize, Rotary, fit_table, rotary_table, rotate
from vivant.errors import InputError
from vivant.fused import linear_gelu
from vivant.hub.model import Model


class Transformer3DOutput(NamedTuple):
    """What the public `forward` returns."""

    sample: Float[Tensor, "b f o h w"]


class Change(NamedTuple):
    """How a layer reads some tokens, as ``scale x + shift``, and by which gate it adds its result to them."""

    shift: Float[Tensor, "k 1 c"]
    scale: Float[Tensor, "k 1 c"]
    gate: Float[Tensor, "k 1 c"]


class Modulation(NamedTuple):
    """The changes that a layer makes at some timesteps: (video, text), a row a timestep."""

    shift: Float[Tensor, "2 k 1 c"]
    scale: Float[Tensor, "2 k 1 c"]
    gate: Float[Tensor, "2 k 1 c"]

    def of(self, piece: Piece) -> Change:
        """That of a piece; one timestep serves all rows."""
        rows = piece.rows if self.shift.shape[1] > 1 else slice(None)
        return Change(*(part[int(piece.is_text), rows] for part in self))


class Modulations(NamedTuple):
    """Of the whole network, at some timesteps.

    Attributes:
        attention: of every block.
        feed_forward: likewise.
        out: shift and scale of the last normalisation.
    """

    attention: tuple[Modulation, ...]
    feed_forward: tuple[Modulation, ...]
    out: tuple[Float[Tensor, "k 1 c"], Float[Tensor, "k 1 c"]]

    def at(self, step: int) -> "Modulations":
        """Those of one timestep."""
        row = slice(step, step + 1)

        def cut(layers: tuple[Modulation, ...]) -> tuple[Modulation, ...]:
            return tuple(Modulation(*(part[:, row] for part in layer)) for layer in layers)

        shift, scale = self.out
        return Modulations(cut(self.attention), cut(self.feed_forward), (shift[row], scale[row]))


@dataclass(frozen=True, eq=False)
class Places:
    """Where the tokens of a video lie: angles for queries and keys, and what is added to the tokens, if anything."""

    rotary: Rotary
    table: Float[Tensor, "n c"] | None


class ModulatedNorm(nn.Module):
    """A normalisation and what its shift, scale and gate come from (AdaLN-zero, arXiv 2212.09748, section 3.2)."""

    def __init__(self, time_channels: int, num_channels: int, eps: float):
        super().__init__()
        self.linear = nn.Linear(time_channels, 6 * num_channels)
        self.norm = nn.LayerNorm(num_channels, eps=eps)

    def modulate(self, time: Float[Tensor, "k t"]) -> Modulation:
        """`time` is already activated."""
        shift, scale, gate = rearrange(self.linear(time), "k (part kind c) -> kind part k 1 c", part=2, kind=3)
        return Modulation(shift, 1 + scale, gate)

    def forward(self, x: Float[Tensor, "b n c"], change: Change) -> Float[Tensor, "b n c"]:
        return torch.addcmul(change.shift, self.norm(x), change.scale)


class OutputNorm(nn.Module):
    """The last normalisation, of the video alone: shift and scale, no gate."""

    def __init__(self, time_channels: int, num_channels: int, eps: float):
        super().__init__()
        self.linear = nn.Linear(time_channels, 2 * num_channels)
        self.norm = nn.LayerNorm(num_channels, eps=eps)

    def modulate(self, time: Float[Tensor, "k t"]) -> tuple[Float[Tensor, "k 1 c"], Float[Tensor, "k 1 c"]]:
        """`time` is already activated."""
        shift, scale = rearrange(self.linear(time), "k (kind c) -> kind k 1 c", kind=2)
        return shift, 1 + scale

    def forward(
        self, x: Float[Tensor, "b n c"], shift: Float[Tensor, "k 1 c"], scale: Float[Tensor, "k 1 c"]
    ) -> Float[Tensor, "b n c"]:
        return torch.addcmul(shift, self.norm(x), scale)


class Attention(nn.Module):
    """Attention among all tokens; queries and keys are normalised, and those of the video rotated."""

    def __init__(self, num_channels: int, num_heads: int, has_bias: bool):
        super().__init__()
        self.num_heads = num_heads
        self.norm_q = nn.LayerNorm(num_channels // num_heads, eps=1e-6)
        self.norm_k = nn.LayerNorm(num_channels // num_heads, eps=1e-6)
        self.to_q = nn.Linear(num_channels, num_channels, bias=has_bias)
        self.to_k = nn.Linear(num_channels, num_channels, bias=has_bias)
        self.to_v = nn.Linear(num_channels, num_channels, bias=has_bias)
        self.to_out = nn.ModuleList([nn.Linear(num_channels, num_channels)])
        self.kernel: str | None = None

    def read(
        self, x: Float[Tensor, "b n c"], rotary: Rotary | None
    ) -> tuple[Float[Tensor, "b n c"], Float[Tensor, "b n c"], Float[Tensor, "b n c"]]:
        """Queries, keys and values of some tokens; those of the text have no place."""
        return (
            self._placed(self.norm_q, self.to_q(x), rotary),
            self._placed(self.norm_k, self.to_k(x), rotary),
            self.to_v(x),
        )

    def _placed(self, norm: nn.LayerNorm, x: Float[Tensor, "b n c"], rotary: Rotary | None) -> Float[Tensor, "b n c"]:
        heads = norm(rearrange(x, "b n (k d) -> b n k d", k=self.num_heads))
        return rearrange(heads if rotary is None else rotate(heads, rotary), "b n k d -> b n (k d)")


class FeedForward(nn.Module):
    """Two linear layers, four times as wide between them."""

    def __init__(self, num_channels: int):
        super().__init__()
        wide = nn.ModuleDict({"proj": nn.Linear(num_channels, 4 * num_channels)})
        self.net = nn.ModuleList([wide, nn.Identity(), nn.Linear(4 * num_channels, num_channels)])

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        first, _, last = self.net
        return last(linear_gelu(x, first["proj"]))  # pyright: ignore[reportIndexIssue]


class Block(nn.Module):
    """Attention, then feed-forward."""

    def __init__(self, config: ConsisIDTransformer3DConfig):
        super().__init__()
        c = config
        self.norm1 = ModulatedNorm(c.time_embed_dim, c.num_channels, c.norm_eps)
        self.attn1 = Attention(c.num_channels, c.num_attention_heads, c.attention_bias)
        self.norm2 = ModulatedNorm(c.time_embed_dim, c.num_channels, c.norm_eps)
        self.ff = FeedForward(c.num_channels)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        attention: Modulation,
        feed_forward: Modulation,
        rotary: Complex[Tensor, "v p"],
        num_text: int,
    ) -> Float[Tensor, "b n c"]:
        cuts = pieces_of(x, num_text)
        q, k, v = (torch.empty_like(x) for _ in range(3))
        for piece in cuts:
            at = piece.rows, piece.tokens
            places = None if piece.is_text else rotary[piece.tokens.start - num_text : piece.tokens.stop - num_text]
            q[at], k[at], v[at] = self.attn1.read(self.norm1(x[at], attention.of(piece)), places)
        mixed = attend(q, k, v, self.attn1.num_heads, self.attn1.kernel)
        del q, k, v
        out = result_like(x)
        for piece in cuts:
            at, first, second = (piece.rows, piece.tokens), attention.of(piece), feed_forward.of(piece)
            tokens = torch.addcmul(x[at], self.attn1.to_out[0](mixed[at]), first.gate)
            out[at] = torch.addcmul(tokens, self.ff(self.norm2(tokens, second)), second.gate)
        return out


class PatchEmbedding(nn.Module):
    """Patches of latents and words of the text as tokens of one width, and the learned table of their places."""

    def __init__(self, config: ConsisIDTransformer3DConfig):
        super().__init__()
        c = config
        self.proj = nn.Conv2d(c.in_channels, c.num_channels, c.patch_size, stride=c.patch_size)
        self.text_proj = nn.Linear(c.text_embed_dim, c.num_channels)
        if c.use_learned_positional_embeddings:
            num_tokens = c.max_text_seq_length + math.prod(c.grid)
            self.register_buffer("pos_embedding", torch.zeros(1, num_tokens, c.num_channels))
        else:
            self.pos_embedding = None

    def forward(self, x: Float[Tensor, "b f c h w"]) -> Float[Tensor, "b n d"]:
        num_frames = x.shape[1]
        patches = self.proj(rearrange(x, "b f c h w -> (b f) c h w"))
        return rearrange(patches, "(b f) d i j -> b (f i j) d", f=num_frames)


class TimeEmbedding(nn.Module):
    """Sinusoidal timestep, cosine half first, then a two-layer perceptron."""

    def __init__(self, num_channels: int, time_channels: int):
        super().__init__()
        self.linear_1 = nn.Linear(num_channels, time_channels)
        self.linear_2 = nn.Linear(time_channels, time_channels)

    def forward(self, timesteps: Float[Tensor, " k"]) -> Float[Tensor, "k t"]:
        half = self.linear_1.in_features // 2
        index = torch.arange(half, dtype=torch.float32, device=timesteps.device)
        angles = timesteps[:, None] * torch.exp(-math.log(10_000) / half * index)
        table = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(table)))


class ConsisIDTransformer3DModel(Model):
    """Predicts the velocity of a video's latents from text, the latents of a face, and an identity.

    Attributes:
        off_size: what the learned table of places becomes for sizes other than those of the training, and for longer
            clips: ``"interpolate"`` or ``"zero"``. Shorter clips of the training's size read its first frames.
    """

    Config = ConsisIDTransformer3DConfig
    settings: ConsisIDTransformer3DConfig
    off_size: OffSize = "interpolate"

    def __init__(self, **fields: Any):
        super().__init__(**fields)
        c = self.settings
        self.patch_embed = PatchEmbedding(c)
        self.time_embedding = TimeEmbedding(c.num_channels, c.time_embed_dim)
        self.transformer_blocks = nn.ModuleList(Block(c) for _ in range(c.num_layers))
        self.norm_final = nn.LayerNorm(c.num_channels, c.norm_eps)
        self.norm_out = OutputNorm(c.time_embed_dim, c.num_channels, c.norm_eps)
        self.proj_out = nn.Linear(c.num_channels, c.patch_size**2 * c.out_channels)
        if c.is_train_face:
            self.local_facial_extractor = LocalFacialExtractor(c)
            self.perceiver_cross_attention = nn.ModuleList(
                PerceiverCrossAttention(c.num_channels, c.face_channels, c.cross_attn_num_heads, c.cross_attn_dim_head)
                for _ in range(c.num_face_attentions)
            )

    def set_attention_backend(self, backend: str) -> None:
        """Compute attention by one kernel of `vivant.attention.KERNELS`, in place of the best one that is exact.

        Args:
            backend: such as ``"sage"``, which is faster than exact ones and needs its package.

        Raises:
            InputError: E-ATTENTION-KERNEL if this model cannot use it where it is.
        """
        self._set_kernel(choose(self._attention_facts(1, self.settings.max_text_seq_length + 1), backend).name)

    def reset_attention_backend(self) -> None:
        """Compute attention by the best kernel that is exact."""
        self._set_kernel(None)

    def attention_kernel(self, num_rows: int, num_tokens: int) -> str:
        """Name of the kernel that computes attention among so many tokens, text included."""
        return choose(self._attention_facts(num_rows, num_tokens), self._blocks()[0].attn1.kernel).name

    def _attention_facts(self, num_rows: int, num_tokens: int) -> Facts:
        tokens = torch.empty(num_rows, num_tokens, self.settings.num_channels, device="meta", dtype=self.dtype)
        return facts_of(tokens, tokens, self.settings.num_attention_heads, device=self.device)

    def _set_kernel(self, name: str | None) -> None:
        for block in self._blocks():
            block.attn1.kernel = name

    def _blocks(self) -> list[Block]:
        return [block for block in self.transformer_blocks if isinstance(block, Block)]

    # ---------------------------------------------------------------------------------- known before the first step

    def read_text(self, text: Float[Tensor, "b m d"]) -> Float[Tensor, "b m c"]:
        """Tokens of encoded prompts, at most `config.max_text_seq_length` words."""
        tokens = self.patch_embed.text_proj(text)
        table = self.patch_embed.pos_embedding
        return tokens if table is None else tokens + table[:, : text.shape[1]].to(tokens.dtype)

    def read_identity(self, id_cond: Float[Tensor, "b e"], id_vit_hidden: Sequence[Float[Tensor, "b p d"]]) -> Identity:
        """Everything that the blocks read of faces.

        Args:
            id_cond: one embedding a person, `config.LFE_id_dim` channels.
            id_vit_hidden: hidden states of the face's vision transformer at `config.LFE_num_scale` depths.
        """
        face = self.local_facial_extractor(id_cond, id_vit_hidden)
        return tuple(layer.fold(face, self.settings.local_face_scale) for layer in self._face_attentions())

    def modulate(self, timesteps: Float[Tensor, " k"]) -> Modulations:
        """What all layers do at these timesteps: 12 vectors for each block and timestep."""
        time = F.silu(self.time_embedding(timesteps))
        blocks = self._blocks()
        return Modulations(
            tuple(block.norm1.modulate(time) for block in blocks),
            tuple(block.norm2.modulate(time) for block in blocks),
            self.norm_out.modulate(time),
        )

    def place(self, num_frames: int, height: int, width: int) -> Places:
        """Places of the tokens of `num_frames` latent frames, `height` x `width` latents."""
        c = self.settings
        grid = num_frames, height // c.patch_size, width // c.patch_size
        rotary = rotary_table(c.attention_head_dim, grid, c.grid[1:], self.device)
        table = self.patch_embed.pos_embedding
        if table is not None:
            table = fit_table(table[0, c.max_text_seq_length :], c.grid, grid, self.off_size)
        return Places(rotary, table)

    def read_once(self) -> list[nn.Module]:
        """The modules that `predict` does not touch: a third of the parameters, whose memory a run can do without."""
        modulating = [layer.linear for block in self._blocks() for layer in (block.norm1, block.norm2)]
        faces = [self.local_facial_extractor, self.perceiver_cross_attention] if self.settings.is_train_face else []
        return [self.time_embedding, *modulating, self.norm_out.linear, *faces]

    # ------------------------------------------------------------------------------------------------------- a step

    def predict(
        self,
        x: Float[Tensor, "b f c h w"],
        text: Float[Tensor, "n m d"],
        modulations: Modulations,
        places: Places,
        identity: Identity = (),
    ) -> Float[Tensor, "n f o h w"]:
        """The network itself.

        Args:
            x: latents and their condition. The batch may be smaller than that of `text`, in whole blocks.
            text: result of `read_text`.
            modulations: of one timestep for all, or of one for each row of `text`.
            places: result of `place`.
            identity: result of `read_identity`: one person for all, or as many as divide the rows of `text`.
        """
        num_frames, height = x.shape[1], x.shape[3]
        num_text, interval, p = text.shape[1], self.settings.cross_attn_interval, self.settings.patch_size
        video = self.patch_embed(x)
        if places.table is not None:
            video = video + places.table
        tokens = torch.cat([text, video.repeat(len(text) // len(video), 1, 1)], dim=1)
        for i, block in enumerate(self.transformer_blocks):
            attention, feed_forward = modulations.attention[i], modulations.feed_forward[i]
            tokens = block(tokens, attention, feed_forward, places.rotary, num_text)
            if identity and i % interval == 0:
                tokens = self._recognised(tokens, i // interval, identity[i // interval], num_text)
        video = self.norm_out(self.norm_final(tokens[:, num_text:]), *modulations.out)
        return rearrange(
            self.proj_out(video), "b (f i j) (c p q) -> b f c (i p) (j q)", f=num_frames, i=height // p, p=p, q=p
        )

    def _recognised(
        self, tokens: Float[Tensor, "b n c"], index: int, folded: FoldedAttention, num_text: int
    ) -> Float[Tensor, "b n c"]:
        """The video's tokens and what they read of the face."""
        layer, out = self._face_attentions()[index], result_like(tokens)
        for piece in pieces_of(tokens, num_text):
            at = piece.rows, piece.tokens
            if piece.is_text:
                out[at] = tokens[at]
                continue
            whole = len(tokens[at]) == len(tokens)
            out[at] = tokens[at] + layer(tokens[at], folded if whole else folded.of(piece.rows.start))
        return out

    def _face_attentions(self) -> list[PerceiverCrossAttention]:
        return [layer for layer in self.perceiver_cross_attention if isinstance(layer, PerceiverCrossAttention)]

    # ---------------------------------------------------------------------------------------------- diffusers' call

    def forward(
        self,
        hidden_states: Float[Tensor, "b f c h w"],
        encoder_hidden_states: Float[Tensor, "b m d"],
        timestep: Tensor | float | int,
        timestep_cond: None = None,
        image_rotary_emb: tuple[Float[Tensor, "n r"], Float[Tensor, "n r"]] | None = None,
        attention_kwargs: Mapping[str, Any] | None = None,
        id_cond: Float[Tensor, "k e"] | None = None,
        id_vit_hidden: Sequence[Float[Tensor, "k p v"]] | None = None,
        return_dict: bool = True,
    ) -> Transformer3DOutput | tuple[Tensor]:
        """One step, with everything that `predict` takes computed anew.

        Args:
            hidden_states: latents and their condition, `config.in_channels` channels.
            encoder_hidden_states: encoded prompts.
            timestep: one for all, or one for each.
            timestep_cond: None; no checkpoint of this class has a layer for it.
            image_rotary_emb: cosines and sines of the video's tokens, as diffusers lays them out; computed from the
                shape of the latents if not given.
            attention_kwargs: None or empty.
            id_cond: embeddings of the identities: one for all, or one for each.
            id_vit_hidden: their hidden states.
            return_dict: False returns a tuple.

        Raises:
            InputError: E-LATENTS-SHAPE, E-PROMPT-EMBEDS-SHAPE, E-TIMESTEPS-SHAPE, E-IDENTITY-SHAPE, E-IDENTITY-NONE
                for a model that needs an identity, E-ARG-VALUE for what would be ignored.
        """
        check_step(self.settings, hidden_states, encoder_hidden_states)
        if timestep_cond is not None or attention_kwargs:
            raise InputError(
                "E-ARG-VALUE", "timestep_cond and attention_kwargs change nothing in this model.", "", "Leave them out."
            )
        timesteps = torch.as_tensor(timestep, device=hidden_states.device).reshape(-1)
        if len(timesteps) not in (1, len(hidden_states)):
            raise InputError(
                "E-TIMESTEPS-SHAPE",
                f"There are {len(timesteps)} timesteps for a batch of {len(hidden_states)}.",
                "",
                "Give one for all, or one for each.",
            )
        identity = self._identity(hidden_states, id_cond, id_vit_hidden)
        places = self.place(hidden_states.shape[1], *hidden_states.shape[3:])
        if image_rotary_emb is not None:
            cos, sin = image_rotary_emb
            places = Places(torch.complex(cos[:, ::2].float(), sin[:, ::2].float()), places.table)
        text = self.read_text(encoder_hidden_states)
        out = self.predict(hidden_states, text, self.modulate(timesteps.float()), places, identity)
        return Transformer3DOutput(out) if return_dict else (out,)

    def _identity(self, x: Tensor, id_cond: Tensor | None, id_vit_hidden: Sequence[Tensor] | None) -> Identity:
        check_identity(self.settings, id_cond, id_vit_hidden)
        if id_cond is None or id_vit_hidden is None:
            return ()
        if len(x) % len(id_cond):
            raise InputError(
                "E-IDENTITY-SHAPE", f"There are {len(id_cond)} identities for a batch of {len(x)}.", "", "Give one."
            )
        return self.read_identity(id_cond.to(x), [hidden.to(x) for hidden in id_vit_hidden])


def check_step(config: ConsisIDTransformer3DConfig, sample: Tensor, text: Tensor) -> None:
    """Refuse latents or a text that this network does not read (E-LATENTS-SHAPE, E-PROMPT-EMBEDS-SHAPE)."""
    c = config
    if sample.shape[2] != c.in_channels or any(size % c.patch_size for size in sample.shape[3:]):
        raise InputError(
            "E-LATENTS-SHAPE",
            f"The sample has the shape {tuple(sample.shape)}.",
            f"This network reads {c.in_channels} channels in patches of {c.patch_size} x {c.patch_size} latents.",
        )
    if text.shape[0] != sample.shape[0] or text.shape[1] > c.max_text_seq_length or text.shape[2] != c.text_embed_dim:
        raise InputError(
            "E-PROMPT-EMBEDS-SHAPE",
            f"encoder_hidden_states has the shape {tuple(text.shape)} for a batch of {sample.shape[0]}.",
            f"This network reads at most {c.max_text_seq_length} words of {c.text_embed_dim} channels.",
        )


def check_identity(
    config: ConsisIDTransformer3DConfig, id_cond: Tensor | None, id_vit_hidden: Sequence[Tensor] | None
) -> None:
    """Refuse identities that do not fit (E-IDENTITY-NONE, E-IDENTITY-SHAPE, E-ARG-VALUE)."""
    c = config
    if not c.is_train_face:
        if id_cond is not None or id_vit_hidden is not None:
            raise InputError("E-ARG-VALUE", "This model has no modules that read an identity.", "", "Leave it out.")
        return
    if id_cond is None or id_vit_hidden is None:
        raise InputError(
            "E-IDENTITY-NONE",
            "This model needs an identity, and id_cond or id_vit_hidden is missing.",
            "",
            "Give both, as process_face_embeddings_infer returns them.",
        )
    shapes = [tuple(hidden.shape) for hidden in id_vit_hidden]
    fits = all(len(s) == 3 and s[0] == len(id_cond) and s[2] == c.LFE_vit_dim for s in shapes)
    if id_cond.ndim != 2 or id_cond.shape[1] != c.LFE_id_dim or len(shapes) != c.LFE_num_scale or not fits:
        raise InputError(
            "E-IDENTITY-SHAPE",
            f"id_cond has the shape {tuple(id_cond.shape)}, id_vit_hidden {', '.join(map(str, shapes))}.",
            f"They must be (people, {c.LFE_id_dim}) and {c.LFE_num_scale} times (people, patches, {c.LFE_vit_dim}).",
        )
