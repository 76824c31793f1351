"""Which backend serves an op: an explicit request, the environment, or the best one for the tensors' device."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch

from evoworld import _native

from .library import triton_interprets

BACKENDS = ("reference", "cpu", "cuda", "triton")
OPS = ("voxel_scatter", "volume_render", "sphere_attention", "sparse_grid")
# Backends that serve an op by the reference, on the tensors' device.
WITHOUT_KERNELS = {("sparse_grid", "triton")}
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
    if op not in OPS:
        raise ValueError(f"op: expected one of {', '.join(OPS)}, got {op!r}")
    return {name: _missing(op, name) for name in BACKENDS}


def select(op: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that serves an op for tensors of this device and dtype.

    A request, by ``with evoworld.backend(name)`` or else by ``EVOWORLD_BACKEND``, is never replaced by another backend.
    Without one, float32 tensors go to the best backend that is there for op and device: on the CPU ``cpu``, on a GPU
    ``cuda``, else ``triton``. All else goes to the reference. Under ``TRITON_INTERPRET=1`` Triton's kernels run in its
    interpreter, on the CPU and very slowly, so they serve requests only, then for tensors on the CPU too.

    Raises:
        RuntimeError: when the requested backend cannot serve the op.
    """
    name = _requested.get() or os.environ.get(VARIABLE)
    if not name:
        best = {"cpu": ["cpu"], "cuda": ["cuda"] if triton_interprets() else ["cuda", "triton"]}.get(device.type, [])
        return next((name for name in best if _unfit(op, name, device, dtype) is None), "reference")
    _check_name(name, VARIABLE)
    reason = _unfit(op, name, device, dtype)
    if reason is not None:
        raise RuntimeError(f"{op}: backend {name!r} was requested and cannot serve it: {reason}")
    return name


def _unfit(op: str, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot serve ops on such tensors; None where it can."""
    reason = _missing(op, name)
    if reason is not None or name == "reference":
        return reason
    interprets = name == "triton" and triton_interprets()
    if device.type not in (("cpu", "cuda") if interprets else ("cpu",) if name == "cpu" else ("cuda",)):
        return f"the tensors are on {device}; move them to {'the CPU' if name == 'cpu' else 'a CUDA device'}"
    if dtype != torch.float32:
        return f"it computes in float32, got {dtype}; convert, or ask for backend 'reference'"
    if name == "cuda":
        return _native.not_built_for(torch.cuda.current_device() if device.index is None else device.index)
    return None


def _missing(op: str, name: str) -> str | None:
    if name == "reference":
        return None
    if name == "triton":
        return _missing_triton(triton_interprets())
    return _native.missing(name) or _missing_kernel(op, name)


@cache
def _missing_kernel(op: str, name: str) -> str | None:
    schema = "missing_bricks" if op == "sparse_grid" else op
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"evoworld::{schema}", name.upper())
    return None if has_kernel else f"libevoworld_{name} has no kernel of this op"


@cache
def _missing_triton(interprets: bool) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; it comes with torch on GPU machines, or pip install triton"
    if not interprets and not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
    return None


# What torch.compiler.assume_constant_result does, which would import the compiler too: a compiled function
# keeps the backend it was traced with.
select._dynamo_marked_constant = True


def _check_name(name: str, source: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
