#include "cuda/device.h"
#include "cuda/ray_walk.h"
#include "cuda/row_vectors.h"
#include "cuda/tiles.h"
#include "cuda/volume_render.h"

namespace evoworld {

struct RenderBackwardArguments {
  RenderInputs in;
  const uint64_t* cells;  // [P, 512]
  RenderOutputs out;
  RenderOutputGradients d_out;
  RenderInputGradients gradients;
  Tiling tiling;
  RowLanes read;   // of rows of features
  RowLanes write;  // of their gradients
};

namespace {

constexpr int kThreads = 128;  // 16 x 8 pixels
constexpr int kMinBlocks = 4;  // a processor's: 16 warps, at 128 registers a thread

// Each thread's current cell, its corners kept in slots: a lattice point's slot is the parity of its coordinates (bit 2
// is x, bit 1 is y, bit 0 is z). The corners that the next cell shares with this one are then in place already.
struct BackwardShared {
  uint32_t rows[8][kThreads];  // kNoVoxel: not allocated, or no cell yet
  float weights[8][kThreads];  // W_c; these three are in registers while the ray passes the cell, and here between
  float d_densities[8][kThreads];
  float dots[8][kThreads];     // d_features . F_c
  int64_t rays[kThreads];      // -1: none
  uint32_t peers[kThreads];    // of a leader: the lanes that add to its row
  uint32_t leaders[kThreads];  // of a warp, side by side
};

// Slots that hold another lattice point for cell `b` than for cell `a`.
__device__ __forceinline__ unsigned changed_slots(Int3 a, Int3 b) {
  const auto even = [](int32_t x) { return (x + 1) & ~1; };  // of the two coordinates x and x + 1
  const auto odd = [](int32_t x) { return x | 1; };
  return (even(a.x) != even(b.x) ? 0x0fu : 0u) | (odd(a.x) != odd(b.x) ? 0xf0u : 0u) |
         (even(a.y) != even(b.y) ? 0x33u : 0u) | (odd(a.y) != odd(b.y) ? 0xccu : 0u) |
         (even(a.z) != even(b.z) ? 0x55u : 0u) | (odd(a.z) != odd(b.z) ? 0xaau : 0u);
}

// Slot i holds corner i ^ mirror of the cell.
__device__ __forceinline__ int mirror_of(Int3 cell) { return (cell.x & 1) << 2 | (cell.y & 1) << 1 | (cell.z & 1); }

// Puts the slots' values in the order of the corners: swaps the halves of each axis that is mirrored.
__device__ __forceinline__ void corners_from_slots(int mirror, float values[8]) {
#pragma unroll
  for (int bit = 1; bit < 8; bit *= 2) {
    const bool swap = (mirror & bit) != 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i & bit) continue;
      const float low = values[i], high = values[i | bit];
      values[i] = swap ? high : low;
      values[i | bit] = swap ? low : high;
    }
  }
}

// sum_c d_features F_c of the slots that have `changed`, a bit each, of all threads in `here`, to shared.dots: a few
// lanes to a ray.
template <class T, int kVector>
__device__ __forceinline__ void find_dots(const RenderBackwardArguments& a, unsigned here, unsigned changed,
                                          BackwardShared& shared) {
  const int warp = static_cast<int>(threadIdx.x) - lane_index();
  const int lanes = a.read.lanes, rays = kWarpSize / lanes;
  const int served = lane_index() / lanes, part = lane_index() % lanes;
  const int64_t channels = a.in.num_channels;
  for (int first = 0; first < kWarpSize; first += rays) {
    if ((here >> first & (kFullWarp >> (kWarpSize - rays))) == 0) continue;
    const int thread = warp + first + served;
    const bool wanted = (here >> (first + served) & 1) != 0;
    const unsigned slots = __shfl_sync(kFullWarp, changed, first + served);
    float partial[8] = {};
    for (int v = part; wanted && v < a.read.vectors; v += lanes) {
      const int64_t channel = static_cast<int64_t>(v) * kVector;
      float upstream[kVector];
      load_floats<kVector>(a.d_out.features + shared.rays[thread] * channels + channel, upstream);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if ((slots >> i & 1) == 0) continue;
        const uint32_t row = shared.rows[i][thread];
        float values[kVector];  // of the first row where the slot has none: nobody looks at that dot product
        load_vector<T, kVector>(static_cast<const T*>(a.in.features) + (row == kNoVoxel ? 0 : row) * channels + channel,
                                values);
#pragma unroll
        for (int j = 0; j < kVector; ++j) partial[i] = fmaf(upstream[j], values[j], partial[i]);
      }
    }
    for (int apart = lanes / 2; apart > 0; apart /= 2) {
#pragma unroll
      for (int i = 0; i < 8; ++i) partial[i] += __shfl_xor_sync(kFullWarp, partial[i], apart);
    }
    if (wanted && part == 0) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if ((slots >> i & 1) != 0) shared.dots[i][thread] = partial[i];
      }
    }
  }
}

