// volume_render, one instruction set: a loop over rays around core/'s ray body, specialised by storage type and
// channels.
#include "core/volume_render.h"
#include "cpu/locks.h"
#include "cpu/storage.h"

namespace evoworld {
namespace EW_ISA {
namespace {

constexpr float kMidStep = 0.5f;  // where a sample lies within its step when no jitter is given

template <class T, int kChannels>
void forward_rays(const RenderInputs& in, const RenderOutputs& out, int64_t begin, int64_t end) {
  const int64_t channels = kChannels > 0 ? kChannels : in.num_channels;
  for (int64_t ray = begin; ray < end; ++ray) {
    const LatticeLine line = lattice_line(in.grid, load3(in.origins, ray), load3(in.directions, ray));
    float* const row = out.features + ray * channels;
    float registers[kChannels > 0 ? kChannels : 1];
    float* const sum = kChannels > 0 ? registers : row;
    for (int64_t c = 0; c < channels; ++c) sum[c] = 0.0f;
    RenderForward<T, kChannels> visitor{in, channels, sum};
    march_ray(in.grid, line, in.march, in.jitter != nullptr ? in.jitter[ray] : kMidStep, visitor);
    if (kChannels > 0) {
      for (int64_t c = 0; c < channels; ++c) row[c] = sum[c];
    }
    out.depth[ray] = visitor.depth;
    out.opacity[ray] = visitor.opacity;
  }
}

// Adds a cell's gradients to the rows, one brick's rows under one lock at a time (none when `locks` is null).
template <int kChannels>
struct RowSink {
  const RenderInputGradients& gradients;
  BrickLocks* locks;
  int64_t channels;
  const float* d_features;  // [C] of the current ray

  EW_HD void expect(int64_t row, bool features) {
    if (gradients.density != nullptr) prefetch(gradients.density + row);
    if (features && gradients.features != nullptr) prefetch(gradients.features + row * channels);
  }

  EW_HD void add(const CellCorners& corners, const float weights[8], const float d_density[8]) {
    int64_t held = -1;
    for (int i = 0; i < 8; ++i) {
      if (!corners.allocated[i]) continue;
      const int64_t row = corners.rows[i];
      if (locks != nullptr && (held < 0 || row / kBrickVoxels != held / kBrickVoxels)) {
        if (held >= 0) locks->unlock(held);
        held = row;
        locks->lock(held);
      }
      if (gradients.density != nullptr) gradients.density[row] += d_density[i];
      if (gradients.features != nullptr && weights[i] != 0.0f) {
        add_scaled<kChannels>(gradients.features + row * channels, weights[i], d_features, channels);
      }
    }
    if (held >= 0) locks->unlock(held);
  }
};

template <class T, int kChannels>
void backward_rays(const RenderInputs& in, const RenderOutputs& out, const RenderOutputGradients& d_out,
                   const RenderInputGradients& gradients, BrickLocks* locks, int64_t begin, int64_t end) {
  const int64_t channels = kChannels > 0 ? kChannels : in.num_channels;
  const bool wants_ray = gradients.origins != nullptr;
  for (int64_t ray = begin; ray < end; ++ray) {
    const float* const d_features = d_out.features + ray * channels;
    double total = static_cast<double>(d_out.depth[ray]) * out.depth[ray] +
                   static_cast<double>(d_out.opacity[ray]) * out.opacity[ray];
    for (int64_t c = 0; c < channels; ++c) {
      total += static_cast<double>(d_features[c]) * out.features[ray * channels + c];
    }
    RowSink<kChannels> sink{gradients, locks, channels, d_features};
    RenderBackward<T, kChannels, RowSink<kChannels>> visitor{
        in,        channels, d_features, d_out.depth[ray], d_out.opacity[ray], gradients.density != nullptr,
        wants_ray, sink,     {total}};
    const LatticeLine line = lattice_line(in.grid, load3(in.origins, ray), load3(in.directions, ray));
    march_ray(in.grid, line, in.march, in.jitter != nullptr ? in.jitter[ray] : kMidStep, visitor);
    if (wants_ray) {
      const float by_base[3] = {visitor.ray.d_base.x, visitor.ray.d_base.y, visitor.ray.d_base.z};
      const float by_slope[3] = {visitor.ray.d_slope.x, visitor.ray.d_slope.y, visitor.ray.d_slope.z};
      for (int i = 0; i < 3; ++i) {
        gradients.origins[3 * ray + i] = by_base[i] / in.grid.voxel_size;
        gradients.directions[3 * ray + i] = by_slope[i] / in.grid.voxel_size;
      }
    }
  }
}

}  // namespace

void render_find_dense_points(const float* density, uint64_t* points, int64_t begin, int64_t end) {
  for (int64_t brick = begin; brick < end; ++brick) points[brick] = nonzero_bits(density + brick * kBrickVoxels);
}

void render_forward_rays(const RenderInputs& in, const RenderOutputs& out, int64_t begin, int64_t end) {
  EW_DISPATCH_STORAGE(in.storage, in.num_channels, forward_rays, in, out, begin, end);
}

void render_backward_rays(const RenderInputs& in, const RenderOutputs& out, const RenderOutputGradients& d_out,
                          const RenderInputGradients& gradients, BrickLocks* locks, int64_t begin, int64_t end) {
  EW_DISPATCH_STORAGE(in.storage, in.num_channels, backward_rays, in, out, d_out, gradients, locks, begin, end);
}

}  // namespace EW_ISA
}  // namespace evoworld
