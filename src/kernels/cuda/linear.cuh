// Entries of the table that live in linear.cu, tiles.cu, f8_chain.cu, bf16_chain.cu and decode.cu.
#pragma once

#include "kernels/cuda/cuda_kernels.h"

namespace still::cuda {

void linear(void* stream, const CudaLinearArgs& args);
bool has_tiles();
void arrange_rows(void* stream, const CudaActivations& x, std::int32_t n_rows, std::int32_t k, PackedFormat format,
                  std::uint8_t* images);
std::int32_t image_kind(PackedFormat format);
bool has_f8_chains();
void linear_f8(void* stream, const CudaLinearArgs& args);
bool has_bf16_chains();
bool linear_bf16_chain(void* stream, const CudaLinearArgs& args, std::int32_t n_parts);
void dequantize(void* stream, PackedFormat format, const std::uint8_t* weights, std::int64_t n_out, std::int64_t k,
                std::int64_t row_begin, std::int64_t n_rows, std::uint16_t* out);
void embed(void* stream, PackedFormat format, const std::uint8_t* weights, std::int32_t k, const std::int32_t* ids,
           std::int32_t n, std::int32_t first_row, std::int32_t n_rows, float* y);
void fill_weights(void* stream, PackedFormat format, std::uint8_t* weights, std::int64_t n_out, std::int64_t k,
                  std::uint64_t seed, float deviation);

}  // namespace still::cuda
