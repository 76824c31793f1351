// The race detector: two threads of one launch touch the same bytes, one of them writes, and nothing orders the two.
//
// The compiler plants a call before every access of the kernels to memory (tsan_hooks.cpp), which comes to access();
// the runtime tells of the rest. What orders two accesses: being the same thread's; in a block, a __syncthreads between
// them; in a warp, a chain of __syncwarps between them. Between the blocks of a launch nothing does. Atomics do not
// race with each other; one atomic and one plain access do.
#pragma once

#include <cstddef>
#include <cstdint>

namespace evoworld::simt::race {

enum class Kind { read, write, atomic };

#ifdef EW_SIMT_RACE
constexpr bool kEnabled = true;
void launch_begins();
void block_begins(int64_t block, int threads);
void barrier_passed();
void warp_synchronised(int warp, unsigned mask);
// An access of the running thread, which is about to happen at the instruction `code`.
void access(const void* address, size_t bytes, Kind kind, const void* code);
#else
constexpr bool kEnabled = false;
inline void launch_begins() {}
inline void block_begins(int64_t, int) {}
inline void barrier_passed() {}
inline void warp_synchronised(int, unsigned) {}
inline void access(const void*, size_t, Kind, const void*) {}
#endif

}  // namespace evoworld::simt::race
