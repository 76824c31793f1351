// voxel_scatter forward on a GPU, deterministic: contributions are sorted by row, and each row has one writer.
#include <algorithm>

#include "cuda/row_vectors.h"
#include "cuda/sort.h"
#include "cuda/voxel_scatter.h"

namespace evoworld {
namespace {

using Key = unsigned long long;

constexpr int kThreads = 256;
constexpr int kBlocks = 4;  // on a multiprocessor: left to itself, the compiler spills for sm_120
constexpr int kWarps = kThreads / kWarpSize;
constexpr int64_t kRaysPerPass = int64_t{1} << 20;  // bounds the scratch memory; passes follow one another
constexpr int64_t kPiece = 256;          // contributions that a warp sums: what a crowded voxel is split into
constexpr Key kRowLimit = Key{1} << 37;  // rows of 2^31 bricks, where nothing better is known

// The contributions of a pass, 8 a ray, sorted by row and then by ray.
struct Contributions {
  const Key* rows;        // [N]; `none` where the corner is not allocated: those come last
  const int32_t* places;  // [N] 8 (ray - first_ray) + corner
  int64_t count;          // N
  int64_t first_ray;
  Key none;

  __device__ bool continues(int64_t i) const { return i > 0 && i < count && rows[i] == rows[i - 1]; }
};

// Lists the contributions of a pass.
// rows[8 i + c] = row of corner c of ray i's cell, places[8 i + c] = 8 i + c.
// Gradient: none, these are indices.
// A thread a ray.
// Reads the rays and the grid's tables; writes rows and places.
__global__ void __launch_bounds__(kThreads, kBlocks)
    voxel_scatter_rows_kernel(ScatterInputs in, int64_t first_ray, int64_t num_rays, Key none, Key* rows /* [8 R] */,
                              int32_t* places /* [8 R] */) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= num_rays) return;
  CellPoint point;
  const bool valid = ray_point(in.grid, load_ray(in, first_ray + i), point);
  for (int c = 0; c < 8; ++c) {
    const int64_t row = valid ? find_row(in.grid, corner_of(point.cell, c)) : kNoRow;
    rows[8 * i + c] = row < 0 ? none : static_cast<Key>(row);
    places[8 * i + c] = static_cast<int32_t>(8 * i + c);
  }
}

// Sums pieces of 256 contributions.
// sum += a_c weight features over the contributions of one row, in the order of the rays.
// Gradient: voxel_scatter_backward_kernel.
// A warp a piece, a lane a channel: 32 channels at a time. Rows that lie within the piece are done; what a row has in
// pieces before or after goes to `partial`: [0] of a row that began before, [1] of one that begins here and goes on.
// Reads the contributions, their rays and features; writes rows of feature_sum and weight_sum, or of partial.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    voxel_scatter_pieces_kernel(ScatterInputs in, ScatterOutputs out, Contributions from,
                                float* partial /* [pieces, 2, C + 1] */) {
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index(), begin = piece * kPiece;
  if (begin >= from.count || from.rows[begin] == from.none) return;
  const int64_t end = min(static_cast<long long>(begin + kPiece), static_cast<long long>(from.count));
  const bool continued = from.continues(begin), continues = from.continues(end);
  const int64_t channels = in.num_channels;
  const int lane = lane_index();
  for (int64_t first = 0; first == 0 || first < channels; first += kWarpSize) {
    const int64_t channel = first + lane;
    Key current = from.rows[begin];
    bool at_begin = true;
    float sum = 0.0f, weight = 0.0f;
    const auto finish = [&](bool at_end) {
      float* row = nullptr;  // of partial
      if (at_begin && continued) {
        row = partial + 2 * piece * (channels + 1);
      } else if (at_end && continues) {
        row = partial + (2 * piece + 1) * (channels + 1);
      }
      float* const features = row != nullptr ? row : out.feature_sum + static_cast<int64_t>(current) * channels;
      float* const total = row != nullptr ? row + channels : out.weight_sum + current;
      if (channel < channels) features[channel] = row != nullptr ? sum : features[channel] + sum;
      if (channel == 0) *total = row != nullptr ? weight : *total + weight;
    };
    for (int64_t batch = begin; batch < end && current != from.none; batch += kWarpSize) {
      const int count = static_cast<int>(min(static_cast<long long>(end - batch), 32ll));
      Key key = from.none;
      int64_t ray = 0;
      float share = 0.0f;
      if (lane < count) key = from.rows[batch + lane];
      if (key != from.none) {
        const int32_t place = from.places[batch + lane];
        ray = from.first_ray + place / 8;
        const ScatterRay rays = load_ray(in, ray);
        CellPoint point;
        ray_point(in.grid, rays, point);
        share = corner_weight(point.fraction, place % 8) * rays.weight;
      }
      for (int i = 0; i < count; ++i) {
        const Key row = __shfl_sync(kFullWarp, key, i);
        const int64_t source = __shfl_sync(kFullWarp, ray, i);
        const float part = __shfl_sync(kFullWarp, share, i);
        if (row != current) {
          finish(false);
          current = row;
          at_begin = false;
          sum = weight = 0.0f;
          if (row == from.none) break;
        }
        if (channel < channels) {
          float value;
          load_vector<T, 1>(static_cast<const T*>(in.features) + source * channels + channel, &value);
          sum = fmaf(part, value, sum);
        }
        weight += part;
      }
    }
    if (current != from.none) finish(true);
  }
}

