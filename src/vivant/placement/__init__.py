"""Where weights live while they are used: devices, data types, and the one function that moves a component.

Beside `attention.py` this is the only file that names kinds of devices. Facts about the machine are gathered once, in
`machine`; every decision is a pure function of them.
"""

import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from vivant.errors import InputError
from vivant.placement import pages
from vivant.placement.layers import Lending, Pages, lent

M = TypeVar("M", bound=nn.Module)
Mover = Callable[[nn.Module, str], Any]

Residency = Literal["resident", "component", "layer"]
RESIDENCIES: tuple[Residency, ...] = get_args(Residency)

NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16")
"""Instruction sets with bfloat16 arithmetic, by the names of `torch.cpu.get_capabilities` (x86, then ARM)."""


@dataclass(frozen=True)
class MemoryPolicy:
    """Where a pipeline runs and what of it stays there.

    Attributes:
        device: where computation happens, ``"cpu"`` or an accelerator such as ``"cuda:0"``.
        dtype: data type of weights and activations.
        residency: ``"resident"``: every component stays where it is; ``"component"``: each is on `device` only while
            it is used, and on the CPU otherwise; ``"layer"``: so is each of its layers, the next one fetched ahead.
            Where `device` is the CPU, what is not used is given back to the files that it was read from.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    residency: Residency = "resident"


@dataclass(frozen=True)
class Machine:
    """What decides about devices and data types.

    Attributes:
        accelerators: kinds of accelerators that answer, best first.
        accelerator_bf16: whether the best of them computes in bfloat16 by itself.
        cpu_bf16: whether the processor does.
    """

    accelerators: tuple[str, ...] = ()
    accelerator_bf16: bool = False
    cpu_bf16: bool = False


def machine() -> Machine:
    """The facts about this machine."""
    answers = {"cuda": torch.cuda.is_available, "xpu": _xpu_is_available, "mps": torch.backends.mps.is_available}
    present = tuple(kind for kind, answer in answers.items() if answer())
    # AMD's devices answer as cuda; before compute capability 8.0 NVIDIA's emulate bfloat16.
    native = bool(present) and (
        present[0] == "xpu" or (present[0] == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
    )
    return Machine(present, native, cpu_has_native_bf16())


def _xpu_is_available() -> bool:
    return hasattr(torch, "xpu") and torch.xpu.is_available()


def cpu_has_native_bf16(capabilities: dict[str, Any] | None = None, kernels: bool | None = None) -> bool:
    """Whether the processor has bfloat16 instructions and torch has kernels for them; emulation does not count.

    Args:
        capabilities: instruction sets, names to whether present; asked from torch if not given.
        kernels: whether torch's CPU library computes in bfloat16; asked if not given.
    """
    if capabilities is None:
        capabilities = _capabilities()
    if kernels is None:
        kernels = _has_bf16_kernels()
    return kernels and any(capabilities.get(name) for name in NATIVE_BF16)


def _capabilities() -> dict[str, Any]:
    """Instruction sets of the processor; versions of torch before 2.11 know those of x86 only."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    probes = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
    return {name: getattr(torch.cpu, probe)() for name, probe in probes.items() if hasattr(torch.cpu, probe)}


def _has_bf16_kernels() -> bool:
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # builds without oneDNN, and versions that no longer offer the question
        return False


def best_device(facts: Machine | None = None) -> str:
    """The best accelerator, or ``"cpu"``."""
    facts = facts or machine()
    return facts.accelerators[0] if facts.accelerators else "cpu"


def default_dtype(device: str, facts: Machine | None = None) -> tuple[torch.dtype, str]:
    """The data type to compute in on `device` when nobody chose one, and the reason for the report."""
    facts = facts or machine()
    kind = torch.device(device).type
    if kind == "cpu":
        if facts.cpu_bf16:
            return torch.bfloat16, "the processor computes in bfloat16 natively"
        return torch.float32, "the processor has no native bfloat16"
    if kind not in ("cuda", "xpu"):
        return torch.float32, f"half precision was not tried on {kind}"
    if facts.accelerator_bf16 and kind in facts.accelerators:
        return torch.bfloat16, f"{kind} computes in bfloat16 natively"
    return torch.float16, f"{kind} has no native bfloat16"


