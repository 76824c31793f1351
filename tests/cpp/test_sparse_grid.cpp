#include <cmath>
#include <limits>

#include "check.h"
#include "cpu/sparse_grid.h"
#include "grid_builder.h"

using namespace evoworld;
using namespace evoworld::testing;

namespace {

int32_t floor_divide(int32_t value, int32_t by) { return static_cast<int32_t>(std::floor(double(value) / by)); }

// The bricks that a point needs, by the definition.
void add_bricks_of(const GridView& grid, Float3 point, std::set<Int3, Before>& bricks) {
  const float x = std::floor((point.x - grid.origin.x) / grid.voxel_size);
  const float y = std::floor((point.y - grid.origin.y) / grid.voxel_size);
  const float z = std::floor((point.z - grid.origin.z) / grid.voxel_size);
  for (int c = 0; c < 8; ++c) {
    const Int3 corner = corner_of({static_cast<int32_t>(x), static_cast<int32_t>(y), static_cast<int32_t>(z)}, c);
    bricks.insert({floor_divide(corner.x, 4), floor_divide(corner.y, 4), floor_divide(corner.z, 4)});
  }
}

std::vector<Int3> missing(const GridBuilder& grid, const std::vector<Float3>& points, int num_threads = 1) {
  return missing_bricks(grid.view(), reinterpret_cast<const float*>(points.data()), static_cast<int64_t>(points.size()),
                        num_threads);
}

bool equal(const std::vector<Int3>& a, const std::vector<Int3>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](Int3 x, Int3 y) { return same(x, y); });
}

// Every entry of both tables, and some beyond them, against the sets of bricks.
bool tables_are_right(const GridBuilder& grid) {
  const GridView& view = grid.view();
  bool right = true;
  for (int32_t px = -1; px <= view.size.x; ++px) {
    for (int32_t py = -1; py <= view.size.y; ++py) {
      for (int32_t pz = -1; pz <= view.size.z; ++pz) {
        const Int3 page = {view.page_origin.x + px, view.page_origin.y + py, view.page_origin.z + pz};
        const bool inside = px >= 0 && py >= 0 && pz >= 0 && px < view.size.x && py < view.size.y && pz < view.size.z;
        const bool exists = grid.has_page(page);
        for (int i = 0; i < (exists ? kPageBricks : 1); ++i) {
          const Int3 brick = {page.x * 8 + i / 64, page.y * 8 + i / 8 % 8, page.z * 8 + i % 8};
          const BrickEntry entry = find_entry(view, brick);
          const auto found = grid.bricks().find(brick);
          right = right && entry.brick == (found == grid.bricks().end() ? -1 : found->second);
          if (!inside) {
            right = right && entry.shift < 0;
          } else if (!exists) {
            right = right && entry.shift == kBrickShift + kPageShift && entry.distance == grid.distance_in_pages(page);
          } else if (entry.brick < 0) {
            right = right && entry.shift == kBrickShift && entry.distance == grid.distance_in_bricks(brick);
          }
        }
      }
    }
  }
  return right;
}

}  // namespace

TEST(missing_bricks_are_those_of_the_corners) {
  Random random(1);
  for (const Float3 origin : {Float3{0, 0, 0}, Float3{0.31f, -0.17f, 5.0f}, Float3{-300, 299, 310}}) {
    GridBuilder grid(0.1f, origin);
    for (int round = 0; round < 3; ++round) {
      std::vector<Float3> points;
      for (int i = 0; i < 300; ++i) {
        const Float3 p = random.point(-2.0f, 2.0f);
        points.push_back({origin.x + p.x, origin.y + p.y, origin.z + p.z});
      }
      std::set<Int3, Before> wanted;
      for (const Float3 point : points) add_bricks_of(grid.view(), point, wanted);
      for (const auto& brick : grid.bricks()) wanted.erase(brick.first);
      CHECK(equal(missing(grid, points), {wanted.begin(), wanted.end()}));
      CHECK(grid.merge(points) == static_cast<int64_t>(wanted.size()));
      CHECK(missing(grid, points).empty());
    }
  }
}

TEST(missing_bricks_of_points_on_lattice_planes) {
  const GridBuilder grid(0.25f);  // coordinates below are exact
  CHECK(equal(missing(grid, {{0.1f, 0.1f, 0.1f}}), {{0, 0, 0}}));
  CHECK(equal(missing(grid, {{0.75f, 0.1f, 0.1f}}), {{0, 0, 0}, {1, 0, 0}}));
  CHECK(equal(missing(grid, {{-0.25f, 0.0f, 0.0f}}), {{-1, 0, 0}, {0, 0, 0}}));
  CHECK(equal(missing(grid, {{-0.5f, 0.0f, 0.0f}}), {{-1, 0, 0}}));
  CHECK(missing(grid, {{-0.01f, -0.01f, -0.01f}}).size() == 8);
}

