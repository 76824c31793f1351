"""sphere_attention: one program takes a tile of queries through the keys, its softmax renormalised on the way."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import FEATURE_TYPES, check_tensor, device_of, single
from .sphere_attention_columns import EMPTY, MASKED, columns_of, key_places, query_places, split_scale
from .sphere_attention_configs import capability_of, config, exact
from .sphere_attention_pairs import LOG2_E, dots, load_columns, load_signed, products, store_tile, tile_rows
from .sphere_attention_tiles import tile_lists
from .token_rows import head_rows, load_pieces, rows_from, rows_of, unit_of, whole_vectors, zero_pieces

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_directions(
    directions,  # [3, P]
    place,  # [M]
    num_places,
):
    """3 x [M]."""
    at = directions + place
    return tl.load(at), tl.load(at + num_places), tl.load(at + 2 * num_places)


@triton.jit
def chord2(
    x,  # 3 x [L]
    y,  # 3 x [S]
):
    """[L, S]: squared distances through the sphere."""
    a = x[0][:, None] - y[0][None, :]
    b = x[1][:, None] - y[1][None, :]
    c = x[2][:, None] - y[2][None, :]
    return a * a + b * b + c * c


@triton.jit
def attend(
    state,  # (top [L], total [L], sums: pieces of [L, Dv])
    q,  # pieces of [L, D], then of the columns [L, E]
    x,  # 3 x [L], or None: no key is too far
    key,  # from head_rows
    value,  # from head_rows
    keys,  # Places
    tile,
    factor,
    max_chord2,
    TAIL: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    E: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The state after one more tile of keys. Only a TAIL may lack keys; their columns mask them if there are any."""
    top, total, sums = state
    row = tl.arange(0, BLOCK_S)
    first = tile * BLOCK_S
    exists = first + row < keys.num_tokens if TAIL else None
    k = load_pieces(rows_from(key, first, UNIT), row, exists, D, UNIT)
    s = dots(q, k + load_columns(keys.columns, tile, BLOCK_S, E), PRECISION)
    if TAIL and E == 0:
        s = tl.where((first + row < keys.num_tokens)[None, :], s, MASKED)
    if x is not None:
        y = load_directions(keys.directions, first + row, keys.num_places)
        s = tl.where(chord2(x, y) > max_chord2, MASKED, s)
    higher = tl.maximum(top, tl.max(s, 1) * factor)
    p = tl.exp2(s * factor - higher[:, None])
    shrink = tl.exp2(top - higher)
    shrunk = ()
    for i in tl.static_range(len(sums)):
        shrunk += (sums[i] * shrink[:, None],)
    v = load_pieces(rows_from(value, first, UNIT), row, exists, DV, UNIT)
    return higher, total * shrink + tl.sum(p, 1), products(p, v, shrunk, PRECISION)


