// How the kernels of sphere_attention's backward see packed rows.
#pragma once

#include "cpu/pack_tiles.h"
#include "cpu/sphere_attention_backward.h"

namespace evoworld {
namespace EW_ISA {

// The tokens of a tile that there are, and that count rounded up as the products want it.
struct Tile {
  int64_t first;
  int count, rows, lanes;

  EW_HD Tile(int64_t index, int size, int64_t total)
      : first(index * size),
        count(static_cast<int>(total - first < size ? total - first : size)),
        rows(padded_rows(count)),
        lanes(padded_lanes(count)) {}
};

EW_HD Tile query_tile_of(const BackwardWork& work, int64_t index) {
  return {index, kBackwardQueries, work.in.num_queries};
}
EW_HD Tile key_tile_of(const BackwardWork& work, int64_t index) { return {index, kBackwardKeys, work.in.num_keys}; }

template <class T, class Pointer>
EW_HD auto* head_of(const AttentionRows<Pointer>& rows, const BackwardWork& work, int64_t head) {
  const int64_t index = work.first_head + head, b = index / work.in.heads, n = index % work.in.heads;
  return static_cast<T*>(rows.data) + b * rows.batch_stride + n * rows.head_stride;
}

template <class T>
EW_HD RowSource<T> source_of(const AttentionRows<const void*>& rows, const BackwardWork& work, int64_t head,
                             const int32_t* order) {
  return {head_of<const T>(rows, work, head), rows.row_stride, order};
}

EW_HD int64_t token_at(const int32_t* order, int64_t i) { return order != nullptr ? order[i] : i; }

// Packed queries or d_output: rows and steps, which in Floats are the same.
template <class Format>
struct PackedRows {
  typedef typename Format::Word Word;
  Word* rows;
  Word* steps;
  int rows_stride, steps_stride;

  EW_HD PackedRows(char* memory, int width)
      : rows(reinterpret_cast<Word*>(memory)),
        steps(rows),
        rows_stride(padded_lanes(width) / Format::kPerWord),
        steps_stride(padded_lanes(width)) {
    if (Format::kPerWord != 1) steps += kBackwardQueries * rows_stride;
  }

  template <class T>
  EW_HD void pack(const RowSource<T>& source, const Tile& tile, int width) const {
    if (Format::kPerWord != 1) pack_rows<Format>(source, tile.first, tile.count, width, rows, rows_stride);
    pack_steps<Format>(source, tile.first, tile.count, width, steps, steps_stride);
  }

  // Pair `to` of the rows, that of `from`, or zeros where there is none.
  EW_HD void copy_pair(int to, const PackedRows* from, int pair) const {
    const auto copy = [&](Word* begin, const Word* source, int words) {
      if (from != nullptr) {
        memcpy(begin + to * words, source + pair * words, words * sizeof(Word));
      } else {
        memset(begin + to * words, 0, words * sizeof(Word));
      }
    };
    copy(steps, from != nullptr ? from->steps : nullptr, kGatheredQueries / Format::kPerWord * steps_stride);
    if (Format::kPerWord != 1) copy(rows, from != nullptr ? from->rows : nullptr, kGatheredQueries * rows_stride);
  }
};

// The memory of a tile of rows in an array [heads, padded queries, padded width] of words.
EW_HD char* packed_tile(char* all, const BackwardWork& work, int64_t head, int64_t query_tile, int width) {
  return all + 4 * (head * work.padded_queries + query_tile * kBackwardQueries) * padded_lanes(width);
}

EW_HD Vector chord2(Float3 a, Vector x, Vector y, Vector z) {
  const Vector dx = x - a.x, dy = y - a.y, dz = z - a.z;
  return multiply_add(dx, dx, multiply_add(dy, dy, dz * dz));
}

}  // namespace EW_ISA
}  // namespace evoworld

#define EW_BY_STORAGE(kernel, ...)                          \
  switch (work.in.storage) {                                \
    case Storage::float32:                                  \
      return kernel<float, Floats>(__VA_ARGS__);            \
    case Storage::float16:                                  \
      return kernel<Half, Floats>(__VA_ARGS__);             \
    case Storage::bfloat16:                                 \
      return kernel<BFloat16, BFloat16Format>(__VA_ARGS__); \
  }