TEST(missing_bricks_ignores_what_is_not_a_place) {
  const GridBuilder grid(0.1f);
  constexpr float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  constexpr float max = std::numeric_limits<float>::max(), denormal = std::numeric_limits<float>::denorm_min();
  std::vector<Float3> points;
  for (const float bad : {nan, inf, -inf, max, -max, 1.1e8f, -1.1e8f}) {
    points.insert(points.end(), {{bad, 0, 0}, {0, bad, 0}, {0, 0, bad}, {bad, bad, bad}});
  }
  CHECK(missing(grid, points).empty());
  CHECK(missing(grid, {}).empty());
  points.push_back({0.15f, denormal, 0.15f});
  CHECK(equal(missing(grid, points), {{0, 0, 0}}));
  CHECK(missing(grid, {{9.9e7f, -9.9e7f, 0.0f}}).size() == 1);  // the last lattice coordinates that are kept
}

TEST(tables_agree_with_sets_of_bricks) {
  Random random(2);
  for (const int32_t spare : {0, 1, 9}) {
    for (const Float3 centre : {Float3{0, 0, 0}, Float3{-3.3f, 1.7f, 6.4f}}) {
      GridBuilder grid(0.2f, {0.05f, 0.0f, -0.1f}, spare);
      grid.merge(shell_points(random, 40, centre, 3.0f));
      CHECK(tables_are_right(grid));
      grid.merge({{centre.x + 12.0f, centre.y, centre.z - 9.0f}});  // far enough for distances to saturate
      CHECK(tables_are_right(grid));
    }
  }
}

TEST(rows_of_cells_agree_with_sets_of_bricks) {
  Random random(3);
  GridBuilder grid(0.2f, {0, 0, 0}, 1);
  grid.merge(shell_points(random, 60, {0, 0, 0}, 2.5f));
  for (int i = 0; i < 5000; ++i) {
    const Int3 cell = {random.below(60) - 30, random.below(60) - 30, random.below(60) - 30};
    int64_t brick_rows[8], rows[8];
    find_neighbour_rows(grid.view(), shift_down(cell, kBrickShift), brick_rows);
    find_cell_rows(brick_rows, cell, rows);
    for (int c = 0; c < 8; ++c) CHECK(std::max<int64_t>(rows[c], -1) == grid.row(corner_of(cell, c)));
  }
}

TEST(cells_with_a_corner_in_a_set_of_points) {
  Random random(6);
  for (int round = 0; round < 300; ++round) {
    uint64_t points[8];
    for (uint64_t& set : points) {
      set = 0;
      for (int i = random.below(6); i > 0; --i) set |= uint64_t{1} << random.below(kBrickVoxels);
    }
    uint64_t cells = 0;
    for (int i = 0; i < kBrickVoxels; ++i) {
      for (int c = 0; c < 8; ++c) {
        const Int3 corner = corner_of({i / 16, i / 4 % 4, i % 4}, c), brick = shift_down(corner, kBrickShift);
        const uint64_t set = points[brick.x * 4 + brick.y * 2 + brick.z];
        cells |= (set >> index_in_brick(corner) & 1) << i;
      }
    }
    CHECK(cells_with_corner(points) == cells);
  }
}

TEST(inserting_in_two_goes_equals_one) {
  Random random(4);
  const std::vector<Float3> points = shell_points(random, 120, {1.0f, -2.0f, 0.0f}, 4.0f);
  GridBuilder once(0.2f), twice(0.2f);
  once.merge(points);
  twice.merge({points.begin(), points.begin() + 50});
  twice.merge({points.begin() + 50, points.end()});
  CHECK(once.bricks().size() == twice.bricks().size());
  CHECK(tables_are_right(once) && tables_are_right(twice));
  bool alike = true;
  for (const auto& brick : once.bricks()) alike = alike && twice.bricks().count(brick.first) == 1;
  CHECK(alike);
}

TEST(threads_do_not_change_the_grid) {
  Random random(5);
  const std::vector<Float3> points = shell_points(random, 40000, {0, 0, 0}, 9.0f);
  GridBuilder one(0.3f), four(0.3f);
  CHECK(equal(missing(one, points, 1), missing(four, points, 4)));
  one.merge(points, 1);
  four.merge(points, 4);
  CHECK(one.bricks().size() > 1000 && one.bricks().size() == four.bricks().size());
  CHECK(one.pages() == four.pages());
}

TEST(insert_refuses_and_writes_nothing) {
  GridBuilder grid(0.1f);
  CHECK(!grid.insert({{0, 0, 0}}));  // there is not even a directory
  grid.add_pages({{3, 3, 3}});
  CHECK(grid.insert({{3, 3, 3}}));
  const std::vector<int32_t> before = grid.pages();
  CHECK(!grid.insert({{4, 4, 4}, {3, 3, 3}}));           // already there
  CHECK(!grid.insert({{4, 4, 4}, {8, 3, 3}}));           // its own page is missing
  CHECK(!grid.insert({{4, 4, 4}, {0, 3, 3}}));           // the page below it is missing
  CHECK(!grid.insert({{4, 4, 4}, {100000, -5000, 0}}));  // far outside the directory
  CHECK(grid.pages() == before);
  CHECK(grid.insert({}));
  CHECK(grid.insert({{4, 4, 4}, {7, 7, 7}}) && tables_are_right(grid));
}
