"""Where ops are timed: a GPU by its own events, or the CPU, on which the benchmark itself is tested."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness import last_level_cache_bytes, timed

SLEEP_CYCLES_PER_SECOND = 2.0e9  # the clock of current GPUs; a slower one sleeps longer
SLEEP_MARGIN = 200e-6
LONGEST_SLEEP = 5e-3
# An idle GPU lowers its clocks, and needs tenths of a second of work to raise them again.
IDLE_SECONDS, WARM_UP_SECONDS = 20e-3, 0.3
WARM_UP_SIZE = 4096


class CudaDevice:
    """A GPU. Times are those of the device: the host has enqueued all of an op before the device begins with it."""

    name = "cuda"

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(0)
        self.cache_bytes = properties.L2_cache_size
        self._host_seconds: dict[int, float] = {}
        self._busy_until = -math.inf

    def keep_warm(self) -> None:
        """Multiplies matrices for a while if the device has been idle."""
        if time.perf_counter() - self._busy_until > IDLE_SECONDS:
            matrix = torch.rand(WARM_UP_SIZE, WARM_UP_SIZE, device=self.name)
            start = time.perf_counter()
            while time.perf_counter() - start < WARM_UP_SECONDS:
                torch.mm(matrix, matrix)
                torch.cuda.synchronize()

    def clock(self, function: Callable[[Any], Any], argument: Any) -> float:
        """Seconds on the device from the op's first kernel to its last."""
        self.keep_warm()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        wait = 1.5 * self._host_seconds.get(id(function), 1e-3) + SLEEP_MARGIN
        torch.cuda._sleep(int(min(wait, LONGEST_SLEEP) * SLEEP_CYCLES_PER_SECOND))
        start.record()
        before = time.perf_counter()
        result = function(argument)
        self._host_seconds[id(function)] = time.perf_counter() - before
        end.record()
        end.synchronize()
        self._busy_until = time.perf_counter()
        del result
        return start.elapsed_time(end) * 1e-3

    def wall(self, function: Callable[[Any], Any], argument: Any) -> float:
        """Seconds that the caller waits, launches and synchronisation included."""
        self.keep_warm()
        torch.cuda.synchronize()

        def finish(argument: Any) -> Any:
            result = function(argument)
            torch.cuda.synchronize()
            return result

        seconds = timed(finish, argument)
        self._busy_until = time.perf_counter()
        return seconds

    def peak_bytes(self, function: Callable[[Any], Any], argument: Any) -> float:
        """Most device memory that a call holds beyond what was there before it, its results included."""
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = function(argument)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del result
        return peak


class CpuDevice:
    """The CPU, by the wall clock: every case, peer, check and table can be tried without a GPU."""

    name = "cpu"

    def __init__(self) -> None:
        self.cache_bytes = last_level_cache_bytes()

    def clock(self, function: Callable[[Any], Any], argument: Any) -> float:
        return timed(function, argument)

    wall = clock

    def peak_bytes(self, function: Callable[[Any], Any], argument: Any) -> float:
        return math.nan


def open_device(name: str) -> CudaDevice | CpuDevice:
    """The device "cuda" or "cpu"."""
    return CudaDevice() if name == "cuda" else CpuDevice()
