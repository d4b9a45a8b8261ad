// The AVX-512 table.
#include "kernels/cpu/avx512/parts.h"
#include "kernels/cpu/cpu_kernels.h"

namespace still {

const CpuKernels& avx512_kernels() {
  static const CpuKernels table = [] {
    CpuKernels kernels = avx2_kernels();
    kernels.name = "avx512";
    avx512_set_linear_32(kernels);
    avx512_set_linear_256(kernels);
    avx512_set_linear_float(kernels);
    avx512_set_pack(kernels);
    avx512_set_rows(kernels);
    avx512_set_coarse(kernels);
    return kernels;
  }();
  return table;
}

}  // namespace still
