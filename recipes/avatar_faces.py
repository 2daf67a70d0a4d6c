"""Train the networks that see avatars' faces: the files of a repository's `face_encoder`, small.

python recipes/avatar_faces.py runs/faces      # needs the package onnx, to write the two files of antelopev2

Who an avatar is, is learnt as its traits: an identity is a combination of them, and those of the held-out eighth of the
world are never seen. The vision tower sees crops in grey, as ConsisID's does, the recogniser sees portraits in colour.
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from ship import HEADER
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vivant.faces.antelope import DETECTOR, RECOGNISER, SIDE
from vivant.faces.detect import MEAN, VARIANCES, RetinaFace, anchors
from vivant.faces.encoders import (
    ANTELOPE,
    CLIP_MEAN,
    CLIP_STD,
    DETECTION,
    FOLDER,
    GREY,
    IMAGENET_MEAN,
    IMAGENET_STD,
    PARSING,
    VISION,
)
from vivant.faces.eva import EvaVisual
from vivant.faces.found import overlap
from vivant.faces.parse import LABELS, BiSeNet
from vivant.hub.converted import beside
from vivant.pocket.avatars import (
    PARTS,
    TRAITS,
    AvatarClips,
    aligned,
    paint,
    places,
    sample_avatar,
    sample_setting,
    sample_still,
)
from vivant.pocket.avatars.clips import SPLITS
from vivant.pocket.avatars.traits import Split
from vivant.train.loop import Progress, train, trainable
from vivant.train.samples import Batch, Draws, Source
from vivant.train.settings import Settings

EMBEDDING, POOLED, WIDTH, PATCH, GRID = 128, 64, 128, 8, 8


# ------------------------------------------------------------------------------------------------------ identity


def conv(before: int, after: int, stride: int) -> nn.Sequential:
    """A convolution whose normalisation is folded into it in the end."""
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


class Portraits(nn.Module):
    """Portraits of 56 x 56 pixels in [-1, 1] to embeddings."""

    def __init__(self):
        super().__init__()
        widths = ((3, 32, 2), (32, 48, 1), (48, 64, 2), (64, 96, 2), (96, 128, 2))
        self.body = nn.Sequential(*(conv(*sizes) for sizes in widths))
        self.head = nn.Linear(128 * 16, EMBEDDING)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        return self.head(self.body(x).flatten(1))


class IdentityTask:
    """The recogniser and the vision tower, each by the traits that can be told from its embedding."""

    def __init__(self):
        self.portraits = Portraits()
        self.tower = EvaVisual(width=WIDTH, depth=6, hidden=256, patch=PATCH, grid=GRID, embedding=POOLED)
        for name, p in self.tower.named_parameters():
            if name in ("cls_token", "pos_embed"):
                nn.init.normal_(p, std=0.02)
        num = sum(len(options) for options in TRAITS.values())
        self.heads = nn.ModuleList([nn.Linear(EMBEDDING, num), nn.Linear(POOLED, num)])
        self.networks = (self.portraits, self.tower, self.heads)
        parts = zip(("portraits.", "tower.", "heads."), self.networks, strict=True)
        self.weights = {name: p for prefix, part in parts for name, p in trainable(part, prefix).items()}

    @staticmethod
    def prepare(clip: Any, rng: Any) -> dict[str, Any]:
        """Both pictures, brighter or darker, and the traits."""
        gain = rng.uniform(0.85, 1.15)
        pictures = {name: np.clip(getattr(clip, name) * gain, 0, 255).astype(np.uint8) for name in ("crop", "portrait")}
        return {**pictures, "traits": torch.tensor(clip.avatar.indices)}

    def losses(self, batch: Batch, draws: Draws, dtype: torch.dtype) -> dict[str, Float[Tensor, " b"]]:
        """Cross entropy, the mean over traits and both networks, and the part of the traits that is right."""
        crop, portrait = (
            rearrange(batch[name].float(), "b h w c -> b c h w").contiguous() for name in ("crop", "portrait")
        )
        embedding = self.portraits(portrait / 127.5 - 1)
        pooled = F.normalize(self.tower(greyed(crop / 255)).pooled.float(), dim=1)
        values: dict[str, Tensor] = {"loss": torch.zeros(len(crop))}
        for name, head, seen in zip(("portrait", "crop"), self.heads, (embedding, 8 * pooled), strict=True):
            scores = head(seen).float().split([len(options) for options in TRAITS.values()], dim=1)
            right = torch.zeros(len(crop))
            for i, score in enumerate(scores):
                values["loss"] = values["loss"] + F.cross_entropy(score, batch["traits"][:, i], reduction="none") / 22
                right = right + (score.argmax(1) == batch["traits"][:, i]).float() / len(TRAITS)
            values[name] = right
        return values

    def show(self, folder: Path, step: int) -> None:
        """The log has the share that is right."""

    def export(self, folder: Path) -> None:
        """The tower under its published names, and the recogniser as ONNX."""
        (folder / FOLDER / ANTELOPE).mkdir(parents=True, exist_ok=True)
        state = {f"visual.{name}": value.detach().clone() for name, value in self.tower.state_dict().items()}
        save_file(state, beside(folder / FOLDER / VISION))
        graph = Graph("x", [None, 3, 112, 112])
        x = graph.pool("x", 2)
        for layer in folded(self.portraits.body):
            x = graph.conv(x, *layer)
        x = graph.node("Flatten", [x])
        x = graph.node(
            "Gemm", [x, graph.keep(self.portraits.head.weight), graph.keep(self.portraits.head.bias)], transB=1
        )
        graph.write(folder / FOLDER / ANTELOPE / RECOGNISER, [(x, [None, EMBEDDING])])


def planes(pixels: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """Pictures from 0 to 255, channels first in memory too."""
    return rearrange(pixels.float(), "b h w c -> b c h w").contiguous()


def greyed(crop: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Crops from 0 to 1 as the vision tower sees them."""
    grey = (crop * crop.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    return (grey - grey.new_tensor(CLIP_MEAN)[:, None, None]) / grey.new_tensor(CLIP_STD)[:, None, None]


# --------------------------------------------------------------------------------------------- ONNX by hand


def folded(layers: nn.Sequential) -> list[tuple[Tensor, Tensor, int]]:
    """Weight, bias and stride of each convolution with its normalisation."""
    found: list[tuple[Tensor, Tensor, int]] = []
    for layer in layers:
        assert isinstance(layer, nn.Sequential)
        convolution, norm = layer[0], layer[1]
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        fused = fuse_conv_bn_eval(convolution.eval(), norm.eval())
        assert fused.bias is not None
        found.append((fused.weight, fused.bias, fused.stride[0]))
    return found


class Graph:
    """A network of few operators, written as ONNX."""

    def __init__(self, name: str, shape: list[Any]):
        import onnx  # pyright: ignore[reportMissingImports]

        self.onnx: Any = onnx
        self.inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)]
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """An operator; returns the name of its result."""
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def keep(self, value: Any) -> str:
        """A constant."""
        name = f"c{len(self.tensors)}"
        array = value.detach().float().numpy() if isinstance(value, Tensor) else np.asarray(value)
        self.tensors.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def pool(self, x: str, size: int) -> str:
        """Means of squares of pixels."""
        return self.node("AveragePool", [x], kernel_shape=[size, size], strides=[size, size])

    def conv(self, x: str, weight: Tensor, bias: Tensor, stride: int, *, rectified: bool = True) -> str:
        """A convolution and its rectifier."""
        pad, side = weight.shape[-1] // 2, weight.shape[-1]
        x = self.node(
            "Conv",
            [x, self.keep(weight), self.keep(bias)],
            kernel_shape=[side, side],
            strides=[stride] * 2,
            pads=[pad] * 4,
        )
        return self.node("Relu", [x]) if rectified else x

    def write(self, path: Path, outputs: Sequence[tuple[str, list[Any]]]) -> None:
        """Write the file."""
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        results = [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs]
        graph = helper.make_graph(self.nodes, path.stem, self.inputs, results, self.tensors)
        path.parent.mkdir(parents=True, exist_ok=True)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        model.doc_string = HEADER["description"]
        helper.set_model_props(model, {"license": HEADER["license"]})
        self.onnx.save(model, path)


