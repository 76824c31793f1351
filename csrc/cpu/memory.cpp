#include "cpu/memory.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/parallel.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace evoworld {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;  // on every Linux with 4 kB pages; elsewhere the advice does no harm
constexpr size_t kLarge = 8 * kHugePage;       // smaller blocks are likely to be reused by the allocator, not fresh

}  // namespace

void zero_fresh_memory(void* memory, size_t bytes, int num_threads) {
  if (bytes < kLarge) {
    if (bytes > 0) std::memset(memory, 0, bytes);
    return;
  }
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (address + bytes) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: nothing depends on its being taken
#endif
  parallel_for(static_cast<int64_t>(bytes), kHugePage, num_threads, [&](int64_t first, int64_t last) {
    std::memset(static_cast<char*>(memory) + first, 0, static_cast<size_t>(last - first));
  });
}

}  // namespace evoworld
