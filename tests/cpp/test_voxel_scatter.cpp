#include "check.h"
#include "cpu/voxel_scatter.h"
#include "grid_builder.h"

using namespace evoworld;
using namespace evoworld::testing;

namespace {

struct Options {
  int64_t channels = 3;
  Storage storage = Storage::float32;
  int64_t num_rays = 500;
  bool weights = true;
  uint64_t seed = 1;
};

// Rays whose points lie on and around a shell over many pages; runs of neighbours share a cell, as in a panorama.
struct Scene {
  Options options;
  Random random;
  GridBuilder grid;
  StoredValues features;
  std::vector<float> depth, origins, directions, weight;
  ScatterInputs in;

  explicit Scene(const Options& o)
      : options(o), random(o.seed), grid(shell(random)), features(random, o.storage, o.num_rays * o.channels) {
    Float3 d = random.direction();
    for (int64_t r = 0; r < o.num_rays; ++r) {
      if (random.chance(0.3f)) d = random.direction();
      const Float3 eye = random.point(-0.05f, 0.05f);
      origins.insert(origins.end(), {eye.x, eye.y, eye.z});
      directions.insert(directions.end(), {d.x, d.y, d.z});
      depth.push_back(random.uniform(1.7f, 2.3f));
      weight.push_back(random.uniform(-0.3f, 2.0f));
    }
    in = {grid.view(),       features.bytes.data(),
          depth.data(),      origins.data(),
          directions.data(), o.weights ? weight.data() : nullptr,
          o.storage,         o.channels};
  }

  static GridBuilder shell(Random& random) {
    GridBuilder grid(0.05f, {0.01f, -0.02f, 0.03f});
    grid.merge(shell_points(random, 500, {0, 0, 0}, 2.0f));
    return grid;
  }

  double weight_of(int64_t ray) const { return options.weights ? weight[ray] : 1.0; }
};

struct Sums {
  std::vector<float> features, weight;
  bool operator==(const Sums& o) const { return same_bits(features, o.features) && same_bits(weight, o.weight); }
};

Sums forward(const Scene& scene, int num_threads = 1) {
  Sums sums = {std::vector<float>(scene.grid.num_voxels() * scene.options.channels, 0.0f),
               std::vector<float>(scene.grid.num_voxels(), 0.0f)};
  voxel_scatter_forward(scene.in, {sums.features.data(), sums.weight.data()}, scene.options.num_rays, num_threads);
  return sums;
}

// One point by its definition in double: rows of its corners and their weights; the cell is decided as in the kernels.
struct Point {
  bool valid = false;
  int64_t rows[8];
  double shares[8];

