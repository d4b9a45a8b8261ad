// Products with float weights, AVX-512.
// clang-format off: what comes later is written in the terms of what comes before
#include "kernels/cpu/avx512/parts.h"
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/linear_float.h"
// clang-format on

namespace still {

void avx512_set_linear_float(CpuKernels& table) {
  table.linear[static_cast<int>(PackedFormat::kF32)] = linear_float<PackedFormat::kF32>;
  table.linear[static_cast<int>(PackedFormat::kF16)] = linear_float<PackedFormat::kF16>;
  table.linear[static_cast<int>(PackedFormat::kBF16)] = linear_float<PackedFormat::kBF16>;
}

}  // namespace still
