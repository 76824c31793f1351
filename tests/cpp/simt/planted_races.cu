// The race detector: planted races are found, with both lines, and correct programs are not accused.
#ifdef EW_SIMT_RACE

#include <vector>

#include "run.h"

namespace evoworld::testing {
namespace {

constexpr int kMissing = __LINE__ + 4;
__global__ void missing_barrier_kernel(float* out) {
  float* const values = dynamic_shared<float>();
  const unsigned i = threadIdx.x;
  values[i] = static_cast<float>(i);
  // __syncthreads();
  out[i] = values[blockDim.x - 1 - i];
}

TEST(race_reports_a_missing_barrier) {
  for_each_schedule([] {
    float out[64];
    const std::string found = report(missing_barrier_kernel, 1, 64, 64 * sizeof(float), &out[0]);
    CHECK(contains(found, "race: ") && contains(found, "shared memory") && contains(found, "kernel planted, block 0"));
    CHECK(contains(found, line(kMissing)) && contains(found, line(kMissing, 2)));
  });
}

__global__ void missing_barrier_in_statics_kernel(float* out) {
  __shared__ float values[64];
  values[threadIdx.x] = 1.0f;
  out[threadIdx.x] = values[63 - threadIdx.x];
}

TEST(race_reports_a_missing_barrier_over_static_shared_memory) {
  for_each_schedule([] {
    float out[64];
    const std::string found = report(missing_barrier_in_statics_kernel, 1, 64, 0, &out[0]);
    CHECK(contains(found, "race: ") && contains(found, "shared memory"));
  });
}

__global__ void missing_second_barrier_kernel(float* out) {
  float* const values = dynamic_shared<float>();
  for (int round = 0; round < 2; ++round) {
    values[threadIdx.x] = static_cast<float>(round);
    __syncthreads();
    out[threadIdx.x] = values[63 - threadIdx.x];  // while others write already for the next round
  }
}

TEST(race_reports_a_write_after_a_read) {
  for_each_schedule([] {
    float out[64];
    CHECK(contains(report(missing_second_barrier_kernel, 1, 64, 64 * sizeof(float), &out[0]), "race: "));
  });
}

constexpr int kMissingWarp = __LINE__ + 4;
__global__ void missing_syncwarp_kernel(int* out) {
  int* const values = dynamic_shared<int>();
  const int lane = lane_index();
  values[lane] = lane;
  if (__ballot_sync(kFullWarp, 1) == 0) return;  // which orders no memory
  out[lane] = values[lane ^ 1];
}

TEST(race_reports_a_missing_syncwarp) {
  for_each_schedule([] {
    int out[32];
    const std::string found = report(missing_syncwarp_kernel, 1, 32, 128, &out[0]);
    CHECK(contains(found, "race: ") && contains(found, line(kMissingWarp)) && contains(found, line(kMissingWarp, 2)));
  });
}

__global__ void half_syncwarp_kernel(int* out) {
  int* const values = dynamic_shared<int>();
  const int lane = lane_index();
  values[lane] = lane;
  __syncwarp(lane < 16 ? 0x0000ffffu : 0xffff0000u);
  out[lane] = values[31 - lane];  // of the other half
}

TEST(race_reports_a_syncwarp_that_leaves_lanes_out) {
  for_each_schedule([] {
    int out[32];
    CHECK(contains(report(half_syncwarp_kernel, 1, 32, 128, &out[0]), "race: "));
  });
}

__global__ void lost_update_kernel(float* sum) { *sum += 1.0f; }

TEST(race_reports_lost_updates) {
  for_each_schedule([] {
    float sum = 0;
    CHECK(contains(report(lost_update_kernel, 1, 2, 0, &sum), "race: "));
    CHECK(contains(report(lost_update_kernel, 2, 1, 0, &sum), "global memory"));  // between blocks
  });
}

__global__ void mixed_kernel(int* sum) {
  if (threadIdx.x == 40) {
    *sum = 0;
  } else {
    atomicAdd(sum, 1);
  }
}

TEST(race_reports_a_plain_write_among_atomics) {
  for_each_schedule([] {
    int sum = 0;
    CHECK(contains(report(mixed_kernel, 1, 64, 0, &sum), "atomically"));
  });
}

__global__ void bytes_kernel(unsigned char* bytes, int step) { bytes[static_cast<int>(threadIdx.x) * step / 2] = 1; }

TEST(race_tells_bytes_of_a_word_apart) {
  for_each_schedule([] {
    unsigned char bytes[128] = {};
    CHECK(report(bytes_kernel, 1, 64, 0, &bytes[0], 2).empty());
    CHECK(contains(report(bytes_kernel, 1, 64, 0, &bytes[0], 1), "race: writes 1 bytes"));
  });
}

__global__ void words_over_bytes_kernel(uint16_t* halves) {
  if (threadIdx.x == 0) {
    halves[1] = 3;
  } else {
    atomicAdd(reinterpret_cast<unsigned*>(halves), 1u);
  }
}

TEST(race_sees_a_half_under_a_word) {
  for_each_schedule([] {
    alignas(4) uint16_t halves[2] = {};
    CHECK(contains(report(words_over_bytes_kernel, 1, 2, 0, &halves[0]), "race: "));
  });
}

constexpr int kBeyond = __LINE__ + 1;
__global__ void beyond_shared_kernel() { dynamic_shared<float>()[threadIdx.x] = 0.0f; }

TEST(race_reports_writes_beyond_dynamic_shared_memory) {
  CHECK(report(beyond_shared_kernel, 2, 64, 64 * sizeof(float)).empty());
  const std::string found = report(beyond_shared_kernel, 2, 64, 63 * sizeof(float));
  CHECK(contains(found, "thread 63") && contains(found, "4 bytes beyond the end of the block's shared memory"));
  CHECK(contains(found, line(kBeyond)));
}

__global__ void misaligned_load_kernel(const float* in, float4* out) { *out = *reinterpret_cast<const float4*>(in); }

TEST(race_reports_misaligned_vector_loads) {
  alignas(16) float in[8] = {};
  float4 out;
  CHECK(report(misaligned_load_kernel, 1, 1, 0, &in[4], &out).empty());
  CHECK(contains(report(misaligned_load_kernel, 1, 1, 0, &in[1], &out), "at an address that is no multiple of it"));
}

__global__ void reduction_kernel(const float* in /* [blocks, threads] */, float* sums /* [blocks] */) {
  float* const values = dynamic_shared<float>();
  const int i = static_cast<int>(threadIdx.x);
  values[i] = in[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  for (int half = static_cast<int>(blockDim.x) / 2; half > 0; half /= 2) {
    if (i < half) values[i] += values[i + half];
    __syncthreads();
  }
  if (i == 0) sums[blockIdx.x] = values[0];
}

__global__ void warp_reduction_kernel(const float* in, float* sum) {
  __shared__ float values[64];
  const unsigned i = threadIdx.x;
  values[i] = in[blockIdx.x * blockDim.x + i];
  for (unsigned half = 16; half > 0; half /= 2) {
    __syncwarp();
    const float other = values[i ^ half];
    __syncwarp();
    values[i] += other;
  }
  if (lane_index() == 0) atomicAdd(sum, values[i]);
}

__global__ void histogram_kernel(const float* in, int* bins /* [8] */) {
  atomicAdd(&bins[static_cast<int>(in[blockIdx.x * blockDim.x + threadIdx.x]) % 8], 1);
}

// Lane 0 tells lane 1, which tells lane 2: the three never meet.
__global__ void chain_kernel(int* out) {
  int* const value = dynamic_shared<int>();
  const int lane = lane_index();
  if (lane == 0) *value = 5;
  if (lane < 2) __syncwarp(0x3);
  if (lane == 1 || lane == 2) __syncwarp(0x6);
  if (lane == 2) *out = *value;
}

TEST(race_finds_none_in_correct_programs) {
  std::vector<float> in(8 * 64);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 16);
  const float* const values = in.data();
  for_each_schedule([&] {
    std::vector<float> sums(8);
    CHECK(report(reduction_kernel, 8, 64, 64 * sizeof(float), values, sums.data()).empty());
    for (const float sum : sums) CHECK(sum == 480.0f);
    float sum = 0;
    CHECK(report(warp_reduction_kernel, 8, 64, 0, values, &sum).empty());
    CHECK(sum == 8 * 480.0f);
    int bins[8] = {};
    CHECK(report(histogram_kernel, 8, 64, 0, values, &bins[0]).empty());
    for (const int count : bins) CHECK(count == 64);
    int out = 0;
    CHECK(report(chain_kernel, 1, 32, 4, &out).empty());
    CHECK(out == 5);
  });
}

}  // namespace
}  // namespace evoworld::testing

#endif
