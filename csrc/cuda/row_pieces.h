// Pieces of feature rows on their way through registers: as they lie in memory, and widened only when they are used, so
// that nothing waits for them before.
#pragma once

#include "core/storage.h"
#include "cuda/row_vectors.h"

namespace evoworld {

// kCount values of a row side by side, in one load; aligned to their size.
template <class T, int kCount>
struct Piece {
  static constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
  static_assert(kCount == 1 || kBytes == 8 || kBytes == 16);
  static constexpr int kWords = (kBytes + 3) / 4;
  uint32_t words[kWords];

  __device__ __forceinline__ void load(const T* from) {
    if constexpr (kBytes == 16) {
      const uint4 raw = __ldg(reinterpret_cast<const uint4*>(from));
      words[0] = raw.x, words[1] = raw.y, words[2] = raw.z, words[3] = raw.w;
    } else if constexpr (kBytes == 8) {
      const uint2 raw = __ldg(reinterpret_cast<const uint2*>(from));
      words[0] = raw.x, words[1] = raw.y;
    } else if constexpr (kBytes == 4) {
      words[0] = __ldg(reinterpret_cast<const unsigned*>(from));
    } else {
      words[0] = __ldg(reinterpret_cast<const unsigned short*>(from));
    }
  }

  __device__ __forceinline__ void widen_to(float values[kCount]) const {
    if constexpr (sizeof(T) == sizeof(float)) {
      for (int i = 0; i < kCount; ++i) values[i] = bits_to_float(words[i]);
    } else if constexpr (kCount == 1) {
      float unused;
      widen_pair<T>(words[0], values[0], unused);
    } else {
      for (int i = 0; i < kWords; ++i) widen_pair<T>(words[i], values[2 * i], values[2 * i + 1]);
    }
  }
};

// Calls body(T{}) for the type that stores the features.
template <class Body>
void with_storage(Storage storage, const Body& body) {
  switch (storage) {
    case Storage::float32:
      return body(float{});
    case Storage::float16:
      return body(Half{});
    case Storage::bfloat16:
      return body(BFloat16{});
  }
}

}  // namespace evoworld
