// What makes activations and results alike in the kernels of FP8 chains (f8_chain.cu) and in those that stand before
// and behind cuBLASLt's (elementwise.cu).
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

__device__ __forceinline__ float silu_times(float gate, float up) {
  return gate / (1.0f + __expf(-gate)) * up;
}

}  // namespace still::cuda
