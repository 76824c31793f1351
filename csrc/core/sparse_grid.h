// Addressing of the sparse grid: bricks of 4^3 lattice points, found through two dense tables.
//
// directory[page - page_origin] holds a page's index or, negative, -1 - (Chebyshev distance in pages to the nearest
// page); pages[index][brick in page]   holds a brick's index or, negative, -1 - (Chebyshev distance in bricks to the
// nearest active brick, 0 for an active one). A brick is active when it or one of its 7 upper neighbours is allocated:
// the cells whose low corner lies in it then touch allocated lattice points. Distances saturate at kMaxDistance.
#pragma once

#include "core/common.h"

namespace evoworld {

constexpr int kBrickEdge = 4;                    // lattice points along a brick
constexpr int kBrickShift = 2;                   // log2(kBrickEdge)
constexpr int kBrickVoxels = 64;                 // kBrickEdge^3
constexpr int kPageEdge = 8;                     // bricks along a page
constexpr int kPageShift = 3;                    // log2(kPageEdge)
constexpr int kPageBricks = 512;                 // kPageEdge^3
constexpr int kMaxDistance = 8;                  // larger distances are stored as this one
constexpr int64_t kNoRow = -(int64_t{1} << 62);  // stays negative after adding any offset within a brick

struct GridView {
  const int32_t* directory;  // [size.x, size.y, size.z]
  const int32_t* pages;      // [P, 512]
  Int3 size;                 // of the directory, in pages
  Int3 page_origin;          // page coordinates of the directory's first entry
  Float3 origin;             // metres: world position of lattice point 0
  float voxel_size;          // metres between lattice points
};

// What the tables say of one brick. `brick` >= 0: its index. Otherwise it is not allocated, and with `distance` > 0
// every brick closer than `distance` (in units of 1 << shift lattice points, around `unit`) is inactive.
struct BrickEntry {
  int32_t brick;
  int32_t distance;
  int32_t shift;
};

EW_HD int64_t directory_index(const GridView& grid, Int3 page) {
  const uint32_t x = static_cast<uint32_t>(page.x - grid.page_origin.x);
  const uint32_t y = static_cast<uint32_t>(page.y - grid.page_origin.y);
  const uint32_t z = static_cast<uint32_t>(page.z - grid.page_origin.z);
  if (x >= static_cast<uint32_t>(grid.size.x) || y >= static_cast<uint32_t>(grid.size.y) ||
      z >= static_cast<uint32_t>(grid.size.z)) {
    return -1;
  }
  return (static_cast<int64_t>(x) * grid.size.y + y) * grid.size.z + z;
}

EW_HD int32_t index_in_page(Int3 brick) {
  constexpr int mask = kPageEdge - 1;
  return ((brick.x & mask) << (2 * kPageShift)) | ((brick.y & mask) << kPageShift) | (brick.z & mask);
}

EW_HD int32_t index_in_brick(Int3 lattice) {
  constexpr int mask = kBrickEdge - 1;
  return ((lattice.x & mask) << (2 * kBrickShift)) | ((lattice.y & mask) << kBrickShift) | (lattice.z & mask);
}

EW_HD Int3 shift_down(Int3 value, int shift) { return {value.x >> shift, value.y >> shift, value.z >> shift}; }

EW_HD bool same(Int3 a, Int3 b) { return ((a.x ^ b.x) | (a.y ^ b.y) | (a.z ^ b.z)) == 0; }

// The i-th of the 8 corners of a unit cell: bit 2 is x, bit 1 is y, bit 0 is z.
EW_HD Int3 corner_of(Int3 low, int i) { return {low.x + (i >> 2), low.y + ((i >> 1) & 1), low.z + (i & 1)}; }

EW_HD BrickEntry find_entry(const GridView& grid, Int3 brick) {
  const int64_t slot = directory_index(grid, shift_down(brick, kPageShift));
  if (slot < 0) return {-1, 0, -1};
  const int32_t page = grid.directory[slot];
  if (page < 0) return {-1, -1 - page, kBrickShift + kPageShift};
  const int32_t entry = grid.pages[static_cast<int64_t>(page) * kPageBricks + index_in_page(brick)];
  if (entry < 0) return {-1, -1 - entry, kBrickShift};
  return {entry, 0, kBrickShift};
}

EW_HD int32_t find_brick(const GridView& grid, Int3 brick) { return find_entry(grid, brick).brick; }

// First rows of the brick and its 7 upper neighbours (order of corner_of); kNoRow where nothing is allocated.
EW_HD void find_neighbour_rows(const GridView& grid, Int3 brick, int64_t rows[8]) {
  int32_t found[8];
  constexpr int last = kPageEdge - 1;
  if ((brick.x & last) < last && (brick.y & last) < last && (brick.z & last) < last) {  // all in one page
    const int64_t slot = directory_index(grid, shift_down(brick, kPageShift));
    const int32_t page = slot < 0 ? -1 : grid.directory[slot];
    if (page < 0) {
      for (int i = 0; i < 8; ++i) rows[i] = kNoRow;
      return;
    }
    const int32_t* const entries = grid.pages + static_cast<int64_t>(page) * kPageBricks + index_in_page(brick);
    for (int i = 0; i < 8; ++i) found[i] = page < 0 ? -1 : entries[index_in_page(corner_of({0, 0, 0}, i))];
  } else {
    for (int i = 0; i < 8; ++i) found[i] = find_brick(grid, corner_of(brick, i));
  }
  for (int i = 0; i < 8; ++i) rows[i] = found[i] < 0 ? kNoRow : static_cast<int64_t>(found[i]) * kBrickVoxels;
}

// Value rows of the 8 corners of a cell, from the first rows of the bricks around its low corner; negative: not
// allocated.
EW_HD void find_cell_rows(const int64_t brick_rows[8], Int3 cell, int64_t rows[8]) {
  constexpr int mask = kBrickEdge - 1;
  const int x = cell.x & mask, y = cell.y & mask, z = cell.z & mask;
  // Along each axis: which brick the upper corner lies in (as a bit of corner_of), and where in it.
  const int brick_x = x == mask ? 4 : 0, brick_y = y == mask ? 2 : 0, brick_z = z == mask ? 1 : 0;
  const int low_x = x << (2 * kBrickShift), high_x = ((x + 1) & mask) << (2 * kBrickShift);
  const int low_y = y << kBrickShift, high_y = ((y + 1) & mask) << kBrickShift;
  const int high_z = (z + 1) & mask;
  for (int i = 0; i < 8; ++i) {
    const int brick = (i & 4 ? brick_x : 0) | (i & 2 ? brick_y : 0) | (i & 1 ? brick_z : 0);
    rows[i] = brick_rows[brick] + ((i & 4 ? high_x : low_x) | (i & 2 ? high_y : low_y) | (i & 1 ? high_z : z));
  }
}

// Cells of a brick that have a corner in a set of lattice points, a bit each, by index_in_brick of their low corner;
// `points` holds the set's bits for the brick and its 7 upper neighbours.
EW_HD uint64_t cells_with_corner(const uint64_t points[8]) {
  uint64_t along_z[4], along_y[2];
  for (int i = 0; i < 4; ++i) {
    const uint64_t p = points[2 * i];
    along_z[i] = p | (p >> 1 & 0x7777777777777777u) | (points[2 * i + 1] << 3 & 0x8888888888888888u);
  }
  for (int i = 0; i < 2; ++i) {
    const uint64_t p = along_z[2 * i];
    along_y[i] = p | (p >> 4 & 0x0fff0fff0fff0fffu) | (along_z[2 * i + 1] << 12 & 0xf000f000f000f000u);
  }
  return along_y[0] | along_y[0] >> 16 | along_y[1] << 48;
}

// The lattice coordinate of the point o + t d is fma(t, slope, base): `base` loses nothing far from the grid's origin.
struct LatticeLine {
  Float3 base;
  Float3 slope;
};

EW_HD LatticeLine lattice_line(const GridView& grid, Float3 origin, Float3 direction) {
  const float size = grid.voxel_size;
  return {{(origin.x - grid.origin.x) / size, (origin.y - grid.origin.y) / size, (origin.z - grid.origin.z) / size},
          {direction.x / size, direction.y / size, direction.z / size}};
}

// A lattice coordinate split into its cell and the fraction inside it, for coordinates within int32.
struct CellPoint {
  Int3 cell;
  Float3 fraction;
};

EW_HD CellPoint cell_point(const LatticeLine& line, float t) {
  const Float3 g = {fmaf(t, line.slope.x, line.base.x), fmaf(t, line.slope.y, line.base.y),
                    fmaf(t, line.slope.z, line.base.z)};
  const Float3 low = {floorf(g.x), floorf(g.y), floorf(g.z)};
  return {{static_cast<int32_t>(low.x), static_cast<int32_t>(low.y), static_cast<int32_t>(low.z)},
          {g.x - low.x, g.y - low.y, g.z - low.z}};
}

// Lattice coordinates beyond this cannot be cells of any grid (the directory is far smaller) and would overflow int32.
constexpr float kMaxLattice = 1.0e9f;

// The cell of a point, or false for one that is not finite or beyond any grid: floor((p - origin) / voxel_size),
// rounded after either operation.
EW_HD bool point_cell(const GridView& grid, Float3 point, Int3& cell) {
  const float size = grid.voxel_size;
  const float x = (point.x - grid.origin.x) / size, y = (point.y - grid.origin.y) / size,
              z = (point.z - grid.origin.z) / size;
  if (!(fabsf(x) < kMaxLattice && fabsf(y) < kMaxLattice && fabsf(z) < kMaxLattice)) return false;
  cell = {static_cast<int32_t>(floorf(x)), static_cast<int32_t>(floorf(y)), static_cast<int32_t>(floorf(z))};
  return true;
}

// Trilinear weights of the 8 corners (order of corner_of).
EW_HD void trilinear_weights(Float3 f, float weights[8]) {
  const float x0 = 1.0f - f.x, y0 = 1.0f - f.y, z0 = 1.0f - f.z;
  const float y00 = x0 * y0, y01 = x0 * f.y, y10 = f.x * y0, y11 = f.x * f.y;
  weights[0] = y00 * z0;
  weights[1] = y00 * f.z;
  weights[2] = y01 * z0;
  weights[3] = y01 * f.z;
  weights[4] = y10 * z0;
  weights[5] = y10 * f.z;
  weights[6] = y11 * z0;
  weights[7] = y11 * f.z;
}

EW_HD float trilinear(const float v[8], Float3 f) {
  const float v00 = fmaf(f.z, v[1] - v[0], v[0]), v01 = fmaf(f.z, v[3] - v[2], v[2]);
  const float v10 = fmaf(f.z, v[5] - v[4], v[4]), v11 = fmaf(f.z, v[7] - v[6], v[6]);
  const float v0 = fmaf(f.y, v01 - v00, v00), v1 = fmaf(f.y, v11 - v10, v10);
  return fmaf(f.x, v1 - v0, v0);
}

// Derivative of trilinear() by the fraction.
EW_HD Float3 trilinear_gradient(const float v[8], Float3 f) {
  const float z00 = v[1] - v[0], z01 = v[3] - v[2], z10 = v[5] - v[4], z11 = v[7] - v[6];
  const float v00 = fmaf(f.z, z00, v[0]), v01 = fmaf(f.z, z01, v[2]);
  const float v10 = fmaf(f.z, z10, v[4]), v11 = fmaf(f.z, z11, v[6]);
  const float y0 = v01 - v00, y1 = v11 - v10;
  const float z0 = fmaf(f.y, z01 - z00, z00), z1 = fmaf(f.y, z11 - z10, z10);
  return {fmaf(f.y, y1, v10) - fmaf(f.y, y0, v00), fmaf(f.x, y1 - y0, y0), fmaf(f.x, z1 - z0, z0)};
}

}  // namespace evoworld