@triton.jit(do_not_specialize=["heads", "factor", "max_chord2"])
def sphere_attention_forward_kernel(
    query,  # Rows [B, N, L, D]
    key,  # Rows [B, N, S, D], by place
    value,  # Rows [B, N, S, Dv], by place
    output,  # Rows [B, N, L, Dv]
    lse,  # [B, N, L]
    queries,  # Places
    keys,  # Places
    zonal,  # [N, K + 1] or None
    lists,  # TileLists of key tiles, or None: all
    heads,
    factor,  # the scale's size times log2 e
    max_chord2,
    SIGN: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    E: tl.constexpr,
    ZONAL: tl.constexpr,  # K + 1
    UNIT: tl.constexpr,
    OUTPUT_UNIT: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # What: attention with a bias by the angle between query and key, and the logarithms of its softmax's sums.
    # Maths: s_ij = |scale| (sign q_i.k_j + columns_i.columns_j); output = softmax(s) v; lse_i = log sum_j exp(s_ij) +
    #   zonal[n, 0]. By tiles: p = 2^(s log2 e - top), total += p, sums += p v, both shrunk whenever top rises.
    # Gradient: sphere_attention_backward makes p again from lse.
    # Mapping: a program a tile of a head's queries; those of a head follow each other and share its keys in the cache.
    # Memory: queries read once, keys and values of every tile met once a program; outputs written once.
    tiles = tl.cdiv(queries.num_tokens, BLOCK_L)
    tile = tl.program_id(0) % tiles
    batch = (tl.program_id(0) // tiles // heads).to(tl.int64)
    head = (tl.program_id(0) // tiles % heads).to(tl.int64)
    row = tile_rows(queries, tile, BLOCK_L)
    q = load_signed(head_rows(query, batch, head, UNIT), row, SIGN, D, UNIT)
    if E > 0:
        q += load_columns(queries.columns + head * queries.head_stride, tile, BLOCK_L, E)
    key = head_rows(key, batch, head, UNIT)
    value = head_rows(value, batch, head, UNIT)
    state = (tl.full([BLOCK_L], EMPTY, tl.float32), tl.zeros([BLOCK_L], tl.float32), zero_pieces(BLOCK_L, DV))
    if lists is None:
        whole = keys.num_tokens // BLOCK_S
        for i in range(0, whole):
            state = attend(
                state, q, None, key, value, keys, i, factor, max_chord2, False, D, DV, E, UNIT, BLOCK_S, PRECISION
            )
        if whole * BLOCK_S < keys.num_tokens:
            last = tl.full([], whole, tl.int32)
            state = attend(
                state, q, None, key, value, keys, last, factor, max_chord2, True, D, DV, E, UNIT, BLOCK_S, PRECISION
            )
    else:
        met = lists.tiles + tile.to(tl.int64) * lists.width
        inside = tl.load(lists.inside + tile)
        for i in range(0, inside):
            state = attend(
                state, q, None, key, value, keys, tl.load(met + i), factor, max_chord2,
                False, D, DV, E, UNIT, BLOCK_S, PRECISION,
            )  # fmt: skip
        x = load_directions(queries.directions, tile * BLOCK_L + tl.arange(0, BLOCK_L), queries.num_places)
        for i in range(inside, tl.load(lists.met + tile)):
            state = attend(
                state, q, x, key, value, keys, tl.load(met + i), factor, max_chord2,
                True, D, DV, E, UNIT, BLOCK_S, PRECISION,
            )  # fmt: skip
    top, total, sums = state
    alone = total == 0.0
    total = tl.where(alone, 1.0, total)
    mean = ()
    for i in tl.static_range(len(sums)):
        mean += (sums[i] * (1.0 / total)[:, None],)
    store_tile(head_rows(output, batch, head, OUTPUT_UNIT), queries, tile, mean, 1.0, DV, DV, OUTPUT_UNIT)
    logarithm = (top + tl.log2(total)) * LN_2
    if zonal is not None:
        logarithm += tl.load(zonal + head * ZONAL)
    first = tile * BLOCK_L
    row = tl.arange(0, BLOCK_L)
    exists = row < queries.num_tokens - first
    lse += (batch * heads + head) * queries.num_tokens
    if queries.order is None:
        lse += first
    else:
        row = tl.load(queries.order + first + row, mask=exists, other=0)
    tl.store(lse + row, tl.where(alone, float("-inf"), logarithm), mask=exists)


def sphere_attention(
    query: Tensor,  # [B, N, L, D]
    key: Tensor,  # [B, N, S, D]
    value: Tensor,  # [B, N, S, Dv]
    query_directions: Tensor,  # [L, 3]
    key_directions: Tensor,  # [S, 3]
    zonal: Tensor | None,  # [N, K + 1]
    key_log_weight: Tensor | None,  # [S]
    query_order: Tensor | None,  # [L] int32
    key_order: Tensor | None,  # [S] int32
    radius: float | None,  # radians
    scale: float,
) -> tuple[Tensor, Tensor]:  # [B, N, L, Dv], [B, N, L]
    """Output, in memory [B, L, N, Dv], and lse."""
    check_inputs(query, key, value, query_directions, key_directions, zonal, key_log_weight)
    batch, heads, queries, width = query.shape
    value_width = value.shape[3]
    output = query.new_empty(batch, queries, heads, value_width).transpose(1, 2)
    lse = query_directions.new_empty(batch, heads, queries)
    if lse.numel() == 0:
        return output, lse
    with device_of(query):
        if key_order is not None:
            key, value = key.index_select(2, key_order), value.index_select(2, key_order)
        query, key, value = whole_vectors(query), whole_vectors(key), whole_vectors(value)
        precise, ranged = exact(query.dtype), radius is not None
        work = config(max(width, value_width), query.dtype, capability_of(query.device), ranged)
        sign, size = split_scale(scale)
        columns = columns_of(zonal, key_log_weight, precise)
        at = query_places(query_directions, query_order, zonal, size, columns, ranged)
        keys = key_places(key_directions, key_order, key_log_weight, size, columns, ranged)
        max_chord2 = single(4 * math.sin(radius / 2) ** 2) if ranged else 0.0
        unit = unit_of(query, key, value)
        sphere_attention_forward_kernel[(triton.cdiv(queries, work.block_l) * batch * heads,)](
            rows_of(query, unit),
            rows_of(key, unit),
            rows_of(value, unit),
            rows_of(output, unit_of(output)),
            lse,
            at,
            keys,
            zonal,
            tile_lists(at, work.block_l, keys, work.block_s, max_chord2) if ranged else None,
            heads,
            single(size * LOG2_E.value),
            max_chord2,
            SIGN=sign,
            D=width,
            DV=value_width,
            E=columns.width,
            ZONAL=0 if zonal is None else zonal.shape[1],
            UNIT=unit,
            OUTPUT_UNIT=unit_of(output),
            BLOCK_L=work.block_l,
            BLOCK_S=work.block_s,
            PRECISION="ieee" if precise else "tf32",
            num_warps=work.num_warps,
            num_stages=work.num_stages,
        )
    return output, lse


def check_inputs(
    query: Tensor,  # [B, N, L, D]
    key: Tensor,  # [B, N, S, D]
    value: Tensor,  # [B, N, S, Dv]
    query_directions: Tensor,  # [L, 3]
    key_directions: Tensor,  # [S, 3]
    zonal: Tensor | None,  # [N, K + 1]
    key_log_weight: Tensor | None,  # [S]
) -> None:
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    check_rows("query", query, (batch, heads, queries, width), query.dtype)
    check_rows("key", key, (batch, heads, keys, width), query.dtype)
    check_rows("value", value, (batch, heads, keys, value.shape[3]), query.dtype)
    check_tensor("query_directions", query_directions, (queries, 3))
    check_tensor("key_directions", key_directions, (keys, 3))
    if zonal is not None:
        check_tensor("zonal", zonal, (heads, None))
    if key_log_weight is not None:
        check_tensor("key_log_weight", key_log_weight, (keys,))


def check_rows(name: str, rows: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raises a ValueError unless the tensor has this shape and dtype, float32 or narrower, and contiguous rows."""
    if rows.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(rows.shape)}")
    if rows.dtype != dtype or dtype not in FEATURE_TYPES:
        raise ValueError(f"{name}: expected {' or '.join(map(str, FEATURE_TYPES))} as query, got {rows.dtype}")
    if rows.numel() and rows.stride(-1) != 1:
        raise ValueError(f"{name}: expected contiguous rows, got strides {rows.stride()}")
