"""What the ops share: their torch libraries, the grid as op arguments, checks at the door."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

# Schemas are defined here, in Python, once for each namespace that implements them. To `evoworld` the native libraries,
# loaded after the schemas, add kernels; to `evoworld_triton` the files of kernels/ do.
NATIVE = torch.library.Library("evoworld", "FRAGMENT")
TRITON = torch.library.Library("evoworld_triton", "FRAGMENT")

GRID_SCHEMA = "Tensor directory, Tensor pages, int[] page_origin, float[] grid_origin, float voxel_size"
STORAGE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def triton_interprets() -> bool:
    """Whether Triton kernels run in its interpreter (``TRITON_INTERPRET=1``), which takes tensors on the CPU too."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def define(
    schema: str,
    fake: Callable[..., object],
    backward: Callable[..., tuple[Tensor | None, ...]] | None = None,  # (ops of the namespace, ctx, *gradients)
    save: Callable[..., None] | None = None,  # (ctx, inputs, output)
    triton_file: str | None = None,  # the file of kernels/ with a function of the op's name and arguments
) -> None:
    """Defines an op, its fake and its autograd rule for the native libraries and, where it has a file, for Triton."""
    name = schema.partition("(")[0]
    for library in (NATIVE, TRITON) if triton_file else (NATIVE,):
        library.define(schema)
        qualified = f"{library.ns}::{name}"
        torch.library.register_fake(qualified, fake, lib=library)
        if backward is not None:
            rule = partial(backward, getattr(torch.ops, library.ns))
            torch.library.register_autograd(qualified, rule, setup_context=save, lib=library)
        elif name.endswith("_backward"):
            rule = partial(_raise_no_second_gradient, name.removesuffix("_backward"))
            torch.library.register_autograd(qualified, rule, setup_context=lambda *_, **__: None, lib=library)
    if triton_file:

        def run(*arguments):
            # Loads triton, which nobody pays for before its first op.
            return getattr(importlib.import_module(f"evoworld.kernels.{triton_file}"), name)(*arguments)

        for key in ("CUDA", "CPU") if triton_interprets() else ("CUDA",):
            TRITON.impl(name, run, key)


def _raise_no_second_gradient(op: str, *_: object) -> None:
    raise RuntimeError(f"{op}: no gradients of gradients; backend 'reference' has them")


def namespace(backend: str) -> object:
    """The ops of a backend that is not the reference: ``torch.ops.evoworld`` or ``torch.ops.evoworld_triton``."""
    return torch.ops.evoworld_triton if backend == "triton" else torch.ops.evoworld


def alert_not_deterministic(op: str) -> None:
    """What torch's own operations without a deterministic implementation do: raise, or warn, if one is asked for."""
    if not torch.are_deterministic_algorithms_enabled():
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    setting = "True, warn_only=True" if warn_only else "True"
    message = (
        f"{op} does not have a deterministic implementation, but you set "
        f"'torch.use_deterministic_algorithms({setting})'. Backend 'reference' has one."
    )
    if not warn_only:
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)


def grid_arguments(grid) -> tuple[Tensor, Tensor, list[int], list[float], float]:
    """The grid as the native ops take it, in the order of GRID_SCHEMA."""
    return grid.directory, grid.pages, list(grid.page_origin), list(grid.origin), grid.voxel_size


def check(op: str, condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{op}: {name}: expected {expected}, got {got}")


def check_tensor(
    op: str,
    name: str,
    tensor: Tensor,
    shape: tuple[int | str, ...],  # a letter where any size will do
    like: Tensor | None = None,  # whose device it must share
    dtypes: tuple[torch.dtype, ...] = STORAGE,
) -> None:
    """Raises a ValueError that names the argument unless the tensor is as the op's docstring says."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{op}: {name}: expected a tensor, got {type(tensor).__name__}")
    fits = tensor.ndim == len(shape) and all(
        isinstance(wanted, str) or wanted == size for wanted, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = "[" + ", ".join(map(str, shape)) + "]"
        raise ValueError(f"{op}: {name}: expected shape {wanted}, got {list(tensor.shape)}")
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{op}: {name}: expected {names}, got {str(tensor.dtype).removeprefix('torch.')}")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{op}: {name}: expected device {like.device}, got {tensor.device}")


def check_image_width(op: str, image_width: object) -> None:
    whole = isinstance(image_width, (int, torch.SymInt)) and not isinstance(image_width, bool)
    check(op, whole and image_width >= 0, "image_width", "an int >= 0", repr(image_width))


def check_grid(op: str, grid: object, like: Tensor) -> None:
    fields = ("directory", "pages", "page_origin", "origin", "voxel_size", "num_voxels")
    check(op, all(hasattr(grid, field) for field in fields), "grid", "a SparseGrid", type(grid).__name__)
    check(op, grid.directory.device == like.device, "grid", f"device {like.device}", grid.directory.device)


def check_geometry(
    op: str,
    name: str,
    tensor: Tensor,
    shape: tuple[int | str, ...],
    like: Tensor,  # features
) -> Tensor:
    """The tensor in the precision the op computes in: float32, or float64 when it is that already.

    Half precision is an error (rays in bfloat16 are off by centimetres at a few metres), except under autocast, where
    torch may have chosen it: it is widened again there.
    """
    dtypes = (torch.float32, torch.float64) if autocast_dtype(like.device.type) is None else STORAGE
    check_tensor(op, name, tensor, shape, like, dtypes)
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast wants on a kind of device; None where it is off, or there is none, as on meta tensors."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None


def without_autocast(device: str) -> AbstractContextManager:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """What an op computes in: float64 if anything is, else float32."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32
