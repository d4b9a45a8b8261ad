// Weights turned into floats: whole panels as bf16 for the dense product of many rows, single rows as embeddings. And
// random weights for measurements.
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/weights.cuh"

namespace still::cuda {

namespace {
// A warp takes a chunk of a panel.
template <class Format>
__global__ void __launch_bounds__(256)
    dequantize_kernel(const std::uint8_t* weights, std::int64_t panel_bytes, int n_tiles, int n_rows, int k,
                      int n_chunks, __nv_bfloat16* out) {
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
  const std::int64_t item = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  const int panel_idx = static_cast<int>(item / n_chunks), chunk = static_cast<int>(item % n_chunks);
  const bool is_inside = panel_idx * 16 < n_rows;
  const Panel panel{weights + panel_idx * panel_bytes, n_tiles, n_rows - 16 * panel_idx, k};
  typename Format::Chunk c;
  if (is_inside) Format::load(c, panel, chunk, lane);
  wait_for_previous();  // `out` may still be read
  if (!is_inside) return;
#pragma unroll
  for (int j = 0; j < Format::kGroups; ++j) {
    const int at = chunk * Format::kChunk + 32 * j;
    if (at >= k) break;
    float v[2][8];
    Format::decode(c, j, v);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = 16 * panel_idx + g + 8 * r;
      if (row >= n_rows) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint2 four = make_uint2(pack_bf16(v[r][4 * half], v[r][4 * half + 1]),
                                      pack_bf16(v[r][4 * half + 2], v[r][4 * half + 3]));
        *reinterpret_cast<uint2*>(out + static_cast<std::int64_t>(row) * k + at + Format::column_of(t, half)) = four;
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
  Format::load(c, Panel{weights + id / 16 * panel_bytes, n_tiles, 16, k}, chunk, lane);
#pragma unroll
  for (int j = 0; j < Format::kGroups; ++j) {
    const int at = chunk * Format::kChunk + 32 * j;
    if (at >= k) break;
    float v[2][8];
    Format::decode(c, j, v);
    if (id % 8 != g) continue;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float value = id % 16 < 8 ? v[0][e] : v[1][e];
      y[static_cast<std::int64_t>(token) * k + at + Format::column_of(t, e / 4) + e % 4] = value;
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
template <class Format>
__global__ void fill_quant_kernel(std::uint8_t* weights, std::int64_t panel_bytes, int n_tiles, int bits, int sub,
                                  bool has_min, int block, std::uint64_t seed, float deviation) {
  std::uint8_t* panel = weights + blockIdx.x * panel_bytes;
  const int n_words = n_tiles * Format::kTileQuant / 4;
  for (int i = static_cast<int>(threadIdx.x); i < n_words; i += static_cast<int>(blockDim.x))
    reinterpret_cast<std::uint32_t*>(panel)[i] = mix(seed + blockIdx.x, i);
  std::uint8_t* scales = panel + static_cast<std::int64_t>(n_tiles) * Format::kTileQuant;
  const int levels = 1 << (bits == 8 ? 8 : bits);
  const float step = deviation * 3.46f / levels;  // of a uniform distribution
  const int sub_scale = 32;
  const float d = block == 32 ? step : step / sub_scale;
  for (int i = static_cast<int>(threadIdx.x); i < n_tiles * 16; i += static_cast<int>(blockDim.x)) {
    std::uint8_t* tile = scales + static_cast<std::int64_t>(i / 16) * Format::kTileScale;
    const int row = i % 16;
    const float m = has_min ? (block == 32 ? -step * (levels - 1) / 2 : d * (levels - 1) / 2) : 0.0f;
    if (block == 32 && !has_min) {
      reinterpret_cast<__half*>(tile)[row] = __float2half_rn(d);
      continue;
    }
    if (has_min) {
      reinterpret_cast<__half2*>(tile)[row] = __floats2half2_rn(d, m);
    } else {
      reinterpret_cast<float*>(tile)[row] = __half2float(__float2half_rn(d));
    }
    if (block == 32) continue;
    const int n_sub = 256 / sub * (has_min ? 2 : 1);
    for (int s = 0; s < n_sub; ++s) tile[64 + row * n_sub + s] = static_cast<std::uint8_t>(sub_scale);
  }
}
}  // namespace

void dequantize(void* stream, PackedFormat format, const std::uint8_t* weights, std::int64_t k, std::int64_t row_begin,
                std::int64_t n_rows, std::uint16_t* out) {
  with_quant(format, [&](auto quant) {
    using Format = decltype(quant);
    constexpr int kBlock = Format::kChunk == 256 ? 256 : 32;
    const std::int64_t n_tiles = k / kBlock, panel_bytes = n_tiles * (Format::kTileQuant + Format::kTileScale);
    const unsigned n_chunks = ceil_div(k, Format::kChunk);
    launch(dequantize_kernel<Format>, ceil_div(ceil_div(n_rows, 16) * std::int64_t{n_chunks}, 8), 256, 0, stream,
           weights + row_begin / 16 * panel_bytes, panel_bytes, static_cast<int>(n_tiles), static_cast<int>(n_rows),
           static_cast<int>(k), static_cast<int>(n_chunks), reinterpret_cast<__nv_bfloat16*>(out));
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
  with_quant(format, [&](auto quant) {
    using Format = decltype(quant);
    constexpr int kBlock = Format::kChunk == 256 ? 256 : 32;
    const int n_tiles = k / kBlock;
    const unsigned n_chunks = ceil_div(k, Format::kChunk);
    launch(embed_kernel<Format>, ceil_div(std::int64_t{n} * n_chunks, 8), 256, 0, stream, weights,
           static_cast<std::int64_t>(n_tiles) * (Format::kTileQuant + Format::kTileScale), n_tiles, k,
           static_cast<int>(n_chunks), ids, n, first_row, n_rows, y);
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
  with_quant(format, [&](auto quant) {
    using Format = decltype(quant);
    constexpr int kBlock = Format::kChunk == 256 ? 256 : 32;
    launch(fill_quant_kernel<Format>, ceil_div(n_out, 16), 256, 0, stream, weights,
           k / kBlock * (Format::kTileQuant + Format::kTileScale), static_cast<int>(k / kBlock), Format::kStoredBits,
           Format::kSubBlock, Format::kHasMin, kBlock, seed, deviation);
  });
}

}  // namespace still::cuda
