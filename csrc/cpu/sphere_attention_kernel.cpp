// sphere_attention's forward, one instruction set: panels of queries sweep over the tiles of keys.
//
// computes    output = softmax_j(s) v and lse of a few panels of queries of one head
// maths       logits S^T = K Q^T of base 2, bias and mask added as they leave the registers; online softmax: max, sum
//             and output O^T += V^T P^T are scaled by exp2(old max - new max) before each tile adds to them
// gradient    sphere_attention_backward_kernel.cpp
// mapping     vector lanes run along queries, so max and sum need no sum across lanes; a task packs each tile of keys
//             once for all its panels
// memory      reads query, key, value rows (gathered by their order) once a task, writes output and lse once
#include "cpu/pack_tiles.h"
#include "cpu/sphere_attention.h"

namespace evoworld {
namespace EW_ISA {
namespace {

constexpr float kLn2 = 0.693147181f;
constexpr float kLowest = -3.40282347e38f;  // where maxima start: finite, so that no key leaves no NaN

static_assert(kQueryPanel % kLaneBlock == 0 && kKeyTile % kRowBlock == 0 && kKeyGroup % kLaneBlock == 0);

// Finishes a product K Q^T: scales it and adds the bias.
template <int kDegree>
struct WriteLogits {
  float* scores;                           // [keys, kQueryPanel]
  const float (*key_terms)[4];             // [keys]
  const float (*directions)[kQueryPanel];  // [3]
  HeadBias head;

