// One point of voxel_scatter: the point of a ray, its cell, and what its 8 corners receive and give back.
//
//   p = o + t d,  g = (p - origin) / voxel_size,  a_c(g) the trilinear weights of the 8 corners of g's cell
//   feature_sum[c] += a_c weight features,  weight_sum[c] += a_c weight
//
// Backward, with S_c = d_feature_sum[c] . features + d_weight_sum[c]:
//   d_features = weight sum_c a_c d_feature_sum[c],  d_weight = sum_c a_c S_c,
//   d_g = weight sum_c S_c da_c/dg,  d_depth = d_g . d / voxel_size,  d_origins = d_g / voxel_size,
//   d_directions = t d_g / voxel_size.
#pragma once

#include "core/sparse_grid.h"
#include "core/storage.h"

namespace evoworld {

struct ScatterInputs {
  GridView grid;
  const void* features;     // [R, C] of `storage`
  const float* depth;       // [R], metres along the ray
  const float* origins;     // [R, 3], metres
  const float* directions;  // [R, 3]
  const float* weight;      // [R], or null: 1
  Storage storage;
  int64_t num_channels;
};

struct ScatterOutputs {
  float* feature_sum;  // [V, C]
  float* weight_sum;   // [V]
};

struct ScatterOutputGradients {
  const float* feature_sum;  // [V, C]
  const float* weight_sum;   // [V]
};

struct ScatterInputGradients {
  float* features;    // [R, C], null when not wanted
  float* depth;       // [R], null when nothing of the geometry is wanted; origins and directions alike
  float* origins;     // [R, 3]
  float* directions;  // [R, 3]
  float* weight;      // [R], null when not wanted
};

// The cell and fraction of a ray's point. False where it has none: depth not positive or not finite, or beyond any
// grid.
EW_HD bool scatter_point(const ScatterInputs& in, int64_t ray, CellPoint& point) {
  const float t = in.depth[ray];
  if (!(t > 0.0f && t < INFINITY)) return false;
  const LatticeLine line = lattice_line(in.grid, load3(in.origins, ray), load3(in.directions, ray));
  if (!point_in_lattice(line, t)) return false;
  point = cell_point(line, t);
  return true;
}

EW_HD float scatter_weight(const ScatterInputs& in, int64_t ray) {
  return in.weight != nullptr ? in.weight[ray] : 1.0f;
}

}  // namespace evoworld
