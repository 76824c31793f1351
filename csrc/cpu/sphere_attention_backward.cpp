#include "cpu/sphere_attention_backward.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/sphere_attention.h"

namespace evoworld {

EW_DISPATCH_ISA_BF16(attention_backward_find_near,
                     (const BackwardWork& work, int64_t query_tile, int64_t key_tile, uint32_t* near), work, query_tile,
                     key_tile, near)
EW_DISPATCH_ISA_BF16(attention_backward_pack_queries, (const BackwardWork& work, int64_t head, int64_t query_tile),
                     work, head, query_tile)
EW_DISPATCH_ISA_BF16(attention_backward_pack_keys,
                     (const BackwardWork& work, int64_t head, int64_t key_tile, BackwardKeys& keys), work, head,
                     key_tile, keys)
EW_DISPATCH_ISA_BF16(attention_backward_gather,
                     (const BackwardWork& work, int64_t head, const int32_t* pairs, int count,
                      BackwardScratch& scratch),
                     work, head, pairs, count, scratch)
EW_DISPATCH_ISA_BF16(attention_backward_add_keys,
                     (const BackwardWork& work, int64_t head, const BackwardQueries& queries, BackwardKeys& keys,
                      BackwardScratch& scratch),
                     work, head, queries, keys, scratch)
EW_DISPATCH_ISA_BF16(attention_backward_add_queries,
                     (const BackwardWork& work, const BackwardQueries& queries, const BackwardKeys& keys,
                      float* d_query, BackwardScratch& scratch),
                     work, queries, keys, d_query, scratch)
EW_DISPATCH_ISA_BF16(attention_backward_add_gathered,
                     (const BackwardWork& work, int64_t head, const int32_t* pairs, int count, const BackwardKeys& keys,
                      BackwardScratch& scratch),
                     work, head, pairs, count, keys, scratch)
EW_DISPATCH_ISA_BF16(attention_backward_write_keys, (const BackwardWork& work, int64_t head, const BackwardKeys& keys),
                     work, head, keys)
EW_DISPATCH_ISA_BF16(attention_backward_write_queries, (const BackwardWork& work, int64_t head, int64_t query_tile),
                     work, head, query_tile)

namespace {

constexpr int64_t kTasksPerThread = 4;  // so that threads end at about the same time
// Heads are worked on in groups: enough tasks for many threads, of which few wait for another of the same head, in a
// few megabytes.
constexpr int64_t kTasksPerGroup = 256;
constexpr int64_t kQueriesPerGroup = 65536;

int64_t tiles_of(int64_t count, int64_t tile) { return (count + tile - 1) / tile; }
int64_t padded_width(int width) { return tiles_of(width, 16) * 16; }

// Memory on whole cache lines, not initialised.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : values_(static_cast<T*>(::operator new(std::max<int64_t>(count, 1) * sizeof(T), std::align_val_t{64}))) {}
  ~Buffer() { ::operator delete(values_, std::align_val_t{64}); }
  Buffer(const Buffer&) = delete;

  T* data() { return values_; }
  T& operator[](int64_t i) { return values_[i]; }

 private:
  T* values_;
};

// A scratch for each thread that may be at work. All are there before the work begins: a task that fails half way would
// leave others waiting for it.
class Scratches {
 public:
  explicit Scratches(int num_threads)
      : count_(std::max(num_threads, 1)), all_(count_), taken_(new std::atomic<bool>[count_]()) {}

  int take() {
    for (int i = 0;; i = (i + 1) % count_) {
      if (!taken_[i].exchange(true, std::memory_order_acquire)) return i;
    }
  }
  void give_back(int i) { taken_[i].store(false, std::memory_order_release); }
  BackwardScratch& operator[](int i) { return all_[i]; }

 private:
  int count_;
  Buffer<BackwardScratch> all_;
  std::unique_ptr<std::atomic<bool>[]> taken_;
};

// Tokens in the order of their tiles.
class Tokens {
 public:
  Tokens(const float* directions, const int32_t* order, int64_t count, int64_t tile)
      : order_(order), count_(count), padded_(tiles_of(count, tile) * tile), directions_(3 * padded_, 0.0f) {
    for (int64_t i = 0; i < count; ++i) {
      for (int axis = 0; axis < 3; ++axis) directions_[axis * padded_ + i] = directions[3 * token(i) + axis];
    }
    for (int64_t begin = 0; order != nullptr && begin < count; begin += tile) {
      balls_.push_back(ball_around(directions, order, begin, std::min(begin + tile, count)));
    }
  }

