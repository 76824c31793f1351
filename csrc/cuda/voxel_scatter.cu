// voxel_scatter forward on a GPU: one kernel, which combines a tile's pixels cell by cell before it goes to memory.
#include "cuda/row_vectors.h"
#include "cuda/tiles.h"
#include "cuda/voxel_scatter.h"

namespace evoworld {
namespace {

constexpr int kThreads = 256;  // a tile of 16 x 16 pixels: larger ones share hardly more cells
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kSlots = 2 * kThreads;  // of the table of cells: at most half of them are taken
constexpr int kFree = -1;

// How a warp adds pixels to the corners of their cell: a lane for each corner and each slice of a chunk of channels,
// and, where that leaves lanes over, several pixels at once. kVector values are read at once; 1: rows need not be
// aligned, and a lane's channels lie kSlices apart, so that lanes side by side add to neighbouring words of memory.
template <int kChannels, int kVector>
struct Layout {
  static constexpr bool kAligned = kVector > 1;
  static constexpr int kSlices = kChannels == 4 ? 1 : (kChannels == 8 ? 2 : 4);
  static constexpr int kPixels = kWarpSize / (8 * kSlices);  // worked on at once
  static constexpr int kPerLane = kAligned ? 4 : 5;  // 5: 17 channels, the world model's 16 and 1, are one chunk
  static constexpr int kChunk = kSlices * kPerLane;
  static constexpr int kPieces = (kChunk + kVector - 1) / kVector;  // of a pixel's chunk
  // On a multiprocessor: 48 registers a thread and 36 kB a block, or 64 where a second chunk is on its way meanwhile.
  static constexpr int kBlocks = kAligned && (kChannels == 0 || kChannels > kChunk) ? 4 : 5;
};

template <class L>
struct Shared {
  float4 features[kThreads][L::kSlices];  // of the chunk, by position, which goes cell by cell
  float fifth[L::kAligned ? 1 : kThreads][L::kSlices];
  alignas(16) float shares[kThreads][8];  // by position: weight times the trilinear weights
  Int3 cells[kThreads];                   // by the thread that owns the cell
  int slots[kSlots];                      // hash table of the cells' owners
  int begins[kThreads];                   // by owner: how many pixels a cell has, then where they begin
  int owners[kThreads];                   // by position
  int totals[kWarps];

  // The thread that owns a cell: the first that asked.
  __device__ int owner_of(Int3 cell) {
    const uint32_t mixed = static_cast<uint32_t>(cell.x) * 73856093u ^ static_cast<uint32_t>(cell.y) * 19349663u ^
                           static_cast<uint32_t>(cell.z) * 83492791u;
    for (int slot = (mixed ^ (mixed >> 15)) % kSlots;; slot = (slot + 1) % kSlots) {
      const int found = atomicCAS(&slots[slot], kFree, static_cast<int>(threadIdx.x));
      if (found == kFree) return static_cast<int>(threadIdx.x);
      if (same(cells[found], cell)) return found;
    }
  }

  // Replaces begins[i] by the sum of those before it; returns the sum of all. For all threads of the block.
  __device__ int sum_before() {
    const int mine = begins[threadIdx.x];
    int sum = mine;
    for (int i = 1; i < kWarpSize; i *= 2) {
      const int other = __shfl_up_sync(kFullWarp, sum, i);
      if (lane_index() >= i) sum += other;
    }
    if (lane_index() == kWarpSize - 1) totals[warp_index()] = sum;
    __syncthreads();
    int before = 0, all = 0;
    for (int i = 0; i < kWarps; ++i) {
      if (i < warp_index()) before += totals[i];
      all += totals[i];
    }
    begins[threadIdx.x] = before + sum - mine;
    __syncthreads();
    return all;
  }
};

// A chunk of the features of a warp's 32 pixels, on its way from memory to shared memory.
template <class T, int kChannels, int kVector>
struct Chunk {
  using L = Layout<kChannels, kVector>;
  static constexpr int kRounds = L::kAligned ? L::kPieces : 1;
  Piece<T, kVector> pieces[kRounds];

