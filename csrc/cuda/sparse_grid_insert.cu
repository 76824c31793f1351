// Enters bricks into the tables and makes the distances around them exact.
#include <algorithm>

#include "cuda/device.h"
#include "cuda/sparse_grid.h"

namespace evoworld {
namespace {

constexpr int kSide = 3 * kPageEdge;          // a page and those around it
constexpr int kPageWords = kPageBricks / 32;  // of activity, a bit a brick
constexpr int kAround = 125;                  // pages within 2 of a page
constexpr int kInsertThreads = 256;
constexpr int kAroundThreads = 128;
constexpr int kActivityThreads = 256;     // 8 pages a block
constexpr int kDistanceThreads = 192;     // a third of the kSide^2 rows
constexpr int64_t kMaxPageBlocks = 2048;  // of the kernels over lists of pages, whose lengths the host never sees

// Steps of a page's way through one insertion.
constexpr unsigned kTouched = 1;   // some of its bricks became active
constexpr unsigned kNear = 2;      // within 2 pages of one that was touched: its activity is needed
constexpr unsigned kAffected = 4;  // within 1: its distances may change

// A page where it stands.
struct Place {
  Int3 page;
  int32_t index;
};

struct PageList {
  Place* places;    // [P]
  unsigned* count;  // [1]
};

struct Lists {
  unsigned* steps;  // [P]
  PageList touched, near, affected;
};

__device__ __forceinline__ int32_t page_index(const GridView& grid, Int3 page) {
  const int64_t slot = directory_index(grid, page);
  return slot < 0 ? -1 : grid.directory[slot];
}

// Lists a page unless it has taken that step before.
__device__ __forceinline__ void list_once(unsigned* steps, unsigned step, const PageList& list, Place place) {
  if ((atomicOr(steps + place.index, step) & step) == 0) list.places[atomicAdd(list.count, 1u)] = place;
}

// Enters bricks and marks what they make active.
// pages[b_i] = first_index + i; pages[b_i - {0, 1}^3] = -1 where it is less. Both are maxima, so their order is free.
// No gradient: the tables hold whole numbers.
// A thread a brick and one of the 8 bricks it makes active.
// Reads bricks and directory; writes pages, and lists those in which a brick became active.
__global__ void __launch_bounds__(kInsertThreads)
    insert_bricks_kernel(GridView grid, int32_t* pages /* [P, 512] */, const int32_t* bricks /* [K, 3] */,
                         int64_t num_bricks, int32_t first_index, Lists lists) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kInsertThreads + threadIdx.x;
  const int64_t i = thread / 8;
  if (i >= num_bricks) return;
  const int corner = static_cast<int>(thread % 8);
  const Int3 offset = corner_of({0, 0, 0}, corner);
  const Int3 brick = {bricks[3 * i] - offset.x, bricks[3 * i + 1] - offset.y, bricks[3 * i + 2] - offset.z};
  const Int3 page = shift_down(brick, kPageShift);
  const int32_t index = page_index(grid, page);
  if (index < 0) return;
  const int32_t entry = corner == 0 ? first_index + static_cast<int32_t>(i) : -1;
  const int32_t before = atomicMax(pages + static_cast<int64_t>(index) * kPageBricks + index_in_page(brick), entry);
  if (before < -1) list_once(lists.steps, kTouched, lists.touched, {page, index});
}

// Lists the pages near those that were touched.
// Affected: Chebyshev distance 1 in pages, because distances end at kMaxDistance = kPageEdge bricks; near: 2.
// No gradient.
// A block a touched page, a thread one of the 5^3 pages around it.
// Reads the list of touched pages and the directory; writes the other two lists.
__global__ void __launch_bounds__(kAroundThreads) pages_around_kernel(GridView grid, Lists lists) {
  const unsigned count = *lists.touched.count;
  const int around = static_cast<int>(threadIdx.x);
  if (around >= kAround) return;
  const Int3 offset = {around / 25 - 2, around / 5 % 5 - 2, around % 5 - 2};
  const bool next = max(max(abs(offset.x), abs(offset.y)), abs(offset.z)) < 2;
  for (unsigned i = blockIdx.x; i < count; i += gridDim.x) {
    const Int3 middle = lists.touched.places[i].page;
    const Int3 page = {middle.x + offset.x, middle.y + offset.y, middle.z + offset.z};
    const int32_t index = page_index(grid, page);
    if (index < 0) continue;
    list_once(lists.steps, kNear, lists.near, {page, index});
    if (next) list_once(lists.steps, kAffected, lists.affected, {page, index});
  }
}

// Takes down which bricks of a page are active, so that distances can be written while neighbours are still read.
// Bit i of a page's 512 is set where entry i >= -1.
// No gradient.
// A warp a page near one that was touched, a lane an entry, 16 times.
// Reads pages, 128 bytes at a time; writes 64 bytes a page.
__global__ void __launch_bounds__(kActivityThreads)
    page_activity_kernel(const int32_t* pages /* [P, 512] */, PageList near, unsigned* active /* [P, 16] */) {
  constexpr unsigned kWarps = kActivityThreads / kWarpSize;
  const unsigned count = *near.count;
  for (unsigned i = blockIdx.x * kWarps + warp_index(); i < count; i += gridDim.x * kWarps) {
    const int64_t index = near.places[i].index;
    unsigned mine = 0;
    for (int word = 0; word < kPageWords; ++word) {
      const int32_t entry = pages[index * kPageBricks + word * kWarpSize + lane_index()];
      const unsigned bits = __ballot_sync(kFullWarp, entry >= -1);
      if (lane_index() == word) mine = bits;
    }
    if (lane_index() < kPageWords) active[index * kPageWords + lane_index()] = mine;
  }
}

// Row [x][y] of the 24^3 bricks of a page and the 26 around it: bit z is set for some of them.
struct Neighbourhood {
  uint32_t rows[kSide][kSide];
  uint32_t wide[kSide][kSide];
  int32_t pages[27];
};

// Makes a page's distances exact.
// entry = -1 - (Chebyshev distance to the nearest active brick, at most 8) where the brick is not allocated: the number
// of d in 0 .. 7 at which the active set, grown by d bricks along each axis, has not reached it.
// No gradient.
// A block an affected page; a thread grows 3 of the 24 x 24 rows, three pages' 24 bits each, and counts for 4 entries.
// Reads the activity of 27 pages, 64 bytes each, and the page; writes the page, 16 bytes a thread.
__global__ void __launch_bounds__(kDistanceThreads)
    page_distances_kernel(GridView grid, int32_t* pages /* [P, 512] */, PageList affected,
                          const unsigned* active /* [P, 16] */) {
  Neighbourhood& shared = *dynamic_shared<Neighbourhood>();
  const int thread = static_cast<int>(threadIdx.x);
  const unsigned count = *affected.count;
  for (unsigned i = blockIdx.x; i < count; i += gridDim.x) {
    const Place place = affected.places[i];
    if (thread < 27) {
      const Int3 page = {place.page.x + thread / 9 - 1, place.page.y + thread / 3 % 3 - 1,
                         place.page.z + thread % 3 - 1};
      shared.pages[thread] = page_index(grid, page);
    }
    __syncthreads();
    for (int row = thread; row < kSide * kSide; row += kDistanceThreads) {
      const int x = row / kSide, y = row % kSide;
      const int byte = x % kPageEdge * kPageEdge + y % kPageEdge;  // of the page's 64: bricks (x, y, 0 .. 7)
      uint32_t bits = 0;
      for (int z = 0; z < 3; ++z) {
        const int64_t page = shared.pages[x / kPageEdge * 9 + y / kPageEdge * 3 + z];
        if (page >= 0) bits |= (active[page * kPageWords + byte / 4] >> byte % 4 * 8 & 0xff) << z * kPageEdge;
      }
      shared.rows[x][y] = bits;
    }
    __syncthreads();

    const int first = 4 * thread;  // of this thread's entries
    const int x = kPageEdge + first / 64, y = kPageEdge + first / 8 % 8, z = kPageEdge + first % 8;
    int distance[4] = {};
    for (int d = 0; d < kMaxDistance; ++d) {
      if (first < kPageBricks) {
        for (int entry = 0; entry < 4; ++entry) distance[entry] += ~(shared.rows[x][y] >> (z + entry)) & 1;
      }
      if (d == kMaxDistance - 1) break;
      for (int row = thread; row < kSide * kSide; row += kDistanceThreads) {
        const int at = row % kSide;
        const uint32_t* const line = shared.rows[row / kSide];
        const uint32_t bits = line[at] | (at > 0 ? line[at - 1] : 0) | (at < kSide - 1 ? line[at + 1] : 0);
        shared.wide[row / kSide][at] = bits | bits << 1 | bits >> 1;
      }
      __syncthreads();
      for (int row = thread; row < kSide * kSide; row += kDistanceThreads) {
        const int at = row / kSide, column = row % kSide;
        shared.rows[at][column] = shared.wide[at][column] | (at > 0 ? shared.wide[at - 1][column] : 0) |
                                  (at < kSide - 1 ? shared.wide[at + 1][column] : 0);
      }
      __syncthreads();
    }
    if (first < kPageBricks) {
      int4* const entries = reinterpret_cast<int4*>(pages + static_cast<int64_t>(place.index) * kPageBricks + first);
      const int4 old = *entries;
      *entries = {old.x < 0 ? -1 - distance[0] : old.x, old.y < 0 ? -1 - distance[1] : old.y,
                  old.z < 0 ? -1 - distance[2] : old.z, old.w < 0 ? -1 - distance[3] : old.w};
    }
  }
}

}  // namespace