  int64_t token(int64_t i) const { return order_ != nullptr ? order_[i] : i; }
  int64_t count() const { return count_; }
  int64_t padded() const { return padded_; }
  const float* directions() const { return directions_.data(); }
  const TokenBall& ball(int64_t tile) const { return balls_[tile]; }

 private:
  const int32_t* order_;
  int64_t count_, padded_;
  std::vector<float> directions_;
  std::vector<TokenBall> balls_;
};

// Which queries have keys within the radius, in bits (attention_backward_find_near). Without a radius all have.
class NearQueries {
 public:
  NearQueries(const BackwardWork& work, const Tokens& queries, const Tokens& keys, int num_threads)
      : key_tiles_(keys.padded() / kBackwardKeys) {
    if (work.in.query_order == nullptr) return;
    const int64_t query_tiles = queries.padded() / kBackwardQueries;
    bits_.resize(query_tiles * key_tiles_, 0);
    parallel_for(query_tiles, 1, num_threads, [&](int64_t q, int64_t) {
      for (int64_t k = 0; k < key_tiles_; ++k) {
        const bool apart = overlap(queries.ball(q), keys.ball(k), work.in.max_chord2) == Overlap::none;
        if (!apart) attention_backward_find_near(work, q, k, &bits_[q * key_tiles_ + k]);
      }
    });
  }

  uint32_t at(int64_t query_tile, int64_t key_tile) const {
    return bits_.empty() ? ~uint32_t{0} : bits_[query_tile * key_tiles_ + key_tile];
  }

  // The tile of keys before this one that adds to the gradient of a tile of queries; -1: none.
  int64_t before(int64_t query_tile, int64_t key_tile) const {
    do --key_tile;
    while (key_tile >= 0 && at(query_tile, key_tile) == 0);
    return key_tile;
  }

 private:
  int64_t key_tiles_;
  std::vector<uint32_t> bits_;  // [query tiles, key tiles]
};

// Lets the tiles of keys of a head add to a tile of queries in their order.
class Turns {
 public:
  explicit Turns(int64_t count) : last_(new std::atomic<int64_t>[count]) {}

  void begin(int64_t count) {
    for (int64_t i = 0; i < count; ++i) last_[i].store(-1, std::memory_order_relaxed);
  }
  void wait(int64_t i, int64_t key_tile) const {
    for (int tries = 0; last_[i].load(std::memory_order_acquire) != key_tile; ++tries) {
      if (tries > kTriesBeforeYield) sched_yield();
    }
  }
  void done(int64_t i, int64_t key_tile) { last_[i].store(key_tile, std::memory_order_release); }

 private:
  static constexpr int kTriesBeforeYield = 200;  // a few microseconds: less than a pair of tiles takes
  std::unique_ptr<std::atomic<int64_t>[]> last_;
};

// One task: the gradients of a few tiles of keys of one head, and their share of those of all queries.
class Sweep {
 public:
  Sweep(const BackwardWork& work, const NearQueries& near, Turns& turns, int64_t head, BackwardScratch& scratch)
      : work_(work),
        near_(near),
        turns_(turns),
        head_(head),
        query_tiles_(work.padded_queries / kBackwardQueries),
        scratch_(scratch) {}

  // Tiles [first, last) of the keys.
  void run(int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) attention_backward_pack_keys(work_, head_, k, scratch_.keys[k - first]);
    const int count = static_cast<int>(last - first);
    if (work_.in.query_order == nullptr) {
      for (int64_t q = 0; q < query_tiles_; ++q) add_tile(q, count);
    } else {
      for (int i = 0; i < count; ++i) gather_all(scratch_.keys[i]);
    }
    for (int i = 0; i < count; ++i) attention_backward_write_keys(work_, head_, scratch_.keys[i]);
  }

 private:
  static constexpr int kPairsPerTile = kBackwardQueries / kGatheredQueries;

