"""Running stages: each in a process of its own, within its time and the run's, so that none can stop the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.gpu.findings import Findings

TAIL_LINES = 25
SHORTEST = 5.0  # seconds: a stage with less is not begun


class NotThere(Exception):
    """What a stage raises where a tool that it is about is missing: it is skipped, which is no failure."""


@dataclass(frozen=True)
class Stage:
    """`run(seconds)` does the work in at most so many seconds and raises where it cannot."""

    name: str
    limit: float  # seconds
    run: Callable[[float], Findings]
    needs: tuple[str, ...] = ()  # stages without whose success this one is pointless


@dataclass
class Outcome:
    """How a stage ended."""

    name: str
    status: str  # "passed", "failed" or "skipped"
    seconds: float = 0.0
    error: str = ""
    findings: Findings = field(default_factory=Findings)


@dataclass
class Budget:
    """The time of the whole run."""

    seconds: float
    start: float = field(default_factory=time.monotonic)

    @property
    def used(self) -> float:
        return time.monotonic() - self.start

    @property
    def left(self) -> float:
        return self.seconds - self.used


def run_stages(
    groups: Sequence[Sequence[Stage]],
    budget: Budget,
    say: Callable[[str], None],
) -> list[Outcome]:
    """Runs the groups one after another, the stages of a group side by side; a failing stage is an outcome."""
    outcomes: list[Outcome] = []
    for group in groups:
        before = {outcome.name: outcome.status for outcome in outcomes}
        with ThreadPoolExecutor(max(len(group), 1)) as pool:
            outcomes += pool.map(partial(_run, before=before, budget=budget, say=say), group)
    return outcomes


def _run(stage: Stage, before: Mapping[str, str], budget: Budget, say: Callable[[str], None]) -> Outcome:
    broken = [name for name in stage.needs if before.get(name) != "passed"]
    limit = min(stage.limit, budget.left)
    if broken or limit < SHORTEST:
        outcome = Outcome(stage.name, "skipped", error=f"needs {', '.join(broken)}" if broken else "no time left")
    else:
        say(f"{stage.name}: begun, at most {limit:.0f} s")
        start = time.monotonic()
        try:
            findings = stage.run(limit)
            outcome = Outcome(stage.name, "failed" if findings.failures else "passed", findings=findings)
            outcome.error = "; ".join(findings.failures)
        except NotThere as error:
            outcome = Outcome(stage.name, "skipped", error=str(error))
        except Exception as error:  # whatever it is, the others go on and the report says it
            outcome = Outcome(stage.name, "failed", error=f"{type(error).__name__}: {error}")
        outcome.seconds = time.monotonic() - start
    first_line = outcome.error.splitlines()[0][:200] if outcome.error else ""
    say(f"{stage.name}: {outcome.status} after {outcome.seconds:.0f} s{': ' if first_line else ''}{first_line}")
    return outcome


def supervise(
    command: Sequence[str | Path],
    limit: float,
    log: Path,
    cwd: Path,
    environment: dict[str, str] | None = None,
) -> str:
    """Runs a command, its output into `log`, and ends it with its children after `limit` seconds.

    Returns an empty string after exit code 0, else what happened in one line.
    """
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"stopped after {limit:.0f} s"
    if code == 0:
        return ""
    return f"ended by signal {-code}" if code < 0 else f"exit code {code}"


def run_worker(
    module: str,
    arguments: Sequence[str | Path],
    limit: float,
    work: Path,
    root: Path,
    environment: dict[str, str] | None = None,
) -> Findings:
    """Runs a stage's module as a process and returns what it saved, also where it did not get to its end."""
    name = module.rpartition(".")[2]
    saved, log = work / f"{name}.json", work / f"{name}.log"
    saved.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.worker", module, "--save", saved, *arguments]
    problem = supervise(command, limit, log, root, environment)
    findings = Findings.load(saved)
    if problem:
        findings.failures.append(f"{name}: {problem}; the end of its output:\n{tail(log)}")
    return findings


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:]) if log.is_file() else ""
