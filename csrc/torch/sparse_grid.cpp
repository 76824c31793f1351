// Registers the grid ops. Their schemas are defined in evoworld/ops/sparse_grid.py.
#ifdef EW_CUDA
#include "cuda/sparse_grid.h"
#else
#include "cpu/sparse_grid.h"
#endif

#include "torch/checks.h"

namespace evoworld {
namespace {

Tensor missing_bricks_op(const Tensor points, const Tensor directory, const Tensor pages,
                         const std::vector<int64_t> page_origin, const std::vector<double> grid_origin,
                         double voxel_size) {
  check_tensor("points", points, ScalarType::Float, {-1, 3}, points);
  const GridView grid = grid_view({directory, pages, page_origin, grid_origin, voxel_size}, points);
  const Execution execution(points);
  const float* const positions = data_of<const float>(points);
#ifdef EW_CUDA
  int32_t* bricks = nullptr;
  const int64_t count = missing_bricks(grid, positions, points.size(0), bricks, execution.where());
#else
  static_assert(sizeof(Int3) == 3 * sizeof(int32_t));
  std::vector<Int3> missing = missing_bricks(grid, positions, points.size(0), execution.where());
  const int64_t count = static_cast<int64_t>(missing.size());
  int32_t* const bricks = &missing.data()->x;
#endif
  if (count == 0) return torch::stable::new_empty(directory, {0, 3});
  const std::vector<int64_t> shape = {count, 3}, strides = {3, 1};
  return torch::stable::clone(torch::stable::from_blob(bricks, shape, strides, directory.device(), ScalarType::Int));
}

void insert_bricks_op(Tensor directory, Tensor pages, const std::vector<int64_t> page_origin, const Tensor bricks,
                      int64_t first_index) {
  const std::vector<double> anywhere = {0.0, 0.0, 0.0};
  const GridView grid = grid_view({directory, pages, page_origin, anywhere, 1.0}, pages);
  check_tensor("bricks", bricks, ScalarType::Int, {-1, 3}, pages);
  STD_TORCH_CHECK(first_index >= 0 && first_index + bricks.size(0) <= INT32_MAX, "first_index: more than 2^31 bricks");
  const Execution execution(pages);
#ifdef EW_CUDA
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(pages.data_ptr()) % 16 == 0, "pages: expected a start on 16 bytes");
  // Bricks that are there already, which the CPU refuses, would cost a copy to the host here. SparseGrid sends none.
  insert_bricks(grid, data_of<int32_t>(pages), pages.size(0), data_of<const int32_t>(bricks), bricks.size(0),
                static_cast<int32_t>(first_index), execution.where());
#else
  const bool inserted = insert_bricks(grid, data_of<int32_t>(pages), data_of<const int32_t>(bricks), bricks.size(0),
                                      static_cast<int32_t>(first_index), execution.where());
  STD_TORCH_CHECK(inserted, "bricks: expected bricks that are not in the grid yet and whose pages exist");
#endif
}

}  // namespace
}  // namespace evoworld

STABLE_TORCH_LIBRARY_IMPL(evoworld, EW_DISPATCH_KEY, m) {
  m.impl("missing_bricks", TORCH_BOX(&evoworld::missing_bricks_op));
  m.impl("insert_bricks", TORCH_BOX(&evoworld::insert_bricks_op));
}
