"""Small components whose axis sizes are pairwise distinct, filled by a rule instead of stored weights."""

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

# b2 c4 f5 h6 w10 in latents; 48 x 80 pixels; text of 7 tokens and 20 channels.
BATCH, FRAMES, HEIGHT, WIDTH, TOKENS, TEXT_DIM = 2, 5, 6, 10, 7, 20

UNET2D = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [16, 24],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 2,
    "cross_attention_dim": TEXT_DIM,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
ADAPTER = {
    "_class_name": "MotionAdapter",
    "block_out_channels": [16, 24],
    "conv_in_channels": 9,
    "motion_layers_per_block": 2,
    "motion_max_seq_length": 32,
    "motion_mid_block_layers_per_block": 1,
    "motion_norm_num_groups": 8,
    "motion_num_attention_heads": 4,
    "use_motion_mid_block": False,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [4, 8, 12, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 2,
    "sample_size": 64,
    "scaling_factor": 0.18215,
}
# Of a video autoencoder: tiles of 24 x 40 pixels, 3 x 5 latents.
VIDEO_VAE = {
    "_class_name": "AutoencoderKLCogVideoX",
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 12, 16, 20],
    "down_block_types": ["CogVideoXDownBlock3D"] * 4,
    "up_block_types": ["CogVideoXUpBlock3D"] * 4,
    "layers_per_block": 1,
    "latent_channels": 6,
    "norm_num_groups": 4,
    "temporal_compression_ratio": 4,
    "sample_height": 48,
    "sample_width": 80,
    "scaling_factor": 0.7,
}
TEXT = {
    "hidden_size": TEXT_DIM,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "vocab_size": 200,
    "hidden_act": "quick_gelu",
    "projection_dim": TEXT_DIM,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def rule(key: str, shape: tuple[int, ...], seed: int = 11) -> Tensor:
    """The deterministic value of the tensor `key`: the same on every machine and for every implementation."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()) + seed)
    r = torch.randn(shape, generator=generator)
    if key.endswith("running_var"):
        return 1 + 0.2 * r.abs()
    if key.endswith("running_mean"):
        return 0.1 * r
    if len(shape) >= 2:
        return r / torch.Size(shape[1:]).numel() ** 0.5
    if key.endswith("weight"):
        return 1 + 0.1 * r
    return 0.05 * r


def filled(shapes: Mapping[str, Tensor], seed: int = 11) -> dict[str, Tensor]:
    """A state dict by the rule; analytic tables (`pos_embed.pe`, `position_ids`) keep their own values."""
    keep = ("pos_embed.pe", "position_ids")
    return {
        key: value if key.endswith(keep) or not value.is_floating_point() else rule(key, tuple(value.shape), seed)
        for key, value in shapes.items()
    }


def fill(module: nn.Module, seed: int = 11) -> nn.Module:
    """Fill `module` by the rule, in place, and put it into eval mode."""
    module.load_state_dict(filled(module.state_dict(), seed))
    return module.eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal values from a generator of its own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
