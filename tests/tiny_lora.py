"""Files of LoRA for the small networks, written by the rules of the programs that write such files, and what they mean.

Names are spelt and differences computed here from the layers' own names and shapes, by nothing of vivant. Every layout
gives its tensors and, by parameter, the difference that it stands for.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import tiny

RANK = 3


@dataclass
class Written:
    """A file as it would be written.

    Attributes:
        tensors: its content.
        metadata: the header's remarks.
        deltas: component and parameter to the difference.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    deltas: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def low_rank(
        self,
        layer: tuple[str, str, Tensor],
        name: str,
        halves: tuple[str, str],
        alpha: float | None = None,
        *,
        written: bool = True,
        seed: int = 1,
    ) -> None:
        """Add B A for a layer, under `name` with these two endings, and its alpha unless that stands elsewhere."""
        component, module, weight = layer
        rank, fan = RANK, weight.flatten(1).shape[1]
        down = tiny.rule(f"{module}.A", (rank, fan), seed)
        up = tiny.rule(f"{module}.B", (weight.shape[0], rank), seed)
        scale = 1.0 if alpha is None else alpha / rank
        self.deltas[component, f"{module}.weight"] = (scale * up @ down).reshape(weight.shape)
        conv = weight.ndim == 4
        self.tensors[name + halves[0]] = down.reshape(rank, *weight.shape[1:]) if conv else down
        self.tensors[name + halves[1]] = up[:, :, None, None] if conv else up
        if alpha is not None and written:
            self.tensors[f"{name}.alpha"] = torch.tensor(alpha)


def inputs() -> tuple[Tensor, Tensor]:
    """What the recorded answers are to: latents with their picture, and words."""
    return tiny.noise(1, 9, 3, tiny.HEIGHT, tiny.WIDTH), torch.arange(8)[None] + 3


KOHYA = (".lora_down.weight", ".lora_up.weight")
PEFT = (".lora_A.weight", ".lora_B.weight")
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def layers(
    component: str, network: nn.Module, endings: tuple[str, ...], inside: str = ""
) -> Iterator[tuple[str, str, Tensor]]:
    """Layers by the ends of their names; those of the text encoder without the level `text_model`."""
    for name, module in network.named_modules():
        if name.endswith(tuple(f".{ending}" for ending in endings)) and inside in name:
            weight = getattr(module, "weight")  # noqa: B009 (a module's attribute is a tensor or a module)
            yield component, name.removeprefix("text_model."), weight.detach()


