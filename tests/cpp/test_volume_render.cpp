#include "check.h"
#include "cpu/volume_render.h"
#include "render_truth.h"

using namespace evoworld;
using namespace evoworld::testing;

namespace {

struct Options {
  int64_t channels = 3;
  Storage storage = Storage::float32;
  float min_transmittance = 0.0f;
  int64_t num_rays = 60;
  float max_density = 3.0f;  // 1/m
  uint64_t seed = 1;
};

std::vector<double> widened(const std::vector<float>& values) { return {values.begin(), values.end()}; }

// A shell seen from within and without, a third of it of no density, with all that one call takes.
struct Scene {
  Options options;
  Random random;
  GridBuilder grid;
  StoredValues features;
  std::vector<float> density, origins, directions, jitter, d_features, d_depth, d_opacity;
  RenderInputs in;

  explicit Scene(const Options& o)
      : options(o), random(o.seed), grid(shell(random)), features(random, o.storage, grid.num_voxels() * o.channels) {
    for (int64_t v = 0; v < grid.num_voxels(); ++v) {
      density.push_back(random.chance(0.35f) ? 0.0f : random.uniform(0.0f, o.max_density));
    }
    for (int64_t r = 0; r < o.num_rays; ++r) {
      const Float3 eye = random.point(-1.0f, 1.0f), d = random.direction();
      const float back = r % 3 == 0 ? 2.5f : 0.0f;
      origins.insert(origins.end(), {eye.x - back * d.x, eye.y - back * d.y, eye.z - back * d.z});
      directions.insert(directions.end(), {d.x, d.y, d.z});
      jitter.push_back(random.uniform(0.0f, 1.0f));
    }
    if (o.num_rays > 0) directions[0] = 0.0f;
    d_features = random.uniforms(o.num_rays * o.channels, -1.0f, 1.0f);
    d_depth = random.uniforms(o.num_rays, -1.0f, 1.0f);
    d_opacity = random.uniforms(o.num_rays, -1.0f, 1.0f);
    in = {grid.view(),
          {0.1f, 5.0f, 0.07f, o.min_transmittance},
          features.bytes.data(),
          density.data(),
          origins.data(),
          directions.data(),
          jitter.data(),
          o.storage,
          o.channels};
  }

  static GridBuilder shell(Random& random) {
    GridBuilder grid(0.15f, {0.02f, -0.3f, 0.1f}, 1);
    grid.merge(shell_points(random, 60, {0, 0, 0}, 1.6f));
    return grid;
  }

