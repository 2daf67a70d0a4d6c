"""Two full-width layers of ConsisID's transformer, with their attention to the face, against diffusers.

    python benchmarks/consisid.py                 everything (an hour on two cores)
    python benchmarks/consisid.py --quick         narrow layers and few tokens, to see that it runs; writes nothing
    python benchmarks/consisid.py --only layers perceiver

A step is what a pipeline does between two solver steps: one guided prediction. The port computes the face's tokens,
the modulations and the places of tokens in every step, ours computed them before the first. B0 is diffusers as its
page says on a processor (float32), B1 is diffusers tuned: the same data type, eager against eager. Weights are random,
of full width, and the same tensors on both sides; only the number of layers is small.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import harness
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.models.transformers import consisid_transformer_3d as port_module
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vivant.attention import Facts, choose
from vivant.consisid.conditioning import Conditioning, Face, Guidance, read
from vivant.consisid.generate import predict
from vivant.consisid.transformer import ConsisIDTransformer3DModel
from vivant.denoise import State
from vivant.placement import default_dtype
from vivant.prompts import Prompts
from vivant.solvers.cogvideox import CogVideoXDDIM

WIDE = {
    "num_attention_heads": 48,
    "in_channels": 32,
    "num_layers": 2,
    "use_learned_positional_embeddings": True,
    "is_train_face": True,
}
NARROW = WIDE | {
    "num_attention_heads": 3,
    "text_embed_dim": 64,
    "LFE_depth": 5,
    "LFE_id_dim": 40,
    "LFE_vit_dim": 32,
    "LFE_num_heads": 2,
    "LFE_output_dim": 128,
    "cross_attn_num_heads": 2,
}
BF16, F32 = torch.bfloat16, torch.float32
GUIDANCE = 6.0
SECTIONS = ("layers", "long", "perceiver", "float32", "growth")


@dataclass(frozen=True)
class Size:
    """Latent frames, rows and columns."""

    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Of text and video."""
        return 226 + self.frames * (self.height // 2) * (self.width // 2)


MEDIUM, TRAINED, SMALL = Size(13, 30, 46), Size(13, 60, 90), Size(3, 4, 6)


# ------------------------------------------------------------------------------------------------ both sides


def fields(sizes: dict[str, Any], size: Size) -> dict[str, Any]:
    """Configuration for videos of this size, so that the port takes them."""
    frames = 4 * (size.frames - 1) + 1
    return sizes | {"sample_height": size.height, "sample_width": size.width, "sample_frames": frames}


def fill(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Real memory and random values for a module built on the meta device; nothing is zero, as in trained weights."""
    module.to_empty(device="cpu").to(dtype)
    generator = torch.Generator().manual_seed(11)
    for name, tensor in module.state_dict().items():
        if name.endswith("pos_embedding"):
            tensor.normal_(0, 0.02, generator=generator)
        elif tensor.ndim >= 2:
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        else:
            tensor.normal_(1.0 if name.endswith("weight") else 0.0, 0.05, generator=generator)
    return module.eval().requires_grad_(False)


def our_network(sizes: dict[str, Any], size: Size, dtype: torch.dtype) -> ConsisIDTransformer3DModel:
    """Our network with random weights."""
    with torch.device("meta"):
        network = ConsisIDTransformer3DModel(**fields(sizes, size))
    fill(network, dtype)
    return network


def port_of(network: ConsisIDTransformer3DModel) -> Any:
    """diffusers' network around the tensors of ours."""
    with torch.device("meta"):
        port = port_module.ConsisIDTransformer3DModel.from_config(dict(network.config))
    port.load_state_dict(network.state_dict(), assign=True)
    return port.eval().requires_grad_(False)


class Inputs:
    """Latents, picture, text and identity of one video."""

    def __init__(self, sizes: dict[str, Any], size: Size, dtype: torch.dtype):
        generator = torch.Generator().manual_seed(3)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        c = ConsisIDTransformer3DModel.Config(**fields(sizes, size))
        self.size, self.config, self.dtype = size, c, dtype
        self.latents = noise(1, size.frames, 16, size.height, size.width)
        self.picture = noise(1, size.frames, 16, size.height, size.width).to(dtype)
        self.text = noise(2, 226, c.text_embed_dim).to(dtype)
        hidden = tuple(noise(1, 577, c.LFE_vit_dim).to(dtype) for _ in range(c.LFE_num_scale))
        self.face = Face(noise(1, c.LFE_id_dim).to(dtype), hidden)
        self.step = CogVideoXDDIM().schedule(50)[25]


def our_step(network: ConsisIDTransformer3DModel, inputs: Inputs) -> Callable[[], Tensor]:
    """One guided prediction as `vivant.consisid.generate` makes it."""
    prompts = Prompts(inputs.text[1:], inputs.text[:1])
    guidance = Guidance(GUIDANCE, falls=False, num_steps=50)
    state = State(0, inputs.latents, conditioning=Conditioning(inputs.picture, prompts), guidance=guidance)
    size = inputs.size
    known = read(network, (inputs.step,), inputs.face, 1, (size.frames, size.height, size.width))
    return lambda: predict(network, known, state, inputs.step)


def port_step(port: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
    """One guided prediction as diffusers' pipeline makes it; its rotary table is computed once there too."""
    size = inputs.size
    grid = size.height // 2, size.width // 2
    rotary = get_3d_rotary_pos_embed(64, ((0, 0), grid), grid, size.frames)
    timestep = torch.tensor([inputs.step.t] * 2)
    people = [inputs.face.id_cond, list(inputs.face.id_vit_hidden)]

    def step() -> Tensor:
        x = torch.cat([inputs.latents.to(inputs.dtype)] * 2)
        x = torch.cat([x, torch.cat([inputs.picture] * 2)], dim=2)
        out = port(
            hidden_states=x,
            encoder_hidden_states=inputs.text,
            timestep=timestep,
            image_rotary_emb=rotary,
            id_cond=people[0],
            id_vit_hidden=people[1],
        ).sample.float()
        without, with_text = out.chunk(2)
        return without + GUIDANCE * (with_text - without)

    return step


def flops(sizes: dict[str, Any], size: Size) -> dict[str, int]:
    """Multiplications and additions of the port's guided prediction: of attention among tokens, and of the rest."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        c = ConsisIDTransformer3DModel(**fields(sizes, size)).config
        port = port_module.ConsisIDTransformer3DModel.from_config(dict(c))
        people = [torch.empty(2, 577, c.LFE_vit_dim) for _ in range(c.LFE_num_scale)]
        port(
            hidden_states=torch.empty(2, size.frames, 32, size.height, size.width),
            encoder_hidden_states=torch.empty(2, 226, c.text_embed_dim),
            timestep=torch.empty(2),
            image_rotary_emb=(torch.empty(size.tokens - 226, 64), torch.empty(size.tokens - 226, 64)),
            id_cond=torch.empty(2, c.LFE_id_dim),
            id_vit_hidden=people,
        )
    total = counter.get_total_flops()
    attention = 4 * 2 * c.num_layers * c.num_attention_heads * 64 * size.tokens**2
    return {"attention": attention, "rest": total - attention}


# -------------------------------------------------------------------------------------------------- sections


class Bench:
    """One run; a section builds what it needs, since two sizes do not go into one position table."""

    def __init__(self, quick: bool, pairs: int):
        self.sizes, self.pairs = NARROW if quick else WIDE, pairs
        self.medium, self.trained = (SMALL, SMALL) if quick else (MEDIUM, TRAINED)
        self.rates = harness.rates(BF16)
        self.result: dict[str, Any] = {}

    def layers(self) -> None:
        """bf16 against bf16 at a few thousand tokens, after the correctness gates."""
        self._steps("layers", self.medium)

    def long(self) -> None:
        """The same at the number of tokens that the model was trained on."""
        self._steps("long", self.trained)

    def _steps(self, name: str, size: Size) -> None:
        exact = our_network(self.sizes, size, F32)
        gates = self._gates(exact, size)
        network = _to(exact, BF16)
        del exact
        inputs = Inputs(self.sizes, size, BF16)
        mine, theirs = our_step(network, inputs), port_step(port_of(network), inputs)
        ratio = harness.compare(mine, theirs, self.pairs)
        work = flops(self.sizes, size)
        floor = (work["attention"] + work["rest"]) / self.rates["linear"] / 1e9
        heads = network.settings.num_attention_heads
        kernel = choose(Facts("cpu", BF16, 2, size.tokens, size.tokens, head_dim=64)).name
        self.result[name] = {
            "what": f"{network.settings.num_layers} layers of {heads} heads, {size.tokens} tokens, with guidance",
            "gates": gates,
            "bf16 against bf16": ratio,
            "attention": kernel,
            "floor": {"flops": work["attention"] + work["rest"], "attention": work["attention"], "seconds": floor},
        }
        show(f"{size.tokens} tokens, bf16", ratio)
        print(f"    of the floor of {floor:.2f} s: ours {floor / ratio.ours:.0%}, theirs {floor / ratio.theirs:.0%}")

    def _gates(self, exact: ConsisIDTransformer3DModel, size: Size) -> dict[str, Any]:
        """Float32 against the port, then both bf16 results against float32."""
        inputs, half = Inputs(self.sizes, size, F32), Inputs(self.sizes, size, BF16)
        due = port_step(port_of(exact), inputs)()
        gates = {
            "float32": harness.require(
                "float32 relative RMS", harness.relative_rms(our_step(exact, inputs)(), due), 1e-5
            )
        }
        narrow = _to(exact, BF16)
        limit = 1.1 * harness.relative_rms(port_step(port_of(narrow), half)(), due)
        gates["bf16"] = harness.require(
            "bf16 error against float32", harness.relative_rms(our_step(narrow, half)(), due), limit
        )
        return gates

    def perceiver(self) -> None:
        """The attention of the video to the face alone, as often as a step runs it."""
        size = self.medium
        network = our_network(self.sizes, size, BF16)
        port = port_of(network)
        inputs = Inputs(self.sizes, size, BF16)
        layer, theirs = network.perceiver_cross_attention[0], port.perceiver_cross_attention[0]
        face = network.local_facial_extractor(inputs.face.id_cond, inputs.face.id_vit_hidden)
        folded = layer.fold(face, 1.0)
        x = torch.randn(2, size.tokens - 226, network.settings.num_channels, generator=torch.Generator().manual_seed(4))
        x, pair = x.to(BF16), torch.cat([face] * 2)
        harness.require("bf16 against the port", harness.relative_rms(layer(x, folded), theirs(pair, x)), 2e-2)
        ratio = harness.compare(lambda: layer(x, folded), lambda: theirs(pair, x), 2 * self.pairs)
        self.result["perceiver"] = {"what": f"{x.shape[1]} tokens, bf16", "bf16 against bf16": ratio}
        show("perceiver", ratio)

    def float32(self) -> None:
        """Out of the box: ours in the data type it chooses, the port in float32; and float32 against float32."""
        size = self.medium
        network = our_network(self.sizes, size, F32)
        inputs = Inputs(self.sizes, size, F32)
        theirs = port_step(port_of(network), inputs)
        same = harness.compare(our_step(network, inputs), theirs, 3)
        automatic, reason = default_dtype("cpu")
        ratio = harness.compare(our_step(_to(network, automatic), Inputs(self.sizes, size, automatic)), theirs, 3)
        self.result["float32"] = {
            "float32 against float32": same,
            "ours, automatic data type, against the port as documented": ratio,
            "data type": f"{automatic}: {reason}",
        }
        show("float32", same)
        show("out of the box", ratio)

    def growth(self) -> None:
        """Seconds and added memory of our step for some lengths and sizes: two layers of the 42."""
        sizes = [SMALL] if self.trained == SMALL else [Size(3, 60, 90), Size(7, 60, 90), TRAINED, Size(13, 30, 46)]
        rows = []
        for size in sizes:
            arguments = ["--grown", *map(str, (size.frames, size.height, size.width))]
            row = harness.in_fresh_process(__file__, [*arguments, *(["--quick"] if self.sizes is NARROW else [])])
            rows.append({"frames": 4 * size.frames - 3, "pixels": f"{8 * size.height}x{8 * size.width}", **row})
            print(rows[-1], flush=True)
        self.result["growth"] = {"what": "our step of two layers with guidance, bf16", "rows": rows}


def grown(sizes: dict[str, Any], size: Size) -> dict[str, Any]:
    """Tokens, seconds and added bytes of one step in this process."""
    step = our_step(our_network(sizes, size, BF16), Inputs(sizes, size, BF16))
    peak = harness.peak_of(step)
    added = None if peak["before"] is None or peak["peak"] is None else peak["peak"] - peak["before"]
    return {"tokens": size.tokens, "seconds": harness.timed(step).seconds, "added": added}


def _to(network: ConsisIDTransformer3DModel, dtype: torch.dtype) -> ConsisIDTransformer3DModel:
    """The same network in another data type, beside it."""
    state = {k: v.to(dtype) for k, v in network.state_dict().items()}
    return ConsisIDTransformer3DModel.from_state(dict(network.config), state)


def show(name: str, ratio: harness.Ratio) -> None:
    """One line as soon as it is known."""
    print(f"{name}: {ratio}; ours {ratio.ours:.3f} s, theirs {ratio.theirs:.3f} s", flush=True)


def main() -> None:
    """Run the sections asked for and write them into `results/consisid.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="narrow layers; nothing is written")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--pairs", type=int, default=5, help="clean pairs wanted for each ratio")
    parser.add_argument("--grown", type=int, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    with torch.no_grad():
        if given.grown:
            print(json.dumps(grown(NARROW if given.quick else WIDE, Size(*given.grown))))
            return
        bench = Bench(given.quick, 3 if given.quick else given.pairs)
        for section in given.only:
            getattr(bench, section)()
            if not given.quick:
                made_on = harness.machine() | {"rates bf16": bench.rates, "diffusers": diffusers.__version__}
                harness.add("consisid", bench.result, made_on)
    print("quick: nothing written" if given.quick else "written: consisid.json")


if __name__ == "__main__":
    main()
