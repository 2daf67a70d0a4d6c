"""Decoding and encoding with AutoencoderKLCogVideoX at the published widths, against diffusers.

    python benchmarks/video_vae.py            the real measurement: 3 latent frames of 30x45, a picture of 480x720
    python benchmarks/video_vae.py --quick    under a minute, to see that it runs; writes nothing

The port is measured as it comes and tuned, in the better of two memory layouts. Both are measured whole and in tiles,
each with its own default plan. Weights are random; time and memory do not depend on them.

In bfloat16 where the processor convolves in it, otherwise in float32, to a result of its own.
"""

import argparse
import json

import diffusers
import torch
from harness import (
    Ratio,
    Work,
    add,
    compare,
    fastest,
    in_fresh_process,
    machine,
    peak_of,
    rates,
    relative_rms,
    require,
    save,
    table,
)
from torch.utils.flop_counter import FlopCounterMode

from vivant.vae.causal import has_kernels
from vivant.vae.video import AutoencoderKLCogVideoX

CONFIG = {
    "block_out_channels": [128, 256, 256, 512],
    "down_block_types": ["CogVideoXDownBlock3D"] * 4,
    "up_block_types": ["CogVideoXUpBlock3D"] * 4,
    "layers_per_block": 3,
    "latent_channels": 16,
    "scaling_factor": 0.7,
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
BF16, F32 = torch.bfloat16, torch.float32
DTYPE, NAME = (BF16, "bf16") if has_kernels(BF16) else (F32, "float32")
Size = tuple[int, int, int]
PICTURE = (1, 60, 90)
"""Latents of the picture that is encoded: the published size, as every run of ConsisID encodes it once."""


def config(size: Size) -> dict[str, object]:
    """The published one, for videos of so many latent frames, rows and columns: tiles are for half of their sides."""
    return CONFIG | {"sample_height": 8 * size[1], "sample_width": 8 * size[2]}


def port(size: Size, dtype: torch.dtype, layout: str = "contiguous") -> diffusers.AutoencoderKLCogVideoX:
    """diffusers' network; the same weights every time, but for rounding."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLCogVideoX(**config(size)).eval().requires_grad_(False).to(dtype)
    for module in vae.modules():  # a module holds weights of four and five axes, so `to` cannot lay them out
        if isinstance(module, torch.nn.Conv3d):
            module.to(memory_format=LAYOUTS[layout])
    return vae


def ours(size: Size, like: diffusers.AutoencoderKLCogVideoX) -> AutoencoderKLCogVideoX:
    """Our network on the same tensors."""
    return AutoencoderKLCogVideoX.from_state(config(size), dict(like.state_dict()))


def latents(size: Size) -> torch.Tensor:
    return torch.randn(1, 16, *size, generator=torch.Generator().manual_seed(1))


def picture(size: Size) -> torch.Tensor:
    return torch.randn(1, 3, 1, 8 * size[1], 8 * size[2], generator=torch.Generator().manual_seed(2))


def flops(size: Size) -> int:
    """Multiplications and additions of one decoding, as the port does it."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        diffusers.AutoencoderKLCogVideoX(**config(size)).decode(torch.empty(1, 16, *size))
    return counter.get_total_flops()


def check(size: Size) -> dict[str, dict[str, float]]:
    """Decode and encode alike, or stop."""
    theirs = port(size, F32)
    mine, z, x = ours(size, theirs), latents(size), picture(size)
    exact = theirs.decode(z).sample, theirs.encode(x).latent_dist.parameters
    values = mine.decode(z).sample, mine.encode(x).latent_dist.parameters
    gates = {
        f"float32 error, {name}": require(f"float32 error, {name}", relative_rms(value, due), 1e-5)
        for name, value, due in zip(("decoding", "encoding"), values, exact, strict=True)
    }
    if DTYPE == F32:
        return gates
    theirs, mine, z, x = theirs.to(BF16), mine.to(BF16), z.to(BF16), x.to(BF16)
    port_half = theirs.decode(z).sample, theirs.encode(x).latent_dist.parameters
    values = mine.decode(z).sample, mine.encode(x).latent_dist.parameters
    for name, value, other, due in zip(("decoding", "encoding"), values, port_half, exact, strict=True):
        key, limit = f"bf16 error, {name}", 1.1 * relative_rms(other, due)
        gates[key] = require(key, relative_rms(value, due), limit)
    return gates


def encoding(size: Size, pairs: int) -> dict[str, Ratio]:
    """A picture of so many latents."""
    x, theirs = picture(size).to(DTYPE), port(size, DTYPE)
    mine = ours(size, theirs)
    ratio = compare(lambda: mine.encode(x), lambda: theirs.encode(x), pairs)
    name = f"{NAME} encoding of {8 * size[1]}x{8 * size[2]}"
    print(f"{name}: {ratio}", flush=True)
    return {name: ratio}


def measure(size: Size, pairs: int) -> tuple[dict[str, Ratio], str]:
    """The ratios of decoding, and the port's better layout."""
    z = latents(size).to(DTYPE)
    plain = port(size, DTYPE)
    nets = {"contiguous": plain, "channels_last": port(size, DTYPE, "channels_last")}
    mine = ours(size, plain)
    tiled, mine_tiled = port(size, DTYPE), ours(size, plain)
    tiled.enable_tiling()
    mine_tiled.enable_tiling()

    def tuned(layout: str) -> Work:
        laid_out = z.contiguous(memory_format=LAYOUTS[layout])
        return lambda: nets[layout].decode(laid_out)

    best = fastest({layout: tuned(layout) for layout in LAYOUTS}, rounds=1)
    cases = [
        ("against the port tuned", lambda: mine.decode(z), tuned(best)),
        ("against the port's default", lambda: mine.decode(z), tuned("contiguous")),
        ("in tiles, each plan", lambda: mine_tiled.decode(z), lambda: tiled.decode(z)),
    ]
    if best == "contiguous":
        del cases[1]
    result = {}
    for what, left, right in cases:
        name = f"{NAME} {what}"
        result[name] = compare(left, right, pairs)
        print(f"{name}: {result[name]}", flush=True)
    return result, best


def memory(who: str, size: Size) -> dict[str, int | None]:
    """Peak of one decoding in this process."""
    z, (kind, _, tiled) = latents(size).to(DTYPE), who.partition(" ")
    vae = port(size, DTYPE)
    vae = ours(size, vae) if kind == "ours" else vae
    if tiled:
        vae.enable_tiling()
    return peak_of(lambda: vae.decode(z))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(3, 30, 45), help="latent frames, height and width")
    parser.add_argument("--pairs", type=int, default=5, help="clean pairs wanted for each ratio")
    parser.add_argument("--quick", action="store_true", help="small and short; writes nothing")
    parser.add_argument("--only-encoding", action="store_true", help="two minutes; joins the result of a whole run")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    given = parser.parse_args()
    size, pairs = ((3, 4, 6), 3) if given.quick else (tuple(given.size), given.pairs)
    torch.set_grad_enabled(False)
    if given.memory:
        print(json.dumps(memory(given.memory, size)))
        return

    gates = check(size)
    speeds = rates(DTYPE)
    pictures = {**encoding(size, pairs), **({} if given.quick else encoding(PICTURE, pairs))}
    if given.only_encoding:
        add("video_vae" if DTYPE == BF16 else "video_vae_float32", {"ratios of encoding": pictures}, machine())
        return
    ratios, best = measure(size, pairs)
    ratios |= pictures
    arguments = ["--size", *map(str, size)]
    who = ("ours", "port", "ours tiled", "port tiled")
    peaks = {name: in_fresh_process(__file__, [*arguments, "--memory", name]) for name in who}
    work = flops(size)
    floor = work / speeds["conv"] / 1e9

    rows = [["", "ours, s", "port, s", "ratio"]]
    rows += [[name, f"{r.ours:.2f}", f"{r.theirs:.2f}", str(r)] for name, r in ratios.items()]
    print("\n" + table(rows))
    head = ratios[f"{NAME} against the port tuned"]
    print(f"\n{NAME} floor (all of the port's arithmetic at the rate of its best convolution): {floor:.2f} s")
    print(f"reached: ours {floor / head.ours:.0%}, the port tuned {floor / head.theirs:.0%}")
    rows = [["memory", "added by decoding, MB", "peak, MB"]]
    for name, peak in peaks.items():
        added = None if peak["before"] is None else peak["peak"] - peak["before"]
        rows.append([name, *("unknown" if v is None else f"{v / 1e6:.0f}" for v in (added, peak["peak"]))])
    print("\n" + table(rows))
    if not given.quick:
        result = {
            "what": f"AutoencoderKLCogVideoX, decoding of {'x'.join(map(str, size))} latents",
            "machine": machine() | {"diffusers": diffusers.__version__},
            "correctness": gates,
            "data type": NAME,
            "rates": speeds,
            "tuned port": best,
            "ratios": ratios,
            "floor": {"flops": work, "seconds": floor},
            "memory": peaks,
        }
        print(f"\nwritten: {save('video_vae' if DTYPE == BF16 else 'video_vae_float32', result)}")


if __name__ == "__main__":
    main()
