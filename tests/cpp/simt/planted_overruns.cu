// Writes out of bounds under AddressSanitizer, each in a process of its own, which must die of it.
#include "simt/sanitizers.h"

#ifdef EW_SIMT_ASAN

#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "run.h"

namespace evoworld::testing {
namespace {

// What body() writes to stderr in a process of its own; empty if the process ends well.
template <class Body>
std::string death_of(const Body& body) {
  int pipe_ends[2];
  if (pipe(pipe_ends) != 0) return "";
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    dup2(pipe_ends[1], STDERR_FILENO);
    close(pipe_ends[0]);
    body();
    _exit(0);
  }
  close(pipe_ends[1]);
  std::string said;
  char buffer[4096];
  for (ssize_t count; (count = read(pipe_ends[0], buffer, sizeof buffer)) > 0;) said.append(buffer, count);
  close(pipe_ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return status == 0 ? "" : said;
}

constexpr int kShared = __LINE__ + 1;
__global__ void shared_overrun_kernel() { dynamic_shared<float>()[threadIdx.x] = 0.0f; }

TEST(asan_reports_one_float_beyond_dynamic_shared_memory) {
  const auto run = [](size_t floats) {
    return death_of([&] { launch("planted", shared_overrun_kernel, 5, 64, floats * sizeof(float), kStream); });
  };
  for_each_schedule([&] {
    CHECK(run(64).empty());
    const std::string said = run(63);
    CHECK(contains(said, "AddressSanitizer") && contains(said, "WRITE of size 4") && contains(said, line(kShared)));
    CHECK(contains(said, "in kernel planted, block ") && contains(said, ", thread 63"));
  });
}

constexpr int kGlobal = __LINE__ + 2;
__global__ void global_overrun_kernel(float* out /* [n] */, int n) {
  if (static_cast<int>(threadIdx.x) <= n) out[threadIdx.x] = 0.0f;
}

TEST(asan_reports_writes_beyond_a_buffer) {
  const auto run = [](int n) {
    return death_of([&] {
      std::vector<float> out(50);
      launch("planted", global_overrun_kernel, 1, 64, 0, kStream, out.data(), n);
    });
  };
  for_each_schedule([&] {
    CHECK(run(49).empty());
    const std::string said = run(50);
    CHECK(contains(said, "heap-buffer-overflow") && contains(said, line(kGlobal)) && contains(said, "thread 50"));
  });
}

__global__ void local_overrun_kernel(int* out, int n) {
  int values[8];
  for (int i = 0; i <= n; ++i) values[i] = i;
  __syncthreads();
  *out = values[n / 2];
}

TEST(asan_reports_writes_beyond_a_threads_own_array) {
  const auto run = [](int n) {
    return death_of([&] {
      int out = 0;
      launch("planted", local_overrun_kernel, 1, 64, 0, kStream, &out, n);
    });
  };
  CHECK(run(7).empty());
  const std::string said = run(8);
  CHECK(contains(said, "index 8 out of bounds"));
}

__global__ void misaligned_load_kernel(const float* in, float4* out) { *out = *reinterpret_cast<const float4*>(in); }

TEST(ubsan_reports_misaligned_vector_loads) {
  const auto run = [](int offset) {
    return death_of([&] {
      alignas(16) float in[8] = {};
      float4 out;
      launch("planted", misaligned_load_kernel, 1, 1, 0, kStream, &in[offset], &out);
    });
  };
  CHECK(run(4).empty());
  CHECK(contains(run(1), "misaligned address"));
}

}  // namespace
}  // namespace evoworld::testing

#endif
