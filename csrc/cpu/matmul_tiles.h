// Products of packed tiles that lie in cache, register-blocked, for the instruction set that is being compiled:
//
//   C[m][n] = sum_k A[m][k] B[k][n]         m: rows, n: lanes (vector registers run along n), k: what is summed over
//
// A and B are made of 32-bit words. A word holds one float, or two bfloat16 that follow each other along k, the first
// in the low half, zero in the high half where k ends on an odd number; the sums are float32 either way. Which of the
// two is the "format" of a tile: Floats, or Pairs where the processor has AVX512_BF16 (BFloat16Format). Sums run over
// "steps" of k: k of them in Floats, ceil(k / 2) in Pairs.
//
// Layouts of a matrix X [rows, width] (a tile of query, key, value, d_output, probabilities, ...), see pack_tiles.h:
//
//   rows     word (row, step) at [row * stride + step], steps along the width: A of a product over the width
//   columns  word (row, step) at [step * stride + row], steps along the width: B of a product over the width
//   steps    word (step, column) at [step * stride + column], steps along the rows: A or B of a product over the rows
//
//   S^T [keys][queries]  =  K (rows)      x  Q (columns)       dP^T likewise of V and dO
//   O^T [Dv][queries]   +=  V (steps)     x  P^T (steps)
//   dV [keys][Dv]       +=  P^T (rows)    x  dO (steps)        dK likewise of dS^T and Q
//   dQ^T [D][queries]   +=  K (steps)     x  dS^T (steps)
//   dQ [queries][D]     +=  dS^T (steps)  x  K (steps)
//
// A tile P^T or dS^T [keys][queries] of floats is "rows" and "steps" in Floats as it is; store_two makes "steps" of any
// format.
//
// Sizes: rows of C are a multiple of kRowBlock and lanes one of kLaneBlock, the same for every instruction set: packing
// rounds up (padded_rows, padded_lanes) and fills with zeros. Buffers are aligned to 64 bytes for speed only.
#pragma once

#include "core/storage.h"
#include "cpu/vectors.h"

namespace evoworld {
namespace EW_ISA {

constexpr int kRowBlock = 8;
constexpr int kLaneBlock = 16;

EW_HD int padded_rows(int rows) { return (rows + kRowBlock - 1) / kRowBlock * kRowBlock; }
EW_HD int padded_lanes(int lanes) { return (lanes + kLaneBlock - 1) / kLaneBlock * kLaneBlock; }

struct Floats {
  typedef float Word;
  static constexpr int kPerWord = 1;

  static EW_HD Vector add_product(Vector sum, Word a, Vector b) { return multiply_add(broadcast(a), b, sum); }

  // Two consecutive rows of a tile in the layout steps; `out` is at the first step of the two.
  static EW_HD void store_two(Word* out, int64_t stride, Vector first, Vector second) {
    store(out, first);
    store(out + stride, second);
  }
};

#if defined(__AVX512BF16__)
struct Pairs {
  typedef uint32_t Word;
  static constexpr int kPerWord = 2;

  static EW_HD Vector add_product(Vector sum, Word a, Vector b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int32_t>(a))),
                            reinterpret_cast<__m512bh>(b));
  }

  static EW_HD void store_two(Word* out, int64_t, Vector first, Vector second) {
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                                6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
    _mm512_storeu_si512(out, _mm512_permutexvar_epi16(interleave, both));
  }
};
typedef Pairs BFloat16Format;
#else
typedef Floats BFloat16Format;
#endif

template <class Format>
EW_HD int steps_of(int count) {
  return (count + Format::kPerWord - 1) / Format::kPerWord;
}

// How A lies in memory: word (m, step) at a[m * stride + step], or at a[step * stride + m].
enum class Layout { rows, steps };

namespace {

// Sixteen sums fill half of the 32 registers of AVX-512 and NEON, twelve most of the 16 of AVX2 and SSE: enough chains
// to hide the latency of a multiply-add, and 10 loads for 16 of them (8 for 12).
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisterRows = 8;
#else
constexpr int kRegisterRows = 6;
#endif

template <class Format, Layout kLayout, int kRows, int kVectors, class Finish>
EW_HD void multiply_block(const typename Format::Word* a, int64_t a_stride, const typename Format::Word* b,
                          int64_t b_stride, int steps, int row, int lane, Finish finish) {
  Vector sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) sums[m][n] = Vector{};
  }
  a += kLayout == Layout::rows ? row * a_stride : row;
  b += lane;
  for (int step = 0; step < steps; ++step) {
    Vector lanes[kVectors];
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) memcpy(&lanes[n], b + n * kLanes, sizeof lanes[n]);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const typename Format::Word word = kLayout == Layout::rows ? a[m * a_stride] : a[m];
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; ++n) sums[m][n] = Format::add_product(sums[m][n], word, lanes[n]);
    }
    a += kLayout == Layout::rows ? 1 : a_stride;
    b += b_stride;
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) finish(row + m, lane + n * kLanes, sums[m][n]);
  }
}

template <class Format, Layout kLayout, int kVectors, class Finish>
EW_HD void multiply_rows(const typename Format::Word* a, int64_t a_stride, int rows, const typename Format::Word* b,
                         int64_t b_stride, int steps, int lane, Finish finish) {
  int row = 0;
  for (; row + kRegisterRows <= rows; row += kRegisterRows) {
    multiply_block<Format, kLayout, kRegisterRows, kVectors>(a, a_stride, b, b_stride, steps, row, lane, finish);
  }
  if constexpr (kRowBlock % kRegisterRows != 0) {
    for (; row + 4 <= rows; row += 4) {
      multiply_block<Format, kLayout, 4, kVectors>(a, a_stride, b, b_stride, steps, row, lane, finish);
    }
    if (row < rows) multiply_block<Format, kLayout, 2, kVectors>(a, a_stride, b, b_stride, steps, row, lane, finish);
  }
}

// Calls finish(row, lane, sum) for every register of C: kLanes sums of the row, from the lane on.
template <class Format, Layout kLayout, class Finish>
void multiply_tiles(const typename Format::Word* a, int64_t a_stride, int rows, const typename Format::Word* b,
                    int64_t b_stride, int lanes, int steps, Finish finish) {
  int lane = 0;
  for (; lane + 2 * kLanes <= lanes; lane += 2 * kLanes) {
    multiply_rows<Format, kLayout, 2>(a, a_stride, rows, b, b_stride, steps, lane, finish);
  }
  if constexpr (kLaneBlock < 2 * kLanes) {
    if (lane < lanes) multiply_rows<Format, kLayout, 1>(a, a_stride, rows, b, b_stride, steps, lane, finish);
  }
}

}  // namespace

// What to do with sums: overwrite, add to, or scale lane by lane and add to C [rows][stride].
struct Overwrite {
  float* c;
  int64_t stride;
  EW_HD void operator()(int row, int lane, Vector sum) const { store(c + row * stride + lane, sum); }
};
struct AddTo {
  float* c;
  int64_t stride;
  EW_HD void operator()(int row, int lane, Vector sum) const {
    float* const values = c + row * stride + lane;
    store(values, load(values) + sum);
  }
};
struct ScaleAndAddTo {
  float* c;
  int64_t stride;
  const float* factors;  // [lanes]
  EW_HD void operator()(int row, int lane, Vector sum) const {
    float* const values = c + row * stride + lane;
    store(values, multiply_add(load(values), load(factors + lane), sum));
  }
};

}  // namespace EW_ISA
}  // namespace evoworld
