// Launching kernels: the same call for nvcc and for csrc/simt, which runs kernels on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

#ifdef EW_SIMT
#include "simt/cuda.h"
#else
#include <cuda_runtime.h>
#endif

namespace evoworld {

// Where an op's kernels run, in order, and where their scratch memory comes from.
struct Stream {
  cudaStream_t handle;
  // Device memory of so many bytes, 256-byte aligned, not initialised; kept until all of the op's kernels are done.
  std::function<void*(size_t bytes)> scratch;

  template <class T>
  T* scratch_of(int64_t count) const {
    return static_cast<T*>(scratch(static_cast<size_t>(count) * sizeof(T)));
  }
};

constexpr int64_t kMaxBlocks = 2147483647;  // of a grid along x

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the runtime remembers the error, and the next launch would be blamed for it
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

#if defined(EW_SIMT) || defined(__CUDACC__)
// Runs kernel(arguments...) on `blocks` blocks of `threads` threads with `shared` bytes of dynamic shared memory each.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared,
            [[maybe_unused]] const Stream& stream, Arguments&&... arguments) {
  if (blocks == 0) return;
  if (blocks > kMaxBlocks) throw std::runtime_error(std::string(name) + ": more than 2^31 blocks");
#ifdef EW_SIMT
  simt::launch(name, kernel, blocks, threads, shared, std::forward<Arguments>(arguments)...);
#else
  constexpr size_t kShared = 48 << 10;  // more must be asked for
  if (shared > kShared) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
               name);
  }
  // clang-format off: it would take >>> apart
  kernel<<<static_cast<unsigned>(blocks), threads, shared, stream.handle>>>(std::forward<Arguments>(arguments)...);
  // clang-format on
  check_cuda(cudaGetLastError(), name);
#endif
}
#endif

inline void fill_bytes(void* memory, int value, size_t bytes, const Stream& stream) {
  if (bytes > 0) check_cuda(cudaMemsetAsync(memory, value, bytes, stream.handle), "memset");
}

// Waits for all kernels of the stream, then copies to the host.
inline void copy_to_host(void* host, const void* device, size_t bytes, const Stream& stream) {
  check_cuda(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream.handle), "copy to the host");
  check_cuda(cudaStreamSynchronize(stream.handle), "copy to the host");
}

}  // namespace evoworld
