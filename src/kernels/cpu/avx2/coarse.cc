// Coarse copies of output heads, AVX2.
// clang-format off: what comes later is written in the terms of what comes before
#include "kernels/cpu/avx2/parts.h"
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/coarse.h"
// clang-format on

namespace still {

void avx2_set_coarse(CpuKernels& table) {
  set_coarse(table);
}

}  // namespace still
