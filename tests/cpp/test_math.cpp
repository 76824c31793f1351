#include <cmath>
#include <limits>

#include "check.h"
#include "core/sparse_grid.h"
#include "random.h"

using namespace evoworld;
using namespace evoworld::testing;

namespace {

double ulp_of(double value) {
  const float magnitude = std::fabs(static_cast<float>(value));
  return static_cast<double>(std::nextafter(magnitude, INFINITY)) - magnitude;
}

// The bits of a float, except that one NaN is as good as another.
uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return std::isnan(value) ? 0x7fc00000u : bits;
}

// The i-th corner's trilinear weight in double, and its derivative along an axis.
double weight_of(int i, const double f[3], int by = -1) {
  double product = 1.0;
  for (int axis = 0; axis < 3; ++axis) {
    const bool upper = (i >> (2 - axis)) & 1;
    if (axis == by) {
      product *= upper ? 1.0 : -1.0;
    } else {
      product *= upper ? f[axis] : 1.0 - f[axis];
    }
  }
  return product;
}

}  // namespace

TEST(one_minus_exp_negative_is_exact_to_two_ulp) {
  double worst = 0.0;
  bool sign = true, bounded = true;
  const auto look_at = [&](float x) {
    const float value = one_minus_exp_negative(x);
    const double truth = -std::expm1(-static_cast<double>(x));
    worst = std::fmax(worst, std::fabs(value - truth) / ulp_of(truth));
    sign = sign && (x > 0 ? value > 0 : x < 0 ? value < 0 : value == 0);
    bounded = bounded && value <= 1.0f;
  };
  for (uint32_t bits = 1; bits < 0x7f800000u; bits += 4099) {  // all magnitudes, denormal to largest
    look_at(bits_to_float(bits));
    if (bits_to_float(bits) < 87.0f) look_at(-bits_to_float(bits));
  }
  for (int i = 0; i <= 400000; ++i) look_at(static_cast<float>(i) * 5.0e-5f);  // where the reduction changes sides
  CHECK(worst <= 2.0);
  CHECK(sign);
  CHECK(bounded);
  CHECK(one_minus_exp_negative(INFINITY) == 1.0f);
  CHECK(one_minus_exp_negative(std::numeric_limits<float>::denorm_min()) == std::numeric_limits<float>::denorm_min());
}

TEST(widen_is_exact_for_every_pattern) {
  bool half = true, bfloat16 = true;
  for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
    const auto bits = static_cast<uint16_t>(pattern);
    half = half && bits_of(widen(Half{bits})) == bits_of(static_cast<float>(half_value(bits)));
    bfloat16 = bfloat16 && bits_of(widen(BFloat16{bits})) == bits_of(static_cast<float>(bfloat16_value(bits)));
  }
  CHECK(half);
  CHECK(bfloat16);
  CHECK(widen(-0.25f) == -0.25f);
}

TEST(trilinear_weights_value_and_gradient) {
  Random random(1);
  for (int round = 0; round < 2000; ++round) {
    const Float3 fraction =
        round < 8 ? Float3{float(round >> 2), float((round >> 1) & 1), float(round & 1)} : random.point(0.0f, 1.0f);
    const double f[3] = {fraction.x, fraction.y, fraction.z};
    float weights[8], values[8];
    trilinear_weights(fraction, weights);
    double sum = 0.0, value = 0.0, gradient[3] = {0, 0, 0}, error = 0.0;
    for (int i = 0; i < 8; ++i) {
      values[i] = random.uniform(-1.0f, 1.0f);
      sum += weights[i];
      value += weight_of(i, f) * values[i];
      for (int axis = 0; axis < 3; ++axis) gradient[axis] += weight_of(i, f, axis) * values[i];
      error = std::fmax(error, std::fabs(weights[i] - weight_of(i, f)));
      CHECK(weights[i] >= 0.0f && weights[i] <= 1.0f);
    }
    CHECK(error < 2e-7);
    CHECK(std::fabs(sum - 1.0) < 4e-7);
    CHECK(std::fabs(trilinear(values, fraction) - value) < 1e-6);
    const Float3 slope = trilinear_gradient(values, fraction);
    CHECK(std::fabs(slope.x - gradient[0]) < 2e-6);
    CHECK(std::fabs(slope.y - gradient[1]) < 2e-6);
    CHECK(std::fabs(slope.z - gradient[2]) < 2e-6);
    if (round < 8) CHECK(trilinear(values, fraction) == values[round]);
  }
}

TEST(cell_point_is_continuous_and_floors) {
  Random random(2);
  const GridView grid = {nullptr, nullptr, {0, 0, 0}, {0, 0, 0}, {0.5f, -1.0f, 2.0f}, 0.05f};
  for (int round = 0; round < 5000; ++round) {
    const float reach = round % 2 == 0 ? 3.0f : 300.0f;
    const Float3 origin = random.point(-reach, reach), direction = random.direction();
    const float t = random.uniform(0.0f, 10.0f);
    const CellPoint point = cell_point(lattice_line(grid, origin, direction), t);
    const double o[3] = {origin.x, origin.y, origin.z}, d[3] = {direction.x, direction.y, direction.z};
    const double at[3] = {grid.origin.x, grid.origin.y, grid.origin.z};
    const int32_t cell[3] = {point.cell.x, point.cell.y, point.cell.z};
    const float fraction[3] = {point.fraction.x, point.fraction.y, point.fraction.z};
    for (int i = 0; i < 3; ++i) {
      const double truth = (o[i] - at[i] + t * d[i]) / grid.voxel_size;
      // Four roundings: of the difference, of the quotients and of the sum.
      const double tolerance = 2.5e-7 * (std::fabs(o[i] - at[i]) + t) / grid.voxel_size;
      CHECK(std::fabs(cell[i] + static_cast<double>(fraction[i]) - truth) <= tolerance);
      CHECK(fraction[i] >= 0.0f && fraction[i] < 1.0f);
    }
  }
}

TEST(dot_and_add_scaled_for_each_width) {
  Random random(3);
  for (const int count : {0, 1, 3, 4, 15, 16, 17, 33}) {
    const StoredValues row(random, Storage::float16, count);
    const auto* b = reinterpret_cast<const Half*>(row.bytes.data());
    const std::vector<float> a = random.uniforms(count, -1.0f, 1.0f);
    double truth = 0.0;
    for (int c = 0; c < count; ++c) truth += a[c] * row.values[c];
    CHECK(std::fabs(dot<0>(a.data(), b, count) - truth) < 1e-5);
    if (count == 4) CHECK(std::fabs(dot<4>(a.data(), b, count) - truth) < 1e-5);
    if (count == 16) CHECK(std::fabs(dot<16>(a.data(), b, count) - truth) < 1e-5);
    std::vector<float> sum = a;
    std::vector<double> total(count);
    for (int c = 0; c < count; ++c) total[c] = a[c] + 0.3 * row.values[c];
    add_scaled<0>(sum.data(), 0.3f, b, count);
    CHECK(close(sum, total, 1e-6));
  }
}

TEST(addresses_of_corners) {
  for (int i = 0; i < kPageBricks; ++i) {
    CHECK(index_in_page({i / 64 - 8, i / 8 % 8 + 16, i % 8}) == i);
  }
  for (int i = 0; i < kBrickVoxels; ++i) {
    CHECK(index_in_brick({i / 16 - 400, i / 4 % 4 + 8, i % 4 - 4}) == i);
  }
  CHECK(same(corner_of({-1, 5, 0}, 6), {0, 6, 0}));
  CHECK(same(shift_down({-1, -8, 9}, 3), {-1, -1, 1}));
}
