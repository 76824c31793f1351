#include "cpu/volume_render.h"

#include <memory>

#include "cpu/isa.h"
#include "cpu/locks.h"
#include "cpu/parallel.h"

namespace evoworld {
namespace {

constexpr int64_t kRaysPerChunk = 512;  // neighbouring rays share bricks, and a chunk lasts about 1 ms
constexpr int64_t kBricksPerChunk = 4096;
// A brick's bits cost a tenth of what a ray saves by them (15% of a render of 131,072 rays in 63,900 bricks).
constexpr int64_t kBricksPerRay = 8;

}  // namespace

EW_DISPATCH_ISA(render_forward_rays, (const RenderInputs& in, const RenderOutputs& out, int64_t begin, int64_t end), in,
                out, begin, end)
EW_DISPATCH_ISA(render_backward_rays,
                (const RenderInputs& in, const RenderOutputs& out, const RenderOutputGradients& d_out,
                 const RenderInputGradients& gradients, BrickLocks* locks, int64_t begin, int64_t end),
                in, out, d_out, gradients, locks, begin, end)

EW_DISPATCH_ISA(render_find_dense_points, (const float* density, uint64_t* points, int64_t begin, int64_t end), density,
                points, begin, end)

void volume_render_forward(const RenderInputs& inputs, const RenderOutputs& out, int64_t num_rays, int num_threads) {
  RenderInputs in = inputs;
  std::unique_ptr<uint64_t[]> points;
  if (in.num_bricks > 0 && in.num_bricks <= kBricksPerRay * num_rays) {
    points.reset(new uint64_t[in.num_bricks]);
    parallel_for(in.num_bricks, kBricksPerChunk, num_threads,
                 [&](int64_t begin, int64_t end) { render_find_dense_points(in.density, points.get(), begin, end); });
    in.dense_points = points.get();
  }
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
