// What differs between the libraries that the bindings are compiled into:
//
//   libevoworld_cpu               csrc/cpu on threads, for tensors on the CPU
//   libevoworld_cuda (EW_CUDA)    csrc/cuda on torch's current stream, for tensors on a CUDA device
//   tests (EW_CUDA, EW_SIMT)      csrc/cuda executed by csrc/simt: device memory is the host's, tensors are on the CPU
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <vector>

#ifdef EW_CUDA
#include "cuda/launch.h"
#else
#include "cpu/memory.h"
#include "cpu/parallel.h"
#endif

#if defined(EW_CUDA) && !defined(EW_SIMT)
#define EW_DISPATCH_KEY CUDA
#else
#define EW_DISPATCH_KEY CPU
#endif

namespace evoworld {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_device(const char* name, const Tensor& tensor) {
#if defined(EW_CUDA) && !defined(EW_SIMT)
  STD_TORCH_CHECK(tensor.is_cuda(), name, ": expected a tensor on a CUDA device");
#else
  STD_TORCH_CHECK(tensor.is_cpu(), name, ": expected a tensor on the CPU");
#endif
}

// Where the kernels of one call of an op run: what launchers take as their last argument. Lives as long as the call.
#ifndef EW_CUDA

class Execution {
 public:
  explicit Execution(const Tensor&) {}

  int where() const {
    const int chosen = chosen_num_threads();
    return chosen > 0 ? chosen : static_cast<int>(torch::stable::get_num_threads());
  }

  // new_zeros would fault fresh memory in 4 kB at a time, on one thread.
  void zero(void* memory, size_t bytes) const { zero_fresh_memory(memory, bytes, where()); }
};

#else

#ifdef EW_SIMT

// Blocks of exactly the size asked for, so that the address sanitizer sees the end, full of NaN.
class Scratch {
 public:
  explicit Scratch(const Tensor&) {}

  void* allocate(size_t bytes) {
    void* memory = nullptr;
    STD_TORCH_CHECK(posix_memalign(&memory, 256, bytes) == 0, "out of memory");
    blocks_.emplace_back(memory, &std::free);
    return std::memset(memory, 0xff, bytes);
  }

 private:
  std::vector<std::unique_ptr<void, void (*)(void*)> > blocks_;
};

inline cudaStream_t current_stream(const Tensor&) { return {}; }

struct OnDeviceOf {
  explicit OnDeviceOf(const Tensor&) {}
};

#else

// Tensors, from torch's allocator. It hands freed memory to later work of the same stream, so they may go when the call
// returns though its kernels may not have run yet.
class Scratch {
 public:
  explicit Scratch(const Tensor& like) : like_(like) {}

  void* allocate(size_t bytes) {
    blocks_.push_back(torch::stable::new_empty(like_, {static_cast<int64_t>(bytes)}, ScalarType::Byte));
    return blocks_.back().data_ptr();
  }

 private:
  Tensor like_;
  std::vector<Tensor> blocks_;
};

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : guard_(tensor.get_device_index()) {}

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

#endif

class Execution {
 public:
  // On the device of the tensor, which is the current one until the call returns.
  explicit Execution(const Tensor& like)
      : guard_(like),
        scratch_(like),
        stream_{current_stream(like), [this](size_t bytes) { return scratch_.allocate(bytes); }} {}
  Execution(const Execution&) = delete;

  const Stream& where() const { return stream_; }

  void zero(void* memory, size_t bytes) const { fill_bytes(memory, 0, bytes, stream_); }

 private:
  OnDeviceOf guard_;
  Scratch scratch_;
  Stream stream_;
};

#endif

// A float32 tensor of zeros beside `like`.
inline Tensor float_zeros(const Tensor& like, const std::vector<int64_t>& shape, const Execution& execution) {
  Tensor result = torch::stable::new_empty(like, shape, ScalarType::Float);
  execution.zero(result.data_ptr(), static_cast<size_t>(result.numel()) * sizeof(float));
  return result;
}

}  // namespace evoworld
