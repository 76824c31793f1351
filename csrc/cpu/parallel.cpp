#include "cpu/parallel.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace evoworld {
namespace {

struct Job {
  int64_t count;
  int64_t grain;
  const std::function<void(int64_t, int64_t)>& body;
  std::atomic<int64_t> next{0};
  int free_seats;  // threads that may still join; guarded by the pool's mutex
  int working = 0;
  std::exception_ptr error;
  std::mutex error_mutex;

  void work() {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) return;
      try {
        body(begin, std::min(begin + grain, count));
      } catch (...) {
        const std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(count);
      }
    }
  }
};

class Pool {
 public:
  // False when the pool is busy with another caller's job: that caller's threads are the parallelism then.
  bool run(Job& job) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (job_ != nullptr) return false;
    try {
      while (num_threads_ < job.free_seats) {
        std::thread([this] { serve(); }).detach();
        ++num_threads_;
      }
    } catch (const std::system_error&) {  // no more to be had: those that there are will do
    }
    job_ = &job;
    lock.unlock();
    wake_.notify_all();
    job.work();
    lock.lock();
    job_ = nullptr;
    done_.wait(lock, [&] { return job.working == 0; });
    return true;
  }

 private:
  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return job_ != nullptr && job_->free_seats > 0; });
      Job& job = *job_;
      --job.free_seats;
      ++job.working;
      lock.unlock();
      job.work();
      lock.lock();
      if (--job.working == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int num_threads_ = 0;
};

// Never destroyed: its threads may outlive static destruction. A forked child has none of its threads, so it gets a new
// one.
Pool& pool() {
  static std::atomic<Pool*> current{nullptr};
  static std::atomic<pid_t> owner{0};
  static std::mutex mutex;
  if (owner.load(std::memory_order_acquire) != getpid()) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (owner.load() != getpid()) {
      current.store(new Pool);
      owner.store(getpid(), std::memory_order_release);
    }
  }
  return *current.load();
}

thread_local int chosen_threads = 0;

}  // namespace

int chosen_num_threads() { return chosen_threads; }

void parallel_for(int64_t count, int64_t grain, int num_threads, const std::function<void(int64_t, int64_t)>& body) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t chunks = (count + grain - 1) / grain;
  Job job{count, grain, body, {}, static_cast<int>(std::min<int64_t>(num_threads, chunks)) - 1, 0, {}, {}};
  if (job.free_seats <= 0 || !pool().run(job)) job.work();
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace evoworld

// Called by evoworld.ops.threads through ctypes; 0 goes back to torch's number.
extern "C" __attribute__((visibility("default"))) void evoworld_cpu_use_threads(int count) {
  evoworld::chosen_threads = count;
}
