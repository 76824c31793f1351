// One ray of volume_render: the visitors that march_ray() drives, forward and backward.
//
//   alpha_k = 1 - exp(-sigma(t_k) step),  T_k = prod_{j<k} (1 - alpha_j),  w_k = T_k alpha_k
//   features = sum_k w_k f(t_k),  depth = sum_k w_k t_k,  opacity = sum_k w_k
//
// f is trilinear in the 8 corner rows F_c of the current cell, so a cell's samples only add to 8 scalars
// W_c = sum_k w_k a_c(k), and the rows are read once when the ray leaves the cell: features += sum_c W_c F_c.
//
// Backward, with g_k = d_features . f(t_k) + d_depth t_k + d_opacity (trilinear in the 8 dot products d_features .
// F_c):
//   d_sigma_k = step (T_{k+1} g_k - sum_{j>k} w_j g_j),  the suffix being total - prefix, in double;
//   d_density_c += a_c(k) d_sigma_k,  d_features_c += W_c d_features,  and through a_c to the sample's position.
#pragma once

#include "core/ray_march.h"
#include "core/storage.h"

namespace evoworld {

struct RenderInputs {
  GridView grid;
  MarchParams march;
  const void* features;     // [V, C] of `storage`
  const float* density;     // [V], 1/m
  const float* origins;     // [R, 3], metres
  const float* directions;  // [R, 3], unit
  const float* jitter;      // [R] in units of a step, or null: 0.5
  Storage storage;
  int64_t num_channels;
  int64_t num_bricks = 0;                  // M, where it is known
  const uint64_t* dense_points = nullptr;  // [M], bit i: density i of the brick's 64 is not zero; null: read as needed
  int64_t num_pages = 0;                   // P, where it is known
  int64_t image_width = 0;  // pixels in a row where the rays are an image's pixels, row by row; 0: unknown
};

struct RenderOutputs {
  float* features;  // [R, C]
  float* depth;     // [R]
  float* opacity;   // [R]
};

struct RenderOutputGradients {
  const float* features;  // [R, C]
  const float* depth;     // [R]
  const float* opacity;   // [R]
};

struct RenderInputGradients {
  float* features;    // [V, C], null when not wanted
  float* density;     // [V], null when not wanted
  float* origins;     // [R, 3], null when not wanted; directions alike
  float* directions;  // [R, 3]
};

// Bit i is set where values[i], of the 64 of a brick, is not zero.
EW_HD uint64_t nonzero_bits(const float* values) {
  uint64_t bits = 0;
  for (int i = 0; i < kBrickVoxels; i += 8) {
    uint8_t flags[8];
    for (int j = 0; j < 8; ++j) flags[j] = values[i + j] != 0.0f;
    uint64_t bytes;
    memcpy(&bytes, flags, sizeof bytes);
    bits |= (bytes * 0x0102040810204080u >> 56) << i;  // the low bits of 8 bytes, side by side
  }
  return bits;
}

// The cells of a brick with a corner of non-zero density; samples of all others have density zero.
EW_HD uint64_t dense_cells(const RenderInputs& in, const int64_t brick_rows[8]) {
  uint64_t points[8];
  for (int i = 0; i < 8; ++i) {
    const int64_t row = brick_rows[i];
    if (row < 0) {
      points[i] = 0;
    } else {
      points[i] = in.dense_points != nullptr ? in.dense_points[row / kBrickVoxels] : nonzero_bits(in.density + row);
    }
  }
  return cells_with_corner(points);
}

// The cells of a brick with a corner that is allocated.
EW_HD uint64_t allocated_cells(const int64_t brick_rows[8]) {
  uint64_t points[8];
  for (int i = 0; i < 8; ++i) points[i] = brick_rows[i] < 0 ? 0 : ~uint64_t{0};
  return cells_with_corner(points);
}

// The corners of a cell, at least one of them allocated. Those that are not stand in with the row of one that is, and
// `allocated` 0 takes them out of every sum: loops over corners need no branch, which is what lets them be vectorised.
struct CellCorners {
  int64_t rows[8];
  bool allocated[8];
  float densities[8];

