// sphere_attention on the CPU, on up to `num_threads` threads, with the same bits for any number of them.
#pragma once

#include "core/sphere_attention.h"

namespace evoworld {

void sphere_attention_forward(const AttentionInputs& in, const AttentionOutputs& out, int num_threads);

// Overwrites the gradients that are wanted.
void sphere_attention_backward(const AttentionInputs& in, const AttentionOutputs& out,
                               const AttentionOutputGradients& d_out, const AttentionInputGradients& gradients,
                               int num_threads);

// Queries are worked on in panels, as many as fill two vector registers; keys in tiles, whose logits with one panel
// stay in the first-level cache.
constexpr int kQueryPanel = 32;
constexpr int kKeyTile = 128;
constexpr int kKeyGroup = 32;  // keys that are looked for together within a radius
// A packed tile of keys is used by all panels of a task: the more there are, the less packing costs, while the task's
// memory, 700 kB at most and half of it at a width of 64, is to stay in a second-level cache.
constexpr int kMaxPanels = 16;

// A panel of queries and its running softmax.
struct alignas(64) QueryPanel {
  unsigned char query[4 * kMaxAttentionWidth * kQueryPanel];  // words in the layout columns
  float directions[3][kQueryPanel];
  float max[kQueryPanel];                          // of the logits so far, of base 2
  float sum[kQueryPanel];                          // of exp2(logit - max)
  float output[kMaxAttentionWidth * kQueryPanel];  // [padded Dv, queries], not yet divided by the sum
};

// What one task needs. Logits are of base 2: times log2(e).
struct alignas(64) AttentionScratch {
  unsigned char key[4 * kKeyTile * kMaxAttentionWidth];    // words in the layout rows
  unsigned char value[4 * kKeyTile * kMaxAttentionWidth];  // words in the layout steps
  float scores[kKeyTile * kQueryPanel];                    // logits, then probabilities: [keys, queries]
  unsigned char pairs[4 * kKeyTile / 2 * kQueryPanel];     // probabilities in the layout steps, where a word holds two
  float key_terms[kKeyTile][4];                            // direction, and log weight (-inf: no key)
  float factors[kQueryPanel];
  QueryPanel panels[kMaxPanels];
};

// The kernels proper, compiled for each instruction set.
// Panels [first_panel, last_panel) of head b * N + n, at most kMaxPanels.
void attention_forward_panels(const AttentionInputs& in, const AttentionOutputs& out, int64_t head, int64_t first_panel,
                              int64_t last_panel, AttentionScratch& scratch);
// Writes those of in.key_order that are within the radius of any query of a panel, in their order, and how many.
void attention_find_keys(const AttentionInputs& in, const TokenBall* group_balls, int64_t panel, int32_t* keys,
                         int64_t* num_keys);

}  // namespace evoworld
