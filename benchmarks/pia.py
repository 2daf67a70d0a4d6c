"""The full-size UNet of PIA against diffusers: correctness first, then time, then memory.

    python benchmarks/pia.py            everything (half an hour on two cores)
    python benchmarks/pia.py --quick    the same on a network of two narrow blocks, to see that it runs
    python benchmarks/pia.py --only eager compiled

A step is what a pipeline does between two solver steps: one guided prediction for 8 frames of 256 pixels. B0 is
diffusers as its pages say (float32), B1 is diffusers tuned: the same data type, and the quicker of its two memory
layouts. Weights are random, of full size, and the same tensors on both sides.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import harness
import torch
from diffusers.models.unets import unet_motion_model as port_module
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.utils.flop_counter import FlopCounterMode

from vivant.denoise import State
from vivant.pia.compile import compile_unet
from vivant.pia.conditioning import Conditioning, Guidance
from vivant.pia.generate import predict
from vivant.pia.motion import MotionAdapter
from vivant.pia.unet import UNet2DConditionModel, UNetMotionModel
from vivant.placement import default_dtype
from vivant.prompts import Prompts

FULL = {
    "unet": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "adapter": {"conv_in_channels": 9, "use_motion_mid_block": False},
}
QUICK = {
    "unet": {
        "sample_size": 8,
        "cross_attention_dim": 64,
        "attention_head_dim": 4,
        "block_out_channels": [32, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    },
    "adapter": {
        "block_out_channels": [32, 64],
        "motion_num_attention_heads": 4,
        "conv_in_channels": 9,
        "use_motion_mid_block": False,
    },
}
FRAMES, SIDE, GUIDANCE, TIMESTEP = 8, 32, 7.5, 500
SECTIONS = ("eager", "compiled", "float32", "assembly", "memory")


# ------------------------------------------------------------------------------------------------ both sides


def fill(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Real memory and random values for a module built on the meta device; nothing is zero, as in trained weights."""
    module.to_empty(device="cpu").to(dtype)
    generator = torch.Generator().manual_seed(11)
    for name, tensor in module.state_dict().items():
        if name.endswith("pos_embed.pe"):
            tensor.uniform_(-1, 1, generator=generator)
        elif tensor.ndim >= 2:
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        else:
            tensor.normal_(1.0 if name.endswith("weight") else 0.0, 0.05, generator=generator)
    return module.eval().requires_grad_(False)


def parts(sizes: dict[str, Any], dtype: torch.dtype) -> tuple[UNet2DConditionModel, MotionAdapter]:
    """Base and adapter with random weights."""
    with torch.device("meta"):
        base, adapter = UNet2DConditionModel(**sizes["unet"]), MotionAdapter(**sizes["adapter"])
    return fill(base, dtype), fill(adapter, dtype)


def port_of(unet: UNetMotionModel, dtype: torch.dtype, channels_last: bool = False) -> nn.Module:
    """diffusers' network around the tensors of ours."""
    with torch.device("meta"):
        port = port_module.UNetMotionModel.from_config(dict(unet.config))
    port.load_state_dict({k: v.to(dtype) for k, v in unet.state_dict().items()}, assign=True)
    if channels_last:
        port = port.to(memory_format=torch.channels_last)
    return port.eval().requires_grad_(False)


class Inputs:
    """Latents, picture and text of one clip."""

    def __init__(self, text_channels: int, side: int, dtype: torch.dtype):
        generator = torch.Generator().manual_seed(3)
        self.latents = torch.randn(1, 4, FRAMES, side, side, generator=generator)
        self.picture = torch.randn(1, 5, FRAMES, side, side, generator=generator).to(dtype)
        self.text = torch.randn(2, 77, text_channels, generator=generator).to(dtype)
        self.dtype = dtype


def our_step(unet: UNetMotionModel, inputs: Inputs) -> Callable[[], Tensor]:
    """One guided prediction as `vivant.pia.generate` makes it; the text was read before the first step."""
    prompts = Prompts(inputs.text[1:], inputs.text[:1])
    state = State(0, inputs.latents, conditioning=Conditioning(inputs.picture, prompts), guidance=Guidance(GUIDANCE))
    unet.prepare()
    text = unet.read_text(inputs.text)
    return lambda: predict(unet, state.x, TIMESTEP, state, text)


