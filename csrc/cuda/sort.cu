// One translation unit for CUB's radix sort, which takes longer to compile than all kernels of an op.
#include "cuda/sort.h"

#ifdef EW_SIMT
#include <algorithm>
#include <numeric>
#include <vector>
#else
#include <cub/device/device_radix_sort.cuh>
#endif

namespace evoworld {

void sort_pairs(const unsigned long long* keys, unsigned long long* sorted_keys, const int32_t* values,
                int32_t* sorted_values, int64_t count, int end_bit, const Stream& stream) {
  if (count == 0) return;
  if (count > INT32_MAX) throw std::runtime_error("sort_pairs: more than 2^31 - 1 pairs");
#ifdef EW_SIMT
  const unsigned long long mask = end_bit < 64 ? (1ull << end_bit) - 1 : ~0ull;
  std::vector<int32_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return (keys[a] & mask) < (keys[b] & mask); });
  for (int64_t i = 0; i < count; ++i) {
    sorted_keys[i] = keys[order[i]];
    sorted_values[i] = values[order[i]];
  }
  static_cast<void>(stream);
#else
  const int pairs = static_cast<int>(count);
  void* scratch = nullptr;
  size_t bytes = 0;
  const auto sort = [&] {
    return cub::DeviceRadixSort::SortPairs(scratch, bytes, keys, sorted_keys, values, sorted_values, pairs, 0, end_bit,
                                           stream.handle);
  };
  check_cuda(sort(), "sort_pairs");  // only asks for the size of the scratch memory
  scratch = stream.scratch(bytes);
  check_cuda(sort(), "sort_pairs");
#endif
}

}  // namespace evoworld
