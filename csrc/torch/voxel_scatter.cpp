// Registers voxel_scatter. Its schemas are defined in evoworld/ops/voxel_scatter.py.
#ifdef EW_CUDA
#include "cuda/voxel_scatter.h"
#else
#include "cpu/voxel_scatter.h"
#endif

#include <tuple>

#include "torch/checks.h"

namespace evoworld {
namespace {

using torch::stable::new_empty;

ScatterInputs scatter_inputs(const Tensor& features, const Tensor& depth, const Tensor& origins,
                             const Tensor& directions, const std::optional<Tensor>& weight, const GridArguments& grid,
                             int64_t image_width) {
  const int64_t num_rays = depth.numel();
  check_tensor("depth", depth, ScalarType::Float, {num_rays}, depth);
  check_tensor("features", features, features.scalar_type(), {num_rays, -1}, depth);
  check_tensor("origins", origins, ScalarType::Float, {num_rays, 3}, depth);
  check_tensor("directions", directions, ScalarType::Float, {num_rays, 3}, depth);
  if (weight.has_value()) check_tensor("weight", *weight, ScalarType::Float, {num_rays}, depth);
  return {grid_view(grid, depth),
          features.data_ptr(),
          data_of<const float>(depth),
          data_of<const float>(origins),
          data_of<const float>(directions),
          data_of<const float>(weight),
          storage_of("features", features),
          features.size(1),
          image_width};
}

void scatter_into(Tensor& feature_sum, Tensor& weight_sum, const ScatterInputs& in, int64_t num_rays,
                  [[maybe_unused]] bool deterministic, const Execution& execution) {
  const ScatterOutputs out = {data_of<float>(feature_sum), data_of<float>(weight_sum), feature_sum.size(0)};
#ifdef EW_CUDA
  voxel_scatter_forward(in, out, num_rays, deterministic, execution.where());
#else
  voxel_scatter_forward(in, out, num_rays, execution.where());  // always is
#endif
}

std::tuple<Tensor, Tensor> voxel_scatter_op(const Tensor features, const Tensor depth, const Tensor origins,
                                            const Tensor directions, const std::optional<Tensor> weight,
                                            const Tensor directory, const Tensor pages,
                                            const std::vector<int64_t> page_origin,
                                            const std::vector<double> grid_origin, double voxel_size,
                                            int64_t image_width, int64_t num_voxels, bool deterministic) {
  const ScatterInputs in = scatter_inputs(features, depth, origins, directions, weight,
                                          {directory, pages, page_origin, grid_origin, voxel_size}, image_width);
  const Execution execution(depth);
  Tensor feature_sum = float_zeros(depth, {num_voxels, in.num_channels}, execution);
  Tensor weight_sum = float_zeros(depth, {num_voxels}, execution);
  scatter_into(feature_sum, weight_sum, in, depth.size(0), deterministic, execution);
  return {feature_sum, weight_sum};
}

void voxel_scatter_in_place_op(Tensor feature_sum, Tensor weight_sum, const Tensor features, const Tensor depth,
                               const Tensor origins, const Tensor directions, const std::optional<Tensor> weight,
                               const Tensor directory, const Tensor pages, const std::vector<int64_t> page_origin,
                               const std::vector<double> grid_origin, double voxel_size, int64_t image_width,
                               bool deterministic) {
  const ScatterInputs in = scatter_inputs(features, depth, origins, directions, weight,
                                          {directory, pages, page_origin, grid_origin, voxel_size}, image_width);
  check_tensor("feature_sum", feature_sum, ScalarType::Float, {-1, in.num_channels}, depth);
  check_tensor("weight_sum", weight_sum, ScalarType::Float, {feature_sum.size(0)}, depth);
  scatter_into(feature_sum, weight_sum, in, depth.size(0), deterministic, Execution(depth));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> voxel_scatter_backward_op(
    const Tensor d_feature_sum, const Tensor d_weight_sum, const Tensor features, const Tensor depth,
    const Tensor origins, const Tensor directions, const std::optional<Tensor> weight, const Tensor directory,
    const Tensor pages, const std::vector<int64_t> page_origin, const std::vector<double> grid_origin,
    double voxel_size, int64_t image_width, bool wants_features, bool wants_geometry, bool wants_weight) {
  const ScatterInputs in = scatter_inputs(features, depth, origins, directions, weight,
                                          {directory, pages, page_origin, grid_origin, voxel_size}, image_width);
  check_tensor("d_feature_sum", d_feature_sum, ScalarType::Float, {-1, in.num_channels}, depth);
  check_tensor("d_weight_sum", d_weight_sum, ScalarType::Float, {d_feature_sum.size(0)}, depth);
  const int64_t num_rays = depth.size(0), geometry_rays = wants_geometry ? num_rays : 0;
  const Execution execution(depth);
  // A gradient that is not wanted comes back empty.
  Tensor by_features = new_empty(depth, {wants_features ? num_rays : 0, in.num_channels});
  Tensor by_depth = new_empty(depth, {geometry_rays});
  Tensor by_origins = new_empty(depth, {geometry_rays, 3});
  Tensor by_directions = new_empty(depth, {geometry_rays, 3});
  Tensor by_weight = new_empty(depth, {wants_weight ? num_rays : 0});
  const ScatterInputGradients gradients = {
      wants_features ? data_of<float>(by_features) : nullptr, wants_geometry ? data_of<float>(by_depth) : nullptr,
      wants_geometry ? data_of<float>(by_origins) : nullptr, wants_geometry ? data_of<float>(by_directions) : nullptr,
      wants_weight ? data_of<float>(by_weight) : nullptr};
  voxel_scatter_backward(in, {data_of<const float>(d_feature_sum), data_of<const float>(d_weight_sum)}, gradients,
                         num_rays, execution.where());
  return {by_features, by_depth, by_origins, by_directions, by_weight};
}

}  // namespace
}  // namespace evoworld

STABLE_TORCH_LIBRARY_IMPL(evoworld, EW_DISPATCH_KEY, m) {
  m.impl("voxel_scatter", TORCH_BOX(&evoworld::voxel_scatter_op));
  m.impl("voxel_scatter_", TORCH_BOX(&evoworld::voxel_scatter_in_place_op));
  m.impl("voxel_scatter_backward", TORCH_BOX(&evoworld::voxel_scatter_backward_op));
}
