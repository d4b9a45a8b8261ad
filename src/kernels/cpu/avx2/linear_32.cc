// Products with the 32-wide formats, AVX2.
#include "kernels/cpu/avx2/parts.h"
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/linear_quantized.h"

namespace still {

void avx2_set_linear_32(CpuKernels& table) {
  set_linear<Q4_0>(table, PackedFormat::kQ4_0);
  set_linear<Q4_1>(table, PackedFormat::kQ4_1);
  set_linear<Q5_0>(table, PackedFormat::kQ5_0);
  set_linear<Q5_1>(table, PackedFormat::kQ5_1);
  set_linear<Q8_0>(table, PackedFormat::kQ8_0);
  set_linear<IQ4_NL>(table, PackedFormat::kIQ4_NL);
}

}  // namespace still
