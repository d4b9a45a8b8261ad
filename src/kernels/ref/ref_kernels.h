// The scalar reference: docs/arithmetic.md as code. Every other table must give the same bits.
#pragma once

#include "kernels/kernel_table.h"

namespace still {

extern const CpuKernels kRefKernels;

namespace ref {

void quantize_rows(const float* x, std::int64_t x_stride, std::int64_t n_rows, std::int64_t k, std::int32_t block,
                   std::int8_t* q, float* scale, std::int16_t* sums);
template <PackedFormat kFormat>
void linear(const LinearArgs& args);
template <PackedFormat kFormat>
void pack(const PackArgs& args);
template <PackedFormat kFormat>
void coarse(const CoarseArgs& args);
void rms_norm(const float* x, const float* w, float* y, std::int64_t n, float eps);
void add_rms_norm(float* x, const float* delta, const float* w, float* y, std::int64_t n, float eps);
void add(float* y, const float* x, std::int64_t n);
void swiglu(const float* gate, const float* up, float* y, std::int64_t n);
void rope(const RopeArgs& args);
void kv_write(const KvHeadView& kv, std::int64_t pos, const float* k, const float* v);
void attention(const AttentionArgs& args);
void attention_merge(const AttentionMergeArgs& args);
std::int64_t argmax(const float* x, std::int64_t n);
float log_sum_exp(const float* x, std::int64_t n);
void exp_shifted(const float* x, float shift, float* y, std::int64_t n);

}  // namespace ref
}  // namespace still
