"""What a stage found out, as plain data: it travels from the stage's process to the report as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.harness import Row, Target
from benchmarks.report import without_nan


@dataclass
class Table:
    """A table of the report that is neither times nor targets."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass
class Findings:
    """Each stage fills what it has; the report appends them."""

    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)  # of the machine and the versions
    rates: dict[str, float] = field(default_factory=dict)  # measured ceilings, by name
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # tools and peers that are not there
    failures: list[str] = field(default_factory=list)  # checks that failed: the run is not a success

    def add(self, other: Findings) -> None:
        """Appends what another one holds."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(mine, dict):
                mine.update(value)
            else:
                mine.extend(x for x in value if x not in mine)

    def save(self, path: Path) -> None:
        """Writes JSON, whole or not at all: a stage saves after each step, and may be stopped at any time."""
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(without_nan(asdict(self))))
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Findings:
        """What `save` wrote; nothing where it never came to that."""
        if not path.is_file():
            return cls()
        document = json.loads(path.read_text())
        for key, kind in (("rows", Row), ("targets", Target), ("tables", Table)):
            document[key] = [kind(**_with_nan(kind, record)) for record in document[key]]
        return cls(**document)


def _with_nan(kind: type, record: dict) -> dict:
    """JSON has no NaN: a number that was one came back as None."""
    return {key: float("nan") if value is None else value for key, value in record.items()}
