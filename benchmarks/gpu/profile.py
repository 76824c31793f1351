"""What ncu says of the kernels at full size: time, and how much of each unit they use."""

from __future__ import annotations

import csv
import io
import re
import sys

from benchmarks.gpu.build import Place
from benchmarks.gpu.findings import Findings, Table
from benchmarks.gpu.machine_code import find_tool
from benchmarks.gpu.stages import NotThere, supervise, tail

REGISTERS = "launch__registers_per_thread"
METRICS = {
    "gpu__time_duration.sum": "time",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM %",
    "l1tex__throughput.avg.pct_of_peak_sustained_elapsed": "L1 %",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "L2 %",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps %",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue %",
    REGISTERS: "registers",
}
KERNELS = "voxel_scatter|volume_render|bricks|sphere_attention"
LAUNCHES = 60


def profile(place: Place, limit: float) -> Findings:
    """Runs the ops' quick sizes under ncu; each kernel once."""
    ncu = find_tool("ncu")
    if ncu is None:
        raise NotThere("ncu was not found; it comes with the CUDA toolkit")
    log = place.work / "profile.log"
    command = [ncu, "--csv", "--page", "raw", "--kernel-name", f"regex:{KERNELS}"]
    command += ["--launch-count", str(LAUNCHES), "--metrics", ",".join(METRICS), "--clock-control", "none"]
    command += [sys.executable, "-m", "benchmarks.gpu.profiled"]
    problem = supervise(command, limit, log, place.root, place.environment)
    rows = read_csv(log.read_text(errors="replace"))
    findings = Findings(tables=[Table("Kernels under ncu", ["kernel", *METRICS.values()], rows)] if rows else [])
    if problem or not rows:
        findings.failures.append(f"ncu: {problem or 'no kernel'}; the end of its output:\n{tail(log)}")
    return findings


def read_csv(text: str) -> list[list[str]]:
    """A row for each kernel, from the lines that ncu mixes with the program's: header, units, values."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    if len(lines) < 3:
        return []
    header, units, *values = csv.reader(io.StringIO("\n".join(lines)))
    unit = dict(zip(header, units, strict=False))
    rows: dict[tuple[str, str], list[str]] = {}  # Triton calls all instances of a kernel by one name
    for value in values:
        record = dict(zip(header, value, strict=False))
        shown = [f"{record[name]} {unit[name]}" for name in METRICS if name in record]
        cells = [re.sub(r" (%|register/thread)?$", "", cell) for cell in shown]
        rows.setdefault((record["Kernel Name"][:90], record.get(REGISTERS, "")), cells)
    return [[name, *cells] for (name, _), cells in rows.items()]