void insert_bricks(const GridView& grid, int32_t* pages, int64_t num_pages, const int32_t* bricks, int64_t num_bricks,
                   int32_t first_index, const Stream& stream) {
  if (num_bricks == 0 || num_pages == 0) return;
  unsigned* const counters = stream.scratch_of<unsigned>(num_pages + 3);
  fill_bytes(counters, 0, (num_pages + 3) * sizeof(unsigned), stream);
  const auto list = [&](int i) { return PageList{stream.scratch_of<Place>(num_pages), counters + i}; };
  const Lists lists = {counters + 3, list(0), list(1), list(2)};
  unsigned* const active = stream.scratch_of<unsigned>(num_pages * kPageWords);
  const int64_t blocks = std::min(num_pages, kMaxPageBlocks);
  launch("insert_bricks", insert_bricks_kernel, ceil_div(8 * num_bricks, kInsertThreads), kInsertThreads, 0, stream,
         grid, pages, bricks, num_bricks, first_index, lists);
  launch("pages_around", pages_around_kernel, blocks, kAroundThreads, 0, stream, grid, lists);
  launch("page_activity", page_activity_kernel, ceil_div(blocks * kWarpSize, kActivityThreads), kActivityThreads, 0,
         stream, pages, lists.near, active);
  launch("page_distances", page_distances_kernel, blocks, kDistanceThreads, sizeof(Neighbourhood), stream, grid, pages,
         lists.affected, active);
}

}  // namespace evoworld
