// Weights turned into floats: whole panels as bf16 for the dense product of many rows, single rows as embeddings. And
// random weights for measurements.
#include <cuda_fp8.h>

#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/weights.cuh"

namespace still::cuda {

namespace {
// A warp takes a chunk of a panel.
template <class Format>
__global__ void __launch_bounds__(256)
    dequantize_kernel(const std::uint8_t* weights, std::int64_t panel_bytes, int n_out, int first_panel, int n_tiles,
                      int n_rows, int k, int n_chunks, __nv_bfloat16* out) {
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
  const std::int64_t item = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  const int panel_idx = static_cast<int>(item / n_chunks), chunk = static_cast<int>(item % n_chunks);
  const bool is_inside = panel_idx * 16 < n_rows;
  Panel panel{weights + (first_panel + panel_idx) * panel_bytes, n_tiles, n_rows - 16 * panel_idx, k};
  panel.scales = Format::scales_of(weights, n_out, k, first_panel + panel_idx);
  typename Format::Chunk c;
  if (is_inside) Format::load(c, panel, chunk, lane);
  wait_for_previous();  // `out` may still be read
  if (!is_inside) return;
#pragma unroll
  for (int j = 0; j < Format::kGroups; ++j) {
    if (chunk * Format::kChunk + Format::place_of(j, 0, 0) >= k) break;
    float v[2][8];
    Format::decode(c, panel, chunk, j, lane, v);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = 16 * panel_idx + g + 8 * r;
      if (row >= n_rows) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint2 four = make_uint2(pack_bf16(v[r][4 * half], v[r][4 * half + 1]),
                                      pack_bf16(v[r][4 * half + 2], v[r][4 * half + 3]));
        const int column = chunk * Format::kChunk + Format::place_of(j, t, half);
        if (column < k) *reinterpret_cast<uint2*>(out + static_cast<std::int64_t>(row) * k + column) = four;
      }
    }
  }
}

// A warp takes a chunk of one token's row: it loads the panel's chunk, and the lanes that hold the row write.
template <class Format>
__global__ void __launch_bounds__(256)
    embed_kernel(const std::uint8_t* weights, std::int64_t panel_bytes, int n_tiles, int k, int n_chunks,
                 const std::int32_t* ids, int n, int first_row, int n_rows, float* y) {
  wait_for_previous();
  allow_next();
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
  const int item = static_cast<int>(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
  const int token = item / n_chunks, chunk = item % n_chunks;
  if (token >= n) return;
  const int id = ids[token] - first_row;
  if (id < 0 || id >= n_rows) {  // another rank's
    for (int i = chunk * Format::kChunk + lane; i < min(k, (chunk + 1) * Format::kChunk); i += 32)
      y[static_cast<std::int64_t>(token) * k + i] = 0;
    return;
  }
  typename Format::Chunk c;
  Panel panel{weights + id / 16 * panel_bytes, n_tiles, min(16, n_rows - id / 16 * 16), k};
  panel.scales = Format::scales_of(weights, n_rows, k, id / 16);
  Format::load(c, panel, chunk, lane);
#pragma unroll
  for (int j = 0; j < Format::kGroups; ++j) {
    if (chunk * Format::kChunk + Format::place_of(j, 0, 0) >= k) break;
    float v[2][8];
    Format::decode(c, panel, chunk, j, lane, v);
    if (id % 8 != g) continue;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float value = id % 16 < 8 ? v[0][e] : v[1][e];
      const int column = chunk * Format::kChunk + Format::place_of(j, t, e / 4) + e % 4;
      if (column < k) y[static_cast<std::int64_t>(token) * k + column] = value;
    }
  }
}

