// Growing the sparse grid on the CPU: which bricks a set of points needs, and entering them into the tables.
#pragma once

#include <vector>

#include "core/sparse_grid.h"

namespace evoworld {

// Bricks that hold one of the 8 corners of a point's cell and are not allocated: unique, sorted by x, y, z.
// Points that are not finite, or lie beyond any grid, are left out.
std::vector<Int3> missing_bricks(const GridView& grid, const float* points, int64_t num_points, int num_threads);

// Enters bricks[i] as brick number first_index + i, marks the bricks that become active and updates the distances
// around them. `directory` and `pages` are those of `grid`, writable. Returns false, and writes nothing, when a brick
// is already there or a page that an active brick needs is not.
bool insert_bricks(const GridView& grid, int32_t* pages, const int32_t* bricks, int64_t num_bricks, int32_t first_index,
                   int num_threads);

}  // namespace evoworld
