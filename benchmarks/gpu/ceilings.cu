// What the card reaches at most where the two voxel ops are limited: prints "name value" lines, bytes or additions a
// second.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/device.h"

namespace evoworld {
namespace {

constexpr int kThreads = 256;
constexpr int kRepeats = 15;            // the median counts
constexpr double kWarmUpSeconds = 0.5;  // an idle card has lowered its clocks

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    std::fprintf(stderr, "ceilings: %s\n", cudaGetErrorString(error));
    std::exit(1);
  }
}

// Rows in no order that a cache could know, for two instructions each (Numerical Recipes' generator): what is measured
// is memory, not arithmetic. The low bits of such a generator repeat soon; a row is made of the others.
__device__ __forceinline__ unsigned next_row(unsigned& state, unsigned mask) {
  state = state * 1664525u + 1013904223u;
  return (state >> 8) & mask;
}

// Numbers in [0, 1): memory of zeros or of one number can be faster than real data.
__global__ void __launch_bounds__(kThreads) fill_kernel(float* values,  // [count]
                                                        long long count) {
  for (long long i = blockIdx.x * static_cast<long long>(kThreads) + threadIdx.x; i < count;
       i += static_cast<long long>(gridDim.x) * kThreads) {
    unsigned state = static_cast<unsigned>(i) * 2654435761u;
    values[i] = static_cast<float>(next_row(state, 0xffffffu)) / 16777216.0f;
  }
}

__global__ void __launch_bounds__(kThreads) copy_kernel(const float4* source,  // [count]
                                                        float4* target,        // [count]
                                                        long long count) {
  for (long long i = blockIdx.x * static_cast<long long>(kThreads) + threadIdx.x; i < count;
       i += static_cast<long long>(gridDim.x) * kThreads) {
    target[i] = source[i];
  }
}

__global__ void __launch_bounds__(kThreads) read_kernel(const float4* source,  // [count]
                                                        float* target,         // [1], never written
                                                        long long count) {
  float sum = 0.0f;
  for (long long i = blockIdx.x * static_cast<long long>(kThreads) + threadIdx.x; i < count;
       i += static_cast<long long>(gridDim.x) * kThreads) {
    const float4 value = source[i];
    sum += value.x + value.y + value.z + value.w;
  }
  if (sum == 1.0f) *target = sum;
}

// Adds rows of 16 floats at random places: 4 lanes a row with one addition of four floats each, or 16 lanes of one.
template <bool kVector>
__global__ void __launch_bounds__(kThreads) add_rows_kernel(float* sums,  // [mask + 1, 16]
                                                            unsigned mask, int rounds) {
  constexpr unsigned kLanes = kVector ? 4 : 16;
  const unsigned thread = blockIdx.x * kThreads + threadIdx.x;
  unsigned state = thread / kLanes * 2654435761u;
  for (int round = 0; round < rounds; ++round) {
    const size_t row = next_row(state, mask);
    float* const place = sums + row * 16 + thread % kLanes * (16 / kLanes);
    if constexpr (kVector) {
      reduce_add(reinterpret_cast<float4*>(place), float4{1.0f, 1.0f, 1.0f, 1.0f});
    } else {
      reduce_add(place, 1.0f);
    }
  }
}

// Reads rows of kBytes at random places with 16 bytes a lane; blocks lie `stride` rows apart.
template <int kBytes>
__global__ void __launch_bounds__(kThreads) gather_rows_kernel(const float4* values,  // [rows, kBytes / 16]
                                                               float* target,         // [1], never written
                                                               unsigned mask, unsigned stride, int rounds) {
  constexpr unsigned kLanes = kBytes / 16;
  const float4* const own = values + (static_cast<size_t>(blockIdx.x) * stride * kLanes + threadIdx.x % kLanes);
  unsigned state = (blockIdx.x * kThreads + threadIdx.x) / kLanes * 2654435761u;
  float sum = 0.0f;
#pragma unroll 8
  for (int round = 0; round < rounds; ++round) {
    const float4 value = __ldg(own + next_row(state, mask) * kLanes);
    sum += value.x + value.y + value.z + value.w;
  }
  if (sum == 1.0f) *target = sum;
}

__global__ void nothing_kernel() {}

// Seconds of one call, by the device's clock: the median.
template <class Work>
double seconds_of(Work work) {
  cudaEvent_t start, end;
  check(cudaEventCreate(&start));
  check(cudaEventCreate(&end));
  std::vector<double> found;
  for (int repeat = 0; repeat <= kRepeats; ++repeat) {
    check(cudaEventRecord(start));
    work();
    check(cudaGetLastError());
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float milliseconds = 0.0f;
    check(cudaEventElapsedTime(&milliseconds, start, end));
    if (repeat > 0) found.push_back(milliseconds * 1e-3);  // the first one warms up
  }
  std::sort(found.begin(), found.end());
  return found[found.size() / 2];
}