  EW_HD void load(const float* density, const int64_t found[8]) {
    int64_t any = found[0];
    for (int i = 1; i < 8; ++i) any = found[i] > any ? found[i] : any;
    for (int i = 0; i < 8; ++i) {
      allocated[i] = found[i] >= 0;
      rows[i] = allocated[i] ? found[i] : any;
      const float value = density[rows[i]];
      densities[i] = allocated[i] ? value : 0.0f;
    }
  }
};

constexpr float kNoLight = 5.9604645e-8f;  // 2^-24: a transmittance that float32 cannot tell from an opaque ray's

// The state of a ray between samples: what is left of the light, and the scalars gathered for the current cell.
struct RayState {
  float transmittance = 1.0f;
  float weights[8];  // W_c of the current cell
  bool touched = false;

  EW_HD void clear() {
    for (int i = 0; i < 8; ++i) weights[i] = 0.0f;
    touched = false;
  }

  // Weight of a sample of density sigma; the transmittance moves past it.
  EW_HD float absorb(float sigma, float step, const float corner_weights[8]) {
    const float weight = transmittance * one_minus_exp_negative(sigma * step);
    transmittance -= weight;
    for (int i = 0; i < 8; ++i) weights[i] = fmaf(weight, corner_weights[i], weights[i]);
    touched = true;
    return weight;
  }
};

// Takes the ray past a sample in a cell of the given corner densities. False: the ray is opaque, stop.
EW_HD bool pass_sample(const MarchParams& march, const float densities[8], float t, Float3 fraction, RayState& state,
                       float& depth, float& opacity) {
  const float sigma = trilinear(densities, fraction);
  if (sigma == 0.0f) return true;
  float corner_weights[8];
  trilinear_weights(fraction, corner_weights);
  const float weight = state.absorb(sigma, march.step, corner_weights);
  depth = fmaf(weight, t, depth);
  opacity += weight;
  return !(state.transmittance < march.min_transmittance);
}

template <class T, int kChannels>
struct RenderForward {
  const RenderInputs& in;
  const int64_t channels;  // kChannels, or any number where kChannels is 0
  float* sum;              // [C] of this ray
  float depth = 0.0f;
  float opacity = 0.0f;
  RayState state = {};
  CellCorners corners = {};

  EW_HD uint64_t brick(const int64_t brick_rows[8]) { return dense_cells(in, brick_rows); }

  EW_HD void cell(const int64_t found[8]) {
    corners.load(in.density, found);
    const int64_t count = kChannels > 0 ? kChannels : channels;
    for (int i = 0; i < 8; ++i) prefetch(static_cast<const T*>(in.features) + corners.rows[i] * count);
    state.clear();
  }

  EW_HD bool sample(float t, Float3 fraction) {
    return pass_sample(in.march, corners.densities, t, fraction, state, depth, opacity);
  }

  EW_HD void leave() {
    if (!state.touched) return;
    const int64_t count = kChannels > 0 ? kChannels : channels;
    const T* rows[8];
    float weights[8];
    for (int i = 0; i < 8; ++i) {
      rows[i] = static_cast<const T*>(in.features) + corners.rows[i] * count;
      weights[i] = corners.allocated[i] ? state.weights[i] : 0.0f;
    }
    for (int64_t c = 0; c < count; ++c) {
      float value = sum[c];
      for (int i = 0; i < 8; ++i) value = fmaf(weights[i], widen(rows[i][c]), value);
      sum[c] = value;
    }
  }
};

// The gradients of a ray between samples: its own, and those of the current cell.
struct RayGradients {
  double remaining = 0.0;               // sum of w_j g_j over the samples not yet passed
  Float3 d_base = {0.0f, 0.0f, 0.0f};   // by the line's base: lattice units
  Float3 d_slope = {0.0f, 0.0f, 0.0f};  // by the line's slope
  RayState state = {};
  float dots[8] = {};  // d_features . F_c
  float d_densities[8] = {};

