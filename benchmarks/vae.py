"""Decoding with AutoencoderKL at the full size of Stable Diffusion 1.5, against diffusers.

    python benchmarks/vae.py            the real measurement: 8 frames of 256 px
    python benchmarks/vae.py --quick    a few seconds, to see that it runs; writes nothing

The port is measured twice: as it comes (the whole batch at once), and tuned (chunks of 2 frames, the better of the
two memory layouts). Weights are random; time and memory do not depend on them.
"""

import argparse
import json

import diffusers
import torch
from harness import (
    Ratio,
    Work,
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

from vivant.vae.image import AutoencoderKL

SD15 = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BF16, F32 = torch.bfloat16, torch.float32


def port(dtype: torch.dtype, layout: str = "contiguous") -> diffusers.AutoencoderKL:
    """diffusers' network; the same weights every time, but for rounding."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(**SD15).eval().requires_grad_(False)
    return vae.to(dtype).to(memory_format=LAYOUTS[layout])


def ours(like: diffusers.AutoencoderKL) -> AutoencoderKL:
    """Our network on the same tensors."""
    return AutoencoderKL.from_state(SD15, dict(like.state_dict()))


def chunked(vae: diffusers.AutoencoderKL, z: torch.Tensor, size: int, layout: str = "contiguous") -> torch.Tensor:
    """The port's decoding, `size` frames at a time."""
    return torch.cat([vae.decode(part.contiguous(memory_format=LAYOUTS[layout])).sample for part in z.split(size)])


def latents(frames: int, px: int) -> torch.Tensor:
    """The same latents every time."""
    return torch.randn(frames, 4, px // 8, px // 8, generator=torch.Generator().manual_seed(1))


def flops(frames: int, px: int) -> int:
    """Multiplications and additions of the port's decoding."""
    with torch.device("meta"):
        vae, z = diffusers.AutoencoderKL(**SD15), torch.empty(1, 4, px // 8, px // 8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.decode(z)
    return frames * counter.get_total_flops()


def check(px: int) -> dict[str, dict[str, float]]:
    """Correct first: float32 equal, bf16 no further from float32 than the port."""
    theirs = port(F32)
    mine = ours(theirs)
    z = latents(2, px)
    exact = theirs.decode(z).sample
    gates = {"float32 error": require("float32 error", relative_rms(mine.decode(z).sample, exact), 1e-5)}
    theirs, mine = theirs.to(BF16), mine.to(BF16)
    limit = 1.1 * relative_rms(theirs.decode(z.to(BF16)).sample, exact)
    error = relative_rms(mine.decode(z.to(BF16)).sample, exact)
    return gates | {"bf16 error": require("bf16 error", error, limit)}


def measure(frames: int, px: int, pairs: int) -> tuple[dict[str, Ratio], str]:
    """All ratios, and the port's better layout."""
    z, picture = latents(frames, px), torch.randn(1, 3, 2 * px, 2 * px, generator=torch.Generator().manual_seed(2))
    half, exact = port(BF16), port(F32)
    nets = {"contiguous": half, "channels_last": port(BF16, "channels_last")}
    mine, mine_exact = ours(half), ours(exact)
    zh, picture_h = z.to(BF16), picture.to(BF16)

    def tuned(layout: str) -> Work:
        return lambda: chunked(nets[layout], zh, 2, layout)

    best = fastest({layout: tuned(layout) for layout in LAYOUTS})
    result = {}
    for name, left, right in (
        ("bf16 against the port tuned", lambda: mine.decode(zh), tuned(best)),
        ("bf16 against the port's default", lambda: mine.decode(zh), lambda: half.decode(zh)),
        ("bf16 encoding of a picture", lambda: mine.encode(picture_h), lambda: half.encode(picture_h)),
        ("float32 against the port's default", lambda: mine_exact.decode(z), lambda: exact.decode(z)),
        ("bf16 against the port in float32", lambda: mine.decode(zh), lambda: exact.decode(z)),
    ):
        result[name] = compare(left, right, pairs)
        print(f"{name}: {result[name]}", flush=True)
    return result, best


def memory(who: str, frames: int, px: int) -> dict[str, int | None]:
    """Peak of one decoding in this process, in bf16."""
    z, (kind, _, layout) = latents(frames, px).to(BF16), who.partition(" ")
    theirs = port(BF16, layout or "contiguous")
    if kind == "ours":
        mine = ours(theirs)
        return peak_of(lambda: mine.decode(z))
    if kind == "tuned":
        return peak_of(lambda: chunked(theirs, z, 2, layout))
    return peak_of(lambda: theirs.decode(z))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--px", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=6, help="clean pairs wanted for each ratio")
    parser.add_argument("--quick", action="store_true", help="small and short; writes nothing")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    given = parser.parse_args()
    frames, px, pairs = (3, 64, 3) if given.quick else (given.frames, given.px, given.pairs)
    torch.set_grad_enabled(False)
    if given.memory:
        print(json.dumps(memory(given.memory, frames, px)))
        return

    gates = check(px)
    speeds = rates(BF16)
    ratios, best = measure(frames, px, pairs)
    size = ["--quick"] if given.quick else ["--frames", str(frames), "--px", str(px)]
    peaks = {who: in_fresh_process(__file__, [*size, "--memory", who]) for who in ("ours", f"tuned {best}", "default")}
    work = flops(frames, px)
    floor = work / speeds["conv"] / 1e9

    rows = [["", "ours, s", "port, s", "ratio"]]
    rows += [[name, f"{r.ours:.2f}", f"{r.theirs:.2f}", str(r)] for name, r in ratios.items()]
    print("\n" + table(rows))
    head = ratios["bf16 against the port tuned"]
    print(f"\nbf16 floor (all of the port's arithmetic at the rate of its best convolution): {floor:.2f} s")
    print(f"reached: ours {floor / head.ours:.0%}, the port tuned {floor / head.theirs:.0%}")
    rows = [["memory", "added by decoding, MB", "peak, MB"]]
    for who, peak in peaks.items():
        added = None if peak["before"] is None else peak["peak"] - peak["before"]
        rows.append([who, *("unknown" if v is None else f"{v / 1e6:.0f}" for v in (added, peak["peak"]))])
    print("\n" + table(rows))
    if not given.quick:
        result = {
            "what": f"AutoencoderKL, decode of {frames} frames of {px} px",
            "machine": machine() | {"diffusers": diffusers.__version__},
            "correctness": gates,
            "rates bf16": speeds,
            "tuned port": f"chunks of 2 frames, {best}",
            "ratios": ratios,
            "floor": {"flops": work, "seconds": floor},
            "memory": peaks,
        }
        print(f"\nwritten: {save('vae', result)}")


if __name__ == "__main__":
    main()
