#include "cuda/device.h"
#include "cuda/ray_walk.h"
#include "cuda/row_vectors.h"
#include "cuda/tiles.h"
#include "cuda/volume_render.h"

namespace evoworld {
namespace {

constexpr int kThreads = 128;      // 16 x 8 pixels
constexpr int kMinBlocks = 5;      // of a processor: 20 warps, at 96 registers a thread
constexpr int kWideMinBlocks = 4;  // 16 warps, at 128
constexpr int kNarrowRow = 32;     // bytes: rows up to here are read by one lane, into registers

struct WideShared {
  uint32_t rows[8][kThreads];  // of the corners of each thread's cell
  float weights[8][kThreads];  // their W_c
  int64_t rays[kThreads];      // -1: none
};

// What a ray gathers but for features, and what its current cell gathers: the rows of the corners and their W_c.
struct RayGather {
  RayState state;
  float depth = 0.0f;
  float opacity = 0.0f;
  uint32_t rows[8];

  // Takes the walk through the samples of the cell that it stands in. False: none had any density.
  __device__ __forceinline__ bool pass_cell(const RenderInputs& in, RayWalk& walk) {
    walk.find_rows(in.grid, 0, rows);
    float densities[8];
    const unsigned allocated = load_densities(in.density, rows, densities);
    state.clear();
    Float3 fraction = cell_point(walk.line, walk.distance(in.march)).fraction;
    do {
      if (!pass_sample(in.march, densities, walk.distance(in.march), fraction, state, depth, opacity)) {
        walk.k = walk.end;
        break;
      }
    } while (walk.stay(in.march, fraction));
#pragma unroll
    for (int i = 0; i < 8; ++i) state.weights[i] = allocated >> i & 1 ? state.weights[i] : 0.0f;
    return state.touched;
  }
};

}  // namespace

// Computes features, depth and opacity of rays, for rows of features that fit a lane's registers.
//   features = sum_cells sum_c W_c F_c,  W_c = sum_k w_k a_c(k);  depth = sum_k w_k t_k;  opacity = sum_k w_k
// Gradient: volume_render_backward_kernel.
// A lane to a ray, a warp to 8 x 4 pixels: the lanes walk to their next cell that matters, then pass it together.
// Reads tables, densities and rows through the L1, each row in whole vectors; writes each output once.
template <class T, int kChannels>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    volume_render_forward_kernel(const RenderInputs in, const uint64_t* cells /* [P, 512] */, const RenderOutputs out,
                                 const Tiling tiling) {
  constexpr int kVector = kChannels * static_cast<int>(sizeof(T)) < 16 ? kChannels : 16 / static_cast<int>(sizeof(T));
  const int64_t ray = tile_ray<kThreads>(tiling, blockIdx.x, threadIdx.x);
  RayWalk walk;
  RayGather gather;
  float sum[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) sum[c] = 0.0f;
  if (ray >= 0) walk.start(in, ray);
  const float inverse_step = 1.0f / in.march.step;
  while (true) {
    const bool here = walk.seek(in, cells, inverse_step);
    if (!__any_sync(kFullWarp, here)) break;
    if (!here || !gather.pass_cell(in, walk)) continue;
#pragma unroll
    for (int c = 0; c < kChannels; c += kVector) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float values[kVector];
        load_vector<T, kVector>(
            static_cast<const T*>(in.features) + static_cast<int64_t>(gather.rows[i]) * kChannels + c, values);
#pragma unroll
        for (int j = 0; j < kVector; ++j) sum[c + j] = fmaf(gather.state.weights[i], values[j], sum[c + j]);
      }
    }
  }
  if (ray < 0) return;
  store_floats<kChannels>(out.features + ray * kChannels, sum);
  out.depth[ray] = gather.depth;
  out.opacity[ray] = gather.opacity;
}

