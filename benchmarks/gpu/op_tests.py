"""The op table of tests/ops on the card: the CUDA kernels, their Triton twins, and what belongs to no backend."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.build import Place
from benchmarks.gpu.findings import Findings, Table
from benchmarks.gpu.stages import supervise, tail

OTHERS = "others"  # tests that no backend is named in
SHOWN_FAILURES = 20
QUICK_EVERY = 6  # in a quick run: each sixth test
HEADER = ["backend", "passed", "failed", "skipped", "seconds"]


def run_tests(place: Place, backends: Sequence[str], required: Sequence[str], quick: bool, limit: float) -> Findings:
    """Runs the tests of some backends; of the required ones at least one test must have run."""
    name = backends[0]
    record, log = place.work / f"tests_{name}.jsonl", place.work / f"tests_{name}.log"
    record.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "tests/ops", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "benchmarks.gpu.pytest_plugin", "--record", str(record), "--serve", ",".join(backends)]
    command += ["--every", str(QUICK_EVERY)] if quick else []
    problem = supervise(command, limit, log, place.root, place.environment)
    findings = summarize(record, required)
    # Exit code 1 is a failed test, which the record has.
    if problem and not (problem == "exit code 1" and findings.failures):
        last = _last_begun(record)
        findings.failures.append(
            f"pytest: {problem}{f' in {last}' if last else ''}; the end of its output:\n{tail(log)}"
        )
    return findings


def summarize(record: Path, required: Sequence[str]) -> Findings:
    """Counts by backend, and the failures, of what the plugin recorded."""
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.is_file() else []
    tests = [line for line in lines if "outcome" in line]
    counts = Counter((test["backend"], test["outcome"]) for test in tests)
    rows = []
    for backend in sorted({test["backend"] for test in tests}):
        seconds = sum(test["seconds"] for test in tests if test["backend"] == backend)
        numbers = [str(counts[backend, outcome]) for outcome in ("passed", "failed", "skipped")]
        rows.append([backend, *numbers, f"{seconds:.0f}"])
    failed = [test for test in tests if test["outcome"] == "failed"]
    failures = [f"{test['test']}: {test['message'].splitlines()[0]}" for test in failed[:SHOWN_FAILURES]]
    if len(failed) > SHOWN_FAILURES:
        failures.append(f"and {len(failed) - SHOWN_FAILURES} more tests")
    # A test without a device is about what is said where the backend is missing.
    ran = {test["backend"] for test in tests if test["device"] and test["outcome"] == "passed"}
    failures += [f"no test ran on backend {name}" for name in required if name not in ran]
    return Findings(tables=[Table("Tests", HEADER, rows)] if rows else [], failures=failures)


def _last_begun(record: Path) -> str:
    lines = record.read_text().splitlines() if record.is_file() else []
    last = json.loads(lines[-1]) if lines else {}
    return last.get("begun", "")
