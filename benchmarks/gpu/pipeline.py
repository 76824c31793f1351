"""The stages of the GPU report, in order: build, checks side by side, ceilings, times."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu import build, op_tests, profile, sanitizer
from benchmarks.gpu.build import Place
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.op_tests import Suite
from benchmarks.gpu.stages import Budget, Outcome, Stage, run_stages, run_worker, supervise, tail

FULL_SECONDS, QUICK_SECONDS, PROFILE_SECONDS = 470.0, 118.0, 80.0
SANITIZERS, QUICK_SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck"), ("memcheck", "racecheck")
TRITON_SANITIZERS = ("memcheck", "initcheck")  # barriers and shared memory are the compiler's
TIMES = {"render": 90, "scatter": 80, "attention": 110, "memory": 50, "attention_peers": 110, "compiled": 90}
QUICK_TIMES = {"render": 20, "scatter": 20, "attention": 35, "memory": 15}  # seconds at most
# Stages of peers that are compiled when first used: what is not ready in the time there is says nothing of our kernels.
MAY_BE_LATE = ("attention_compile", "attention_peers", "compiled")
BUILD, CEILINGS = "build", "ceilings"
# Each of its tests compiles kernels of its own, forward and backward: more processes, and in a quick run fewer tests.
ATTENTION, ATTENTION_PARTS, ATTENTION_QUICK_EVERY = "sphere_attention", 8, 18


@dataclass(frozen=True)
class Options:
    quick: bool = False
    profile: bool = False
    device: str = "cuda"  # "cpu": a dry run of what needs no GPU, on tiny sizes

    @property
    def worker_arguments(self) -> list[str]:
        flags = ["--device", self.device]
        return flags + ["--quick"] * self.quick + ["--tiny"] * (self.device == "cpu")


def plan(place: Place, options: Options, capability: tuple[int, int]) -> list[list[Stage]]:
    """Groups of stages; those of a group run side by side."""
    if options.device == "cpu":
        return [[_worker(place, options, "machine", 60)], [_ceilings(place, options)], *_times(place, options)]
    quick = options.quick
    tools = QUICK_SANITIZERS if quick else SANITIZERS
    limits = (75, 40) if quick else (230, 150)
    first = [
        Stage(BUILD, limits[0], partial(build.build_libraries, place, capability)),
        Stage("ceilings build", limits[0], partial(build.build_ceilings, place, capability)),
        _worker(place, options, "attention_compile", limits[0] / 2, without_libraries=True),
    ]

    def tests(suite: Suite, *needs: str) -> Stage:
        run = partial(op_tests.run_tests, place, suite, quick)
        return Stage(f"tests of {suite.name}", limits[1], run, needs)

    attention = Suite(
        f"{ATTENTION} by Triton", ("triton",), ("triton",), ATTENTION, ATTENTION_PARTS, ATTENTION_QUICK_EVERY
    )
    checks = [
        _worker(place, options, "machine", limits[1]),  # it says which backends are missing: not before the build
        tests(Suite("the CUDA kernels", ("cuda",), ("cuda",)), BUILD),
        tests(Suite("the Triton kernels", ("triton",), ("triton",), f"not {ATTENTION}")),
        tests(attention),
        tests(Suite("no GPU backend", (op_tests.OTHERS,))),
        *(
            Stage(f"compute-sanitizer {tool}", limits[1], partial(sanitizer.sanitize, place, tool, "cuda"), (BUILD,))
            for tool in tools
        ),
        *(
            Stage(f"compute-sanitizer {tool}, Triton", limits[1], partial(sanitizer.sanitize, place, tool, "triton"))
            for tool in (() if quick else TRITON_SANITIZERS)
        ),
        Stage("machine code", limits[1], partial(build.read_machine_code, place), (BUILD,)),
    ]
    last = [[Stage("profile", PROFILE_SECONDS, partial(profile.profile, place), (BUILD,))]] if options.profile else []
    return [first, checks, [_ceilings(place, options)], *_times(place, options), *last]


def run(groups: Sequence[Sequence[Stage]], options: Options, say: Callable[[str], None]) -> list[Outcome]:
    """Runs them within the time of a run."""
    seconds = QUICK_SECONDS if options.quick else FULL_SECONDS
    budget = Budget(seconds + PROFILE_SECONDS * options.profile)

    def with_clock(line: str) -> None:
        say(f"[{budget.used:4.0f} s used, {budget.left:4.0f} s left] {line}")

    return run_stages(groups, budget, with_clock)


def _times(place: Place, options: Options) -> list[list[Stage]]:
    """One after another, as they are timed; the most wanted first, should the time run out."""
    limits = QUICK_TIMES if options.quick else TIMES
    return [[_worker(place, options, name, limit)] for name, limit in limits.items()]


def _worker(place: Place, options: Options, name: str, limit: float, without_libraries: bool = False) -> Stage:
    def run(seconds: float) -> Findings:
        rates = place.work / "rates.json"
        arguments = [*options.worker_arguments, "--rates", rates.read_text() if rates.is_file() else "{}"]
        environment = place.environment if options.device == "cuda" else None
        if without_libraries:  # while they are being built
            environment = {**place.environment, "EVOWORLD_LIBRARY_DIR": "none"}
        found = run_worker(f"benchmarks.gpu.{name}", arguments, seconds, place.work, place.root, environment)
        if name in MAY_BE_LATE:
            late = [failure for failure in found.failures if failure.startswith(f"{name}: stopped after")]
            found.failures = [failure for failure in found.failures if failure not in late]
            found.missing += [failure.splitlines()[0] for failure in late]
        return found

    return Stage(name, limit, run)


def _ceilings(place: Place, options: Options) -> Stage:
    """Runs the program that was built, and keeps its rates for the stages that come."""

    def run(seconds: float) -> Findings:
        rates = place.work / "rates.json"
        rates.unlink(missing_ok=True)
        arguments = options.worker_arguments
        findings = run_worker("benchmarks.gpu.flops", arguments, seconds, place.work, place.root)
        if options.device == "cuda":
            by_torch = findings.rates.get("copy bytes/s", 0.0)
            findings.add(measure(place, seconds))
            if "copy bytes/s" in findings.rates:  # of the two copies the faster one: the card can do it
                findings.rates["copy bytes/s"] = max(by_torch, findings.rates["copy bytes/s"])
        rates.write_text(json.dumps(findings.rates))
        return findings

    return Stage(CEILINGS, 60, run)


def measure(place: Place, limit: float) -> Findings:
    """The rates that the program ceilings.cu prints."""
    if not place.ceilings.is_file():
        return Findings(missing=["the rates of atomics, gathers and launches: ceilings.cu was not built"])
    log = place.work / "ceilings.log"
    problem = supervise([place.ceilings], limit, log, place.root)
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    rates = {line[0]: float(line[1]) for line in lines if len(line) == 2}
    return Findings(rates=rates, failures=[f"{problem}\n{tail(log)}"] if problem else [])
