// Entries of the table that live in sample.cu.
#pragma once

#include "kernels/cuda/cuda_kernels.h"

namespace still::cuda {

void sample(void* stream, const float* logits, std::int32_t vocab_size, const CudaSampleRow* rows, std::int32_t n,
            std::uint8_t* scratch, std::int32_t* ids);
std::int64_t sample_scratch_bytes(std::int32_t n, std::int32_t vocab_size);

}  // namespace still::cuda
