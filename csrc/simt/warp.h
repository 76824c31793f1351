// CUDA's primitives between the threads of a warp or a block, each with CUDA's meaning and the strictest reading of it.
//
// All lanes of a mask must come to the same call with the same mask. A lane may read lanes of the mask only. Only
// __syncwarp and __syncthreads order memory: CUDA promises nothing of the others.
#pragma once

#include <type_traits>

#include "simt/runtime.h"

namespace evoworld::simt {

inline int lane() { return static_cast<int>(position.thread.x % kWarpLanes); }

template <class T>
inline uint64_t to_word(T value) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "a 32- or 64-bit number");
  uint64_t word = 0;
  __builtin_memcpy(&word, &value, sizeof value);
  return word;
}

template <class T>
inline T from_word(uint64_t word) {
  T value;
  __builtin_memcpy(&value, &word, sizeof value);
  return value;
}

// `argument` is the lane that is read.
inline uint64_t pick(const Arrivals& all, int lane) { return all.value[all.argument[lane]]; }

template <class T>
inline T shuffle(unsigned mask, T value, int source, const WarpOp& op, Where where) {
  if (!(mask >> source & 1u)) {
    fail(where, "%s: reads lane %d, which the mask 0x%08x leaves out", op.name, source, mask);
  }
  return from_word<T>(exchange(mask, to_word(value), source, op, where));
}

inline void check_width(int width, const WarpOp& op, Where where) {
  if (width <= 0 || width > kWarpLanes || (width & (width - 1)) != 0) fail(where, "%s: width %d", op.name, width);
}

inline constexpr WarpOp kShuffle{"__shfl_sync", pick}, kShuffleUp{"__shfl_up_sync", pick},
    kShuffleDown{"__shfl_down_sync", pick}, kShuffleXor{"__shfl_xor_sync", pick};

// Folds the values of all lanes that have come.
template <class T, class Fold>
inline uint64_t fold(const Arrivals& all, Fold fold) {
  int i = __builtin_ctz(all.mask);
  T result = from_word<T>(all.value[i]);
  while (++i < kWarpLanes) {
    if (all.mask >> i & 1u) result = fold(result, from_word<T>(all.value[i]));
  }
  return to_word(result);
}

inline constexpr WarpOp kBallot{"__ballot_sync", [](const Arrivals& all, int) {
                                  unsigned votes = 0;
                                  for (int i = 0; i < kWarpLanes; ++i) {
                                    if ((all.mask >> i & 1u) && all.value[i] != 0) votes |= 1u << i;
                                  }
                                  return uint64_t{votes};
                                }};
inline constexpr WarpOp kAny{"__any_sync", kBallot.result}, kAll{"__all_sync", kBallot.result};
inline constexpr WarpOp kMatch{"__match_any_sync", [](const Arrivals& all, int lane) {
                                 unsigned same = 0;
                                 for (int i = 0; i < kWarpLanes; ++i) {
                                   if ((all.mask >> i & 1u) && all.value[i] == all.value[lane]) same |= 1u << i;
                                 }
                                 return uint64_t{same};
                               }};
inline constexpr WarpOp kSyncWarp{"__syncwarp", [](const Arrivals&, int) { return uint64_t{0}; }};

template <class T>
inline constexpr WarpOp kReduceAdd{
    "__reduce_add_sync", [](const Arrivals& all, int) {
      return fold<T>(all, [](T a, T b) { return static_cast<T>(static_cast<unsigned>(a) + static_cast<unsigned>(b)); });
    }};
template <class T>
inline constexpr WarpOp kReduceMin{
    "__reduce_min_sync", [](const Arrivals& all, int) { return fold<T>(all, [](T a, T b) { return b < a ? b : a; }); }};
template <class T>
inline constexpr WarpOp kReduceMax{
    "__reduce_max_sync", [](const Arrivals& all, int) { return fold<T>(all, [](T a, T b) { return a < b ? b : a; }); }};
inline constexpr WarpOp kReduceAnd{"__reduce_and_sync", [](const Arrivals& all, int) {
                                     return fold<unsigned>(all, [](unsigned a, unsigned b) { return a & b; });
                                   }};
inline constexpr WarpOp kReduceOr{"__reduce_or_sync", [](const Arrivals& all, int) {
                                    return fold<unsigned>(all, [](unsigned a, unsigned b) { return a | b; });
                                  }};
