// What code compiled with -fsanitize=thread calls before each access to memory. The kernels alone are compiled so, and
// this takes the place of ThreadSanitizer's own library, which knows nothing of barriers, warps and blocks.
#ifdef EW_SIMT_RACE

#include <cstring>

#include "simt/block.h"
#include "simt/race.h"
#include "simt/symbols.h"

using evoworld::simt::race::Kind;

namespace {

void aligned(const void* address, size_t bytes, Kind kind, const void* code) {
  using evoworld::simt::Block, evoworld::simt::code_number, evoworld::simt::place_of_code;
  Block* const block = Block::current();
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0 && block != nullptr && block->in_kernel()) {
    block->fail(place_of_code(code_number(code)),
                evoworld::simt::format("access of %zu bytes at an address that is no multiple of it", bytes));
  }
  evoworld::simt::race::access(address, bytes, kind, code);
}

}  // namespace

#define CODE __builtin_return_address(0)
#define EW_HOOKS(bytes)                                                                 \
  void __tsan_read##bytes(void* address) { aligned(address, bytes, Kind::read, CODE); } \
  void __tsan_write##bytes(void* address) { aligned(address, bytes, Kind::write, CODE); }
#define EW_UNALIGNED_HOOKS(bytes)                                                                                      \
  void __tsan_unaligned_read##bytes(void* address) { evoworld::simt::race::access(address, bytes, Kind::read, CODE); } \
  void __tsan_unaligned_write##bytes(void* address) { evoworld::simt::race::access(address, bytes, Kind::write, CODE); }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
EW_HOOKS(1)
EW_HOOKS(2)
EW_HOOKS(4)
EW_HOOKS(8)
EW_HOOKS(16)
EW_UNALIGNED_HOOKS(2)
EW_UNALIGNED_HOOKS(4)
EW_UNALIGNED_HOOKS(8)
EW_UNALIGNED_HOOKS(16)
void __tsan_read_range(void* address, size_t bytes) { evoworld::simt::race::access(address, bytes, Kind::read, CODE); }
void __tsan_write_range(void* address, size_t bytes) {
  evoworld::simt::race::access(address, bytes, Kind::write, CODE);
}

// Host code of the launchers: objects with virtual functions, and guards of function-local statics.
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
char __tsan_atomic8_load(const volatile char* address, int) { return __atomic_load_n(address, __ATOMIC_ACQUIRE); }

// clang's memcpy and so on.
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  evoworld::simt::race::access(from, bytes, Kind::read, CODE);
  evoworld::simt::race::access(to, bytes, Kind::write, CODE);
  return memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  evoworld::simt::race::access(from, bytes, Kind::read, CODE);
  evoworld::simt::race::access(to, bytes, Kind::write, CODE);
  return memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  evoworld::simt::race::access(to, bytes, Kind::write, CODE);
  return memset(to, value, bytes);
}
}

#endif
