#include "cpu/sparse_grid.h"

#include <algorithm>
#include <array>
#include <mutex>
#include <tuple>

#include "core/storage.h"
#include "cpu/parallel.h"

namespace evoworld {
namespace {

constexpr int64_t kPointsPerChunk = 8192;

bool before(Int3 a, Int3 b) { return std::tie(a.x, a.y, a.z) < std::tie(b.x, b.y, b.z); }

void sort_unique(std::vector<Int3>& values) {
  std::sort(values.begin(), values.end(), before);
  values.erase(std::unique(values.begin(), values.end(), [](Int3 a, Int3 b) { return same(a, b); }), values.end());
}

void sort_unique(std::vector<int32_t>& values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
}

bool point_cell(const GridView& grid, Float3 point, Int3& cell) {
  const float size = grid.voxel_size;
  const float x = (point.x - grid.origin.x) / size, y = (point.y - grid.origin.y) / size,
              z = (point.z - grid.origin.z) / size;
  if (!(std::fabs(x) < kMaxLattice && std::fabs(y) < kMaxLattice && std::fabs(z) < kMaxLattice)) return false;
  cell = {static_cast<int32_t>(std::floor(x)), static_cast<int32_t>(std::floor(y)),
          static_cast<int32_t>(std::floor(z))};
  return true;
}

// The page of a brick, or -1 where the directory has none.
int32_t page_index(const GridView& grid, Int3 brick) {
  const int64_t slot = directory_index(grid, shift_down(brick, kPageShift));
  return slot < 0 ? -1 : std::max(grid.directory[slot], -1);
}

// Bit z of row [x * 8 + y] is set where the page's brick (x, y, z) is active.
using PageBits = std::array<uint8_t, kPageEdge * kPageEdge>;

PageBits active_bits(const int32_t* page) {
  PageBits bits{};
  for (int i = 0; i < kPageBricks; ++i) {
    bits[i / kPageEdge] |= static_cast<uint8_t>((page[i] >= -1) << (i % kPageEdge));
  }
  return bits;
}

// Distances within one page by dilating its active bricks, and those of the 26 pages around it, one brick at a time:
// rows of 24 bits (three pages along z), 24 x 24 of them.
class Dilation {
 public:
  static constexpr int kSide = 3 * kPageEdge;

  void set_page(int px, int py, int pz, const PageBits& bits) {
    for (int x = 0; x < kPageEdge; ++x) {
      for (int y = 0; y < kPageEdge; ++y) {
        rows_[px * kPageEdge + x][py * kPageEdge + y] |= static_cast<uint32_t>(bits[x * kPageEdge + y])
                                                         << (pz * kPageEdge);
      }
    }
  }

  void write_distances(int32_t* page) {
    std::array<uint8_t, kPageEdge * kPageEdge> known = middle();
    for (int32_t distance = 1; distance < kMaxDistance; ++distance) {
      grow();
      const auto reached = middle();
      for (size_t row = 0; row < known.size(); ++row) {
        for (uint32_t fresh = reached[row] & ~known[row]; fresh != 0; fresh &= fresh - 1) {
          page[row * kPageEdge + __builtin_ctz(fresh)] = -1 - distance;
        }
      }
      known = reached;
    }
    for (size_t row = 0; row < known.size(); ++row) {
      for (uint32_t rest = ~known[row] & 0xffu; rest != 0; rest &= rest - 1) {
        page[row * kPageEdge + __builtin_ctz(rest)] = -1 - kMaxDistance;
      }
    }
  }

 private:
  std::array<uint8_t, kPageEdge * kPageEdge> middle() const {
    std::array<uint8_t, kPageEdge * kPageEdge> bits;
    for (int x = 0; x < kPageEdge; ++x) {
      for (int y = 0; y < kPageEdge; ++y) {
        bits[x * kPageEdge + y] = static_cast<uint8_t>(rows_[kPageEdge + x][kPageEdge + y] >> kPageEdge);
      }
    }
    return bits;
  }

  void grow() {
    uint32_t wide[kSide][kSide];
    for (int x = 0; x < kSide; ++x) {
      for (int y = 0; y < kSide; ++y) {
        const auto along_z = [&](int at) { return rows_[x][at] | rows_[x][at] << 1 | rows_[x][at] >> 1; };
        wide[x][y] = along_z(y) | (y > 0 ? along_z(y - 1) : 0) | (y + 1 < kSide ? along_z(y + 1) : 0);
      }
    }
    for (int x = 0; x < kSide; ++x) {
      for (int y = 0; y < kSide; ++y) {
        rows_[x][y] = wide[x][y] | (x > 0 ? wide[x - 1][y] : 0) | (x + 1 < kSide ? wide[x + 1][y] : 0);
      }
    }
  }

