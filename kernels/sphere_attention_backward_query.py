"""The gradients of sphere_attention that are sums over keys: those of query and zonal."""

from __future__ import annotations

import triton
import triton.language as tl

from .sphere_attention import chord2, load_directions
from .sphere_attention_pairs import dots, load_columns, load_signed, probabilities, products, store_tile, tile_rows
from .token_rows import head_rows, load_pieces, piece_start, piece_width, zero_pieces


@triton.jit
def add_key_tile(
    sums,  # d_query, pieces of [L, D], and sum_j dS_ij columns_j, pieces of [L, E], float32
    q,  # pieces [L, W] and columns
    d_out,  # pieces [L, W]
    log_sum,  # [L]
    delta,  # [L]
    x,  # 3 x [L], or None
    key,  # from head_rows
    value,  # from head_rows
    keys,  # Places
    tile,
    factor,
    max_chord2,
    MASKS_END: tl.constexpr,  # places without a key, unless the columns do
    D: tl.constexpr,
    DV: tl.constexpr,
    E: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
    WANTS_QUERY: tl.constexpr,
    WANTS_ZONAL: tl.constexpr,
):
    """Adds what a tile of keys gives."""
    d_query, by_columns = sums
    row = tile_rows(keys, tile, BLOCK_S)
    place = tile * BLOCK_S + tl.arange(0, BLOCK_S)
    k = load_pieces(key, row, None, D, UNIT)
    v = load_pieces(value, row, None, DV, UNIT)
    k_columns = load_columns(keys.columns, tile, BLOCK_S, E)
    s = dots(q, k + k_columns, PRECISION)
    if MASKS_END and E == 0:
        s = tl.where((place < keys.num_tokens)[None, :], s, float("-inf"))
    if x is not None:
        y = load_directions(keys.directions, place, keys.num_places)
        s = tl.where(chord2(x, y) > max_chord2, float("-inf"), s)
    p = probabilities(s, factor, log_sum[:, None], PRECISION == "ieee")
    d_s = p * (dots(d_out, v, PRECISION) - delta[:, None])
    if WANTS_QUERY:
        d_query = products(d_s, k, d_query, PRECISION)
    if WANTS_ZONAL:
        by_columns = products(d_s, k_columns, by_columns, PRECISION)
    return d_query, by_columns


@triton.jit(do_not_specialize=["heads", "first_batch", "factor", "scale", "max_chord2"])
def sphere_attention_backward_query_kernel(
    query,  # Rows [B, N, L, D], with zeros beyond its own width OUT_D; the others alike
    key,  # Rows [B, N, S, D]
    value,  # Rows [B, N, S, Dv]
    d_output,  # Rows [B, N, L, Dv]
    log_sum,  # [B, N, P] by place
    delta,  # [B, N, P] by place
    d_query,  # Rows [B, N, L, OUT_D]
    d_columns,  # [B, N, T, E]
    queries,  # Places
    keys,  # Places
    lists,  # TileLists of key tiles, or None: all
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
    OUT_UNIT: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
    WANTS_QUERY: tl.constexpr,
    WANTS_ZONAL: tl.constexpr,
):
    # What: d_query of a tile of queries, and their part of d_zonal by column.
    # Maths: dS as for the key; d_query = scale dS key; as P_l(x.y) = sum_m Y_lm(x) Y_lm(y), d_zonal_l is the sum over
    #   queries and m of Y_lm(x_i) (sum_j dS_ij Y_lm(y_j)): a product with the columns that the logits have anyway.
    # Gradient: this is it; sums over i are those of the key's kernel.
    # Mapping: axis 0, tiles of BLOCK_L queries, which share a head's keys; 1, heads; 2, batches.
    # Memory: its queries once, keys of every tile met through the cache; each result written once, nothing added to.
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64) + first_batch
    pair = batch * heads + head
    row = tile_rows(queries, tile, BLOCK_L)
    place = tile * BLOCK_L + tl.arange(0, BLOCK_L)
    q = load_signed(head_rows(query, batch, head, UNIT), row, SIGN, D, UNIT)
    if E > 0:
        q += load_columns(queries.columns + head * queries.head_stride, tile, BLOCK_L, E)
    d_out = load_pieces(head_rows(d_output, batch, head, UNIT), row, None, DV, UNIT)
    log_sum = tl.load(log_sum + pair * queries.num_places + place)
    delta = tl.load(delta + pair * queries.num_places + place)
    key = head_rows(key, batch, head, UNIT)
    value = head_rows(value, batch, head, UNIT)
    sums = (zero_pieces(BLOCK_L, D), zero_pieces(BLOCK_L, E if WANTS_ZONAL else 0))
    if lists is None:
        # With columns the last tile masks itself; without, it is a case of its own where masking all would cost.
        APART: tl.constexpr = E == 0 and PRECISION != "ieee"
        all_tiles = tl.cdiv(keys.num_tokens, BLOCK_S)
        tiles = keys.num_tokens // BLOCK_S if APART else all_tiles
        for i in range(0, tiles):
            sums = add_key_tile(
                sums, q, d_out, log_sum, delta, None, key, value, keys, i, factor, max_chord2,
                not APART, D, DV, E, UNIT, BLOCK_S, PRECISION, WANTS_QUERY, WANTS_ZONAL,
            )  # fmt: skip
        if APART:  # noqa: SIM102 - a constant of the compilation, unlike the next
            if tiles < all_tiles:
                sums = add_key_tile(
                    sums, q, d_out, log_sum, delta, None, key, value, keys, tiles, factor, max_chord2,
                    True, D, DV, E, UNIT, BLOCK_S, PRECISION, WANTS_QUERY, WANTS_ZONAL,
                )  # fmt: skip
    else:
        met = lists.tiles + tile.to(tl.int64) * lists.width
        inside = tl.load(lists.inside + tile)
        for i in range(0, inside):
            sums = add_key_tile(
                sums, q, d_out, log_sum, delta, None, key, value, keys, tl.load(met + i), factor, max_chord2,
                False, D, DV, E, UNIT, BLOCK_S, PRECISION, WANTS_QUERY, WANTS_ZONAL,
            )  # fmt: skip
        x = load_directions(queries.directions, place, queries.num_places)
        for i in range(inside, tl.load(lists.met + tile)):
            sums = add_key_tile(
                sums, q, d_out, log_sum, delta, x, key, value, keys, tl.load(met + i), factor, max_chord2,
                False, D, DV, E, UNIT, BLOCK_S, PRECISION, WANTS_QUERY, WANTS_ZONAL,
            )  # fmt: skip
    by_query, by_columns = sums
    if WANTS_QUERY:
        store_tile(head_rows(d_query, batch, head, OUT_UNIT), queries, tile, by_query, scale, D, OUT_D, OUT_UNIT)
    if WANTS_ZONAL:
        features = load_columns(queries.features, tile, BLOCK_L, E)
        for i in tl.static_range(len(by_columns)):
            column = piece_start(E, i) + tl.arange(0, piece_width(E, i))
            tl.store(
                d_columns + (pair * tl.num_programs(0) + tile) * E + column, tl.sum(features[i] * by_columns[i], 0)
            )
