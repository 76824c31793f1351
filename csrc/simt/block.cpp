// Runs the threads of a block: who goes on, who waits, and what is wrong when nobody can.
//
// A thread runs until it has to wait for others; then the next one that can run goes on, on its own stack, without a
// detour. Everything happens on one OS thread, so nothing here is locked.
#include "simt/block.h"

#ifdef __linux__
#include <link.h>
#endif

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>

#include "simt/race.h"
#include "simt/sanitizers.h"

namespace evoworld::simt {
namespace {

constexpr unsigned kAtomicsPerSwitch = 16;

constinit thread_local Block* block_here = nullptr;

bool same(Where a, Where b) { return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0); }

std::string text_of(Where where) { return format("%s:%d", where.file, where.line); }

int warp_of(const Thread& thread) { return thread.index / kWarpLanes; }
int lane_of(const Thread& thread) { return thread.index % kWarpLanes; }

}  // namespace

constinit thread_local Position position;

// xorshift64*
uint64_t next_random(uint64_t& state) {
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 0x2545f4914f6cdd1dull;
}

std::string format(const char* text, ...) {
  char buffer[512];
  va_list values;
  va_start(values, text);
  vsnprintf(buffer, sizeof buffer, text, values);
  va_end(values);
  return buffer;
}

Block* Block::current() { return block_here; }

Block::Block() : threads_(Stacks::kMaxStacks), warps_(Stacks::kMaxStacks / kWarpLanes) {
  for (int i = 0; i < Stacks::kMaxStacks; ++i) threads_[i].index = i;
  // At 16 bytes past a multiple of 32, so that nothing relies on more than the 16 that CUDA promises.
  shared_allocation_ = static_cast<char*>(operator new(kMaxShared + 64));
  shared_ = shared_allocation_ + (16 - reinterpret_cast<uintptr_t>(shared_allocation_)) % 32;
}

Block::~Block() {
  unpoison(shared_, kMaxShared);
  operator delete(shared_allocation_);
}

void Block::work(Launch& launch) {
  launch_ = &launch;
  block_here = this;
  stacks_.need(launch.threads);
  unpoison(shared_, kMaxShared);
  poison(shared_ + launch.shared, kMaxShared - launch.shared);
  if (race::kEnabled) find_statics();
  while (!launch.failed) {
    const int64_t index = launch.next_block++;
    if (index >= launch.blocks) break;
    run(launch.block_at(index));
  }
  block_here = nullptr;
  position = {};
}

void Block::run(int64_t block) {
  const int count = launch_->threads;
  random_ = (launch_->seed + static_cast<uint64_t>(block) + 1) * 0x9e3779b97f4a7c15ull | 1;
  memset(shared_, 0xff, launch_->shared);
  position.block.x = static_cast<unsigned>(block);
  position.threads.x = static_cast<unsigned>(count);
  position.blocks.x = static_cast<unsigned>(launch_->blocks);
  first_ready_ = num_ready_ = 0;
  num_returned_ = at_barrier_ = barrier_votes_ = 0;
  for (int i = 0; i < count; ++i) {
    stacks_.give(i, threads_[i].fiber);
    prepare_fiber(threads_[i].fiber, thread_main);
    make_ready(threads_[i]);
  }
  for (int first = 0; first < count; first += kWarpLanes) {
    warps_[first / kWarpLanes] = {0, count - first < kWarpLanes ? ~0u << (count - first) : 0u};
  }
  race::block_begins(block, count);
  running_ = next_ready();
  position.thread.x = static_cast<unsigned>(running_->index);
  switch_fiber(home_, running_->fiber);
  running_ = nullptr;
  if (launch_->failed) stacks_.clean();
}

void Block::thread_main() {
  fiber_entered();
  block_here->in_kernel_ = true;
  block_here->launch_->body(block_here->launch_->closure);
  block_here->in_kernel_ = false;
  block_here->thread_returned();
}

