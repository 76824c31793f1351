// What every op's binding needs: argument checks that name the argument, and views of tensors for the kernels.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "core/sparse_grid.h"
#include "core/storage.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"

namespace evoworld {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws unless the tensor is contiguous, of this type and shape (-1: any size).
inline void check_tensor(const char* name, const Tensor& tensor, ScalarType type, const std::vector<int64_t>& shape) {
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i) {
    fits = shape[i] < 0 || tensor.size(static_cast<int64_t>(i)) == shape[i];
  }
  std::string wanted;
  for (const int64_t size : shape) wanted += (wanted.empty() ? "" : ", ") + (size < 0 ? "any" : std::to_string(size));
  STD_TORCH_CHECK(fits, name, ": expected shape [", wanted, "]");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, ": unexpected dtype");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor");
}

inline Storage storage_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Storage::float32;
    case ScalarType::Half:
      return Storage::float16;
    case ScalarType::BFloat16:
      return Storage::bfloat16;
    default:
      STD_TORCH_CHECK(false, name, ": expected float32, float16 or bfloat16");
  }
  return Storage::float32;
}

template <class T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

template <class T>
T* data_of(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? static_cast<T*>(tensor->data_ptr()) : nullptr;
}

inline int num_threads() {
  const int chosen = chosen_num_threads();
  return chosen > 0 ? chosen : static_cast<int>(torch::stable::get_num_threads());
}

// A float32 tensor of zeros beside `like`. new_zeros would fault it in 4 kB at a time, on one thread.
inline Tensor float_zeros(const Tensor& like, const std::vector<int64_t>& shape) {
  Tensor result = torch::stable::new_empty(like, shape, ScalarType::Float);
  zero_fresh_memory(result.data_ptr(), static_cast<size_t>(result.numel()) * sizeof(float), num_threads());
  return result;
}

inline GridView grid_view(const Tensor& directory, const Tensor& pages, const std::vector<int64_t>& page_origin,
                          const std::vector<double>& grid_origin, double voxel_size) {
  check_tensor("directory", directory, ScalarType::Int, {-1, -1, -1});
  check_tensor("pages", pages, ScalarType::Int, {-1, kPageBricks});
  STD_TORCH_CHECK(page_origin.size() == 3 && grid_origin.size() == 3, "grid: expected origins of three numbers");
  STD_TORCH_CHECK(voxel_size > 0, "voxel_size: expected a positive number, got ", voxel_size);
  GridView grid;
  grid.directory = data_of<const int32_t>(directory);
  grid.pages = data_of<const int32_t>(pages);
  grid.size = {static_cast<int32_t>(directory.size(0)), static_cast<int32_t>(directory.size(1)),
               static_cast<int32_t>(directory.size(2))};
  grid.page_origin = {static_cast<int32_t>(page_origin[0]), static_cast<int32_t>(page_origin[1]),
                      static_cast<int32_t>(page_origin[2])};
  grid.origin = {static_cast<float>(grid_origin[0]), static_cast<float>(grid_origin[1]),
                 static_cast<float>(grid_origin[2])};
  grid.voxel_size = static_cast<float>(voxel_size);
  return grid;
}

}  // namespace evoworld
