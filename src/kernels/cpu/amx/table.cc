// The AMX table.
#include "kernels/cpu/cpu_kernels.h"

namespace still {

const CpuKernels& amx_kernels() {
  static const CpuKernels table = [] {
    CpuKernels kernels = avx512_vnni_kernels();
    kernels.name = "amx";
    return kernels;
  }();
  return table;
}

}  // namespace still
