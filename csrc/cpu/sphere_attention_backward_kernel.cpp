// The backward of sphere_attention, one instruction set.
//
// Computes the gradients of query, key, value, and partial sums of those of zonal and key_log_weight.
// d_value = P^T dO, d_key = scale dS^T Q, d_query = scale dS K, with P = exp(S - lse) computed again.
// dS = P (dO V^T - delta), delta = dO.O - d_lse; d_zonal sums dS P_l(x.y), d_key_log_weight sums dS over queries.
// A task holds a tile of keys (see sphere_attention_backward.h); a pair of tiles is five products and one pass over S.
// Reads each packed tile of queries and of d_output once a tile of keys, and reads and writes their gradient.
#include "cpu/sphere_attention_backward_rows.h"

namespace evoworld {
namespace EW_ISA {
namespace {

// Where the pass over S leaves P and dS for the products.
template <class Format>
struct Probabilities {
  typename Format::Word* steps;    // P [queries, keys]: steps
  typename Format::Word* d_steps;  // dS likewise
  typename Format::Word* d_rows;   // dS: rows

  static constexpr int kRowsStride = kBackwardKeys / Format::kPerWord;

  EW_HD explicit Probabilities(BackwardScratch& scratch) {
    typedef typename Format::Word Word;
    if constexpr (Format::kPerWord == 1) {
      steps = reinterpret_cast<Word*>(scratch.scores);
      d_rows = d_steps = reinterpret_cast<Word*>(scratch.d_scores);
    } else {
      steps = reinterpret_cast<Word*>(scratch.narrow[0]);
      d_steps = reinterpret_cast<Word*>(scratch.narrow[1]);
      d_rows = reinterpret_cast<Word*>(scratch.narrow[2]);
    }
  }