  RenderValues values() const { return {features.values, widened(density), widened(origins), widened(directions)}; }
  RenderValues zeros() const {
    return {std::vector<double>(features.values.size()), std::vector<double>(density.size()),
            std::vector<double>(origins.size()), std::vector<double>(directions.size())};
  }
};

struct Outputs {
  std::vector<float> features, depth, opacity;
  RenderOutputs pointers() { return {features.data(), depth.data(), opacity.data()}; }
  bool operator==(const Outputs& o) const {
    return same_bits(features, o.features) && same_bits(depth, o.depth) && same_bits(opacity, o.opacity);
  }
};

Outputs forward(const Scene& scene, int num_threads = 1) {
  const auto n = static_cast<size_t>(scene.options.num_rays);
  Outputs out = {std::vector<float>(n * scene.options.channels, NAN), std::vector<float>(n, NAN),
                 std::vector<float>(n, NAN)};
  volume_render_forward(scene.in, out.pointers(), scene.options.num_rays, num_threads);
  return out;
}

struct Gradients {
  std::vector<float> features, density, origins, directions;
  bool operator==(const Gradients& o) const {
    return same_bits(features, o.features) && same_bits(density, o.density) && same_bits(origins, o.origins) &&
           same_bits(directions, o.directions);
  }
};

struct Wanted {
  bool features = true, density = true, rays = true;
};

// Those that are not wanted come back empty.
Gradients backward(const Scene& scene, int num_threads = 1, Wanted wanted = {}) {
  Outputs out = forward(scene);
  const size_t rays = wanted.rays ? scene.origins.size() : 0;
  Gradients g = {std::vector<float>(wanted.features ? scene.features.values.size() : 0, 0.0f),
                 std::vector<float>(wanted.density ? scene.density.size() : 0, 0.0f), std::vector<float>(rays, NAN),
                 std::vector<float>(rays, NAN)};
  volume_render_backward(scene.in, out.pointers(),
                         {scene.d_features.data(), scene.d_depth.data(), scene.d_opacity.data()},
                         {wanted.features ? g.features.data() : nullptr, wanted.density ? g.density.data() : nullptr,
                          wanted.rays ? g.origins.data() : nullptr, wanted.rays ? g.directions.data() : nullptr},
                         scene.options.num_rays, num_threads);
  return g;
}

void check_forward(const Options& options, double tolerance) {
  const Scene scene(options);
  const RenderTruth truth(scene.grid, scene.in);
  Outputs out = forward(scene);
  std::vector<double> features, depth, opacity;
  int64_t doubtful = 0, lit = 0;
  for (int64_t ray = 0; ray < options.num_rays; ++ray) {
    const RenderedRay one = truth.forward(scene.values(), ray);
    if (one.doubtful) {  // leave it out
      ++doubtful;
      out.depth[ray] = out.opacity[ray] = 0.0f;
      std::fill_n(&out.features[ray * options.channels], options.channels, 0.0f);
    }
    for (const double value : one.features) features.push_back(one.doubtful ? 0.0 : value);
    depth.push_back(one.doubtful ? 0.0 : one.depth);
    opacity.push_back(one.doubtful ? 0.0 : one.opacity);
    lit += opacity.back() > 0.01;
  }
  CHECK(lit > options.num_rays / 2 && doubtful <= options.num_rays / 10);
  CHECK(close(out.features, features, tolerance));
  CHECK(close(out.depth, depth, tolerance));
  CHECK(close(out.opacity, opacity, tolerance));
}

void check_backward(const Options& options, double tolerance) {
  const Scene scene(options);
  const RenderTruth truth(scene.grid, scene.in);
  RenderValues expected = scene.zeros();
  for (int64_t ray = 0; ray < options.num_rays; ++ray) {
    truth.backward(scene.values(), ray, &scene.d_features[ray * options.channels], scene.d_depth[ray],
                   scene.d_opacity[ray], expected);
  }
  const Gradients gradients = backward(scene);
  CHECK(close(gradients.features, expected.features, tolerance));
  CHECK(close(gradients.density, expected.density, tolerance));
  CHECK(close(gradients.origins, expected.origins, tolerance));
  CHECK(close(gradients.directions, expected.directions, tolerance));
}

double loss(const Scene& scene, const RenderValues& at) {
  const RenderTruth truth(scene.grid, scene.in);
  double sum = 0.0;
  for (int64_t ray = 0; ray < scene.options.num_rays; ++ray) {
    const RenderedRay one = truth.forward(at, ray);
    for (int64_t c = 0; c < scene.options.channels; ++c) {
      sum += one.features[c] * scene.d_features[ray * scene.options.channels + c];
    }
    sum += one.depth * scene.d_depth[ray] + one.opacity * scene.d_opacity[ray];
  }
  return sum;
}

}  // namespace

// The gradients that the others are compared with, against central differences along a random direction.
TEST(render_truth_has_the_gradients_of_its_forward) {
  Scene scene({.num_rays = 20});
  const RenderTruth truth(scene.grid, scene.in);
  RenderValues gradients = scene.zeros();
  for (int64_t ray = 0; ray < scene.options.num_rays; ++ray) {
    truth.backward(scene.values(), ray, &scene.d_features[ray * 3], scene.d_depth[ray], scene.d_opacity[ray],
                   gradients);
  }
  for (auto part :
       {&RenderValues::features, &RenderValues::density, &RenderValues::origins, &RenderValues::directions}) {
    RenderValues up = scene.values(), down = scene.values();
    double slope = 0.0;
    for (size_t i = 0; i < (up.*part).size(); ++i) {
      const double along = scene.random.uniform(-1.0f, 1.0f);
      (up.*part)[i] += 1e-5 * along;
      (down.*part)[i] -= 1e-5 * along;
      slope += along * (gradients.*part)[i];
    }
    const double difference = (loss(scene, up) - loss(scene, down)) / 2e-5;
    CHECK(std::fabs(slope) > 1e-2);
    CHECK(std::fabs(difference - slope) < 1e-6 * (1.0 + std::fabs(slope)));
  }
}

TEST(render_forward_is_the_definition) {
  for (const int64_t channels : {1, 3, 4, 16, 17}) {
    for (const Storage storage : kStorages) {
      check_forward({.channels = channels, .storage = storage, .seed = 2}, 1e-5);
    }
  }
  check_forward({.num_rays = 300, .seed = 3}, 1e-5);
}

TEST(render_forward_of_dense_and_opaque_scenes) {
  for (const float min_transmittance : {0.0f, 1e-4f, 0.1f}) {
    for (const float max_density : {10.0f, 60.0f, 1e4f}) {
      check_forward({.min_transmittance = min_transmittance, .max_density = max_density, .seed = 4}, 3e-5);
    }
  }
}

