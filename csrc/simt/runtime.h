// What the CUDA names of cuda.h are made of, and what a launch needs. Implemented by block.cpp and launch.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

namespace evoworld::simt {

// A place in the source, taken by default arguments: where the primitive was called.
struct Where {
  const char* file;
  int line;
  static constexpr Where current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};

// threadIdx, blockIdx, blockDim and gridDim of the CUDA thread that this OS thread executes at the moment.
struct Position {
  Index3 thread, block, threads{1, 1, 1}, blocks{1, 1, 1};
};
extern constinit thread_local Position position;

// Ends the launch: simt::launch throws a std::runtime_error that names kernel, block and thread, and says this.
[[noreturn]] void fail(Where where, const char* format, ...) __attribute__((format(printf, 2, 3)));

constexpr int kWarpLanes = 32;

// What the lanes of a warp have brought to one primitive: lane i, if bit i of `mask` is set.
struct Arrivals {
  unsigned mask;
  uint64_t value[kWarpLanes];
  int argument[kWarpLanes];
};

// A warp primitive: its name in messages, and what lane `lane` gets once all lanes of the mask have arrived.
struct WarpOp {
  const char* name;
  uint64_t (*result)(const Arrivals& all, int lane);
};

// Every warp primitive: waits until all lanes of `mask` are at this `op` and `where` with this mask.
uint64_t exchange(unsigned mask, uint64_t value, int argument, const WarpOp& op, Where where);

// Waits for all threads of the block; returns how many of them came with a true predicate.
int barrier(const char* name, bool predicate, Where where);

// The block's dynamic shared memory: 16-byte aligned and no more, filled with 0xff when the block begins.
void* dynamic_shared_memory();

enum class Atomic { add, exchange, compare_exchange, smallest, largest, bit_or, bit_and };

// *address = operand combined with *address, at once; returns what was there. For int, unsigned, unsigned long long,
// float and double. `expected` is for compare_exchange.
template <class T>
T atomic_update(Atomic op, T* address, T operand, T expected, Where where);

// Orders what the OS thread writes before with what it writes after, for other OS threads.
void fence();

// How launches run. Seed 0 runs threads and blocks in their order, any other seed in an order of its own.
struct Settings {
  uint64_t seed;  // EVOWORLD_SIMT_SEED
  int threads;    // OS threads that share the blocks: EVOWORLD_SIMT_THREADS
};
Settings& settings();

// Calls body(closure) once for each thread of each block.
void run_grid(const char* name, void (*body)(void*), void* closure, int64_t blocks, int threads, size_t shared);

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared,
            Arguments&&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  } call{kernel, {std::forward<Arguments>(arguments)...}};
  run_grid(
      name,
      [](void* closure) { std::apply(static_cast<Call*>(closure)->kernel, static_cast<Call*>(closure)->arguments); },
      &call, blocks, threads, shared);
}

}  // namespace evoworld::simt