void Block::thread_returned() {
  Thread& me = *running_;
  Warp& warp = warps_[warp_of(me)];
  me.state = State::returned;
  warp.returned |= 1u << lane_of(me);
  if (at_barrier_ > 0) {
    fail(barrier_where_,
         format("%s: this thread has returned, but %d threads wait for it there", barrier_name_, at_barrier_));
  }
  for (int i = 0; i < kWarpLanes; ++i) {
    if (!(warp.waiting >> i & 1u)) continue;
    const Meeting& meeting = *threads_[warp_of(me) * kWarpLanes + i].meeting;
    if (meeting.all.mask >> lane_of(me) & 1u) {
      fail(meeting.where, format("%s: this thread has returned, but thread %d waits for it there (mask 0x%08x)",
                                 meeting.op->name, warp_of(me) * kWarpLanes + i, meeting.all.mask));
    }
  }
  Thread* next = next_ready();
  if (++num_returned_ == launch_->threads) switch_forever(me.fiber, home_);
  if (next == nullptr) abandon(deadlock());
  running_ = next;
  position.thread.x = static_cast<unsigned>(next->index);
  switch_forever(me.fiber, next->fiber);
}

void Block::make_ready(Thread& thread) {
  thread.state = State::ready;
  ready_[(first_ready_ + num_ready_++) % Stacks::kMaxStacks] = &thread;
}

Thread* Block::next_ready() {
  if (num_ready_ == 0) return nullptr;
  if (launch_->seed != 0) {
    const unsigned chosen = first_ready_ + static_cast<unsigned>((next_random(random_) >> 32) * num_ready_ >> 32);
    std::swap(ready_[first_ready_], ready_[chosen % Stacks::kMaxStacks]);
  }
  Thread* const next = ready_[first_ready_];
  first_ready_ = (first_ready_ + 1) % Stacks::kMaxStacks;
  --num_ready_;
  return next;
}

void Block::continue_with(Thread* next) {
  if (next == nullptr) abandon(deadlock());
  if (next == running_) return;
  Thread& me = *running_;
  running_ = next;
  position.thread.x = static_cast<unsigned>(next->index);
  switch_fiber(me.fiber, next->fiber);
}

void Block::yield() {
  make_ready(*running_);
  continue_with(next_ready());
}

void Block::atomic_done() {
  const Inside inside(this);
  if (++num_atomics_ % kAtomicsPerSwitch == 0) yield();
}

void Block::wait(State state) {
  running_->state = state;
  continue_with(next_ready());
}

int Block::barrier(const char* name, bool predicate, Where where) {
  const Inside inside(this);
  if (num_returned_ > 0) {
    int gone = 0;
    while (threads_[gone].state != State::returned) ++gone;
    fail(where, format("%s: barrier after a thread returned: thread %d will not come", name, gone));
  }
  if (at_barrier_ > 0 && !same(where, barrier_where_)) {
    fail(where, format("%s: divergent barrier: %d threads wait at %s, %s", name, at_barrier_, barrier_name_,
                       text_of(barrier_where_).c_str()));
  }
  barrier_name_ = name;
  barrier_where_ = where;
  barrier_votes_ += predicate;
  if (++at_barrier_ < launch_->threads) {
    wait(State::at_barrier);
    return barrier_result_;
  }
  barrier_result_ = barrier_votes_;
  barrier_votes_ = at_barrier_ = 0;
  race::barrier_passed();
  for (int i = 0; i < launch_->threads; ++i) {
    if (&threads_[i] != running_) make_ready(threads_[i]);
  }
  return barrier_result_;
}

uint64_t Block::exchange(unsigned mask, uint64_t value, int argument, const WarpOp& op, Where where) {
  const Inside inside(this);
  Thread& me = *running_;
  Warp& warp = warps_[warp_of(me)];
  const int lane = lane_of(me), first = me.index - lane;
  if (!(mask >> lane & 1u)) {
    fail(where, format("%s: the mask 0x%08x leaves out the lane %d that calls", op.name, mask, lane));
  }
  if ((mask & warp.returned) != 0) {
    fail(where, format("%s: the mask 0x%08x names lane %d, which has returned or is none of the block's", op.name, mask,
                       __builtin_ctz(mask & warp.returned)));
  }
  const unsigned waiting = mask & warp.waiting;
  Meeting* meeting = nullptr;
  for (unsigned rest = waiting; rest != 0; rest &= rest - 1) {
    const int other_lane = __builtin_ctz(rest);
    Meeting* const other = threads_[first + other_lane].meeting;
    if (other->all.mask == mask && other->op == &op && same(other->where, where)) {
      meeting = other;
      if (meeting->arrived == waiting) break;
    } else if (other->all.mask >> lane & 1u) {
      fail(where,
           format("%s, mask 0x%08x: thread %d, which the mask names, waits for this thread at %s, mask 0x%08x, %s",
                  op.name, mask, first + other_lane, other->op->name, other->all.mask, text_of(other->where).c_str()));
    }
  }
  if (meeting == nullptr) {
    meeting = &me.opened;
    meeting->all.mask = mask;
    meeting->arrived = 0;
    meeting->op = &op;
    meeting->where = where;
  }
  meeting->all.value[lane] = value;
  meeting->all.argument[lane] = argument;
  meeting->arrived |= 1u << lane;
  if (meeting->arrived == mask) {
    complete(*meeting, warp_of(me));
  } else {
    me.meeting = meeting;
    warp.waiting |= 1u << lane;
    wait(State::in_meeting);
  }
  return me.result;
}