TEST(render_backward_is_the_definition) {
  for (const int64_t channels : {1, 3, 4, 16, 17}) {
    for (const Storage storage : kStorages) {
      check_backward({.channels = channels, .storage = storage, .seed = 5}, 5e-5);
    }
  }
}

TEST(render_backward_of_dense_scenes) {
  for (const float min_transmittance : {0.0f, 1e-4f}) {
    check_backward({.min_transmittance = min_transmittance, .max_density = 20.0f, .seed = 6}, 2e-4);
  }
}

TEST(render_does_not_depend_on_threads) {
  for (const int64_t channels : {3, 16}) {
    const Scene scene({.channels = channels, .min_transmittance = 1e-4f, .num_rays = 3000, .seed = 7});
    CHECK(forward(scene, 1) == forward(scene, 4));
    const Gradients one = backward(scene, 1), four = backward(scene, 4);
    CHECK(one == backward(scene, 1));
    CHECK(close(four.features, widened(one.features), 1e-5));  // sums in another order
    CHECK(close(four.density, widened(one.density), 1e-5));
    CHECK(same_bits(four.origins, one.origins) && same_bits(four.directions, one.directions));
  }
}

TEST(render_gradients_that_are_not_wanted_change_nothing) {
  for (const int64_t channels : {4, 16}) {
    const Scene scene({.channels = channels, .seed = 8});
    const Gradients all = backward(scene);
    for (int mask = 0; mask < 8; ++mask) {
      const Wanted wanted = {(mask & 1) != 0, (mask & 2) != 0, (mask & 4) != 0};
      const Gradients some = backward(scene, 1 + mask % 2, wanted);
      const double tolerance = mask % 2 == 0 ? 0.0 : 1e-5;  // threads add in another order
      if (wanted.features) CHECK(close(some.features, widened(all.features), tolerance));
      if (wanted.density) CHECK(close(some.density, widened(all.density), tolerance));
      if (wanted.rays) CHECK(same_bits(some.origins, all.origins) && same_bits(some.directions, all.directions));
    }
  }
}

TEST(render_without_rays_bricks_or_channels) {
  const Scene none({.num_rays = 0});
  CHECK(forward(none, 4).depth.empty());
  const Gradients nothing = backward(none, 4);
  CHECK(close(nothing.features, std::vector<double>(nothing.features.size(), 0.0), 0.0));

  Scene blind({.channels = 0, .num_rays = 40});
  const Scene seeing({.channels = 3, .num_rays = 40});
  CHECK(forward(blind).features.empty());
  const std::vector<float> depth = forward(blind).depth;
  CHECK(*std::max_element(depth.begin(), depth.end()) > 0.1f);

  const GridBuilder empty(0.1f);
  Scene dark({.num_rays = 40});
  dark.in.grid = empty.view();
  dark.in.features = dark.in.density = nullptr;
  const Outputs out = forward(dark);
  CHECK(same_bits(out.opacity, std::vector<float>(40, 0.0f)) && same_bits(out.features, std::vector<float>(120, 0.0f)));
}

// Knowing how many bricks there are lets a call find the empty cells beforehand.
TEST(render_does_not_depend_on_the_number_of_bricks_being_known) {
  for (const int64_t num_rays : {2, 600}) {
    Scene scene({.num_rays = num_rays, .seed = 9});
    std::fill_n(scene.density.begin() + scene.density.size() / 4, scene.density.size() / 2, 0.0f);
    const Outputs before = forward(scene);
    scene.in.num_bricks = static_cast<int64_t>(scene.grid.bricks().size());
    CHECK(forward(scene, 1) == before);
    CHECK(forward(scene, 4) == before);
  }
}

TEST(render_jitter_defaults_to_the_middle_of_a_step) {
  Scene scene({.num_rays = 40});
  scene.jitter.assign(40, 0.5f);
  const Outputs given = forward(scene);
  scene.in.jitter = nullptr;
  CHECK(forward(scene) == given);
}

TEST(render_of_rays_that_are_no_rays) {
  Scene scene({.num_rays = 40});
  const Outputs before = forward(scene);
  for (const size_t i : {3, 16, 29}) scene.origins[i] = NAN;
  for (const size_t i : {7, 20}) scene.directions[i] = INFINITY;
  const Outputs out = forward(scene);
  for (size_t ray = 0; ray < 40; ++ray) {
    const bool broken = ray == 1 || ray == 5 || ray == 9 || ray == 2 || ray == 6;
    CHECK(out.opacity[ray] == (broken ? 0.0f : before.opacity[ray]));
  }
  const Gradients gradients = backward(scene);
  bool finite = true;
  for (const float value : gradients.density) finite = finite && std::isfinite(value);
  for (const float value : gradients.origins) finite = finite && std::isfinite(value);
  CHECK(finite);
}
