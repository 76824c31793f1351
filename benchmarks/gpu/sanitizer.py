"""compute-sanitizer on a small case: accesses out of bounds, races in shared memory, memory that nobody wrote."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from benchmarks.gpu.build import Place
from benchmarks.gpu.findings import Findings, Table
from benchmarks.gpu.machine_code import find_tool
from benchmarks.gpu.stages import NotThere, supervise, tail


@dataclass(frozen=True)
class Looked:
    """What the tools look at of a backend."""

    ops: tuple[str, ...]
    kernels: str  # part of the names of all of its kernels
    blamed: str  # what stands in the report of an error in one of them


BACKENDS = {
    "cuda": Looked(("voxel_scatter", "volume_render"), "evoworld", "evoworld::"),
    "triton": Looked(("sphere_attention",), "sphere_attention", "sphere_attention"),  # those without a CUDA twin
}
FOUND = 66  # the exit code that means errors
UNSUPPORTED = "Device not supported"


def sanitize(place: Place, tool: str, backend: str, limit: float) -> Findings:
    """Runs one of the sanitizer's tools, without torch's allocator, in whose blocks an overrun would not be seen."""
    ours = BACKENDS[backend]
    program = find_tool("compute-sanitizer")
    if program is None:
        raise NotThere("compute-sanitizer was not found; it comes with the CUDA toolkit")
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND), "--launch-timeout", "0"]
    # Calls into CUDA that torch tries and does without are no errors here; the host's stack is Python's.
    command += ["--report-api-errors", "no", "--show-backtrace", "device"]
    if tool == "initcheck":  # with a filter it would not see what torch's kernels write
        command += ["--print-limit", "2000"]  # those of torch must not crowd out ours
    else:
        command += ["--print-limit", "20", "--kernel-name", f"kns={ours.kernels}"]
    command += [sys.executable, "-m", "benchmarks.gpu.small_case", "--backend", backend, "--ops", *ours.ops]
    log = place.work / f"{tool}_{backend}.log"
    environment = {**place.check_environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    problem = supervise(command, limit, log, place.root, environment)
    text = log.read_text(errors="replace")
    if UNSUPPORTED in text:
        raise NotThere(f"compute-sanitizer does not support this device: {UNSUPPORTED}")
    summary = re.findall(r"=+ ((?:\w+ )?SUMMARY: .*)", text)
    verdict = summary[-1] if summary else problem or "no summary"
    findings = Findings(tables=[Table("compute-sanitizer", ["tool", "backend", "result"], [[tool, backend, verdict]])])
    # Of all kernels, torch's own may read what nobody wrote, and not use it.
    if problem and (tool != "initcheck" or problem != f"exit code {FOUND}" or ours.blamed in text):
        findings.failures.append(f"{tool}: {verdict}; {problem}; the end of its output:\n{tail(log)}")
    return findings