// Sums the rows that several pieces share.
// feature_sum[row] += partial of the piece that it begins in, then of those that it goes on in, in their order.
// Gradient: voxel_scatter_backward_kernel.
// A warp for each piece that a row begins in and goes on from, a lane a channel.
// Reads partial and the contributions' rows at the ends of pieces; writes rows of feature_sum and weight_sum.
__global__ void __launch_bounds__(kThreads, kBlocks)
    voxel_scatter_join_kernel(ScatterOutputs out, int64_t channels, Contributions from,
                              const float* partial /* [pieces, 2, C + 1] */) {
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index(), begin = piece * kPiece;
  const int64_t end = begin + kPiece;
  if (!from.continues(end) || from.rows[end] == from.none) return;
  const Key row = from.rows[end];
  if (from.continues(begin) && from.rows[begin] == row) return;  // it began before
  // How many pieces more it goes on in: 32 at a time.
  int64_t more = 1;
  for (unsigned on = ~0u; on == ~0u;) {
    const int64_t next = end + (more + lane_index()) * kPiece;
    on = __ballot_sync(kFullWarp, next < from.count && from.rows[next] == row && from.continues(next));
    more += __ffs(static_cast<int>(~on)) == 0 ? kWarpSize : __ffs(static_cast<int>(~on)) - 1;
  }
  const int64_t stride = 2 * (channels + 1);
  for (int64_t channel = lane_index(); channel <= channels; channel += kWarpSize) {  // the last one is the weight
    const float* const parts = partial + piece * stride + channel;
    float sum = parts[channels + 1];
    for (int64_t i = 1; i <= more; ++i) sum += parts[i * stride];
    float* const to =
        channel < channels ? out.feature_sum + static_cast<int64_t>(row) * channels + channel : out.weight_sum + row;
    *to += sum;
  }
}

}  // namespace

void voxel_scatter_sorted(const ScatterInputs& in, const ScatterOutputs& out, int64_t num_rays, const Stream& stream) {
  if (num_rays == 0) return;
  const Key none = out.num_voxels > 0 ? static_cast<Key>(out.num_voxels) : kRowLimit;
  int key_bits = 1;
  while (none >> key_bits != 0) ++key_bits;
  const int64_t largest = 8 * std::min(num_rays, kRaysPerPass);
  Key* const rows = stream.scratch_of<Key>(largest);
  Key* const sorted_rows = stream.scratch_of<Key>(largest);
  int32_t* const places = stream.scratch_of<int32_t>(largest);
  int32_t* const sorted_places = stream.scratch_of<int32_t>(largest);
  float* const partial = stream.scratch_of<float>(ceil_div(largest, kPiece) * 2 * (in.num_channels + 1));
  for (int64_t first = 0; first < num_rays; first += kRaysPerPass) {
    const int64_t rays = std::min(kRaysPerPass, num_rays - first);
    launch("voxel_scatter_rows", voxel_scatter_rows_kernel, ceil_div(rays, kThreads), kThreads, 0, stream, in, first,
           rays, none, rows, places);
    sort_pairs(rows, sorted_rows, places, sorted_places, 8 * rays, key_bits, stream);
    const Contributions from = {sorted_rows, sorted_places, 8 * rays, first, none};
    const int64_t blocks = ceil_div(8 * rays, kPiece * kWarps);
    with_storage(in.storage, [&](auto t) {
      launch("voxel_scatter_pieces", voxel_scatter_pieces_kernel<decltype(t)>, blocks, kThreads, 0, stream, in, out,
             from, partial);
    });
    launch("voxel_scatter_join", voxel_scatter_join_kernel, blocks, kThreads, 0, stream, out, in.num_channels, from,
           static_cast<const float*>(partial));
  }
}

}  // namespace evoworld
