"""Tensors [B, N, rows, width] with any strides but the last: tiles of their rows as pieces that matrix units take."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .sphere_attention_configs import pieces

VECTOR_BYTES = 16  # of one load


class Rows(NamedTuple):
    """A tensor [B, N, rows, width] whose last dimension is contiguous; strides in units of `unit_of`."""

    pointer: Tensor
    batch_stride: int
    head_stride: int
    row_stride: int


def unit_of(*tensors: Tensor) -> int:
    """Elements of a 16-byte vector if every row of these tensors is made of whole ones, else 1."""
    unit = VECTOR_BYTES // tensors[0].element_size()
    strides = (stride for tensor in tensors for stride, size in zip(tensor.stride()[:-1], tensor.shape) if size > 1)
    return 1 if any(stride % unit for stride in strides) else unit


def whole_vectors(
    rows: Tensor,  # [B, N, rows, width]
) -> Tensor:
    """The tensor, copied where its rows do not start on 16 bytes: a load of 2 bytes could not run ahead of its use."""
    unit = VECTOR_BYTES // rows.itemsize
    if rows.data_ptr() % VECTOR_BYTES == 0 and unit_of(rows) == unit:
        return rows
    width = rows.shape[3]
    return rows.new_empty(*rows.shape[:3], triton.cdiv(width, unit) * unit)[..., :width].copy_(rows)


def rows_of(tensor: Tensor, unit: int) -> Rows:
    """The tensor for a kernel; Triton finds out about the alignment of its start by itself."""
    strides = zip(tensor.stride()[:-1], tensor.shape)
    return Rows(tensor, *(stride // unit if size > 1 else 0 for stride, size in strides))


@triton.jit
def rows_from(
    of_head,  # from head_rows
    first,
    UNIT: tl.constexpr,
):
    """The rows from this one on. In a loop it is cheaper to move the start than every row's place."""
    pointer, stride = of_head
    return pointer + first.to(tl.int64) * stride * UNIT, stride


@triton.constexpr_function
def piece_start(width, index):
    return sum(pieces(width)[:index])


@triton.constexpr_function
def piece_width(width, index):
    return pieces(width)[index]


@triton.constexpr_function
def is_whole(width, index):
    """Whether the row reaches the end of this piece."""
    return piece_start(width, index + 1) <= width


@triton.jit
def head_rows(
    rows,  # Rows
    batch,  # int64
    head,  # int64
    UNIT: tl.constexpr,
):
    """(pointer, row stride): the rows of one head."""
    return rows.pointer + (batch * rows.batch_stride + head * rows.head_stride) * UNIT, rows.row_stride


@triton.jit
def zero_pieces(
    M: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A tile [M, WIDTH] of zeros in pieces, float32."""
    result = ()
    for i in tl.static_range(len(pieces(WIDTH))):
        result += (tl.zeros([M, piece_width(WIDTH, i)], tl.float32),)
    return result


@triton.jit
def piece_pointers(
    of_head,  # from head_rows
    row,  # [M]
    column,  # [W]
    UNIT: tl.constexpr,
):
    """[M, W]."""
    pointer, stride = of_head
    return pointer + (row.to(tl.int64) * (stride * UNIT))[:, None] + column[None, :]


@triton.jit
def load_pieces(
    of_head,  # from head_rows
    row,  # [M]
    exists,  # [M] bool, or None: all
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
):
    """A tile [M, WIDTH] in pieces, 0 where there is no row or column."""
    result = ()
    for i in tl.static_range(len(pieces(WIDTH))):
        column = piece_start(WIDTH, i) + tl.arange(0, piece_width(WIDTH, i))
        pointers = piece_pointers(of_head, row, column, UNIT)
        if exists is None:
            if is_whole(WIDTH, i):
                result += (tl.load(pointers),)
            else:
                result += (tl.load(pointers, mask=(column < WIDTH)[None, :], other=0.0),)
        elif is_whole(WIDTH, i):
            result += (tl.load(pointers, mask=exists[:, None], other=0.0),)
        else:
            result += (tl.load(pointers, mask=exists[:, None] & (column < WIDTH)[None, :], other=0.0),)
    return result
