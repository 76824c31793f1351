// CUDA's vocabulary for g++ and clang, so that the .cu files compile as C++ and run on the CPU (EW_SIMT).
//
// Needs no CUDA toolkit. Everything the kernels may use is here, or in the files included below; a name that is missing
// does not compile, and is then either added or not used. How kernels are run: runtime.h.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "simt/atomics.h"
#include "simt/runtime.h"
#include "simt/vectors.h"
#include "simt/warp.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// One copy for each OS thread, and a block stays on its OS thread: shared by the block. Not filled before a block
// begins.
#define __shared__ static thread_local
// An assumption that does not hold is reported.
#define __builtin_assume(...) \
  ((__VA_ARGS__) ? void() : ::evoworld::simt::fail(::evoworld::simt::Where::current(), "assumed: %s", #__VA_ARGS__))

#define threadIdx (::evoworld::simt::position.thread)
#define blockIdx (::evoworld::simt::position.block)
#define blockDim (::evoworld::simt::position.threads)
#define gridDim (::evoworld::simt::position.blocks)

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= (x >> i & 1u) << (31 - i);
  return result;
}
inline unsigned long long __brevll(unsigned long long x) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
         __brev(static_cast<unsigned>(x >> 32));
}

namespace evoworld::simt {
template <class To, class From>
inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace evoworld::simt

inline unsigned __float_as_uint(float x) { return evoworld::simt::same_bits<unsigned>(x); }
inline int __float_as_int(float x) { return evoworld::simt::same_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return evoworld::simt::same_bits<float>(x); }

#define EW_SIMT_MIN_MAX(T)                         \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
EW_SIMT_MIN_MAX(int)
EW_SIMT_MIN_MAX(unsigned)
EW_SIMT_MIN_MAX(long)
EW_SIMT_MIN_MAX(unsigned long)
EW_SIMT_MIN_MAX(long long)
EW_SIMT_MIN_MAX(unsigned long long)
#undef EW_SIMT_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }  // of a number and NaN: the number, as in CUDA
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

template <class T>
inline T __ldg(const T* address) {
  return *address;
}
inline void __threadfence() { evoworld::simt::fence(); }
inline void __threadfence_block() { evoworld::simt::fence(); }

// What launchers call on the host: device memory is host memory, and a launch is over when it returns.
typedef struct EwSimtStream* cudaStream_t;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};

inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t = nullptr) {
  memset(memory, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t = nullptr) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid value"; }
