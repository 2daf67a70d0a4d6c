"""Stable Diffusion 1.5 as its authors and Civitai lay it out: one file for UNet, VAE and text encoder.

Source: the code of CompVis/latent-diffusion (`openaimodel.py`, `model.py`), and `sd15_single_file.json` of the tests.
Its UNet numbers layers through all resolutions, so its table depends on how many there are.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from vivant.hub.keymaps import Keymap, Row

LAYOUT = "LDM"
UNET = "model.diffusion_model."
"""What the UNet's names begin with in a file of a whole model."""
VAE = "first_stage_model."
"""What the autoencoder's names begin with there."""
TEXT = "cond_stage_model.transformer.text_model."
"""What the text encoder's names begin with there."""

DROP = (
    r"(alphas|betas|log_one_minus|posterior|sqrt)\w*",  # tables of the noise schedule
    r"(logvar|scale_factor|model_sigmas|denoiser\.\w+)",
    r"(v_pred|ztsnr)",  # empty: they say how the model was trained, see `prediction`
    r"(first_stage_model\.)?loss\..*",  # the critic of the autoencoder's training
    r"(first_stage_model\.)?(model_ema|discriminator)\..*",  # averages of the training
    r"(cond_stage_model\.)?(transformer\.)?(vision_model|visual_projection)\..*",  # the image half of a whole CLIP
    r"(cond_stage_model\.)?(transformer\.)?(logit_scale|text_projection(\.weight)?)",
    r"(cond_stage_model\.transformer\.)?(text_model\.)?embeddings\.position_ids",  # 0 to 76, sometimes as float
    r"(embedding_manager|lvlm|safety_checker)\..*",
    r"(epoch|global_step|iteration)",
)
"""Names of such files that none of the three networks has."""

_RESNET = (
    Row(r"\.norm1\.", ".in_layers.0."),
    Row(r"\.conv1\.", ".in_layers.2."),
    Row(r"\.time_emb_proj\.", ".emb_layers.1."),
    Row(r"\.norm2\.", ".out_layers.0."),
    Row(r"\.conv2\.", ".out_layers.3."),
    Row(r"\.conv_shortcut\.", ".skip_connection."),
)


def unet(config: Mapping[str, Any], prefix: str = UNET) -> Keymap:
    """The names of a UNet, of `UNet2DConditionModel` and of the base in `UNetMotionModel`.

    Args:
        config: its `.config`; of that only `block_out_channels`, `layers_per_block` and the kinds of blocks count.
        prefix: what its names begin with in the file.
    """
    num_stages = len(config["block_out_channels"])
    layers = config["layers_per_block"]
    counts = [layers] * num_stages if isinstance(layers, int) else list(layers)
    rows: list[Row] = []
    # Inside of resnets first, while they can be told from the normalisations of the transformers.
    for pattern, replacement, _ in _RESNET:
        rows.append(Row(rf"(\.resnets\.\d+){pattern}", rf"\1{replacement}"))
    at = 1
    for stage, num in enumerate(counts):
        for layer in range(num):
            rows.append(Row(rf"^down_blocks\.{stage}\.resnets\.{layer}\.", f"input_blocks.{at}.0."))
            if _attends(config["down_block_types"][stage]):
                rows.append(Row(rf"^down_blocks\.{stage}\.attentions\.{layer}\.", f"input_blocks.{at}.1."))
            at += 1
        if stage + 1 < num_stages:
            rows.append(Row(rf"^down_blocks\.{stage}\.downsamplers\.0\.conv\.", f"input_blocks.{at}.0.op."))
            at += 1
    rows += [
        Row(r"^mid_block\.resnets\.0\.", "middle_block.0."),
        Row(r"^mid_block\.attentions\.0\.", "middle_block.1."),
        Row(r"^mid_block\.resnets\.1\.", "middle_block.2."),
    ]
    at = 0
    for stage, num in enumerate(reversed(counts)):
        attends = _attends(config["up_block_types"][stage])
        for layer in range(num + 1):
            rows.append(Row(rf"^up_blocks\.{stage}\.resnets\.{layer}\.", f"output_blocks.{at}.0."))
            if attends:
                rows.append(Row(rf"^up_blocks\.{stage}\.attentions\.{layer}\.", f"output_blocks.{at}.1."))
            at += 1
        if stage + 1 < num_stages:
            last = f"output_blocks.{at - 1}.{2 if attends else 1}.conv."
            rows.append(Row(rf"^up_blocks\.{stage}\.upsamplers\.0\.conv\.", last))
    rows += [
        Row(r"^time_embedding\.linear_1\.", "time_embed.0."),
        Row(r"^time_embedding\.linear_2\.", "time_embed.2."),
        Row(r"^conv_in\.", "input_blocks.0.0."),
        Row(r"^conv_norm_out\.", "out.0."),
        Row(r"^conv_out\.", "out.2."),
        Row(r"^", prefix),
    ]
    return Keymap(LAYOUT, tuple(rows), DROP)


def _attends(kind: str) -> bool:
    return kind.startswith("CrossAttn")


def vae(config: Mapping[str, Any], prefix: str = VAE) -> Keymap:
    """The names of `AutoencoderKL`; its attention is stored as 1x1 convolutions there."""
    last = len(config["block_out_channels"]) - 1
    attends = config.get("mid_block_add_attention", True)
    rows = [
        Row(r"\.conv_shortcut\.", ".nin_shortcut.", is_optional=True),
        Row(r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
        Row(r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
        Row(r"\.mid_block\.attentions\.0\.", ".mid.attn_1.", is_optional=not attends),
        Row(r"(\.attn_1)\.group_norm\.", r"\1.norm.", is_optional=not attends),
        Row(r"(\.attn_1)\.to_([qkv])\.", r"\1.\2.", is_optional=not attends),
        Row(r"(\.attn_1)\.to_out\.0\.", r"\1.proj_out.", is_optional=not attends),
        Row(r"^encoder\.down_blocks\.(\d+)\.", r"encoder.down.\1."),
        *(Row(rf"^decoder\.up_blocks\.{stage}\.", f"decoder.up.{last - stage}.") for stage in range(last + 1)),
        Row(r"\.resnets\.", ".block."),
        Row(r"\.downsamplers\.0\.", ".downsample.", is_optional=not last),
        Row(r"\.upsamplers\.0\.", ".upsample.", is_optional=not last),
        Row(r"\.conv_norm_out\.", ".norm_out."),
        Row(r"^", prefix),
    ]
    return Keymap(LAYOUT, tuple(rows), DROP, pointwise=r"\.mid\.attn_1\.(q|k|v|proj_out)\.weight$")


def text(config: Mapping[str, Any] | None = None, prefix: str = TEXT) -> Keymap:
    """The names of CLIP's text encoder: those of its published files behind a prefix, whatever its configuration."""
    # Older versions of transformers have the level text_model in the network, newer ones only in files.
    return Keymap(LAYOUT, (Row(r"^(text_model\.)?", prefix),), DROP)


def unet_table(layers: Iterable[str], config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Names of a UNet's layers to what they are in the LDM layout; any of them, they need not be all.

    ``down_blocks.0.attentions.0.proj_in`` becomes ``input_blocks.1.1.proj_in``. Names of tensors may be given too.
    Those of motion modules, which the layout does not know, are left out.

    Args:
        layers: names in the network.
        config: the network's `.config`, see `unet`.
        prefix: what the names begin with in the layout.
    """
    keymap = unet(config, prefix)
    return {name: keymap.name(f"{name}.")[:-1] for name in layers if ".motion_modules." not in name}