void Block::complete(const Meeting& meeting, int warp) {
  if (meeting.op == &kSyncWarp) race::warp_synchronised(warp, meeting.all.mask);
  for (unsigned rest = meeting.all.mask; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    Thread& thread = threads_[warp * kWarpLanes + lane];
    thread.result = meeting.op->result(meeting.all, lane);
    if (&thread != running_) make_ready(thread);
  }
  warps_[warp].waiting &= ~meeting.all.mask;
}

// Static shared memory is thread_local, and lies in one piece with all the thread_local variables of this library.
void Block::find_statics() {
#ifdef __linux__
  dl_iterate_phdr(
      [](dl_phdr_info* module, size_t, void* self) {
        const char* const begin = static_cast<const char*>(module->dlpi_tls_data);
        const char* const inside = reinterpret_cast<const char*>(&position);
        for (int i = 0; begin != nullptr && i < module->dlpi_phnum; ++i) {
          if (module->dlpi_phdr[i].p_type != PT_TLS) continue;
          const char* const end = begin + module->dlpi_phdr[i].p_memsz;
          if (inside < begin || inside >= end) continue;
          static_cast<Block*>(self)->statics_ = begin;
          static_cast<Block*>(self)->statics_end_ = end;
          return 1;
        }
        return 0;
      },
      this);
#endif
}

bool Block::is_private(const void* address) const {
  const uintptr_t in_position = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(&position);
  return in_position < sizeof position || stacks_.contain(address);
}

bool Block::is_shared(const void* address) const {
  const char* const byte = static_cast<const char*>(address);
  return (byte >= shared_ && byte < shared_ + kMaxShared) || (byte >= statics_ && byte < statics_end_);
}

bool Block::is_beyond_shared(const void* address, size_t bytes) const {
  const char* const byte = static_cast<const char*>(address);
  return byte >= shared_ && byte < shared_ + kMaxShared && byte + bytes > shared_ + launch_->shared;
}

void Block::fail(Where where, const std::string& what) { fail(text_of(where), what); }

void Block::fail(const std::string& place, const std::string& what) {
  in_kernel_ = false;
  abandon(format("thread %u: %s: %s", position.thread.x, place.c_str(), what.c_str()));
}

std::string Block::whereabouts() const {
  return format("kernel %s, block %u, thread %u", launch_->name, position.block.x, position.thread.x);
}

// Leaves all threads of the block where they are: what they own is never freed.
void Block::abandon(const std::string& message) {
  {
    const std::lock_guard<std::mutex> lock(launch_->mutex);
    if (!launch_->failed) {
      launch_->message = format("kernel %s, block %u, ", launch_->name, position.block.x) + message;
    }
    launch_->failed = true;
  }
  switch_forever(running_->fiber, home_);
}

// Who waits where, the first few places.
std::string Block::deadlock() const {
  std::map<std::string, std::pair<int, int>> places;  // -> the first thread, and how many
  for (int i = 0; i < launch_->threads; ++i) {
    const Thread& thread = threads_[i];
    if (thread.state == State::returned) continue;
    std::string place;
    if (thread.state == State::at_barrier) {
      place = text_of(barrier_where_) + ": " + barrier_name_;
    } else {
      place = text_of(thread.meeting->where) + ": " + thread.meeting->op->name +
              format(", mask 0x%08x of warp %d", thread.meeting->all.mask, i / kWarpLanes);
    }
    ++places.try_emplace(place, i, 0).first->second.second;
  }
  std::string message;
  for (const auto& [place, who] : places) {
    if (message.empty()) {
      message = format("thread %d: %s: deadlock: %d threads wait here", who.first, place.c_str(), who.second);
    } else if (message.size() < 300) {
      message += format("; %d threads (the first: %d) at %s", who.second, who.first, place.c_str());
    }
  }
  return message;
}

}  // namespace evoworld::simt