template <bool kIsBf16>
__global__ void embed_floats_kernel(const std::uint8_t* weights, int k, std::int64_t stride, const std::int32_t* ids,
                                    int first_row, int n_rows, float* y) {
  wait_for_previous();
  allow_next();
  const int id = ids[blockIdx.x] - first_row;
  const bool is_here = id >= 0 && id < n_rows;
  const std::int64_t row = id * stride;
  for (int i = static_cast<int>(threadIdx.x); i < k; i += static_cast<int>(blockDim.x)) {
    y[static_cast<std::int64_t>(blockIdx.x) * k + i] =
        !is_here  ? 0.0f
        : kIsBf16 ? __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(weights)[row + i])
                  : reinterpret_cast<const float*>(weights)[row + i];
  }
}

__device__ __forceinline__ std::uint32_t mix(std::uint64_t seed, std::uint64_t i) {
  std::uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return static_cast<std::uint32_t>(z >> 32);
}
__device__ __forceinline__ float normal(std::uint32_t bits) {  // four uniforms: near enough for weights of no meaning
  float sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<float>((bits >> (8 * i)) & 255u) * (1.0f / 255) - 0.5f;
  return sum * 1.7320508f;
}

__global__ void fill_bf16_kernel(__nv_bfloat16* w, std::int64_t n, std::uint64_t seed, float deviation) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < n;
       i += std::int64_t{gridDim.x} * blockDim.x)
    w[i] = __float2bfloat16_rn(deviation * normal(mix(seed, i)));
}
__global__ void fill_float_kernel(float* w, std::int64_t n, std::uint64_t seed, float deviation) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < n;
       i += std::int64_t{gridDim.x} * blockDim.x)
    w[i] = deviation * normal(mix(seed, i));
}

// A block takes a panel: random quants, then scales that make a weight about `deviation` large, symmetric about zero.
__global__ void fill_quant_kernel(std::uint8_t* weights, std::int64_t panel_bytes, std::int64_t quant_bytes,
                                  CudaQuantLayout layout, int scale_bytes, std::uint64_t seed, float deviation) {
  std::uint8_t* panel = weights + blockIdx.x * panel_bytes;
  for (int i = static_cast<int>(threadIdx.x); i < quant_bytes / 4; i += static_cast<int>(blockDim.x))
    reinterpret_cast<std::uint32_t*>(panel)[i] = mix(seed + blockIdx.x, i);
  const float step = deviation * 3.46f / (1 << layout.bits);  // of a uniform distribution
  const int sub_scale = 32, middle = (1 << layout.bits) - 1;
  const float d = layout.block == 32 ? step : step / sub_scale;
  const __half m = __float2half_rn(layout.block == 32 ? -step * middle / 2 : d * middle / 2);
  for (int i = static_cast<int>(threadIdx.x); i < panel_bytes - quant_bytes; i += static_cast<int>(blockDim.x)) {
    std::uint8_t* at = panel + quant_bytes + i;
    if (layout.block == 32) {  // halves: two of d, two of m, or d alone
      const bool is_min = layout.has_min && i / 2 % 4 >= 2;
      if (i % 2 == 0) *reinterpret_cast<__half*>(at) = is_min ? m : __float2half_rn(d);
      continue;
    }
    const int in_tile = i % scale_bytes;
    if (in_tile >= 64) {
      *at = static_cast<std::uint8_t>(sub_scale);
    } else if (in_tile % 4 == 0 && layout.has_min) {
      *reinterpret_cast<__half2*>(at) = __halves2half2(__float2half_rn(d), m);
    } else if (in_tile % 4 == 0) {
      *reinterpret_cast<float*>(at) = __half2float(__float2half_rn(d));
    }
  }
}

// Random finite e4m3 of both signs, about evenly spread to 448; scales that make a weight about `deviation` large.
__global__ void fill_f8_kernel(std::uint8_t* weights, std::int64_t n, std::int64_t n_scales, std::uint64_t seed,
                               float deviation) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  const std::int64_t first = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x;
  for (std::int64_t i = first; i < n; i += stride) {
    const __half v = __float2half_rn(100.0f * normal(mix(seed, i)));
    std::uint8_t byte = 0;
#if __CUDA_ARCH__ >= 890
    byte = static_cast<std::uint8_t>(__nv_cvt_halfraw_to_fp8(static_cast<__half_raw>(v), __NV_SATFINITE, __NV_E4M3));
#else
    byte = static_cast<std::uint8_t>(mix(seed, i) & 0xf7u);
#endif
    weights[i] = byte;
  }
  auto* scales = reinterpret_cast<float*>(weights + n);
  for (std::int64_t i = first; i < n_scales; i += stride) scales[i] = deviation / 100;
}
}  // namespace

