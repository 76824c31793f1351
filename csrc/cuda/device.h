// What kernels are written with besides CUDA's own names: shared memory, reductions to memory, 16-byte rows.
#pragma once

#include "core/common.h"
#include "cuda/launch.h"

namespace evoworld {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// The block's dynamic shared memory, one struct or array of T: the size is what launch() was given.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef EW_SIMT
  return static_cast<T*>(simt::dynamic_shared_memory());
#else
  extern __shared__ __align__(16) unsigned char ew_dynamic_shared[];
  return reinterpret_cast<T*>(ew_dynamic_shared);
#endif
}

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarpSize; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarpSize; }

// *address += value, seen by all blocks once the kernel has ended. Nothing comes back, so the L2 does it.
__device__ __forceinline__ void reduce_add(float* address, float value) { atomicAdd(address, value); }

// Four at once where the processor can (sm_90 and later); `address` is 16-byte aligned.
__device__ __forceinline__ void reduce_add(float4* address, float4 value) {
#if defined(EW_SIMT) || __CUDA_ARCH__ >= 900
  atomicAdd(address, value);
#else
  float* const parts = reinterpret_cast<float*>(address);
  atomicAdd(parts, value.x);
  atomicAdd(parts + 1, value.y);
  atomicAdd(parts + 2, value.z);
  atomicAdd(parts + 3, value.w);
#endif
}

}  // namespace evoworld
