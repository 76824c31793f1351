// A small thread pool for the CPU kernels: work is handed out in chunks as threads come free, and idle threads sleep.
//
// OpenMP's teams spin at barriers and wait for every member: on a busy machine two of its threads are slower than one.
// Here a thread that gets no processor takes no chunk, and the caller never waits for more than the chunks already
// begun.
#pragma once

#include <cstdint>
#include <functional>

namespace evoworld {

// Calls body(begin, end) for consecutive ranges of at most `grain` that cover [0, count), on up to `num_threads`
// threads. An exception of the body is rethrown to the caller after all chunks that had begun are done.
void parallel_for(int64_t count, int64_t grain, int num_threads, const std::function<void(int64_t, int64_t)>& body);

// Threads that calls from this thread shall use, as set by evoworld_cpu_use_threads; 0: none was set, so torch's
// number.
int chosen_num_threads();

}  // namespace evoworld
