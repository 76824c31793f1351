// voxel_scatter on a GPU: launches the kernels of all rays of a call; nothing waits for them.
#pragma once

#include "core/voxel_scatter.h"
#include "cuda/launch.h"

namespace evoworld {

// Adds to out.feature_sum and out.weight_sum. `deterministic`: the same bits from run to run (a sort and a segmented
// sum: several times slower, and 300 bytes of scratch a ray, for a million rays at most).
void voxel_scatter_forward(const ScatterInputs& in, const ScatterOutputs& out, int64_t num_rays, bool deterministic,
                           const Stream& stream);

// Overwrites the gradients that are wanted.
void voxel_scatter_backward(const ScatterInputs& in, const ScatterOutputGradients& d_out,
                            const ScatterInputGradients& gradients, int64_t num_rays, const Stream& stream);

// The deterministic way of voxel_scatter_forward().
void voxel_scatter_sorted(const ScatterInputs& in, const ScatterOutputs& out, int64_t num_rays, const Stream& stream);

}  // namespace evoworld
