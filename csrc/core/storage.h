// How feature rows are stored, and the little that all ray bodies do with memory.
#pragma once

#include "core/common.h"

namespace evoworld {

enum class Storage { float32, float16, bfloat16 };

EW_HD Float3 load3(const float* values, int64_t i) { return {values[3 * i], values[3 * i + 1], values[3 * i + 2]}; }

// Rows are worked on in blocks of 16 channels, or all where there are fewer: what vector registers hold.
template <int kChannels>
constexpr int kBlock = kChannels > 0 && kChannels < 16 ? kChannels : 16;

// The sum of kWidth values, folded in halves: an order that does not depend on the width of registers. (Templates,
// not a loop over widths, which g++ leaves in memory.)
template <int kWidth>
EW_HD float fold(const float* values) {
  if constexpr (kWidth == 1) {
    return values[0];
  } else {
    float half[kWidth / 2];
#if defined(__GNUC__) && !defined(__CUDACC__)
    typedef float Vector __attribute__((vector_size(kWidth / 2 * sizeof(float))));
    Vector low, high;
    memcpy(&low, values, sizeof low);
    memcpy(&high, values + kWidth / 2, sizeof high);
    low += high;
    memcpy(half, &low, sizeof low);
#else
    for (int i = 0; i < kWidth / 2; ++i) half[i] = values[i] + values[i + kWidth / 2];
#endif
    return fold<kWidth / 2>(half);
  }
}

// a . b over `count` channels, kChannels of them when that is not 0.
template <int kChannels, class T>
EW_HD float dot(const float* a, const T* b, int64_t count) {
  constexpr int kLanes = kBlock<kChannels>;
  if (kChannels > 0) count = kChannels;
  float partial[kLanes];
  for (int i = 0; i < kLanes; ++i) partial[i] = 0.0f;
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    for (int i = 0; i < kLanes; ++i) partial[i] = fmaf(a[c + i], widen(b[c + i]), partial[i]);
  }
  for (int i = 0; c + i < count; ++i) partial[i] = fmaf(a[c + i], widen(b[c + i]), partial[i]);
  return fold<kLanes>(partial);
}

// sum[c] += weight * row[c]
template <int kChannels, class T>
EW_HD void add_scaled(float* sum, float weight, const T* row, int64_t count) {
  constexpr int kLanes = kBlock<kChannels>;
  if (kChannels > 0) count = kChannels;
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    float block[kLanes];  // read all, then write all: whether the rows overlap does not stop a vector instruction
    for (int i = 0; i < kLanes; ++i) block[i] = fmaf(weight, widen(row[c + i]), sum[c + i]);
    for (int i = 0; i < kLanes; ++i) sum[c + i] = block[i];
  }
  for (; c < count; ++c) sum[c] = fmaf(weight, widen(row[c]), sum[c]);
}

}  // namespace evoworld
