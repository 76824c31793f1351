#include <cmath>
#include <iterator>
#include <limits>

#include "check.h"
#include "core/ray_march.h"
#include "grid_builder.h"

using namespace evoworld;
using namespace evoworld::testing;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();

struct Visit {
  float t;
  Float3 fraction;
  int64_t rows[8];        // of the cell's corners, -1: not allocated
  int64_t brick_rows[8];  // first rows of the brick and its upper neighbours alike
};

bool same_visits(const std::vector<Visit>& a, const std::vector<Visit>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(Visit)) == 0);
}

constexpr uint64_t kAllCells = ~uint64_t{0};

// Notes every sample, and whether cells are entered and left in turn.
struct Recorder {
  std::vector<Visit> visits;
  size_t stop_after = SIZE_MAX;
  uint64_t (*cells_that_matter)(const int64_t brick_rows[8]) = [](const int64_t*) { return kAllCells; };
  bool open = false;
  bool orderly = true;
  Visit here = {};

  uint64_t brick(const int64_t found[8]) {
    orderly = orderly && !open;
    for (int i = 0; i < 8; ++i) here.brick_rows[i] = std::max<int64_t>(found[i], -1);
    return cells_that_matter(here.brick_rows);
  }
  void cell(const int64_t found[8]) {
    orderly = orderly && !open;
    for (int i = 0; i < 8; ++i) here.rows[i] = std::max<int64_t>(found[i], -1);
    open = true;
  }
  bool sample(float t, Float3 fraction) {
    orderly = orderly && open;
    here.t = t;
    here.fraction = fraction;
    visits.push_back(here);
    return visits.size() < stop_after;
  }
  void leave() {
    orderly = orderly && open;
    open = false;
  }
};

float& component_of(Float3& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : v.z; }

struct Ray {
  Float3 origin;
  Float3 direction;
  MarchParams march;
  float jitter;
};

template <bool kSkip>
std::vector<Visit> walk(const GridView& grid, const Ray& ray) {
  Recorder recorder;
  march_ray<kSkip>(grid, lattice_line(grid, ray.origin, ray.direction), ray.march, ray.jitter, recorder);
  CHECK(recorder.orderly && !recorder.open);
  return recorder.visits;
}

// A world of active bricks within `radius` of `centre`.
struct World {
  GridBuilder grid;
  Float3 centre;
  float radius;
};

World shell_world(float voxel_size, Float3 centre, int32_t spare = 1) {
  Random random(11);
  World world = {GridBuilder(voxel_size, {0, 0, 0}, spare), centre, 2.5f + 16 * voxel_size};
  world.grid.merge(shell_points(random, 150, centre, 2.5f));
  return world;
}

double norm(Float3 v) { return std::sqrt(double(v.x) * v.x + double(v.y) * v.y + double(v.z) * v.z); }

// Every sample near the world, one by one, kept when its cell lies in an active brick.
std::vector<Visit> visits_by_definition(const World& world, const Ray& ray) {
  const Float3 away = {ray.origin.x - world.centre.x, ray.origin.y - world.centre.y, ray.origin.z - world.centre.z};
  const double gap = norm(away), length = norm(ray.direction);
  const double enter = (gap - world.radius) / length, leave = (gap + world.radius) / length;
  const LatticeLine line = lattice_line(world.grid.view(), ray.origin, ray.direction);
  const auto first = static_cast<int32_t>(std::fmax(0.0, (enter - ray.march.near) / ray.march.step - 2.0));
  std::vector<Visit> visits;
  for (int32_t k = first;; ++k) {
    const float t = sample_distance(ray.march, ray.jitter, k);
    if (!(t < ray.march.far) || t > leave) return visits;
    const CellPoint point = cell_point(line, t);
    if (!world.grid.is_active(shift_down(point.cell, kBrickShift))) continue;
    Visit visit = {t, point.fraction, {}, {}};
    for (int i = 0; i < 8; ++i) {
      const Int3 brick = corner_of(shift_down(point.cell, kBrickShift), i);
      visit.rows[i] = world.grid.row(corner_of(point.cell, i));
      visit.brick_rows[i] = world.grid.row({brick.x * kBrickEdge, brick.y * kBrickEdge, brick.z * kBrickEdge});
    }
    visits.push_back(visit);
  }
}

