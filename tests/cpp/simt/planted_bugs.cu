// Bugs planted on purpose, each found, with its kernel, block, thread and line.
#include <vector>

#include "run.h"

namespace evoworld::testing {
namespace {

constexpr int kDivergent = __LINE__ + 4;
__global__ void divergent_barrier_kernel() {
  __syncwarp();
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

TEST(simt_reports_divergent_barriers) {
  for_each_schedule([] {
    const std::string found = report(divergent_barrier_kernel, 3, 64, 0);
    CHECK(contains(found, "divergent barrier") && contains(found, "kernel planted, block "));
    CHECK(contains(found, line(kDivergent)) && contains(found, line(kDivergent, 2)));
  });
}

constexpr int kAfterReturn = __LINE__ + 3;
__global__ void barrier_after_return_kernel(int num_items) {
  if (static_cast<int>(threadIdx.x) >= num_items) return;
  __syncthreads();
}

TEST(simt_reports_barriers_after_a_thread_returned) {
  for_each_schedule([] {
    const std::string found = report(barrier_after_return_kernel, 1, 64, 0, 50);
    CHECK(contains(found, "returned") && contains(found, "__syncthreads") && contains(found, line(kAfterReturn)));
    CHECK(report(barrier_after_return_kernel, 1, 64, 0, 64).empty());
  });
}

constexpr int kDeadlock = __LINE__ + 4;
__global__ void deadlock_kernel() {
  const bool first_half = lane_index() < 16;
  if (first_half) {
    __ballot_sync(kFullWarp, 1);  // the other half goes to the barrier
  }
  __syncthreads();
}

TEST(simt_reports_deadlocks) {
  for_each_schedule([] {
    const std::string found = report(deadlock_kernel, 1, 64, 0);
    CHECK(contains(found, "deadlock: 16 threads wait here") || contains(found, "deadlock: 32 threads wait here"));
    CHECK(contains(found, line(kDeadlock)) && contains(found, "__ballot_sync") && contains(found, "__syncthreads"));
  });
}

constexpr int kReturned = __LINE__ + 3;
__global__ void warp_after_return_kernel(int* out) {
  if (lane_index() == 9) return;
  out[threadIdx.x] = __shfl_xor_sync(kFullWarp, 1, 1);
}

TEST(simt_reports_masks_that_name_returned_lanes) {
  for_each_schedule([] {
    int out[32];
    const std::string found = report(warp_after_return_kernel, 1, 32, 0, &out[0]);
    CHECK(contains(found, "returned") && contains(found, "__shfl_xor_sync") && contains(found, line(kReturned)));
  });
}

constexpr int kOutside = __LINE__ + 3;
__global__ void shuffle_outside_kernel(int* out) {
  if (lane_index() < 16) {
    out[lane_index()] = __shfl_down_sync(0x0000ffffu, lane_index(), 1);  // lane 15 reads lane 16
  }
}

TEST(simt_reports_shuffles_from_outside_the_mask) {
  for_each_schedule([] {
    int out[32];
    const std::string found = report(shuffle_outside_kernel, 1, 32, 0, &out[0]);
    CHECK(contains(found, "thread 15") && contains(found, line(kOutside)));
    CHECK(contains(found, "__shfl_down_sync: reads lane 16, which the mask 0x0000ffff leaves out"));
  });
}

__global__ void not_named_kernel() { __syncwarp(0x7fffffffu); }

TEST(simt_reports_masks_without_the_caller) {
  CHECK(contains(report(not_named_kernel, 1, 32, 0), "the mask 0x7fffffff leaves out the lane 31 that calls"));
}

constexpr int kMismatch = __LINE__ + 1;
__global__ void mismatch_kernel() { __syncwarp(lane_index() < 16 ? kFullWarp : 0xffff00ffu); }

TEST(simt_reports_masks_that_disagree) {
  for_each_schedule([] {
    const std::string found = report(mismatch_kernel, 1, 32, 0);
    CHECK(contains(found, "waits for this thread") && contains(found, line(kMismatch)));
  });
}

__global__ void partial_warp_kernel() { __syncwarp(); }

TEST(simt_reports_masks_that_name_lanes_beyond_the_block) {
  CHECK(contains(report(partial_warp_kernel, 1, 40, 0), "names lane 8, which has returned or is none of the block's"));
}

__global__ void misaligned_kernel(float* sums) {
  atomicAdd(reinterpret_cast<float4*>(sums + 1), make_float4(1.0f, 1.0f, 1.0f, 1.0f));
}

TEST(simt_reports_misaligned_vector_atomics) {
  alignas(16) float sums[8] = {};
  CHECK(contains(report(misaligned_kernel, 1, 1, 0, &sums[0]), "the address is not a multiple of 16"));
}

__global__ void assume_kernel(int n) { __builtin_assume(n > 3); }

TEST(simt_reports_false_assumptions) {
  CHECK(report(assume_kernel, 1, 32, 0, 4).empty());
  CHECK(contains(report(assume_kernel, 1, 32, 0, 3), "assumed: n > 3"));
}

__global__ void uninitialised_kernel(float* out) { *out = dynamic_shared<float>()[0]; }

TEST(simt_shows_shared_memory_that_nobody_wrote) {
  float out = 0;
  CHECK(report(uninitialised_kernel, 1, 1, 4, &out).empty());
  CHECK(out != out);
}

__global__ void sum_kernel(int* sum) { atomicAdd(sum, 1); }

TEST(simt_works_on_after_a_report) {
  for (int i = 0; i < 20; ++i) {
    int sum = 0;
    CHECK(!report(divergent_barrier_kernel, 3, 64, 0).empty());
    CHECK(report(sum_kernel, 30, 64, 0, &sum).empty());
    CHECK(sum == 30 * 64);
  }
}

}  // namespace
}  // namespace evoworld::testing
