"""Configuration of ConsisID's transformer: fields equal the published `config.json`; sizes are free, kinds are not."""

from dataclasses import dataclass

from vivant.config import only
from vivant.errors import InputError


@dataclass(frozen=True)
class ConsisIDTransformer3DConfig:
    """The diffusion transformer of CogVideoX with ConsisID's identity modules.

    `sample_width` and `sample_height` count latents, `sample_frames` frames of the video. `LFE_*` describe the local
    facial extractor; their spelling is that of published files.
    """

    num_attention_heads: int = 30
    attention_head_dim: int = 64
    in_channels: int = 16
    out_channels: int = 16
    flip_sin_to_cos: bool = only(True)
    freq_shift: int = only(0)
    time_embed_dim: int = 512
    text_embed_dim: int = 4096
    num_layers: int = 30
    dropout: float = only(0.0)
    attention_bias: bool = True
    sample_width: int = 90
    sample_height: int = 60
    sample_frames: int = 49
    patch_size: int = 2
    temporal_compression_ratio: int = 4
    max_text_seq_length: int = 226
    activation_fn: str = only("gelu-approximate")
    timestep_activation_fn: str = only("silu")
    norm_elementwise_affine: bool = only(True)
    norm_eps: float = 1e-5
    spatial_interpolation_scale: float = 1.875
    temporal_interpolation_scale: float = 1.0
    use_rotary_positional_embeddings: bool = only(True)
    use_learned_positional_embeddings: bool = False
    is_train_face: bool = False
    is_kps: bool = False
    cross_attn_interval: int = 2
    cross_attn_dim_head: int = 128
    cross_attn_num_heads: int = 16
    LFE_id_dim: int = 1280
    LFE_vit_dim: int = 1024
    LFE_depth: int = 10
    LFE_dim_head: int = 64
    LFE_num_heads: int = 16
    LFE_num_id_token: int = 5
    LFE_num_querie: int = 32
    LFE_output_dim: int = 2048
    LFE_ff_mult: int = 4
    LFE_num_scale: int = 5
    local_face_scale: float = 1.0

    def __post_init__(self):
        if self.attention_head_dim % 16:
            self._refuse("attention_head_dim", "The three axes of the rotary embedding need a multiple of 16.")
        if self.sample_width % self.patch_size or self.sample_height % self.patch_size:
            self._refuse("patch_size", f"It does not divide {self.sample_height} x {self.sample_width} latents.")
        if not self.is_train_face:
            return
        if self.LFE_depth % self.LFE_num_scale:
            self._refuse("LFE_depth", f"It is no multiple of LFE_num_scale, {self.LFE_num_scale}.")
        if self.face_channels != self.LFE_output_dim:
            self._refuse("LFE_output_dim", f"The attention to the face reads {self.face_channels} channels.")

    def _refuse(self, name: str, why: str) -> None:
        raise InputError("E-CONFIG-VALUE", f"ConsisIDTransformer3D has {name} = {getattr(self, name)!r}.", why)

    @property
    def num_channels(self) -> int:
        """Width of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def face_channels(self) -> int:
        """Width of a face token, two thirds of a token's."""
        return int(self.num_channels / 3 * 2)

    @property
    def num_face_attentions(self) -> int:
        """After block 0, and then after every `cross_attn_interval`-th."""
        return -(-self.num_layers // self.cross_attn_interval)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns of tokens that the model was trained on."""
        num_frames = (self.sample_frames - 1) // self.temporal_compression_ratio + 1
        return num_frames, self.sample_height // self.patch_size, self.sample_width // self.patch_size
