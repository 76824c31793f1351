// The race detector's memory: for each word that a launch has touched, who did so last.
//
// One OS thread executes the blocks, so that nothing here is locked, and switches between the threads of a block at
// random accesses, not at barriers alone: a lost update is then not only reported but happens.
#include "simt/race.h"

#ifdef EW_SIMT_RACE

#include <array>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

#include "simt/block.h"
#include "simt/symbols.h"

namespace evoworld::simt::race {
namespace {

constexpr unsigned kAccessesPerSwitch = 16;  // on average

// A thread's access. Memory is zero at first: code 0 is no access.
struct Access {
  uint32_t code;  // symbols.h
  uint32_t block;
  uint32_t barriers;  // how many the block had passed
  uint32_t thread : 10;
  uint32_t clock : 22;  // the lane's, see Clocks

  int warp() const { return static_cast<int>(thread) / kWarpLanes; }
  int lane() const { return static_cast<int>(thread) % kWarpLanes; }
};

// The latest accesses of one kind by two threads: of two warps or blocks rather than of one warp. More are not kept,
// so that a race may be missed now and then, but none is reported that is none.
struct Latest {
  Access access[2];

  void note(const Access& now) {
    Access& last = access[0];
    if (last.code != 0 && !(last.thread == now.thread && last.block == now.block)) {
      const auto far = [&](const Access& other) {
        return other.code != 0 && other.barriers == now.barriers &&
               (other.block != now.block || other.warp() != now.warp());
      };
      if (far(last) || !far(access[1])) access[1] = last;
    }
    last = now;
  }
};

// Four bytes of memory, or one byte of four that were touched one by one.
struct Cell {
  Access write;
  Latest reads, atomics;
  Cell* bytes;  // [4]; null while all accesses were to whole words
};

constexpr uintptr_t kPageBytes = 4096;

struct Page {
  Cell cells[kPageBytes / 4];
  ~Page() {
    for (Cell& cell : cells) delete[] cell.bytes;
  }
};

std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;  // of this launch, by address
uintptr_t latest_number = 0;
Page* latest_page = nullptr;

// Each lane counts its __syncwarps (from 1), and knows the counts of the warp's other lanes as of its latest one with
// them, directly or through others: [thread][lane].
std::vector<std::array<uint32_t, kWarpLanes>> clocks(Stacks::kMaxStacks);
uint32_t barriers = 0;
uint64_t random_state = 1;

Cell& cell_of(uintptr_t address) {
  const uintptr_t number = address / kPageBytes;
  if (number != latest_number || latest_page == nullptr) {
    std::unique_ptr<Page>& page = pages[number];
    if (page == nullptr) page = std::make_unique<Page>();
    latest_number = number;
    latest_page = page.get();
  }
  return latest_page->cells[address % kPageBytes / 4];
}

bool ordered(const Access& before, const Access& now, bool of_block) {
  if (before.code == 0) return true;
  if (before.block != now.block) return of_block;  // another block's shared memory, which lay there
  if (before.thread == now.thread || before.barriers < now.barriers) return true;
  return before.warp() == now.warp() && clocks[now.thread][before.lane()] >= before.clock;
}

struct Found {
  Access before;
  const char* did;
};

// The accesses to `cell` that race with this one; then notes this one.
bool races(Cell& cell, const Access& now, Kind kind, bool of_block, Found& found) {
  const auto look = [&](const Access& before, const char* did) {
    if (ordered(before, now, of_block)) return false;
    found = {before, did};
    return true;
  };
  if (look(cell.write, "wrote")) return true;
  for (int i = 0; i < 2; ++i) {
    if (kind != Kind::read && look(cell.reads.access[i], "read")) return true;
    if (kind != Kind::atomic && look(cell.atomics.access[i], "changed atomically")) return true;
  }
  if (kind == Kind::read) {
    cell.reads.note(now);
  } else if (kind == Kind::atomic) {
    cell.atomics.note(now);
  } else {
    cell.write = now;
    cell.reads = cell.atomics = {};  // all are ordered before this write
  }
  return false;
}

void split(Cell& cell) {
  cell.bytes = new Cell[4];
  for (int i = 0; i < 4; ++i) {
    cell.bytes[i] = cell;
    cell.bytes[i].bytes = nullptr;
  }
}

[[noreturn]] void report(const Access& now, Kind kind, const Found& found, size_t bytes, bool of_block) {
  const char* const does = kind == Kind::read ? "reads" : kind == Kind::write ? "writes" : "changes atomically";
  const std::string here = place_of_code(now.code), there = place_of_code(found.before.code);
  const std::string what =
      format("race: %s %zu bytes of %s memory that thread %u of block %u %s at %s; nothing orders the two", does, bytes,
             of_block ? "shared" : "global", found.before.thread, found.before.block, found.did, there.c_str());
  Block::current()->fail(here, what);
}

}  // namespace

void launch_begins() {
  pages.clear();
  latest_page = nullptr;
}

void block_begins(int64_t block, int threads) {
  barriers = 0;
  for (int i = 0; i < threads; ++i) {
    clocks[i].fill(0);
    clocks[i][i % kWarpLanes] = 1;
  }
  random_state =
      (settings().seed * 0x2545f4914f6cdd1dull + static_cast<uint64_t>(block) + 1) * 0x9e3779b97f4a7c15ull | 1;
}

void barrier_passed() { ++barriers; }

void warp_synchronised(int warp, unsigned mask) {
  std::array<uint32_t, kWarpLanes> known{};
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    if (!(mask >> lane & 1u)) continue;
    for (int i = 0; i < kWarpLanes; ++i) known[i] = std::max(known[i], clocks[warp * kWarpLanes + lane][i]);
  }
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    if (!(mask >> lane & 1u)) continue;
    clocks[warp * kWarpLanes + lane] = known;
    ++clocks[warp * kWarpLanes + lane][lane];
  }
}

void access(const void* address, size_t bytes, Kind kind, const void* code) {
  Block* const block = Block::current();
  if (block == nullptr || !block->in_kernel() || block->is_private(address)) return;
  const Block::Inside inside(block);
  if (next_random(random_state) >> 32 < (1ull << 32) / kAccessesPerSwitch) block->yield();

  const uint32_t thread = position.thread.x;
  const Access now = {code_number(code), position.block.x, barriers, thread, clocks[thread][thread % kWarpLanes]};
  const bool of_block = block->is_shared(address);
  if (of_block && block->is_beyond_shared(address, bytes)) {
    block->fail(place_of_code(now.code), format("%zu bytes beyond the end of the block's shared memory", bytes));
  }
  Found found;
  const uintptr_t first = reinterpret_cast<uintptr_t>(address), end = first + bytes;
  for (uintptr_t at = first; at < end;) {
    Cell& cell = cell_of(at);
    if (at % 4 == 0 && end - at >= 4 && cell.bytes == nullptr) {
      if (races(cell, now, kind, of_block, found)) report(now, kind, found, bytes, of_block);
      at += 4;
      continue;
    }
    if (cell.bytes == nullptr) split(cell);
    if (races(cell.bytes[at % 4], now, kind, of_block, found)) report(now, kind, found, bytes, of_block);
    ++at;
  }
}

}  // namespace evoworld::simt::race

#endif
