#include "cpu/volume_render.h"

#include <memory>

#include "cpu/isa.h"
#include "cpu/locks.h"
#include "cpu/parallel.h"

namespace evoworld {
namespace {

constexpr int64_t kRaysPerChunk =
    512;  // a panorama row: neighbouring rays share bricks, and a chunk lasts well under 1 ms

}  // namespace

EW_DISPATCH_ISA(render_forward_rays, (const RenderInputs& in, const RenderOutputs& out, int64_t begin, int64_t end), in,
                out, begin, end)
EW_DISPATCH_ISA(render_backward_rays,
                (const RenderInputs& in, const RenderOutputs& out, const RenderOutputGradients& d_out,
                 const RenderInputGradients& gradients, BrickLocks* locks, int64_t begin, int64_t end),
                in, out, d_out, gradients, locks, begin, end)

void volume_render_forward(const RenderInputs& in, const RenderOutputs& out, int64_t num_rays, int num_threads) {
  parallel_for(num_rays, kRaysPerChunk, num_threads,
               [&](int64_t begin, int64_t end) { render_forward_rays(in, out, begin, end); });
}

void volume_render_backward(const RenderInputs& in, const RenderOutputs& out, const RenderOutputGradients& d_out,
                            const RenderInputGradients& gradients, int64_t num_rays, int num_threads) {
  const auto locks = num_threads > 1 ? std::make_unique<BrickLocks>() : nullptr;
  parallel_for(num_rays, kRaysPerChunk, num_threads, [&](int64_t begin, int64_t end) {
    render_backward_rays(in, out, d_out, gradients, locks.get(), begin, end);
  });
}

}  // namespace evoworld