  uint32_t rows_[kSide][kSide] = {};
};

void update_distances(const GridView& grid, int32_t* pages, Int3 page, int32_t index,
                      const std::vector<PageBits>& bits) {
  Dilation dilation;
  for (int x = 0; x < 3; ++x) {
    for (int y = 0; y < 3; ++y) {
      for (int z = 0; z < 3; ++z) {
        const int64_t slot = directory_index(grid, {page.x + x - 1, page.y + y - 1, page.z + z - 1});
        const int32_t neighbour = slot < 0 ? -1 : grid.directory[slot];
        if (neighbour >= 0) dilation.set_page(x, y, z, bits[neighbour]);
      }
    }
  }
  dilation.write_distances(pages + static_cast<int64_t>(index) * kPageBricks);
}

}  // namespace

std::vector<Int3> missing_bricks(const GridView& grid, const float* points, int64_t num_points, int num_threads) {
  std::vector<Int3> missing;
  std::mutex mutex;
  parallel_for(num_points, kPointsPerChunk, num_threads, [&](int64_t begin, int64_t end) {
    std::vector<Int3> found;
    Int3 previous = {INT32_MIN, INT32_MIN, INT32_MIN}, cell;
    for (int64_t i = begin; i < end; ++i) {
      if (!point_cell(grid, load3(points, i), cell) || same(cell, previous)) continue;
      previous = cell;
      const Int3 low = shift_down(cell, kBrickShift), high = shift_down(corner_of(cell, 7), kBrickShift);
      for (int32_t x = low.x; x <= high.x; ++x) {
        for (int32_t y = low.y; y <= high.y; ++y) {
          for (int32_t z = low.z; z <= high.z; ++z) {
            if (find_brick(grid, {x, y, z}) < 0) found.push_back({x, y, z});
          }
        }
      }
    }
    sort_unique(found);
    const std::lock_guard<std::mutex> lock(mutex);
    missing.insert(missing.end(), found.begin(), found.end());
  });
  sort_unique(missing);
  return missing;
}

bool insert_bricks(const GridView& grid, int32_t* pages, const int32_t* bricks, int64_t num_bricks, int32_t first_index,
                   int num_threads) {
  const auto brick_at = [&](int64_t i) { return Int3{bricks[3 * i], bricks[3 * i + 1], bricks[3 * i + 2]}; };
  for (int64_t i = 0; i < num_bricks; ++i) {
    if (find_brick(grid, brick_at(i)) >= 0) return false;
    for (int c = 0; c < 8; ++c) {
      const Int3 offset = corner_of({0, 0, 0}, c), brick = brick_at(i);
      if (page_index(grid, {brick.x - offset.x, brick.y - offset.y, brick.z - offset.z}) < 0) return false;
    }
  }
  std::vector<Int3> touched;  // pages with a brick that is active now, and every page whose distances that may change
  for (int64_t i = 0; i < num_bricks; ++i) {
    const Int3 brick = brick_at(i);
    for (int c = 0; c < 8; ++c) {
      const Int3 offset = corner_of({0, 0, 0}, c);
      const Int3 active = {brick.x - offset.x, brick.y - offset.y, brick.z - offset.z};
      int32_t& entry = pages[static_cast<int64_t>(page_index(grid, active)) * kPageBricks + index_in_page(active)];
      entry = c == 0 ? first_index + static_cast<int32_t>(i) : std::max(entry, -1);
      const Int3 page = shift_down(active, kPageShift);
      if (touched.empty() || !same(touched.back(), page)) touched.push_back(page);
    }
  }
  sort_unique(touched);

  struct Change {
    Int3 page;
    int32_t index;
  };
  std::vector<Change> changes;
  std::vector<Int3> around;
  for (const Int3 page : touched) {
    for (int i = 0; i < 27; ++i) around.push_back({page.x + i / 9 - 1, page.y + i / 3 % 3 - 1, page.z + i % 3 - 1});
  }
  sort_unique(around);
  int32_t num_pages = 0;
  std::vector<int32_t> read;  // pages whose bits the changes need
  for (const Int3 page : around) {
    const int64_t slot = directory_index(grid, page);
    if (slot < 0 || grid.directory[slot] < 0) continue;
    changes.push_back({page, grid.directory[slot]});
    for (int i = 0; i < 27; ++i) {
      const int64_t next = directory_index(grid, {page.x + i / 9 - 1, page.y + i / 3 % 3 - 1, page.z + i % 3 - 1});
      if (next < 0 || grid.directory[next] < 0) continue;
      read.push_back(grid.directory[next]);
      num_pages = std::max(num_pages, grid.directory[next] + 1);
    }
  }
  sort_unique(read);
  std::vector<PageBits> bits(num_pages);
  for (const int32_t index : read) bits[index] = active_bits(pages + static_cast<int64_t>(index) * kPageBricks);
  parallel_for(static_cast<int64_t>(changes.size()), 16, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) update_distances(grid, pages, changes[i].page, changes[i].index, bits);
  });
  return true;
}

}  // namespace evoworld
