#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/parallel.h"

using evoworld::parallel_for;

namespace {

// The sum of 0 .. count - 1, in parallel.
int64_t parallel_sum(int64_t count, int64_t grain, int num_threads) {
  std::atomic<int64_t> sum = 0;
  parallel_for(count, grain, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sum += i;
  });
  return sum;
}

// Whether two threads are ever at work at the same time.
bool two_threads_meet() {
  std::atomic<int> arrived = 0;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  parallel_for(2, 1, 2, [&](int64_t, int64_t) {
    ++arrived;
    while (arrived < 2 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  });
  // With one thread the second chunk arrives too, but only after the deadline.
  return std::chrono::steady_clock::now() < deadline;
}

int64_t sum_below(int64_t count) { return count * (count - 1) / 2; }

}  // namespace

TEST(parallel_for_covers_every_index_once) {
  for (const int64_t count : {0, 1, 7, 1000}) {
    for (const int64_t grain : {1, 3, 2000}) {
      for (const int threads : {-1, 0, 1, 2, 5}) {
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

TEST(parallel_for_takes_odd_counts_and_grains) {
  bool called = false;
  parallel_for(-5, 1, 4, [&](int64_t, int64_t) { called = true; });
  CHECK(!called);
  CHECK(parallel_sum(100, 0, 4) == sum_below(100));
  CHECK(parallel_sum(100, -3, 4) == sum_below(100));
}

TEST(parallel_for_rethrows_and_works_again) {
  for (const int threads : {1, 4}) {
    std::string caught;
    std::atomic<bool> later = false;
    try {
      parallel_for(100, 1, threads, [&](int64_t begin, int64_t) {
        if (begin == 50) throw std::runtime_error("half way");
        if (begin == 99 && threads == 1) later = true;
      });
    } catch (const std::runtime_error& error) {
      caught = error.what();
    }
    CHECK(caught == "half way");
    CHECK(!later);  // one thread stops where it threw
    CHECK(parallel_sum(100, 7, threads) == sum_below(100));
  }
}

TEST(parallel_for_rethrows_one_of_many) {
  for (int round = 0; round < 50; ++round) {
    int caught = 0;
    try {
      parallel_for(64, 1, 4, [](int64_t begin, int64_t) { throw static_cast<int>(begin); });
    } catch (const int) {
      ++caught;
    }
    CHECK(caught == 1);
  }
  CHECK(parallel_sum(1000, 1, 4) == sum_below(1000));
}

TEST(parallel_for_nests) {
  std::atomic<int64_t> sum = 0;
  parallel_for(20, 1, 4, [&](int64_t begin, int64_t) {
    parallel_for(10, 1, 4, [&](int64_t from, int64_t) { sum += begin * parallel_sum(from + 2, 1, 4); });
  });
  int64_t inner = 0;
  for (int64_t from = 0; from < 10; ++from) inner += sum_below(from + 2);
  CHECK(sum == sum_below(20) * inner);
}

TEST(parallel_for_carries_an_exception_out_of_nested_calls) {
  bool caught = false;
  try {
    parallel_for(8, 1, 4, [](int64_t, int64_t) {
      parallel_for(8, 1, 4, [](int64_t begin, int64_t) {
        if (begin == 5) throw std::out_of_range("inner");
      });
    });
  } catch (const std::out_of_range&) {
    caught = true;
  }
  CHECK(caught);
  CHECK(parallel_sum(50, 1, 4) == sum_below(50));
}

TEST(parallel_for_runs_many_small_jobs) {
  bool right = true;
  for (int job = 0; job < 3000; ++job) right = right && parallel_sum(9, 1, 2 + job % 4) == sum_below(9);
  CHECK(right);
}

TEST(parallel_for_serves_several_callers_at_once) {
  std::atomic<int> wrong = 0, caught = 0;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 5; ++caller) {
    callers.emplace_back([&, caller] {
      for (int job = 0; job < 300; ++job) {
        wrong += parallel_sum(40 + caller, 3, 4) != sum_below(40 + caller);
        if (job % 50 != 0) continue;
        try {
          parallel_for(20, 1, 4, [](int64_t begin, int64_t) {
            if (begin == 3) throw std::runtime_error("of one caller alone");
          });
        } catch (const std::runtime_error&) {
          ++caught;
        }
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
  CHECK(caught == 5 * 6);
}

TEST(parallel_for_runs_in_parallel) { CHECK(two_threads_meet()); }

#if defined(__GLIBC__)
// Threads with stacks of 64 TiB cannot be had: the work is done by those that there are, and later calls are as before.
TEST(parallel_for_does_without_threads_that_do_not_start) {
  pthread_attr_t usual, huge;
  pthread_getattr_default_np(&usual);
  pthread_getattr_default_np(&huge);
  pthread_attr_setstacksize(&huge, size_t{1} << 46);
  pthread_setattr_default_np(&huge);
  int64_t sum = -1;
  try {
    sum = parallel_sum(100, 1, 50);
  } catch (const std::system_error&) {
  }
  pthread_setattr_default_np(&usual);
  CHECK(sum == sum_below(100));
  CHECK(two_threads_meet());
}
#endif

// A forked child has none of the pool's threads: it must not wait for them.
TEST(parallel_for_works_in_a_forked_child) {
  CHECK(parallel_sum(1000, 1, 4) == sum_below(1000));
  for (int generation = 0; generation < 3; ++generation) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      const bool first = parallel_sum(1000, 1, 4) == sum_below(1000);
      const pid_t grandchild = fork();
      if (grandchild == 0) {
        alarm(20);
        _exit(parallel_sum(500, 1, 3) == sum_below(500) ? 0 : 1);
      }
      int status = -1;
      const bool reaped = waitpid(grandchild, &status, 0) == grandchild && status == 0;
      _exit(first && reaped ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(parallel_sum(1000, 1, 4) == sum_below(1000));
  }
}
