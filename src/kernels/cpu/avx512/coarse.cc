// Coarse copies of output heads, AVX-512.
// clang-format off: what comes later is written in the terms of what comes before
#include "kernels/cpu/avx512/parts.h"
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/coarse.h"
// clang-format on

namespace still {

void avx512_set_coarse(CpuKernels& table) {
  set_coarse(table);
}

}  // namespace still
