"""The op table of tests/ops on the card: the CUDA kernels, their Triton twins, and what belongs to no backend."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.build import Place
from benchmarks.gpu.findings import Findings, Table
from benchmarks.gpu.stages import supervise, tail

OTHERS = "others"  # tests that no backend is named in
SHOWN_FAILURES = 20
PARTS = 4  # processes a suite: much of the time goes into compiling Triton's kernels and the reference on the CPU
QUICK_EVERY = 6  # in a quick run: each sixth test
HEADER = ["backend", "passed", "failed", "skipped", "seconds"]


@dataclass(frozen=True)
class Suite:
    """Tests of some backends, and the one of them of which a test must have run."""

    name: str
    backends: tuple[str, ...]
    required: tuple[str, ...] = ()
    select: str = ""  # pytest's -k
    parts: int = PARTS
    quick_every: int = QUICK_EVERY


def run_tests(place: Place, suite: Suite, quick: bool, limit: float) -> Findings:
    """Runs the tests of a suite in processes side by side."""
    of = suite.parts * (suite.quick_every if quick else 1)
    names = [f"tests_{suite.name}_{part}".replace(" ", "_") for part in range(suite.parts)]
    records, logs = ([place.work / f"{name}.{kind}" for name in names] for kind in ("jsonl", "log"))

    def run(part: int) -> str:
        records[part].unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "tests/ops", "-q", "-p", "no:cacheprovider"]
        command += ["-p", "benchmarks.gpu.pytest_plugin", "--record", str(records[part])]
        command += ["--serve", ",".join(suite.backends), "--part", f"{part}/{of}", "-k", suite.select]
        return supervise(command, limit, logs[part], place.root, place.check_environment)

    with ThreadPoolExecutor(suite.parts) as pool:
        problems = list(pool.map(run, range(suite.parts)))
    findings = summarize(records, suite.required)
    for problem, record, log in zip(problems, records, logs, strict=True):
        # 1: a failed test, which the record has. 5: a part without tests.
        if problem and not (problem == "exit code 1" and findings.failures) and problem != "exit code 5":
            last = _last_begun(record)
            findings.failures.append(
                f"pytest: {problem}{f' in {last}' if last else ''}; the end of its output:\n{tail(log)}"
            )
    return findings


def summarize(records: Sequence[Path], required: Sequence[str]) -> Findings:
    """Counts by backend, and the failures, of what the plugin recorded."""
    lines = [line for record in records for line in _lines(record)]
    tests = [line for line in lines if "outcome" in line]
    counts = Counter((test["backend"], test["outcome"]) for test in tests)
    rows = []
    for backend in sorted({test["backend"] for test in tests}):
        seconds = sum(test["seconds"] for test in tests if test["backend"] == backend)
        numbers = [str(counts[backend, outcome]) for outcome in ("passed", "failed", "skipped")]
        rows.append([backend, *numbers, f"{seconds:.0f}"])
    failed = [test for test in tests if test["outcome"] == "failed"]
    failures = [f"{test['test']}: {test['message']}" for test in failed[:SHOWN_FAILURES]]
    if len(failed) > SHOWN_FAILURES:
        failures.append(f"and {len(failed) - SHOWN_FAILURES} more tests")
    # A test without a device is about what is said where the backend is missing.
    ran = {test["backend"] for test in tests if test["device"] and test["outcome"] == "passed"}
    failures += [f"no test ran on backend {name}" for name in required if name not in ran]
    return Findings(tables=[Table("Tests", HEADER, rows)] if rows else [], failures=failures)


def _last_begun(record: Path) -> str:
    lines = _lines(record)
    return lines[-1].get("begun", "") if lines else ""


def _lines(record: Path) -> list[dict]:
    return [json.loads(line) for line in record.read_text().splitlines()] if record.is_file() else []
