// What this machine's memory can do, measured: the roof that decoding is compared with, since each token reads all
// weights.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "base/thread_pool.h"

namespace still {

// Bytes a second that all threads of the pool read together from memory far larger than the caches: the best of several
// runs over every number of streams a thread that was tried. Takes about half a second and n_bytes of memory.
Result<double> measure_read_bandwidth(ThreadPool& threads, std::int64_t n_bytes = std::int64_t{512} << 20);

}  // namespace still
