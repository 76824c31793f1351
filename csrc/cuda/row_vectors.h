// Rows of features in vectors: several values of one row, loaded at once and widened to float32.
#pragma once

#include "core/storage.h"
#include "cuda/device.h"

namespace evoworld {

// The two 16-bit values of a word, the lower one first.
template <class T>
__device__ __forceinline__ void widen_pair(uint32_t word, float& low, float& high) {
  if constexpr (sizeof(T) == sizeof(Half) && !__is_same(T, BFloat16)) {
#ifdef __CUDA_ARCH__
    // One instruction a value; core's widen() spells the same out in eight.
    asm("{.reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
        : "=f"(low), "=f"(high)
        : "r"(word));
#else
    low = widen(Half{static_cast<uint16_t>(word)});
    high = widen(Half{static_cast<uint16_t>(word >> 16)});
#endif
  } else {
    low = bits_to_float(word << 16);
    high = bits_to_float(word & 0xffff0000u);
  }
}

template <bool kConstant, class Word>
__device__ __forceinline__ Word read_word(const void* from) {
  if constexpr (kConstant) {
    return __ldg(static_cast<const Word*>(from));
  } else {
    return *static_cast<const Word*>(from);
  }
}

// kCount values of a row side by side, in one load, aligned to their size. They stay as they lie in memory until they
// are used, so that nothing waits for them before. kConstant: for memory that the kernel does not write.
template <class T, int kCount>
struct Piece {
  static constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
  static_assert(kCount == 1 || kBytes == 8 || kBytes == 16);
  static constexpr int kWords = (kBytes + 3) / 4;
  uint32_t words[kWords];

  template <bool kConstant = true>
  __device__ __forceinline__ void load(const T* from) {
    if constexpr (kBytes == 16) {
      const uint4 raw = read_word<kConstant, uint4>(from);
      words[0] = raw.x, words[1] = raw.y, words[2] = raw.z, words[3] = raw.w;
    } else if constexpr (kBytes == 8) {
      const uint2 raw = read_word<kConstant, uint2>(from);
      words[0] = raw.x, words[1] = raw.y;
    } else if constexpr (kBytes == 4) {
      words[0] = read_word<kConstant, unsigned>(from);
    } else {
      words[0] = read_word<kConstant, unsigned short>(from);
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

// The same at once: values that the kernel may write, shared memory included.
template <class T, int kCount>
__device__ __forceinline__ void load_vector(const T* at, float values[kCount]) {
  Piece<T, kCount> piece;
  piece.template load<false>(at);
  piece.widen_to(values);
}

// kCount float32 values side by side, kCount 1 or a multiple of 4, 16-byte aligned where it is not 1.
template <int kCount>
__device__ __forceinline__ void load_floats(const float* at, float values[kCount]) {
  if constexpr (kCount == 1) {
    values[0] = *at;
  } else {
    for (int i = 0; i < kCount; i += 4) load_vector<float, 4>(at + i, values + i);
  }
}

template <int kCount>
__device__ __forceinline__ void store_floats(float* at, const float values[kCount]) {
  if constexpr (kCount == 1) {
    *at = values[0];
  } else {
    for (int i = 0; i < kCount; i += 4) {
      *reinterpret_cast<float4*>(at + i) = make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
    }
  }
}

template <int kCount>
__device__ __forceinline__ void reduce_add_floats(float* at, const float values[kCount]) {
  if constexpr (kCount == 1) {
    reduce_add(at, values[0]);
  } else {
    for (int i = 0; i < kCount; i += 4) {
      reduce_add(reinterpret_cast<float4*>(at + i),
                 make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]));
    }
  }
}

// How the lanes of a warp share rows of `vectors` vectors: `lanes` of them to a row, a power of two, each taking every
// lanes-th vector.
struct RowLanes {
  int vectors;
  int lanes;
};

// The fewest lanes that have at most `vectors_per_lane` vectors each. With two, 16-byte vectors fill the 32-byte
// sectors that memory is read in.
inline RowLanes share_rows(int64_t vectors, int vectors_per_lane) {
  int lanes = 1;
  while (lanes < kWarpSize && lanes * vectors_per_lane < vectors) lanes *= 2;
  return {static_cast<int>(vectors), lanes};
}

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

inline bool is_aligned(const void* address, size_t bytes) { return reinterpret_cast<uintptr_t>(address) % bytes == 0; }

// How many values of a row [C] to load at once: 16 bytes of them, or 8, if all rows allow it; 1 otherwise.
template <class T>
int vector_width(const void* rows, int64_t num_channels) {
  for (const int width : {16 / static_cast<int>(sizeof(T)), 4}) {
    if (num_channels % width == 0 && is_aligned(rows, width * sizeof(T))) return width;
  }
  return 1;
}

}  // namespace evoworld
