// The AVX2 table.
#include "kernels/cpu/avx2/parts.h"
#include "kernels/cpu/cpu_kernels.h"

namespace still {

const CpuKernels& avx2_kernels() {
  static const CpuKernels table = [] {
    CpuKernels kernels = kRefKernels;
    kernels.name = "avx2";
    avx2_set_linear_32(kernels);
    avx2_set_linear_256(kernels);
    avx2_set_linear_float(kernels);
    avx2_set_pack(kernels);
    avx2_set_rows(kernels);
    avx2_set_coarse(kernels);
    return kernels;
  }();
  return table;
}

}  // namespace still
