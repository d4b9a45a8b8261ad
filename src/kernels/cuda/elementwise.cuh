// Entries of the table that live in elementwise.cu.
#pragma once

#include "kernels/cuda/cuda_kernels.h"

namespace still::cuda {

void quantize_rows(void* stream, const CudaActivations& x, std::int32_t n_rows, std::int32_t k, std::int32_t block,
                   const CudaQuantizedOut& out);
void to_bf16(void* stream, const float* x, std::int64_t n, std::uint16_t* y);
void scale_rows(void* stream, const CudaActivations& x, std::int32_t n_rows, std::int32_t k, std::uint16_t* y_f16,
                std::uint8_t* y_f8, float* scale);
void repeat_bias(void* stream, const float* bias, std::int32_t n_rows, std::int32_t n_out, float* y,
                 std::int64_t y_stride);
void rms_norm(void* stream, const CudaNormArgs& args);
void sum_parts(void* stream, const CudaSumArgs& args);
void gather(void* stream, const void* x, std::int64_t row_bytes, const std::int32_t* rows, std::int32_t n_rows,
            void* y);
void rope_kv_write(void* stream, const CudaRopeKvArgs& args);
void swiglu(void* stream, const std::uint16_t* gate_up, std::int32_t n, std::int32_t width, float* y_f32,
            std::uint16_t* y_bf16);
void fill_f32(void* stream, float* x, std::int64_t n, std::uint64_t seed, float mean, float deviation);
void read(void* stream, const void* data, std::int64_t bytes, std::uint32_t* sink);

}  // namespace still::cuda
