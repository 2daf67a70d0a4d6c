"""Decisions on devices and data types, as pure functions of facts about a machine."""

import pytest
import torch
from torch import nn

from vivant import placement
from vivant.errors import InputError
from vivant.placement import Machine, MemoryPolicy

NVIDIA = Machine(("cuda",), accelerator_bf16=True, cpu_bf16=True)
OLD_NVIDIA = Machine(("cuda",), accelerator_bf16=False, cpu_bf16=True)
INTEL = Machine(("xpu",), accelerator_bf16=True)
MAC = Machine(("mps",))
XEON = Machine(cpu_bf16=True)
LAPTOP = Machine()


@pytest.mark.parametrize(
    ("facts", "device"),
    [(NVIDIA, "cuda"), (INTEL, "xpu"), (MAC, "mps"), (XEON, "cpu"), (Machine(("cuda", "xpu")), "cuda")],
)
def test_best_device(facts, device):
    assert placement.best_device(facts) == device


@pytest.mark.parametrize(
    ("device", "facts", "dtype", "reason"),
    [
        ("cpu", XEON, torch.bfloat16, "natively"),
        ("cpu", NVIDIA, torch.bfloat16, "natively"),
        ("cpu", LAPTOP, torch.float32, "no native bfloat16"),
        ("cpu", INTEL, torch.float32, "no native bfloat16"),
        ("cuda", NVIDIA, torch.bfloat16, "cuda computes"),
        ("cuda:1", NVIDIA, torch.bfloat16, "cuda computes"),
        ("cuda", OLD_NVIDIA, torch.float16, "no native bfloat16"),
        ("xpu", INTEL, torch.bfloat16, "xpu computes"),
        ("mps", MAC, torch.float32, "not tried"),
    ],
)
def test_default_dtype(device, facts, dtype, reason):
    found, why = placement.default_dtype(device, facts)
    assert found == dtype
    assert reason in why


@pytest.mark.parametrize(
    ("capabilities", "kernels", "native"),
    [
        ({"avx512_bf16": True}, True, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True, True),
        ({"bf16": True, "neon": True}, True, True),  # ARM
        ({"sve_bf16": True}, True, True),
        ({"avx512_f": True, "avx512_bf16": False}, True, False),  # emulated with AVX-512: slower than float32
        ({"bf16": True}, False, False),  # instructions, but no kernels that use them
        ({"architecture": "bf16"}, True, False),
        ({}, True, False),
    ],
)
def test_native_bfloat16(capabilities, kernels, native):
    assert placement.cpu_has_native_bf16(capabilities, kernels) is native


def test_versions_of_torch_without_the_questions(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert placement.cpu_has_native_bf16(kernels=True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert not placement.cpu_has_native_bf16(kernels=True)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not placement.cpu_has_native_bf16(kernels=True)


def test_this_machine_answers():
    facts = placement.machine()
    assert placement.best_device() in (*facts.accelerators, "cpu")
    assert placement.default_dtype("cpu")[0] in (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("gpu_id", "device", "facts", "due"),
    [
        (None, None, NVIDIA, "cuda"),
        (1, None, NVIDIA, "cuda:1"),
        (2, "cuda", LAPTOP, "cuda:2"),
        (2, "cuda:2", LAPTOP, "cuda:2"),
        (None, torch.device("xpu", 1), NVIDIA, "xpu:1"),
        (0, None, LAPTOP, "cpu"),
        (0, None, MAC, "mps"),
        (None, "cpu", NVIDIA, "cpu"),
    ],
)
def test_offload_device(gpu_id, device, facts, due):
    assert placement.offload_device(gpu_id, device, facts) == due


def test_contradicting_offload_devices():
    with pytest.raises(InputError, match="E-OFFLOAD-DEVICE"):
        placement.offload_device(1, "cuda:0", NVIDIA)


def test_predicates():
    assert placement.is_slow_half(MemoryPolicy("cpu", torch.float16))
    assert not placement.is_slow_half(MemoryPolicy("cuda", torch.float16))
    assert not placement.is_slow_half(MemoryPolicy("cpu", torch.bfloat16))
    assert placement.moves(MemoryPolicy("cuda:0", residency="component"))
    assert not placement.moves(MemoryPolicy("mps", residency="layer"))
    assert not placement.moves(MemoryPolicy("cuda:0"))
    assert not placement.moves(MemoryPolicy("cpu", residency="component"))


def test_a_component_travels_for_the_time_of_use():
    module, journeys = nn.Linear(2, 3), []
    policy = MemoryPolicy("cuda:0", residency="component")
    with placement.active(module, policy, lambda m, device: journeys.append((m, device))) as ready:
        assert ready is module
        assert journeys == [(module, "cuda:0")]
    assert journeys == [(module, "cuda:0"), (module, "cpu")]


def test_it_comes_back_after_an_error():
    journeys = []
    with (
        pytest.raises(ZeroDivisionError),
        placement.active(nn.Linear(2, 3), MemoryPolicy("cuda", residency="component"), lambda _, d: journeys.append(d)),
    ):
        raise ZeroDivisionError
    assert journeys == ["cuda", "cpu"]


@pytest.mark.parametrize("policy", [MemoryPolicy("cuda"), MemoryPolicy("cpu", residency="component")])
def test_what_is_resident_stays(policy):
    with placement.active(nn.Linear(2, 3), policy, lambda *_: pytest.fail("moved")):
        pass


def test_moving_for_good():
    layer = nn.Linear(2, 3)
    assert placement.networks([layer, "text", None, layer]) == [layer]
    placement.move([layer], "meta", torch.bfloat16)
    assert (layer.weight.device.type, layer.weight.dtype) == ("meta", torch.bfloat16)
    with pytest.raises(InputError, match=r"E-DEVICE.*Linear"):
        placement.move([layer], "cpu")  # tensors on meta have no values to bring back
    with pytest.raises(InputError, match="E-DEVICE"):
        placement.move([nn.Linear(2, 3)], "no such device")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x"])
def test_what_is_no_device_is_nothing_to_offload_from(device):
    with pytest.raises(InputError, match="E-DEVICE"):
        placement.offload_device(None, device, NVIDIA)
