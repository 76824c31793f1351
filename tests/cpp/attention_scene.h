// Calls of sphere_attention for tests: inputs in any storage and strides, and the definition as loops in double.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>

#include "core/sphere_attention.h"
#include "random.h"

namespace evoworld::testing {

// Where the rows of a tensor [B, N, rows, width] lie in memory.
enum class RowLayout { heads_first, rows_first, padded, shared };  // rows_first: [B, rows, N, width]; shared: one batch

struct AttentionOptions {
  int64_t batch = 2, heads = 2, queries = 70, keys = 83;
  int width = 20, value_width = 33;
  Storage storage = Storage::float32;
  int degree = 1;  // of the zonal bias; -1: none
  bool log_weight = true;
  double radius = 0.0;  // 0: none
  RowLayout layout = RowLayout::rows_first;
  uint64_t seed = 1;
};

struct RowStrides {
  int64_t batch, head, row;

  RowStrides(RowLayout layout, int64_t heads, int64_t rows, int64_t width) {
    const int64_t step = layout == RowLayout::padded ? width + 3 : width;
    const bool heads_first = layout == RowLayout::heads_first || layout == RowLayout::padded;
    head = heads_first ? rows * step : step;
    row = heads_first ? step : heads * step;
    batch = layout == RowLayout::shared ? 0 : heads * rows * step;
  }

  int64_t at(int64_t b, int64_t n, int64_t i) const { return b * batch + n * head + i * row; }
};

// A tensor [B, N, rows, width] of random values, in no more memory than it takes.
struct RandomRows {
  RowStrides strides;
  StoredValues stored;

  RandomRows(Random& random, const AttentionOptions& o, int64_t rows, int width)
      : strides(o.layout, o.heads, rows, width), stored(random, o.storage, size(o, rows, width)) {}

  double operator()(int64_t b, int64_t n, int64_t i, int64_t c) const { return stored.values[strides.at(b, n, i) + c]; }
  AttentionRows<const void*> view() const { return {stored.bytes.data(), strides.batch, strides.head, strides.row}; }

 private:
  int64_t size(const AttentionOptions& o, int64_t rows, int width) const {
    if (o.batch == 0 || o.heads == 0 || rows == 0) return 0;
    return strides.at(o.batch - 1, o.heads - 1, rows - 1) + width;
  }
};

// What a kernel writes: [B, N, rows, width] over [B, rows, N, width], and all of it NaN before.
struct WrittenRows {
  Storage storage;
  RowStrides strides;
  std::vector<uint32_t> words;

  WrittenRows(const AttentionOptions& o, int64_t rows, int width)
      : storage(o.storage),
        strides(RowLayout::rows_first, o.heads, rows, width),
        words((o.batch * o.heads * rows * width * (o.storage == Storage::float32 ? 4 : 2) + 3) / 4, 0xffffffffu) {}

  AttentionRows<void*> view() { return {words.data(), strides.batch, strides.head, strides.row}; }
  bool operator==(const WrittenRows& other) const { return words == other.words; }

  // In the order of a tensor [B, N, rows, width].
  std::vector<float> values(const AttentionOptions& o, int64_t rows, int width) const {
    std::vector<float> all;
    for (int64_t b = 0; b < o.batch; ++b) {
      for (int64_t n = 0; n < o.heads; ++n) {
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t c = 0; c < width; ++c) all.push_back(value(strides.at(b, n, i) + c));
        }
      }
    }
    return all;
  }

 private:
  float value(int64_t i) const {
    if (storage == Storage::float32) return bits_to_float(words[i]);
    const uint16_t bits = reinterpret_cast<const uint16_t*>(words.data())[i];
    return static_cast<float>(storage == Storage::float16 ? half_value(bits) : bfloat16_value(bits));
  }
};

// Tokens along bands of latitude: any run of neighbours is a patch or a few.
inline std::vector<int32_t> banded_order(const std::vector<float>& directions) {
  std::vector<int32_t> order(directions.size() / 3);
  std::iota(order.begin(), order.end(), 0);
  const auto position = [&](int32_t i) {
    const float* d = &directions[3 * i];
    return 10.0 * std::floor(std::asin(d[2]) / 0.4) + std::atan2(d[1], d[0]);
  };
  std::sort(order.begin(), order.end(), [&](int32_t i, int32_t j) { return position(i) < position(j); });
  return order;
}

struct AttentionScene {
  AttentionOptions options;
  Random random;
  RandomRows query, key, value;
  std::vector<float> query_directions, key_directions, zonal, key_log_weight;
  std::vector<int32_t> query_order, key_order;
  AttentionInputs in;

  explicit AttentionScene(const AttentionOptions& o)
      : options(o),
        random(o.seed),
        query(random, o, o.queries, o.width),
        key(random, o, o.keys, o.width),
        value(random, o, o.keys, o.value_width),
        query_directions(directions(o.queries)),
        key_directions(directions(o.keys)),
        zonal(random.uniforms(o.heads * (o.degree + 1), -2.0f, 2.0f)),
        key_log_weight(random.uniforms(o.keys, -2.0f, 1.0f)) {
    if (o.radius > 0.0) {
      query_order = banded_order(query_directions);
      key_order = banded_order(key_directions);
    }
    look();
  }
  AttentionScene(const AttentionScene&) = delete;  // `in` points into the members