  // `ray` and `position` are those of the lane's own pixel; negative where it has none. Lanes side by side read pieces
  // side by side.
  __device__ __forceinline__ void load(const ScatterInputs& in, int64_t ray, int64_t first) {
    if constexpr (L::kAligned) {
      const int64_t channels = kChannels > 0 ? kChannels : in.num_channels;
      for (int i = 0; i < kRounds; ++i) {
        const int item = i * kWarpSize + lane_index();
        const int64_t row = __shfl_sync(kFullWarp, ray, item / L::kPieces);
        const int64_t channel = first + item % L::kPieces * kVector;
        if (row >= 0 && channel < channels) {
          pieces[i].load(static_cast<const T*>(in.features) + row * channels + channel);
        }
      }
    }
  }

  __device__ __forceinline__ void store(const ScatterInputs& in, int64_t ray, int position, int64_t first,
                                        Shared<L>& shared) {
    if constexpr (L::kAligned) {
      for (int i = 0; i < kRounds; ++i) {
        const int item = i * kWarpSize + lane_index();
        const int to = __shfl_sync(kFullWarp, position, item / L::kPieces);
        const int slice = item % L::kPieces * (kVector / 4);
        if (to < 0) continue;
        float values[kVector];
        pieces[i].widen_to(values);
        store_floats<kVector>(&shared.features[to][slice].x, values);
      }
    } else {
      const int64_t left = in.num_channels - first;
      const int count = left < L::kChunk ? static_cast<int>(left) : L::kChunk;
      const int magic = count > 0 ? (65536 + count - 1) / count : 0;  // item * magic >> 16 is item / count below 2^11
      for (int begin = 0; begin < kWarpSize * count; begin += kWarpSize) {
        const int item = begin + lane_index();
        const int pixel = item * magic >> 16, channel = item - pixel * count;
        const int64_t row = __shfl_sync(kFullWarp, ray, pixel);
        const int to = __shfl_sync(kFullWarp, position, pixel);
        if (to < 0) continue;
        pieces[0].load(static_cast<const T*>(in.features) + row * in.num_channels + first + channel);
        const int slice = channel % L::kSlices, part = channel / L::kSlices;
        float* const quad = &shared.features[to][slice].x;
        pieces[0].widen_to(part < 4 ? quad + part : &shared.fifth[to][slice]);
      }
    }
  }
};

// What a lane has gathered for its corner of a cell.
template <class L>
struct CornerSum {
  float features[L::kPerLane] = {};
  float weight = 0.0f;

  __device__ __forceinline__ void add(const Shared<L>& shared, int position, int corner, int slice) {
    const float share = shared.shares[position][corner];
    const float4 value = shared.features[position][slice];
    features[0] = fmaf(share, value.x, features[0]);
    features[1] = fmaf(share, value.y, features[1]);
    features[2] = fmaf(share, value.z, features[2]);
    features[3] = fmaf(share, value.w, features[3]);
    if constexpr (!L::kAligned) features[4] = fmaf(share, shared.fifth[position][slice], features[4]);
    weight += share;
  }

  // Adds what lanes that worked on other pixels have gathered.
  __device__ __forceinline__ void fold() {
    for (int lanes = kWarpSize / 2; lanes >= 8 * L::kSlices; lanes /= 2) {
      for (int i = 0; i < L::kPerLane; ++i) features[i] += __shfl_xor_sync(kFullWarp, features[i], lanes);
      weight += __shfl_xor_sync(kFullWarp, weight, lanes);
    }
  }