def spatial(unet: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """What most trainings change of a UNet."""
    return layers("unet", unet, ATTENTION, ".attentions.")


def text(encoder: nn.Module, endings: tuple[str, ...] = PROJECTIONS) -> Iterator[tuple[str, str, Tensor]]:
    """What most trainings change of the text encoder."""
    return layers("text_encoder", encoder, endings)


Networks = Mapping[str, nn.Module]


def kohya(networks: Networks) -> Written:
    """sd-scripts, `networks/lora.py`: the names of diffusers with underscores, alpha a tensor of each layer."""
    file = Written()
    more = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
    for layer in layers("unet", networks["unet"], more, ".attentions."):
        file.low_rank(layer, "lora_unet_" + layer[1].replace(".", "_"), KOHYA, 2.0)
    for layer in text(networks["text_encoder"], (*PROJECTIONS, "fc1", "fc2")):
        file.low_rank(layer, "lora_te_text_model_" + layer[1].replace(".", "_"), KOHYA, 1.5)
    return file


def ldm_name(module: str) -> str:
    """What Stable Diffusion's authors call a layer of the small UNet: two stages of two layers, the first with text."""
    stage, index, kind, place, *rest = module.split(".")
    if stage == "mid_block":
        index, kind, place, *rest = module.split(".")[0], *module.split(".")[1:]
        return ".".join(["middle_block", "1" if kind == "attentions" else str(2 * int(place)), *rest])
    first = {"down_blocks": ("input_blocks", 1), "up_blocks": ("output_blocks", 0)}[stage]
    number = first[1] + 3 * int(index) + int(place)
    inner = {
        "conv1": "in_layers.2",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    rest = [inner.get(rest[0], rest[0]), *rest[1:]]
    return ".".join([first[0], str(number), "1" if kind == "attentions" else "0", *rest])


def kohya_ldm(networks: Networks) -> Written:
    """The same with the names of the LDM layout, with convolutions as LoCon has them."""
    file = Written()
    for layer in layers("unet", networks["unet"], (*ATTENTION, "ff.net.0.proj"), ".attentions."):
        file.low_rank(layer, "lora_unet_" + ldm_name(layer[1]).replace(".", "_"), KOHYA, 2.0)
    return file


def old_diffusers(networks: Networks) -> Written:
    """diffusers before 0.17: layers of the processors of attention, no alpha."""
    file = Written()
    for component, module, weight in spatial(networks["unet"]):
        parent, _, leaf = module.removesuffix(".0" if module.endswith("to_out.0") else "").rpartition(".")
        name = f"unet.{parent}.processor.{leaf}_lora"
        file.low_rank((component, module, weight), name, (".down.weight", ".up.weight"))
    for component, module, weight in text(networks["text_encoder"]):
        leaf = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}[module.rpartition(".")[2]]
        name = f"text_encoder.text_model.{module.rpartition('.')[0]}.{leaf}_lora"
        file.low_rank((component, module, weight), name, (".down.weight", ".up.weight"))
    return file


def old_diffusers_bare(networks: Networks) -> Written:
    """The oldest of these: the UNet alone, without a prefix."""
    file = old_diffusers({"unet": networks["unet"], "text_encoder": nn.Module()})
    file.tensors = {name.removeprefix("unet."): value for name, value in file.tensors.items()}
    return file


def diffusers(networks: Networks) -> Written:
    """diffusers 0.17 to 0.23: layers of their own inside the projections."""
    file = Written()
    for layer in spatial(networks["unet"]):
        file.low_rank(layer, f"unet.{layer[1]}.lora", (".down.weight", ".up.weight"))
    for layer in text(networks["text_encoder"]):
        name = f"text_encoder.text_model.{layer[1]}.lora_linear_layer"
        file.low_rank(layer, name, (".down.weight", ".up.weight"))
    return file


def new_diffusers(networks: Networks) -> Written:
    """diffusers since 0.24, with peft: rank and alpha in the header since 0.34."""
    file = Written()
    for layer in spatial(networks["unet"]):
        alpha = 6.0 if layer[1].endswith("attn2.to_k") else 4.5
        file.low_rank(layer, f"unet.{layer[1]}", PEFT, alpha, written=False)
    for layer in text(networks["text_encoder"]):
        file.low_rank(layer, f"text_encoder.text_model.{layer[1]}", PEFT, 1.5, written=False)
    targets = {"unet": ATTENTION, "text_encoder": PROJECTIONS}
    special = {name: 6.0 for _, name, _ in spatial(networks["unet"]) if name.endswith("attn2.to_k")}
    config = {
        "unet.r": RANK,
        "unet.lora_alpha": 4.5,
        "unet.alpha_pattern": special,
        "unet.target_modules": targets["unet"],
    }
    config |= {"text_encoder.r": RANK, "text_encoder.lora_alpha": 1.5}
    config |= {"text_encoder.target_modules": targets["text_encoder"]}
    file.metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(config)}
    return file


def peft(networks: Networks) -> Written:
    """The state of a model of peft itself, adapter's name and all."""
    file = Written()
    for layer in spatial(networks["unet"]):
        file.low_rank(layer, f"base_model.model.{layer[1]}", (".lora_A.default.weight", ".lora_B.default.weight"))
    return file


def locon(networks: Networks) -> Written:
    """LyCORIS: convolutions too, some with a kernel between pointwise halves."""
    file = Written()
    for layer in layers("unet", networks["unet"], ("conv1", "conv_shortcut", "time_emb_proj"), ".resnets."):
        file.low_rank(layer, "lora_unet_" + layer[1].replace(".", "_"), KOHYA, 2.0)
    for _, module, weight in layers("unet", networks["unet"], ("conv2", "conv"), "blocks."):
        name = "lora_unet_" + module.replace(".", "_")
        o, i = weight.shape[:2]
        down, mid = tiny.rule(f"{module}.A", (RANK, i, 1, 1)), tiny.rule(f"{module}.M", (RANK, RANK, 3, 3))
        up = tiny.rule(f"{module}.B", (o, RANK, 1, 1))
        parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
        file.tensors |= {f"{name}.{role}": value for role, value in parts.items()}
        # As the three convolutions one after the other, on every unit vector of the inputs.
        inner = torch.stack(
            [sum(mid[p, q] * down[q, c, 0, 0] for q in range(RANK)) for p in range(RANK) for c in range(i)]
        )
        inner = inner.reshape(RANK, i * 9)
        file.deltas["unet", f"{module}.weight"] = (up[:, :, 0, 0] @ inner).reshape(weight.shape) / RANK
    return file


