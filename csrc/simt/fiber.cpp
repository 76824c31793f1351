// Switching stacks: by hand on x86-64 and aarch64 (some 15 million a second), by swapcontext elsewhere (4 million).
#include "simt/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#include "simt/sanitizers.h"

namespace evoworld::simt {
namespace {

#ifdef EW_SIMT_ASAN
constexpr size_t kStackBytes = 256 << 10;  // red zones and code that is not optimised
#else
constexpr size_t kStackBytes = 64 << 10;
#endif

thread_local Fiber* left = nullptr;  // the fiber that the latest switch of this OS thread left

}  // namespace

#ifndef EW_SIMT_UCONTEXT

// evoworld_simt_switch(&save, load): stores the registers that a call must keep on the stack and the stack pointer in
// `save`; then takes `load` for the stack pointer, restores the registers from there and returns on that stack.
extern "C" void evoworld_simt_switch(void** save, void* load) __asm__("evoworld_simt_switch");

#if defined(__x86_64__)
constexpr int kSavedWords = 6;
__asm__(R"(
.text
.p2align 4
evoworld_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

void* first_stack_pointer(char* top, void (*entry)()) {
  void** words = reinterpret_cast<void**>(top);
  *--words = nullptr;  // entry()'s return address: none, and the stack is aligned as after a call
  *--words = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedWords; ++i) *--words = nullptr;
  return words;
}
#else
constexpr int kSavedWords = 20;
__asm__(R"(
.text
.p2align 4
evoworld_simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");

void* first_stack_pointer(char* top, void (*entry)()) {
  void** words = reinterpret_cast<void**>(top) - kSavedWords;
  for (int i = 0; i < kSavedWords; ++i) words[i] = nullptr;
  words[11] = reinterpret_cast<void*>(entry);  // x30: where `ret` goes
  return words;
}
#endif

void prepare_fiber(Fiber& fiber, void (*entry)()) {
  fiber.fake_stack = nullptr;
  fiber.stack_pointer = first_stack_pointer(fiber.stack + fiber.stack_bytes, entry);
}

static void switch_stacks(Fiber& from, Fiber& to) { evoworld_simt_switch(&from.stack_pointer, to.stack_pointer); }

#else

void prepare_fiber(Fiber& fiber, void (*entry)()) {
  fiber.fake_stack = nullptr;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

static void switch_stacks(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

void switch_fiber(Fiber& from, Fiber& to) {
  left = &from;
  start_switch(&from.fake_stack, to.stack, to.stack_bytes);
  switch_stacks(from, to);
  finish_switch(from.fake_stack, left->stack, left->stack_bytes);
}

void switch_forever(Fiber& from, Fiber& to) {
  left = &from;
  start_switch(nullptr, to.stack, to.stack_bytes);
  switch_stacks(from, to);
  __builtin_unreachable();
}

void fiber_entered() { finish_switch(nullptr, left->stack, left->stack_bytes); }

Stacks::Stacks() {
  void* memory = mmap(nullptr, kMaxStacks * kStackBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
}

Stacks::~Stacks() { munmap(memory_, kMaxStacks * kStackBytes); }

void Stacks::need(int count) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (; accessible_ < count; ++accessible_) {
    char* const stack = memory_ + accessible_ * kStackBytes;
    if (mprotect(stack + page, kStackBytes - page, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  }
}

void Stacks::give(int index, Fiber& fiber) const {
  // Stacks that all begin at the same offset of a page would share a few sets of the cache.
  const size_t colour = static_cast<size_t>(index) % 32 * 128;
  fiber.stack = memory_ + index * kStackBytes;
  fiber.stack_bytes = kStackBytes - colour;
}

bool Stacks::contain(const void* address) const {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(memory_);
  return offset < kMaxStacks * kStackBytes;
}

void Stacks::clean() const {
  for (int i = 0; i < accessible_; ++i) unpoison(memory_ + i * kStackBytes, kStackBytes);
}

}  // namespace evoworld::simt
