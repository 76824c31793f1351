// What AddressSanitizer must be told: where stacks are switched, and what lies beyond a block's shared memory.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define EW_SIMT_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EW_SIMT_ASAN
#endif
#endif

#ifdef EW_SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace evoworld::simt {

#ifdef EW_SIMT_ASAN
inline void start_switch(void** fake_stack, const void* stack, size_t bytes) {
  __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
}
// Learns the bounds of the stack that was left.
inline void finish_switch(void* fake_stack, char*& stack, size_t& bytes) {
  const void* lowest = nullptr;
  __sanitizer_finish_switch_fiber(fake_stack, &lowest, &bytes);
  stack = const_cast<char*>(static_cast<const char*>(lowest));
}
inline void poison(void* memory, size_t bytes) { __asan_poison_memory_region(memory, bytes); }
inline void unpoison(void* memory, size_t bytes) { __asan_unpoison_memory_region(memory, bytes); }
inline void at_death(void (*say)()) { __sanitizer_set_death_callback(say); }
#else
inline void start_switch(void**, const void*, size_t) {}
inline void finish_switch(void*, char*&, size_t&) {}
inline void poison(void*, size_t) {}
inline void unpoison(void*, size_t) {}
inline void at_death(void (*)()) {}
#endif

}  // namespace evoworld::simt
