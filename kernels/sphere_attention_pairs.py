"""What sphere_attention's kernels do with the tokens of a pair of tiles."""

from __future__ import annotations

import triton
import triton.language as tl

from .matmul import dot, narrow
from .token_rows import load_pieces, piece_pointers, piece_start, piece_width, rows_from

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def tile_rows(
    places,  # Places
    tile,
    BLOCK: tl.constexpr,
):
    """[BLOCK]: the tokens of a tile; where there is none, the last one again, as a mask would cost registers."""
    place = tl.minimum(tile * BLOCK + tl.arange(0, BLOCK), places.num_tokens - 1)
    return place if places.order is None else tl.load(places.order + place)


@triton.jit
def load_columns(
    columns,  # [P, E] of the head
    tile,
    BLOCK: tl.constexpr,
    E: tl.constexpr,
):
    """Pieces of [BLOCK, E]: the tile's columns of the bias, nothing if there is none."""
    if E > 0:
        return load_pieces((columns + tile * (BLOCK * E), 1), tl.arange(0, BLOCK), None, E, E)
    else:
        return ()


@triton.jit
def store_tile(
    of_head,  # from head_rows
    places,  # Places
    tile,
    values,  # pieces of [BLOCK, D] float32
    scale,
    D: tl.constexpr,
    WIDTH: tl.constexpr,  # of the rows in memory, at most D
    UNIT: tl.constexpr,
):
    # Counted from the tile's first token: what the loads before the loop have found would be held through the loop.
    first = tile * values[0].shape[0]
    row = tl.arange(0, values[0].shape[0])
    exists = row < places.num_tokens - first
    if places.order is None:
        of_head = rows_from(of_head, first, UNIT)
    else:
        row = tl.load(places.order + first + row, mask=exists, other=0)
    for i in tl.static_range(len(values)):
        column = piece_start(D, i) + tl.arange(0, piece_width(D, i))
        pointers = piece_pointers(of_head, row, column, UNIT)
        numbers = narrow(values[i] * scale, pointers.dtype.element_ty)
        tl.store(pointers, numbers, mask=exists[:, None] & (column < WIDTH)[None, :])


@triton.jit
def products(
    a,  # [M, K] float32
    b,  # pieces of [K, WIDTH]
    totals,  # pieces of [M, WIDTH] float32
    PRECISION: tl.constexpr,
):
    """totals + a b."""
    result = ()
    for i in tl.static_range(len(b)):
        result += (dot(narrow(a, b[i].dtype), b[i], totals[i], PRECISION),)
    return result


@triton.jit
def dots(
    a,  # pieces of [M, WIDTH]
    b,  # pieces of [N, WIDTH]
    PRECISION: tl.constexpr,
):
    """[M, N] float32: a b^T."""
    total = tl.zeros([a[0].shape[0], b[0].shape[0]], tl.float32)
    for i in tl.static_range(len(a)):
        total = dot(a[i], tl.trans(b[i]), total, PRECISION)
    return total


@triton.jit
def probabilities(
    s,  # [M, N] logits before the scale
    factor,  # the scale's size; times log2 e unless EXACT
    log_sum,  # [1, N] or [M, 1] lse; times log2 e unless EXACT
    EXACT: tl.constexpr,
):
    """[M, N] exp(s_ij - lse_i). Where it matters the multiplication waits until large numbers have cancelled."""
    if EXACT:
        return tl.exp2((s * factor - log_sum) * LOG2_E)
    else:
        return tl.exp2(s * factor - log_sum)


@triton.jit
def load_signed(
    of_head,  # from head_rows
    row,  # [M]
    SIGN: tl.constexpr,  # 1, -1 or 0
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Pieces of [M, WIDTH], times SIGN."""
    pieces = load_pieces(of_head, row, None, WIDTH, UNIT)
    if SIGN == 1:
        return pieces
    else:
        result = ()
        for i in tl.static_range(len(pieces)):
            result += (narrow(pieces[i].to(tl.float32) * SIGN, pieces[i].dtype),)
        return result
