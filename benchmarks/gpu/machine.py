"""What the run ran on: the card, its driver, versions, the commit."""

import shutil
import subprocess

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.machine_code import find_tool
from benchmarks.machine import describe
from evoworld import ops


def run(context: Context) -> None:
    """Adds facts, and a line for each backend that is missing."""
    facts = context.findings.facts
    if context.device.name == "cuda":
        card = torch.cuda.get_device_properties(0)
        facts["GPU"] = card.name
        facts["compute capability"] = f"{card.major}.{card.minor}"
        facts["multiprocessors"] = str(card.multi_processor_count)
        facts["memory"] = f"{card.total_memory / 2**30:.0f} GiB, L2 {card.L2_cache_size >> 20} MiB"
        facts["driver"] = _driver()
        facts["CUDA of torch"] = str(torch.version.cuda)
    if nvcc := find_tool("nvcc"):
        facts["nvcc"] = _last_line([nvcc, "--version"])
    facts |= describe()
    context.findings.missing += [
        f"{op}, backend {name}: {reason}"
        for op in ("voxel_scatter", "volume_render", "sphere_attention")
        for name, reason in ops.available(op).items()
        if reason
    ]


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown: no nvidia-smi"
    return _last_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])


def _last_line(command: list[str]) -> str:
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: {error}"
    return found.stdout.strip().splitlines()[-1]
