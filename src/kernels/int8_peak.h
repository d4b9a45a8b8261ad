// The machine's integer dot-product peak, measured: the roof that `still bench` compares prefill with.
#pragma once

#include <string_view>

#include "base/thread_pool.h"

namespace still {

// Multiply-accumulates of int8 a second, all threads of the pool together, with the instructions of a level ("avx2",
// "amx"): the best of a few runs of some milliseconds. 0 for "ref", which has no such instructions. The level must be
// one of available_isas().
double measure_int8_peak(ThreadPool& threads, std::string_view isa);

}  // namespace still