  // To be called again after members were changed.
  void look() {
    const AttentionOptions& o = options;
    const bool masked = o.radius > 0.0;
    in = {o.storage,
          query.view(),
          key.view(),
          value.view(),
          query_directions.data(),
          key_directions.data(),
          o.degree >= 0 ? zonal.data() : nullptr,
          o.log_weight ? key_log_weight.data() : nullptr,
          masked ? query_order.data() : nullptr,
          masked ? key_order.data() : nullptr,
          static_cast<float>(max_chord2()),
          0.25f,
          o.batch,
          o.heads,
          o.queries,
          o.keys,
          o.width,
          o.value_width,
          std::max(o.degree, 0)};
  }

  double cosine(int64_t i, int64_t j) const {
    double sum = 0.0;
    for (int c = 0; c < 3; ++c) sum += double(query_directions[3 * i + c]) * key_directions[3 * j + c];
    return sum;
  }

  static double legendre(int l, double t) {
    return l == 0 ? 1.0 : l == 1 ? t : l == 2 ? 1.5 * t * t - 0.5 : (2.5 * t * t - 1.5) * t;
  }

  double logit(int64_t b, int64_t n, int64_t i, int64_t j) const {
    double sum = 0.0, chord2 = 0.0;
    for (int c = 0; c < options.width; ++c) sum += query(b, n, i, c) * key(b, n, j, c);
    sum *= in.scale;
    for (int l = 0; l <= options.degree; ++l) {
      sum += double(zonal[n * (options.degree + 1) + l]) * legendre(l, cosine(i, j));
    }
    for (int c = 0; c < 3; ++c) {
      const double step = double(query_directions[3 * i + c]) - key_directions[3 * j + c];
      chord2 += step * step;
    }
    if (options.log_weight) sum += key_log_weight[j];
    return chord2 > max_chord2() ? -INFINITY : sum;
  }

 private:
  std::vector<float> directions(int64_t count) {
    std::vector<float> all;
    for (int64_t i = 0; i < count; ++i) {
      const Float3 d = random.direction();
      all.insert(all.end(), {d.x, d.y, d.z});
    }
    return all;
  }

  double max_chord2() const {
    return options.radius > 0.0 ? 4 * std::pow(std::sin(options.radius / 2), 2)
                                : std::numeric_limits<double>::infinity();
  }
};

// Forward and backward by the definition. Tensors are [B, N, rows, width].
struct AttentionTruth {
  std::vector<double> output, lse, d_query, d_key, d_value, d_zonal, d_key_log_weight;
  double noise2 = 0.0;  // sum of the squares of what d_zonal sums before it cancels, d_output_ic v_jc weighed by p_ij

  AttentionTruth(const AttentionScene& scene, const RandomRows& d_output, const std::vector<float>& d_lse) {
    const AttentionOptions& o = scene.options;
    const int64_t tokens = o.batch * o.heads;
    d_query.resize(tokens * o.queries * o.width);
    d_key.resize(tokens * o.keys * o.width);
    d_value.resize(tokens * o.keys * o.value_width);
    d_zonal.resize(o.heads * (o.degree + 1));
    d_key_log_weight.resize(o.log_weight ? o.keys : 0);
    for (int64_t b = 0; b < o.batch; ++b) {
      for (int64_t n = 0; n < o.heads; ++n) {
        for (int64_t i = 0; i < o.queries; ++i) add_query(scene, d_output, d_lse, b, n, i);
      }
    }
  }

 private:
  void add_query(const AttentionScene& scene, const RandomRows& d_output, const std::vector<float>& d_lse, int64_t b,
                 int64_t n, int64_t i) {
    const AttentionOptions& o = scene.options;
    const int64_t head = b * o.heads + n;
    std::vector<double> p(o.keys);
    double top = -INFINITY, sum = 0.0;
    for (int64_t j = 0; j < o.keys; ++j) top = std::fmax(top, p[j] = scene.logit(b, n, i, j));
    for (double& x : p) sum += x = std::isinf(top) ? 0.0 : std::exp(x - top);
    for (double& x : p) x = sum > 0.0 ? x / sum : 0.0;
    lse.push_back(sum > 0.0 ? top + std::log(sum) : -INFINITY);
    std::vector<double> row(o.value_width);
    double delta = sum > 0.0 ? -d_lse[head * o.queries + i] : 0.0;
    for (int c = 0; c < o.value_width; ++c) {
      for (int64_t j = 0; j < o.keys; ++j) row[c] += p[j] * scene.value(b, n, j, c);
      delta += row[c] * d_output(b, n, i, c);
    }
    output.insert(output.end(), row.begin(), row.end());
    for (int64_t j = 0; j < o.keys; ++j) {
      if (p[j] == 0.0) continue;
      double d_p = 0.0;
      for (int c = 0; c < o.value_width; ++c) {
        d_p += d_output(b, n, i, c) * scene.value(b, n, j, c);
        noise2 += p[j] * std::pow(d_output(b, n, i, c) * scene.value(b, n, j, c), 2);
        d_value[(head * o.keys + j) * o.value_width + c] += p[j] * d_output(b, n, i, c);
      }
      const double d_s = p[j] * (d_p - delta);
      for (int c = 0; c < o.width; ++c) {
        d_query[(head * o.queries + i) * o.width + c] += scene.in.scale * d_s * scene.key(b, n, j, c);
        d_key[(head * o.keys + j) * o.width + c] += scene.in.scale * d_s * scene.query(b, n, i, c);
      }
      for (int l = 0; l <= o.degree; ++l) {
        d_zonal[n * (o.degree + 1) + l] += d_s * AttentionScene::legendre(l, scene.cosine(i, j));
      }
      if (o.log_weight) d_key_log_weight[j] += d_s;
    }
  }
};

}  // namespace evoworld::testing
