"""Interleaved timing that refuses wrong results.

A case times several contestants on the same inputs: A B A B ..., so that a slow second of a shared machine hits all of
them, and takes the median. Nothing is timed before its output agrees with the expected one.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Outputs = Mapping[str, torch.Tensor]
Clock = Callable[[Callable[[Any], Any], Any], float]  # function, argument -> seconds of one call

# Inputs are rotated until together they are this many times the last-level cache.
CACHE_MULTIPLE = 2
DEFAULT_CACHE_BYTES = 32 << 20
FEWEST_RUNS = 3
LONGEST_COMPLAINT = 300


@dataclass(frozen=True)
class Contestant:
    """One way to compute a case.

    `run` is what is timed. `outputs` turns what it returned into named tensors for the check, outside the clock.
    `bytes` and `flops` are the least that the case needs (each input read once, each output written once). `peak` is
    the FLOP/s of a matrix product of the case's dtype, where that is not the float32 that tables hold FLOPs against.
    """

    name: str
    run: Callable[[Any], Any]
    outputs: Callable[[Any], Outputs] = dict
    bytes: float = math.nan
    flops: float = math.nan
    note: str = ""
    peak: float = math.nan


@dataclass
class Row:
    """One contestant's result in one case; `seconds` is empty when it was refused."""

    case: str
    contestant: str
    seconds: list[float] = field(default_factory=list)
    bytes: float = math.nan
    flops: float = math.nan
    note: str = ""
    refused: str = ""
    peak: float = math.nan

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else math.nan

    @property
    def minimum(self) -> float:
        return min(self.seconds, default=math.nan)


@dataclass(frozen=True)
class Target:
    """A claim and what was measured for it; `measured` is NaN when a peer or an op was missing."""

    claim: str
    measured: float
    limit: float
    at_least: bool
    unit: str = "x"
    note: str = ""

    @property
    def verdict(self) -> str:
        if math.isnan(self.measured):
            return "not measured"
        met = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        return "met" if met else "missed"


@dataclass(frozen=True)
class Check:
    """The expected outputs of the first input, and the largest error allowed relative to an output's largest value.

    `strays`: the share of an output's values that may be off by more, where a value jumps and rounding decides on which
    side it lies; none may be NaN.
    """

    expected: Outputs
    tolerance: float
    strays: float = 0.0

    def complaint(self, outputs: Outputs) -> str:
        """Why the outputs are wrong, in a line; empty when they agree."""
        for name, expected in self.expected.items():
            if name not in outputs:
                return f"{name} is missing"
            found = outputs[name]
            if found.shape != expected.shape:
                return f"{name} has shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
            scale = expected.double().abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            errors = (found.double() - expected.double()).abs() / scale
            wrong = ~(errors <= self.tolerance)  # not <=: a NaN is wrong too
            if errors.isnan().any() or wrong.double().mean() > self.strays:
                return f"{name} is off by {errors.max().item():.1e} of its largest value, allowed {self.tolerance:.0e}"
        return ""


def timed(function: Callable[[Any], Any], argument: Any) -> float:
    """Seconds of one call; the result is released after the clock has stopped."""
    start = time.perf_counter()
    result = function(argument)
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def compare(
    case: str,
    contestants: Sequence[Contestant],
    inputs: Sequence[Any],
    check: Check | Mapping[str, Check],
    repeats: int,
    clock: Clock = timed,
    budget: float = math.inf,
) -> dict[str, Row]:
    """Check every contestant on the first input, then time those that agree, interleaved, rotating the inputs.

    `check` is one for all, or one for each contestant's name where they compute different things. A contestant whose
    runs took `budget` seconds together is out, after three. Returns the rows by contestant. The check is the warm-up
    too: it compiles what is compiled on first use.
    """
    if not inputs:
        raise ValueError(f"{case}: expected at least one input, got none")
    rows = {c.name: Row(case, c.name, bytes=c.bytes, flops=c.flops, note=c.note, peak=c.peak) for c in contestants}
    running = []
    for contestant in contestants:
        expected = check if isinstance(check, Check) else check[contestant.name]
        try:
            complaint = expected.complaint(contestant.outputs(contestant.run(inputs[0])))
        except Exception as error:  # a peer that cannot run here is a row that says so
            complaint = f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST_COMPLAINT]}"
        if complaint:
            rows[contestant.name].refused = complaint
        else:
            running.append(contestant)
    for repeat in range(repeats):
        for contestant in running:
            seconds = rows[contestant.name].seconds
            if len(seconds) < FEWEST_RUNS or sum(seconds) < budget:
                seconds.append(clock(contestant.run, inputs[(repeat + 1) % len(inputs)]))
    return rows


def ratio(rows: Mapping[str, Row], numerator: str, denominator: str) -> float:
    """Median time of one contestant over another's; NaN when either is absent or was refused."""
    if numerator not in rows or denominator not in rows:
        return math.nan
    return rows[numerator].median / rows[denominator].median


def inputs_beyond_cache(input_bytes: int, available: int, cache_bytes: int | None = None) -> int:
    """How many inputs to rotate through: enough to pass the last-level cache, at least 2, at most what there is."""
    cache_bytes = last_level_cache_bytes() if cache_bytes is None else cache_bytes
    wanted = math.ceil(CACHE_MULTIPLE * cache_bytes / max(input_bytes, 1))
    return max(min(max(wanted, 2), available), 1)


def last_level_cache_bytes() -> int:
    """Size of the largest cache of processor 0, or 32 MiB where the system does not tell."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text[-1:] in "KM" and text[:-1].isdigit():
            sizes.append(int(text[:-1]) << (10 if text.endswith("K") else 20))
    return max(sizes, default=DEFAULT_CACHE_BYTES)