inline constexpr WarpOp kReduceXor{"__reduce_xor_sync", [](const Arrivals& all, int) {
                                     return fold<unsigned>(all, [](unsigned a, unsigned b) { return a ^ b; });
                                   }};

}  // namespace evoworld::simt

#define EW_SIMT_WHERE ::evoworld::simt::Where where = ::evoworld::simt::Where::current()

// Shuffles: the warp falls into groups of `width` lanes.
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, EW_SIMT_WHERE) {
  using namespace evoworld::simt;
  check_width(width, kShuffle, where);
  return shuffle(mask, value, (lane() & ~(width - 1)) | (source & (width - 1)), kShuffle, where);
}

template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EW_SIMT_WHERE) {
  using namespace evoworld::simt;
  check_width(width, kShuffleUp, where);
  const int first = lane() & ~(width - 1), source = lane() - static_cast<int>(delta & 31u);
  return shuffle(mask, value, source < first ? lane() : source, kShuffleUp, where);
}

template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EW_SIMT_WHERE) {
  using namespace evoworld::simt;
  check_width(width, kShuffleDown, where);
  const int last = lane() | (width - 1), source = lane() + static_cast<int>(delta & 31u);
  return shuffle(mask, value, source > last ? lane() : source, kShuffleDown, where);
}

template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, EW_SIMT_WHERE) {
  using namespace evoworld::simt;
  check_width(width, kShuffleXor, where);
  const int last = lane() | (width - 1), source = lane() ^ (lane_mask & 31);  // of a later group: one's own value
  return shuffle(mask, value, source > last ? lane() : source, kShuffleXor, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EW_SIMT_WHERE) {
  return static_cast<unsigned>(evoworld::simt::exchange(mask, predicate != 0, 0, evoworld::simt::kBallot, where));
}
inline int __any_sync(unsigned mask, int predicate, EW_SIMT_WHERE) {
  return evoworld::simt::exchange(mask, predicate != 0, 0, evoworld::simt::kAny, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EW_SIMT_WHERE) {
  return evoworld::simt::exchange(mask, predicate != 0, 0, evoworld::simt::kAll, where) == mask;
}
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, EW_SIMT_WHERE) {
  using namespace evoworld::simt;
  return static_cast<unsigned>(exchange(mask, to_word(value), 0, kMatch, where));
}
inline void __syncwarp(unsigned mask = 0xffffffffu, EW_SIMT_WHERE) {
  evoworld::simt::exchange(mask, 0, 0, evoworld::simt::kSyncWarp, where);
}

#define EW_SIMT_REDUCE(name, T, op)                                    \
  inline T name(unsigned mask, T value, EW_SIMT_WHERE) {               \
    using namespace evoworld::simt;                                    \
    return from_word<T>(exchange(mask, to_word(value), 0, op, where)); \
  }
EW_SIMT_REDUCE(__reduce_add_sync, int, kReduceAdd<int>)
EW_SIMT_REDUCE(__reduce_add_sync, unsigned, kReduceAdd<unsigned>)
EW_SIMT_REDUCE(__reduce_min_sync, int, kReduceMin<int>)
EW_SIMT_REDUCE(__reduce_min_sync, unsigned, kReduceMin<unsigned>)
EW_SIMT_REDUCE(__reduce_max_sync, int, kReduceMax<int>)
EW_SIMT_REDUCE(__reduce_max_sync, unsigned, kReduceMax<unsigned>)
EW_SIMT_REDUCE(__reduce_and_sync, unsigned, kReduceAnd)
EW_SIMT_REDUCE(__reduce_or_sync, unsigned, kReduceOr)
EW_SIMT_REDUCE(__reduce_xor_sync, unsigned, kReduceXor)
#undef EW_SIMT_REDUCE

inline void __syncthreads(EW_SIMT_WHERE) { evoworld::simt::barrier("__syncthreads", false, where); }
inline int __syncthreads_count(int predicate, EW_SIMT_WHERE) {
  return evoworld::simt::barrier("__syncthreads_count", predicate != 0, where);
}
inline int __syncthreads_or(int predicate, EW_SIMT_WHERE) {
  return evoworld::simt::barrier("__syncthreads_or", predicate != 0, where) > 0;
}
inline int __syncthreads_and(int predicate, EW_SIMT_WHERE) {
  using namespace evoworld::simt;
  return barrier("__syncthreads_and", predicate != 0, where) == static_cast<int>(position.threads.x);
}
#undef EW_SIMT_WHERE