// Adds to one row of gradients each: the slots `slot` of the lanes that are `leaving`, lit where W_c is not zero. Lanes
// that leave the same lattice point, as neighbouring pixels do, are added up first by a leader among them.
template <int kVector>
__device__ __forceinline__ void add_together(const RenderBackwardArguments& a, int slot, bool leaving, bool lit,
                                             BackwardShared& shared) {
  const int warp = static_cast<int>(threadIdx.x) - lane_index();
  const unsigned lane_bit = 1u << lane_index();
  const uint32_t row = shared.rows[slot][threadIdx.x];
  const unsigned equal = __match_any_sync(kFullWarp, leaving ? row : kNoVoxel);
  const unsigned lit_peers = equal & __ballot_sync(kFullWarp, lit);
  const bool leads = leaving && (equal & (lane_bit - 1)) == 0;
  if (leads && a.gradients.density != nullptr) {
    float sum = 0.0f;
    for (unsigned rest = equal; rest != 0; rest &= rest - 1) sum += shared.d_densities[slot][warp + __ffs(rest) - 1];
    reduce_add(a.gradients.density + row, sum);
  }
  const unsigned leaders = __ballot_sync(kFullWarp, leads && lit_peers != 0);
  if (leads && lit_peers != 0) {
    shared.peers[threadIdx.x] = lit_peers;
    shared.leaders[warp + __popc(leaders & (lane_bit - 1))] = threadIdx.x;
  }
  __syncwarp();
  const int lanes = a.write.lanes, count = __popc(leaders);
  const int64_t channels = a.in.num_channels;
  for (int i = lane_index() / lanes; i < count; i += kWarpSize / lanes) {
    const int leader = static_cast<int>(shared.leaders[warp + i]);
    const unsigned peers = shared.peers[leader];
    float* const to = a.gradients.features + shared.rows[slot][leader] * channels;
    for (int v = lane_index() % lanes; v < a.write.vectors; v += lanes) {
      float sum[kVector] = {};
      for (unsigned rest = peers; rest != 0; rest &= rest - 1) {
        const int peer = warp + __ffs(rest) - 1;
        const float weight = shared.weights[slot][peer];
        float upstream[kVector];
        load_floats<kVector>(a.d_out.features + shared.rays[peer] * channels + static_cast<int64_t>(v) * kVector,
                             upstream);
#pragma unroll
        for (int j = 0; j < kVector; ++j) sum[j] = fmaf(weight, upstream[j], sum[j]);
      }
      reduce_add_floats<kVector>(to + static_cast<int64_t>(v) * kVector, sum);
    }
  }
  __syncwarp();  // before the next slot's leaders take their places
}

// Adds the slots in `leaving`, a bit each, to the gradients of their rows.
template <int kVector>
__device__ __forceinline__ void flush_slots(const RenderBackwardArguments& a, unsigned leaving,
                                            BackwardShared& shared) {
  __syncwarp();
#pragma unroll 1
  for (int i = 0; i < 8; ++i) {
    const uint32_t row = shared.rows[i][threadIdx.x];
    const bool leaves = (leaving >> i & 1) != 0 && row != kNoVoxel;
    const bool lit = leaves && a.gradients.features != nullptr && shared.weights[i][threadIdx.x] != 0.0f;
    if (__any_sync(kFullWarp, lit)) {
      add_together<kVector>(a, i, leaves, lit, shared);
    } else if (leaves && a.gradients.density != nullptr) {
      reduce_add(a.gradients.density + row, shared.d_densities[i][threadIdx.x]);
    }
  }
  __syncwarp();
}

