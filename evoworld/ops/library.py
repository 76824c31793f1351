"""What the ops share: their torch library, the grid as op arguments, checks at the door."""

from __future__ import annotations

import torch
from torch import Tensor

# Schemas are defined here, in Python, once; the native libraries only add kernels (and are loaded after the schemas).
LIBRARY = torch.library.Library("evoworld", "FRAGMENT")

GRID_SCHEMA = "Tensor directory, Tensor pages, int[] page_origin, float[] grid_origin, float voxel_size"
STORAGE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


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
    autocast = torch.is_autocast_enabled(like.device.type)
    check_tensor(op, name, tensor, shape, like, STORAGE if autocast else (torch.float32, torch.float64))
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """What an op computes in: float64 if anything is, else float32."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32