  // Two rows, from an even row on.
  EW_HD void put(int row, int lane, const Vector (&p)[2], const Vector (&d_s)[2]) const {
    const int64_t at = row / Format::kPerWord * kBackwardKeys + lane;
    Format::store_two(steps + at, kBackwardKeys, p[0], p[1]);
    Format::store_two(d_steps + at, kBackwardKeys, d_s[0], d_s[1]);
#if defined(__AVX512BF16__)
    for (int r = 0; Format::kPerWord != 1 && r < 2; ++r) {
      const __m256i half = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(d_s[r]));
      memcpy(d_rows + (row + r) * kRowsStride + lane / 2, &half, sizeof half);
    }
#endif
  }
};

// From S and dP of a pair of tiles to P and dS, and their sums over queries.
template <class Format, int kDegree, bool kMasked>
void softmax_gradient(const BackwardWork& work, int64_t head, const BackwardQueries& queries, BackwardKeys& keys,
                      BackwardScratch& scratch) {
  const AttentionInputs& in = work.in;
  const Tile tile = key_tile_of(work, keys.tile);
  const HeadBias head_bias(in, (work.first_head + head) % in.heads);
  const float* const c = head_bias.coefficients;
  const float* const y = work.key_directions + tile.first;
  const float* const scores = reinterpret_cast<const float*>(scratch.scores);
  const float* const d_scores = reinterpret_cast<const float*>(scratch.d_scores);
  const Probabilities<Format> out(scratch);
  Vector moments[kMaxZonalDegree] = {};
  for (int lane = 0; lane < tile.lanes; lane += kLanes) {
    const Vector yx = load(y + lane), yy = load(y + work.padded_keys + lane);
    const Vector yz = load(y + 2 * work.padded_keys + lane);
    const Vector weight =
        multiply_add(load(work.key_log_weight + tile.first + lane), broadcast(kLog2E), broadcast(c[0]));
    Vector sum = {};
    for (int row = 0; row < queries.rows; row += 2) {
      Vector p[2], d_s[2];
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r) {
        const QueryTerms& query = queries.terms[row + r];
        const int at = (row + r) * kBackwardKeys + lane;
        // The bits of the forward's logits, whose rounding is in lse too.
        Vector bias = weight, cosine = {};
        if constexpr (kDegree > 0) {
          cosine = multiply_add(broadcast(query.z), yz, multiply_add(broadcast(query.y), yy, query.x * yx));
          Vector slope = broadcast(c[kDegree]);
          for (int l = kDegree - 1; l > 0; --l) slope = multiply_add(slope, cosine, broadcast(c[l]));
          bias = multiply_add(slope, cosine, bias);
        }
        const Vector logit = multiply_add(load(scores + at), broadcast(head_bias.scale), bias);
        p[r] = exp2<Format::kPerWord == 1 ? 6 : 4>(logit - query.lse2 - query.lse2_rest);
        if constexpr (kMasked) p[r] = chord2({query.x, query.y, query.z}, yx, yy, yz) > in.max_chord2 ? Vector{} : p[r];
        d_s[r] = p[r] * (load(d_scores + at) - query.delta);
        sum += d_s[r];
        if constexpr (kDegree > 0) {
          Vector power = d_s[r];
          for (int l = 0; l < kDegree; ++l) {
            power = power * cosine;
            moments[l] += power;
          }
        }
      }
      out.put(row, lane, p, d_s);
    }
    store(keys.d_log_weight + lane, load(keys.d_log_weight + lane) + sum);
  }
  for (int l = 0; l < kDegree; ++l) {
    float lanes[kLanes];
    store(lanes, moments[l]);
    keys.moments[l] += fold<kLanes>(lanes);
  }
}

template <class Format, int kDegree>
void softmax_gradient_of_degree(const BackwardWork& work, int64_t head, const BackwardQueries& queries,
                                BackwardKeys& keys, BackwardScratch& scratch) {
  if (work.in.query_order != nullptr) {
    softmax_gradient<Format, kDegree, true>(work, head, queries, keys, scratch);
  } else {
    softmax_gradient<Format, kDegree, false>(work, head, queries, keys, scratch);
  }
}

template <class T, class Format>
void add_keys(const BackwardWork& work, int64_t head, const BackwardQueries& queries, BackwardKeys& keys,
              BackwardScratch& scratch) {
  const AttentionInputs& in = work.in;
  typedef typename Format::Word Word;
  const Tile tile = key_tile_of(work, keys.tile);
  const PackedRows<Format> query(queries.query, in.width), d_output(queries.d_output, in.value_width);
  multiply_tiles<Format, Layout::rows>(
      query.rows, query.rows_stride, queries.rows, reinterpret_cast<const Word*>(keys.key_columns), kBackwardKeys,
      tile.lanes, steps_of<Format>(in.width), Overwrite{reinterpret_cast<float*>(scratch.scores), kBackwardKeys});
  multiply_tiles<Format, Layout::rows>(d_output.rows, d_output.rows_stride, queries.rows,
                                       reinterpret_cast<const Word*>(keys.value_columns), kBackwardKeys, tile.lanes,
                                       steps_of<Format>(in.value_width),
                                       Overwrite{reinterpret_cast<float*>(scratch.d_scores), kBackwardKeys});
  switch (in.zonal != nullptr ? in.degree : 0) {
    case 0:
      softmax_gradient_of_degree<Format, 0>(work, head, queries, keys, scratch);
      break;
    case 1:
      softmax_gradient_of_degree<Format, 1>(work, head, queries, keys, scratch);
      break;
    default:
      softmax_gradient_of_degree<Format, 3>(work, head, queries, keys, scratch);
  }
  if (work.gradients.key.data == nullptr) return;
  const Probabilities<Format> p(scratch);
  const int steps = steps_of<Format>(queries.rows);
  multiply_tiles<Format, Layout::steps>(p.steps, kBackwardKeys, tile.rows, d_output.steps, d_output.steps_stride,
                                        d_output.steps_stride, steps, AddTo{keys.d_value, d_output.steps_stride});
  multiply_tiles<Format, Layout::steps>(p.d_steps, kBackwardKeys, tile.rows, query.steps, query.steps_stride,
                                        query.steps_stride, steps, AddTo{keys.d_key, query.steps_stride});
}

// dS K
template <class Format, class Finish>
EW_HD void multiply_keys(const BackwardWork& work, int rows, const BackwardKeys& keys, BackwardScratch& scratch,
                         const Finish& finish) {
  const int width = padded_lanes(work.in.width);
  multiply_tiles<Format, Layout::rows>(Probabilities<Format>(scratch).d_rows, Probabilities<Format>::kRowsStride, rows,
                                       reinterpret_cast<const typename Format::Word*>(keys.key_steps), width, width,
                                       steps_of<Format>(key_tile_of(work, keys.tile).rows), finish);
}

template <class T, class Format>
void add_queries(const BackwardWork& work, const BackwardQueries& queries, const BackwardKeys& keys, float* d_query,
                 BackwardScratch& scratch) {
  multiply_keys<Format>(work, queries.rows, keys, scratch, AddTo{d_query, padded_lanes(work.in.width)});
}

template <class T, class Format>
void add_gathered(const BackwardWork& work, int64_t head, const int32_t* pairs, int count, const BackwardKeys& keys,
                  BackwardScratch& scratch) {
  const int64_t width = padded_lanes(work.in.width), words = kGatheredQueries * width;
  multiply_keys<Format>(work, padded_rows(kGatheredQueries * count), keys, scratch, Overwrite{scratch.d_query, width});
  for (int i = 0; i < count; ++i) {
    float* const sums = work.d_query + head * work.padded_queries * width + pairs[i] * words;
    for (int64_t c = 0; c < words; c += kLanes) store(sums + c, load(sums + c) + load(scratch.d_query + i * words + c));
  }
}

}  // namespace

void attention_backward_add_keys(const BackwardWork& work, int64_t head, const BackwardQueries& queries,
                                 BackwardKeys& keys, BackwardScratch& scratch) {
  EW_BY_STORAGE(add_keys, work, head, queries, keys, scratch)
}

void attention_backward_add_queries(const BackwardWork& work, const BackwardQueries& queries, const BackwardKeys& keys,
                                    float* d_query, BackwardScratch& scratch) {
  EW_BY_STORAGE(add_queries, work, queries, keys, d_query, scratch)
}

void attention_backward_add_gathered(const BackwardWork& work, int64_t head, const int32_t* pairs, int count,
                                     const BackwardKeys& keys, BackwardScratch& scratch) {
  EW_BY_STORAGE(add_gathered, work, head, pairs, count, keys, scratch)
}

}  // namespace EW_ISA
}  // namespace evoworld
