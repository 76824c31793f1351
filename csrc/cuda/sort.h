// Sorting pairs on a GPU.
#pragma once

#include "cuda/launch.h"

namespace evoworld {

// Sorts pairs by the low `end_bit` bits of their keys, the others being zero; pairs of equal keys keep their order.
// The sorted arrays are other ones than the given, which are only read. Up to 2^31 - 1 pairs; nothing waits for it.
void sort_pairs(const unsigned long long* keys /* [N] */, unsigned long long* sorted_keys /* [N] */,
                const int32_t* values /* [N] */, int32_t* sorted_values /* [N] */, int64_t count, int end_bit,
                const Stream& stream);

}  // namespace evoworld
