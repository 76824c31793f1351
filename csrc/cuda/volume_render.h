// volume_render on the GPU: the launchers. Arguments are device memory; nothing waits for the host. in.num_bricks must
// be known here; without in.num_pages the scratch memory is sized for as many pages as there might be.
#pragma once

#include "core/volume_render.h"
#include "cuda/launch.h"

namespace evoworld {

void volume_render_forward(const RenderInputs& in, const RenderOutputs& out, int64_t num_rays, const Stream& stream);

// Adds to gradients.features and .density (zeroed by the caller), in any order, and overwrites those of the rays.
void volume_render_backward(const RenderInputs& in, const RenderOutputs& out, const RenderOutputGradients& d_out,
                            const RenderInputGradients& gradients, int64_t num_rays, const Stream& stream);

// Scratch memory [P, 512]: which cells matter of each brick of each page, a bit each by index_in_brick of their low
// corner; those with a corner of non-zero density, or, if not `dense`, with an allocated one. Costs 4 KB a page and the
// time of about 10,000 rays per million bricks; a walk then enters a brick by one load. Null where there is no page.
const uint64_t* find_cells(const RenderInputs& in, bool dense, const Stream& stream);

}  // namespace evoworld