enum RayKind { inside, towards, anywhere, zero_component, on_planes, tiny_slopes, distant, num_ray_kinds };

Ray random_ray(Random& random, RayKind kind, const World& world) {
  const auto at = [&](Float3 p) { return Float3{world.centre.x + p.x, world.centre.y + p.y, world.centre.z + p.z}; };
  Ray ray = {at(random.point(-2.0f, 2.0f)), random.direction(), {}, random.uniform(0.0f, 1.0f)};
  if (random.chance(0.3f)) ray.jitter = random.chance(0.5f) ? 0.5f : 0.0f;
  const auto aim = [&](float distance) {  // from afar through the world
    const Float3 target = random.point(-2.0f, 2.0f), d = ray.direction;
    ray.origin = at({target.x - distance * d.x, target.y - distance * d.y, target.z - distance * d.z});
  };
  const auto component = [&](int i) -> float& { return component_of(ray.direction, i); };
  switch (kind) {
    case towards:
      aim(random.uniform(3.0f, 20.0f));
      break;
    case anywhere:
      ray.origin = at(random.point(-8.0f, 8.0f));
      break;
    case zero_component:
      for (int i = random.below(2); i >= 0; --i) component(random.below(3)) = random.chance(0.5f) ? 0.0f : -0.0f;
      if (norm(ray.direction) == 0.0) ray.direction.y = -1.0f;
      if (random.chance(0.5f)) aim(8.0f);
      break;
    case on_planes: {  // along an axis, on planes of cells, bricks and pages
      const float plane = world.grid.view().voxel_size * static_cast<float>(1 << random.below(6));
      const auto snap = [&](float x) { return std::floor(x / plane) * plane; };
      const int axis = random.below(3);
      const float sign = random.chance(0.5f) ? 1.0f : -1.0f;
      ray.direction = {axis == 0 ? sign : 0.0f, axis == 1 ? sign : 0.0f, axis == 2 ? sign : 0.0f};
      if (random.chance(0.5f)) aim(8.0f);
      ray.origin = {snap(ray.origin.x), snap(ray.origin.y), snap(ray.origin.z)};
      break;
    }
    case tiny_slopes:
      for (int i = random.below(2); i >= 0; --i) {
        const float sizes[] = {1e-45f, 1e-40f, 1.2e-38f, 1e-30f, 1e-7f};
        component(random.below(3)) = (random.chance(0.5f) ? 1.0f : -1.0f) * sizes[random.below(5)];
      }
      if (norm(ray.direction) < 0.1) ray.direction.z = 1.0f;
      if (random.chance(0.5f)) aim(8.0f);
      break;
    case distant:
      aim(300.0f);
      break;
    default:
      break;
  }
  const float steps[] = {0.004f, 0.02f, 0.05f, 0.21f, 3.0f, 100.0f, 1e6f};
  const float nears[] = {0.0f, 0.1f, 2.5f}, fars[] = {3.0f, 30.0f, 1e5f, kInf};
  const int weights[] = {0, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 5, 6};
  ray.march = {nears[random.below(3)], fars[random.below(4)], steps[weights[random.below(15)]], 0.0f};
  return ray;
}

void compare_with_definition(const World& world, uint64_t seed, int rays_a_kind) {
  Random random(seed);
  int64_t visited = 0, skipped_wrong = 0, plain_wrong = 0;
  for (int kind = 0; kind < num_ray_kinds; ++kind) {
    for (int i = 0; i < rays_a_kind; ++i) {
      const Ray ray = random_ray(random, static_cast<RayKind>(kind), world);
      const std::vector<Visit> truth = visits_by_definition(world, ray);
      visited += static_cast<int64_t>(truth.size());
      skipped_wrong += !same_visits(walk<true>(world.grid.view(), ray), truth);
      plain_wrong += !same_visits(walk<false>(world.grid.view(), ray), truth);
    }
  }
  CHECK(skipped_wrong == 0);
  CHECK(plain_wrong == 0);
  CHECK(visited > 5 * rays_a_kind);
}

