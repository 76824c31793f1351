"""The machine under test: its name, the versions in use, and the ceilings that times are held against."""

import ctypes
import importlib.metadata
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import timed

COPY_FLOATS = 64 << 20  # 256 MiB an array: far beyond any cache
MATRIX_SIZE = 1536
CEILING_REPEATS = 5
COMMIT_VARIABLE = "EVOWORLD_COMMIT"  # says which commit a copy without history is
PACKAGES = ("torch", "triton", "numpy", "warp-lang", "numba", "open3d-cpu", "torch-harmonics")


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches with all of torch's threads."""

    copy_bytes_per_second: float
    flops_per_second: float


def measure_ceilings(
    scale: float = 1.0,
    matrix_size: int = MATRIX_SIZE,
    device: str = "cpu",
    clock: Callable[[Callable[[Any], Any], Any], float] = timed,
) -> Ceilings:
    """Copy bandwidth (STREAM's copy: bytes read plus bytes written) and multiply-add rate (a float32 matrix product).

    `scale` below 1 shrinks both, for a quick look; the best of five counts, as in STREAM.
    """
    source = torch.rand(max(int(COPY_FLOATS * scale), 1), device=device)
    target = torch.empty_like(source)
    seconds = _best(clock, lambda _: target.copy_(source))
    size = max(int(matrix_size * scale), 64)
    return Ceilings(2 * source.nbytes / seconds, measure_products(torch.float32, size, device, clock))


def measure_products(
    dtype: torch.dtype,
    size: int = MATRIX_SIZE,
    device: str = "cpu",
    clock: Callable[[Callable[[Any], Any], Any], float] = timed,
) -> float:
    """FLOP/s of the product of two square matrices; the best of five."""
    matrix = torch.rand(size, size, device=device).to(dtype)
    product = torch.empty_like(matrix)
    return 2 * size**3 / _best(clock, lambda _: torch.mm(matrix, matrix, out=product))


def describe() -> dict[str, str]:
    """Processor, cores, threads, system, versions, and the commit (with a mark when the tree has changes)."""
    facts = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "load before": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown",
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "missing"
    return facts


def peak_bytes(function: Callable[[], Any]) -> float:
    """Most memory that a call takes beyond what the process held before, its results included; NaN except on Linux."""
    process = Path("/proc/self")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not serve the call unseen
        (process / "clear_refs").write_text("5")  # sets the peak back to what is held now
        before = _resident(process, "VmRSS")
    except (OSError, AttributeError):
        return math.nan
    result = function()
    peak = _resident(process, "VmHWM")
    del result
    return peak - before


def _resident(process: Path, name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", (process / "status").read_text())[1]) << 10


def _best(clock, function) -> float:
    return min([clock(function, None) for _ in range(1 + CEILING_REPEATS)][1:])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(COMMIT_VARIABLE, "unknown")