void print(const char* name, double value) { std::printf("%s\t%.6g\n", name, value); }

void run() {
  cudaDeviceProp card;
  check(cudaGetDeviceProperties(&card, 0));
  const int blocks = card.multiProcessorCount * 8;
  const size_t bytes = std::min<size_t>(size_t{1} << 30, card.totalGlobalMem / 8);
  const long long count = static_cast<long long>(bytes / sizeof(float4));
  float4 *source, *target;
  check(cudaMalloc(&source, bytes));
  check(cudaMalloc(&target, bytes));
  float* const floats = reinterpret_cast<float*>(target);
  fill_kernel<<<blocks, kThreads>>>(reinterpret_cast<float*>(source), 4 * count);
  for (const auto begun = std::chrono::steady_clock::now();
       std::chrono::steady_clock::now() - begun < std::chrono::duration<double>(kWarmUpSeconds);) {
    copy_kernel<<<blocks, kThreads>>>(source, target, count);
    check(cudaDeviceSynchronize());
  }

  const double copied = seconds_of([&] { copy_kernel<<<blocks, kThreads>>>(source, target, count); });
  print("copy bytes/s", 2.0 * bytes / copied);
  const double read = seconds_of([&] { read_kernel<<<blocks, kThreads>>>(source, floats, count); });
  print("read bytes/s", bytes / read);
  const double filled = seconds_of([&] { check(cudaMemsetAsync(target, 0, bytes)); });
  print("fill bytes/s", bytes / filled);

  // Rows that stay in the L2 (between a quarter and half of it), and 16 times as many.
  const size_t resident = std::bit_floor(static_cast<size_t>(card.l2CacheSize) / 2);
  const int rounds = 256;
  const double threads = static_cast<double>(blocks) * kThreads;
  const auto add = [&](const char* one, const char* four, size_t size) {
    const unsigned mask = static_cast<unsigned>(size / 64 - 1);
    const double by_one = seconds_of([&] { add_rows_kernel<false><<<blocks, kThreads>>>(floats, mask, rounds); });
    const double by_four = seconds_of([&] { add_rows_kernel<true><<<blocks, kThreads>>>(floats, mask, rounds); });
    print(one, threads * rounds / by_one);
    print(four, 4 * threads * rounds / by_four);
  };
  add("L2 additions/s, one float at a time", "L2 additions/s, four floats at a time", resident);
  add("memory additions/s, one float at a time", "memory additions/s, four floats at a time",
      std::min(resident * 16, bytes / 2));

  // 8 KB a block, 8 blocks a multiprocessor: within any L1; then each block all over the L2.
  const int gathers = 1024;
  const double gathered = threads * gathers * 16;
  const auto gather = [&](const char* name32, const char* name64, size_t size, bool own) {
    const unsigned rows32 = static_cast<unsigned>(size / 32), rows64 = static_cast<unsigned>(size / 64);
    const double by32 = seconds_of(
        [&] { gather_rows_kernel<32><<<blocks, kThreads>>>(source, floats, rows32 - 1, own ? rows32 : 0, gathers); });
    const double by64 = seconds_of(
        [&] { gather_rows_kernel<64><<<blocks, kThreads>>>(source, floats, rows64 - 1, own ? rows64 : 0, gathers); });
    print(name32, gathered / by32);
    print(name64, gathered / by64);
  };
  gather("L1 gather of 32-byte rows, bytes/s", "L1 gather of 64-byte rows, bytes/s", 8 << 10, true);
  gather("L2 gather of 32-byte rows, bytes/s", "L2 gather of 64-byte rows, bytes/s", resident, false);

  const int launches = 2000;
  nothing_kernel<<<1, 32>>>();
  check(cudaDeviceSynchronize());
  auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < launches; ++i) nothing_kernel<<<1, 32>>>();
  check(cudaDeviceSynchronize());
  print("seconds a launch, back to back",
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / launches);
  start = std::chrono::steady_clock::now();
  for (int i = 0; i < launches / 10; ++i) {
    nothing_kernel<<<1, 32>>>();
    check(cudaDeviceSynchronize());
  }
  print("seconds a launch and its synchronisation",
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / (launches / 10));
}

}  // namespace
}  // namespace evoworld

int main() {
  evoworld::run();
  return 0;
}