// The sum of w_k g_k over all of a ray's samples, from the forward's outputs.
template <int kVector>
__device__ __forceinline__ double total_gain(const RenderBackwardArguments& a, int64_t ray, float d_depth,
                                             float d_opacity) {
  const int64_t channels = a.in.num_channels;
  double total = static_cast<double>(d_depth) * a.out.depth[ray] + static_cast<double>(d_opacity) * a.out.opacity[ray];
  for (int64_t c = 0; c < channels; c += kVector) {
    float upstream[kVector], rendered[kVector];
    load_floats<kVector>(a.d_out.features + ray * channels + c, upstream);
    load_floats<kVector>(a.out.features + ray * channels + c, rendered);
#pragma unroll
    for (int i = 0; i < kVector; ++i) total += static_cast<double>(upstream[i]) * rendered[i];
  }
  return total;
}

}  // namespace

// Computes the gradients of volume_render by features, density, origins and directions.
//   d_sigma_k = step (T_{k+1} g_k - sum_{j>k} w_j g_j),  g_k = d_features . f(t_k) + d_depth t_k + d_opacity, the
//   suffix being total - prefix;  d_density_c = sum_k a_c(k) d_sigma_k,  d_features_c = W_c d_features
// A lane to a ray, a warp to 8 x 4 pixels, front to back as the forward: at each cell the warp flushes the corners that
// its lanes leave (equal rows added up first), a few lanes to a row, and finds d_features . F_c alike.
// Reads what the forward does, its outputs and their gradients; adds to gradient rows by reductions, 16 bytes at once
// where rows allow it; writes the rays' gradients once.
template <class T, int kVector>
__global__ void __launch_bounds__(kThreads, kMinBlocks) volume_render_backward_kernel(const RenderBackwardArguments a) {
  constexpr int kFloats = kVector == 1 ? 1 : 4;  // of gradient rows, which are float32
  BackwardShared& shared = *dynamic_shared<BackwardShared>();
  const int64_t ray = tile_ray<kThreads>(a.tiling, blockIdx.x, threadIdx.x);
  const bool wants_ray = a.gradients.origins != nullptr;
  shared.rays[threadIdx.x] = ray;
#pragma unroll
  for (int i = 0; i < 8; ++i) shared.rows[i][threadIdx.x] = kNoVoxel;
  RayWalk walk;
  RayGradients gradients;
  gradients.state.clear();
  float d_depth = 0.0f, d_opacity = 0.0f;
  if (ray >= 0) {
    walk.start(a.in, ray);
    d_depth = a.d_out.depth[ray];
    d_opacity = a.d_out.opacity[ray];
    gradients.remaining = total_gain<kFloats>(a, ray, d_depth, d_opacity);
  }
  const float inverse_step = 1.0f / a.in.march.step;
  Int3 cell = {INT32_MIN, INT32_MIN, INT32_MIN};
  while (true) {
    const bool here = walk.seek(a.in, a.cells, inverse_step);
    const unsigned all_here = __ballot_sync(kFullWarp, here);
    const unsigned leaving = all_here == 0 ? 0xffu : (here ? changed_slots(cell, walk.cell) : 0u);
    flush_slots<kFloats>(a, leaving, shared);
    if (all_here == 0) break;

    if (here) {
      cell = walk.cell;
      uint32_t rows[8];
      walk.find_rows(a.in.grid, mirror_of(cell), rows);
#pragma unroll
      for (int i = 0; i < 8; ++i) shared.rows[i][threadIdx.x] = rows[i];
    }
    __syncwarp();
    find_dots<T, kVector>(a, all_here, leaving, shared);
    __syncwarp();
    if (!here) continue;

    uint32_t rows[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) rows[i] = shared.rows[i][threadIdx.x];
    float densities[8];
    const unsigned allocated = load_densities(a.in.density, rows, densities);
    const int mirror = mirror_of(cell);
    corners_from_slots(mirror, densities);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      gradients.dots[i] = allocated >> i & 1 ? shared.dots[i][threadIdx.x] : 0.0f;
      gradients.state.weights[i] = leaving >> i & 1 ? 0.0f : shared.weights[i][threadIdx.x];
      gradients.d_densities[i] = leaving >> i & 1 ? 0.0f : shared.d_densities[i][threadIdx.x];
    }
    const Float3 sign = {mirror & 4 ? -1.0f : 1.0f, mirror & 2 ? -1.0f : 1.0f, mirror & 1 ? -1.0f : 1.0f};
    Float3 f = cell_point(walk.line, walk.distance(a.in.march)).fraction;
    do {
      const Float3 mirrored = {mirror & 4 ? 1.0f - f.x : f.x, mirror & 2 ? 1.0f - f.y : f.y,
                               mirror & 1 ? 1.0f - f.z : f.z};
      const float t = walk.distance(a.in.march);
      const float d_distance = fmaf(d_depth, t, d_opacity);
      if (!gradients.pass(a.in.march, densities, t, d_distance, f, mirrored, sign, wants_ray)) {
        walk.k = walk.end;
        break;
      }
    } while (walk.stay(a.in.march, f));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      shared.weights[i][threadIdx.x] = gradients.state.weights[i];
      shared.d_densities[i][threadIdx.x] = gradients.d_densities[i];
    }
  }
  if (ray < 0 || !wants_ray) return;
  const Float3 by_base = gradients.d_base, by_slope = gradients.d_slope;
  const float size = a.in.grid.voxel_size;
  float* const d_origin = a.gradients.origins + 3 * ray;
  float* const d_direction = a.gradients.directions + 3 * ray;
  d_origin[0] = by_base.x / size, d_origin[1] = by_base.y / size, d_origin[2] = by_base.z / size;
  d_direction[0] = by_slope.x / size, d_direction[1] = by_slope.y / size, d_direction[2] = by_slope.z / size;
}

