// Registers volume_render. Its schemas are defined in evoworld/ops/volume_render.py.
#ifdef EW_CUDA
#include "cuda/volume_render.h"
#else
#include "cpu/volume_render.h"
#endif

#include <tuple>

#include "torch/checks.h"

namespace evoworld {
namespace {

using torch::stable::new_empty;

MarchParams march_params(double near, double far, double step, double min_transmittance) {
  return {static_cast<float>(near), static_cast<float>(far), static_cast<float>(step),
          static_cast<float>(min_transmittance)};
}

RenderInputs render_inputs(const Tensor& features, const Tensor& density, const Tensor& origins,
                           const Tensor& directions, const std::optional<Tensor>& jitter, const GridArguments& grid,
                           const MarchParams& march, int64_t image_width) {
  const int64_t num_voxels = density.numel();
  check_tensor("density", density, ScalarType::Float, {num_voxels}, density);
  check_tensor("features", features, features.scalar_type(), {num_voxels, -1}, density);
  check_tensor("origins", origins, ScalarType::Float, {-1, 3}, density);
  check_tensor("directions", directions, ScalarType::Float, {origins.size(0), 3}, density);
  if (jitter.has_value()) check_tensor("jitter", *jitter, ScalarType::Float, {origins.size(0)}, density);
  RenderInputs in = {grid_view(grid, density),
                     march,
                     features.data_ptr(),
                     data_of<const float>(density),
                     data_of<const float>(origins),
                     data_of<const float>(directions),
                     data_of<const float>(jitter),
                     storage_of("features", features),
                     features.size(1),
                     num_voxels / kBrickVoxels};
  in.num_pages = grid.pages.size(0);
  in.image_width = image_width;
  return in;
}

std::tuple<Tensor, Tensor, Tensor> volume_render_op(const Tensor features, const Tensor density, const Tensor origins,
                                                    const Tensor directions, const std::optional<Tensor> jitter,
                                                    const Tensor directory, const Tensor pages,
                                                    const std::vector<int64_t> page_origin,
                                                    const std::vector<double> grid_origin, double voxel_size,
                                                    double near, double far, double step, double min_transmittance,
                                                    int64_t image_width) {
  const RenderInputs in = render_inputs(features, density, origins, directions, jitter,
                                        {directory, pages, page_origin, grid_origin, voxel_size},
                                        march_params(near, far, step, min_transmittance), image_width);
  const int64_t num_rays = origins.size(0);
  const Execution execution(density);
  Tensor out_features = new_empty(density, {num_rays, in.num_channels});
  Tensor out_depth = new_empty(density, {num_rays});
  Tensor out_opacity = new_empty(density, {num_rays});
  volume_render_forward(in, {data_of<float>(out_features), data_of<float>(out_depth), data_of<float>(out_opacity)},
                        num_rays, execution.where());
  return {out_features, out_depth, out_opacity};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> volume_render_backward_op(
    const Tensor d_features, const Tensor d_depth, const Tensor d_opacity, const Tensor out_features,
    const Tensor out_depth, const Tensor out_opacity, const Tensor features, const Tensor density, const Tensor origins,
    const Tensor directions, const std::optional<Tensor> jitter, const Tensor directory, const Tensor pages,
    const std::vector<int64_t> page_origin, const std::vector<double> grid_origin, double voxel_size, double near,
    double far, double step, double min_transmittance, int64_t image_width, bool wants_features, bool wants_density,
    bool wants_rays, [[maybe_unused]] bool deterministic) {
  const RenderInputs in = render_inputs(features, density, origins, directions, jitter,
                                        {directory, pages, page_origin, grid_origin, voxel_size},
                                        march_params(near, far, step, min_transmittance), image_width);
  const int64_t num_rays = origins.size(0);
  check_tensor("d_features", d_features, ScalarType::Float, {num_rays, in.num_channels}, density);
  check_tensor("d_depth", d_depth, ScalarType::Float, {num_rays}, density);
  check_tensor("d_opacity", d_opacity, ScalarType::Float, {num_rays}, density);
  check_tensor("out_features", out_features, ScalarType::Float, {num_rays, in.num_channels}, density);
  check_tensor("out_depth", out_depth, ScalarType::Float, {num_rays}, density);
  check_tensor("out_opacity", out_opacity, ScalarType::Float, {num_rays}, density);
  const Execution execution(density);
  // A gradient that is not wanted comes back empty.
  Tensor by_features = float_zeros(density, {wants_features ? features.size(0) : 0, in.num_channels}, execution);
  Tensor by_density = float_zeros(density, {wants_density ? density.size(0) : 0}, execution);
  Tensor by_origins = new_empty(density, {wants_rays ? num_rays : 0, 3});
  Tensor by_directions = new_empty(density, {wants_rays ? num_rays : 0, 3});
  const RenderInputGradients gradients = {
      wants_features ? data_of<float>(by_features) : nullptr, wants_density ? data_of<float>(by_density) : nullptr,
      wants_rays ? data_of<float>(by_origins) : nullptr, wants_rays ? data_of<float>(by_directions) : nullptr};
#ifdef EW_CUDA
  const Stream& where = execution.where();  // has no deterministic way: evoworld/ops says so
#else
  const int where = deterministic ? 1 : execution.where();
#endif
  volume_render_backward(
      in, {data_of<float>(out_features), data_of<float>(out_depth), data_of<float>(out_opacity)},
      {data_of<const float>(d_features), data_of<const float>(d_depth), data_of<const float>(d_opacity)}, gradients,
      num_rays, where);
  return {by_features, by_density, by_origins, by_directions};
}

}  // namespace
}  // namespace evoworld

STABLE_TORCH_LIBRARY_IMPL(evoworld, EW_DISPATCH_KEY, m) {
  m.impl("volume_render", TORCH_BOX(&evoworld::volume_render_op));
  m.impl("volume_render_backward", TORCH_BOX(&evoworld::volume_render_backward_op));
}