// A choice among bricks and cells: about two bricks in three, of their cells the lower two along z.
bool brick_is_chosen(const int64_t brick_rows[8]) {
  int64_t sum = 0;
  for (int i = 0; i < 8; ++i) sum += brick_rows[i] < 0 ? i : brick_rows[i] / kBrickVoxels;
  return sum % 3 != 0;
}

uint64_t chosen_cells(const int64_t brick_rows[8]) { return brick_is_chosen(brick_rows) ? 0x3333333333333333u : 0; }

bool is_chosen(const Visit& visit) {
  for (int i = 0; i < 8; ++i) {
    if (visit.rows[i] < 0) continue;
    const int64_t z = (visit.rows[i] - (i & 1)) & 3;
    return z < 2 && brick_is_chosen(visit.brick_rows);
  }
  return false;
}

}  // namespace

TEST(march_visits_every_sample_in_active_cells) {
  compare_with_definition(shell_world(0.125f, {0, 0, 0}), 1, 400);
  compare_with_definition(shell_world(0.1f, {0.3f, -7.0f, 1.9f}), 2, 300);
}

TEST(march_visits_every_sample_far_from_the_origin) {
  compare_with_definition(shell_world(0.1f, {300.0f, -300.0f, 310.0f}), 3, 200);
  compare_with_definition(shell_world(0.125f, {-5000.0f, 5000.0f, 0.0f}), 4, 200);
}

TEST(march_does_not_depend_on_the_directory) {
  const World tight = shell_world(0.125f, {0, 0, 0}, 0), wide = shell_world(0.125f, {0, 0, 0}, 10);
  Random random(5);
  for (int i = 0; i < 700; ++i) {
    const Ray ray = random_ray(random, static_cast<RayKind>(i % num_ray_kinds), tight);
    CHECK(same_visits(walk<true>(tight.grid.view(), ray), walk<true>(wide.grid.view(), ray)));
  }
}

TEST(march_of_rays_that_are_no_rays) {
  const World world = shell_world(0.125f, {0, 0, 0});
  const GridView& grid = world.grid.view();
  Random random(6);
  for (const float bad : {kNan, kInf, -kInf, 3e38f, -3e38f, 1.3e8f, -1.3e8f}) {
    for (int i = 0; i < 6; ++i) {
      for (const float far : {10.0f, kInf}) {
        Ray ray = {random.point(-2.0f, 2.0f), random.direction(), {0.1f, far, 0.05f, 0.0f}, 0.5f};
        component_of(i < 3 ? ray.origin : ray.direction, i % 3) = bad;
        CHECK(walk<true>(grid, ray).empty());
        CHECK(walk<false>(grid, ray).empty());
      }
    }
  }
}

TEST(march_of_directions_of_any_length) {
  const World world = shell_world(0.125f, {0, 0, 0});
  Random random(7);
  for (const float length : {1e-45f, 1e-38f, 1e-10f, 0.01f, 100.0f, 1e5f}) {
    for (int i = 0; i < 100; ++i) {
      Ray ray = random_ray(random, i % 2 == 0 ? inside : towards, world);
      ray.direction = {ray.direction.x * length, ray.direction.y * length, ray.direction.z * length};
      const float reach = 20.0f / length;
      ray.march = {0.0f, std::fmin(reach, 1e30f), std::fmin(reach / 300.0f, 1e28f), 0.0f};
      CHECK(same_visits(walk<true>(world.grid.view(), ray), walk<false>(world.grid.view(), ray)));
    }
  }
}