def port_step(port: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
    """One guided prediction as diffusers' pipeline makes it."""
    text = inputs.text.repeat_interleave(FRAMES, dim=0)
    picture = torch.cat([inputs.picture] * 2)
    latents, timestep = inputs.latents.to(inputs.dtype), torch.tensor(TIMESTEP)

    def step() -> Tensor:
        inputs_now = torch.cat([torch.cat([latents] * 2), picture], dim=1)
        uncond, cond = port(inputs_now, timestep, encoder_hidden_states=text).sample.chunk(2)
        return uncond + GUIDANCE * (cond - uncond)

    return step


def flops(sizes: dict[str, Any], side: int) -> tuple[int, int]:
    """Multiplications and additions of the port's guided prediction: of its convolutions, and of everything else."""
    with torch.device("meta"):
        base, adapter = UNet2DConditionModel(**sizes["unet"]), MotionAdapter(**sizes["adapter"])
        port = port_module.UNetMotionModel.from_config(dict(UNetMotionModel.from_unet2d(base, adapter).config))
        x, timestep = torch.empty(2, 9, FRAMES, side, side), torch.tensor(TIMESTEP)
        text = torch.empty(2 * FRAMES, 77, sizes["unet"]["cross_attention_dim"])
    with FlopCounterMode(display=False) as counter:
        port(x, timestep, encoder_hidden_states=text)
    convolutions = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    return convolutions, counter.get_total_flops() - convolutions


# -------------------------------------------------------------------------------------------------- sections


class Bench:
    """The networks of one run, built when a section needs them."""

    def __init__(self, sizes: dict[str, Any], quick: bool):
        self.sizes, self.quick = sizes, quick
        self.side = 8 if quick else SIDE
        self.pairs = 3 if quick else 5
        self.dtype = torch.bfloat16
        self.text_channels = sizes["unet"]["cross_attention_dim"]
        self.unet = UNetMotionModel.from_unet2d(*parts(sizes, self.dtype))
        self.result: dict[str, Any] = {}
        self.rates = harness.rates(self.dtype)
        convolutions, rest = flops(sizes, self.side)
        self.floor = (convolutions / self.rates["conv"] + rest / self.rates["linear"]) / 1e9
        self.result["floor bf16"] = {"flops": convolutions + rest, "seconds": self.floor}

    def inputs(self, dtype: torch.dtype) -> Inputs:
        """The same values in another data type."""
        return Inputs(self.text_channels, self.side, dtype)

    def gates(self) -> None:
        """Correctness: float32 against the port, then both bf16 results against float32."""
        wide = UNetMotionModel.from_state(
            {**self.unet.config, "numerics": "diffusers"}, {k: v.float() for k, v in self.unet.state_dict().items()}
        )
        exact = port_step(port_of(wide, torch.float32), self.inputs(torch.float32))()
        ours = our_step(wide, self.inputs(torch.float32))()
        theirs16 = port_step(port_of(self.unet, self.dtype), self.inputs(self.dtype))()
        ours16 = our_step(self.unet, self.inputs(self.dtype))()
        self.exact, self.limit16 = exact, 1.1 * harness.relative_rms(theirs16, exact)
        self.result["gates"] = {
            "float32": harness.require("float32 relative RMS", harness.relative_rms(ours, exact), 1e-5),
            "bf16": self.gate16("bf16 error against float32", ours16),
        }

    def gate16(self, name: str, output: Tensor) -> dict[str, float]:
        """A result in bf16 may be 1.1 times as far from float32 as the port's."""
        return harness.require(name, harness.relative_rms(output, self.exact), self.limit16)

    def eager(self) -> None:
        """bf16 against bf16, both uncompiled; the port in its quicker layout."""
        inputs = self.inputs(self.dtype)
        layouts = {name: port_step(port_of(self.unet, self.dtype, last), inputs) for name, last in LAYOUTS.items()}
        best = harness.fastest(layouts, rounds=1 if self.quick else 2)
        ratio = harness.compare(our_step(self.unet, inputs), layouts[best], self.pairs)
        self.result["eager"] = {"bf16 against bf16": ratio, "port layout": best}
        original = UNetMotionModel.from_state({**self.unet.config, "numerics": "original"}, self.unet.state_dict())
        self.result["eager"]["original numerics against the port"] = harness.compare(
            our_step(original, inputs), layouts[best], 3
        )
        self.show("eager, bf16", ratio)

    def float32(self) -> None:
        """Out of the box, and float32 against float32."""
        wide = UNetMotionModel.from_state(
            {**self.unet.config, "numerics": "diffusers"}, {k: v.float() for k, v in self.unet.state_dict().items()}
        )
        inputs = self.inputs(torch.float32)
        port = port_step(port_of(wide, torch.float32), inputs)
        automatic, reason = default_dtype("cpu")
        mine = our_step(self.unet, self.inputs(self.dtype)) if automatic == self.dtype else our_step(wide, inputs)
        self.result["out of the box"] = {
            "ours, automatic data type, against the port as documented": harness.compare(mine, port, self.pairs),
            "data type": f"{automatic}: {reason}",
        }
        self.result["float32"] = {
            "float32 against float32": harness.compare(our_step(wide, inputs), port, self.pairs),
        }
        self.show("out of the box", next(iter(self.result["out of the box"].values())))
        show("float32", next(iter(self.result["float32"].values())))

    def compiled(self) -> None:
        """Ours compiled, against the port eager and against the port compiled; weights frozen on both sides."""
        inputs = self.inputs(self.dtype)
        layouts = {name: port_of(self.unet, self.dtype, last) for name, last in LAYOUTS.items()}
        steps = {name: port_step(port, inputs) for name, port in layouts.items()}
        best = harness.fastest(steps, rounds=1)
        mine = UNetMotionModel.from_state({**self.unet.config, "numerics": "diffusers"}, self.unet.state_dict())
        compile_unet(mine)
        step, start = our_step(mine, inputs), time.perf_counter()
        compiled = step()
        seconds = {"ours": time.perf_counter() - start}
        gate = self.gate16("compiled bf16 error against float32", compiled)
        against_eager = harness.compare(step, steps[best], self.pairs)
        self.show("compiled against the port eager", against_eager)
        port = torch.compile(layouts[best], dynamic=False)
        frozen = inductor.patch(freezing=True)  # as an option of torch.compile it would freeze nothing
        their_step, start = frozen(port_step(port, inputs)), time.perf_counter()
        their_step()
        seconds["theirs"] = time.perf_counter() - start
        against_compiled = harness.compare(step, their_step, self.pairs)
        self.show("compiled against the port compiled", against_compiled)
        self.result["compiled"] = {
            "ours compiled against the port eager": against_eager,
            "ours compiled against the port compiled": against_compiled,
            "gate": gate,
            "seconds to compile": seconds,
            "port layout": best,
        }

    def show(self, name: str, ratio: harness.Ratio) -> None:
        """One line for a measurement in bf16, with the part of the floor that both sides reach."""
        show(name, ratio)
        reached = f"ours {self.floor / ratio.ours:.0%}, theirs {self.floor / ratio.theirs:.0%}"
        print(f"    of the floor of {self.floor:.2f} s: {reached}", flush=True)

    def assembly(self) -> None:
        """From base and adapter to the motion UNet."""
        base, adapter = parts(self.sizes, self.dtype)
        with torch.device("meta"):
            their_base = diffusers.UNet2DConditionModel.from_config(dict(base.config))
            their_adapter = diffusers.MotionAdapter.from_config(dict(adapter.config))
        their_base.load_state_dict(base.state_dict(), assign=True)
        their_adapter.load_state_dict({k: v.clone() for k, v in adapter.state_dict().items()}, assign=True)
        ratio = harness.compare(
            lambda: UNetMotionModel.from_unet2d(base, adapter),
            lambda: port_module.UNetMotionModel.from_unet2d(their_base, their_adapter),
            3,
        )
        self.result["assembly"] = {"from_unet2d": ratio}
        show("assembly", ratio)

    def memory(self) -> None:
        """Peak of a whole run from disk, each side in a fresh process."""
        with tempfile.TemporaryDirectory() as folder:
            write_repository(Path(folder), self.sizes)
            peaks = {
                side: harness.in_fresh_process(__file__, ["--whole-run", side, folder, str(8 * self.side)])
                for side in ("ours", "theirs")
            }
        self.result["memory of a whole run"] = {
            **peaks,
            "ratio of peaks": peaks["ours"]["peak"] / peaks["theirs"]["peak"],
        }
        print(
            f"peak of a whole run: {peaks['ours']['peak'] / 2**30:.2f} against {peaks['theirs']['peak'] / 2**30:.2f} GB"
        )


LAYOUTS = {"contiguous": False, "channels_last": True}


def show(name: str, ratio: harness.Ratio) -> None:
    """One line as soon as it is known."""
    print(f"{name}: {ratio}; ours {ratio.ours:.2f} s, theirs {ratio.theirs:.2f} s", flush=True)


# ------------------------------------------------------------------------------------------------- whole run


def write_repository(folder: Path, sizes: dict[str, Any]) -> None:
    """A repository and an adapter of the given sizes with random bf16 weights, in the published layout."""
    from transformers import CLIPTextConfig, CLIPTextModel

    base, adapter = parts(sizes, torch.bfloat16)
    adapter.save_pretrained(folder / "adapter")
    base.save_pretrained(folder / "unet")
    width = sizes["unet"]["cross_attention_dim"]
    small = width < 768
    vae = {"block_out_channels": [32] * 4 if small else [128, 256, 512, 512], "layers_per_block": 1 if small else 2}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    diffusers.AutoencoderKL(**vae, **blocks, latent_channels=4, sample_size=512).bfloat16().save_pretrained(
        folder / "vae"
    )
    text = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2 if small else 12,
        num_attention_heads=width // 64,
        vocab_size=49408,
    )
    CLIPTextModel(text).bfloat16().save_pretrained(folder / "text_encoder")
    diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": [None, None],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def whole_run(side: str, folder: Path, pixels: int) -> dict[str, int | None]:
    """Load, animate two steps, decode; prompts come encoded, since the repository has no tokenizer."""
    if side == "ours":
        from vivant import MotionAdapter as Adapter
        from vivant import PIAPipeline as Pipeline
    else:
        from diffusers import MotionAdapter as Adapter
        from diffusers import PIAPipeline as Pipeline

    def work() -> None:
        adapter = Adapter.from_pretrained(folder / "adapter", torch_dtype=torch.bfloat16)
        pipe = Pipeline.from_pretrained(folder, motion_adapter=adapter, tokenizer=None, torch_dtype=torch.bfloat16)
        pipe.set_progress_bar_config(disable=True)
        text = torch.randn(1, 77, pipe.unet.config.cross_attention_dim).bfloat16()
        picture = torch.rand(1, 3, pixels, pixels)
        with torch.no_grad():
            pipe(
                image=picture,
                prompt_embeds=text,
                negative_prompt_embeds=text,
                num_frames=FRAMES,
                height=pixels,
                width=pixels,
                num_inference_steps=2,
            )

    return harness.peak_of(work)


def main() -> None:
    """Run the sections asked for and write them into `results/pia.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small network; nothing is written")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--whole-run", nargs=3, metavar=("SIDE", "FOLDER", "PIXELS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.whole_run:
        side, folder, pixels = arguments.whole_run
        print(json.dumps(whole_run(side, Path(folder), int(pixels))))
        return
    with torch.no_grad():
        bench = Bench(QUICK if arguments.quick else FULL, arguments.quick)
        bench.gates()
        for section in arguments.only:
            getattr(bench, section)()
    if arguments.quick:
        print("quick: nothing written")
        return
    written = harness.add("pia", bench.result, harness.machine() | {"rates bf16": bench.rates})
    print(f"written: {written.name}")


if __name__ == "__main__":
    main()