  // `move` displaces depth, origin and direction by the given amounts.
  Point(const Scene& scene, int64_t ray, const double (&move)[7] = {0, 0, 0, 0, 0, 0, 0}) {
    CellPoint point;
    valid = scatter_point(scene.in, ray, point);
    if (!valid) return;
    const GridView& view = scene.grid.view();
    const double origin[3] = {view.origin.x, view.origin.y, view.origin.z};
    const int32_t low[3] = {point.cell.x, point.cell.y, point.cell.z};
    double f[3];
    for (int axis = 0; axis < 3; ++axis) {
      const double o = scene.origins[3 * ray + axis] + move[1 + axis];
      const double d = scene.directions[3 * ray + axis] + move[4 + axis];
      f[axis] = (o + (scene.depth[ray] + move[0]) * d - origin[axis]) / view.voxel_size - low[axis];
    }
    for (int i = 0; i < 8; ++i) {
      rows[i] = scene.grid.row(corner_of(point.cell, i));
      shares[i] = (i & 4 ? f[0] : 1 - f[0]) * (i & 2 ? f[1] : 1 - f[1]) * (i & 1 ? f[2] : 1 - f[2]);
    }
  }
};

void check_forward(const Scene& scene) {
  const int64_t channels = scene.options.channels;
  std::vector<double> features(scene.grid.num_voxels() * channels), weight(scene.grid.num_voxels());
  int64_t straddling = 0;
  for (int64_t ray = 0; ray < scene.options.num_rays; ++ray) {
    const Point point(scene, ray);
    for (int i = 0; point.valid && i < 8; ++i) {
      if (point.rows[i] < 0) continue;
      straddling += point.rows[0] >= 0 && point.rows[i] / kBrickVoxels != point.rows[0] / kBrickVoxels;
      const double share = point.shares[i] * scene.weight_of(ray);
      weight[point.rows[i]] += share;
      for (int64_t c = 0; c < channels; ++c) {
        features[point.rows[i] * channels + c] += share * scene.features.values[ray * channels + c];
      }
    }
  }
  const Sums sums = forward(scene);
  CHECK(straddling > 50);
  CHECK(close(sums.features, features, 5e-5));  // single points lie 2e-6 m off, in voxels of 0.05 m
  CHECK(close(sums.weight, weight, 5e-5));
}

struct Cotangents {
  std::vector<float> features, weight;
  ScatterOutputGradients pointers() const { return {features.data(), weight.data()}; }
};

Cotangents cotangents(Scene& scene) {
  const int64_t rows = scene.grid.num_voxels();
  return {scene.random.uniforms(rows * scene.options.channels, -1.0f, 1.0f), scene.random.uniforms(rows, -1.0f, 1.0f)};
}

struct Gradients {
  std::vector<float> features, depth, origins, directions, weight;
};

struct Wanted {
  bool features = true, geometry = true, weight = true;
};

Gradients backward(const Scene& scene, const Cotangents& d_out, int num_threads = 1, Wanted wanted = {}) {
  const auto n = static_cast<size_t>(scene.options.num_rays);
  const size_t rays = wanted.geometry ? n : 0;
  Gradients g = {std::vector<float>(wanted.features ? n * scene.options.channels : 0, NAN),
                 std::vector<float>(rays, NAN), std::vector<float>(3 * rays, NAN), std::vector<float>(3 * rays, NAN),
                 std::vector<float>(wanted.weight ? n : 0, NAN)};
  const auto at = [](bool is_wanted, std::vector<float>& values) { return is_wanted ? values.data() : nullptr; };
  voxel_scatter_backward(scene.in, d_out.pointers(),
                         {at(wanted.features, g.features), at(wanted.geometry, g.depth), at(wanted.geometry, g.origins),
                          at(wanted.geometry, g.directions), at(wanted.weight, g.weight)},
                         scene.options.num_rays, num_threads);
  return g;
}

// sum over corners of a_c S_c, the ray's part of the loss per unit of weight.
double gain(const Scene& scene, const Cotangents& d_out, int64_t ray, const Point& point) {
  const int64_t channels = scene.options.channels;
  double sum = 0.0;
  for (int i = 0; point.valid && i < 8; ++i) {
    if (point.rows[i] < 0) continue;
    double one = d_out.weight[point.rows[i]];
    for (int64_t c = 0; c < channels; ++c) {
      one += double(d_out.features[point.rows[i] * channels + c]) * scene.features.values[ray * channels + c];
    }
    sum += point.shares[i] * one;
  }
  return sum;
}

// Geometry by central differences in double, the rest by the definition: the op is linear in it.
void check_backward(Scene& scene) {
  const Cotangents d_out = cotangents(scene);
  const int64_t channels = scene.options.channels;
  std::vector<double> features, depth, origins, directions, weight;
  for (int64_t ray = 0; ray < scene.options.num_rays; ++ray) {
    const Point point(scene, ray);
    weight.push_back(gain(scene, d_out, ray, point));
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0.0;
      for (int i = 0; point.valid && i < 8; ++i) {
        if (point.rows[i] >= 0) sum += point.shares[i] * d_out.features[point.rows[i] * channels + c];
      }
      features.push_back(sum * scene.weight_of(ray));
    }
    for (int i = 0; i < 7; ++i) {
      double up[7] = {}, down[7] = {};
      up[i] = 1e-6;
      down[i] = -1e-6;
      const double rise =
          gain(scene, d_out, ray, Point(scene, ray, up)) - gain(scene, d_out, ray, Point(scene, ray, down));
      (i == 0 ? depth : i < 4 ? origins : directions).push_back(rise / 2e-6 * scene.weight_of(ray));
    }
  }
  const Gradients g = backward(scene, d_out);
  CHECK(close(g.features, features, 5e-5));
  CHECK(close(g.weight, weight, 5e-5));
  CHECK(close(g.depth, depth, 5e-5));
  CHECK(close(g.origins, origins, 5e-5));
  CHECK(close(g.directions, directions, 5e-5));
}