  // Takes the ray past a sample of which d_distance = d_depth t + d_opacity. False: the ray is opaque, stop. dots,
  // d_densities and state.weights may hold the corners mirrored along some axes: there `mirrored` is 1 - fraction and
  // `sign` -1.
  EW_HD bool pass(const MarchParams& march, const float densities[8], float t, float d_distance, Float3 fraction,
                  Float3 mirrored, Float3 sign, bool wants_ray) {
    const float sigma = trilinear(densities, fraction);
    const float gain = trilinear(dots, mirrored) + d_distance;
    float corner_weights[8];
    trilinear_weights(mirrored, corner_weights);
    float weight = 0.0f;
    if (sigma != 0.0f) {
      weight = state.absorb(sigma, march.step, corner_weights);
      remaining -= static_cast<double>(weight) * gain;
    }
    // What is left of a float32 total when the light is gone is rounding, which a steep density would multiply.
    if (state.transmittance < larger(march.min_transmittance, kNoLight)) remaining = 0.0;
    const float d_sigma = march.step * static_cast<float>(static_cast<double>(state.transmittance) * gain - remaining);
    for (int i = 0; i < 8; ++i) d_densities[i] = fmaf(corner_weights[i], d_sigma, d_densities[i]);
    state.touched = true;
    if (wants_ray) {
      const Float3 by_density = trilinear_gradient(densities, fraction), by_dot = trilinear_gradient(dots, mirrored);
      const Float3 d_point = {fmaf(d_sigma, by_density.x, weight * (sign.x * by_dot.x)),
                              fmaf(d_sigma, by_density.y, weight * (sign.y * by_dot.y)),
                              fmaf(d_sigma, by_density.z, weight * (sign.z * by_dot.z))};
      d_base = {d_base.x + d_point.x, d_base.y + d_point.y, d_base.z + d_point.z};
      d_slope = {fmaf(t, d_point.x, d_slope.x), fmaf(t, d_point.y, d_slope.y), fmaf(t, d_point.z, d_slope.z)};
    }
    return !(state.transmittance < march.min_transmittance);
  }
};

// `Sink` takes a cell's gradients: void add(const CellCorners& corners, const float weights[8], const float
// d_density[8]), having been told of its rows by void expect(int64_t row, bool features) when the cell was entered.
template <class T, int kChannels, class Sink>
struct RenderBackward {
  const RenderInputs& in;
  const int64_t channels;
  const float* d_features;  // [C] of this ray
  const float d_depth;
  const float d_opacity;
  const bool wants_density;  // or the ray's own gradients: samples of zero density matter too
  const bool wants_ray;
  Sink& sink;
  RayGradients ray;
  CellCorners corners = {};

  EW_HD uint64_t brick(const int64_t brick_rows[8]) {
    return wants_density ? allocated_cells(brick_rows) : dense_cells(in, brick_rows);
  }

  EW_HD void cell(const int64_t found[8]) {
    corners.load(in.density, found);
    const int64_t count = kChannels > 0 ? kChannels : channels;
    const T* features = static_cast<const T*>(in.features);
    bool dense = false;
    for (int i = 0; i < 8; ++i) {
      prefetch(features + corners.rows[i] * count);
      dense = dense || corners.densities[i] != 0.0f;
    }
    for (int i = 0; i < 8; ++i) sink.expect(corners.rows[i], dense);  // with the above, 6% of the backward
    for (int i = 0; i < 8; ++i) {
      const float product = dot<kChannels>(d_features, features + corners.rows[i] * count, count);
      ray.dots[i] = corners.allocated[i] ? product : 0.0f;
      ray.d_densities[i] = 0.0f;
    }
    ray.state.clear();
  }

  EW_HD bool sample(float t, Float3 fraction) {
    constexpr Float3 kSame = {1.0f, 1.0f, 1.0f};
    const float d_distance = fmaf(d_depth, t, d_opacity);
    return ray.pass(in.march, corners.densities, t, d_distance, fraction, fraction, kSame, wants_ray);
  }

  EW_HD void leave() {
    if (ray.state.touched) sink.add(corners, ray.state.weights, ray.d_densities);
  }
};

}  // namespace evoworld
