"""The gradients of sphere_attention: probabilities are made again tile by tile, by one kernel for what is summed over
queries and one for what is summed over keys, so that every sum has one owner and an order fixed by the shapes."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import check_tensor, device_of, single
from .sphere_attention import check_inputs, check_rows
from .sphere_attention_backward_configs import backward_config
from .sphere_attention_backward_key import sphere_attention_backward_key_kernel
from .sphere_attention_backward_query import sphere_attention_backward_query_kernel
from .sphere_attention_columns import Columns, columns_of, key_places, query_places, split_scale
from .sphere_attention_configs import Config, capability_of, exact
from .sphere_attention_pairs import LOG2_E, tile_rows
from .sphere_attention_tiles import tile_lists
from .token_rows import VECTOR_BYTES, head_rows, load_pieces, rows_of, unit_of

_DELTA_BLOCK = 64
_MAX_GRID = 65535  # programs along the third axis
_WIDTHS = (16, 32, 64, 80, 96, 128)  # of rows that the kernels read


@triton.jit(do_not_specialize=["heads"])
def sphere_attention_delta_kernel(
    output,  # Rows [B, N, L, Dv]
    d_output,  # Rows [B, N, L, Dv]
    lse,  # [B, N, L]
    d_lse,  # [B, N, L]
    zonal,  # [N, K + 1] or None
    log_sum,  # [B, N, P] by place
    delta,  # [B, N, P] by place
    queries,  # Places
    heads,
    ZONAL: tl.constexpr,  # K + 1
    DV: tl.constexpr,
    EXACT: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # What: by place, the two numbers of a query that all of its pairs need.
    # Maths: delta_i = d_output_i . output_i - d_lse_i; log_sum_i = lse_i - zonal_0, as P_0 is not in the logits, times
    #   log2 e unless EXACT.
    # Gradient: log_sum is inf where there is no query or the query has no key, so that its probabilities are 0.
    # Mapping: a program a block of places of a batch's head.
    # Memory: rows of output and d_output read once; two floats a place written.
    tiles = queries.num_places // BLOCK
    tile = tl.program_id(0) % tiles
    pair = (tl.program_id(0) // tiles).to(tl.int64)
    batch = pair // heads
    head = pair % heads
    row = tile_rows(queries, tile, BLOCK)
    place = tile * BLOCK + tl.arange(0, BLOCK)
    out = load_pieces(head_rows(output, batch, head, UNIT), row, None, DV, UNIT)
    d_out = load_pieces(head_rows(d_output, batch, head, UNIT), row, None, DV, UNIT)
    found = -tl.load(d_lse + pair * queries.num_tokens + row)
    for i in tl.static_range(len(out)):
        found += tl.sum(out[i].to(tl.float32) * d_out[i].to(tl.float32), 1)
    this_lse = tl.load(lse + pair * queries.num_tokens + row)
    counts = (place < queries.num_tokens) & (this_lse != float("-inf"))
    if zonal is not None:
        this_lse -= tl.load(zonal + head * ZONAL)
    if not EXACT:
        this_lse *= LOG2_E
    tl.store(log_sum + pair * queries.num_places + place, tl.where(counts, this_lse, float("inf")))
    tl.store(delta + pair * queries.num_places + place, tl.where(counts, found, 0.0))


def sphere_attention_backward(
    d_output: Tensor,  # [B, N, L, Dv]
    d_lse: Tensor,  # [B, N, L]
    output: Tensor,  # [B, N, L, Dv]
    lse: Tensor,  # [B, N, L]
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
    wants_query: bool,
    wants_key_value: bool,
    wants_zonal: bool,
    wants_key_log_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients by query, key, value, zonal and key_log_weight; an empty tensor for those that are not wanted."""
    check_inputs(query, key, value, query_directions, key_directions, zonal, key_log_weight)
    batch, heads, num_queries, width = query.shape
    num_keys, value_width = value.shape[2:]
    for name, rows in (("output", output), ("d_output", d_output)):
        check_rows(name, rows, (batch, heads, num_queries, value_width), query.dtype)
    for name, numbers in (("lse", lse), ("d_lse", d_lse)):
        check_tensor(name, numbers, (batch, heads, num_queries))
    d_query = _gradient(query, num_queries, width) if wants_query else None
    d_key = _gradient(query, num_keys, width) if wants_key_value else None
    d_value = _gradient(query, num_keys, value_width) if wants_key_value else None

    query, key, value, output, d_output = map(_whole, (query, key, value, output, d_output))
    unit = unit_of(query, key, value, output, d_output)
    precise, ranged = exact(query.dtype), radius is not None
    columns = columns_of(zonal, key_log_weight, precise)
    by_columns = wants_zonal and columns.degree > 0
    sign, size = split_scale(scale)
    max_chord2 = single(4 * math.sin(radius / 2) ** 2) if ranged else 0.0
    with device_of(query):
        queries = query_places(query_directions, query_order, zonal, size, columns, ranged, by_columns)
        keys = key_places(key_directions, key_order, key_log_weight, size, columns, ranged)
        log_sum, delta = lse.new_empty(2, batch, heads, queries.num_places)
        if log_sum.numel():
            sphere_attention_delta_kernel[(log_sum.numel() // _DELTA_BLOCK,)](
                rows_of(output, unit),
                rows_of(d_output, unit),
                lse,
                d_lse,
                zonal,
                log_sum,
                delta,
                queries,
                heads,
                ZONAL=0 if zonal is None else zonal.shape[1],
                DV=value.shape[3],
                EXACT=precise,
                UNIT=unit,
                BLOCK=_DELTA_BLOCK,
            )
        inputs = *(rows_of(rows, unit) for rows in (query, key, value, d_output)), log_sum, delta
        scales = single(size if precise else size * LOG2_E.value), single(scale), max_chord2
        constants = {
            "SIGN": sign,
            "D": query.shape[3],
            "DV": value.shape[3],
            "E": columns.width,
            "UNIT": unit,
            "PRECISION": "ieee" if precise else "tf32",
        }
        out_unit = 1 if width % unit or value_width % unit else unit
        batches = range(0, batch if heads else 0, _MAX_GRID)
        wider, capability = max(width, value_width), capability_of(query.device)

        by_place = lse.new_empty(batch, heads, keys.num_places) if wants_key_log_weight else None
        if num_keys and (wants_key_value or wants_key_log_weight):
            work = backward_config("key", wider, query.dtype, capability, ranged)
            lists = tile_lists(keys, work.block_s, queries, work.block_l, max_chord2) if ranged else None
            for first in batches:
                grid = triton.cdiv(num_keys, work.block_s), heads, min(batch - first, _MAX_GRID)
                sphere_attention_backward_key_kernel[grid](
                    *inputs,
                    rows_of(d_key, out_unit) if wants_key_value else None,
                    rows_of(d_value, out_unit) if wants_key_value else None,
                    by_place,
                    queries,
                    keys,
                    lists,
                    heads,
                    first,
                    *scales,
                    **constants,
                    OUT_D=width,
                    OUT_DV=value_width,
                    OUT_UNIT=out_unit,
                    WANTS_KEY_VALUE=wants_key_value,
                    WANTS_LOG_WEIGHT=wants_key_log_weight,
                    **_launch_options(work),
                )

        work = backward_config("query", wider, query.dtype, capability, ranged)
        tiles = triton.cdiv(num_queries, work.block_l)
        by_tile = lse.new_empty(batch, heads, tiles, columns.width) if by_columns else None
        if tiles and (wants_query or by_columns):
            lists = tile_lists(queries, work.block_l, keys, work.block_s, max_chord2) if ranged else None
            for first in batches:
                sphere_attention_backward_query_kernel[tiles, heads, min(batch - first, _MAX_GRID)](
                    *inputs,
                    rows_of(d_query, out_unit) if wants_query else None,
                    by_tile,
                    queries,
                    keys,
                    lists,
                    heads,
                    first,
                    *scales,
                    **constants,
                    OUT_D=width,
                    OUT_UNIT=out_unit,
                    WANTS_QUERY=wants_query,
                    WANTS_ZONAL=by_columns,
                    **_launch_options(work),
                )
    d_zonal = _zonal_gradient(zonal, lse, d_lse, by_tile, columns) if wants_zonal else None
    d_log_weight = _in_order(by_place.sum((0, 1))[:num_keys], key_order) if wants_key_log_weight else None
    found = (d_query, d_key, d_value, d_zonal, d_log_weight)
    kinds = (query, query, query, lse, lse)
    return tuple(kind.new_empty(0) if gradient is None else gradient for kind, gradient in zip(kinds, found))


def _gradient(like: Tensor, rows: int, width: int) -> Tensor:  # [B, N, rows, width]
    """Memory [B, rows, N, width]: merging the heads afterwards is free."""
    return like.new_empty(like.shape[0], rows, like.shape[1], width).transpose(1, 2)


def _launch_options(work: Config) -> dict[str, int]:
    sizes = {"BLOCK_L": work.block_l, "BLOCK_S": work.block_s}
    return {**sizes, "num_warps": work.num_warps, "num_stages": work.num_stages}


def _whole(rows: Tensor) -> Tensor:  # [B, N, rows, width]
    """The tensor, or a copy with zeros in the end, whose rows are one or two whole pieces and start on 16 bytes: loads
    without a mask take fewer registers, and a load of 2 bytes could not run ahead of its use."""
    width = next(known for known in _WIDTHS if known >= rows.shape[3])
    if width == rows.shape[3] and rows.data_ptr() % VECTOR_BYTES == 0 and unit_of(rows) > 1:
        return rows
    copy = rows.new_zeros(*rows.shape[:3], width)
    copy[..., : rows.shape[3]] = rows
    return copy


def _zonal_gradient(
    zonal: Tensor,  # [N, K + 1]
    lse: Tensor,  # [B, N, L]
    d_lse: Tensor,  # [B, N, L]
    by_tile: Tensor | None,  # [B, N, T, E], None for degree 0
    columns: Columns,
) -> Tensor:  # [N, K + 1]
    """Adds up tiles, and of a degree all columns. P_0 moves lse alone: its strength's gradient is the sum of d_lse."""
    result = torch.empty_like(zonal)
    result[:, 0] = d_lse.masked_fill(lse == -torch.inf, 0).sum((0, 2))
    if by_tile is not None:
        by_column = by_tile.sum((0, 2))  # [N, E]
        of_harmonic = by_column[:, : columns.parts * columns.harmonics].unflatten(1, (columns.parts, -1)).sum(1)
        for degree in range(1, columns.degree + 1):
            result[:, degree] = of_harmonic[:, degree**2 - 1 : (degree + 1) ** 2 - 1].sum(1)
    return result


def _in_order(
    by_place: Tensor,  # [S]
    order: Tensor | None,  # [S] int32
) -> Tensor:  # [S]
    return by_place if order is None else torch.empty_like(by_place).index_copy_(0, order.long(), by_place)