  // To the chunk's channels in a row of the feature sum, `left` of them being there.
  __device__ __forceinline__ void flush(float* row, int slice, int64_t left) const {
    if constexpr (L::kAligned) {
      if (4 * slice < left) {
        reduce_add(reinterpret_cast<float4*>(row) + slice, {features[0], features[1], features[2], features[3]});
      }
    } else {
      for (int i = 0; i < L::kPerLane; ++i) {
        if (slice + i * L::kSlices < left) reduce_add(row + slice + i * L::kSlices, features[i]);
      }
    }
  }
};

// Adds the pixels of a call to the voxels around their points: feature_sum += a_c weight features, weight_sum += a_c
// weight. For corner c of a pixel's cell a_c is the trilinear weight of its point.
// Gradient: voxel_scatter_backward_kernel.
// A block takes a tile of 256 pixels and sorts them by cell through a hash table in shared memory. Each warp takes an
// equal part of that list; per cell, a lane for each corner and slice of channels sums in registers and goes to memory
// once.
// Reads depth, origins, directions, weight and features once, and the grid's tables once a corner and cell; reduces to
// 8 rows of feature_sum and weight_sum a cell and tile: in 512 x 1024 captures and 5 cm voxels, 0.8 to 4.8 rows a
// pixel.
template <class T, int kChannels, int kVector>
__global__ void __launch_bounds__(kThreads, (Layout<kChannels, kVector>::kBlocks))
    voxel_scatter_forward_kernel(ScatterInputs in, ScatterOutputs out, Tiling tiling) {
  using L = Layout<kChannels, kVector>;
  Shared<L>& shared = *dynamic_shared<Shared<L>>();
  const int64_t channels = kChannels > 0 ? kChannels : in.num_channels;
  const int thread = static_cast<int>(threadIdx.x), lane = lane_index();

  int64_t ray = tile_ray<kThreads>(tiling, blockIdx.x, threadIdx.x);
  ScatterRay from = {};
  if (ray >= 0) from = load_ray(in, ray);
  Chunk<T, kChannels, kVector> chunk;
  chunk.load(in, ray, 0);
  CellPoint point;
  if (!ray_point(in.grid, from, point)) ray = -1;

  for (int i = thread; i < kSlots; i += kThreads) shared.slots[i] = kFree;
  shared.begins[thread] = 0;
  const unsigned together = __ballot_sync(kFullWarp, ray >= 0) & __match_any_sync(kFullWarp, point.cell.x) &
                            __match_any_sync(kFullWarp, point.cell.y) & __match_any_sync(kFullWarp, point.cell.z);
  const int leader = ray >= 0 ? __ffs(static_cast<int>(together)) - 1 : lane;
  const bool leads = ray >= 0 && leader == lane;
  if (leads) shared.cells[thread] = point.cell;
  __syncthreads();
  int owner = 0, position = 0;
  if (leads) {
    owner = shared.owner_of(point.cell);
    position = atomicAdd(&shared.begins[owner], __popc(together));
  }
  owner = __shfl_sync(kFullWarp, owner, leader);
  position = __shfl_sync(kFullWarp, position, leader) + __popc(together & ((1u << lane) - 1));
  __syncthreads();
  const int total = shared.sum_before();
  if (total == 0) return;

  if (ray >= 0) {
    position += shared.begins[owner];
    shared.owners[position] = owner;
    float weights[8];
    trilinear_weights(point.fraction, weights);
    for (float& share : weights) share *= from.weight;
    store_floats<8>(shared.shares[position], weights);
  } else {
    position = -1;
  }

  const int part = (total + kWarps - 1) / kWarps;  // of the list, for each warp
  const int begin = warp_index() * part, count = min(part, total - begin);
  const int slice = lane % L::kSlices, corner = lane / L::kSlices % 8, pixel = lane / (8 * L::kSlices);
  for (int64_t first = 0; first == 0 || first < channels; first += L::kChunk) {
    if (first > 0) __syncthreads();  // the chunk before has been read
    chunk.store(in, ray, position, first, shared);
    __syncthreads();
    if (first + L::kChunk < channels) chunk.load(in, ray, first + L::kChunk);

    const int mine = lane < count ? shared.owners[begin + lane] : -1;
    const int before = __shfl_up_sync(kFullWarp, mine, 1);
    unsigned cells = __ballot_sync(kFullWarp, lane < count && (lane == 0 || mine != before));  // where each begins
    while (cells != 0) {
      // The rows of four cells at once: a lane for each cell and corner.
      unsigned from = cells;
      for (int i = 0; i < lane / 8; ++i) from &= from - 1;
      int64_t rows = kNoRow;
      if (from != 0) {
        const int cell = shared.owners[begin + __ffs(static_cast<int>(from)) - 1];
        rows = find_row(in.grid, corner_of(shared.cells[cell], lane % 8));
      }
      for (int i = 0; i < 4 && cells != 0; ++i) {
        const int low = __ffs(static_cast<int>(cells)) - 1;
        cells &= cells - 1;
        const int high = cells != 0 ? __ffs(static_cast<int>(cells)) - 1 : count;
        const int64_t row = __shfl_sync(kFullWarp, rows, 8 * i + corner);
        CornerSum<L> sum;
        for (int j = low + pixel; j < high; j += L::kPixels) sum.add(shared, begin + j, corner, slice);
        sum.fold();
        if (pixel > 0 || row < 0) continue;
        sum.flush(out.feature_sum + row * channels + first, slice, channels - first);
        if (first == 0 && slice == 0) reduce_add(out.weight_sum + row, sum.weight);
      }
    }
  }
}

template <class T, int kChannels, int kVector>
void launch_forward(const ScatterInputs& in, const ScatterOutputs& out, int64_t num_rays, const Stream& stream) {
  const Tiling tiles = tiling<kThreads>(in.image_width, num_rays);
  launch("voxel_scatter_forward", voxel_scatter_forward_kernel<T, kChannels, kVector>, tiles.num_tiles, kThreads,
         sizeof(Shared<Layout<kChannels, kVector>>), stream, in, out, tiles);
}

template <class T>
void choose_forward(const ScatterInputs& in, const ScatterOutputs& out, int64_t num_rays, const Stream& stream) {
  constexpr int kWide = 16 / sizeof(T);  // values in 16 bytes
  const int64_t channels = in.num_channels;
  const bool sums_aligned = channels % 4 == 0 && is_aligned(out.feature_sum, sizeof(float4));
  if (sums_aligned && channels % kWide == 0 && is_aligned(in.features, 16)) {
    switch (channels) {
      case 4:
        if constexpr (kWide == 4) return launch_forward<T, 4, kWide>(in, out, num_rays, stream);
        break;
      case 8:
        return launch_forward<T, 8, kWide>(in, out, num_rays, stream);
      case 16:
        return launch_forward<T, 16, kWide>(in, out, num_rays, stream);
      case 32:
        return launch_forward<T, 32, kWide>(in, out, num_rays, stream);
      case 64:
        return launch_forward<T, 64, kWide>(in, out, num_rays, stream);
    }
  }
  if (sums_aligned && is_aligned(in.features, 4 * sizeof(T))) {
    if (channels == 4) return launch_forward<T, 4, 4>(in, out, num_rays, stream);
    return launch_forward<T, 0, 4>(in, out, num_rays, stream);
  }
  launch_forward<T, 0, 1>(in, out, num_rays, stream);
}

}  // namespace

void voxel_scatter_forward(const ScatterInputs& in, const ScatterOutputs& out, int64_t num_rays, bool deterministic,
                           const Stream& stream) {
  if (deterministic) return voxel_scatter_sorted(in, out, num_rays, stream);
  with_storage(in.storage, [&](auto t) { choose_forward<decltype(t)>(in, out, num_rays, stream); });
}

}  // namespace evoworld
