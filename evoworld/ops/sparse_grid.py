"""The two steps of growing a sparse grid: the same integers from every backend.

The native library serves the device it is for, the reference all else. There are no Triton kernels for these: backend
``triton`` means the reference too, on the tensors' device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evoworld.reference import sparse_grid as reference

from .backend import WITHOUT_KERNELS, select
from .library import GRID_SCHEMA, define


def _missing_bricks_fake(points, directory, pages, page_origin, grid_origin, voxel_size):
    count = torch.library.get_ctx().new_dynamic_size()
    return directory.new_empty((count, 3))


def _insert_bricks_fake(directory, pages, page_origin, bricks, first_index):
    return None


define(f"missing_bricks(Tensor points, {GRID_SCHEMA}) -> Tensor", _missing_bricks_fake)
define(
    "insert_bricks(Tensor directory, Tensor(a!) pages, int[] page_origin, Tensor bricks, int first_index) -> ()",
    _insert_bricks_fake,
)


def _by_reference(device, dtype):
    name = select("sparse_grid", device, dtype)
    return name == "reference" or ("sparse_grid", name) in WITHOUT_KERNELS


def missing_bricks(
    points: Tensor,  # [P, 3] float32, metres
    origin: tuple[float, float, float],
    voxel_size: float,
    directory: Tensor,  # [Dx, Dy, Dz] int32
    pages: Tensor,  # [P, 512] int32
    page_origin: tuple[int, int, int],
) -> Tensor:  # [K, 3] int32
    """Bricks that hold a corner of a point's cell and are not allocated: unique, sorted by (x, y, z)."""
    if _by_reference(points.device, points.dtype):
        return reference.missing_bricks(points, origin, voxel_size, directory, pages, page_origin)
    return torch.ops.evoworld.missing_bricks(points, directory, pages, list(page_origin), list(origin), voxel_size)


def insert_bricks(
    directory: Tensor,  # [Dx, Dy, Dz] int32
    pages: Tensor,  # [P, 512] int32, changed in place
    page_origin: tuple[int, int, int],
    bricks: Tensor,  # [K, 3] int32
    first_index: int,
) -> None:
    """Enters bricks as number ``first_index`` and on, and updates activity and distances around them, in place."""
    if _by_reference(pages.device, torch.float32):
        reference.insert_bricks(directory, pages, page_origin, bricks, first_index)
    else:
        torch.ops.evoworld.insert_bricks(directory, pages, list(page_origin), bricks, first_index)
