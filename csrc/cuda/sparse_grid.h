// Growing the sparse grid on the GPU: which bricks a set of points needs, and entering them into the tables.
#pragma once

#include "core/sparse_grid.h"
#include "cuda/launch.h"

namespace evoworld {

// Bricks that hold one of the 8 corners of a point's cell and are not allocated: unique, sorted by x, y, z. Points that
// are not finite, or lie beyond any grid, are left out. Returns their number K and points `bricks` to scratch memory
// that holds them. Waits for the host to learn K: once, unless there are more bricks than the first table holds.
int64_t missing_bricks(const GridView& grid, const float* points /* [num_points, 3] */, int64_t num_points,
                       int32_t*& bricks /* [K, 3] */, const Stream& stream);

// Enters bricks[i] as brick number first_index + i, marks the bricks that become active and makes the distances around
// them exact. `pages` are those of `grid`, writable. Nothing comes back to the host, so nothing is reported: the caller
// sees to it that no brick is there yet or twice, and that the pages of all bricks that become active exist (entries
// of pages that do not exist are left out).
void insert_bricks(const GridView& grid, int32_t* pages /* [num_pages, 512] */, int64_t num_pages,
                   const int32_t* bricks /* [num_bricks, 3] */, int64_t num_bricks, int32_t first_index,
                   const Stream& stream);

}  // namespace evoworld
