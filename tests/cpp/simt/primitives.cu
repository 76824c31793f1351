// Every primitive that kernels are written with does what CUDA's documentation says, in any order of the threads.
#include <algorithm>
#include <array>
#include <vector>

#include "run.h"

namespace evoworld::testing {
namespace {

static_assert(sizeof(float4) == 16 && alignof(float4) == 16 && alignof(int2) == 8 && alignof(uint4) == 16);
static_assert(sizeof(float3) == 12 && alignof(float3) == 4 && alignof(double4) == 16);

constexpr unsigned kEven = 0x55555555u;

__global__ void count_visits_kernel(int* visits /* [blocks, threads] */, int* wrong) {
  atomicAdd(&visits[blockIdx.x * blockDim.x + threadIdx.x], 1);
  const bool right = threadIdx.y == 0 && threadIdx.z == 0 && blockIdx.y == 0 && gridDim.x == 37 && gridDim.y == 1 &&
                     blockDim.x == 96 && blockDim.y == 1;
  if (!right) atomicAdd(wrong, 1);
}

TEST(simt_runs_every_thread_of_every_block_once) {
  for_each_schedule([] {
    std::vector<int> visits(37 * 96, 0);
    int wrong = 0;
    launch("count_visits", count_visits_kernel, 37, 96, 0, kStream, visits.data(), &wrong);
    CHECK(wrong == 0 && std::count(visits.begin(), visits.end(), 1) == 37 * 96);
  });
}

__global__ void order_kernel(int* next, int* order /* [blocks * threads] */) {
  order[atomicAdd(next, 1)] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

std::vector<int> order_for(uint64_t seed) {
  const simt::Settings before = simt::settings();
  simt::settings() = {seed, 1};
  std::vector<int> order(8 * 64);
  int next = 0;
  launch("order", order_kernel, 8, 64, 0, kStream, &next, order.data());
  simt::settings() = before;
  return order;
}

TEST(simt_seeds_choose_the_order) {
  const std::vector<int> in_order = order_for(0);
#ifndef EW_SIMT_RACE  // which switches at random accesses too
  CHECK(std::is_sorted(in_order.begin(), in_order.end()));
#endif
  CHECK(order_for(5) == order_for(5));
  CHECK(order_for(5) != in_order);
  CHECK(order_for(5) != order_for(6));
}

__global__ void shared_kernel(int* wrong) {
  __shared__ int table[64];
  unsigned char* const fresh = dynamic_shared<unsigned char>();
  const uintptr_t address = reinterpret_cast<uintptr_t>(fresh);
  if (fresh[threadIdx.x] != 0xff || address % 16 != 0 || address % 32 == 0) atomicAdd(wrong, 1);
  __syncthreads();
  fresh[threadIdx.x] = static_cast<unsigned char>(threadIdx.x);
  table[threadIdx.x] = static_cast<int>(blockIdx.x + threadIdx.x);
  __syncthreads();
  const unsigned other = 63 - threadIdx.x;
  if (fresh[other] != other || table[other] != static_cast<int>(blockIdx.x + other)) atomicAdd(wrong, 1);
}

TEST(simt_shared_memory_is_the_blocks_and_begins_as_nan) {
  for_each_schedule([] {
    int wrong = 0;
    launch("shared", shared_kernel, 50, 64, 64, kStream, &wrong);
    CHECK(wrong == 0);
  });
}

__global__ void barrier_kernel(float* sums /* [blocks] */, int* wrong) {
  float* const values = dynamic_shared<float>();
  const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  values[i] = static_cast<float>(i);
  __syncthreads();
  for (int half = n / 2; half > 0; half /= 2) {
    if (i < half) values[i] += values[i + half];
    __syncthreads();
  }
  if (i == 0) sums[blockIdx.x] = values[0];
  const int thirds = __syncthreads_count(i % 3 == 0);
  const int any = __syncthreads_or(i == 5), none = __syncthreads_or(i < 0);
  const int all = __syncthreads_and(i < n), not_all = __syncthreads_and(i != 7);
  if (thirds != (n + 2) / 3 || !any || none || !all || not_all) atomicAdd(wrong, 1);
}

TEST(simt_barriers_reduce_a_block) {
  for_each_schedule([] {
    float sums[3] = {};
    int wrong = 0;
    launch("barrier", barrier_kernel, 3, 1024, 1024 * sizeof(float), kStream, sums, &wrong);
    CHECK(wrong == 0);
    for (const float sum : sums) CHECK(sum == 1023.0f * 512.0f);
  });
}

// out[k][thread]: the k-th primitive's result
constexpr int kResults = 24;

__global__ void warp_kernel(int (*out)[64]) {
  const int lane = lane_index(), i = static_cast<int>(threadIdx.x);
  int k = 0;
  out[k++][i] = __shfl_sync(kFullWarp, i * 10, lane ^ 5);
  out[k++][i] = __shfl_sync(kFullWarp, i * 10, 3, 8);
  out[k++][i] = __shfl_sync(kFullWarp, i * 10, 35);
  out[k++][i] = __shfl_up_sync(kFullWarp, i, 3);
  out[k++][i] = __shfl_up_sync(kFullWarp, i, 1, 4);
  out[k++][i] = __shfl_down_sync(kFullWarp, i, 16);
  out[k++][i] = __shfl_down_sync(kFullWarp, i, 2, 8);
  out[k++][i] = __shfl_xor_sync(kFullWarp, i, 31);
  out[k++][i] = __shfl_xor_sync(kFullWarp, i, 8, 8);
  out[k++][i] = static_cast<int>(__shfl_xor_sync(kFullWarp, (1ll << 40) + i, 1) >> 38);
  out[k++][i] = static_cast<int>(4 * __shfl_down_sync(kFullWarp, 0.25f * static_cast<float>(i), 1));
  out[k++][i] = static_cast<int>(__ballot_sync(kFullWarp, lane % 3 == 0));
  out[k++][i] = __any_sync(kFullWarp, i == 40);
  out[k++][i] = __all_sync(kFullWarp, i < 40);
  out[k++][i] = static_cast<int>(__match_any_sync(kFullWarp, lane / 8));
  out[k++][i] = static_cast<int>(__match_any_sync(kFullWarp, static_cast<unsigned long long>(lane % 2) << 40));
  out[k++][i] = __reduce_add_sync(kFullWarp, i - 20);
  out[k++][i] = __reduce_min_sync(kFullWarp, lane - 20);
  out[k++][i] = static_cast<int>(__reduce_max_sync(kFullWarp, static_cast<unsigned>(lane - 20)));
  out[k++][i] = static_cast<int>(__reduce_or_sync(kFullWarp, 1u << (lane / 2)));
  out[k++][i] = static_cast<int>(__reduce_and_sync(kFullWarp, ~(1u << (lane / 2))));
  // The two halves of a branch meet in their own masks, at once and each in its time.
  if (lane % 2 == 0) {
    out[k++][i] = __shfl_sync(kEven, i, (lane + 2) % 32);
    out[k++][i] = static_cast<int>(__ballot_sync(kEven, lane < 16));
    out[k++][i] = __reduce_max_sync(kEven, lane);
  } else {
    out[k++][i] = __shfl_sync(~kEven, i, (lane + 2) % 32);
    out[k++][i] = static_cast<int>(__match_any_sync(~kEven, lane < 16 ? 1 : 2));
    out[k++][i] = __reduce_add_sync(~kEven, 1);
  }
}

TEST(simt_warp_primitives_follow_cuda) {
  for_each_schedule([] {
    static int out[kResults][64];
    launch("warp", warp_kernel, 1, 64, 0, kStream, out);
    for (int i = 0; i < 64; ++i) {
      const int lane = i % 32, first = i - lane;
      const bool even = lane % 2 == 0;
      unsigned by_three = 0;
      for (int other = 0; other < 32; other += 3) by_three |= 1u << other;
      const int add = first == 0 ? 496 - 640 : 1520 - 640;
      const int expected[kResults] = {
          (first + (lane ^ 5)) * 10,
          (first + lane / 8 * 8 + 3) * 10,
          (first + 3) * 10,
          lane < 3 ? i : i - 3,
          lane % 4 == 0 ? i : i - 1,
          lane < 16 ? i + 16 : i,
          lane % 8 < 6 ? i + 2 : i,
          first + 31 - lane,
          (lane & 8) != 0 ? i - 8 : i,  // a later group cannot be read, an earlier one can
          4,
          lane < 31 ? i + 1 : i,
          static_cast<int>(by_three),
          first == 32,
          first == 0,
          static_cast<int>(0xffu << lane / 8 * 8),
          static_cast<int>(even ? kEven : ~kEven),
          add,
          -20,
          -1,
          0xffff,
          static_cast<int>(0xffff0000u),
          first + (lane + 2) % 32,
          static_cast<int>(even ? kEven & 0xffffu : ~kEven & (lane < 16 ? 0xffffu : 0xffff0000u)),
          even ? 30 : 16,
      };
      for (int k = 0; k < kResults; ++k) CHECK(out[k][i] == expected[k]);
    }
  });
}

struct Sums {
  int i = 0, smallest = 1000, largest = -1000, bits_or = 0, bits_and = -1, by_cas = 0;
  unsigned u = 0, u_largest = 0, seen = 0;
  unsigned long long l = 0, l_largest = 0;
  float f = 0;
  double d = 0;
  float2 f2{};
  float4 f4{};
};

__global__ void atomics_kernel(Sums* sums, int* tickets /* [n] */) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  tickets[atomicAdd(&sums->i, 1)] = i;
  atomicMin(&sums->smallest, 100 - i);
  atomicMax(&sums->largest, i - 600);
  atomicOr(&sums->bits_or, 1 << (i % 32));
  atomicAnd(&sums->bits_and, ~(1 << (i % 7)));
  atomicAdd(&sums->u, 0xffffffffu);
  atomicMax(&sums->u_largest, static_cast<unsigned>(-i));
  atomicAdd(&sums->l, 1ull << 33);
  atomicMax(&sums->l_largest, static_cast<unsigned long long>(i) << 32);
  atomicAdd(&sums->f, 0.5f);
  atomicAdd(&sums->d, 0.25);
  atomicAdd(&sums->f2, make_float2(1.0f, 2.0f));
  reduce_add(&sums->f4, make_float4(1.0f, 2.0f, 3.0f, 4.0f));
  int before = atomicCAS(&sums->by_cas, 0, 0);
  while (true) {
    const int now = atomicCAS(&sums->by_cas, before, before + 3);
    if (now == before) break;
    before = now;
  }
  if (i == 7) atomicExch(&sums->seen, 77u);
}

TEST(simt_atomics_lose_nothing) {
  for_each_schedule([] {
    constexpr int n = 8 * 64;
    Sums sums;
    std::vector<int> tickets(n);
    launch("atomics", atomics_kernel, 8, 64, 0, kStream, &sums, tickets.data());
    std::sort(tickets.begin(), tickets.end());
    for (int i = 0; i < n; ++i) CHECK(tickets[i] == i);
    CHECK(sums.i == n && sums.smallest == 101 - n && sums.largest == n - 601);
    CHECK(sums.bits_or == -1 && sums.bits_and == ~0x7f && sums.by_cas == 3 * n && sums.seen == 77);
    CHECK(sums.u == 0u - n && sums.u_largest == 0xffffffffu);
    CHECK(sums.l == static_cast<uint64_t>(n) << 33 && sums.l_largest == static_cast<uint64_t>(n - 1) << 32);
    CHECK(sums.f == n / 2 && sums.d == n / 4 && sums.f2.x == n && sums.f2.y == 2 * n);
    CHECK(sums.f4.x == n && sums.f4.y == 2 * n && sums.f4.z == 3 * n && sums.f4.w == 4 * n);
  });
}

__global__ void lock_kernel(int* lock, int* count) {
  while (atomicCAS(lock, 0, 1) != 0) {
  }
  const int before = atomicAdd(count, 0);
  for (int i = 0; i < 20; ++i) atomicAdd(count + 1, 1);  // others run meanwhile, and spin
  atomicExch(count, before + 1);
  __threadfence();
  atomicExch(lock, 0);
}

TEST(simt_threads_that_spin_let_others_run) {
  for_each_schedule([] {
    int lock = 0, count[2] = {0, 0};
    launch("lock", lock_kernel, 2, 64, 0, kStream, &lock, static_cast<int*>(count));
    CHECK(count[0] == 128 && count[1] == 20 * 128);
  });
}

TEST(simt_bits_and_numbers) {
  CHECK(__popc(0xf0f0u) == 8 && __popcll(1ull << 63 | 1) == 2);
  CHECK(__ffs(0) == 0 && __ffs(8) == 4 && __ffsll(1ll << 40) == 41);
  CHECK(__clz(0) == 32 && __clz(1) == 31 && __clz(-1) == 0 && __clzll(0) == 64 && __clzll(1) == 63);
  CHECK(__brev(1) == 1u << 31 && __brevll(2) == 1ull << 62);
  CHECK(__float_as_uint(1.0f) == 0x3f800000u && __uint_as_float(0xc0000000u) == -2.0f && __float_as_int(-0.0f) < 0);
  CHECK(min(3, -4) == -4 && max(3u, 4u) == 4u && min(2.0f, NAN) == 2.0f && max(1ll << 40, 2ll) == 1ll << 40);
  CHECK(dim3(7).y == 1 && make_float4(1, 2, 3, 4).w == 4);
}

__global__ void nothing_kernel() {}

TEST(simt_launches_that_no_gpu_takes) {
  CHECK(contains(report(nothing_kernel, 1, 1025, 0), "1025 threads a block, expected 1 to 1024"));
  CHECK(contains(report(nothing_kernel, 1, 0, 0), "0 threads a block"));
  CHECK(contains(report(nothing_kernel, 1, 32, 100 << 10), "102400 bytes of shared memory a block"));
  CHECK(report(nothing_kernel, 0, 32, 0).empty());
  CHECK(report(nothing_kernel, 1, 1024, 99 << 10).empty());
}

}  // namespace
}  // namespace evoworld::testing