# ---------------------------------------------------------------------------------------------------- detection

SMALL = 8
"""What the detector's picture of 640 pixels is shrunk by before anything else."""
CELLS = SIDE // 32
"""Places a side, of the coarsest of SCRFD's three grids; the finer ones find nothing."""


class Finder(nn.Module):
    """Pictures of 80 x 80 in [-1, 1] to what each of 20 x 20 places says: score, sides of the box, five points."""

    def __init__(self):
        super().__init__()
        self.near = nn.Sequential(conv(3, 24, 2), conv(24, 48, 2), conv(48, 64, 1))
        self.far = nn.Sequential(conv(64, 96, 2), conv(96, 96, 1), conv(96, 96, 1))
        self.joined = nn.Sequential(conv(160, 96, 1), conv(96, 96, 1))
        self.head = nn.Conv2d(96, 15, 1)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 15 i j"]:
        near = self.near(x)
        far = F.interpolate(self.far(near), scale_factor=2.0, mode="nearest")
        return self.head(self.joined(torch.cat([near, far], dim=1)))


@dataclass(frozen=True)
class Photo:
    """A picture with at most one avatar.

    Attributes:
        pixels: square.
        points: five points in parts of the side, or zeros without anybody.
        box: likewise: left, top, right, bottom.
    """

    pixels: np.ndarray
    points: np.ndarray
    box: np.ndarray


