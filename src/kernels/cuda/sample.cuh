// Entries of the table that live in sample.cu.
#pragma once

#include "kernels/cuda/cuda_kernels.h"

namespace still::cuda {

void sample(void* stream, const CudaSampleArgs& args);
void fetch_step(void* stream, const void* host, void* device, std::int64_t bytes, std::int32_t n_ids,
                const std::int32_t* drawn);
std::int64_t sample_scratch_bytes(std::int32_t n, std::int32_t vocab_size);

}  // namespace still::cuda