namespace {

constexpr const char* kName = "volume_render_backward";

template <class T, int kVector>
void launch_backward(RenderBackwardArguments& arguments, const Stream& stream) {
  const int64_t channels = arguments.in.num_channels;
  arguments.read = share_rows(channels / kVector, 2);
  arguments.write = share_rows(kVector == 1 ? channels : channels / 4, 1);
  launch(kName, &volume_render_backward_kernel<T, kVector>, arguments.tiling.num_tiles, kThreads,
         sizeof(BackwardShared), stream, arguments);
}

template <class T>
void backward(RenderBackwardArguments& arguments, const Stream& stream) {
  int vector = vector_width<T>(arguments.in.features, arguments.in.num_channels);
  for (const float* rows : {static_cast<const float*>(arguments.out.features), arguments.d_out.features,
                            static_cast<const float*>(arguments.gradients.features)}) {
    if (!is_aligned(rows, 16)) vector = 1;
  }
  if constexpr (sizeof(T) == 2) {
    if (vector == 8) return launch_backward<T, 8>(arguments, stream);
  }
  if (vector == 4) return launch_backward<T, 4>(arguments, stream);
  launch_backward<T, 1>(arguments, stream);
}

}  // namespace

void volume_render_backward(const RenderInputs& in, const RenderOutputs& out, const RenderOutputGradients& d_out,
                            const RenderInputGradients& gradients, int64_t num_rays, const Stream& stream) {
  check_num_bricks(kName, in.num_bricks);
  if (num_rays == 0) return;
  const bool dense = gradients.density == nullptr;  // otherwise samples of zero density have a gradient too
  RenderBackwardArguments arguments = {
      in, find_cells(in, dense, stream), out, d_out, gradients, tiling<kThreads>(in.image_width, num_rays), {}, {}};
  with_storage(in.storage, [&](auto t) { backward<decltype(t)>(arguments, stream); });
}

}  // namespace evoworld
