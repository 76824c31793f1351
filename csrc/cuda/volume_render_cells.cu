// Which cells of each brick matter to volume_render, as the GPU's walk looks them up: found anew for each call.
#include "cuda/device.h"
#include "cuda/volume_render.h"

namespace evoworld {
namespace {

constexpr int kThreads = 128;
constexpr int kBricksPerWarp = 4;  // so that a lane has 8 loads in flight
constexpr int kBricksPerBlock = kBricksPerWarp * (kThreads / kWarpSize);

}  // namespace

// Computes which of each brick's 64 densities are not zero, and where in the directory each page stands.
//   points[b] = sum_i 2^i [density[64 b + i] != 0],  slots[directory[s]] = s
// Gradient: none.
// A warp to kBricksPerWarp bricks, two densities of each to a lane, gathered by ballots; a thread to a directory entry.
// Reads density [V] and the directory once, coalesced; writes points [M] and slots [P]. Either is left out by a zero.
__global__ void __launch_bounds__(kThreads)
    volume_render_points_kernel(const float* density /* [V] */, uint64_t* points /* [M] */, int64_t num_bricks,
                                const int32_t* directory, int64_t* slots /* [P] */, int64_t num_slots) {
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (slot < num_slots) {
    const int32_t page = directory[slot];
    if (page >= 0) slots[page] = slot;
  }
  const int lane = lane_index();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBricksPerBlock + warp_index() * kBricksPerWarp;
  if (first >= num_bricks) return;
  float low[kBricksPerWarp], high[kBricksPerWarp];
#pragma unroll
  for (int i = 0; i < kBricksPerWarp; ++i) {
    const bool there = first + i < num_bricks;
    const float* const values = density + (there ? first + i : first) * kBrickVoxels;
    low[i] = values[lane];
    high[i] = values[lane + kWarpSize];
  }
  uint64_t mine = 0;
#pragma unroll
  for (int i = 0; i < kBricksPerWarp; ++i) {
    const uint64_t bits = static_cast<uint64_t>(__ballot_sync(kFullWarp, high[i] != 0.0f)) << kWarpSize |
                          __ballot_sync(kFullWarp, low[i] != 0.0f);
    if (lane == i) mine = bits;
  }
  if (lane < kBricksPerWarp && first + lane < num_bricks) points[first + lane] = mine;
}

// Computes which cells of each brick of each page matter: those with a corner of non-zero density, or, without
// `points`, with an allocated one.
//   cells[p, b] = union over corners c of points shifted by -c
// Gradient: none.
// A thread to a brick, a block to a quarter of a page. Bricks around it may lie in up to 7 more pages: each axis says
// for itself what changes there, since a branch would cost nearly every warp both of its sides.
// Reads the tables and points [M] through the L1; writes cells [P, 512] once.
__global__ void __launch_bounds__(kThreads)
    volume_render_cells_kernel(const GridView grid, const int64_t* slots /* [P] */, int64_t num_slots,
                               const uint64_t* points /* [M] or null */, uint64_t* cells /* [P, 512] */) {
  constexpr int kBlocks = kPageBricks / kThreads, last = kPageEdge - 1;
  const int64_t page = blockIdx.x / kBlocks;
  const int within = static_cast<int>(blockIdx.x % kBlocks * kThreads + threadIdx.x);
  const int64_t slot = slots[page];
  // Rows of `pages` that no entry of the directory names have no place, and nobody looks at their cells.
  if (slot < 0 || slot >= num_slots || grid.directory[slot] != page) return;
  const int64_t column = slot / grid.size.z;
  const Int3 at = {static_cast<int32_t>(column / grid.size.y), static_cast<int32_t>(column % grid.size.y),
                   static_cast<int32_t>(slot % grid.size.z)};
  const Int3 brick = {within >> (2 * kPageShift), within >> kPageShift & last, within & last};
  uint64_t mask = 0;
  if (grid.pages[page * kPageBricks + within] >= -1) {  // active
    const bool over_x = brick.x == last, over_y = brick.y == last, over_z = brick.z == last;
    const int64_t slot_x = over_x ? static_cast<int64_t>(grid.size.y) * grid.size.z : 0;
    const int64_t slot_y = over_y ? grid.size.z : 0, slot_z = over_z ? 1 : 0;
    const bool out_x = over_x && at.x + 1 >= grid.size.x, out_y = over_y && at.y + 1 >= grid.size.y,
               out_z = over_z && at.z + 1 >= grid.size.z;
    uint64_t around[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool out = (i & 4 && out_x) || (i & 2 && out_y) || (i & 1 && out_z);
      const int64_t from = slot + (i & 4 ? slot_x : 0) + (i & 2 ? slot_y : 0) + (i & 1 ? slot_z : 0);
      const int32_t its_page = out ? -1 : grid.directory[from];
      const int64_t entry = static_cast<int64_t>(its_page) * kPageBricks + index_in_page(corner_of(brick, i));
      const int32_t found = its_page < 0 ? -1 : grid.pages[entry];
      around[i] = found < 0 ? 0 : (points != nullptr ? points[found] : ~uint64_t{0});
    }
    mask = cells_with_corner(around);
  }
  cells[page * kPageBricks + within] = mask;
}

const uint64_t* find_cells(const RenderInputs& in, bool dense, const Stream& stream) {
  constexpr int64_t kPagesPerBrick = 8;  // a page has an active brick, of which an allocated one makes at most 8
  const int64_t num_slots = static_cast<int64_t>(in.grid.size.x) * in.grid.size.y * in.grid.size.z;
  const int64_t most = num_slots < kPagesPerBrick * in.num_bricks ? num_slots : kPagesPerBrick * in.num_bricks;
  const int64_t num_pages = in.num_pages > 0 ? in.num_pages : most;
  if (num_pages == 0) return nullptr;
  uint64_t* const cells = stream.scratch_of<uint64_t>(num_pages * kPageBricks);
  int64_t* const slots = stream.scratch_of<int64_t>(num_pages);
  const int64_t num_bricks = dense ? in.num_bricks : 0;
  uint64_t* const points = dense ? stream.scratch_of<uint64_t>(num_bricks) : nullptr;
  const int64_t point_blocks = ceil_div(num_bricks, kBricksPerBlock), slot_blocks = ceil_div(num_slots, kThreads);
  launch("volume_render_points", &volume_render_points_kernel, point_blocks > slot_blocks ? point_blocks : slot_blocks,
         kThreads, 0, stream, in.density, points, num_bricks, in.grid.directory, slots, num_slots);
  launch("volume_render_cells", &volume_render_cells_kernel, num_pages * (kPageBricks / kThreads), kThreads, 0, stream,
         in.grid, slots, num_slots, points, cells);
  return cells;
}

}  // namespace evoworld