TEST(march_of_a_direction_of_length_zero_stays_in_its_cell) {
  const World world = shell_world(0.125f, {0, 0, 0});
  const MarchParams march = {0.0f, 5.0f, 0.05f, 0.0f};
  const Ray still = {{2.5f, 0.0f, 0.0f}, {0.0f, -0.0f, 0.0f}, march, 0.5f};
  Random random(8);
  for (int i = 0; i < 200; ++i) {
    Ray ray = still;
    ray.origin = random.point(-4.0f, 4.0f);
    const bool active = world.grid.is_active(
        shift_down(cell_point(lattice_line(world.grid.view(), ray.origin, ray.direction), 0.0f).cell, kBrickShift));
    const size_t count = active ? 100 : 0;
    CHECK(walk<true>(world.grid.view(), ray).size() == count);
    CHECK(walk<false>(world.grid.view(), ray).size() == count);
  }
}

// Samples are numbered below 2^24; those that would come later do not exist.
TEST(march_of_more_samples_than_there_are_numbers) {
  const World world = shell_world(0.125f, {0, 0, 0});
  for (const float gap : {1e3f, 1e5f, 1e7f, 1.2e8f}) {
    for (const float step : {1e-5f, 1e-3f, 0.05f}) {
      for (const float sign : {1.0f, -1.0f}) {
        const Ray ray = {{-sign * gap, 0.01f, 0.01f}, {sign, 0.0f, 0.0f}, {0.0f, kInf, step, 0.0f}, 0.5f};
        const bool reaches = (gap - world.radius) / step < kMaxSamples;
        CHECK(walk<true>(world.grid.view(), ray).empty() == !reaches);
      }
    }
  }
  const Ray huge = {{0.01f, 0.02f, 0.03f}, {0.6f, 0.0f, 0.8f}, {0.0f, kInf, 3e38f, 0.0f}, 0.0f};
  CHECK(walk<true>(world.grid.view(), huge).size() == walk<false>(world.grid.view(), huge).size());
  for (const float jitter : {kNan, kInf, -kInf}) {
    const Ray ray = {{0, 0, 0}, {1, 0, 0}, {0.0f, 10.0f, 0.05f, 0.0f}, jitter};
    CHECK(walk<true>(world.grid.view(), ray).empty());
  }
}

TEST(march_stops_and_skips_cells_as_the_visitor_says) {
  const World world = shell_world(0.1f, {0, 0, 0});
  Random random(9);
  for (int i = 0; i < 300; ++i) {
    Ray ray = random_ray(random, towards, world);
    ray.march.step = 0.03f;
    const LatticeLine line = lattice_line(world.grid.view(), ray.origin, ray.direction);
    const std::vector<Visit> all = walk<true>(world.grid.view(), ray);
    Recorder stopping;
    stopping.stop_after = 1 + random.below(40);
    march_ray(world.grid.view(), line, ray.march, ray.jitter, stopping);
    const std::vector<Visit> start(all.begin(), all.begin() + std::min(all.size(), stopping.stop_after));
    CHECK(stopping.orderly && !stopping.open && same_visits(stopping.visits, start));
    Recorder choosy;
    choosy.cells_that_matter = chosen_cells;
    march_ray(world.grid.view(), line, ray.march, ray.jitter, choosy);
    std::vector<Visit> chosen;
    std::copy_if(all.begin(), all.end(), std::back_inserter(chosen), is_chosen);
    std::erase_if(choosy.visits, [](const Visit& v) { return *std::max_element(v.rows, v.rows + 8) < 0; });
    CHECK(choosy.orderly && !choosy.open && same_visits(choosy.visits, chosen));
  }
}

TEST(march_of_an_empty_grid) {
  const GridBuilder empty(0.1f);
  Random random(10);
  for (int i = 0; i < 100; ++i) {
    const Ray ray = {random.point(-2.0f, 2.0f), random.direction(), {0.0f, kInf, 0.05f, 0.0f}, 0.5f};
    CHECK(walk<true>(empty.view(), ray).empty());
  }
}