// Computes the same for rows of any length.
//   features += sum_c W_c F_c at each cell that a ray leaves
// Gradient: volume_render_backward_kernel.
// Lanes walk as above; then `share.lanes` lanes serve each ray that has passed a cell, a vector of channels each.
// Reads as above, rows coalesced; the sums lie in the output rows, which stay in the caches meanwhile.
template <class T, int kVector>
__global__ void __launch_bounds__(kThreads, kWideMinBlocks)
    volume_render_forward_wide_kernel(const RenderInputs in, const uint64_t* cells /* [P, 512] */,
                                      const RenderOutputs out, const Tiling tiling, const RowLanes share) {
  WideShared& shared = *dynamic_shared<WideShared>();
  const int warp = static_cast<int>(threadIdx.x) - lane_index();  // its first thread
  const int served = lane_index() / share.lanes, part = lane_index() % share.lanes, rays = kWarpSize / share.lanes;
  const int64_t ray = tile_ray<kThreads>(tiling, blockIdx.x, threadIdx.x);
  shared.rays[threadIdx.x] = ray;
  __syncwarp();
  for (int first = 0; first < kWarpSize; first += rays) {
    const int64_t row = shared.rays[warp + first + served];
    if (row < 0) continue;
    constexpr float kZero[kVector] = {};
    for (int v = part; v < share.vectors; v += share.lanes) {
      store_floats<kVector>(out.features + row * in.num_channels + static_cast<int64_t>(v) * kVector, kZero);
    }
  }
  RayWalk walk;
  RayGather gather;
  if (ray >= 0) walk.start(in, ray);
  const float inverse_step = 1.0f / in.march.step;
  while (true) {
    const bool here = walk.seek(in, cells, inverse_step);
    if (!__any_sync(kFullWarp, here)) break;
    const bool touched = here && gather.pass_cell(in, walk);
    const unsigned leaving = __ballot_sync(kFullWarp, touched);
    if (touched) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        shared.rows[i][threadIdx.x] = gather.rows[i];
        shared.weights[i][threadIdx.x] = gather.state.weights[i];
      }
    }
    __syncwarp();
    for (int first = 0; first < kWarpSize; first += rays) {
      if (!(leaving >> (first + served) & 1)) continue;
      const int thread = warp + first + served;
      float* const row = out.features + shared.rays[thread] * in.num_channels;
      for (int v = part; v < share.vectors; v += share.lanes) {
        const int64_t channel = static_cast<int64_t>(v) * kVector;
        float sum[kVector];
        load_floats<kVector>(row + channel, sum);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          float values[kVector];
          load_vector<T, kVector>(
              static_cast<const T*>(in.features) + shared.rows[i][thread] * in.num_channels + channel, values);
          const float weight = shared.weights[i][thread];
#pragma unroll
          for (int j = 0; j < kVector; ++j) sum[j] = fmaf(weight, values[j], sum[j]);
        }
        store_floats<kVector>(row + channel, sum);
      }
    }
    __syncwarp();  // before the next cell's rows take their place
  }
  if (ray < 0) return;
  out.depth[ray] = gather.depth;
  out.opacity[ray] = gather.opacity;
}

namespace {

constexpr const char* kName = "volume_render_forward";

template <class T, int kChannels>
void launch_narrow(const RenderInputs& in, const uint64_t* cells, const RenderOutputs& out, const Tiling& tiles,
                   const Stream& stream) {
  launch(kName, &volume_render_forward_kernel<T, kChannels>, tiles.num_tiles, kThreads, 0, stream, in, cells, out,
         tiles);
}

template <class T, int kVector>
void launch_wide(const RenderInputs& in, const uint64_t* cells, const RenderOutputs& out, const Tiling& tiles,
                 const Stream& stream) {
  launch(kName, &volume_render_forward_wide_kernel<T, kVector>, tiles.num_tiles, kThreads, sizeof(WideShared), stream,
         in, cells, out, tiles, share_rows(in.num_channels / kVector, 2));
}

template <class T>
void forward(const RenderInputs& in, const uint64_t* cells, const RenderOutputs& out, const Tiling& tiles,
             const Stream& stream) {
  const int vector = vector_width<T>(in.features, in.num_channels);
  if (!is_aligned(out.features, 16) || vector == 1) return launch_wide<T, 1>(in, cells, out, tiles, stream);
  const bool whole = vector * sizeof(T) == 16 || vector == in.num_channels;  // the loads of the kernel for short rows
  if (whole && in.num_channels * sizeof(T) <= kNarrowRow) {
    if (in.num_channels == 4) return launch_narrow<T, 4>(in, cells, out, tiles, stream);
    if (in.num_channels == 8) return launch_narrow<T, 8>(in, cells, out, tiles, stream);
    if constexpr (sizeof(T) == 2) {
      if (in.num_channels == 16) return launch_narrow<T, 16>(in, cells, out, tiles, stream);
    }
  }
  if constexpr (sizeof(T) == 2) {
    if (vector == 8) return launch_wide<T, 8>(in, cells, out, tiles, stream);
  }
  launch_wide<T, 4>(in, cells, out, tiles, stream);
}

}  // namespace

void volume_render_forward(const RenderInputs& in, const RenderOutputs& out, int64_t num_rays, const Stream& stream) {
  check_num_bricks(kName, in.num_bricks);
  if (num_rays == 0) return;
  const uint64_t* const cells = find_cells(in, true, stream);
  const Tiling tiles = tiling<kThreads>(in.image_width, num_rays);
  with_storage(in.storage, [&](auto t) { forward<decltype(t)>(in, cells, out, tiles, stream); });
}

}  // namespace evoworld
