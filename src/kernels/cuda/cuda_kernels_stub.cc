// kernels/cuda/cuda_kernels.h in a build without CUDA.
#include "kernels/cuda/cuda_kernels.h"

namespace still {

const CudaKernels* cuda_kernels() {
  return nullptr;
}
CudaGemm* make_cuda_gemm(const char** reason) {
  *reason = "this program was built without CUDA";
  return nullptr;
}

}  // namespace still