void dequantize(void* stream, PackedFormat format, const std::uint8_t* weights, std::int64_t n_out, std::int64_t k,
                std::int64_t row_begin, std::int64_t n_rows, std::uint16_t* out) {
  const std::int64_t n_tiles = is_cuda_quantized(format) ? k / cuda_quant_layout(format).block : 0;
  with_quant(format, [&](auto quant) {
    using Format = decltype(quant);
    const unsigned n_chunks = ceil_div(k, Format::kChunk);
    launch(dequantize_kernel<Format>, ceil_div(ceil_div(n_rows, 16) * std::int64_t{n_chunks}, 8), 256, 0, stream,
           weights, cuda_panel_bytes(format, k), static_cast<int>(n_out), static_cast<int>(row_begin / 16),
           static_cast<int>(n_tiles), static_cast<int>(n_rows), static_cast<int>(k), static_cast<int>(n_chunks),
           reinterpret_cast<__nv_bfloat16*>(out));
  });
}

void embed(void* stream, PackedFormat format, const std::uint8_t* weights, std::int32_t k, const std::int32_t* ids,
           std::int32_t n, std::int32_t first_row, std::int32_t n_rows, float* y) {
  const auto n_blocks = static_cast<unsigned>(n);
  const std::int64_t stride = (std::int64_t{k} + 7) / 8 * 8;
  if (format == PackedFormat::kF32) {
    launch(embed_floats_kernel<false>, n_blocks, 256, 0, stream, weights, k, stride, ids, first_row, n_rows, y);
    return;
  }
  if (format == PackedFormat::kBF16 || format == PackedFormat::kF16) {
    launch(embed_floats_kernel<true>, n_blocks, 256, 0, stream, weights, k, stride, ids, first_row, n_rows, y);
    return;
  }
  const std::int64_t n_tiles = is_cuda_quantized(format) ? k / cuda_quant_layout(format).block : 0;
  with_quant(format, [&](auto quant) {
    using Format = decltype(quant);
    const unsigned n_chunks = ceil_div(k, Format::kChunk);
    launch(embed_kernel<Format>, ceil_div(std::int64_t{n} * n_chunks, 8), 256, 0, stream, weights,
           cuda_panel_bytes(format, k), static_cast<int>(n_tiles), k, static_cast<int>(n_chunks), ids, n, first_row,
           n_rows, y);
  });
}

void fill_weights(void* stream, PackedFormat format, std::uint8_t* weights, std::int64_t n_out, std::int64_t k,
                  std::uint64_t seed, float deviation) {
  const std::int64_t n = n_out * ((k + 7) / 8 * 8);
  if (format == PackedFormat::kF32) {
    launch(fill_float_kernel, 1024, 256, 0, stream, reinterpret_cast<float*>(weights), n, seed, deviation);
    return;
  }
  if (format == PackedFormat::kBF16 || format == PackedFormat::kF16) {
    launch(fill_bf16_kernel, 1024, 256, 0, stream, reinterpret_cast<__nv_bfloat16*>(weights), n, seed, deviation);
    return;
  }
  if (is_cuda_f8(format)) {
    launch(fill_f8_kernel, 1024, 256, 0, stream, weights, n_out * k, cuda_f8_scales(format, n_out, k), seed, deviation);
    return;
  }
  const CudaQuantLayout layout = cuda_quant_layout(format);
  launch(fill_quant_kernel, ceil_div(n_out, 16), 256, 0, stream, weights, cuda_panel_bytes(format, k),
         k / layout.block * layout.quant_bytes(), layout, layout.scale_bytes(), seed, deviation);
}

}  // namespace still::cuda
