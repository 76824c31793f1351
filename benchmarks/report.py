"""The tables of a run: printed, and written as Markdown and JSON."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, Target
from benchmarks.machine import Ceilings

FLOOR_NOTE = (
    "Bytes and FLOPs are the least a case needs: each input read once, each output written once. "
    "The fractions hold them, over the median time, against the measured ceilings below (attention: against a matrix "
    "product of its own dtype)."
)


@dataclass
class Report:
    """All that a run found out."""

    machine: dict[str, str]
    ceilings: Ceilings
    captures: list[str]
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    quality: list[dict[str, str | float]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def markdown(report: Report) -> str:
    """The report as Markdown: targets first, then times, quality, what is missing, and the machine."""
    parts = ["# Benchmark", "", f"Captures: {', '.join(report.captures)}.", ""]
    parts += ["## Against the targets", "", *table(TARGET_HEADER, [target_cells(t) for t in report.targets]), ""]
    times = [row_cells(row, report.ceilings) for row in report.rows]
    parts += ["## Times", "", *table(ROW_HEADER, times), ""]
    parts += [FLOOR_NOTE, ""]
    if report.quality:
        header = list(report.quality[0])
        cells = [[number(row[column]) for column in header] for row in report.quality]
        parts += ["## Quality on held-out frames", "", *table(header, cells), ""]
    if report.notes:
        parts += ["## Notes", "", *(f"* {note}" for note in report.notes), ""]
    if report.missing:
        parts += ["## Missing", "", *(f"* {line}" for line in report.missing), ""]
    ceilings = {
        "copy bandwidth": f"{report.ceilings.copy_bytes_per_second / 1e9:.1f} GB/s",
        "multiply-add rate": f"{report.ceilings.flops_per_second / 1e9:.0f} GFLOP/s",
    }
    facts = [[name, value] for name, value in {**report.machine, **ceilings}.items()]
    parts += ["## Machine", "", *table(["", ""], facts), ""]
    return "\n".join(parts)


def write(report: Report, path: Path) -> list[Path]:
    """Write `path`.md and `path`.json and return both."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = asdict(report)
    add_derived(document, report.rows, report.targets)
    written = [path.with_name(path.name + suffix) for suffix in (".md", ".json")]
    written[0].write_text(markdown(report))
    written[1].write_text(json.dumps(without_nan(document), indent=1, allow_nan=False) + "\n")
    return written


def add_derived(document: dict[str, Any], rows: Sequence[Row], targets: Sequence[Target]) -> None:
    """Adds to a document's "rows" and "targets" what follows from them: medians, minima, verdicts."""
    for row, record in zip(rows, document["rows"], strict=True):
        record.update(median=row.median, minimum=row.minimum)
    for target, record in zip(targets, document["targets"], strict=True):
        record["verdict"] = target.verdict


TARGET_HEADER = ["claim", "measured", "target", "verdict", "note"]
ROW_HEADER = ["case", "contestant", "median ms", "min ms", "MB", "of copy", "MFLOP", "of multiply-add", "note"]


def target_cells(target: Target) -> list[str]:
    """A target as cells under TARGET_HEADER."""
    sense = ">=" if target.at_least else "<="
    measured = number(target.measured) + (f" {target.unit}" if math.isfinite(target.measured) else "")
    return [target.claim, measured, f"{sense} {target.limit:g} {target.unit}", target.verdict, target.note]


def row_cells(row: Row, ceilings: Ceilings) -> list[str]:
    """A row as cells under ROW_HEADER."""
    if row.refused:
        return [row.case, row.contestant, *["-"] * 6, f"refused: {row.refused}"]
    peak = ceilings.flops_per_second if math.isnan(row.peak) else row.peak
    return [
        row.case,
        row.contestant,
        number(row.median * 1e3),
        number(row.minimum * 1e3),
        number(row.bytes / 1e6),
        percent(row.bytes / row.median / ceilings.copy_bytes_per_second),
        number(row.flops / 1e6),
        percent(row.flops / row.median / peak),
        row.note,
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    rows = [[re.sub(r"\s*\|\s*", " / ", cell) for cell in row] for row in rows]
    widths = [max(len(cells[i]) for cells in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return [line(header), "| " + " | ".join("-" * max(width, 3) for width in widths) + " |", *map(line, rows)]


def number(value: str | float) -> str:
    """Four digits; "-" for NaN."""
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(value: float) -> str:
    """A fraction as per cent; "-" for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def without_nan(value):
    """The value with None for each number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
