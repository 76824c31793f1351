"""The gradients of sphere_attention that are sums over queries: those of key, value and key_log_weight."""

from __future__ import annotations

import triton
import triton.language as tl

from .sphere_attention import chord2, load_directions
from .sphere_attention_pairs import dots, load_columns, load_signed, probabilities, products, store_tile, tile_rows
from .token_rows import head_rows, load_pieces, zero_pieces


@triton.jit
def add_query_tile(
    sums,  # d_key and d_value, pieces of [S, D] and [S, Dv], and d_key_log_weight [S], float32
    k,  # pieces [S, W] and columns
    v,  # pieces [S, W]
    y,  # 3 x [S], or None
    query,  # from head_rows
    d_output,  # from head_rows
    log_sum,  # [P] of the head
    delta,  # [P] of the head
    columns,  # [P, E] of the head
    queries,  # Places
    tile,
    factor,
    max_chord2,
    D: tl.constexpr,
    DV: tl.constexpr,
    E: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_L: tl.constexpr,
    PRECISION: tl.constexpr,
    WANTS_KEY_VALUE: tl.constexpr,
    WANTS_LOG_WEIGHT: tl.constexpr,
):
    """Adds what a tile of queries gives. Products are keys by queries: the result of one is the first factor of the
    next as it lies in registers."""
    d_key, d_value, d_log_weight = sums
    row = tile_rows(queries, tile, BLOCK_L)
    place = tile * BLOCK_L + tl.arange(0, BLOCK_L)
    q = load_pieces(query, row, None, D, UNIT)
    d_out = load_pieces(d_output, row, None, DV, UNIT)
    q_columns = load_columns(columns, tile, BLOCK_L, E)
    shift = tl.load(log_sum + place)
    s = dots(k, q + q_columns, PRECISION)
    if y is not None:
        x = load_directions(queries.directions, place, queries.num_places)
        s = tl.where(chord2(y, x) > max_chord2, float("-inf"), s)
    p = probabilities(s, factor, shift[None, :], PRECISION == "ieee")
    d_p = dots(v, d_out, PRECISION)
    if WANTS_KEY_VALUE:
        d_value = products(p, d_out, d_value, PRECISION)
    # delta is loaded here, not with the rest: its registers would be held through the products above.
    d_s = p * (d_p - tl.load(delta + place)[None, :])
    if WANTS_LOG_WEIGHT:
        d_log_weight += tl.sum(d_s, 1)
    if WANTS_KEY_VALUE:
        d_key = products(d_s, q, d_key, PRECISION)
    return d_key, d_value, d_log_weight


@triton.jit(do_not_specialize=["heads", "first_batch", "factor", "scale", "max_chord2"])
def sphere_attention_backward_key_kernel(
    query,  # Rows [B, N, L, D], with zeros beyond its own width OUT_D; the others alike
    key,  # Rows [B, N, S, D]
    value,  # Rows [B, N, S, Dv]
    d_output,  # Rows [B, N, L, Dv]
    log_sum,  # [B, N, P] by place
    delta,  # [B, N, P] by place
    d_key,  # Rows [B, N, S, OUT_D]
    d_value,  # Rows [B, N, S, OUT_DV]
    d_log_weight,  # [B, N, P] by place
    queries,  # Places
    keys,  # Places
    lists,  # TileLists of query tiles, or None: all
    heads,
    first_batch,
    factor,  # see probabilities
    scale,
    max_chord2,
    SIGN: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    E: tl.constexpr,
    UNIT: tl.constexpr,
    OUT_D: tl.constexpr,
    OUT_DV: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
    WANTS_KEY_VALUE: tl.constexpr,
    WANTS_LOG_WEIGHT: tl.constexpr,
):
    # What: d_key, d_value and, for each batch's head, d_key_log_weight of a tile of keys.
    # Maths: p_ij = exp(s_ij - lse_i), dS_ij = p_ij (d_output_i . v_j - delta_i); d_key = scale dS^T query,
    #   d_value = p^T d_output, d_key_log_weight = the sums of dS over i.
    # Gradient: this is it; sums over j are those of the query's kernel.
    # Mapping: axis 0, tiles of BLOCK_S keys, which share a head's queries; 1, heads; 2, batches.
    # Memory: its keys once, queries of every tile met through the cache; each result written once, nothing added to.
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64) + first_batch
    pair = batch * heads + head
    row = tile_rows(keys, tile, BLOCK_S)
    place = tile * BLOCK_S + tl.arange(0, BLOCK_S)
    k = load_signed(head_rows(key, batch, head, UNIT), row, SIGN, D, UNIT)
    k += load_columns(keys.columns, tile, BLOCK_S, E)
    v = load_pieces(head_rows(value, batch, head, UNIT), row, None, DV, UNIT)
    query = head_rows(query, batch, head, UNIT)
    d_output = head_rows(d_output, batch, head, UNIT)
    log_sum += pair * queries.num_places
    delta += pair * queries.num_places
    columns = queries.columns + head * queries.head_stride if E > 0 else None
    sums = (zero_pieces(BLOCK_S, D), zero_pieces(BLOCK_S, DV), tl.zeros([BLOCK_S], tl.float32))
    if lists is None:
        for i in range(0, tl.cdiv(queries.num_tokens, BLOCK_L)):
            sums = add_query_tile(
                sums, k, v, None, query, d_output, log_sum, delta, columns, queries, i, factor, max_chord2,
                D, DV, E, UNIT, BLOCK_L, PRECISION, WANTS_KEY_VALUE, WANTS_LOG_WEIGHT,
            )  # fmt: skip
    else:
        met = lists.tiles + tile.to(tl.int64) * lists.width
        inside = tl.load(lists.inside + tile)
        for i in range(0, inside):
            sums = add_query_tile(
                sums, k, v, None, query, d_output, log_sum, delta, columns, queries, tl.load(met + i), factor,
                max_chord2, D, DV, E, UNIT, BLOCK_L, PRECISION, WANTS_KEY_VALUE, WANTS_LOG_WEIGHT,
            )  # fmt: skip
        y = load_directions(keys.directions, place, keys.num_places)
        for i in range(inside, tl.load(lists.met + tile)):
            sums = add_query_tile(
                sums, k, v, y, query, d_output, log_sum, delta, columns, queries, tl.load(met + i), factor, max_chord2,
                D, DV, E, UNIT, BLOCK_L, PRECISION, WANTS_KEY_VALUE, WANTS_LOG_WEIGHT,
            )  # fmt: skip
    by_key, by_value, by_log_weight = sums
    if WANTS_KEY_VALUE:
        store_tile(head_rows(d_key, batch, head, OUT_UNIT), keys, tile, by_key, scale, D, OUT_D, OUT_UNIT)
        store_tile(head_rows(d_value, batch, head, OUT_UNIT), keys, tile, by_value, 1.0, DV, OUT_DV, OUT_UNIT)
    if WANTS_LOG_WEIGHT:
        tl.store(d_log_weight + pair * keys.num_places + place, by_log_weight)
