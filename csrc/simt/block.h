// One block: its threads as fibers, the queue of those that can run, and what the others wait for.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "simt/fiber.h"
#include "simt/runtime.h"
#include "simt/warp.h"

namespace evoworld::simt {

// One launch of a kernel, shared by the OS threads that work on it.
struct Launch {
  const char* name;
  void (*body)(void*);
  void* closure;
  int64_t blocks;
  int threads;
  size_t shared;
  uint64_t seed;

  int64_t block_at(int64_t index) const;  // the block that runs as number `index`

  std::atomic<int64_t> next_block{0};
  std::atomic<bool> failed{false};
  std::mutex mutex{};
  std::string message{};  // of the first failure
};

// A meeting of the lanes of `all.mask` at a warp primitive, open until all have arrived.
struct Meeting {
  Arrivals all;
  unsigned arrived = 0;
  const WarpOp* op = nullptr;
  Where where{};
};

enum class State { ready, at_barrier, in_meeting, returned };

struct Thread {
  Fiber fiber;
  int index = 0;
  State state = State::ready;
  Meeting* meeting = nullptr;  // where it waits
  Meeting opened;              // of this lane, when it was the first to arrive
  uint64_t result = 0;         // what the meeting gave it
};

struct Warp {
  unsigned waiting = 0;   // lanes in a meeting
  unsigned returned = 0;  // lanes that have returned, and those that a block's last warp lacks
};

// An OS thread's place to run blocks in, one after the other. Kept for later launches.
class Block {
 public:
  static constexpr size_t kMaxShared = 99 << 10;  // what sm_120 gives a block; the least of the architectures built for

  Block();
  ~Block();

  // Runs blocks of the launch until there are none left or one has failed.
  void work(Launch& launch);

  // What the primitives of the running thread come to.
  uint64_t exchange(unsigned mask, uint64_t value, int argument, const WarpOp& op, Where where);
  int barrier(const char* name, bool predicate, Where where);
  void* shared_memory() { return shared_; }
  // Lets other threads run before the running one goes on.
  void yield();
  // Lets others run at some of the calls: what waits for an atomic's change in a loop gets it.
  void atomic_done();
  [[noreturn]] void fail(Where where, const std::string& what);
  [[noreturn]] void fail(const std::string& place, const std::string& what);

  std::string whereabouts() const;  // "kernel sum, block 2, thread 7"

  // What the race detector asks about an address.
  bool is_private(const void* address) const;  // of a thread's stack, or of the runtime
  bool is_shared(const void* address) const;   // of the block's shared memory, dynamic or static
  bool is_beyond_shared(const void* address, size_t bytes) const;

  static Block* current();  // of this OS thread; null outside of kernels

  // True where a kernel's own code runs: what the runtime does on its behalf is no access of the kernel.
  bool in_kernel() const { return in_kernel_; }
  // Exists while the runtime works for a thread of the kernel.
  class Inside {
   public:
    explicit Inside(Block* block) : block_(block) { block_->in_kernel_ = false; }
    ~Inside() { block_->in_kernel_ = true; }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;

   private:
    Block* block_;
  };

 private:
  static void thread_main();

  void run(int64_t block);
  void make_ready(Thread& thread);
  Thread* next_ready();    // in turn, or by the seed; null when every thread waits or has returned
  void wait(State state);  // of the running thread, until it is ready again
  void continue_with(Thread* next);
  [[noreturn]] void abandon(const std::string& message);
  [[noreturn]] void thread_returned();
  void complete(const Meeting& meeting, int warp);
  void find_statics();
  std::string deadlock() const;

  Stacks stacks_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  Thread* ready_[Stacks::kMaxStacks];  // a ring: num_ready_ threads from first_ready_ on
  unsigned first_ready_ = 0, num_ready_ = 0;
  Fiber home_;  // the OS thread's own stack
  Thread* running_ = nullptr;
  bool in_kernel_ = false;
  Launch* launch_ = nullptr;
  uint64_t random_ = 0;
  char* shared_allocation_;
  char* shared_;
  const char* statics_ = nullptr;  // the __shared__ variables of this OS thread lie from here
  const char* statics_end_ = nullptr;
  unsigned num_atomics_ = 0;

  int num_returned_ = 0;
  int at_barrier_ = 0;  // threads that have arrived
  int barrier_votes_ = 0;
  int barrier_result_ = 0;  // of the barrier before
  const char* barrier_name_ = nullptr;
  Where barrier_where_{};
};

uint64_t next_random(uint64_t& state);  // of a state that is not 0
std::string format(const char* text, ...) __attribute__((format(printf, 1, 2)));

}  // namespace evoworld::simt
