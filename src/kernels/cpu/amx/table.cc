// The AMX table: AVX-512-VNNI's with products of many rows on the matrix unit.
#include "kernels/cpu/amx/parts.h"
#include "kernels/cpu/cpu_kernels.h"

namespace still {

const CpuKernels& amx_kernels() {
  static const CpuKernels table = [] {
    CpuKernels kernels = avx512_vnni_kernels();
    kernels.name = "amx";
    amx_set_linear(kernels);
    return kernels;
  }();
  return table;
}

}  // namespace still
