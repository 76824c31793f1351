// Which bricks a set of points needs that the grid does not have.
#include <algorithm>

#include "core/storage.h"
#include "cuda/device.h"
#include "cuda/sort.h"
#include "cuda/sparse_grid.h"

namespace evoworld {
namespace {

using Word = unsigned long long;  // what the 64-bit atomics take

constexpr int kThreads = 256;
constexpr int kIdBits = 40;                  // of a slot: which point and corner first named the brick
constexpr Word kFree = ~Word{0};             // no brick's: its id would be the last one
constexpr int64_t kFirstCapacity = 1 << 18;  // slots: 2 MB, filled in a microsecond; twice what most frames add
constexpr int64_t kMaxProbes = 256;          // half full, hardly a brick is further from its place
constexpr int kGrowth = 16;                  // of the table when the bricks do not fit
constexpr unsigned kBias = 1u << 30;         // makes brick coordinates positive: they stay below 2^28

// What the host reads.
struct Found {
  Word count;        // bricks listed, or beyond the end of the list
  unsigned box[6];   // kBias + the largest x, y, z; kBias - the smallest
  unsigned crowded;  // 1: a brick found no slot
};

// An open-addressing hash set. A slot holds 24 bits of the brick's hash, and the point and corner that put it there:
// one word, so that one compare-and-swap publishes it whole; the brick is computed from the point again.
struct BrickSet {
  Word* slots;   // [mask + 1]
  int64_t mask;  // the number of slots, a power of two, less one
  int64_t max_probes;
  int32_t* bricks;  // [limit, 3] the set's elements, in no order
  int64_t limit;
  Found* found;  // [1]
};

__device__ __forceinline__ Word hash_of(Int3 brick) {
  Word hash = (static_cast<Word>(static_cast<unsigned>(brick.x)) << 32 | static_cast<unsigned>(brick.y)) *
              0x9e3779b97f4a7c15ull;
  hash = (hash ^ hash >> 32 ^ static_cast<unsigned>(brick.z)) * 0xd6e8feb86659fd93ull;
  hash = (hash ^ hash >> 32) * 0xd6e8feb86659fd93ull;
  return hash ^ hash >> 32;
}

// The brick of corner `id % 8` of the cell of point `id / 8`.
__device__ __forceinline__ Int3 brick_of(const GridView& grid, const float* points, int64_t id) {
  Int3 cell = {0, 0, 0};
  point_cell(grid, load3(points, id >> 3), cell);
  return shift_down(corner_of(cell, static_cast<int>(id & 7)), kBrickShift);
}

// Puts a brick into the set; false if it is there already.
__device__ __forceinline__ bool claim(const GridView& grid, const float* points, const BrickSet& set, Int3 brick,
                                      int64_t id) {
  const Word hash = hash_of(brick), tag = hash >> kIdBits << kIdBits;
  for (int64_t probe = 0; probe < set.max_probes; ++probe) {
    const int64_t slot = static_cast<int64_t>(hash + static_cast<Word>(probe)) & set.mask;
    const Word other = atomicCAS(set.slots + slot, kFree, tag | static_cast<Word>(id));
    if (other == kFree) return true;
    const Word other_id = other & ((Word{1} << kIdBits) - 1);
    if (other >> kIdBits << kIdBits == tag && same(brick_of(grid, points, static_cast<int64_t>(other_id)), brick)) {
      return false;
    }
  }
  atomicExch(&set.found->crowded, 1u);
  return false;
}

// Lists the bricks that hold a corner of some point's cell and are not in the tables, each once.
// cell = floor((p - origin) / voxel_size); bricks {cell, cell + 1} >> 2 along each axis.
// No gradient: brick coordinates are whole numbers.
// A thread a point. Points of a warp in the same bricks send one thread on; what the tables lack goes into a hash set,
// and whoever puts it there first appends it to the list, a warp's with one atomic.
// Reads points and tables; writes slots, list, count and, an atomic a block, the box around what was listed.
__global__ void __launch_bounds__(kThreads)
    missing_bricks_kernel(GridView grid, const float* points /* [N, 3] */, int64_t num_points, BrickSet set) {
  __shared__ unsigned box[6];
  if (threadIdx.x < 6) box[threadIdx.x] = 0;
  __syncthreads();

  const int64_t point = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  Int3 cell = {0, 0, 0};
  const bool valid = point < num_points && point_cell(grid, load3(points, point), cell);
  const Int3 low = shift_down(cell, kBrickShift), high = shift_down(corner_of(cell, 7), kBrickShift);
  const int spills = (high.x - low.x) << 2 | (high.y - low.y) << 1 | (high.z - low.z);  // axes, as in corner_of

  // A brick's coordinates fill 29 bits: x and the axes are one word, y and z another.
  const Word key_x = static_cast<Word>(static_cast<unsigned>(low.x)) << 4 | spills << 1 | valid;
  const Word key_yz = static_cast<Word>(static_cast<unsigned>(low.y)) << 32 | static_cast<unsigned>(low.z);
  const unsigned alike =
      __match_any_sync(kFullWarp, static_cast<unsigned>(hash_of(low)) ^ static_cast<unsigned>(key_x));
  const int first = __ffs(alike) - 1;
  const bool repeated = (__shfl_sync(kFullWarp, key_x, first) == key_x) &
                        (__shfl_sync(kFullWarp, key_yz, first) == key_yz) & (lane_index() != first);
  const bool leads = valid && !repeated;

  unsigned reach[6] = {};
  for (int corner = 0; corner < 8; ++corner) {
    const Int3 brick = corner_of(low, corner);
    const bool missing = leads && (corner & ~spills) == 0 && find_brick(grid, brick) < 0;
    if (!__any_sync(kFullWarp, missing)) continue;
    const bool fresh = missing && claim(grid, points, set, brick, point << 3 | corner);
    const unsigned listed = __ballot_sync(kFullWarp, fresh);
    if (listed == 0) continue;
    Word base = 0;
    if (lane_index() == 0) base = atomicAdd(&set.found->count, static_cast<Word>(__popc(listed)));
    base = __shfl_sync(kFullWarp, base, 0);
    if (!fresh) continue;
    const int64_t place = static_cast<int64_t>(base) + __popc(listed & ((1u << lane_index()) - 1));
    const int32_t coordinates[3] = {brick.x, brick.y, brick.z};
    for (int i = 0; i < 3; ++i) {
      if (place < set.limit) set.bricks[3 * place + i] = coordinates[i];
      reach[i] = max(reach[i], kBias + coordinates[i]);
      reach[3 + i] = max(reach[3 + i], kBias - coordinates[i]);
    }
  }
  if (__any_sync(kFullWarp, reach[0] != 0)) {
    for (int i = 0; i < 6; ++i) {
      const unsigned furthest = __reduce_max_sync(kFullWarp, reach[i]);
      if (lane_index() == 0) atomicMax(&box[i], furthest);
    }
  }
  __syncthreads();
  if (threadIdx.x < 6 && box[threadIdx.x] != 0) atomicMax(&set.found->box[threadIdx.x], box[threadIdx.x]);
}

// What sorts bricks by (x, y, z): first by z, then, keeping that order among equals, by x and y.
struct BrickKeys {
  const int32_t* bricks;  // [K, 3]
  Int3 low;               // the smallest coordinates
  int64_t size_y;