@dataclass(frozen=True)
class Photos:
    """Photos of avatars, some of nobody, letterboxed as SCRFD's pictures are."""

    num: int
    size: int = 80
    split: Split = "train"

    def __len__(self) -> int:
        return self.num

    def read(self, index: int, rng: np.random.Generator) -> Photo:
        """Photo `index`; `rng` is not read."""
        rng = np.random.default_rng([SPLITS.index(self.split), index, 0xF070])
        avatar, pose, setting = sample_avatar(rng, self.split), sample_still(rng), sample_setting(rng, has_light=True)
        nobody = rng.random() < 0.15
        for name, value in (
            ("x", rng.uniform(-0.5, 0.5)),
            ("y", rng.uniform(-0.4, 0.3)),
            ("scale", rng.uniform(0.22, 0.72)),
        ):
            getattr(pose, name)[:] = 9.0 if nobody and name == "y" else value
        side = (np.arange(self.size, dtype=np.float32) + (0.5 - self.size / 2)) / (self.size / 2)
        x, y = np.meshgrid(side, side)
        pixels = paint(avatar, pose, setting, x[None], y[None], self.size / 2).pixels[0]
        wide = rng.uniform(0.6, 1.0)  # photos are not square; beyond them is black
        if rng.random() < 0.5:
            cut = int(wide * self.size)
            pixels[cut:] = 0 if rng.random() < 0.5 else pixels[cut:]
        points = (places(pose, avatar.eye_gap)[0] + 1) / 2
        reach = 1.05 * float(pose.scale[0])
        middle = np.array([pose.x[0], pose.y[0]])
        box = (np.concatenate([middle - 0.85 * reach, middle + 0.85 * reach]) + 1) / 2
        if nobody:
            points, box = np.zeros((5, 2)), np.zeros(4)
        return Photo(pixels, points.astype(np.float32), box.astype(np.float32))