def loha(networks: Networks) -> Written:
    """LyCORIS `loha.py`."""
    file = Written()
    for _, module, weight in layers("unet", networks["unet"], (*ATTENTION, "conv1"), "blocks."):
        name = "lora_unet_" + module.replace(".", "_")
        o, n = weight.shape[0], weight.flatten(1).shape[1]
        shapes = {"hada_w1_a": (o, RANK), "hada_w1_b": (RANK, n), "hada_w2_a": (o, RANK), "hada_w2_b": (RANK, n)}
        parts = {role: tiny.rule(module + role, shape) for role, shape in shapes.items()}
        w1, w2 = parts["hada_w1_a"] @ parts["hada_w1_b"], parts["hada_w2_a"] @ parts["hada_w2_b"]
        file.deltas["unet", f"{module}.weight"] = (w1 * w2 * 2 / RANK).reshape(weight.shape)
        file.tensors |= {f"{name}.{role}": value for role, value in {**parts, "alpha": torch.tensor(2.0)}.items()}
    for _, module, weight in layers("unet", networks["unet"], ("conv2",), "blocks."):
        name = "lora_unet_" + module.replace(".", "_")
        o, i = weight.shape[:2]
        parts = {}
        halves = []
        for which in ("1", "2"):
            a, b = tiny.rule(f"{module}{which}a", (RANK, o)), tiny.rule(f"{module}{which}b", (RANK, i))
            t = tiny.rule(f"{module}{which}t", (RANK, RANK, 3, 3))
            parts |= {f"hada_w{which}_a": a, f"hada_w{which}_b": b, f"hada_t{which}": t}
            halves.append(torch.einsum("pqkl,po,qi->oikl", t, a, b))
        file.deltas["unet", f"{module}.weight"] = halves[0] * halves[1] * 4 / RANK
        file.tensors |= {f"{name}.{role}": value for role, value in {**parts, "alpha": torch.tensor(4.0)}.items()}
    return file


