// What makes activations and results alike in the kernels of chains (f8_chain.cu, bf16_chain.cu) and in those that
// stand before and behind cuBLASLt's (elementwise.cu).
#pragma once

#include <cuda_fp8.h>

#include "kernels/cuda/common.cuh"

namespace still::cuda {

// A row's scale, a power of two, so that the order in which a result is scaled does not matter.
struct F8Scale {
  float scale, inverse;
};
__device__ __forceinline__ F8Scale f8_scale_of(float most, bool is_finite) {
  const std::uint32_t bits = __float_as_uint(fmaxf(most, 0x1p-100f) / 448.0f);
  const std::uint32_t exponent = (bits + 0x7fffffu) >> 23;  // rounded up
  return {is_finite ? __uint_as_float(exponent << 23) : __int_as_float(0x7fc00000),
          __uint_as_float((254 - exponent) << 23)};
}
__device__ __forceinline__ std::uint32_t to_e4m3_four(float a, float b, float c, float d) {
  const std::uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3),
                      high = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}

// Threads of one kind meet at barrier `idx` (0 is __syncthreads').
__device__ __forceinline__ void meet(int idx, int n_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(idx), "r"(n_threads) : "memory");
}

// What f32 rows are multiplied by on their way: an RMSNorm's factor, and its weights [k] or null for none.
struct RowNorm {
  const float* w = nullptr;
  float factor = 1;
};

// A row (f32, or bf16 where that is null; k a multiple of 4) as e4m3 by kThreads threads, zeros behind it up to
// n_padded; uses barrier 1. Most rows are read once, into registers.
inline constexpr int kRowThreads = 512;
// kTurns: of 4 values of a thread, which it keeps.
template <int kThreads, int kTurns>
__device__ __forceinline__ F8Scale row_to_e4m3_in(const float* f32, const __nv_bfloat16* bf16, int k, std::uint8_t* row,
                                                  int n_padded, RowNorm norm) {
  __shared__ float shared_most[kThreads / 32], shared_bad[kThreads / 32];
  const int thread = static_cast<int>(threadIdx.x), n = k / 4;
  const auto load = [&](int i) {
    if (f32 != nullptr) {
      float4 v = reinterpret_cast<const float4*>(f32)[i];
      if (norm.w != nullptr) {
        const float4 w = __ldg(reinterpret_cast<const float4*>(norm.w) + i);
        // Not to be taken into a sum: look() subtracts these from themselves.
        v.x = __fmul_rn(v.x * norm.factor, w.x), v.y = __fmul_rn(v.y * norm.factor, w.y);
        v.z = __fmul_rn(v.z * norm.factor, w.z), v.w = __fmul_rn(v.w * norm.factor, w.w);
      }
      return v;
    }
    const uint2 four = reinterpret_cast<const uint2*>(bf16)[i];
    return make_float4(__uint_as_float(four.x << 16), __uint_as_float(four.x & 0xffff0000u),
                       __uint_as_float(four.y << 16), __uint_as_float(four.y & 0xffff0000u));
  };
  float4 kept[kTurns];
  float most = 0, bad = 0;
  const auto look = [&](const float4& v) {
    most = fmaxf(fmaxf(most, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
    bad += (v.x - v.x) + (v.y - v.y) + ((v.z - v.z) + (v.w - v.w));  // NaN where one is NaN or infinite
  };
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int i = turn * kThreads + thread;
    kept[turn] = i < n ? load(i) : make_float4(0, 0, 0, 0);
  }
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) look(kept[turn]);
  for (int i = kTurns * kThreads + thread; i < n; i += kThreads) look(load(i));
#pragma unroll
  for (int i = 16; i > 0; i /= 2) {
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
    bad += __shfl_xor_sync(0xffffffffu, bad, i);
  }
  if (thread % 32 == 0) shared_most[thread / 32] = most, shared_bad[thread / 32] = bad;
  meet(1, kThreads);
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) most = fmaxf(most, shared_most[w]), bad += shared_bad[w];
  const F8Scale scale = f8_scale_of(most, bad == 0.0f);
  const auto put = [&](int i, const float4& v) {
    reinterpret_cast<std::uint32_t*>(row)[i] =
        to_e4m3_four(v.x * scale.inverse, v.y * scale.inverse, v.z * scale.inverse, v.w * scale.inverse);
  };
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int i = turn * kThreads + thread;
    if (i < n_padded / 4) put(i, kept[turn]);
  }
  for (int i = kTurns * kThreads + thread; i < n_padded / 4; i += kThreads)
    put(i, i < n ? load(i) : make_float4(0, 0, 0, 0));
  return scale;
}
template <int kThreads = kRowThreads>
__device__ __forceinline__ F8Scale row_to_e4m3(const float* f32, const __nv_bfloat16* bf16, int k, std::uint8_t* row,
                                               int n_padded, RowNorm norm = {}) {
  constexpr int kFew = 2, kMany = 14;
  return n_padded <= 4 * kFew * kThreads ? row_to_e4m3_in<kThreads, kFew>(f32, bf16, k, row, n_padded, norm)
                                         : row_to_e4m3_in<kThreads, kMany>(f32, bf16, k, row, n_padded, norm);
}

__device__ __forceinline__ float silu_times(float gate, float up) {
  return gate / (1.0f + __expf(-gate)) * up;
}
// SwiGLU as of a dense product, whose results are rounded to bf16.
__device__ __forceinline__ float gated(float gate, float up) {
  return silu_times(__bfloat162float(__float2bfloat16_rn(gate)), __bfloat162float(__float2bfloat16_rn(up)));
}

}  // namespace still::cuda
