"""From a photo of 1024 pixels to what ConsisID reads of a face: full-size networks, random weights, float32.

    python benchmarks/faces.py                       all of it, by stage; a minute on two cores
    python benchmarks/faces.py --reference FOLDER    the vision tower and the parser against the original ones as well
    python benchmarks/faces.py --quick               small networks; nothing is written

FOLDER holds consisid-eva-clip 1.0.2 and facexlib 0.3.0, unpacked (`pip download --no-deps`, `unzip`). The reference
flow as a whole needs torchvision, insightface's weights and a CUDA device and does not run here; these two networks do,
with gradients on, as it runs them. The tower is by far the largest part of the work.

Antelopev2's weights are no more to be had here than the others, and its sizes are not known to us: its two ONNX files
are the small ones of the tests, so that their time is left out.
"""

import argparse
import importlib
import json
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import Ratio, add, compare, in_fresh_process, machine, peak_of, relative_rms, require, table, timed
from torch import Tensor, nn

from vivant.faces.antelope import ArcFace, Scrfd
from vivant.faces.detect import RetinaFace
from vivant.faces.encoders import Encoders
from vivant.faces.eva import EvaVisual
from vivant.faces.network import Network
from vivant.faces.parse import BiSeNet

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
MANIFESTS = {RetinaFace: "retinaface_resnet50", BiSeNet: "bisenet_parsing", EvaVisual: "eva02_clip_l_336_visual"}
SIDE = 1024


def state(kind: type[Network]) -> dict[str, Tensor]:
    """Random weights with the names and shapes of the published file; every norm as it begins."""
    generator = torch.Generator().manual_seed(0)
    shapes = json.loads((GOLDEN / f"{MANIFESTS[kind]}.json").read_text())["tensors"]

    def value(name: str, shape: list[int]) -> Tensor:
        if name.endswith("num_batches_tracked"):
            return torch.zeros(shape, dtype=torch.long)
        if "ClassHead" in name:  # no faces: noise would be full of them, and taking the same ones together has its time
            return torch.zeros(shape)
        if len(shape) > 1:
            return torch.randn(shape, generator=generator) / torch.tensor(shape[1:]).prod().sqrt()
        return torch.ones(shape) if name.endswith(("weight", "running_var")) else torch.zeros(shape)

    return {name: value(name, shape) for name, shape in shapes.items() if "rope." not in name}  # tables are computed


def encoders() -> Encoders:
    """All five networks."""
    networks = [kind.from_state(state(kind)) for kind in (RetinaFace, BiSeNet, EvaVisual)]
    small = Scrfd(GOLDEN / "small_scrfd.onnx"), ArcFace(GOLDEN / "small_arcface.onnx")
    return Encoders(*networks, *small)  # pyright: ignore[reportArgumentType]


def photo() -> Tensor:
    """Noise with a bright square, which the small SCRFD takes for faces."""
    dark = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).mul(100).round()
    dark[:, 300:500, 300:500] += 150
    return dark


def stages(all_of_it: Encoders) -> dict[str, float]:
    """Seconds of each network and of everything, the fastest of three."""
    whole, crop = photo(), photo()[:, :512, :512]
    works = {
        "RetinaFace, 1024 px": lambda: all_of_it.detector.faces_in(whole),
        "BiSeNet, 512 px": lambda: all_of_it.cut_out(crop),
        "EVA02-CLIP-L, 336 px": lambda: all_of_it.see(crop / 255),
        "photo to face": lambda: all_of_it.encode_pixels(whole),
    }
    with torch.no_grad():
        return {name: min(timed(work).seconds for _ in range(4)) for name, work in works.items()}


def original(folder: Path) -> tuple[nn.Module, nn.Module]:
    """The tower and the parser of the original packages, on the same weights.

    Of the packages around them only these two files are imported; what these import of timm is three small helpers.
    """
    helpers: Any = types.ModuleType("timm.layers")
    helpers.drop_path = lambda x, *_: x
    helpers.to_2tuple = lambda x: x if isinstance(x, tuple) else (x, x)
    helpers.trunc_normal_ = nn.init.trunc_normal_
    for name in ("consisid_eva_clip", "facexlib", "facexlib.parsing"):
        module: Any = types.ModuleType(name)
        module.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = module
    sys.modules |= {
        "timm": types.ModuleType("timm"),
        "timm.layers": helpers,
        "consisid_eva_clip.utils": helpers,  # its own version of one of them, beside what needs torchvision
    }
    tower = importlib.import_module("consisid_eva_clip.eva_vit_model").EVAVisionTransformer(
        img_size=336,
        patch_size=14,
        num_classes=768,
        use_mean_pooling=False,
        embed_dim=1024,
        depth=24,
        num_heads=16,
        mlp_ratio=2.6667,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        rope=True,
        intp_freq=True,
        naiveswiglu=True,
        subln=True,
    )
    parser = importlib.import_module("facexlib.parsing.bisenet").BiSeNet(num_class=19)
    missing, _ = tower.load_state_dict(state(EvaVisual), strict=False)
    assert all(".rope." in f".{name}" for name in missing), missing
    parser.load_state_dict(state(BiSeNet))
    return tower.eval(), parser.eval()


def against(all_of_it: Encoders, folder: Path, pairs: int) -> tuple[dict[str, Any], dict[str, Ratio]]:
    """Both networks against the original ones: equal first, then timed."""
    tower, parser = original(folder)
    x = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(2))
    face = torch.randn(1, 3, 512, 512, generator=torch.Generator().manual_seed(3))

    def see() -> Any:
        return tower(x, return_all_features=False, return_hidden=True, shuffle=False)

    pooled, hidden = see()
    with torch.no_grad():
        ours = all_of_it.vision(x)
        gates = {
            "tower, pooled": require("tower, pooled", relative_rms(ours.pooled, pooled.detach()), 1e-5),
            "tower, last": require("tower, last", relative_rms(ours.hidden[-1], hidden[-1].detach()), 1e-5),
            "parser": require("parser", relative_rms(all_of_it.parser(face), parser(face)[0].detach()), 1e-5),
        }
        del pooled, hidden, ours
    return gates, {
        "the tower": compare(lambda: all_of_it.vision(x), see, pairs),
        "the parser": compare(lambda: all_of_it.parser(face), lambda: parser(face), pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="folder with the original packages")
    parser.add_argument("--pairs", type=int, default=5, help="clean pairs wanted for each ratio")
    parser.add_argument("--quick", action="store_true", help="one pair; nothing is written")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        all_of_it = encoders()
        print(json.dumps(peak_of(lambda: all_of_it.encode_pixels(photo()))))
        return
    all_of_it = encoders()
    sections: dict[str, dict[str, Any]] = {
        "seconds": stages(all_of_it),
        "memory": in_fresh_process(__file__, ["--memory"]),
    }
    print(table([["stage", "seconds"], *([name, f"{s:.2f}"] for name, s in sections["seconds"].items())]))
    memory = sections["memory"]
    if memory["before"] is not None:
        print(f"peak {memory['peak'] / 1e9:.2f} GB, {(memory['peak'] - memory['before']) / 1e9:.2f} more than loaded")
    if given.reference:
        gates, ratios = against(all_of_it, given.reference, 1 if given.quick else given.pairs)
        sections |= {"correctness": gates, "ratios": dict(ratios)}
        for name, ratio in ratios.items():
            print(f"{name}: {ratio}; ours {ratio.ours:.2f} s, the original {ratio.theirs:.2f} s")
    if not given.quick:
        print(f"written: {add('faces', sections, machine())}")


if __name__ == "__main__":
    main()
