// Registers the grid ops for the CPU. Their schemas are defined in evoworld/ops/sparse_grid.py.
#include "cpu/sparse_grid.h"

#include "torch/checks.h"

namespace evoworld {
namespace {

Tensor missing_bricks_cpu(const Tensor points, const Tensor directory, const Tensor pages,
                          const std::vector<int64_t> page_origin, const std::vector<double> grid_origin,
                          double voxel_size) {
  check_tensor("points", points, ScalarType::Float, {-1, 3});
  const GridView grid = grid_view(directory, pages, page_origin, grid_origin, voxel_size);
  const std::vector<Int3> missing = missing_bricks(grid, data_of<const float>(points), points.size(0), num_threads());
  Tensor result = torch::stable::new_empty(directory, {static_cast<int64_t>(missing.size()), 3});
  static_assert(sizeof(Int3) == 3 * sizeof(int32_t));
  if (!missing.empty()) std::memcpy(result.data_ptr(), missing.data(), missing.size() * sizeof(Int3));
  return result;
}

void insert_bricks_cpu(Tensor directory, Tensor pages, const std::vector<int64_t> page_origin, const Tensor bricks,
                       int64_t first_index) {
  check_tensor("bricks", bricks, ScalarType::Int, {-1, 3});
  const GridView grid = grid_view(directory, pages, page_origin, {0.0, 0.0, 0.0}, 1.0);
  STD_TORCH_CHECK(first_index >= 0 && first_index + bricks.size(0) <= INT32_MAX, "first_index: more than 2^31 bricks");
  const bool inserted = insert_bricks(grid, data_of<int32_t>(pages), data_of<const int32_t>(bricks), bricks.size(0),
                                      static_cast<int32_t>(first_index), num_threads());
  STD_TORCH_CHECK(inserted, "bricks: expected bricks that are not in the grid yet and whose pages exist");
}

}  // namespace
}  // namespace evoworld

STABLE_TORCH_LIBRARY_IMPL(evoworld, CPU, m) {
  m.impl("missing_bricks", TORCH_BOX(&evoworld::missing_bricks_cpu));
  m.impl("insert_bricks", TORCH_BOX(&evoworld::insert_bricks_cpu));
}
