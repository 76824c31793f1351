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

// The page of a brick, or -1 where the directory has none.
int32_t page_index(const GridView& grid, Int3 brick) {
  const int64_t slot = directory_index(grid, shift_down(brick, kPageShift));
  return slot < 0 ? -1 : std::max(grid.directory[slot], -1);
}

// Bit z of row [x * 8 + y] is set for some of a page's bricks (x, y, z).
using PageBits = std::array<uint8_t, kPageEdge * kPageEdge>;

PageBits active_bits(const int32_t* page) {
  PageBits bits{};
  for (int i = 0; i < kPageBricks; ++i) {
    bits[i / kPageEdge] |= static_cast<uint8_t>((page[i] >= -1) << (i % kPageEdge));
  }
  return bits;
}

// Lowers the distances within one page to those from a set of bricks in it and the 26 pages around it, by growing the
// set one brick at a time: rows of 24 bits (three pages along z), 24 x 24 of them.
class Dilation {
 public:
  void add(int px, int py, int pz, const PageBits& bits) {
    for (int x = 0; x < kPageEdge; ++x) {
      for (int y = 0; y < kPageEdge; ++y) {
        rows_[px * kPageEdge + x][py * kPageEdge + y] |= static_cast<uint32_t>(bits[x * kPageEdge + y])
                                                         << (pz * kPageEdge);
      }
    }
  }

  void lower_distances(int32_t* page) {
    const int32_t furthest = -1 - *std::min_element(page, page + kPageBricks);
    PageBits known = middle();
    for (int32_t distance = 1; distance < furthest; ++distance) {
      grow(furthest - 1 - distance);
      const PageBits reached = middle();
      for (size_t row = 0; row < known.size(); ++row) {
        for (uint32_t fresh = reached[row] & ~known[row]; fresh != 0; fresh &= fresh - 1) {
          int32_t& entry = page[row * kPageEdge + __builtin_ctz(fresh)];
          entry = std::max(entry, -1 - distance);
        }
      }
      known = reached;
    }
  }

 private:
  static constexpr int kSide = 3 * kPageEdge;

  PageBits middle() const {
    PageBits bits;
    for (int x = 0; x < kPageEdge; ++x) {
      for (int y = 0; y < kPageEdge; ++y) {
        bits[x * kPageEdge + y] = static_cast<uint8_t>(rows_[kPageEdge + x][kPageEdge + y] >> kPageEdge);
      }
    }
    return bits;
  }

  // Grows the set within `margin` of the middle page, which is as far as later steps look.
  void grow(int margin) {
    const int begin = kPageEdge - margin, end = 2 * kPageEdge + margin;
    uint32_t wide[kSide][kSide];
    for (int x = begin - 1; x < end + 1; ++x) {
      uint32_t along_z[kSide];
      for (int y = begin - 1; y < end + 1; ++y) along_z[y] = rows_[x][y] | rows_[x][y] << 1 | rows_[x][y] >> 1;
      for (int y = begin; y < end; ++y) wide[x][y] = along_z[y - 1] | along_z[y] | along_z[y + 1];
    }
    for (int x = begin; x < end; ++x) {
      for (int y = begin; y < end; ++y) rows_[x][y] = wide[x - 1][y] | wide[x][y] | wide[x + 1][y];
    }
  }

  uint32_t rows_[kSide][kSide] = {};
};

template <class Body>
void for_pages_around(const GridView& grid, Int3 page, const Body& body) {
  for (int i = 0; i < 27; ++i) {
    const int x = i / 9, y = i / 3 % 3, z = i % 3;
    const int64_t slot = directory_index(grid, {page.x + x - 1, page.y + y - 1, page.z + z - 1});
    if (slot >= 0 && grid.directory[slot] >= 0) body(x, y, z, grid.directory[slot]);
  }
}

// What an insertion does to the pages it touches.
struct PageChange {
  PageBits activated{};  // bricks that it made active
  bool touched = false;
  bool created = false;  // none was active before: the entries hold no distances yet
};

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
  if (num_bricks == 0) return true;
  const auto brick_at = [&](int64_t i) { return Int3{bricks[3 * i], bricks[3 * i + 1], bricks[3 * i + 2]}; };
  for (int64_t i = 0; i < num_bricks; ++i) {
    if (find_brick(grid, brick_at(i)) >= 0) return false;
    for (int c = 0; c < 8; ++c) {
      const Int3 offset = corner_of({0, 0, 0}, c), brick = brick_at(i);
      if (page_index(grid, {brick.x - offset.x, brick.y - offset.y, brick.z - offset.z}) < 0) return false;
    }
  }
  const int64_t num_pages = 1 + *std::max_element(grid.directory, grid.directory + static_cast<int64_t>(grid.size.x) *
                                                                                       grid.size.y * grid.size.z);
  std::vector<PageChange> changes(num_pages);
  std::vector<Int3> touched;  // pages with a brick that was activated
  for (int64_t i = 0; i < num_bricks; ++i) {
    for (int c = 0; c < 8; ++c) {
      const Int3 offset = corner_of({0, 0, 0}, c), brick = brick_at(i);
      const Int3 active = {brick.x - offset.x, brick.y - offset.y, brick.z - offset.z};
      const int32_t index = page_index(grid, active);
      int32_t& entry = pages[static_cast<int64_t>(index) * kPageBricks + index_in_page(active)];
      if (entry < -1) {
        PageChange& change = changes[index];
        if (!change.touched) {
          const int32_t* const page = pages + static_cast<int64_t>(index) * kPageBricks;
          change.created = std::all_of(page, page + kPageBricks, [](int32_t e) { return e < -1; });
          change.touched = true;
          touched.push_back(shift_down(active, kPageShift));
        }
        const int at = index_in_page(active);
        change.activated[at / kPageEdge] |= static_cast<uint8_t>(1 << (at % kPageEdge));
      }
      entry = c == 0 ? first_index + static_cast<int32_t>(i) : std::max(entry, -1);
    }
  }

  // Distances only ever fall, and only near bricks that were activated; those of a new page are found from all bricks.
  std::vector<Int3> around;
  std::vector<bool> listed(num_pages);
  for (const Int3 page : touched) {
    for_pages_around(grid, page, [&](int x, int y, int z, int32_t index) {
      if (!listed[index]) around.push_back({page.x + x - 1, page.y + y - 1, page.z + z - 1});
      listed[index] = true;
    });
  }
  parallel_for(static_cast<int64_t>(around.size()), 16, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int32_t index =
          page_index(grid, {around[i].x << kPageShift, around[i].y << kPageShift, around[i].z << kPageShift});
      Dilation dilation;
      for_pages_around(grid, around[i], [&](int x, int y, int z, int32_t next) {
        const PageChange& change = changes[next];
        if (changes[index].created && !change.created) {
          dilation.add(x, y, z, active_bits(pages + static_cast<int64_t>(next) * kPageBricks));
        } else if (change.touched) {
          dilation.add(x, y, z, change.activated);
        }
      });
      dilation.lower_distances(pages + static_cast<int64_t>(index) * kPageBricks);
    }
  });
  return true;
}

}  // namespace evoworld