double inner(const std::vector<float>& a, const std::vector<double>& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

std::vector<double> widened(const std::vector<float>& values) { return {values.begin(), values.end()}; }

}  // namespace

TEST(scatter_forward_is_the_definition) {
  for (const int64_t channels : {1, 3, 4, 16, 17, 70}) {  // 70: more than are gathered on the stack
    for (const Storage storage : kStorages) {
      check_forward(Scene({.channels = channels, .storage = storage, .weights = channels % 2 == 1}));
    }
  }
}

TEST(scatter_backward_is_the_definition) {
  for (const int64_t channels : {1, 3, 4, 16, 17, 70}) {
    for (const Storage storage : kStorages) {
      Scene scene({.channels = channels, .storage = storage, .num_rays = 200, .weights = channels % 2 == 1});
      check_backward(scene);
    }
  }
}

TEST(scatter_does_not_depend_on_threads) {
  for (const int64_t channels : {3, 16, 70}) {
    Scene scene({.channels = channels, .storage = Storage::float16, .num_rays = 9001});
    const Sums one = forward(scene, 1);
    CHECK(forward(scene, 2) == one);
    CHECK(forward(scene, 5) == one);
    const Cotangents d_out = cotangents(scene);
    const Gradients a = backward(scene, d_out, 1), b = backward(scene, d_out, 5);
    CHECK(same_bits(a.features, b.features) && same_bits(a.weight, b.weight) && same_bits(a.depth, b.depth));
    CHECK(same_bits(a.origins, b.origins) && same_bits(a.directions, b.directions));
  }
}

TEST(scatter_and_its_backward_are_adjoint) {
  Scene scene({.channels = 16, .num_rays = 5000, .seed = 3});
  const Cotangents d_out = cotangents(scene);
  const Sums sums = forward(scene);
  const Gradients g = backward(scene, d_out);
  const double there = inner(sums.features, widened(d_out.features));
  const double back = inner(g.features, scene.features.values);
  CHECK(std::fabs(there) > 1.0);
  CHECK(std::fabs(there - back) < 1e-4 * std::sqrt(inner(sums.features, widened(sums.features))));
  const double all = there + inner(sums.weight, widened(d_out.weight));  // linear in the weight too
  CHECK(std::fabs(all - inner(g.weight, widened(scene.weight))) < 1e-3 * std::fabs(all) + 1e-2);
}

TEST(scatter_adds_to_what_is_there) {
  const Scene scene({.channels = 4});
  Sums sums = forward(scene);
  const Sums once = sums;
  voxel_scatter_forward(scene.in, {sums.features.data(), sums.weight.data()}, scene.options.num_rays, 2);
  bool doubled = true;
  for (size_t i = 0; i < sums.weight.size(); ++i) {
    doubled = doubled && std::fabs(sums.weight[i] - 2 * once.weight[i]) < 1e-4f;
  }
  CHECK(doubled && !(sums == once));
}

