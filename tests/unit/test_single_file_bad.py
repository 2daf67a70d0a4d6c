"""Single files that are damaged or made to do harm: a named error within seconds, and nothing is run."""

import json
import pickle
import struct
import time
from pathlib import Path

import pytest
import torch

import tiny
import tiny_pia
import tiny_repo
import tiny_single
from vivant.errors import LoadError
from vivant.hub.finite import check_finite
from vivant.pia.unet import UNet2DConditionModel
from vivant.pipelines.pia import PIAPipeline
from vivant.vae.image import AutoencoderKL

UNET, VAE = tiny_single.UNET, tiny_single.VAE


@pytest.fixture(scope="module")
def state():
    """A whole small model, in float32."""
    return tiny_single.whole({"unet": tiny_pia.base(), "vae": tiny_pia.vae(), "text_encoder": tiny_repo.text_encoder()})


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    return tiny_single.write(state, tmp_path_factory.mktemp("models") / "model.safetensors")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Loads a pipeline from a file, with what small models need."""
    config = tiny_single.configurations(tmp_path_factory.mktemp("config"))

    def load_pipeline(path, **given):
        return PIAPipeline.from_single_file(path, config=config, motion_adapter=tiny_pia.adapter(), **given)

    return load_pipeline


def test_nan_where_merges_put_it(tmp_path, state, loaded):
    for name in (f"{UNET}middle_block.1.proj_in.weight", f"{VAE}decoder.norm_out.bias"):
        bad = state[name].clone()
        bad.view(-1)[3] = float("nan")
        with pytest.raises(LoadError, match="E-WEIGHTS-NAN"):
            loaded(tiny_single.write({**state, name: bad}, tmp_path / "model.safetensors"))


def test_nan_anywhere_is_found_on_request_or_when_all_is_read_anyway(tmp_path, state, loaded):
    name = f"{UNET}middle_block.1.proj_in.weight"
    bad = state[name].clone()
    bad.view(-1)[-1] = float("inf")
    path = tiny_single.write({**state, name: bad}, tmp_path / "model.safetensors")
    assert loaded(path) is not None
    for given in ({"verify": True}, {"dtype": torch.bfloat16}):
        with pytest.raises(LoadError, match=r"E-WEIGHTS-NAN.*proj_in"):
            loaded(path, **given)
    with pytest.raises(LoadError, match="E-WEIGHTS-NAN"):
        UNet2DConditionModel.from_single_file(path, config=tiny.UNET2D, verify=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2])
def test_every_data_type_is_looked_at(value, dtype):
    weights = torch.ones(17, 19, dtype=torch.float32)
    check_finite({"a": weights.to(dtype), "b": torch.zeros(0), "c": torch.arange(3)}, "x", whole=True)
    weights[11, 13] = value
    check_finite({"a": weights.to(dtype)[:3]}, "x", whole=True)
    with pytest.raises(LoadError, match=r"1 of 1 tensors of x .* a\."):
        check_finite({"a": weights.to(dtype)}, "x", whole=True)


def test_a_tensor_under_our_name_does_not_replace_that_under_theirs():
    theirs = tiny_single.vae(tiny_pia.vae().state_dict(), "")
    name = "decoder.conv_norm_out.weight"
    assert name not in theirs
    with pytest.raises(LoadError, match=rf"E-KEYS-MISMATCH.*1 unexpected: {name}"):
        AutoencoderKL.from_single_file({**theirs, name: torch.zeros(4)}, config=tiny.VAE)


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["torch", "pickle", "nested"])
def test_nothing_in_a_pickle_is_run(tmp_path, state, loaded, form):
    canary, path = tmp_path / "canary", tmp_path / "model.ckpt"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Canary(canary), protocol=2))
    else:
        bad = {"state_dict": {**state, "x": Canary(canary)}} if form == "nested" else Canary(canary)
        torch.save(bad, path)
    with pytest.raises(LoadError, match="E-WEIGHTS-PICKLE"):
        loaded(path)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary))).close()
    assert canary.exists(), "the canary would not have been seen"


def header_of(path: Path) -> tuple[int, bytes, bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return length, data[8 : 8 + length], data[8 + length :]


@pytest.mark.parametrize("seed", range(6))
def test_a_flipped_bit_in_the_header(tmp_path, file, loaded, seed):
    data = bytearray(file.read_bytes())
    generator = torch.Generator().manual_seed(seed)
    at = 8 + int(torch.randint(0, header_of(file)[0] - 8, (), generator=generator))
    data[at] ^= 1 << int(torch.randint(0, 7, (), generator=generator))
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    start = time.process_time()
    with pytest.raises(LoadError) as caught:
        loaded(path)
    assert caught.value.code.startswith(("E-WEIGHTS-", "E-KEYS-", "E-FILE-"))
    assert time.process_time() - start < 2


def damaged(what: str, path: Path) -> bytes:
    _, text, body = header_of(path)
    values = json.loads(text)
    names = sorted((n for n in values if n != "__metadata__"), key=lambda n: values[n]["data_offsets"][0])
    if what == "a header of 2 GB":
        return struct.pack("<Q", 2**31) + text + body
    if what == "a header beyond all memory":
        return struct.pack("<Q", 2**63) + text + body
    if what == "overlapping tensors":
        begin, end = values[names[0]]["data_offsets"]
        values[names[1]]["data_offsets"] = [begin, begin + values[names[1]]["data_offsets"][1] - end]
    if what == "offsets beyond the end":
        values[names[-1]]["data_offsets"] = [n + 4096 for n in values[names[-1]]["data_offsets"]]
    if what == "a shape that is too large":
        values[names[0]]["shape"] = [2**40]
    text = json.dumps(values).encode()
    body = body[:-1] if what == "cut short" else body
    return {"empty": b"", "no header": b"\0" * 4}.get(what, struct.pack("<Q", len(text)) + text + body)


@pytest.mark.parametrize(
    "what",
    [
        "a header of 2 GB",
        "a header beyond all memory",
        "overlapping tensors",
        "offsets beyond the end",
        "a shape that is too large",
        "cut short",
        "empty",
        "no header",
    ],
)
def test_damaged_files(tmp_path, file, loaded, what):
    path = tmp_path / "model.safetensors"
    path.write_bytes(damaged(what, file))
    start = time.process_time()
    with pytest.raises(LoadError, match="E-WEIGHTS-BROKEN"):
        loaded(path)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a pickle", b"\x80\x02}q\x00.", b"0", b"PK\x03\x04broken"])
def test_bytes_that_are_no_pickle(tmp_path, loaded, content):
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=r"E-WEIGHTS-(BROKEN|PICKLE)"):
        loaded(path)
