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
  int64_t image_width = 0;  // pixels in a row where the rays are an image's pixels, row by row; 0: unknown
};

struct ScatterOutputs {
  float* feature_sum;      // [V, C]
  float* weight_sum;       // [V]
  int64_t num_voxels = 0;  // V where it is known, 0 otherwise: a smaller sort for the deterministic sums on a GPU
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

EW_HD float scatter_weight(const ScatterInputs& in, int64_t ray) {
  return in.weight != nullptr ? in.weight[ray] : 1.0f;
}

// What a ray brings to the op but for its features. Loaded whole, and then judged without a branch, so that a GPU waits
// for memory once.
struct ScatterRay {
  float depth;
  Float3 origin;
  Float3 direction;
  float weight;
};

EW_HD ScatterRay load_ray(const ScatterInputs& in, int64_t ray) {
  return {in.depth[ray], load3(in.origins, ray), load3(in.directions, ray), scatter_weight(in, ray)};
}

// The cell and fraction of a ray's point. False, and zeros, where it has none: depth not positive or not finite, or
// beyond any grid.
EW_HD bool ray_point(const GridView& grid, const ScatterRay& ray, CellPoint& point) {
  const float t = ray.depth;
  LatticeLine line = lattice_line(grid, ray.origin, ray.direction);
  const float x = fmaf(t, line.slope.x, line.base.x), y = fmaf(t, line.slope.y, line.base.y),
              z = fmaf(t, line.slope.z, line.base.z);
  const bool valid =
      (t > 0.0f) & (t < INFINITY) & (fabsf(x) < kMaxLattice) & (fabsf(y) < kMaxLattice) & (fabsf(z) < kMaxLattice);
  const Float3 g = {valid ? x : 0.0f, valid ? y : 0.0f, valid ? z : 0.0f};
  const Float3 low = {floorf(g.x), floorf(g.y), floorf(g.z)};
  point = {{static_cast<int32_t>(low.x), static_cast<int32_t>(low.y), static_cast<int32_t>(low.z)},
           {g.x - low.x, g.y - low.y, g.z - low.z}};
  return valid;
}

EW_HD bool scatter_point(const ScatterInputs& in, int64_t ray, CellPoint& point) {
  return ray_point(in.grid, load_ray(in, ray), point);
}

// Trilinear weight of one corner: the same bits as trilinear_weights() gives.
EW_HD float corner_weight(Float3 f, int corner) {
  const float x = corner & 4 ? f.x : 1.0f - f.x, y = corner & 2 ? f.y : 1.0f - f.y, z = corner & 1 ? f.z : 1.0f - f.z;
  return x * y * z;
}

// Value row of a lattice point; kNoRow where nothing is allocated.
EW_HD int64_t find_row(const GridView& grid, Int3 lattice) {
  const int32_t brick = find_brick(grid, shift_down(lattice, kBrickShift));
  return brick < 0 ? kNoRow : static_cast<int64_t>(brick) * kBrickVoxels + index_in_brick(lattice);
}

// Value rows of the corners of a cell, corner i's to rows[i * stride]; kNoRow where nothing is allocated. What
// find_neighbour_rows() and find_cell_rows() give, without an array between, which a GPU would keep in memory.
EW_HD void find_corner_rows(const GridView& grid, Int3 cell, int64_t* rows, int stride) {
  constexpr int kBrickBits = 3 * kBrickShift;
  const Int3 page_at = shift_down(cell, kBrickShift + kPageShift), high = corner_of(cell, 7);
  if (same(page_at, shift_down(high, kBrickShift + kPageShift))) {
    const int64_t slot = directory_index(grid, page_at);
    const int32_t page = slot < 0 ? -1 : grid.directory[slot];
    const int64_t first = static_cast<int64_t>(page) * kPageBricks;
    // An axis's part of a lattice point's index within the page: which brick, and where in it.
    const auto part = [](int32_t at, int axis) {
      return ((at >> kBrickShift & (kPageEdge - 1)) << (kBrickBits + axis * kPageShift)) |
             ((at & (kBrickEdge - 1)) << (axis * kBrickShift));
    };
    const int32_t x[2] = {part(cell.x, 2), part(high.x, 2)}, y[2] = {part(cell.y, 1), part(high.y, 1)},
                  z[2] = {part(cell.z, 0), part(high.z, 0)};
    for (int i = 0; i < 8; ++i) {
      const int32_t at = x[i >> 2] | y[i >> 1 & 1] | z[i & 1];
      const int32_t brick = page < 0 ? -1 : grid.pages[first + (at >> kBrickBits)];
      rows[i * stride] = brick < 0 ? kNoRow : static_cast<int64_t>(brick) * kBrickVoxels + (at & (kBrickVoxels - 1));
    }
  } else {  // rare: no copies of the loop's body
#ifdef __CUDACC__
#pragma unroll 1
#endif
    for (int i = 0; i < 8; ++i) rows[i * stride] = find_row(grid, corner_of(cell, i));
  }
}

}  // namespace evoworld