  __device__ Word z(int64_t i) const { return static_cast<Word>(bricks[3 * i + 2] - low.z); }
  __device__ Word xy(int64_t i) const {
    return static_cast<Word>((bricks[3 * i] - low.x) * size_y + (bricks[3 * i + 1] - low.y));
  }
};

// Fills in the keys of the first sort.
// keys[i] = z of brick i above the smallest; order[i] = i.
// No gradient.
// A thread a brick.
// Reads bricks; writes keys and order.
__global__ void __launch_bounds__(kThreads)
    brick_keys_z_kernel(BrickKeys from, int64_t count, Word* keys /* [K] */, int32_t* order /* [K] */) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  keys[i] = from.z(i);
  order[i] = static_cast<int32_t>(i);
}

// Fills in the keys of the second sort.
// keys[i] = x * size_y + y of brick order[i], above the smallest.
// No gradient.
// A thread a brick.
// Reads bricks and order; writes keys.
__global__ void __launch_bounds__(kThreads)
    brick_keys_xy_kernel(BrickKeys from, int64_t count, const int32_t* order /* [K] */, Word* keys /* [K] */) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) keys[i] = from.xy(order[i]);
}

// Puts bricks in order.
// sorted[i] = bricks[order[i]].
// No gradient.
// A thread a coordinate.
// Reads bricks and order; writes sorted.
__global__ void __launch_bounds__(kThreads)
    gather_bricks_kernel(const int32_t* bricks /* [K, 3] */, const int32_t* order /* [K] */, int64_t count,
                         int32_t* sorted /* [K, 3] */) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < 3 * count) sorted[i] = bricks[3 * static_cast<int64_t>(order[i / 3]) + i % 3];
}

