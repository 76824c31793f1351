// Which ray a thread works on: where rays are an image's pixels, a warp takes 8 x 4 of them and a block a rectangle of
// warps, so that threads that run together look at the same voxels.
#pragma once

#include "core/common.h"

namespace evoworld {

constexpr int kTileColumns = 8;  // pixels of a warp
constexpr int kTileRows = 4;

// The warps of a block of so many threads: as square in pixels as it gets, 16 x 8 for 4 warps, 16 x 16 for 8.
template <int kThreads>
struct TileShape {
  static constexpr int kWarps = kThreads / (kTileColumns * kTileRows);
  static_assert(kThreads == kWarps * kTileColumns * kTileRows && (kWarps & (kWarps - 1)) == 0);
  static constexpr int kWarpsAcross = kWarps >= 16 ? 4 : (kWarps >= 4 ? 2 : 1);
  static constexpr int kColumns = kWarpsAcross * kTileColumns;
  static constexpr int kRows = kWarps / kWarpsAcross * kTileRows;
};

struct Tiling {
  int64_t num_rays;
  int64_t image_width;    // pixels in a row; 0: rays are taken as they come
  uint32_t tiles_across;  // blocks side by side
  int64_t num_tiles;      // blocks in all
};

// For blocks of kThreads threads. A width that makes no image of at least one tile's columns counts as unknown.
template <int kThreads>
inline Tiling tiling(int64_t image_width, int64_t num_rays) {
  using Shape = TileShape<kThreads>;
  if (image_width < Shape::kColumns || image_width > num_rays) {
    return {num_rays, 0, 1, (num_rays + kThreads - 1) / kThreads};
  }
  const int64_t across = (image_width + Shape::kColumns - 1) / Shape::kColumns;
  const int64_t image_height = (num_rays + image_width - 1) / image_width;
  const int64_t down = (image_height + Shape::kRows - 1) / Shape::kRows;
  return {num_rays, image_width, static_cast<uint32_t>(across), across * down};
}

// The ray of a block's thread, or -1 where the tile reaches beyond the image.
template <int kThreads>
EW_HD int64_t tile_ray(const Tiling& tiling, uint32_t block, uint32_t thread) {
  using Shape = TileShape<kThreads>;
  if (tiling.image_width == 0) {
    const int64_t ray = static_cast<int64_t>(block) * kThreads + thread;
    return ray < tiling.num_rays ? ray : -1;
  }
  const uint32_t warp = thread / (kTileColumns * kTileRows), lane = thread % (kTileColumns * kTileRows);
  const uint32_t down = block / tiling.tiles_across, across = block - down * tiling.tiles_across;
  const int64_t column = static_cast<int64_t>(across) * Shape::kColumns + (warp % Shape::kWarpsAcross) * kTileColumns +
                         lane % kTileColumns;
  const int64_t row =
      static_cast<int64_t>(down) * Shape::kRows + (warp / Shape::kWarpsAcross) * kTileRows + lane / kTileColumns;
  const int64_t ray = row * tiling.image_width + column;
  return column < tiling.image_width && ray < tiling.num_rays ? ray : -1;
}

}  // namespace evoworld
