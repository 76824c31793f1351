#include <atomic>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "cpu/parallel.h"

using evoworld::parallel_for;

TEST(parallel_for_covers_every_index_once) {
  for (const int64_t count : {0, 1, 7, 1000}) {
    for (const int64_t grain : {1, 3, 2000}) {
      for (const int threads : {1, 2, 5}) {
        std::vector<std::atomic<int>> visits(count);
        std::atomic<bool> within_grain = true;
        parallel_for(count, grain, threads, [&](int64_t begin, int64_t end) {
          if (end - begin > grain || begin >= end) within_grain = false;
          for (int64_t i = begin; i < end; ++i) ++visits[i];
        });
        bool once = true;
        for (const auto& visit : visits) once = once && visit == 1;
        CHECK(once);
        CHECK(within_grain);
      }
    }
  }
}

TEST(parallel_for_rethrows_and_works_again) {
  bool caught = false;
  try {
    parallel_for(100, 1, 4, [](int64_t begin, int64_t) {
      if (begin == 50) throw std::runtime_error("half way");
    });
  } catch (const std::runtime_error&) {
    caught = true;
  }
  CHECK(caught);
  std::atomic<int64_t> sum = 0;
  parallel_for(100, 7, 4, [&](int64_t begin, int64_t end) { sum += end - begin; });
  CHECK(sum == 100);
}