def lokr(networks: Networks) -> Written:
    """LyCORIS `lokr.py`: both halves whole, one of low rank, both of low rank, and in Tucker form."""
    file = Written()
    for i, (_, module, weight) in enumerate(
        layers("unet", networks["unet"], (*ATTENTION, "conv1", "conv2"), "blocks.")
    ):
        name = "lora_unet_" + module.replace(".", "_")
        o, n = weight.shape[:2]
        p, q = 4, 2
        parts: dict[str, Tensor] = {}
        if i % 2:
            parts["lokr_w1"] = w1 = tiny.rule(f"{module}w1", (p, q))
        else:
            parts["lokr_w1_a"], parts["lokr_w1_b"] = (
                tiny.rule(f"{module}w1a", (p, RANK)),
                tiny.rule(f"{module}w1b", (RANK, q)),
            )
            w1 = parts["lokr_w1_a"] @ parts["lokr_w1_b"]
        rest = (o // p, n // q, *weight.shape[2:])
        alpha, low = 2.0, True
        if weight.ndim == 4 and module.endswith("conv2"):
            parts["lokr_w2_a"], parts["lokr_w2_b"] = (
                tiny.rule(f"{module}a", (RANK, rest[0])),
                tiny.rule(f"{module}b", (RANK, rest[1])),
            )
            parts["lokr_t2"] = tiny.rule(f"{module}t", (RANK, RANK, 3, 3))
            w2 = torch.einsum("pqkl,pm,qn->mnkl", parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"])
        elif i % 3 and not module.endswith("conv1"):
            parts["lokr_w2_a"], parts["lokr_w2_b"] = (
                tiny.rule(f"{module}a", (rest[0], RANK)),
                tiny.rule(f"{module}b", (RANK, rest[1])),
            )
            w2 = parts["lokr_w2_a"] @ parts["lokr_w2_b"]
        elif module.endswith("conv1") and i % 3:
            parts["lokr_w2_a"] = tiny.rule(f"{module}a", (rest[0], RANK))
            parts["lokr_w2_b"] = tiny.rule(f"{module}b", (RANK, rest[1] * 9))
            w2 = (parts["lokr_w2_a"] @ parts["lokr_w2_b"]).reshape(rest)
        else:
            parts["lokr_w2"] = w2 = tiny.rule(f"{module}w2", rest)
            low = "lokr_w1_a" in parts
        scale = alpha / RANK if low else 1.0
        delta = torch.stack([torch.cat([w1[r, c] * w2 for c in range(q)], dim=1) for r in range(p)]).flatten(0, 1)
        file.deltas["unet", f"{module}.weight"] = scale * delta.reshape(weight.shape)
        file.tensors |= {f"{name}.{role}": value for role, value in {**parts, "alpha": torch.tensor(alpha)}.items()}
    return file


def differences(networks: Networks) -> Written:
    """Differences in full, of weights and biases."""
    file = Written()
    for _, module, weight in layers("unet", networks["unet"], ("conv_in", "proj_in", "to_out.0"), ""):
        name = "lora_unet_" + module.replace(".", "_")
        bias = networks["unet"].get_submodule(module).get_parameter("bias")
        for role, parameter, like in (("diff", "weight", weight), ("diff_b", "bias", bias)):
            value = 0.3 * tiny.rule(f"{module}{role}", tuple(like.shape))
            file.tensors[f"{name}.{role}"] = value
            file.deltas["unet", f"{module}.{parameter}"] = value
    return file


def _motion_name(module: str) -> str:
    return (
        module.replace(".transformer_blocks.", ".temporal_transformer.transformer_blocks.")
        .replace(".attn1.", ".attention_blocks.0.")
        .replace(".attn2.", ".attention_blocks.1.")
    )


def motion(networks: Networks) -> Written:
    """AnimateDiff's motion LoRA, `v2_lora_*.ckpt`."""
    file = Written()
    for component, module, weight in layers("unet", networks["unet"], ATTENTION, ".motion_modules."):
        parent, _, leaf = _motion_name(module).removesuffix(".0" if module.endswith("to_out.0") else "").rpartition(".")
        name = f"module.{parent}.processor.{leaf}_lora"
        file.low_rank((component, module, weight), name, (".down.weight", ".up.weight"))
    return file


def converted_motion(networks: Networks) -> Written:
    """The same in diffusers' repositories."""
    file = Written()
    for layer in layers("unet", networks["unet"], ATTENTION, ".motion_modules."):
        file.low_rank(layer, f"unet.{layer[1]}", PEFT)
    return file


def dora(networks: Networks) -> Written:
    """DoRA as peft writes it; its difference depends on the weight and is not among `deltas`."""
    file = Written()
    for layer in spatial(networks["unet"]):
        file.low_rank(layer, f"unet.{layer[1]}", PEFT)
        lengths = layer[2].norm(dim=1)
        file.tensors[f"unet.{layer[1]}.lora_magnitude_vector"] = lengths * (
            1 + 0.3 * tiny.rule(layer[1], (len(lengths),))
        )
    return file


LAYOUTS: dict[str, Callable[[Networks], Written]] = {
    maker.__name__: maker
    for maker in (
        *(kohya, kohya_ldm, old_diffusers, old_diffusers_bare, diffusers, new_diffusers, peft),
        *(locon, loha, lokr, differences, motion, converted_motion),
    )
}
READ_BY_DIFFUSERS = ("kohya", "old_diffusers", "diffusers", "new_diffusers", "converted_motion", "dora")
"""Those that diffusers 0.42.1 with peft reads."""


def transformer(networks: Networks, prefix: str = "transformer.") -> Written:
    """LoRA of CogVideoX as diffusers' trainings write it."""
    file = Written()
    for layer in layers("transformer", networks["transformer"], ATTENTION, "transformer_blocks."):
        file.low_rank(layer, prefix + layer[1], PEFT)
    return file
