// The order in which an RMSNorm adds the squares of a row: eight neighbours a thread of norm_threads(k), then a tree of
// each 32 threads, then one of these sums. A product that computes the norm of its row first, in threads of its own
// number, has the bits of rms_norm_kernel.
#pragma once

#include "kernels/cuda/common.cuh"

namespace still::cuda {

// Threads for a row of k: a second turn of 8 elements each where k > kNormTurn.
inline constexpr int kNormTurn = 8192;
__host__ __device__ constexpr int norm_threads(int k) {
  return k >= kNormTurn ? 1024 : (k + 255) / 256 * 32;
}

// 1 / sqrt(mean of squares + eps) of x [k], a multiple of 8 long, by n_warps warps; `sums` [32] is in shared memory,
// and `meet` lets these warps meet.
template <class Meet>
__device__ __forceinline__ float norm_factor(const float* x, int k, float eps, float* sums, int warp, int n_warps,
                                             int lane, const Meet& meet) {
  const int n_threads = norm_threads(k);
  for (int w = warp; w < n_threads / 32; w += n_warps) {
    float sum = 0;
    for (int at = 8 * (32 * w + lane); at < k; at += 8 * n_threads) {
      const float4 a = *reinterpret_cast<const float4*>(x + at), b = *reinterpret_cast<const float4*>(x + at + 4);
      for (const float v : {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}) sum = fmaf(v, v, sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) sums[w] = sum;
  }
  meet();
  const float sum = warp_sum(lane < n_threads / 32 ? sums[lane] : 0.0f);
  return 1.0f / sqrtf(sum / static_cast<float>(k) + eps);
}

}  // namespace still::cuda
