// The AVX-512-VNNI table: AVX-512's with its own products of quantised weights.
#include "kernels/cpu/avx512_vnni/parts.h"
#include "kernels/cpu/cpu_kernels.h"

namespace still {

const CpuKernels& avx512_vnni_kernels() {
  static const CpuKernels table = [] {
    CpuKernels kernels = avx512_kernels();
    kernels.name = "avx512_vnni";
    avx512_vnni_set_linear_32(kernels);
    avx512_vnni_set_linear_256(kernels);
    return kernels;
  }();
  return table;
}

}  // namespace still
