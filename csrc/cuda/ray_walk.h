// One lane's walk along its ray: march_ray() in a shape for warps, with the same samples in the same cells.
//
// A walk stops at each cell that matters, so that the lanes of a warp gather there and pass their cells together.
#pragma once

#include "core/ray_march.h"
#include "core/volume_render.h"
#include "cuda/device.h"

namespace evoworld {

constexpr uint32_t kNoVoxel = 0xffffffffu;               // row of a lattice point that is not allocated
constexpr int64_t kMaxBricks = kNoVoxel / kBrickVoxels;  // rows fit 32 bits

inline void check_num_bricks(const char* op, int64_t num_bricks) {
  if (num_bricks <= kMaxBricks) return;
  throw std::runtime_error(std::string(op) + ": expected at most " + std::to_string(kMaxBricks) + " bricks, got " +
                           std::to_string(num_bricks));
}

// The densities of a cell's corners. Corners that are not allocated have none, and get the row of one that is: they can
// be read like the others, for nothing. Returns which are allocated, a bit each.
__device__ __forceinline__ unsigned load_densities(const float* density /* [V] */, uint32_t rows[8],
                                                   float densities[8]) {
  uint32_t any = rows[0];
#pragma unroll
  for (int i = 1; i < 8; ++i) any = min(any, rows[i]);
  unsigned allocated = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const bool there = rows[i] != kNoVoxel;
    allocated |= there ? 1u << i : 0u;
    rows[i] = there ? rows[i] : any;
    const float value = density[rows[i]];
    densities[i] = there ? value : 0.0f;
  }
  return allocated;
}

constexpr int32_t kFarAway = 1 << 30;  // no cell of any grid: beyond kMaxLattice, and differences fit 32 bits

struct RayWalk {
  LatticeLine line = {};
  Float3 inverse_slope = {};
  float jitter = 0.0f;
  float margin = 0.0f;                          // lattice units, see march_ray
  float k = 0.0f;                               // the current sample
  float end = 0.0f;                             // one after the ray's last sample
  Int3 cell = {};                               // of sample k
  Int3 brick = {kFarAway, kFarAway, kFarAway};  // its first lattice point
  int32_t page = -1;                            // the brick's
  uint64_t cells = 0;                           // of the brick, those that matter

  __device__ __forceinline__ void start(const RenderInputs& in, int64_t ray) {
    line = lattice_line(in.grid, load3(in.origins, ray), load3(in.directions, ray));
    jitter = in.jitter != nullptr ? in.jitter[ray] : 0.5f;
    inverse_slope = {1.0f / line.slope.x, 1.0f / line.slope.y, 1.0f / line.slope.z};
    margin = 0.01f + 1.0e-6f * (fabsf(line.base.x) + fabsf(line.base.y) + fabsf(line.base.z));
    const SampleRange range = samples_in_grid(in.grid, line, in.march, jitter);
    k = range.first;
    end = range.last;
  }

  __device__ __forceinline__ float distance(const MarchParams& march) const {
    return sample_distance(march, jitter, k);
  }

  // Moves to the first sample from k on whose cell matters; false: there is none. `cells` as find_cells() gives it.
  __device__ __forceinline__ bool seek(const RenderInputs& in, const uint64_t* cells_of /* [P, 512] */,
                                       float inverse_step) {
    while (true) {
      bool found = false;
      while (k < end) {
        cell = cell_point(line, distance(in.march)).cell;
        const Int3 inside = {cell.x - brick.x, cell.y - brick.y, cell.z - brick.z};
        if (static_cast<uint32_t>(inside.x | inside.y | inside.z) >= kBrickEdge) break;
        const int place = inside.x << (2 * kBrickShift) | inside.y << kBrickShift | inside.z;
        const uint32_t half = static_cast<uint32_t>(place & 32 ? cells >> 32 : cells);
        found = (half >> (place & 31) & 1) != 0;
        if (found) break;
        k += 1.0f;
      }
      if (found || !(k < end)) return found;

      const Int3 at = shift_down(cell, kBrickShift);
      brick = {cell.x & -kBrickEdge, cell.y & -kBrickEdge, cell.z & -kBrickEdge};
      cells = 0;
      const int64_t slot = directory_index(in.grid, shift_down(at, kPageShift));
      if (slot < 0) continue;  // outside the directory: step by step
      page = in.grid.directory[slot];
      BrickEntry entry = {-1, max(-1 - page, 1), kBrickShift + kPageShift};
      if (page >= 0) {
        const int64_t index = static_cast<int64_t>(page) * kPageBricks + index_in_page(at);
        entry = {-1, max(-1 - in.grid.pages[index], 1), kBrickShift};
        cells = cells_of[index];
      }
      if (cells == 0) {
        const float leave = leave_inactive(line, inverse_slope, cell, entry, margin);
        const float target = (leave - in.march.near) * inverse_step - jitter;
        k = larger(k + 1.0f, ceilf(target - (1.0e-3f + 1.0e-6f * fabsf(target))));  // see march_ray
      }
    }
  }

  // The next sample, if there is one and its cell is the same: then its place in the cell.
  __device__ __forceinline__ bool stay(const MarchParams& march, Float3& fraction) {
    k += 1.0f;
    if (!(k < end)) return false;
    const CellPoint point = cell_point(line, distance(march));
    fraction = point.fraction;
    return same(point.cell, cell);
  }

  // Rows of the cell's 8 corners, kNoVoxel where not allocated: entry i is corner i ^ mirror (order of corner_of).
  __device__ __forceinline__ void find_rows(const GridView& grid, int mirror, uint32_t rows[8]) const {
    constexpr int mask = kBrickEdge - 1, page_mask = (kPageEdge << kBrickShift) - 1;
    const int32_t low[3] = {cell.x, cell.y, cell.z};
    int in_page[3][2], in_brick[3][2];
    bool beyond[3][2];  // in the next page
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int along = (low[axis] & page_mask) + (side ^ (mirror >> (2 - axis) & 1));
        beyond[axis][side] = along > page_mask;
        in_page[axis][side] = (along & page_mask) >> kBrickShift << ((2 - axis) * kPageShift);
        in_brick[axis][side] = (along & mask) << ((2 - axis) * kBrickShift);
      }
    }
    int32_t pages[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) pages[i] = page;
    if (beyond[0][0] || beyond[0][1] || beyond[1][0] || beyond[1][1] || beyond[2][0] || beyond[2][1]) {
      const Int3 here = shift_down(cell, kBrickShift + kPageShift);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int64_t slot = directory_index(
            grid, {here.x + beyond[0][i >> 2], here.y + beyond[1][i >> 1 & 1], here.z + beyond[2][i & 1]});
        pages[i] = slot < 0 ? -1 : grid.directory[slot];
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int x = i >> 2, y = i >> 1 & 1, z = i & 1;
      const int64_t index =
          static_cast<int64_t>(pages[i]) * kPageBricks + (in_page[0][x] | in_page[1][y] | in_page[2][z]);
      const int32_t found = pages[i] < 0 ? -1 : grid.pages[index];
      const int place = in_brick[0][x] | in_brick[1][y] | in_brick[2][z];
      rows[i] = found < 0 ? kNoVoxel : static_cast<uint32_t>(found) * kBrickVoxels + static_cast<uint32_t>(place);
    }
  }
};

}  // namespace evoworld
