#include "cpu/voxel_scatter.h"

#include <algorithm>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace evoworld {
namespace {

constexpr int64_t kRaysPerChunk = 4096;  // classified at a time; fixed, so that the order never depends on threads
constexpr int64_t kBackwardRaysPerChunk = 512;
constexpr int64_t kRaysPerPass = int64_t{1} << 30;  // ray numbers within a pass fit int32

// The same inputs, seen from ray `first` on.
ScatterInputs from_ray(const ScatterInputs& in, int64_t first) {
  ScatterInputs part = in;
  const int64_t bytes = in.storage == Storage::float32 ? 4 : 2;
  part.features = static_cast<const char*>(in.features) + first * in.num_channels * bytes;
  part.depth += first;
  part.origins += 3 * first;
  part.directions += 3 * first;
  if (part.weight != nullptr) part.weight += first;
  return part;
}

}  // namespace

EW_DISPATCH_ISA(scatter_classify_rays,
                (const ScatterInputs& in, int64_t begin, int64_t end, int64_t* counts, uint16_t* codes), in, begin, end,
                counts, codes)
EW_DISPATCH_ISA(scatter_order_rays,
                (const ScatterInputs& in, const uint16_t* codes, int64_t begin, int64_t end, int64_t* slots,
                 int32_t* order),
                in, codes, begin, end, slots, order)
EW_DISPATCH_ISA(scatter_forward_rays,
                (const ScatterInputs& in, const ScatterOutputs& out, int class_index, const int32_t* order,
                 int64_t begin, int64_t end),
                in, out, class_index, order, begin, end)
EW_DISPATCH_ISA(scatter_backward_rays,
                (const ScatterInputs& in, const ScatterOutputGradients& d_out, const ScatterInputGradients& gradients,
                 int64_t begin, int64_t end),
                in, d_out, gradients, begin, end)

namespace {

// A counting sort of the rays by class, chunk by chunk, then one owner for each class.
void scatter_pass(const ScatterInputs& in, const ScatterOutputs& out, int64_t num_rays, int num_threads) {
  const int64_t chunks = (num_rays + kRaysPerChunk - 1) / kRaysPerChunk;
  std::vector<int64_t> counts(chunks * kScatterClasses, 0);
  std::vector<uint16_t> codes(num_rays);
  const auto each_chunk = [&](const auto& body) {
    parallel_for(chunks, 1, num_threads, [&](int64_t chunk, int64_t) {
      body(chunk * kRaysPerChunk, std::min((chunk + 1) * kRaysPerChunk, num_rays), &counts[chunk * kScatterClasses]);
    });
  };
  each_chunk(
      [&](int64_t begin, int64_t end, int64_t* count) { scatter_classify_rays(in, begin, end, count, codes.data()); });

  std::vector<int64_t> class_begin(kScatterClasses + 1);
  int64_t total = 0;
  for (int i = 0; i < kScatterClasses; ++i) {
    class_begin[i] = total;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t count = counts[chunk * kScatterClasses + i];
      counts[chunk * kScatterClasses + i] = total;
      total += count;
    }
  }
  class_begin[kScatterClasses] = total;
  std::vector<int32_t> order(total);
  each_chunk([&](int64_t begin, int64_t end, int64_t* slots) {
    scatter_order_rays(in, codes.data(), begin, end, slots, order.data());
  });

  parallel_for(kScatterClasses, 1, num_threads, [&](int64_t i, int64_t) {
    scatter_forward_rays(in, out, static_cast<int>(i), order.data(), class_begin[i], class_begin[i + 1]);
  });
}

}  // namespace

void voxel_scatter_forward(const ScatterInputs& in, const ScatterOutputs& out, int64_t num_rays, int num_threads) {
  for (int64_t first = 0; first < num_rays; first += kRaysPerPass) {
    scatter_pass(from_ray(in, first), out, std::min(kRaysPerPass, num_rays - first), num_threads);
  }
}

void voxel_scatter_backward(const ScatterInputs& in, const ScatterOutputGradients& d_out,
                            const ScatterInputGradients& gradients, int64_t num_rays, int num_threads) {
  parallel_for(num_rays, kBackwardRaysPerChunk, num_threads,
               [&](int64_t begin, int64_t end) { scatter_backward_rays(in, d_out, gradients, begin, end); });
}

}  // namespace evoworld