def check_place(device: str, dtype: torch.dtype) -> None:
    """Compute one number where a model will, so that a device is refused before the model is loaded.

    Raises:
        InputError: E-DEVICE.
    """
    try:
        works = bool((torch.ones(1, device=device, dtype=dtype) + 1).item() == 2)
    except (AssertionError, ImportError, RuntimeError, TypeError) as error:
        raise InputError(
            "E-DEVICE",
            f"{device} cannot compute in {str(dtype).removeprefix('torch.')}.",
            f"torch says: {(str(error).splitlines() or [type(error).__name__])[0].rstrip('.')}.",
            "See which devices this build of torch supports; cpu always works.",
        ) from error
    if not works:
        raise InputError("E-DEVICE", f"{device} computes wrongly in {dtype}.", "1 + 1 is not 2 there.")


def offload_device(gpu_id: int | None, device: str | torch.device | None, facts: Machine | None = None) -> str:
    """The device that offloading computes on, from the two arguments of diffusers: an index, or a device.

    Raises:
        InputError: E-OFFLOAD-DEVICE when the two disagree, E-DEVICE for the name of none.
    """
    try:
        chosen = torch.device(best_device(facts) if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise InputError("E-DEVICE", f"{device!r} is no device.", "", "Give one such as cuda:0, or none.") from error
    if gpu_id is not None and chosen.index is not None and chosen.index != gpu_id:
        raise InputError("E-OFFLOAD-DEVICE", f"gpu_id={gpu_id} and device={device} disagree.", "", "Give one of them.")
    if gpu_id is not None and chosen.type not in ("cpu", "mps"):
        return f"{chosen.type}:{gpu_id}"
    return str(chosen)


def is_slow_half(policy: MemoryPolicy) -> bool:
    """Whether the policy computes in float16 on a CPU, which is honoured, slow and less exact than bfloat16."""
    return policy.dtype == torch.float16 and torch.device(policy.device).type == "cpu"


def check_residency(residency: object, compiled: bool = False) -> None:
    """Refuse what is no residency (E-RESIDENCY), and layers of a compiled network (E-OFFLOAD-COMPILED)."""
    if residency not in RESIDENCIES:
        raise InputError("E-RESIDENCY", f"residency is {residency!r}.", "", f"Give one of {', '.join(RESIDENCIES)}.")
    if residency == "layer" and compiled:
        raise InputError(
            "E-OFFLOAD-COMPILED",
            "A network is compiled, and single layers of a compiled network cannot be offloaded.",
            "It holds its weights itself, as constants.",
            "Offload whole components, or do not compile.",
        )


def moves(policy: MemoryPolicy) -> bool:
    """Whether whole components travel between devices."""
    return policy.residency == "component" and torch.device(policy.device).type != "cpu"


def networks(values: Iterable[Any]) -> list[nn.Module]:
    """Those of `values` that hold weights, each once."""
    return list({id(value): value for value in values if isinstance(value, nn.Module)}.values())


def move(modules: Iterable[nn.Module], device: str | torch.device | None, dtype: torch.dtype | None = None) -> None:
    """Move whole modules for good.

    Raises:
        InputError: E-DEVICE when torch cannot use the device, or the data type on it.
    """
    for module in modules:
        try:
            module.to(device=device, dtype=dtype)
        except (AssertionError, RuntimeError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise InputError(
                "E-DEVICE",
                f"{type(module).__name__} cannot be moved to {device or 'its device'} in {dtype or 'its data type'}.",
                f"torch says: {str(error).splitlines()[0].rstrip('.')}.",
                "See which devices this build of torch supports.",
            ) from error


def _move(module: nn.Module, device: str) -> None:
    move([module], device)


@contextmanager
def active(module: M, policy: MemoryPolicy, mover: Mover = _move) -> Generator[M]:
    """Have `module` on the policy's device for the time of use.

    Args:
        module: the component.
        policy: when nothing moves under it, the module is used where it is.
        mover: what moves a module to a device; tests record instead.
    """
    if policy.residency == "layer":
        on_cpu = torch.device(policy.device).type == "cpu"
        with lent(module, Pages() if on_cpu else Lending(policy.device)):
            yield module
        return
    try:
        if moves(policy):
            mover(module, policy.device)
        yield module
    finally:
        if moves(policy):
            mover(module, "cpu")
        elif policy.residency == "component":
            give_back([module])


def give_back(modules: Iterable[nn.Module]) -> None:
    """Let go of memory that these modules' files hold too; the next use reads it again (`vivant.placement.pages`)."""
    pages.give_back(pages.spans(pages.tensors_of(modules)))


def stays(modules: Iterable[nn.Module]) -> tuple[int, int]:
    """Bytes of weights that cannot be given back since they lie in memory and not in a file, and bytes of all."""
    return pages.in_memory(modules)


def peak_memory(device: str) -> int | None:
    """The most bytes held so far: by torch on an accelerator, else by this process; None where nobody can say."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