TEST(scatter_ignores_rays_without_a_point) {
  constexpr float bad[] = {0.0f, -1.0f, NAN, INFINITY, -INFINITY, 1e30f};
  Scene scene({.channels = 3, .num_rays = 600, .seed = 4}), clean({.channels = 3, .num_rays = 600, .seed = 4});
  for (int64_t ray = 0; ray < 600; ray += 3) {
    clean.weight[ray] = 0.0f;  // a weight of nothing in place of a ray that is nothing
    if (ray % 2 == 0) {
      scene.depth[ray] = bad[ray / 6 % 6];
    } else {
      (ray % 4 == 1 ? scene.origins : scene.directions)[3 * ray + ray / 6 % 3] = ray % 8 < 4 ? NAN : INFINITY;
    }
    scene.weight[ray] = NAN;  // what goes with no point may be anything
  }
  CHECK(close(forward(scene).features, widened(forward(clean).features), 1e-6));
  CHECK(close(forward(scene).weight, widened(forward(clean).weight), 1e-6));
  const Gradients g = backward(scene, cotangents(scene));
  bool zero = true;
  for (int64_t ray = 0; ray < 600; ray += 3) {
    zero = zero && g.depth[ray] == 0.0f && g.weight[ray] == 0.0f;
    for (int i = 0; i < 3; ++i) {
      zero = zero && g.features[3 * ray + i] == 0.0f && g.origins[3 * ray + i] == 0.0f &&
             g.directions[3 * ray + i] == 0.0f;
    }
  }
  CHECK(zero);
}

// Points next to the corner of 8 pages, of which each in turn is missing or not.
TEST(scatter_drops_corners_that_are_not_allocated) {
  for (int mask = 0; mask < 256; mask += 5) {
    GridBuilder grid(1.0f);
    std::vector<Int3> bricks;
    for (int i = 0; i < 8; ++i) {
      if (mask >> i & 1) bricks.push_back({-(1 - (i >> 2)), -(1 - (i >> 1 & 1)), -(1 - (i & 1))});
    }
    grid.add_pages(bricks);
    CHECK(grid.insert(bricks));
    const float feature = 2.0f, depth = 1.0f, origin[3] = {-1.5f, -0.5f, -0.5f}, direction[3] = {1.0f, 0.0f, 0.0f};
    const ScatterInputs in = {grid.view(), &feature, &depth, origin, direction, nullptr, Storage::float32, 1};
    std::vector<float> features(grid.num_voxels(), 0.0f), weight(grid.num_voxels(), 0.0f);
    voxel_scatter_forward(in, {features.data(), weight.data()}, 1, 3);
    double sum = 0.0, feature_sum = 0.0;
    for (const float value : weight) sum += value;
    for (const float value : features) feature_sum += value;
    CHECK(sum == 0.125 * static_cast<double>(bricks.size()) && feature_sum == 2.0 * sum);
  }
}

TEST(scatter_gradients_that_are_not_wanted_change_nothing) {
  Scene scene({.channels = 16, .seed = 5});
  const Cotangents d_out = cotangents(scene);
  const Gradients all = backward(scene, d_out);
  for (int mask = 0; mask < 8; ++mask) {
    const Wanted wanted = {(mask & 1) != 0, (mask & 2) != 0, (mask & 4) != 0};
    const Gradients some = backward(scene, d_out, 2, wanted);
    if (wanted.features) CHECK(same_bits(some.features, all.features));
    if (wanted.geometry) CHECK(same_bits(some.depth, all.depth) && same_bits(some.origins, all.origins));
    if (wanted.weight) CHECK(same_bits(some.weight, all.weight));
  }
}

TEST(scatter_of_nothing) {
  const Scene none({.num_rays = 0});
  CHECK(forward(none, 4).weight == std::vector<float>(none.grid.num_voxels(), 0.0f));
  Scene lost({.num_rays = 50});
  const GridBuilder empty(0.1f);
  lost.in.grid = empty.view();
  voxel_scatter_forward(lost.in, {nullptr, nullptr}, 50, 2);
  const Gradients g = backward(lost, {{}, {}});
  CHECK(same_bits(g.depth, std::vector<float>(50, 0.0f)) && same_bits(g.features, std::vector<float>(150, 0.0f)));
}
