// sphere_attention: what a call reads and writes, and which tiles of tokens a radius keeps apart.
//
//   s_ij = scale q_i.k_j + sum_l zonal[n, l] P_l(x_i.y_j) + key_log_weight_j, masked where |x_i - y_j|^2 > max_chord2
//   output = softmax_j(s) v
//   lse_i = log sum_j exp(s_ij)
#pragma once

#include "core/storage.h"

namespace evoworld {

constexpr int kMaxZonalDegree = 3;
constexpr float kLog2E = 1.44269504f;
constexpr int kMinAttentionWidth = 16, kMaxAttentionWidth = 128;  // of query and key, and of value

// A tensor [B, N, rows, width] whose last dimension is contiguous; strides in elements, any value, 0 too.
template <class Pointer>
struct AttentionRows {
  Pointer data;  // storage type of the call; null: not wanted
  int64_t batch_stride, head_stride, row_stride;
};

struct AttentionInputs {
  Storage storage;                   // of query, key, value and of everything laid out like them
  AttentionRows<const void*> query;  // [B, N, L, D]
  AttentionRows<const void*> key;    // [B, N, S, D]
  AttentionRows<const void*> value;  // [B, N, S, Dv]
  const float* query_directions;     // [L, 3]
  const float* key_directions;       // [S, 3]
  const float* zonal;                // [N, degree + 1], or null
  const float* key_log_weight;       // [S], or null
  const int32_t* query_order;        // [L], or null: a permutation that puts directions near each other
  const int32_t* key_order;          // [S], or null
  float max_chord2;                  // infinity: every key counts
  float scale;
  int64_t batch, heads, num_queries, num_keys;
  int width, value_width, degree;
};

struct AttentionOutputs {
  AttentionRows<void*> output;  // [B, N, L, Dv]
  float* lse;                   // [B, N, L]
};

struct AttentionOutputGradients {
  AttentionRows<const void*> output;  // [B, N, L, Dv]
  const float* lse;                   // [B, N, L]
};

// What the backward overwrites.
struct AttentionInputGradients {
  AttentionRows<void*> query;  // [B, N, L, D]
  AttentionRows<void*> key;    // [B, N, S, D]; data null together with that of value
  AttentionRows<void*> value;  // [B, N, S, Dv]
  float* zonal;                // [N, degree + 1], or null
  float* key_log_weight;       // [S], or null
};

// The logits of a head in base 2, times log2(e) that is: scale q.k and sum_l zonal[l] P_l(t) as a polynomial of t.
struct HeadBias {
  float scale;
  float coefficients[kMaxZonalDegree + 1];

  EW_HD HeadBias(const AttentionInputs& in, int64_t n) : scale(in.scale * kLog2E) {
    float z[kMaxZonalDegree + 1] = {};
    for (int l = 0; in.zonal != nullptr && l <= in.degree; ++l) z[l] = in.zonal[n * (in.degree + 1) + l] * kLog2E;
    coefficients[0] = z[0] - 0.5f * z[2];
    coefficients[1] = z[1] - 1.5f * z[3];
    coefficients[2] = 1.5f * z[2];
    coefficients[3] = 2.5f * z[3];
  }
};

// A ball around the directions of a tile of tokens.
struct TokenBall {
  Float3 centre;
  float radius;
};

EW_HD float chord(Float3 a, Float3 b) {
  const float x = a.x - b.x, y = a.y - b.y, z = a.z - b.z;
  return sqrtf(x * x + y * y + z * z);
}

// Of tokens order[begin, end), at least one; order may be null.
EW_HD TokenBall ball_around(const float* directions, const int32_t* order, int64_t begin, int64_t end) {
  const auto direction = [&](int64_t i) { return load3(directions, order != nullptr ? order[i] : i); };
  Float3 sum = {0.0f, 0.0f, 0.0f};
  for (int64_t i = begin; i < end; ++i) {
    const Float3 d = direction(i);
    sum = {sum.x + d.x, sum.y + d.y, sum.z + d.z};
  }
  const float share = 1.0f / static_cast<float>(end - begin);
  TokenBall ball = {{sum.x * share, sum.y * share, sum.z * share}, 0.0f};
  for (int64_t i = begin; i < end; ++i) ball.radius = larger(ball.radius, chord(direction(i), ball.centre));
  return ball;
}

enum class Overlap { none, some, all };  // which pairs of two tiles are within the radius; some: each pair is tested

EW_HD Overlap overlap(const TokenBall& a, const TokenBall& b, float max_chord2) {
  constexpr float kSlack = 1e-5f;  // rounding of chords, which are at most 2, and of centres
  const float apart = chord(a.centre, b.centre), spread = a.radius + b.radius, limit = sqrtf(max_chord2);
  if (apart - spread > limit + kSlack) return Overlap::none;
  return apart + spread < limit - kSlack ? Overlap::all : Overlap::some;
}

}  // namespace evoworld
