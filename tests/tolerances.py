"""All tolerances of the test-suite, and the proof that they discriminate."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Bounds on the worst element (relative to the largest reference value) and on the relative L2 distance."""

    peak: float
    l2: float


TOLERANCES = {
    torch.float64: Tolerance(peak=1e-10, l2=1e-10),
    torch.float32: Tolerance(peak=3e-5, l2=1e-5),
    torch.bfloat16: Tolerance(peak=6e-2, l2=2e-2),
    torch.float16: Tolerance(peak=2e-2, l2=5e-3),
}
TRAJECTORY = Tolerance(peak=3e-4, l2=1e-4)


def relative_l2(ours: Tensor, oracle: Tensor) -> float:
    """||ours - oracle|| / ||oracle||, in float64."""
    return float((ours.double() - oracle.double()).norm() / oracle.double().norm())


def assert_parity(ours: Tensor, oracle: Tensor, tolerance: Tolerance | torch.dtype = torch.float32) -> None:
    """Same shape, same values within the tolerance; a zero, constant or shuffled tensor can never pass."""
    tol = TOLERANCES[tolerance] if isinstance(tolerance, torch.dtype) else tolerance
    assert ours.shape == oracle.shape, f"shape {tuple(ours.shape)} is not {tuple(oracle.shape)}"
    ours, oracle = ours.detach().double(), oracle.detach().double()
    assert torch.isfinite(ours).all(), "ours is not finite"
    assert torch.isfinite(oracle).all(), "the reference is not finite"
    spread = (oracle - oracle.mean()).norm() / oracle.norm()
    assert spread > 20 * tol.l2, "the tolerance cannot tell this tensor from a constant one"
    l2 = relative_l2(ours, oracle)
    peak = float((ours - oracle).abs().max() / oracle.abs().max())
    assert l2 <= tol.l2, f"relative L2 distance {l2:.3e} > {tol.l2:.0e}"
    assert peak <= tol.peak, f"worst element {peak:.3e} > {tol.peak:.0e}"
