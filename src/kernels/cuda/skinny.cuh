// What the kernels of few rows (linear.cu) and of tiles of rows (tiles.cu) share: their arguments, and the order in
// which a row's products are added.
//
// Chunk i of a row (256 weights) belongs to part i % n_parts, a part adds its chunks in order; part p belongs to group
// p % kSumGroups, a group adds its parts in order, and the groups are added in order.
#pragma once

#include "kernels/cuda/weights.cuh"

namespace still::cuda {

inline constexpr int kSumGroups = 4, kMostParts = 16;

struct SkinnyArgs {
  CudaProduct products[kCudaMaxProducts];
  std::int32_t first_panel[kCudaMaxProducts + 1];
  CudaActivations x;
  const float* norm;  // one row: weights of an RMSNorm to be taken along, or null
  std::int64_t panel_bytes, second_panel_bytes;
  float eps;
  std::int32_t n_first, second_n_tiles;  // products of the first format
  std::int32_t n_products, k, n_tiles, n_rows;
  std::int32_t n_parts;  // of a row's sum
  CudaEpilogue epilogue;
  bool y_is_bf16, has_own_kernel;
  bool is_norm_first;     // the norm is computed before the product, with rms_norm's bits, and not divided by after it
  CudaExchange exchange;  // where the row is sent instead of stored (comm.cuh); n_ranks 0: nowhere
};

// A panel of a matrix; FP8 has its scales after the matrix. kIsSecond: of the second format.
template <class Format, bool kIsSecond = false>
__device__ __forceinline__ Panel panel_of(const SkinnyArgs& args, const CudaProduct& product, int panel_idx) {
  const std::int64_t panel_bytes = kIsSecond ? args.second_panel_bytes : args.panel_bytes;
  Panel panel{product.weights + panel_idx * panel_bytes, kIsSecond ? args.second_n_tiles : args.n_tiles,
              product.n_out - 16 * panel_idx, args.k};
  panel.scales = Format::scales_of(product.weights, product.n_out, args.k, panel_idx);
  return panel;
}

__device__ __forceinline__ void store(const SkinnyArgs& args, const CudaProduct& product, int column, int row,
                                      float v) {
  const std::int64_t at = column * product.y_stride + row;
  if (args.y_is_bf16) {
    static_cast<__nv_bfloat16*>(product.y)[at] = __float2bfloat16_rn(v);
  } else {
    static_cast<float*>(product.y)[at] = v;
  }
}

// The sum of a row's products is finished: scale, residual, bias.
template <class Format>
__device__ __forceinline__ float scaled(const Panel& panel, int row, float v) {
  if constexpr (Format::kHasRowScales) v *= panel.scales[row];
  return v;
}

__device__ __forceinline__ float swiglu(float gate, float up) {
  return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

// The parts of a row in the order of sums; part(p) is part p's.
template <class Part>
__device__ __forceinline__ float sum_of_parts(int n_parts, Part&& part) {
  float group[kSumGroups] = {};
#pragma unroll
  for (int p = 0; p < kMostParts; ++p)
    if (p < n_parts) group[p % kSumGroups] += part(p);
  float v = group[0];
#pragma unroll
  for (int g = 1; g < kSumGroups; ++g) v += group[g];
  return v;
}

// Into how many parts the sum of a row is cut, which is how many warps of a block the kernel of one row has.
int parts_of(int n_chunks, int n_panels);

// Products of rows whose images (tiles.cu) are args.x.images.
void launch_tiles(void* stream, PackedFormat format, SkinnyArgs args, int n_order);

}  // namespace still::cuda
