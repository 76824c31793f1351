// The rows of sphere_attention's backward, one instruction set.
//
// Computes no products: packs queries, keys and values, gathers queries within the radius, and writes gradients.
// delta = d_output.output - d_lse; lse in base 2, in two parts.
// d_query and d_key are the sums of dS K and dS^T Q, times scale.
// A call is a tile of the tokens of one head, or up to 32 pairs of queries.
// Reads query, key, value, output and d_output by their order and strides; writes d_query, d_key and d_value alike.
#include "cpu/sphere_attention_backward_rows.h"

namespace evoworld {
namespace EW_ISA {
namespace {

constexpr double kLog2EInDouble = 1.4426950408889634;

void find_near(const BackwardWork& work, int64_t query_tile, int64_t key_tile, uint32_t* near) {
  const Tile queries = query_tile_of(work, query_tile), keys = key_tile_of(work, key_tile);
  const float* const x = work.query_directions + queries.first;
  const float* const y = work.key_directions + keys.first;
  float nearest[kBackwardQueries];
  for (int lane = 0; lane < queries.lanes; lane += kLanes) {
    const Vector xx = load(x + lane), xy = load(x + work.padded_queries + lane);
    const Vector xz = load(x + 2 * work.padded_queries + lane);
    Vector least = broadcast(INFINITY);
    for (int i = 0; i < keys.count; ++i) {
      const Vector next = chord2({y[i], y[work.padded_keys + i], y[2 * work.padded_keys + i]}, xx, xy, xz);
      least = next < least ? next : least;
    }
    store(nearest + lane, least);
  }
  *near = 0;
  for (int i = 0; i < queries.count; ++i) {
    if (nearest[i] <= work.in.max_chord2) *near |= uint32_t{1} << i / kGatheredQueries;
  }
}

template <class T, class Format>
void pack_queries(const BackwardWork& work, int64_t head, int64_t query_tile) {
  const AttentionInputs& in = work.in;
  const Tile tile = query_tile_of(work, query_tile);
  const RowSource<T> d_output = source_of<T>(work.d_out.output, work, head, in.query_order);
  PackedRows<Format>(packed_tile(work.packed_query, work, head, query_tile, in.width), in.width)
      .pack(source_of<T>(in.query, work, head, in.query_order), tile, in.width);
  PackedRows<Format>(packed_tile(work.packed_d_output, work, head, query_tile, in.value_width), in.value_width)
      .pack(d_output, tile, in.value_width);

  const int64_t row = head * work.padded_queries + tile.first, lse_row = (work.first_head + head) * in.num_queries;
  for (int i = 0; i < tile.rows; ++i) {
    QueryTerms& terms = work.terms[row + i];
    terms = {0.0f, 0.0f, 0.0f, INFINITY, 0.0f, 0.0f};  // P = exp2(S - lse2) = 0
    if (i >= tile.count) continue;
    const int64_t query = token_at(in.query_order, tile.first + i);
    const Float3 x = load3(in.query_directions, query);
    const float lse = work.out.lse[lse_row + query];
    terms = {x.x, x.y, x.z, INFINITY, 0.0f, 0.0f};
    if (lse == -INFINITY) continue;
    const double lse2 = lse * kLog2EInDouble;
    terms.lse2 = static_cast<float>(lse2);
    terms.lse2_rest = static_cast<float>(lse2 - terms.lse2);
    const T* const upstream = d_output.row(tile.first + i);
    const T* const output = head_of<const T>(work.out.output, work, head) + query * work.out.output.row_stride;
    Vector dot = {};  // in the order of the products dO V^T: where there is one key the two cancel
    for (int c = 0; c < in.value_width; ++c) {
      dot = multiply_add(broadcast(widen(upstream[c])), broadcast(widen(output[c])), dot);
    }
    terms.delta = dot[0] - work.d_out.lse[lse_row + query];
  }
  if (work.d_query != nullptr) {
    const int64_t width = padded_lanes(in.width);
    memset(work.d_query + row * width, 0, tile.rows * width * sizeof(float));
  }
}

template <class T, class Format>
void pack_keys(const BackwardWork& work, int64_t head, int64_t key_tile, BackwardKeys& keys) {
  const AttentionInputs& in = work.in;
  keys.tile = key_tile;
  const Tile tile = key_tile_of(work, key_tile);
  const RowSource<T> key = source_of<T>(in.key, work, head, in.key_order);
  const RowSource<T> value = source_of<T>(in.value, work, head, in.key_order);
  typedef typename Format::Word Word;
  pack_columns<Format>(key, tile.first, tile.count, in.width, reinterpret_cast<Word*>(keys.key_columns), kBackwardKeys);
  pack_columns<Format>(value, tile.first, tile.count, in.value_width, reinterpret_cast<Word*>(keys.value_columns),
                       kBackwardKeys);
  pack_steps<Format>(key, tile.first, tile.count, in.width, reinterpret_cast<Word*>(keys.key_steps),
                     padded_lanes(in.width));
  memset(keys.d_key, 0, tile.rows * padded_lanes(in.width) * sizeof(float));
  memset(keys.d_value, 0, tile.rows * padded_lanes(in.value_width) * sizeof(float));
  memset(keys.d_log_weight, 0, sizeof keys.d_log_weight);
  for (double& moment : keys.moments) moment = 0.0;
}

template <class T, class Format>
void gather(const BackwardWork& work, int64_t head, const int32_t* pairs, int count, BackwardScratch& scratch) {
  constexpr int kPairsPerTile = kBackwardQueries / kGatheredQueries;
  const int width = work.in.width, value_width = work.in.value_width;
  const PackedRows<Format> query(scratch.query, width), d_output(scratch.d_output, value_width);
  for (int i = 0; i < padded_rows(kGatheredQueries * count) / kGatheredQueries; ++i) {
    QueryTerms* const terms = scratch.terms + kGatheredQueries * i;
    if (i >= count) {
      query.copy_pair(i, nullptr, 0);
      d_output.copy_pair(i, nullptr, 0);
      for (int r = 0; r < kGatheredQueries; ++r) terms[r] = {0.0f, 0.0f, 0.0f, INFINITY, 0.0f, 0.0f};
      continue;
    }
    const int64_t tile = pairs[i] / kPairsPerTile;
    const int pair = pairs[i] % kPairsPerTile;
    const PackedRows<Format> from(packed_tile(work.packed_query, work, head, tile, width), width);
    const PackedRows<Format> d_from(packed_tile(work.packed_d_output, work, head, tile, value_width), value_width);
    query.copy_pair(i, &from, pair);
    d_output.copy_pair(i, &d_from, pair);
    memcpy(terms, work.terms + head * work.padded_queries + int64_t{kGatheredQueries} * pairs[i],
           kGatheredQueries * sizeof *terms);
  }
}

template <class T>
EW_HD void write_row(const float* sums, float scale, int width, T* out) {
  for (int c = 0; c < width; ++c) narrow(sums[c] * scale, out + c);
}

template <class T, class Format>
void write_keys(const BackwardWork& work, int64_t head, const BackwardKeys& keys) {
  const AttentionInputs& in = work.in;
  const Tile tile = key_tile_of(work, keys.tile);
  for (int i = 0; work.gradients.key.data != nullptr && i < tile.count; ++i) {
    const int64_t key = token_at(in.key_order, tile.first + i);
    write_row(keys.d_key + i * padded_lanes(in.width), in.scale, in.width,
              head_of<T>(work.gradients.key, work, head) + key * work.gradients.key.row_stride);
    write_row(keys.d_value + i * padded_lanes(in.value_width), 1.0f, in.value_width,
              head_of<T>(work.gradients.value, work, head) + key * work.gradients.value.row_stride);
  }
  const int64_t index = work.first_head + head;
  if (work.d_key_log_weight != nullptr) {
    memcpy(work.d_key_log_weight + index * work.padded_keys + tile.first, keys.d_log_weight, sizeof keys.d_log_weight);
  }
  if (work.moments != nullptr) {
    memcpy(work.moments + (index * (work.padded_keys / kBackwardKeys) + keys.tile) * kMaxZonalDegree, keys.moments,
           sizeof keys.moments);
  }
}

template <class T, class Format>
void write_queries(const BackwardWork& work, int64_t head, int64_t query_tile) {
  const AttentionInputs& in = work.in;
  const Tile tile = query_tile_of(work, query_tile);
  const float* const sums = work.d_query + (head * work.padded_queries + tile.first) * padded_lanes(in.width);
  for (int i = 0; i < tile.count; ++i) {
    const int64_t query = token_at(in.query_order, tile.first + i);
    write_row(sums + i * padded_lanes(in.width), in.scale, in.width,
              head_of<T>(work.gradients.query, work, head) + query * work.gradients.query.row_stride);
  }
}

}  // namespace

void attention_backward_find_near(const BackwardWork& work, int64_t query_tile, int64_t key_tile, uint32_t* near) {
  find_near(work, query_tile, key_tile, near);
}

void attention_backward_pack_queries(const BackwardWork& work, int64_t head, int64_t query_tile) {
  EW_BY_STORAGE(pack_queries, work, head, query_tile)
}

void attention_backward_pack_keys(const BackwardWork& work, int64_t head, int64_t key_tile, BackwardKeys& keys) {
  EW_BY_STORAGE(pack_keys, work, head, key_tile, keys)
}

void attention_backward_gather(const BackwardWork& work, int64_t head, const int32_t* pairs, int count,
                               BackwardScratch& scratch) {
  EW_BY_STORAGE(gather, work, head, pairs, count, scratch)
}

void attention_backward_write_keys(const BackwardWork& work, int64_t head, const BackwardKeys& keys) {
  EW_BY_STORAGE(write_keys, work, head, keys)
}

void attention_backward_write_queries(const BackwardWork& work, int64_t head, int64_t query_tile) {
  EW_BY_STORAGE(write_queries, work, head, query_tile)
}

}  // namespace EW_ISA
}  // namespace evoworld