  void add_tile(int64_t q, int key_tiles) {
    const int64_t row = head_ * work_.padded_queries + q * kBackwardQueries;
    const int64_t width = padded_width(work_.in.width), value_width = padded_width(work_.in.value_width);
    const BackwardQueries queries = {work_.packed_query + 4 * row * width,
                                     work_.packed_d_output + 4 * row * value_width, work_.terms + row,
                                     rows_of(work_.in.num_queries - q * kBackwardQueries)};
    for (int i = 0; i < key_tiles; ++i) {
      BackwardKeys& keys = scratch_.keys[i];
      attention_backward_add_keys(work_, head_, queries, keys, scratch_);
      if (work_.d_query == nullptr) continue;
      if (i == 0) wait_for(q, keys);
      attention_backward_add_queries(work_, queries, keys, work_.d_query + row * width, scratch_);
      if (i == key_tiles - 1) done_with(q, keys);
    }
  }

  // Pairs of queries from all tiles, as many at a time as a tile holds.
  void gather_all(BackwardKeys& keys) {
    int32_t pairs[kPairsPerTile];
    int count = 0;
    int64_t first = 0;  // tile whose turn has not been waited for
    for (int64_t q = 0; q < query_tiles_; ++q) {
      for (uint32_t left = near_.at(q, keys.tile); left != 0; left &= left - 1) {
        pairs[count++] = static_cast<int32_t>(q * kPairsPerTile + __builtin_ctz(left));
        if (count < kPairsPerTile) continue;
        const bool whole = (left & (left - 1)) == 0;  // no pair of this tile is left
        add_gathered(pairs, count, first, q + 1, whole ? q + 1 : q, keys);
        first = q + 1;
        count = 0;
      }
    }
    if (count > 0) add_gathered(pairs, count, first, query_tiles_, query_tiles_, keys);
  }

  // The pairs lie in tiles that end with `last`; from `first` on their turns are to be waited for, those before `end`
  // are done with afterwards.
  void add_gathered(const int32_t* pairs, int count, int64_t first, int64_t last, int64_t end, BackwardKeys& keys) {
    attention_backward_gather(work_, head_, pairs, count, scratch_);
    attention_backward_add_keys(work_, head_,
                                {scratch_.query, scratch_.d_output, scratch_.terms, rows_of(count * kGatheredQueries)},
                                keys, scratch_);
    if (work_.d_query == nullptr) return;
    for (int64_t q = first; q < last; ++q) {
      if (near_.at(q, keys.tile) != 0) wait_for(q, keys);
    }
    attention_backward_add_gathered(work_, head_, pairs, count, keys, scratch_);
    for (int64_t q = pairs[0] / kPairsPerTile; q < end; ++q) {
      if (near_.at(q, keys.tile) != 0) done_with(q, keys);
    }
  }

  static int rows_of(int64_t count) {
    return static_cast<int>(std::min<int64_t>(tiles_of(count, 8) * 8, kBackwardQueries));
  }
  void wait_for(int64_t q, const BackwardKeys& keys) const {
    turns_.wait(head_ * query_tiles_ + q, near_.before(q, keys.tile));
  }
  void done_with(int64_t q, const BackwardKeys& keys) { turns_.done(head_ * query_tiles_ + q, keys.tile); }

  const BackwardWork& work_;
  const NearQueries& near_;
  Turns& turns_;
  int64_t head_, query_tiles_;
  BackwardScratch& scratch_;
};

void finish_key_log_weight(const BackwardWork& work, const Tokens& keys) {
  const int64_t heads = work.in.batch * work.in.heads;
  for (int64_t i = 0; i < keys.count(); ++i) {
    double sum = 0.0;
    for (int64_t head = 0; head < heads; ++head) sum += work.d_key_log_weight[head * keys.padded() + i];
    work.gradients.key_log_weight[keys.token(i)] = static_cast<float>(sum);
  }
}

// From sums of dS t^l to those of dS P_l(t). The sum of dS over keys is d_lse.
void finish_zonal(const BackwardWork& work) {
  const AttentionInputs& in = work.in;
  const int64_t key_tiles = tiles_of(in.num_keys, kBackwardKeys);
  for (int64_t n = 0; n < in.heads; ++n) {
    double m[kMaxZonalDegree + 1] = {};
    for (int64_t b = 0; b < in.batch; ++b) {
      const int64_t head = b * in.heads + n;
      for (int64_t i = head * in.num_queries; i < (head + 1) * in.num_queries; ++i) {
        if (work.out.lse[i] != -INFINITY) m[0] += work.d_out.lse[i];
      }
      for (int64_t k = 0; k < key_tiles; ++k) {
        const double* const moments = work.moments + (head * key_tiles + k) * kMaxZonalDegree;
        for (int l = 0; l < kMaxZonalDegree; ++l) m[l + 1] += moments[l];
      }
    }
    const double sums[] = {m[0], m[1], 1.5 * m[2] - 0.5 * m[0], 2.5 * m[3] - 1.5 * m[1]};
    for (int l = 0; l <= in.degree; ++l) {
      work.gradients.zonal[n * (in.degree + 1) + l] = static_cast<float>(sums[l]);
    }
  }
}

}  // namespace

