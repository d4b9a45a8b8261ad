// Entry of the table that lives in attention.cu.
#pragma once

#include "kernels/cuda/cuda_kernels.h"

namespace still::cuda {

void attention(void* stream, const CudaAttentionArgs& args);

}  // namespace still::cuda
