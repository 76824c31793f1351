// Launches: spreads the blocks over OS threads, and turns the first failure into an exception.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <thread>

#include "simt/block.h"
#include "simt/race.h"
#include "simt/sanitizers.h"

namespace evoworld::simt {
namespace {

uint64_t number_from_environment(const char* name, uint64_t otherwise) {
  const char* text = getenv(name);
  return text == nullptr || *text == '\0' ? otherwise : strtoull(text, nullptr, 10);
}

// Blocks to work in that no launch uses at the moment.
std::mutex idle_mutex;
std::vector<std::unique_ptr<Block>> idle;

void work(Launch& launch) {
  std::unique_ptr<Block> block;
  {
    const std::lock_guard<std::mutex> lock(idle_mutex);
    if (!idle.empty()) {
      block = std::move(idle.back());
      idle.pop_back();
    }
  }
  if (block == nullptr) block = std::make_unique<Block>();
  block->work(launch);
  const std::lock_guard<std::mutex> lock(idle_mutex);
  idle.push_back(std::move(block));
}

// After a sanitizer's report, on the OS thread that it is about.
void name_kernel() {
  if (Block* block = Block::current()) fprintf(stderr, "in %s\n", block->whereabouts().c_str());
}

int64_t greatest_common_divisor(int64_t a, int64_t b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }

}  // namespace

Settings& settings() {
  static Settings chosen = {number_from_environment("EVOWORLD_SIMT_SEED", 0),
                            static_cast<int>(number_from_environment("EVOWORLD_SIMT_THREADS", 2))};
  return chosen;
}

// Every block once: in order, or in steps that have no divisor in common with the number of blocks.
int64_t Launch::block_at(int64_t index) const {
  if (seed == 0) return index;
  int64_t step = static_cast<int64_t>(seed * 0x9e3779b97f4a7c15ull >> 33) % blocks + 1;
  while (greatest_common_divisor(step, blocks) != 1) ++step;
  return static_cast<int64_t>((static_cast<unsigned __int128>(index) * step + seed) % blocks);
}

void run_grid(const char* name, void (*body)(void*), void* closure, int64_t blocks, int threads, size_t shared) {
  if (Block::current() != nullptr) throw std::runtime_error(std::string(name) + ": launched by a kernel");
  if (threads < 1 || threads > Stacks::kMaxStacks) {
    throw std::runtime_error(format("kernel %s: %d threads a block, expected 1 to 1024", name, threads));
  }
  if (shared > Block::kMaxShared) {
    throw std::runtime_error(
        format("kernel %s: %zu bytes of shared memory a block, sm_120 has %zu", name, shared, Block::kMaxShared));
  }
  Launch launch{name, body, closure, blocks, threads, shared, settings().seed};
  race::launch_begins();
  at_death(name_kernel);
  const int workers = race::kEnabled ? 1 : static_cast<int>(std::min<int64_t>(settings().threads, blocks));
  std::vector<std::thread> helpers;
  for (int i = 1; i < workers; ++i) helpers.emplace_back(work, std::ref(launch));
  work(launch);
  for (std::thread& helper : helpers) helper.join();
  if (launch.failed) throw std::runtime_error(launch.message);
}

uint64_t exchange(unsigned mask, uint64_t value, int argument, const WarpOp& op, Where where) {
  return Block::current()->exchange(mask, value, argument, op, where);
}

int barrier(const char* name, bool predicate, Where where) { return Block::current()->barrier(name, predicate, where); }

void* dynamic_shared_memory() { return Block::current()->shared_memory(); }

void fail(Where where, const char* text, ...) {
  char what[400];
  va_list values;
  va_start(values, text);
  vsnprintf(what, sizeof what, text, values);
  va_end(values);
  if (Block::current() == nullptr) throw std::runtime_error(format("%s:%d: %s", where.file, where.line, what));
  Block::current()->fail(where, what);
}

}  // namespace evoworld::simt