void sphere_attention_backward(const AttentionInputs& in, const AttentionOutputs& out,
                               const AttentionOutputGradients& d_out, const AttentionInputGradients& gradients,
                               int num_threads) {
  const Tokens queries(in.query_directions, in.query_order, in.num_queries, kBackwardQueries);
  const Tokens keys(in.key_directions, in.key_order, in.num_keys, kBackwardKeys);
  const int64_t query_tiles = queries.padded() / kBackwardQueries, key_tiles = keys.padded() / kBackwardKeys;
  const int64_t heads = in.batch * in.heads, width = padded_width(in.width), value_width = padded_width(in.value_width);
  std::vector<float> log_weight(keys.padded(), -INFINITY);
  for (int64_t i = 0; i < keys.count(); ++i) {
    log_weight[i] = in.key_log_weight != nullptr ? in.key_log_weight[keys.token(i)] : 0.0f;
  }

  const int64_t tiles_per_task =
      std::clamp<int64_t>(heads * key_tiles / (kTasksPerThread * std::max(num_threads, 1)), 1, kBackwardKeyTiles);
  const int64_t key_tasks = tiles_of(key_tiles, tiles_per_task);
  int64_t group = std::min(kTasksPerGroup / std::max<int64_t>(key_tasks, 1),
                           kQueriesPerGroup / std::max<int64_t>(queries.padded(), 1));
  group = std::clamp<int64_t>(group, 1, std::max<int64_t>(heads, 1));
  const int64_t rows = group * queries.padded();
  Buffer<float> packed_query(rows * width), packed_d_output(rows * value_width);
  Buffer<QueryTerms> terms(rows);
  Buffer<float> d_query(gradients.query.data != nullptr ? rows * width : 0);
  Buffer<float> d_key_log_weight(gradients.key_log_weight != nullptr ? heads * keys.padded() : 0);
  Buffer<double> moments(gradients.zonal != nullptr ? heads * key_tiles * kMaxZonalDegree : 0);
  Turns turns(group * query_tiles);
  Scratches scratches(static_cast<int>(std::min<int64_t>(num_threads, key_tasks * group)));
  BackwardWork work = {in,
                       out,
                       d_out,
                       gradients,
                       queries.padded(),
                       keys.padded(),
                       queries.directions(),
                       keys.directions(),
                       log_weight.data(),
                       0,
                       reinterpret_cast<char*>(packed_query.data()),
                       reinterpret_cast<char*>(packed_d_output.data()),
                       gradients.query.data != nullptr ? d_query.data() : nullptr,
                       terms.data(),
                       gradients.key_log_weight != nullptr ? d_key_log_weight.data() : nullptr,
                       gradients.zonal != nullptr ? moments.data() : nullptr};
  const NearQueries near(work, queries, keys, num_threads);
  for (; work.first_head < heads; work.first_head += group) {
    const int64_t members = std::min(group, heads - work.first_head);
    parallel_for(members * query_tiles, 1, num_threads,
                 [&](int64_t i, int64_t) { attention_backward_pack_queries(work, i / query_tiles, i % query_tiles); });
    turns.begin(members * query_tiles);
    // All heads' first keys, then their next: a task rarely waits for the one before it, and never for a later one.
    parallel_for(key_tasks * members, 1, num_threads, [&](int64_t i, int64_t) {
      const int mine = scratches.take();
      const int64_t first = i / members * tiles_per_task;
      Sweep(work, near, turns, i % members, scratches[mine]).run(first, std::min(first + tiles_per_task, key_tiles));
      scratches.give_back(mine);
    });
    if (gradients.query.data == nullptr) continue;
    parallel_for(members * query_tiles, 1, num_threads,
                 [&](int64_t i, int64_t) { attention_backward_write_queries(work, i / query_tiles, i % query_tiles); });
  }
  if (gradients.key_log_weight != nullptr) finish_key_log_weight(work, keys);
  if (gradients.zonal != nullptr) finish_zonal(work);
}

}  // namespace evoworld
