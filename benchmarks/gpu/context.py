"""What a timing stage is given, and where it puts what it finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import evoworld
from benchmarks.gpu.device import CpuDevice, CudaDevice
from benchmarks.gpu.findings import Findings
from benchmarks.harness import Check, Contestant, Row, Target, compare, inputs_beyond_cache
from evoworld import ops, reference

MOST_INPUTS = 6
SECONDS_PER_CONTESTANT = 2.0
# The reference holds all samples of its rays: larger cases are checked by the CPU kernels, which tests hold to it.
MOST_REFERENCE_RAYS = 4096

# Of the largest value. Sums of up to thousands of float32 terms come in another order; what is rounded is rounded.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}
# Gradients to where a point lies jump from cell to cell: of a million points some lie within rounding of a face, and
# fused multiply-adds (Triton's, PyTorch's own on a GPU) take them for the neighbour's.
STRAYS = 1e-3


@dataclass(frozen=True)
class Size:
    """A panorama of `height` x 2 `height` pixels with so many channels."""

    height: int
    channels: int
    dtype: torch.dtype

    def title(self, op: str) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{op} {self.height}x{2 * self.height}, C = {self.channels} {dtype}"


@dataclass
class Context:
    """Sizes are those of the issue unless `tiny`, which is for trying the benchmark itself."""

    device: CudaDevice | CpuDevice
    quick: bool = False
    tiny: bool = False
    rates: Mapping[str, float] = field(default_factory=dict)  # measured ceilings
    save_to: Path | None = None
    findings: Findings = field(default_factory=Findings)

    def rate(self, name: str) -> float:
        """A measured ceiling; NaN where it was not measured."""
        return self.rates.get(name, math.nan)

    @property
    def repeats(self) -> int:
        return 3 if self.tiny else 20 if self.quick else 60

    @property
    def backends(self) -> list[str]:
        """The compiled backends that serve this device's tensors here, in both of the voxel ops."""
        return self.backends_of("voxel_scatter", "volume_render")

    def backends_of(self, *names: str) -> list[str]:
        """The compiled backends that serve this device's tensors here in all of these ops, the best one first."""
        wanted = ("cuda", "triton") if self.device.name == "cuda" else ("cpu",)
        return [backend for backend in wanted if not any(ops.available(op)[backend] for op in names)]

    def height(self, rows: int) -> int:
        """Rows of a panorama."""
        return max(rows // 32, 4) if self.tiny else rows

    def inputs_count(self, nbytes: int) -> int:
        """How many inputs to rotate through so that none is still in the last-level cache."""
        return 2 if self.tiny else inputs_beyond_cache(nbytes, MOST_INPUTS, self.device.cache_bytes)

    def floor_seconds(self, nbytes: float) -> float:
        """The time that moving these bytes takes at the measured copy bandwidth; NaN where that was not measured."""
        return nbytes / self.rate("copy bytes/s")

    def prepare(self, function: Callable[..., Any], *choices: Iterable[Any]) -> None:
        """Calls it with each combination before the clock runs; what fails here is refused by `compare`, and said."""
        for arguments in product(*choices):
            with suppress(Exception):
                function(*arguments)

    def compare(
        self,
        case: str,
        contestants: Sequence[Contestant],
        inputs: Sequence[Any],
        check: Check | Mapping[str, Check],
        ours: Sequence[str],
        wall: bool = False,
    ) -> dict[str, Row]:
        """`harness.compare` on the device; a contestant of ours that is refused fails the stage."""
        clock = self.device.wall if wall else self.device.clock
        found = compare(case, contestants, inputs, check, self.repeats, clock, SECONDS_PER_CONTESTANT)
        self.findings.rows += found.values()
        self.findings.failures += [
            f"{case}, {name}: {found[name].refused}" for name in ours if name in found and found[name].refused
        ]
        self.save()
        return found

    def target(
        self, claim: str, measured: float, limit: float, at_least: bool, unit: str = "x", note: str = ""
    ) -> None:
        """Adds a claim and what was measured for it."""
        self.findings.targets.append(Target(claim, measured, limit, at_least, unit, note))
        self.save()

    def note(self, text: str) -> None:
        self.findings.notes.append(text)
        self.save()

    def save(self) -> None:
        if self.save_to is not None:
            self.findings.save(self.save_to)


def expected(
    op: str, *arguments: Any, gradients_of: Sequence[int] = (), upstream: Sequence[Tensor] = ()
) -> list[Tensor]:
    """Outputs of an op, or gradients to some of its arguments, in float32 and on the CPU.

    By the CPU kernels where there are many rays and these kernels, else by the reference, where the tensors are.
    """
    by_kernels = arguments[2].shape[0] > MOST_REFERENCE_RAYS and ops.available(op)["cpu"] is None

    def moved(value: Any) -> Any:
        if by_kernels and hasattr(value, "to"):
            value = value.to("cpu")
        return value.detach().float() if isinstance(value, Tensor) else value

    given = [moved(value) for value in arguments]
    for index in gradients_of:
        given[index].requires_grad_()
    if by_kernels:
        with evoworld.backend("cpu"):
            outputs = getattr(ops, op)(*given)
    else:
        outputs = getattr(reference, op)(*given)
    if gradients_of:
        outputs = torch.autograd.grad(outputs, [given[i] for i in gradients_of], [moved(d) for d in upstream])
    return [output.detach().cpu() for output in outputs]


def named(names: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Tensors for a check, on the CPU."""
    return {name: tensor.detach().cpu() for name, tensor in zip(names, tensors, strict=True)}
