// Packing rows of the callers' tensors into the layouts of matmul_tiles.h.
#pragma once

#include "cpu/matmul_tiles.h"

namespace evoworld {
namespace EW_ISA {

// Rows of a tensor: row i starts at data + (order[i] or i) * stride.
template <class T>
struct RowSource {
  const T* data;         // [rows, width]
  int64_t stride;        // elements from row to row
  const int32_t* order;  // [rows], or null

  EW_HD const T* row(int64_t i) const { return data + (order != nullptr ? order[i] : i) * stride; }
};

EW_HD void widen_row(const float* source, int width, float* out) { memcpy(out, source, width * sizeof *out); }

template <class T>
EW_HD void widen_row(const T* source, int width, float* out) {
  for (int c = 0; c < width; ++c) out[c] = widen(source[c]);
}

EW_HD uint32_t pair_of(BFloat16 first, BFloat16 second) {
  return first.bits | static_cast<uint32_t>(second.bits) << 16;
}

// The words of one row in the layouts rows and columns.
EW_HD void row_words(const BFloat16* source, int width, uint32_t* out) {
  memcpy(out, source, width / 2 * sizeof *out);
  if (width % 2 != 0) out[width / 2] = source[width - 1].bits;
}
template <class T>
EW_HD void row_words(const T* source, int width, float* out) {
  widen_row(source, width, out);
}

typedef int32_t FourInts __attribute__((vector_size(16)));
// Elements of two vectors by number, 4 to 7 being those of the second. g++ has clang's builtin from 12 on.
#if defined(__clang__)
#define EW_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define EW_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, FourInts{__VA_ARGS__})
#endif

// out [4][out_stride] = in [4][in_stride], transposed. Compilers make gathers out of loops that do this.
template <class Word>
EW_HD void transpose_4x4(const Word* in, int64_t in_stride, Word* out, int64_t out_stride) {
  typedef Word Four __attribute__((vector_size(4 * sizeof(Word))));
  Four rows[4];
  for (int i = 0; i < 4; ++i) memcpy(&rows[i], in + i * in_stride, sizeof rows[i]);
  const Four low[2] = {EW_SHUFFLE(rows[0], rows[1], 0, 4, 1, 5), EW_SHUFFLE(rows[2], rows[3], 0, 4, 1, 5)};
  const Four high[2] = {EW_SHUFFLE(rows[0], rows[1], 2, 6, 3, 7), EW_SHUFFLE(rows[2], rows[3], 2, 6, 3, 7)};
  rows[0] = EW_SHUFFLE(low[0], low[1], 0, 1, 4, 5);
  rows[1] = EW_SHUFFLE(low[0], low[1], 2, 3, 6, 7);
  rows[2] = EW_SHUFFLE(high[0], high[1], 0, 1, 4, 5);
  rows[3] = EW_SHUFFLE(high[0], high[1], 2, 3, 6, 7);
  for (int i = 0; i < 4; ++i) memcpy(out + i * out_stride, &rows[i], sizeof rows[i]);
}
#undef EW_SHUFFLE

namespace {

// Layout rows: out [padded_rows(rows)][stride], stride >= steps_of(width), of rows first, first + 1, ...
template <class Format, class T>
void pack_rows(const RowSource<T>& source, int64_t first, int rows, int width, typename Format::Word* out,
               int64_t stride) {
  for (int r = 0; r < rows; ++r) {
    row_words(source.row(first + r), width, out + r * stride);
  }
  const int empty = padded_rows(rows) - rows;
  if (empty > 0) memset(out + rows * stride, 0, empty * stride * sizeof *out);
}

// Layout columns: out [steps_of(width)][stride], stride >= padded_lanes(rows).
template <class Format, class T>
void pack_columns(const RowSource<T>& source, int64_t first, int rows, int width, typename Format::Word* out,
                  int64_t stride) {
  typedef typename Format::Word Word;
  constexpr int kSteps = 16;
  const int steps = steps_of<Format>(width);
  for (int r = 0; r < padded_lanes(rows); r += 4) {
    for (int step = 0; step < steps; step += kSteps) {
      Word words[4][kSteps] = {};  // of 4 rows: zeros where the matrix ends
      const int begin = step * Format::kPerWord, left = width - begin;
      for (int i = 0; i < 4 && r + i < rows; ++i) {
        row_words(source.row(first + r + i) + begin,
                  left < kSteps * Format::kPerWord ? left : kSteps * Format::kPerWord, words[i]);
      }
      for (int s = 0; s < kSteps && step + s < steps; s += 4) {
        Word columns[4][4];
        transpose_4x4(words[0] + s, kSteps, columns[0], 4);
        for (int i = 0; i < 4 && step + s + i < steps; ++i) {
          memcpy(out + (step + s + i) * stride + r, columns[i], sizeof columns[i]);
        }
      }
    }
  }
}

// Layout steps: out [steps_of(padded_rows(rows))][stride], stride >= padded_lanes(width) (as A: padded_rows(width)).
// Every word of the stride is written.
template <class Format, class T>
void pack_steps(const RowSource<T>& source, int64_t first, int rows, int width, typename Format::Word* out,
                int64_t stride) {
  constexpr int kRows = Format::kPerWord;
  int r = 0;
  for (; r < rows; r += kRows) {
    const T* const from = source.row(first + r);
    if constexpr (Format::kPerWord == 1) {
      widen_row(from, width, out);
    } else if (r + 1 < rows) {
      const T* const next = source.row(first + r + 1);
      for (int c = 0; c < width; ++c) out[c] = pair_of(from[c], next[c]);
    } else {
      for (int c = 0; c < width; ++c) out[c] = from[c].bits;
    }
    if (width < stride) memset(out + width, 0, (stride - width) * sizeof *out);
    out += stride;
  }
  for (; r < padded_rows(rows); r += kRows) {
    memset(out, 0, stride * sizeof *out);
    out += stride;
  }
}

}  // namespace
}  // namespace EW_ISA
}  // namespace evoworld