  EW_HD void operator()(int row, int lane, Vector sum) const {
    const float* const key = key_terms[row];
    Vector bias = broadcast(key[3]);
    if constexpr (kDegree > 0) {
      Vector cosine = broadcast(key[0]) * load(directions[0] + lane);
      cosine = multiply_add(broadcast(key[1]), load(directions[1] + lane), cosine);
      cosine = multiply_add(broadcast(key[2]), load(directions[2] + lane), cosine);
      Vector slope = broadcast(head.coefficients[kDegree]);
#pragma GCC unroll 4
      for (int l = kDegree - 1; l > 0; --l) slope = multiply_add(slope, cosine, broadcast(head.coefficients[l]));
      bias = multiply_add(slope, cosine, bias);
    }
    store(scores + row * kQueryPanel + lane, multiply_add(sum, broadcast(head.scale), bias));
  }
};

EW_HD Vector chord2_between(const Vector (&a)[3], const float* b) {
  const Vector x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2];
  return multiply_add(x, x, multiply_add(y, y, z * z));
}

EW_HD void load_directions(const float* directions, int64_t stride, int lane, Vector (&out)[3]) {
  for (int axis = 0; axis < 3; ++axis) out[axis] = load(directions + axis * stride + lane);
}

// Logits of keys beyond the radius become -inf.
void mask_keys(const AttentionInputs& in, int rows, const QueryPanel& panel, AttentionScratch& scratch) {
  for (int lane = 0; lane < kQueryPanel; lane += kLanes) {
    Vector x[3];
    load_directions(panel.directions[0], kQueryPanel, lane, x);
    for (int row = 0; row < rows; ++row) {
      float* const logits = scratch.scores + row * kQueryPanel + lane;
      const Vector chord2 = chord2_between(x, scratch.key_terms[row]);
      store(logits, chord2 > in.max_chord2 ? broadcast(-INFINITY) : load(logits));
    }
  }
}

// From logits of `rows` keys to probabilities relative to the new max, in the layout steps of the format; updates max
// and sum and gives the factors of what was summed before.
template <class Format>
const typename Format::Word* softmax_tile(int rows, QueryPanel& panel, AttentionScratch& scratch) {
  typedef typename Format::Word Word;
  float* const scores = scratch.scores;
  Word* const out = Format::kPerWord == 1 ? reinterpret_cast<Word*>(scores) : reinterpret_cast<Word*>(scratch.pairs);
  for (int lane = 0; lane < kQueryPanel; lane += 2 * kLanes) {
    Vector max[2], sum[2] = {};
    for (int n = 0; n < 2; ++n) max[n] = load(panel.max + lane + n * kLanes);
    for (int row = 0; row < rows; ++row) {
      const float* const logits = scores + row * kQueryPanel + lane;
#pragma GCC unroll 2
      for (int n = 0; n < 2; ++n) max[n] = larger(max[n], load(logits + n * kLanes));
    }
    for (int row = 0; row < rows; row += 2) {
      float* const logits = scores + row * kQueryPanel + lane;
#pragma GCC unroll 2
      for (int n = 0; n < 2; ++n) {
        Vector p[2];
#pragma GCC unroll 2
        for (int r = 0; r < 2; ++r) {
          p[r] = exp2<Format::kPerWord == 1 ? 6 : 4>(load(logits + r * kQueryPanel + n * kLanes) - max[n]);
        }
        sum[n] += p[0] + p[1];
        Format::store_two(out + row / Format::kPerWord * kQueryPanel + lane + n * kLanes, kQueryPanel, p[0], p[1]);
      }
    }
    for (int n = 0; n < 2; ++n) {
      const int at = lane + n * kLanes;
      const Vector factor = exp2<6>(load(panel.max + at) - max[n]);
      store(scratch.factors + at, factor);
      store(panel.sum + at, multiply_add(load(panel.sum + at), factor, sum[n]));
      store(panel.max + at, max[n]);
    }
  }
  return out;
}

template <class T>
EW_HD RowSource<T> source_of(const AttentionRows<const void*>& rows, const AttentionInputs& in, int64_t head,
                             const int32_t* order) {
  const T* const data = static_cast<const T*>(rows.data);
  return {data + head / in.heads * rows.batch_stride + head % in.heads * rows.head_stride, rows.row_stride, order};
}

EW_HD int64_t token_at(const int32_t* order, int64_t i) { return order != nullptr ? order[i] : i; }

template <class T, class Format>
void load_panel(const AttentionInputs& in, int64_t head, int64_t first, int count, QueryPanel& panel) {
  typedef typename Format::Word Word;
  Word* const query = reinterpret_cast<Word*>(panel.query);
  pack_columns<Format>(source_of<T>(in.query, in, head, in.query_order), first, count, in.width, query, kQueryPanel);
  const int lanes = padded_lanes(count);
  for (int step = 0; lanes < kQueryPanel && step < steps_of<Format>(in.width); ++step) {
    memset(query + step * kQueryPanel + lanes, 0, (kQueryPanel - lanes) * sizeof(Word));
  }
  for (int i = 0; i < kQueryPanel; ++i) {
    const Float3 x = i < count ? load3(in.query_directions, token_at(in.query_order, first + i)) : Float3{};
    panel.directions[0][i] = x.x;
    panel.directions[1][i] = x.y;
    panel.directions[2][i] = x.z;
    panel.max[i] = kLowest;
    panel.sum[i] = 0.0f;
  }
  memset(panel.output, 0, padded_rows(in.value_width) * kQueryPanel * sizeof(float));
}

template <class T, class Format>
void load_keys(const AttentionInputs& in, int64_t head, int64_t first, int count, const HeadBias& bias,
               AttentionScratch& scratch) {
  typedef typename Format::Word Word;
  pack_rows<Format>(source_of<T>(in.key, in, head, in.key_order), first, count, in.width,
                    reinterpret_cast<Word*>(scratch.key), steps_of<Format>(in.width));
  pack_steps<Format>(source_of<T>(in.value, in, head, in.key_order), first, count, in.value_width,
                     reinterpret_cast<Word*>(scratch.value), padded_rows(in.value_width));
  for (int i = 0; i < padded_rows(count); ++i) {
    float* const terms = scratch.key_terms[i];
    const int64_t key = i < count ? token_at(in.key_order, first + i) : 0;
    const Float3 y = i < count ? load3(in.key_directions, key) : Float3{};
    const float log_weight = in.key_log_weight != nullptr ? in.key_log_weight[key] : 0.0f;
    terms[0] = y.x;
    terms[1] = y.y;
    terms[2] = y.z;
    terms[3] = i < count ? fmaf(log_weight, kLog2E, bias.coefficients[0]) : -INFINITY;
  }
}

template <class T>
void write_panel(const AttentionInputs& in, const AttentionOutputs& out, int64_t head, int64_t first, int count,
                 const QueryPanel& panel, float* transposed) {
  const AttentionRows<void*>& rows = out.output;
  T* const data = static_cast<T*>(rows.data) + head / in.heads * rows.batch_stride + head % in.heads * rows.head_stride;
  const int width = padded_rows(in.value_width);
  for (int c = 0; c < width; c += 4) {
    for (int i = 0; i < kQueryPanel; i += 4) {
      transpose_4x4(panel.output + c * kQueryPanel + i, kQueryPanel, transposed + i * width + c, width);
    }
  }
  for (int i = 0; i < count; ++i) {
    const int64_t query = token_at(in.query_order, first + i);
    const float sum = panel.sum[i], share = sum == 0.0f ? 0.0f : 1.0f / sum;
    T* const row = data + query * rows.row_stride;
    for (int c = 0; c < in.value_width; ++c) narrow(transposed[i * width + c] * share, row + c);
    out.lse[head * in.num_queries + query] = (panel.max[i] + log2f(sum)) * kLn2;
  }
}

// Adds the loaded tile of keys to a panel.
template <class Format, int kDegree>
void add_keys(const AttentionInputs& in, const HeadBias& bias, int count, QueryPanel& panel,
              AttentionScratch& scratch) {
  typedef typename Format::Word Word;
  const int rows = padded_rows(count), steps = steps_of<Format>(in.width), value_width = padded_rows(in.value_width);
  multiply_tiles<Format, Layout::rows>(reinterpret_cast<const Word*>(scratch.key), steps, rows,
                                       reinterpret_cast<const Word*>(panel.query), kQueryPanel, kQueryPanel, steps,
                                       WriteLogits<kDegree>{scratch.scores, scratch.key_terms, panel.directions, bias});
  if (in.query_order != nullptr) mask_keys(in, rows, panel, scratch);
  const Word* const p = softmax_tile<Format>(rows, panel, scratch);
  multiply_tiles<Format, Layout::steps>(reinterpret_cast<const Word*>(scratch.value), value_width, value_width, p,
                                        kQueryPanel, kQueryPanel, rows / Format::kPerWord,
                                        ScaleAndAddTo{panel.output, kQueryPanel, scratch.factors});
}

template <class T, class Format, int kDegree>
void forward_panels(const AttentionInputs& in, const AttentionOutputs& out, int64_t head, int64_t first_panel,
                    int64_t last_panel, AttentionScratch& scratch) {
  const HeadBias bias(in, head % in.heads);
  const int panels = static_cast<int>(last_panel - first_panel);
  const auto queries_of = [&](int p) {
    const int64_t left = in.num_queries - (first_panel + p) * kQueryPanel;
    return static_cast<int>(left < kQueryPanel ? left : kQueryPanel);
  };
  for (int p = 0; p < panels; ++p) {
    load_panel<T, Format>(in, head, (first_panel + p) * kQueryPanel, queries_of(p), scratch.panels[p]);
  }
  for (int64_t first = 0; first < in.num_keys; first += kKeyTile) {
    const int count = static_cast<int>(in.num_keys - first < kKeyTile ? in.num_keys - first : kKeyTile);
    load_keys<T, Format>(in, head, first, count, bias, scratch);
    for (int p = 0; p < panels; ++p) add_keys<Format, kDegree>(in, bias, count, scratch.panels[p], scratch);
  }
  for (int p = 0; p < panels; ++p) {
    write_panel<T>(in, out, head, (first_panel + p) * kQueryPanel, queries_of(p), scratch.panels[p], scratch.scores);
  }
}

}  // namespace

#define EW_DISPATCH_DEGREE(degree, kernel, T, Format, ...) \
  switch (degree) {                                        \
    case 0:                                                \
      return kernel<T, Format, 0>(__VA_ARGS__);            \
    case 1:                                                \
      return kernel<T, Format, 1>(__VA_ARGS__);            \
    default:                                               \
      return kernel<T, Format, 3>(__VA_ARGS__);            \
  }

void attention_forward_panels(const AttentionInputs& in, const AttentionOutputs& out, int64_t head, int64_t first_panel,
                              int64_t last_panel, AttentionScratch& scratch) {
  const int degree = in.zonal != nullptr ? in.degree : 0;
  switch (in.storage) {
    case Storage::float32:
      EW_DISPATCH_DEGREE(degree, forward_panels, float, Floats, in, out, head, first_panel, last_panel, scratch)
    case Storage::float16:
      EW_DISPATCH_DEGREE(degree, forward_panels, Half, Floats, in, out, head, first_panel, last_panel, scratch)
    case Storage::bfloat16:
      EW_DISPATCH_DEGREE(degree, forward_panels, BFloat16, BFloat16Format, in, out, head, first_panel, last_panel,
                         scratch)
  }
}

void attention_find_keys(const AttentionInputs& in, const TokenBall* group_balls, int64_t panel, int32_t* keys,
                         int64_t* num_keys) {
  const int64_t first = panel * kQueryPanel;
  const int64_t last = in.num_queries - first < kQueryPanel ? in.num_queries : first + kQueryPanel;
  const TokenBall ball = ball_around(in.query_directions, in.query_order, first, last);
  int64_t found = 0;
  for (int64_t begin = 0; begin < in.num_keys; begin += kKeyGroup) {
    const Overlap within = overlap(ball, group_balls[begin / kKeyGroup], in.max_chord2);
    if (within == Overlap::none) continue;
    const int count = static_cast<int>(in.num_keys - begin < kKeyGroup ? in.num_keys - begin : kKeyGroup);
    float directions[3][kKeyGroup] = {}, nearest[kKeyGroup];
    for (int i = 0; i < count; ++i) {
      const Float3 y = load3(in.key_directions, in.key_order[begin + i]);
      directions[0][i] = y.x;
      directions[1][i] = y.y;
      directions[2][i] = y.z;
    }
    for (int lane = 0; lane < kKeyGroup; lane += kLanes) {
      Vector y[3], chord2 = broadcast(within == Overlap::all ? 0.0f : INFINITY);
      load_directions(directions[0], kKeyGroup, lane, y);
      for (int64_t i = first; within != Overlap::all && i < last; ++i) {
        const Vector next = chord2_between(y, in.query_directions + 3 * int64_t{in.query_order[i]});
        chord2 = next < chord2 ? next : chord2;
      }
      store(nearest + lane, chord2);
    }
    for (int i = 0; i < count; ++i) {
      if (nearest[i] <= in.max_chord2) keys[found++] = in.key_order[begin + i];
    }
  }
  *num_keys = found;
}

}  // namespace EW_ISA
}  // namespace evoworld