class FinderTask:
    """A score at the place of the nose's cell; box and points from there, in cells."""

    def __init__(self):
        self.finder = Finder()
        self.networks, self.weights = (self.finder,), trainable(self.finder)

    @staticmethod
    def prepare(clip: Photo, rng: Any) -> dict[str, Any]:
        """The picture, and where the face is in cells."""
        return {"pixels": clip.pixels, "points": clip.points * CELLS, "box": clip.box * CELLS}

    def losses(self, batch: Batch, draws: Draws, dtype: torch.dtype) -> dict[str, Float[Tensor, " b"]]:
        """Cross entropy of the scores, absolute errors of boxes and points."""
        said = self.finder(planes(batch["pixels"]) / 127.5 - 1).float()
        box, points = batch["box"], batch["points"]
        middle = (box[:, :2] + box[:, 2:]) / 2
        has = (box[:, 2] > box[:, 0]).float()
        y, x = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
        away = torch.hypot(x[None] - middle[:, :1, None], y[None] - middle[:, 1:, None])
        near = ((away < 1.0).float() * has[:, None, None]).flatten(1)
        unsure = ((away >= 1.0) & (away < 2.0)).float().flatten(1) * has[:, None]
        scores = said[:, 0].flatten(1)
        entropy = F.binary_cross_entropy_with_logits(scores, near, reduction="none", pos_weight=torch.tensor(4.0))
        found = (entropy * (1 - unsure)).mean(1)
        grid = torch.stack([x, y], dim=0).flatten(1).float()
        sides = said[:, 1:5].flatten(2)
        wanted = torch.cat([grid[None] - box[:, :2, None], box[:, 2:, None] - grid[None]], dim=1)
        aims = said[:, 5:].flatten(2)
        goals = (points[..., None] - grid[None, None]).flatten(1, 2)
        weight = near / near.sum(1, keepdim=True).clamp(min=1)
        boxes = (F.softplus(sides) - wanted).abs().mean(1).mul(weight).sum(1)
        marks = (aims - goals).abs().mean(1).mul(weight).sum(1)
        return {"loss": 20 * found + boxes + 2 * marks, "scores": found, "box": boxes, "points": marks}

    def show(self, folder: Path, step: int) -> None:
        """The log has the errors."""

    def export(self, folder: Path) -> None:
        """SCRFD's nine results, of which six say that nothing is there."""
        finder, graph = self.finder.eval(), Graph("x", [1, 3, "h", "w"])
        x = graph.pool("x", SMALL)
        x = graph.node("Mul", [x, graph.keep(np.float32(128 / 127.5))])
        for layer in folded(finder.near):
            x = graph.conv(x, *layer)
        near = x
        for layer in folded(finder.far):
            x = graph.conv(x, *layer)
        x = graph.node(
            "Resize",
            [x, "", graph.keep(np.array([1, 1, 2, 2], np.float32))],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        x = graph.node("Concat", [near, x], axis=1)
        for layer in folded(finder.joined):
            x = graph.conv(x, *layer)
        weight, bias = finder.head.weight, finder.head.bias
        assert bias is not None
        outputs: list[tuple[str, list[Any]]] = []
        for first, num, last in ((0, 1, "Sigmoid"), (1, 4, "Softplus"), (5, 10, "Identity")):
            rows = slice(first, first + num)
            said = graph.conv(x, weight[rows], bias[rows], 1, rectified=False)
            said = graph.node("Transpose", [said], perm=[0, 2, 3, 1])
            said = graph.node("Reshape", [said, graph.keep(np.array([-1, num], np.int64))])
            said = graph.node(last, [said])
            said = graph.node("Unsqueeze", [said, graph.keep(np.array([1], np.int64))])
            quiet = graph.node("Mul", [said, graph.keep(np.float32(0))])
            both = graph.node("Concat", [said, quiet], axis=1)  # two anchors at each place: the second says nothing
            both = graph.node("Reshape", [both, graph.keep(np.array([-1, num], np.int64))])
            for stride in (8, 16):
                blank = np.zeros((2 * (SIDE // stride) ** 2, num), np.float32)
                outputs.append((graph.node("Identity", [graph.keep(blank)]), list(blank.shape)))
            outputs.append((both, [2 * CELLS**2, num]))
        graph.write(folder / FOLDER / ANTELOPE / DETECTOR, outputs)


class DetectorTask:
    """RetinaFace with few channels, on the same photos at several sizes, by the losses of its paper."""

    SIDES = (96, 160, 256)
    HARD = 7
    """Anchors without a face that count, for each with one."""

    def __init__(self):
        self.detector = RetinaFace(width=8, depths=(1, 1, 1, 1), channels=32)
        self.networks, self.weights = (self.detector,), trainable(self.detector)

    @staticmethod
    def prepare(clip: Photo, rng: Any) -> dict[str, Any]:
        """The picture, and where the face is in parts of its side."""
        return {"pixels": clip.pixels, "points": clip.points, "box": clip.box}

    def losses(self, batch: Batch, draws: Draws, dtype: torch.dtype) -> dict[str, Float[Tensor, " b"]]:
        """Cross entropy of faces and of the hardest places without, absolute errors of boxes and points."""
        side = self.SIDES[int(batch["n"][0]) // len(batch["n"]) % len(self.SIDES)]
        pixels = F.interpolate(planes(batch["pixels"]), (side, side), mode="bilinear", antialias=True)
        offsets = self.detector(pixels.flip(1) - pixels.new_tensor(MEAN)[:, None, None])
        places = anchors(side, side).float()
        corners = torch.cat([places[:, :2] - places[:, 2:] / 2, places[:, :2] + places[:, 2:] / 2], dim=1)
        box, points = batch["box"] * side, batch["points"] * side
        has = box[:, 2] > box[:, 0]
        shared = overlap(box, corners)
        best = F.one_hot(shared.argmax(1), len(places)).bool()
        near = ((shared > 0.35) | best) & has[:, None]
        entropy = -offsets.scores.float().clamp(min=1e-6).log()
        wrong = entropy[..., 0].masked_fill(near, 0.0)
        num = (near.sum(1) * self.HARD).clamp(min=20, max=len(places) // 2)
        rank = wrong.detach().argsort(1, descending=True).argsort(1)
        hard = (rank < num[:, None]) & ~near & ((shared < 0.3) | ~has[:, None])
        weight = near / near.sum(1, keepdim=True).clamp(min=1)
        found = (entropy[..., 1] * weight).sum(1) + (wrong * hard).sum(1) / near.sum(1).clamp(min=1)
        middle, sides = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]).clamp(min=1)
        goal = torch.cat(
            [
                (middle[:, None] - places[:, :2]) / places[:, 2:] / VARIANCES[0],
                (sides[:, None] / places[:, 2:]).log() / VARIANCES[1],
            ],
            dim=2,
        )
        boxes = F.smooth_l1_loss(offsets.boxes.float(), goal, reduction="none").mean(2).mul(weight).sum(1)
        goal = (points[:, None] - places[:, None, :2]) / places[:, None, 2:] / VARIANCES[0]
        marks = F.smooth_l1_loss(offsets.points.float(), goal.flatten(2), reduction="none").mean(2).mul(weight).sum(1)
        return {"loss": found + 2 * boxes + 2 * marks, "scores": found, "box": boxes, "points": marks}

    def show(self, folder: Path, step: int) -> None:
        """The log has the errors."""

    def export(self, folder: Path) -> None:
        """Under the published names."""
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        state = {f"module.{name}": value.detach().clone() for name, value in self.detector.state_dict().items()}
        save_file(state, beside(folder / FOLDER / DETECTION))


# ------------------------------------------------------------------------------------------------------- parsing

SEEN_AS = {"ground": "background", "face": "skin", "hair": "hair", "neck": "neck", "cloth": "cloth"}


@dataclass(frozen=True)
class Crops:
    """Aligned crops and what is where in them."""

    num: int
    size: int = 128
    split: Split = "train"

    def __len__(self) -> int:
        return self.num

    def read(self, index: int, rng: np.random.Generator) -> Any:
        """Crop `index`; `rng` is not read."""
        rng = np.random.default_rng([SPLITS.index(self.split), index, 0xC807])
        avatar, pose, setting = sample_avatar(rng, self.split), sample_still(rng), sample_setting(rng, has_light=True)
        return aligned(avatar, pose, setting, self.size, "crop", rng)


class ParserTask:
    """BiSeNet with few channels, on crops of 512 pixels."""

    def __init__(self):
        self.parser = BiSeNet(width=8)
        for module in self.parser.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.networks, self.weights = (self.parser,), trainable(self.parser)
        self.classes = torch.tensor([LABELS.index(SEEN_AS[part]) for part in PARTS])

    @staticmethod
    def prepare(clip: Any, rng: Any) -> dict[str, Any]:
        """The crop and its labels."""
        return {"pixels": clip.pixels[0], "labels": clip.labels[0].astype(np.int64)}

    def losses(self, batch: Batch, draws: Draws, dtype: torch.dtype) -> dict[str, Float[Tensor, " b"]]:
        """Cross entropy and the part of the pixels that is right, at the size of the drawing."""
        pixels = planes(batch["pixels"]) / 255
        x = (pixels - pixels.new_tensor(IMAGENET_MEAN)[:, None, None]) / pixels.new_tensor(IMAGENET_STD)[:, None, None]
        logits = self.parser(F.interpolate(x, (512, 512), mode="bilinear"))
        logits = F.interpolate(logits.float(), pixels.shape[2:], mode="bilinear")
        wanted = self.classes[batch["labels"]]
        right = (logits.argmax(1) == wanted).float().flatten(1).mean(1)
        return {"loss": F.cross_entropy(logits, wanted, reduction="none").flatten(1).mean(1), "right": right}

    def show(self, folder: Path, step: int) -> None:
        """The log has the share that is right."""

    def export(self, folder: Path) -> None:
        """Under the published names."""
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().clone() for name, value in self.parser.state_dict().items()}
        save_file(state, beside(folder / FOLDER / PARSING))


def settings(steps: int, batch: int, rate: float, seed: int) -> Settings:
    """Of a short run without an average, since what is normalised by running means cannot be averaged."""
    return Settings(
        steps=steps,
        batch=batch,
        learning_rate=rate,
        warmup=steps // 20,
        decay="cosine",
        seed=seed,
        ema=0.0,
        sample_every=0,
        checkpoint_every=100,
    )


class Kept:
    """A source whose samples are drawn once and stay in memory: drawing takes longer than such small networks do."""

    def __init__(self, source: Source):
        self.source = source
        self.read_before: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int, rng: np.random.Generator) -> Any:
        """Sample `index` as it was read first."""
        if index not in self.read_before:
            self.read_before[index] = self.source.read(index, rng)
        return self.read_before[index]


RUNS: Mapping[str, Any] = {
    "identity": (IdentityTask, AvatarClips(16384, 1), settings(2500, 48, 1.5e-3, 12)),
    "finder": (FinderTask, Photos(8192), settings(1200, 32, 2e-3, 13)),
    "detector": (DetectorTask, Photos(8192, 128), settings(4000, 16, 3e-3, 15)),
    "parser": (ParserTask, Crops(4096), settings(1500, 6, 3e-3, 14)),
}


def main(folder: Path, names: Sequence[str]) -> None:
    """Train what is named, or all, but for what is there; all files come together in `folder`.

    What was begun and did not end begins anew: the running means of normalisation are not in checkpoints.
    """
    for name in names or RUNS:
        task, source, numbers = RUNS[name]

        def say(at: Progress, name: str = name) -> None:
            if at.step % 20 == 0:
                print(name, at.step, {key: round(value, 3) for key, value in at.values.items()}, flush=True)

        exported = folder / name / "export"
        if not exported.is_dir():
            shutil.rmtree(folder / name, ignore_errors=True)
            torch.manual_seed(numbers.seed)
            train(task(), Kept(source), numbers, folder / name, on_step=say)
        shutil.copytree(exported / FOLDER, folder / FOLDER, dirs_exist_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
