"""gpu.json and gpu.md: what the run found, and how each stage ended."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gpu.findings import Findings, Table
from benchmarks.gpu.stages import Outcome
from benchmarks.machine import Ceilings
from benchmarks.report import (
    FLOOR_NOTE,
    ROW_HEADER,
    TARGET_HEADER,
    add_derived,
    number,
    row_cells,
    table,
    target_cells,
    without_nan,
)

MOST_LOG = 400_000  # characters of a stage's log that are kept: its end
TIME_NOTE = (
    "Times are the device's own, from an op's first kernel to its last, with the host far ahead; medians of runs in "
    "which the contestants take turns and the inputs rotate. What says wall clock is what a caller waits. Nothing is "
    "timed before its result agreed with the reference or, where that cannot hold the case, with the CPU kernels."
)


@dataclass
class GpuReport:
    """All of a run."""

    command: str
    outcomes: Sequence[Outcome]
    seconds: float

    @property
    def findings(self) -> Findings:
        found = Findings()
        for outcome in self.outcomes:
            found.add(outcome.findings)
        found.tables = _merged(found.tables)
        return found

    @property
    def failed(self) -> bool:
        return any(outcome.status == "failed" for outcome in self.outcomes)


def markdown(report: GpuReport) -> str:
    """The report for people: how the stages ended, targets, times, ceilings, tests, kernels, the machine."""
    found = report.findings
    parts = [f"# {found.facts.get('GPU', 'GPU')}", "", f"`{report.command}`, {report.seconds:.0f} s", ""]
    stages = [[o.name, o.status, f"{o.seconds:.0f}", _one_line(o.error)] for o in report.outcomes]
    parts += ["## Stages", "", *table(["stage", "result", "seconds", "note"], stages), ""]
    if found.targets:
        parts += ["## Against the targets", "", *table(TARGET_HEADER, [target_cells(t) for t in found.targets]), ""]
    if found.rows:
        ceilings = Ceilings(found.rates.get("copy bytes/s", math.nan), found.rates.get("float32 FLOP/s", math.nan))
        parts += ["## Times", "", *table(ROW_HEADER, [row_cells(row, ceilings) for row in found.rows]), ""]
        parts += [TIME_NOTE, "", FLOOR_NOTE, ""]
    if found.rates:
        parts += ["## Ceilings", "", *table(["", "measured"], [_rate_cells(*pair) for pair in found.rates.items()]), ""]
    for extra in found.tables:
        parts += [f"## {extra.title}", "", *table(extra.header, extra.rows), ""]
    for title, lines in (("Notes", found.notes), ("Missing", found.missing)):
        if lines:
            parts += [f"## {title}", "", *(f"* {line}" for line in lines), ""]
    errors = [outcome for outcome in report.outcomes if outcome.error and outcome.status == "failed"]
    if errors:
        parts += ["## Failures", ""]
        for outcome in errors:
            parts += [f"{outcome.name}:", "", "```", outcome.error, "```", ""]
    parts += ["## Machine", "", *table(["", ""], [[name, value] for name, value in found.facts.items()]), ""]
    return "\n".join(parts)


def write(report: GpuReport, folder: Path, logs: Sequence[Path]) -> list[Path]:
    """Writes gpu.json, gpu.md and gpu.log, and returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    found = report.findings
    document = {"command": report.command, "seconds": report.seconds, "failed": report.failed, **asdict(found)}
    document["stages"] = [
        {"name": o.name, "status": o.status, "seconds": o.seconds, "error": o.error} for o in report.outcomes
    ]
    add_derived(document, found.rows, found.targets)
    written = [folder / name for name in ("gpu.md", "gpu.json", "gpu.log")]
    written[0].write_text(markdown(report))
    written[1].write_text(json.dumps(without_nan(document), indent=1, allow_nan=False) + "\n")
    texts = ((log.stem, log.read_text(errors="replace")[-MOST_LOG:]) for log in logs)
    written[2].write_text("".join(f"==== {name}\n{text}\n" for name, text in texts))
    return written


def _rate_cells(name: str, value: float) -> list[str]:
    what, unit = name, ""
    if name.endswith("bytes/s"):
        what, value, unit = name.removesuffix("bytes/s").rstrip(", "), value / 1e9, " GB/s"
    elif "/s" in name:
        value, unit = value / 1e9, " G/s"
    elif name.startswith("seconds"):
        value, unit = value * 1e6, " us"
        what = name.removeprefix("seconds ")
    return [what, f"{number(value)}{unit}"]


def _merged(tables: Sequence[Table]) -> list[Table]:
    """Tables of the same title as one."""
    merged: dict[str, Table] = {}
    for one in tables:
        known = merged.setdefault(one.title, Table(one.title, one.header, []))
        known.rows.extend(row for row in one.rows if row not in known.rows)
    return list(merged.values())


def _one_line(text: str) -> str:
    line = text.splitlines()[0] if text else ""
    return line if len(line) <= 200 else line[:197] + "..."
