"""Makes the files of test_antelope.py: python tests/golden/make_antelope.py (with insightface 2.1 and onnx 1.23).

Small networks with the inputs and results of antelopev2's, and what insightface makes of them. Neither package is
needed afterwards.
"""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from insightface.model_zoo.arcface_onnx import ArcFaceONNX  # pyright: ignore[reportMissingImports]
from insightface.model_zoo.retinaface import RetinaFace  # pyright: ignore[reportMissingImports]
from onnx import TensorProto, helper, numpy_helper, save  # pyright: ignore[reportMissingImports]
from safetensors.torch import save_file
from skimage import data

HERE = Path(__file__).parent
DETECTOR, RECOGNISER = HERE / "small_scrfd.onnx", HERE / "small_arcface.onnx"
# What a place says of each of its two anchors: how many numbers, their bias, how much colour counts, and the last step.
RESULTS = ((1, -3.2, 2.0, "Sigmoid"), (4, 2.5, 2.0, "Softplus"), (10, 0.0, 2.0, "Identity"))


def write(path: Path, nodes: list, inits: dict, shape: list, outputs: list) -> None:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in inits.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, num]) for name, num in outputs]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, tensors)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def detector(rng: np.random.Generator) -> None:
    """Finds what is bright."""
    nodes, inits, outputs = [], {}, [[], [], []]
    for s in (8, 16, 32):
        nodes.append(helper.make_node("AveragePool", ["x"], [f"p{s}"], kernel_shape=[s, s], strides=[s, s]))
        for k, (num, bias, scale, last) in enumerate(RESULTS):
            weight = (rng.normal(size=(2 * num, 3, 1, 1)) * scale).astype(np.float32)
            inits[f"w{s}{k}"] = abs(weight) if k == 0 else weight
            inits[f"b{s}{k}"] = (bias + 0.2 * rng.normal(size=2 * num)).astype(np.float32)
            inits[f"n{s}{k}"] = np.array([-1, num], np.int64)
            nodes += [
                helper.make_node("Conv", [f"p{s}", f"w{s}{k}", f"b{s}{k}"], [f"c{s}{k}"], kernel_shape=[1, 1]),
                helper.make_node("Transpose", [f"c{s}{k}"], [f"t{s}{k}"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"t{s}{k}", f"n{s}{k}"], [f"r{s}{k}"]),
                helper.make_node(last, [f"r{s}{k}"], [f"o{k}{s}"]),
            ]
            outputs[k].append((f"o{k}{s}", num))
    write(DETECTOR, nodes, inits, [1, 3, "h", "w"], [result for kind in outputs for result in kind])


def recogniser(rng: np.random.Generator) -> None:
    inits = {
        "w": (rng.normal(size=(4, 3, 14, 14)) / 24).astype(np.float32),
        "v": (rng.normal(size=(4 * 8 * 8, 20)) / 16).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[14, 14], strides=[14, 14]),
        helper.make_node("Tanh", ["c"], ["t"]),
        helper.make_node("Flatten", ["t"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["e"]),
    ]
    write(RECOGNISER, nodes, inits, [None, 3, 112, 112], [("e", 20)])


def main() -> None:
    rng = np.random.default_rng(5)
    detector(rng)
    recogniser(rng)
    detect, recognise = RetinaFace(str(DETECTOR)), ArcFaceONNX(str(RECOGNISER))
    detect.prepare(-1, input_size=(640, 640))
    golden = {}
    for name, photo in (("wide", data.coffee()), ("tall", data.rocket().transpose(1, 0, 2))):
        bgr = np.ascontiguousarray(photo[:, :, ::-1])
        faces, points = detect.detect(bgr)
        golden[f"{name}_boxes"], golden[f"{name}_scores"], golden[f"{name}_points"] = faces[:, :4], faces[:, 4], points
        golden[f"{name}_embedding"] = recognise.get(bgr, SimpleNamespace(kps=points[0]))
        golden[f"{name}_crop_embedding"] = recognise.get_feat(cv2.resize(bgr, (512, 512)))[0]
    save_file(
        {key: torch.tensor(np.ascontiguousarray(value)) for key, value in golden.items()}, HERE / "antelope.safetensors"
    )


if __name__ == "__main__":
    main()
