// Striped spin locks over bricks, for threads that add to the same gradient rows.
#pragma once

#include <atomic>

#include "core/sparse_grid.h"

namespace evoworld {

struct BrickLocks {
  static constexpr int64_t kCount = 4096;  // far more than threads: two rarely want the same one
  std::atomic<uint32_t> taken[kCount] = {};

  // Held for a few dozen instructions, so waiting spins.
  EW_HD void lock(int64_t row) {
    std::atomic<uint32_t>& flag = taken[(row / kBrickVoxels) % kCount];
    while (flag.exchange(1, std::memory_order_acquire) != 0) {
      while (flag.load(std::memory_order_relaxed) != 0) {
      }
    }
  }
  EW_HD void unlock(int64_t row) { taken[(row / kBrickVoxels) % kCount].store(0, std::memory_order_release); }
};

}  // namespace evoworld
