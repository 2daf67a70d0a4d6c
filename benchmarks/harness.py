"""How benchmarks measure: pairs in the order A B B A, disturbed ones dropped, beside the rates of the machine.

One process holds both implementations with the same weights, inputs, data type and threads. The number reported is
the median of the ratios of pairs. A pair counts as disturbed when other processes kept more than 0.15 of a core busy
meanwhile, as /proc/stat tells; where there is no such file the result says that it could not be checked.
"""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

RESULTS = Path(__file__).parent / "results"
QUIET = 0.15
"""Cores that other processes may use during a pair."""
Work = Callable[[], object]


# ------------------------------------------------------------------------------------------------------- time


@dataclass(frozen=True)
class Timed:
    """One call: seconds, and how many cores others used meanwhile (None: unknown)."""

    seconds: float
    others: float | None


def _busy_seconds() -> float | None:
    """CPU seconds that all processes of this machine have used, without those stolen by other machines."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def timed(work: Work) -> Timed:
    """Run `work` once."""
    busy, own, start = _busy_seconds(), time.process_time(), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    own, end = time.process_time() - own, _busy_seconds()
    others = None if busy is None or end is None else max(0.0, end - busy - own) / seconds
    return Timed(seconds, others)


@dataclass(frozen=True)
class Ratio:
    """How many times as long theirs takes.

    Attributes:
        median: of the ratios of clean pairs; None when fewer than three were clean.
        low: the smallest of them.
        high: the largest.
        ours: median seconds of our side, over clean pairs, or over all when too few were.
        theirs: the same of the other side.
        clean: number of undisturbed pairs.
        pairs: number of pairs run.
        checked: whether disturbance could be seen at all.
    """

    median: float | None
    low: float | None
    high: float | None
    ours: float
    theirs: float
    clean: int
    pairs: int
    checked: bool

    def __str__(self) -> str:
        note = "" if self.checked else ", disturbance not checked"
        counts = f"{self.clean} of {self.pairs} pairs clean{note}"
        if self.median is None:
            return f"no ratio ({counts})"
        return f"{self.median:.3f}x [{self.low:.3f}, {self.high:.3f}] ({counts})"


def compare(ours: Work, theirs: Work, pairs: int = 6, most: int | None = None) -> Ratio:
    """Warm both up, then alternate ours, theirs, theirs, ours.

    Args:
        ours: our side.
        theirs: the side it is compared with.
        pairs: clean pairs wanted.
        most: pairs to run at most while waiting for clean ones; twice `pairs` if not given.
    """
    ours()
    theirs()
    done: list[tuple[Timed, Timed]] = []
    most = 2 * pairs if most is None else most
    while sum(map(_is_clean, done)) < pairs and len(done) < most:
        if len(done) % 2 == 0:
            mine, their = timed(ours), timed(theirs)
        else:
            their, mine = timed(theirs), timed(ours)
        done.append((mine, their))
    clean = [pair for pair in done if _is_clean(pair)]
    ratios = [their.seconds / mine.seconds for mine, their in clean]
    enough = len(ratios) >= 3
    shown = clean if enough else done
    return Ratio(
        median=statistics.median(ratios) if enough else None,
        low=min(ratios) if enough else None,
        high=max(ratios) if enough else None,
        ours=statistics.median(mine.seconds for mine, _ in shown),
        theirs=statistics.median(their.seconds for _, their in shown),
        clean=len(clean),
        pairs=len(done),
        checked=done[0][0].others is not None,
    )


def _is_clean(pair: tuple[Timed, Timed]) -> bool:
    return all(run.others is None or run.others <= QUIET for run in pair)


def fastest(candidates: Mapping[str, Work], rounds: int = 3) -> str:
    """The name of the quickest candidate by its best time over interleaved rounds, after a warm-up of each."""
    best = dict.fromkeys(candidates, float("inf"))
    for turn in range(rounds + 1):
        for name, work in candidates.items():
            seconds = timed(work).seconds
            if turn:
                best[name] = min(best[name], seconds)
    return min(best, key=lambda name: best[name])


# --------------------------------------------------------------------------------------------------- machine


def rates(dtype: torch.dtype, rounds: int = 8) -> dict[str, float]:
    """What this machine reaches at best: linear and convolution in GFLOP/s, copy in GB/s read and written."""
    a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    x = torch.randn(2, 256, 128, 128).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3).to(dtype, memory_format=torch.channels_last)
    source, target = torch.randn(2**25).to(dtype), torch.empty(2**25, dtype=dtype)

    def best(work: Work) -> float:
        return min(timed(work).seconds for _ in range(rounds))

    with torch.inference_mode():
        return {
            "linear": 2 * 2048**3 / best(lambda: F.linear(a, b)) / 1e9,
            "conv": 2 * 9 * 256 * 256 * 2 * 128 * 128 / best(lambda: F.conv2d(x, weight, padding=1)) / 1e9,
            "copy": 2 * source.nbytes / best(lambda: target.copy_(source)) / 1e9,
        }


def machine() -> dict[str, Any]:
    """What a reader needs to judge the numbers."""
    return {
        "processor": _processor(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    """The processor's name, and which bf16 instructions it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in facts.get("flags", "").split()]
    return " ".join([facts.get("model name", platform.machine()), *flags])


# ---------------------------------------------------------------------------------------------------- memory


def _status(field: str) -> int | None:
    """A field of /proc/self/status in bytes."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)


def peak_of(work: Work) -> dict[str, int | None]:
    """Memory of this process around one call, which should be its first: bytes resident before, and at the peak.

    On Linux the peak is that of the call alone. Elsewhere it is that of the process so far, and what was resident
    before is unknown.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # begin a new peak
    before = _status("VmRSS")
    work()
    return {"before": before, "peak": peak_now()}


def peak_now() -> int | None:
    """Most bytes that this process held resident so far, pages of mapped files included."""
    return _status("VmHWM") or _resource_peak()


def _resource_peak() -> int | None:
    """Peak resident bytes of this process where there is no /proc."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def in_fresh_process(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run `script` anew and read the JSON object on its last line."""
    done = subprocess.run([sys.executable, script, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# --------------------------------------------------------------------------------------------------- results


def relative_rms(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square of the difference over that of the exact values, in float64."""
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def require(name: str, value: float, limit: float) -> dict[str, float]:
    """Stop the benchmark when a correctness gate is not passed: a wrong result has no speed."""
    if not value <= limit:
        sys.exit(f"{name}: {value:.3e} exceeds {limit:.3e}; not timed.")
    print(f"{name}: {value:.3e} (at most {limit:.3e})", flush=True)
    return {"value": value, "limit": limit}


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest entry."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def add(name: str, sections: Mapping[str, Mapping[str, Any]], measured_on: Mapping[str, Any]) -> Path:
    """Write sections into a result, each with the machine that it was measured on; its other sections stay."""
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return save(name, before | {key: {"machine": measured_on, **section} for key, section in sections.items()})


def save(name: str, result: Mapping[str, Any]) -> Path:
    """Write a result as JSON beside the benchmarks."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    plain = json.dumps(result, indent=2, default=asdict, ensure_ascii=False)
    path.write_text(plain + "\n", encoding="utf-8")
    return path
