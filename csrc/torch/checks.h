// What every op's binding needs: argument checks that name the argument, and views of tensors for the kernels.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/sparse_grid.h"
#include "core/storage.h"
#include "torch/backend.h"

namespace evoworld {

// Throws unless the tensor is contiguous, of this type and shape (-1: any size), on the device of `like`, which is one
// that this library serves.
inline void check_tensor(const char* name, const Tensor& tensor, ScalarType type, const std::vector<int64_t>& shape,
                         const Tensor& like) {
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i) {
    fits = shape[i] < 0 || tensor.size(static_cast<int64_t>(i)) == shape[i];
  }
  std::string wanted;
  for (const int64_t size : shape) wanted += (wanted.empty() ? "" : ", ") + (size < 0 ? "any" : std::to_string(size));
  STD_TORCH_CHECK(fits, name, ": expected shape [", wanted, "]");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, ": unexpected dtype");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor");
  check_device(name, tensor);
  STD_TORCH_CHECK(tensor.get_device_index() == like.get_device_index(), name,
                  ": expected a tensor on the device of the others");
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

// The grid as the ops take it, in the order of GRID_SCHEMA (evoworld/ops/library.py).
struct GridArguments {
  const Tensor& directory;
  const Tensor& pages;
  const std::vector<int64_t>& page_origin;
  const std::vector<double>& grid_origin;
  double voxel_size;
};

inline GridView grid_view(const GridArguments& given, const Tensor& like) {
  check_tensor("directory", given.directory, ScalarType::Int, {-1, -1, -1}, like);
  check_tensor("pages", given.pages, ScalarType::Int, {-1, kPageBricks}, like);
  STD_TORCH_CHECK(given.page_origin.size() == 3 && given.grid_origin.size() == 3,
                  "grid: expected origins of three numbers");
  STD_TORCH_CHECK(given.voxel_size > 0, "voxel_size: expected a positive number, got ", given.voxel_size);
  GridView grid;
  grid.directory = data_of<const int32_t>(given.directory);
  grid.pages = data_of<const int32_t>(given.pages);
  grid.size = {static_cast<int32_t>(given.directory.size(0)), static_cast<int32_t>(given.directory.size(1)),
               static_cast<int32_t>(given.directory.size(2))};
  grid.page_origin = {static_cast<int32_t>(given.page_origin[0]), static_cast<int32_t>(given.page_origin[1]),
                      static_cast<int32_t>(given.page_origin[2])};
  grid.origin = {static_cast<float>(given.grid_origin[0]), static_cast<float>(given.grid_origin[1]),
                 static_cast<float>(given.grid_origin[2])};
  grid.voxel_size = static_cast<float>(given.voxel_size);
  return grid;
}

}  // namespace evoworld
