// volume_render on the CPU: all rays of a call, on up to `num_threads` threads.
#pragma once

#include "core/volume_render.h"

namespace evoworld {

void volume_render_forward(const RenderInputs& inputs, const RenderOutputs& out, int64_t num_rays, int num_threads);

// Adds to gradients.features and .density (zeroed by the caller) and overwrites those of the rays. Rows that several
// rays reach are added up in the order in which threads come by; with one thread the order, and every bit, is fixed.
void volume_render_backward(const RenderInputs& in, const RenderOutputs& out, const RenderOutputGradients& d_out,
                            const RenderInputGradients& gradients, int64_t num_rays, int num_threads);

// Spin locks for the gradient rows, one for each of a fixed number of brick classes.
struct BrickLocks;

// The kernels proper, compiled for each instruction set: rays (bricks) [begin, end).
void render_find_dense_points(const float* density, uint64_t* points, int64_t begin, int64_t end);
void render_forward_rays(const RenderInputs& in, const RenderOutputs& out, int64_t begin, int64_t end);
void render_backward_rays(const RenderInputs& in, const RenderOutputs& out, const RenderOutputGradients& d_out,
                          const RenderInputGradients& gradients, BrickLocks* locks, int64_t begin, int64_t end);

}  // namespace evoworld