int64_t power_of_two(int64_t least) {
  int64_t power = 1;
  while (power < least) power *= 2;
  return power;
}

// Bits that hold 0 .. count - 1, at least one.
int bits_for(int64_t count) {
  int bits = 1;
  while (int64_t{1} << bits < count) ++bits;
  return bits;
}

int32_t* sort_bricks(const int32_t* bricks, int64_t count, const Found& found, const Stream& stream) {
  const auto high = [&](int axis) { return static_cast<int64_t>(found.box[axis]) - kBias; };
  const auto low = [&](int axis) { return kBias - static_cast<int64_t>(found.box[3 + axis]); };
  const auto size = [&](int axis) { return high(axis) - low(axis) + 1; };
  const BrickKeys from = {
      bricks, {static_cast<int32_t>(low(0)), static_cast<int32_t>(low(1)), static_cast<int32_t>(low(2))}, size(1)};
  Word* const keys = stream.scratch_of<Word>(count);
  Word* const sorted_keys = stream.scratch_of<Word>(count);
  int32_t* const order = stream.scratch_of<int32_t>(count);
  int32_t* const by_z = stream.scratch_of<int32_t>(count);
  int32_t* const sorted = stream.scratch_of<int32_t>(3 * count);
  const int64_t blocks = ceil_div(count, kThreads);
  launch("brick_keys_z", brick_keys_z_kernel, blocks, kThreads, 0, stream, from, count, keys, order);
  sort_pairs(keys, sorted_keys, order, by_z, count, bits_for(size(2)), stream);
  launch("brick_keys_xy", brick_keys_xy_kernel, blocks, kThreads, 0, stream, from, count, by_z, keys);
  sort_pairs(keys, sorted_keys, by_z, order, count, bits_for(size(0) * size(1)), stream);
  launch("gather_bricks", gather_bricks_kernel, ceil_div(3 * count, kThreads), kThreads, 0, stream, bricks, order,
         count, sorted);
  return sorted;
}

}  // namespace

int64_t missing_bricks(const GridView& grid, const float* points, int64_t num_points, int32_t*& bricks,
                       const Stream& stream) {
  bricks = nullptr;
  if (num_points == 0) return 0;
  if (num_points >= int64_t{1} << (kIdBits - 4)) throw std::runtime_error("missing_bricks: more than 2^36 points");
  const int64_t enough = power_of_two(2 * 8 * num_points);  // slots, for 8 bricks a point: half of them stay free
  for (int64_t capacity = std::min(enough, kFirstCapacity);; capacity = std::min(enough, capacity * kGrowth)) {
    BrickSet set;
    set.slots = stream.scratch_of<Word>(capacity);
    set.mask = capacity - 1;
    set.max_probes = capacity == enough ? capacity : kMaxProbes;
    set.limit = capacity / 2;
    set.bricks = stream.scratch_of<int32_t>(3 * set.limit);
    set.found = stream.scratch_of<Found>(1);
    fill_bytes(set.slots, 0xff, capacity * sizeof(Word), stream);
    fill_bytes(set.found, 0, sizeof(Found), stream);
    launch("missing_bricks", missing_bricks_kernel, ceil_div(num_points, kThreads), kThreads, 0, stream, grid, points,
           num_points, set);
    Found found;
    copy_to_host(&found, set.found, sizeof found, stream);
    const int64_t count = static_cast<int64_t>(found.count);
    if (found.crowded != 0 || count > set.limit) continue;
    if (count > INT32_MAX) throw std::runtime_error("missing_bricks: more than 2^31 bricks");
    if (count > 0) bricks = sort_bricks(set.bricks, count, found, stream);
    return count;
  }
}

}  // namespace evoworld
