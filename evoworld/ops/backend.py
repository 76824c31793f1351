"""Which backend serves an op: an explicit request, the environment, or the best one for the tensors' device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from evoworld import _native

BACKENDS = ("reference", "cpu", "cuda", "triton")
OPS = ("voxel_scatter", "volume_render", "sparse_grid")
VARIABLE = "EVOWORLD_BACKEND"

_requested: ContextVar[str | None] = ContextVar("evoworld_backend", default=None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Serves every op inside the block by the named backend, or raises where that is not possible.

    Args:
        name: ``reference`` (plain PyTorch, any device), ``cpu``, ``cuda`` or ``triton``.

    Example:
        >>> import evoworld
        >>> with evoworld.backend("reference"):
        ...     pass
    """
    _check_name(name, "backend")
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def available(op: str) -> dict[str, str | None]:
    """For each backend: None where it can serve the op on this machine, otherwise what is missing."""
    missing_on_gpu = f"{op} has no GPU kernel yet"
    return {
        "reference": None,
        "cpu": _native.missing("cpu"),
        "cuda": _native.missing("cuda") or missing_on_gpu,
        "triton": missing_on_gpu,
    }


def select(op: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that serves an op for tensors of this device and dtype.

    A request, by ``with evoworld.backend(name)`` or else by ``EVOWORLD_BACKEND``, is never replaced by another backend.
    Without one, float32 tensors on the CPU go to the native library where it is there; all else goes to the reference.

    Raises:
        RuntimeError: when the requested backend cannot serve the op.
    """
    name = _requested.get() or os.environ.get(VARIABLE)
    if not name:
        native = device.type == "cpu" and dtype == torch.float32 and _native.missing("cpu") is None
        return "cpu" if native else "reference"
    _check_name(name, VARIABLE)
    reason = available(op)[name]
    if reason is None and name == "cpu" and device.type != "cpu":
        reason = f"the tensors are on {device}; move them to the CPU"
    if reason is None and name == "cpu" and dtype != torch.float32:
        reason = f"it computes in float32, got {dtype}; convert, or ask for backend 'reference'"
    if reason is not None:
        raise RuntimeError(f"{op}: backend {name!r} was requested and cannot serve it: {reason}")
    return name


# What torch.compiler.assume_constant_result does, which would import the compiler too: a compiled function
# keeps the backend it was traced with.
select._dynamo_marked_constant = True


def _check_name(name: str, source: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
