// Products with the 256-wide formats, AVX-512-VNNI.
#include "kernels/cpu/avx512_vnni/parts.h"
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/linear_quantized.h"

namespace still {

void avx512_vnni_set_linear_256(CpuKernels& table) {
  set_linear<Q2_K>(table, PackedFormat::kQ2_K);
  set_linear<Q3_K>(table, PackedFormat::kQ3_K);
  set_linear<Q4_K>(table, PackedFormat::kQ4_K);
  set_linear<Q5_K>(table, PackedFormat::kQ5_K);
  set_linear<Q6_K>(table, PackedFormat::kQ6_K);
  set_linear<IQ4_XS>(table, PackedFormat::kIQ4_XS);
}

}  // namespace still
