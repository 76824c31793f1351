// volume_render in double precision, sample by sample as its definition reads, for one ray at a time.
//
// Which cell a sample falls into is decided in float32 as in the kernels; all else is double.
#pragma once

#include <cmath>
#include <vector>

#include "core/volume_render.h"
#include "grid_builder.h"

namespace evoworld::testing {

// Everything that volume_render differentiates by, or the gradients by it.
struct RenderValues {
  std::vector<double> features, density, origins, directions;
};

struct RenderedRay {
  std::vector<double> features;
  double depth = 0.0, opacity = 0.0;
  bool doubtful = false;  // whether it ends is a matter of rounding
};

class RenderTruth {
 public:
  RenderTruth(const GridBuilder& grid, const RenderInputs& in) : grid_(grid), in_(in) {}

  RenderedRay forward(const RenderValues& at, int64_t ray) const {
    RenderedRay out;
    out.features.assign(in_.num_channels, 0.0);
    double light = 1.0;
    for (const Sample& sample : samples(at, ray)) {
      const double weight = light * -std::expm1(-dense(at, sample) * in_.march.step);
      light -= weight;
      for (int64_t c = 0; c < in_.num_channels; ++c) out.features[c] += weight * feature(at, sample, c);
      out.depth += weight * sample.t;
      out.opacity += weight;
      const double least = in_.march.min_transmittance;
      out.doubtful = out.doubtful || (least > 0.0 && std::fabs(light - least) < 1e-6);
      if (light < least) break;
    }
    return out;
  }

  // Adds the gradients of sum_c d_features[c] features[c] + d_depth depth + d_opacity opacity.
  void backward(const RenderValues& at, int64_t ray, const float* d_features, double d_depth, double d_opacity,
                RenderValues& gradients) const {
    std::vector<Sample> path = samples(at, ray);
    std::vector<double> weights, lights, gains;  // w_k, T_{k+1}, g_k
    double light = 1.0;
    for (const Sample& sample : path) {
      weights.push_back(light * -std::expm1(-dense(at, sample) * in_.march.step));
      light -= weights.back();
      lights.push_back(light);
      gains.push_back(d_depth * sample.t + d_opacity);
      for (int64_t c = 0; c < in_.num_channels; ++c) gains.back() += d_features[c] * feature(at, sample, c);
      if (light < in_.march.min_transmittance) break;
    }
    double behind = 0.0;  // sum_{j>k} w_j g_j
    for (size_t k = weights.size(); k-- > 0;) {
      const Sample& sample = path[k];
      const double d_sigma = in_.march.step * (lights[k] * gains[k] - behind);
      behind += weights[k] * gains[k];
      for (int i = 0; i < 8; ++i) {
        const int64_t row = sample.rows[i];
        if (row < 0) continue;
        double dot = 0.0;
        for (int64_t c = 0; c < in_.num_channels; ++c) {
          gradients.features[row * in_.num_channels + c] += weights[k] * sample.weights[i] * d_features[c];
          dot += d_features[c] * at.features[row * in_.num_channels + c];
        }
        gradients.density[row] += d_sigma * sample.weights[i];
        for (int axis = 0; axis < 3; ++axis) {
          const double d_point = (d_sigma * at.density[row] + weights[k] * dot) * sample.slopes[i][axis];
          gradients.origins[3 * ray + axis] += d_point;
          gradients.directions[3 * ray + axis] += d_point * sample.t;
        }
      }
    }
  }

 private:
  struct Sample {
    double t;
    int64_t rows[8];
    double weights[8];
    double slopes[8][3];  // of the weights, per metre
  };

  std::vector<Sample> samples(const RenderValues& at, int64_t ray) const {
    const GridView& view = grid_.view();
    const LatticeLine line = lattice_line(view, load3(in_.origins, ray), load3(in_.directions, ray));
    const double origin[3] = {view.origin.x, view.origin.y, view.origin.z}, size = view.voxel_size;
    const float jitter = in_.jitter != nullptr ? in_.jitter[ray] : 0.5f;
    std::vector<Sample> all;
    for (int32_t k = 0; sample_distance(in_.march, jitter, k) < in_.march.far; ++k) {
      const float t = sample_distance(in_.march, jitter, k);
      const Int3 cell = cell_point(line, t).cell;
      const int32_t low[3] = {cell.x, cell.y, cell.z};
      Sample sample = {t, {}, {}, {}};
      bool allocated = false;
      double f[3];
      for (int axis = 0; axis < 3; ++axis) {
        const double position = at.origins[3 * ray + axis] + t * at.directions[3 * ray + axis];
        f[axis] = (position - origin[axis]) / size - low[axis];
      }
      for (int i = 0; i < 8; ++i) {
        sample.rows[i] = grid_.row(corner_of(cell, i));
        allocated = allocated || sample.rows[i] >= 0;
        double part[3], sign[3];
        for (int axis = 0; axis < 3; ++axis) {
          sign[axis] = (i >> (2 - axis)) & 1 ? 1.0 : -1.0;
          part[axis] = sign[axis] > 0.0 ? f[axis] : 1.0 - f[axis];
        }
        sample.weights[i] = part[0] * part[1] * part[2];
        for (int axis = 0; axis < 3; ++axis) {
          sample.slopes[i][axis] = sign[axis] * part[(axis + 1) % 3] * part[(axis + 2) % 3] / size;
        }
      }
      if (allocated) all.push_back(sample);
    }
    return all;
  }

  static double dense(const RenderValues& at, const Sample& sample) {
    double sum = 0.0;
    for (int i = 0; i < 8; ++i) sum += sample.rows[i] < 0 ? 0.0 : sample.weights[i] * at.density[sample.rows[i]];
    return sum;
  }

  double feature(const RenderValues& at, const Sample& sample, int64_t c) const {
    double sum = 0.0;
    for (int i = 0; i < 8; ++i) {
      if (sample.rows[i] >= 0) sum += sample.weights[i] * at.features[sample.rows[i] * in_.num_channels + c];
    }
    return sum;
  }

  const GridBuilder& grid_;
  const RenderInputs& in_;
};

}  // namespace evoworld::testing
