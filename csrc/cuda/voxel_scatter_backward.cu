// voxel_scatter backward on a GPU: one kernel that gathers.
#include "cuda/row_vectors.h"
#include "cuda/tiles.h"
#include "cuda/voxel_scatter.h"

namespace evoworld {
namespace {

constexpr int kThreads = 256;

// Blocks on a multiprocessor: 64 registers a thread, or 80 where 64 would spill.
template <class T, int kChannels, int kWidth>
constexpr int kBlocks = kWidth == 1 || (sizeof(T) == 2 && kChannels > 4) ? 4 : 3;

// kWidth channels a lane at once, in one load of 16 bytes from a gradient's row; kLanes lanes side by side share a ray.
template <int kChannels, int kWidth>
struct Layout {
  static constexpr int kLanes = kChannels == 0 ? 8 : kChannels / kWidth;
  static constexpr int kRays = kWarpSize / kLanes;  // that a warp works on at once
  static constexpr int kChunk = kLanes * kWidth;
};

// What a thread has found out about its ray, for the lanes that gather for it. A warp reads only what it wrote.
struct Shared {
  int64_t rays[kThreads];      // negative: none
  int64_t rows[8][kThreads];   // of the corners; where one is not allocated, that of another one
  unsigned there[kThreads];    // bit c: corner c is allocated
  float weights[8][kThreads];  // trilinear weights; 0 where nothing is allocated
  float4 points[kThreads];     // the fraction within the cell, and the weight
  float4 gradients[kThreads];  // by the fraction, and by the weight: the share of d_feature_sum
};

// The lanes of a ray gather its corners' rows: writes the ray's row of d_features, and the ray's gradients to `shared`.
template <class T, int kChannels, int kWidth>
__device__ __forceinline__ void gather_ray(const ScatterInputs& in, const ScatterOutputGradients& d_out,
                                           const ScatterInputGradients& gradients, int owner, Shared& shared) {
  using L = Layout<kChannels, kWidth>;
  const int64_t channels = kChannels > 0 ? kChannels : in.num_channels;
  const int slice = lane_index() % L::kLanes;
  const bool wants_gains = gradients.depth != nullptr || gradients.weight != nullptr;
  const int64_t ray = shared.rays[owner];
  const unsigned there = shared.there[owner];
  const float4 point = shared.points[owner];
  const Float3 fraction = {point.x, point.y, point.z};
  float corner_weights[8];
  for (int i = 0; i < 8; ++i) corner_weights[i] = shared.weights[i][owner];
  float gains[8] = {};  // this lane's share of d_feature_sum[c] . features
  for (int64_t first = 0; first < channels; first += L::kChunk) {
    const int64_t channel = first + slice * kWidth;
    if (ray < 0 || channel >= channels) continue;
    const float* const d_sums = d_out.feature_sum + channel;
    float sum[kWidth] = {};
    if (there != 0) {  // else the features may be anything, and there is no row to read
      Piece<T, kWidth> piece = {};
      if (wants_gains) piece.load(static_cast<const T*>(in.features) + ray * channels + channel);
      for (int half = 0; half < 8; half += 4) {  // four rows on their way at once: as many as registers hold
        float d_rows[4][kWidth];
        for (int i = 0; i < 4; ++i) {
          load_floats<kWidth>(d_sums + shared.rows[half + i][owner] * channels, d_rows[i]);
        }
        for (int i = 0; i < 4; ++i) {
          const float share = corner_weights[half + i] * point.w;
          for (int j = 0; j < kWidth; ++j) sum[j] = fmaf(share, d_rows[i][j], sum[j]);
        }
        if (!wants_gains) continue;
        float values[kWidth];
        piece.widen_to(values);
        for (int i = 0; i < 4; ++i) {
          for (int j = 0; j < kWidth; ++j) gains[half + i] = fmaf(d_rows[i][j], values[j], gains[half + i]);
        }
      }
    }
    if (gradients.features != nullptr) store_floats<kWidth>(gradients.features + ray * channels + channel, sum);
  }
  if (!wants_gains) return;
  for (int i = 0; i < 8; ++i) gains[i] = there >> i & 1u ? gains[i] : 0.0f;
  // All that is wanted is linear in the gains, so that lanes are summed last: 4 numbers, not 8.
  const Float3 slope = trilinear_gradient(gains, fraction);
  float sums[4] = {slope.x, slope.y, slope.z, 0.0f};
  for (int i = 0; i < 8; ++i) sums[3] = fmaf(corner_weights[i], gains[i], sums[3]);
  for (int lanes = L::kLanes / 2; lanes > 0; lanes /= 2) {
    for (int i = 0; i < 4; ++i) sums[i] += __shfl_xor_sync(kFullWarp, sums[i], lanes);
  }
  if (slice == 0) shared.gradients[owner] = make_float4(sums[0], sums[1], sums[2], sums[3]);
}

// Gradients of voxel_scatter by its inputs, from those by its outputs.
// With S_c = d_feature_sum[c] . features + d_weight_sum[c]: d_features = weight sum_c a_c d_feature_sum[c],
// d_weight = sum_c a_c S_c, d_g = weight sum_c S_c da_c/dg, d_depth = d_g . d / voxel_size, d_origins = d_g /
// voxel_size, d_directions = t d_g / voxel_size.
// Gradient: none.
// A thread finds its ray's cell and rows, in tiles of 16 x 16 pixels; then C / 4 lanes a ray gather, ray after ray.
// Reads the inputs once and 8 rows of the output gradients a ray, mostly from the cache; writes what is wanted, whole.
template <class T, int kChannels, int kWidth>
__global__ void __launch_bounds__(kThreads, (kBlocks<T, kChannels, kWidth>))
    voxel_scatter_backward_kernel(ScatterInputs in, ScatterOutputGradients d_out, ScatterInputGradients gradients,
                                  Tiling tiling) {
  using L = Layout<kChannels, kWidth>;
  Shared& shared = *dynamic_shared<Shared>();
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t ray = tile_ray<kThreads>(tiling, blockIdx.x, threadIdx.x);
  ScatterRay from = {};
  if (ray >= 0) from = load_ray(in, ray);
  CellPoint point;
  const bool valid = ray_point(in.grid, from, point);
  unsigned there = 0;
  if (valid) {
    find_corner_rows(in.grid, point.cell, &shared.rows[0][thread], kThreads);
    int64_t any = kNoRow;
    for (int i = 0; i < 8; ++i) {
      const int64_t row = shared.rows[i][thread];
      there |= row >= 0 ? 1u << i : 0u;
      any = row >= 0 ? row : any;
    }
    for (int i = 0; i < 8; ++i) {
      if (!(there >> i & 1u)) shared.rows[i][thread] = any;
    }
  }
  shared.there[thread] = there;
  float corner_weights[8];
  trilinear_weights(point.fraction, corner_weights);
  for (int i = 0; i < 8; ++i) shared.weights[i][thread] = there >> i & 1u ? corner_weights[i] : 0.0f;
  shared.rays[thread] = ray;
  shared.points[thread] = make_float4(point.fraction.x, point.fraction.y, point.fraction.z, from.weight);
  __syncwarp();
  for (int i = 0; i < kWarpSize; i += L::kRays) {
    const int owner = thread - lane_index() + i + lane_index() / L::kLanes;
    gather_ray<T, kChannels, kWidth>(in, d_out, gradients, owner, shared);
  }
  __syncwarp();

  if (ray < 0 || (gradients.depth == nullptr && gradients.weight == nullptr)) return;
  const float4 at = shared.points[thread], gathered = shared.gradients[thread];
  const Float3 fraction = {at.x, at.y, at.z};
  float gains[8];  // d_weight_sum[c]
  for (int i = 0; i < 8; ++i) {
    gains[i] = there >> i & 1u ? __ldg(d_out.weight_sum + shared.rows[i][thread]) : 0.0f;
  }
  if (gradients.weight != nullptr) {
    float d_weight = gathered.w;
    for (int i = 0; i < 8; ++i) d_weight = fmaf(shared.weights[i][thread], gains[i], d_weight);
    gradients.weight[ray] = d_weight;
  }
  if (gradients.depth == nullptr) return;
  const Float3 slope = trilinear_gradient(gains, fraction), direction = load3(in.directions, ray);
  const float scale = valid ? at.w / in.grid.voxel_size : 0.0f, t = valid ? in.depth[ray] : 0.0f;
  const Float3 d_point = {(gathered.x + slope.x) * scale, (gathered.y + slope.y) * scale,
                          (gathered.z + slope.z) * scale};
  gradients.depth[ray] =
      valid ? fmaf(d_point.z, direction.z, fmaf(d_point.y, direction.y, d_point.x * direction.x)) : 0.0f;
  float* const d_origin = gradients.origins + 3 * ray;
  float* const d_direction = gradients.directions + 3 * ray;
  d_origin[0] = d_point.x, d_origin[1] = d_point.y, d_origin[2] = d_point.z;
  d_direction[0] = d_point.x * t, d_direction[1] = d_point.y * t, d_direction[2] = d_point.z * t;
}

template <class T, int kChannels, int kWidth>
void launch_backward(const ScatterInputs& in, const ScatterOutputGradients& d_out,
                     const ScatterInputGradients& gradients, int64_t num_rays, const Stream& stream) {
  const Tiling tiles = tiling<kThreads>(in.image_width, num_rays);
  launch("voxel_scatter_backward", voxel_scatter_backward_kernel<T, kChannels, kWidth>, tiles.num_tiles, kThreads,
         sizeof(Shared), stream, in, d_out, gradients, tiles);
}

template <class T>
void choose_backward(const ScatterInputs& in, const ScatterOutputGradients& d_out,
                     const ScatterInputGradients& gradients, int64_t num_rays, const Stream& stream) {
  const bool aligned = in.num_channels % 4 == 0 && is_aligned(in.features, 4 * sizeof(T)) &&
                       is_aligned(d_out.feature_sum, sizeof(float4)) && is_aligned(gradients.features, sizeof(float4));
  if (!aligned) return launch_backward<T, 0, 1>(in, d_out, gradients, num_rays, stream);
  switch (in.num_channels) {
    case 4:
      return launch_backward<T, 4, 4>(in, d_out, gradients, num_rays, stream);
    case 8:
      return launch_backward<T, 8, 4>(in, d_out, gradients, num_rays, stream);
    case 16:
      return launch_backward<T, 16, 4>(in, d_out, gradients, num_rays, stream);
    case 32:
      return launch_backward<T, 32, 4>(in, d_out, gradients, num_rays, stream);
    case 64:
      return launch_backward<T, 64, 4>(in, d_out, gradients, num_rays, stream);
    default:
      return launch_backward<T, 0, 4>(in, d_out, gradients, num_rays, stream);
  }
}

}  // namespace

void voxel_scatter_backward(const ScatterInputs& in, const ScatterOutputGradients& d_out,
                            const ScatterInputGradients& gradients, int64_t num_rays, const Stream& stream) {
  with_storage(in.storage, [&](auto t) { choose_backward<decltype(t)>(in, d_out, gradients, num_rays, stream); });
}

}  // namespace evoworld
