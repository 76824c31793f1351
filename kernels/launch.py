"""What comes before a launch: checks that name the argument, views of the grid, block sizes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sparse_grid import INTERPRETED, Grid

FEATURE_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_PAGE_VOLUME = 512
_WARP = 32
_WIDE = 128  # channels a block where each block of channels walks its rays anew: as many as registers hold,
_NARROW = 8  # and where one walk takes them block after block, beside much else: two 16-byte loads in float32
_BLOCK_ELEMENTS = 1024  # of a block [BLOCK_R, BLOCK_C] of one warp: 32 registers a thread in float32
_TILE_X = {8: 4, 16: 4, 32: 8, 512: 32}  # by BLOCK_R: rays of nearly square tiles of an image meet the same bricks
_INTERPRETED_BLOCK_R = 512  # the interpreter takes as long for 512 rays as for 1,
_INTERPRETED_NARROW = 64  # and as long for 64 channels


class Blocks(NamedTuple):
    """How a kernel divides its work. One warp walks BLOCK_R rays, one a lane: asking them all a question is cheap."""

    sizes: dict[str, int]  # the kernel's block sizes by name
    tiles: int  # blocks of rays
    chunks: int  # blocks of channels
    width: int  # rays in a row of the image, or all


def blocks(num_rays: int, channels: int, image_width: int, wide: bool = False) -> Blocks:
    """Fixed sizes by the number of channels; ``wide``: each block of channels is a program of its own."""
    narrow = _INTERPRETED_NARROW if INTERPRETED else _NARROW
    if not INTERPRETED and channels % _NARROW != 0:
        narrow = 4 if channels % 4 == 0 else 1  # rows without vector loads: a lane a row, handed from nobody to nobody
    block_c = min(triton.next_power_of_2(max(channels, 1)), _WIDE if wide else narrow)
    block_r = _INTERPRETED_BLOCK_R if INTERPRETED else min(_WARP, _BLOCK_ELEMENTS // block_c)
    width, tile_x = (image_width, _TILE_X[block_r]) if 0 < image_width < num_rays else (num_rays, block_r)
    rows = triton.cdiv(num_rays, width)
    return Blocks(
        {"BLOCK_R": block_r, "BLOCK_C": block_c, "TILE_X": tile_x},
        triton.cdiv(width, tile_x) * triton.cdiv(rows, block_r // tile_x),
        max(triton.cdiv(channels, block_c), 1),
        width,
    )


def grid_view(
    directory: Tensor,  # [Dx, Dy, Dz] int32
    pages: Tensor,  # [P, 512] int32
    page_origin: Sequence[int],
    grid_origin: Sequence[float],
    voxel_size: float,
) -> Grid:
    check_tensor("directory", directory, (None, None, None), (torch.int32,))
    check_tensor("pages", pages, (None, _PAGE_VOLUME), (torch.int32,))
    return Grid(
        directory,
        pages,
        tuple(4 * n + 2 for n in directory.shape),
        tuple(4 * n + 2 for n in page_origin),
        tuple(map(single, grid_origin)),
        single(voxel_size),
    )


def index_type(num_voxels: int) -> tl.dtype:
    """What kernels keep the 8 rows of a cell in: half the registers while rows are fewer than 2^31."""
    return tl.int32 if num_voxels < 2**31 else tl.int64


def device_of(tensor: Tensor) -> AbstractContextManager:
    """Kernels are launched on the current device: makes it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def single(value: float) -> float:
    """The number rounded to float32, as a compiled kernel receives it; the interpreter would compute with all of it."""
    return ctypes.c_float(value).value


def check_tensor(
    name: str,
    tensor: Tensor,
    shape: Sequence[int | None],  # None: any size
    dtypes: Sequence[torch.dtype] = (torch.float32,),
) -> None:
    """Raises a ValueError unless the tensor is contiguous, of one of these types and of this shape."""
    fits = tensor.ndim == len(shape) and all(n in (m, None) for m, n in zip(tensor.shape, shape))
    if not fits:
        raise ValueError(
            f"{name}: expected shape {['any' if n is None else n for n in shape]}, got {list(tensor.shape)}"
        )
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name}: expected {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}")
