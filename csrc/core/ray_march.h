// Walks the samples t_k = near + (k + jitter) * step of one ray through the active bricks of a sparse grid.
//
// Skipping moves k, never a sample: each t_k and its lattice coordinate come from the closed form, so the samples that
// are visited are bit for bit those of a walk that skips nothing. Leaps are shortened by a margin above their rounding
// error.
#pragma once

#include "core/sparse_grid.h"

namespace evoworld {

struct MarchParams {
  float near;               // metres
  float far;                // metres: samples at t >= far do not exist
  float step;               // metres between samples
  float min_transmittance;  // the ray ends before the first sample whose transmittance is below this; 0: never
};

// k is a whole number, kept in float32: leaps then need no conversion in either direction.
EW_HD float sample_distance(const MarchParams& march, float jitter, float k) {
  return fmaf(k + jitter, march.step, march.near);
}

constexpr float kMaxSamples = 16777216.0f;  // 2^24: every smaller k is exact in float32

// The ray's samples inside the directory's box, [first, last); one spare sample on either side covers rounding.
struct SampleRange {
  float first;
  float last;
};

EW_HD SampleRange samples_in_grid(const GridView& grid, const LatticeLine& line, const MarchParams& march,
                                  float jitter) {
  constexpr int shift = kBrickShift + kPageShift;
  constexpr float kSlack = 1.0e-3f;  // relative, against the rounding of the slab distances
  const float base[3] = {line.base.x, line.base.y, line.base.z};
  const float slope[3] = {line.slope.x, line.slope.y, line.slope.z};
  const int32_t low[3] = {grid.page_origin.x, grid.page_origin.y, grid.page_origin.z};
  const int32_t size[3] = {grid.size.x, grid.size.y, grid.size.z};
  float enter = march.near, leave = march.far, end = march.far;
  for (int i = 0; i < 3; ++i) {
    if (!(fabsf(base[i]) < kMaxLattice && fabsf(slope[i]) < kMaxLattice)) return {0, 0};
    const float first = static_cast<float>(low[i]) * (1 << shift);
    const float last = static_cast<float>(low[i] + size[i]) * (1 << shift);
    if (slope[i] == 0.0f) {
      if (!(base[i] >= first && base[i] < last)) return {0, 0};
      continue;
    }
    const float a = (first - base[i]) / slope[i], b = (last - base[i]) / slope[i];
    end = smaller(end, kMaxLattice / fabsf(slope[i]));  // lattice coordinates fit int32
    enter = larger(enter, smaller(a, b));
    leave = smaller(leave, larger(a, b));
  }
  if (!(enter <= leave + kSlack * fabsf(leave))) return {0, 0};
  const float first = floorf((enter - march.near) / march.step * (1.0f - kSlack) - jitter) - 1.0f;
  const float last = ceilf((leave - march.near) / march.step * (1.0f + kSlack) - jitter) + 2.0f;
  SampleRange range = {larger(first, 0.0f), smaller(larger(last, 0.0f), kMaxSamples)};
  while (range.last > range.first && !(sample_distance(march, jitter, range.last - 1.0f) < end)) range.last -= 1.0f;
  return range;
}

// Distance at which the ray leaves the inactive cube around `cell` that `entry` vouches for, less `margin` lattice
// units.
EW_HD float leave_inactive(const LatticeLine& line, const Float3& inverse_slope, Int3 cell, const BrickEntry& entry,
                           float margin) {
  const Int3 unit = shift_down(cell, entry.shift);
  float leave = INFINITY;
  const float base[3] = {line.base.x, line.base.y, line.base.z};
  const float inverse[3] = {inverse_slope.x, inverse_slope.y, inverse_slope.z};
  const int32_t at[3] = {unit.x, unit.y, unit.z};
  for (int i = 0; i < 3; ++i) {
    if (!(fabsf(inverse[i]) < INFINITY)) continue;  // parallel to these planes
    const bool up = inverse[i] > 0.0f;
    const int32_t plane = at[i] + (up ? entry.distance : 1 - entry.distance);
    const float inside = static_cast<float>(plane << entry.shift) - (up ? margin : -margin);
    leave = smaller(leave, (inside - base[i]) * inverse[i]);
  }
  return leave;
}

// Visitor: uint64_t brick(const int64_t brick_rows[8]) on entering a brick, given the first rows of it and its upper
//            neighbours: which of its cells matter, a bit each, by index_in_brick(low corner);
//          void cell(const int64_t rows[8]) on entering a cell that matters, given the rows of its corners;
//          bool sample(float t, Float3 fraction)    (false: the ray is opaque, stop);
//          void leave() when that cell is left.
template <bool kSkip = true, class Visitor>
EW_HD void march_ray(const GridView& grid, const LatticeLine& line, const MarchParams& march, float jitter,
                     Visitor& visitor) {
  const SampleRange range = samples_in_grid(grid, line, march, jitter);
  if (range.first >= range.last) return;
  const Float3 inverse_slope = {1.0f / line.slope.x, 1.0f / line.slope.y, 1.0f / line.slope.z};
  const float inverse_step = 1.0f / march.step;
  // Lattice coordinates carry an error of a few units in the last place of base and of the planes.
  const float margin = 0.01f + 1.0e-6f * (fabsf(line.base.x) + fabsf(line.base.y) + fabsf(line.base.z));

  constexpr Int3 kNowhere = {INT32_MIN, INT32_MIN, INT32_MIN};
  Int3 brick = kNowhere, cell = kNowhere;
  int64_t brick_rows[8];
  uint64_t cells = 0;  // of the brick, those that matter
  bool matters = false;
  for (float k = range.first; k < range.last; k += 1.0f) {
    const float t = sample_distance(march, jitter, k);
    const CellPoint point = cell_point(line, t);
    if (!matters) {  // most samples of a brick lie in cells that do not matter: one branch, easy to foresee, for those
      const bool inside = same(shift_down(point.cell, kBrickShift), brick);
      if (inside & !(cells >> index_in_brick(point.cell) & 1)) continue;
    }
    if (!same(point.cell, cell)) {
      if (matters) visitor.leave();
      matters = false;
      cell = point.cell;
      const Int3 next = shift_down(cell, kBrickShift);
      if (!same(next, brick)) {
        brick = kNowhere;
        BrickEntry entry = find_entry(grid, next);
        if (entry.shift < 0) continue;  // outside the directory
        if (entry.brick >= 0 || entry.distance == 0) {
          find_neighbour_rows(grid, next, brick_rows);
          cells = visitor.brick(brick_rows);
          if (cells != 0) brick = next;
          entry.distance = 1;
        }
        if (!same(next, brick)) {
          if constexpr (kSkip) {
            const float leave = leave_inactive(line, inverse_slope, cell, entry, margin);
            const float target = (leave - march.near) * inverse_step - jitter;
            // The sample at ceil(target) is the first one out; a target within rounding of it counts as before it.
            const float safe = ceilf(target - (1.0e-3f + 1.0e-6f * fabsf(target)));
            if (!(safe < range.last)) break;
            k = larger(k, safe - 1.0f);
          }
          continue;
        }
      }
      matters = (cells >> index_in_brick(cell) & 1) != 0;
      if (matters) {
        int64_t rows[8];
        find_cell_rows(brick_rows, cell, rows);
        visitor.cell(rows);
      }
    }
    if (matters && !visitor.sample(t, point.fraction)) break;
  }
  if (matters) visitor.leave();
}

}  // namespace evoworld
