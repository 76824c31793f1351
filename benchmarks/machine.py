"""The machine under test: its name, the versions in use, and the ceilings that times are held against."""

import importlib.metadata
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import torch

COPY_FLOATS = 64 << 20  # 256 MiB an array: far beyond any cache
MATRIX_SIZE = 1536
CEILING_REPEATS = 5
PACKAGES = ("torch", "numpy", "warp-lang", "numba", "open3d-cpu")


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches with all of torch's threads."""

    copy_bytes_per_second: float
    flops_per_second: float


def measure_ceilings(scale: float = 1.0) -> Ceilings:
    """Copy bandwidth (STREAM's copy: bytes read plus bytes written) and multiply-add rate (a float32 matrix product).

    `scale` below 1 shrinks both, for a quick look; the best of five counts, as in STREAM.
    """
    source = torch.ones(max(int(COPY_FLOATS * scale), 1))
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source))
    size = max(int(MATRIX_SIZE * scale), 64)
    matrix, product = torch.rand(size, size), torch.empty(size, size)
    product_seconds = _best(lambda: torch.mm(matrix, matrix, out=product))
    return Ceilings(2 * source.nbytes / seconds, 2 * size**3 / product_seconds)


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


def _best(function) -> float:
    function()
    best = float("inf")
    for _ in range(CEILING_REPEATS):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


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
        return "unknown"
