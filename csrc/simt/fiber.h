// Fibers: stacks that one OS thread switches between. Each CUDA thread of a running block is one.
#pragma once

#include <cstddef>

#if !defined(EW_SIMT_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define EW_SIMT_UCONTEXT  // a processor without a hand-written switch below
#endif
#ifdef EW_SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace evoworld::simt {

struct Fiber {
  char* stack = nullptr;  // lowest byte; null for the OS thread's own stack until it was left once
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // of AddressSanitizer, while the fiber is away
#ifdef EW_SIMT_UCONTEXT
  ucontext_t context;
#else
  void* stack_pointer = nullptr;  // while the fiber is away; the saved registers lie there
#endif
};

// The next switch to this fiber calls entry(), which must never return: it leaves by switch_forever.
void prepare_fiber(Fiber& fiber, void (*entry)());
// Saves the running fiber in `from` and continues `to`; returns when somebody switches back to `from`.
void switch_fiber(Fiber& from, Fiber& to);
// The same for a fiber that is never continued.
[[noreturn]] void switch_forever(Fiber& from, Fiber& to);
// The first thing that entry() calls.
void fiber_entered();

// The stacks of the threads of one block, reserved at once and made accessible when first needed. Below each lies a
// page that faults.
class Stacks {
 public:
  static constexpr int kMaxStacks = 1024;

  Stacks();
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  void need(int count);
  void give(int index, Fiber& fiber) const;
  bool contain(const void* address) const;
  // Forgets what sanitizers know of stacks whose functions were abandoned halfway.
  void clean() const;

 private:
  char* memory_;
  int accessible_ = 0;
};

}  // namespace evoworld::simt
