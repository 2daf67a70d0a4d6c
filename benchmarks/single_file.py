"""From one file of a full-size Stable Diffusion 1.5 model to a pipeline of PIA, against diffusers.

    python benchmarks/single_file.py            random weights, 2.1 GB in float16, and a motion adapter of 0.8 GB
    python benchmarks/single_file.py --quick    one pair; writes nothing

Every measurement is a process of its own that has imported its library already; processes alternate in the order
A B B A. The file lies in the system's cache of files. Two times are taken: until the pipeline is there, and until every
weight has been read once beside that, since weights that are mapped are read at their first use. diffusers is measured
as `PIAPipeline`, and at its best as `StableDiffusionPipeline`, which builds no motion modules. Its configurations and
tokenizer are given as a local folder.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import in_fresh_process, machine, peak_now, peak_of, save, table
from safetensors.torch import save_file

from vivant.hub.single_file import SD15
from vivant.text.clip import save_tokenizer, shipped_tokenizer

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
SIDES = ("ours", "theirs", "theirs, base only", "ours, verified")
F16 = torch.float16


def random_file(path: Path, manifest: str) -> int:
    """A file with the tensors of a manifest at random values; returns the bytes of its tensors."""
    tensors = json.loads((GOLDEN / f"{manifest}.json").read_text(encoding="utf-8"))["tensors"]
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.02 * torch.randn(shape, generator=generator).to(F16) for name, shape in tensors.items()}
    save_file(state, path)
    return sum(value.nbytes for value in state.values())


def prepare(folder: Path) -> dict[str, int]:
    """The model, the adapter as a repository that both sides read, and the configurations; returns bytes of weights."""
    base = random_file(folder / "model.safetensors", "sd15_single_file")
    (folder / "adapter").mkdir()
    motion = random_file(folder / "adapter" / "diffusion_pytorch_model.safetensors", "pia_motion_adapter")
    fields = {"_class_name": "MotionAdapter", "conv_in_channels": 9, "use_motion_mid_block": False}
    (folder / "adapter" / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    for file in SD15.rglob("*.json"):
        target = folder / "config" / file.relative_to(SD15)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    save_tokenizer(shipped_tokenizer(SD15 / "tokenizer"), folder / "config" / "tokenizer")
    return {"base": base, "adapter": motion}


def loader(side: str, folder: Path) -> Callable[[], Any]:
    """What is timed; the library and the motion adapter are there before."""
    file = folder / "model.safetensors"
    if side.startswith("ours"):
        from vivant import MotionAdapter, PIAPipeline

        adapter = MotionAdapter.from_pretrained(folder / "adapter", dtype=F16)
        verify = side == "ours, verified"
        return lambda: PIAPipeline.from_single_file(file, motion_adapter=adapter, dtype=F16, verify=verify)
    import diffusers

    given = {"config": str(folder / "config"), "torch_dtype": F16, "local_files_only": True}
    if side == "theirs, base only":
        return lambda: diffusers.StableDiffusionPipeline.from_single_file(str(file), **given)
    adapter = diffusers.MotionAdapter.from_pretrained(folder / "adapter", torch_dtype=F16)
    return lambda: diffusers.PIAPipeline.from_single_file(str(file), motion_adapter=adapter, **given)


def one(side: str, folder: Path) -> dict[str, Any]:
    """One load in this process: seconds, and memory."""
    load, kept = loader(side, folder), []

    def timed() -> None:
        start = time.perf_counter()
        kept.append(load())
        kept.append(time.perf_counter() - start)

    memory = peak_of(timed)
    pipe, seconds = kept
    start = time.perf_counter()
    with torch.inference_mode():
        for name in ("unet", "vae", "text_encoder"):
            for value in getattr(pipe, name).parameters():
                value.view(torch.int16).max()
    read = time.perf_counter() - start
    dtype = str(pipe.unet.dtype)
    return {"ready": seconds, "read once": seconds + read, **memory, "peak with reading": peak_now(), "dtype": dtype}


def main() -> None:
    """Measure, show, and write `results/single_file.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pair; nothing is written")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one[0], Path(given.one[1]))))
        return
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="vivant-") as name:
        sizes = prepare(Path(name))
        for turn in range(1 if given.quick else 6):
            for side in SIDES if turn % 2 == 0 else reversed(SIDES):
                runs[side].append(in_fresh_process(__file__, ["--one", side, name]))
                print(f"{side}: {runs[side][-1]}", flush=True)
    total = sum(sizes.values())
    rows = [["", "ready, s", "read once, s", "peak / weights"]]
    medians: dict[str, dict[str, float]] = {}
    for side, found in runs.items():
        middle = {key: statistics.median(run[key] for run in found) for key in ("ready", "read once")}
        weights = sizes["base"] if side == "theirs, base only" else total
        # What was resident before are the libraries and the adapter, which ours maps and has not read yet.
        middle["peak / weights"] = max((run["peak with reading"] or 0) for run in found) / weights
        medians[side] = middle
        rows.append([side, *(f"{value:.2f}" for value in middle.values())])
    print("\n" + table(rows))
    ratios = {
        f"{key}, {side}": medians[side][key] / medians["ours"][key]
        for side in ("theirs", "theirs, base only")
        for key in ("ready", "read once")
    }
    for key, value in ratios.items():
        print(f"{key}: {value:.2f}x")
    if not given.quick:
        result = {
            "what": "a file of Stable Diffusion 1.5 in float16 to a pipeline of PIA, the motion adapter at hand",
            "machine": machine(),
            "bytes of weights": sizes,
            "medians": medians,
            "ratios": ratios,
            "runs": runs,
        }
        print(f"\nwritten: {save('single_file', result)}")


if __name__ == "__main__":
    main()
