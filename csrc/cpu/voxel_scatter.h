// voxel_scatter on the CPU: all rays of a call, on up to `num_threads` threads, with the same bits for any number of
// them.
#pragma once

#include "core/voxel_scatter.h"

namespace evoworld {

// Adds to out.feature_sum and out.weight_sum.
void voxel_scatter_forward(const ScatterInputs& in, const ScatterOutputs& out, int64_t num_rays, int num_threads);

// Overwrites the gradients that are wanted.
void voxel_scatter_backward(const ScatterInputs& in, const ScatterOutputGradients& d_out,
                            const ScatterInputGradients& gradients, int64_t num_rays, int num_threads);

// Pages are dealt into classes; a class of rows has one writer, so no update is lost and its order is that of the rays.
constexpr int kScatterClasses = 256;

EW_HD int scatter_class(Int3 page) {
  const uint32_t mixed = static_cast<uint32_t>(page.x) * 73856093u ^ static_cast<uint32_t>(page.y) * 19349663u ^
                         static_cast<uint32_t>(page.z) * 83492791u;
  return static_cast<int>((mixed ^ (mixed >> 15)) % kScatterClasses);
}

// A ray's code: its class, or that it has none, or several since its corners lie in several pages.
constexpr uint16_t kNoClass = 0xffff;
constexpr uint16_t kManyClasses = 0xfffe;

// The kernels proper, compiled for each instruction set.
// classify: writes the codes of rays [begin, end); counts[c] grows by one for each ray that has a corner in class c.
void scatter_classify_rays(const ScatterInputs& in, int64_t begin, int64_t end, int64_t* counts, uint16_t* codes);
// order: writes the rays' numbers to order[slots[c]++] of each of their classes c.
void scatter_order_rays(const ScatterInputs& in, const uint16_t* codes, int64_t begin, int64_t end, int64_t* slots,
                        int32_t* order);
// Adds the rays order[begin, end), in this order, to the corners whose page is of the class.
void scatter_forward_rays(const ScatterInputs& in, const ScatterOutputs& out, int class_index, const int32_t* order,
                          int64_t begin, int64_t end);
void scatter_backward_rays(const ScatterInputs& in, const ScatterOutputGradients& d_out,
                           const ScatterInputGradients& gradients, int64_t begin, int64_t end);

}  // namespace evoworld
