#include "cpu/sphere_attention.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace evoworld {

EW_DISPATCH_ISA_BF16(attention_forward_panels,
                     (const AttentionInputs& in, const AttentionOutputs& out, int64_t head, int64_t first_panel,
                      int64_t last_panel, AttentionScratch& scratch),
                     in, out, head, first_panel, last_panel, scratch)
EW_DISPATCH_ISA_BF16(attention_find_keys,
                     (const AttentionInputs& in, const TokenBall* group_balls, int64_t panel, int32_t* keys,
                      int64_t* num_keys),
                     in, group_balls, panel, keys, num_keys)

namespace {

constexpr int64_t kTasksPerThread = 4;  // so that threads end at about the same time

std::unique_ptr<AttentionScratch> new_scratch() { return std::unique_ptr<AttentionScratch>(new AttentionScratch); }

// Every key for every query: a task is a few panels of one head.
void forward_all(const AttentionInputs& in, const AttentionOutputs& out, int64_t panels, int num_threads) {
  const int64_t heads = in.batch * in.heads, wanted = panels * heads / (kTasksPerThread * num_threads);
  const int64_t tasks = (panels - 1) / std::clamp<int64_t>(wanted, 1, kMaxPanels) + 1;  // of a head
  parallel_for(heads * tasks, 1, num_threads, [&](int64_t task, int64_t) {
    const auto scratch = new_scratch();
    const int64_t part = task % tasks;
    attention_forward_panels(in, out, task / tasks, part * panels / tasks, (part + 1) * panels / tasks, *scratch);
  });
}

// Keys within a radius: a task is one panel of a few heads, which share the list of the panel's keys.
void forward_within(const AttentionInputs& in, const AttentionOutputs& out, int64_t panels, int num_threads) {
  std::vector<TokenBall> balls;
  for (int64_t begin = 0; begin < in.num_keys; begin += kKeyGroup) {
    balls.push_back(ball_around(in.key_directions, in.key_order, begin, std::min(begin + kKeyGroup, in.num_keys)));
  }
  const int64_t heads = in.batch * in.heads;
  const int64_t parts = std::clamp<int64_t>(kTasksPerThread * num_threads / panels, 1, heads);  // of the heads
  parallel_for(panels * parts, 1, num_threads, [&](int64_t task, int64_t) {
    const auto scratch = new_scratch();
    std::vector<int32_t> keys(in.num_keys);
    AttentionInputs near = in;
    const int64_t panel = task / parts, part = task % parts;
    attention_find_keys(in, balls.data(), panel, keys.data(), &near.num_keys);
    near.key_order = keys.data();
    for (int64_t head = part * heads / parts; head < (part + 1) * heads / parts; ++head) {
      attention_forward_panels(near, out, head, panel, panel + 1, *scratch);
    }
  });
}

}  // namespace

void sphere_attention_forward(const AttentionInputs& in, const AttentionOutputs& out, int num_threads) {
  const int64_t panels = (in.num_queries + kQueryPanel - 1) / kQueryPanel;
  if (panels == 0 || in.batch * in.heads == 0) return;
  num_threads = std::max(num_threads, 1);
  if (in.query_order != nullptr) {
    forward_within(in, out, panels, num_threads);
  } else {
    forward_all(in, out, panels, num_threads);
  }
}

}  // namespace evoworld
