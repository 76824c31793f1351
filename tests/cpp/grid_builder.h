// Grows a sparse grid for the tests and knows, from plain sets of bricks, what its tables have to say.
//
// Both tables are exactly as large as they need to be, so that AddressSanitizer sees a read beyond them.
#pragma once

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "cpu/sparse_grid.h"
#include "random.h"

namespace evoworld::testing {

struct Before {
  bool operator()(Int3 a, Int3 b) const { return std::tie(a.x, a.y, a.z) < std::tie(b.x, b.y, b.z); }
};
using IndexMap = std::map<Int3, int32_t, Before>;

inline int32_t chebyshev(Int3 a, Int3 b) {
  return std::max({std::abs(a.x - b.x), std::abs(a.y - b.y), std::abs(a.z - b.z)});
}

class GridBuilder {
 public:
  // `spare` pages are kept free on every side of the directory.
  explicit GridBuilder(float voxel_size, Float3 origin = {0, 0, 0}, int32_t spare = 0)
      : spare_(spare), grid_{nullptr, nullptr, {0, 0, 0}, {0, 0, 0}, origin, voxel_size} {}

  GridBuilder(GridBuilder&&) = default;  // no copies: a view points into the tables

  const GridView& view() const { return grid_; }
  int64_t num_voxels() const { return static_cast<int64_t>(bricks_.size()) * kBrickVoxels; }
  const IndexMap& bricks() const { return bricks_; }
  const std::vector<int32_t>& pages() const { return pages_; }

  // Allocates the bricks that the points need; how many those were.
  int64_t merge(const std::vector<Float3>& points, int num_threads = 1) {
    const auto* first = reinterpret_cast<const float*>(points.data());
    const std::vector<Int3> missing = missing_bricks(grid_, first, static_cast<int64_t>(points.size()), num_threads);
    add_pages(missing);
    insert(missing, num_threads);
    return static_cast<int64_t>(missing.size());
  }

  // Appends the pages in which a brick or one of its 7 lower neighbours lies, and writes the directory anew.
  void add_pages(const std::vector<Int3>& bricks) {
    for (const Int3 brick : bricks) {
      for (int c = 0; c < 8; ++c) {
        page_index_.try_emplace(shift_down(lower(brick, c), kPageShift), static_cast<int32_t>(page_index_.size()));
      }
    }
    std::vector<int32_t> pages(page_index_.size() * kPageBricks, -1 - kMaxDistance);
    std::copy(pages_.begin(), pages_.end(), pages.begin());
    pages_.swap(pages);
    write_directory();
  }

  bool insert(const std::vector<Int3>& bricks, int num_threads = 1) {
    const auto* first = reinterpret_cast<const int32_t*>(bricks.data());
    const auto next = static_cast<int32_t>(bricks_.size());
    if (!insert_bricks(grid_, pages_.data(), first, static_cast<int64_t>(bricks.size()), next, num_threads)) {
      return false;
    }
    for (const Int3 brick : bricks) {
      bricks_.emplace(brick, static_cast<int32_t>(bricks_.size()));
      for (int c = 0; c < 8; ++c) active_.insert(lower(brick, c));
    }
    return true;
  }

  // What the tables should say.
  bool is_active(Int3 brick) const { return active_.count(brick) != 0; }
  bool has_page(Int3 page) const { return page_index_.count(page) != 0; }
  int64_t row(Int3 lattice) const {
    const auto found = bricks_.find(shift_down(lattice, kBrickShift));
    return found == bricks_.end() ? -1 : int64_t{found->second} * kBrickVoxels + index_in_brick(lattice);
  }
  int32_t distance_in_bricks(Int3 brick) const {
    int32_t distance = kMaxDistance;
    for (const Int3 other : active_) distance = std::min(distance, chebyshev(brick, other));
    return distance;
  }
  int32_t distance_in_pages(Int3 page) const {
    int32_t distance = kMaxDistance;
    for (const auto& other : page_index_) distance = std::min(distance, chebyshev(page, other.first));
    return distance;
  }

 private:
  static Int3 lower(Int3 brick, int c) {
    const Int3 offset = corner_of({0, 0, 0}, c);
    return {brick.x - offset.x, brick.y - offset.y, brick.z - offset.z};
  }

  void write_directory() {
    if (page_index_.empty()) return;
    Int3 low = page_index_.begin()->first, high = low;
    for (const auto& page : page_index_) {
      const Int3 at = page.first;
      low = {std::min(low.x, at.x), std::min(low.y, at.y), std::min(low.z, at.z)};
      high = {std::max(high.x, at.x), std::max(high.y, at.y), std::max(high.z, at.z)};
    }
    grid_.page_origin = {low.x - spare_, low.y - spare_, low.z - spare_};
    grid_.size = {high.x - low.x + 1 + 2 * spare_, high.y - low.y + 1 + 2 * spare_, high.z - low.z + 1 + 2 * spare_};
    std::vector<int32_t> directory(static_cast<size_t>(grid_.size.x) * grid_.size.y * grid_.size.z);
    size_t slot = 0;
    for (int32_t x = 0; x < grid_.size.x; ++x) {
      for (int32_t y = 0; y < grid_.size.y; ++y) {
        for (int32_t z = 0; z < grid_.size.z; ++z, ++slot) {
          const Int3 page = {grid_.page_origin.x + x, grid_.page_origin.y + y, grid_.page_origin.z + z};
          const auto found = page_index_.find(page);
          directory[slot] = found != page_index_.end() ? found->second : -1 - distance_in_pages(page);
        }
      }
    }
    directory_.swap(directory);
    grid_.directory = directory_.data();
    grid_.pages = pages_.data();
  }

  int32_t spare_;
  GridView grid_;
  std::vector<int32_t> directory_, pages_;
  IndexMap bricks_, page_index_;
  std::set<Int3, Before> active_;
};

// Points of a sphere's surface: walls around whoever stands inside, hollow enough to skip through.
inline std::vector<Float3> shell_points(Random& random, int64_t count, Float3 centre, float radius) {
  std::vector<Float3> points(count);
  for (Float3& point : points) {
    const Float3 d = random.direction();
    point = {centre.x + radius * d.x, centre.y + radius * d.y, centre.z + radius * d.z};
  }
  return points;
}

}  // namespace evoworld::testing
