// How feature rows are stored, and the little that all ray bodies do with memory.
#pragma once

#include "core/common.h"

namespace evoworld {

enum class Storage { float32, float16, bfloat16 };

EW_HD Float3 load3(const float* values, int64_t i) { return {values[3 * i], values[3 * i + 1], values[3 * i + 2]}; }

// a . b over `count` channels, kChannels of them when that is not 0. Up to 16 partial sums, folded in halves: what
// vector registers hold, in an order that does not depend on their width.
template <int kChannels, class T>
EW_HD float dot(const float* a, const T* b, int64_t count) {
  constexpr int kLanes = kChannels > 0 && kChannels < 16 ? kChannels : 16;
  if (kChannels > 0) count = kChannels;
  float partial[kLanes];
  for (int i = 0; i < kLanes; ++i) partial[i] = 0.0f;
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    for (int i = 0; i < kLanes; ++i) partial[i] = fmaf(a[c + i], widen(b[c + i]), partial[i]);
  }
  for (int i = 0; c + i < count; ++i) partial[i] = fmaf(a[c + i], widen(b[c + i]), partial[i]);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) partial[i] += partial[i + width];
  }
  return partial[0];
}

// sum[c] += weight * row[c]
template <int kChannels, class T>
EW_HD void add_scaled(float* __restrict__ sum, float weight, const T* __restrict__ row, int64_t count) {
  if (kChannels > 0) count = kChannels;
  for (int64_t c = 0; c < count; ++c) sum[c] = fmaf(weight, widen(row[c]), sum[c]);
}

}  // namespace evoworld
