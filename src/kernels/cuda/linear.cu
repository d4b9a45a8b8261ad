// Products of up to 16 rows: weights stream through registers into the tensor core once, whatever the number of rows.
//
// A block takes 16 rows of the matrix (for SwiGLU: of both matrices); its warps share k in turns of a chunk, hold one
// chunk while the next is under way, and add up through shared memory in warp order. The first chunk is asked for
// before the predecessor has ended, so that the memory does not idle between two products.
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/weights.cuh"

namespace still::cuda {

namespace {
struct SkinnyArgs {
  CudaProduct products[kCudaMaxProducts];
  std::int32_t first_panel[kCudaMaxProducts + 1];
  CudaActivations x;
  std::int64_t panel_bytes;
  std::int32_t n_products, k, n_tiles, n_rows;
  CudaEpilogue epilogue;
  bool y_is_bf16;
};

__device__ __forceinline__ void store(const SkinnyArgs& args, const CudaProduct& product, int column, int row,
                                      float v) {
  const std::int64_t at = column * product.y_stride + row;
  if (args.y_is_bf16) {
    static_cast<__nv_bfloat16*>(product.y)[at] = __float2bfloat16_rn(v);
  } else {
    static_cast<float*>(product.y)[at] = v;
  }
}

// kGroups8: columns (rows of activations) in groups of 8; 0: one column, whose neighbours are left out of the float
// work.
template <class Format, int kGroups8>
__global__ void __launch_bounds__(256, 2) skinny_kernel(const __grid_constant__ SkinnyArgs args) {
  extern __shared__ float parts[];  // [matrices][warps][16][8 * kColumns8]
  constexpr int kColumns8 = kGroups8 == 0 ? 1 : kGroups8, kWidth = 8 * kColumns8;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int n_warps = static_cast<int>(blockDim.x / 32);
  const int g = lane / 4, t = lane % 4;
  const bool is_swiglu = args.epilogue == CudaEpilogue::kSwiglu;
  const int n_matrices = is_swiglu ? 2 : 1;
  int which = 0;
  if (!is_swiglu)
    while (which + 1 < args.n_products && static_cast<int>(blockIdx.x) >= args.first_panel[which + 1]) ++which;
  const int panel_idx = static_cast<int>(blockIdx.x) - (is_swiglu ? 0 : args.first_panel[which]);

  for (int matrix = 0; matrix < n_matrices; ++matrix) {
    const CudaProduct& product = args.products[is_swiglu ? matrix : which];
    const Panel panel{product.weights + panel_idx * args.panel_bytes, args.n_tiles, product.n_out - 16 * panel_idx,
                      args.k};
    const int n_chunks = Format::n_chunks(panel);
    float f[kColumns8][4] = {};
    typename Format::Chunk current, next;
    if (warp < n_chunks) Format::load(current, panel, warp, lane);
    if (matrix == 0) {
      allow_next();
      wait_for_previous();
    }
    for (int chunk = warp; chunk < n_chunks; chunk += n_warps) {
      if (chunk + n_warps < n_chunks) Format::load(next, panel, chunk + n_warps, lane);
      Format::template multiply<kColumns8, kGroups8 == 0>(current, panel, args.x, args.n_rows, chunk, lane, f);
      current = next;
    }
    float* part = parts + (matrix * n_warps + warp) * 16 * kWidth;
#pragma unroll
    for (int n = 0; n < kColumns8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) part[(8 * n + 2 * t + i % 2) * 16 + g + 8 * (i / 2)] = f[n][i];
  }
  __syncthreads();

  const CudaProduct& product = args.products[is_swiglu ? 0 : which];
  for (int i = static_cast<int>(threadIdx.x); i < 16 * args.n_rows; i += static_cast<int>(blockDim.x)) {
    const int row = 16 * panel_idx + i % 16, column = i / 16;
    if (row >= product.n_out) continue;
    float v = 0, up = 0;
    for (int w = 0; w < n_warps; ++w) v += parts[w * 16 * kWidth + i];
    if (is_swiglu) {
      for (int w = 0; w < n_warps; ++w) up += parts[(n_warps + w) * 16 * kWidth + i];
      v = v / (1.0f + __expf(-v)) * up;
    } else if (args.epilogue == CudaEpilogue::kAdd) {
      v += static_cast<const float*>(product.y)[column * product.y_stride + row];
    } else if (product.bias != nullptr) {
      v += product.bias[row];
    }
    store(args, product, column, row, v);
  }
}

// F32 weights: for small models and as the oracle of the others. A warp takes a row and up to 8 tokens.
__global__ void f32_kernel(const __grid_constant__ SkinnyArgs args) {
  wait_for_previous();
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int row = static_cast<int>(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
  const int first = static_cast<int>(blockIdx.y) * 8;
  const bool is_swiglu = args.epilogue == CudaEpilogue::kSwiglu;
  const CudaProduct& product = args.products[is_swiglu ? 0 : blockIdx.z];
  if (row >= product.n_out) return;
  const std::int64_t stride = (args.k + 7) / 8 * 8;
  for (int column = first; column < min(first + 8, args.n_rows); ++column) {
    float result[2] = {0, 0};
    for (int matrix = 0; matrix < (is_swiglu ? 2 : 1); ++matrix) {
      const float* w =
          reinterpret_cast<const float*>(args.products[is_swiglu ? matrix : blockIdx.z].weights) + row * stride;
      const float* x = args.x.f32 + static_cast<std::int64_t>(column) * args.k;
      float sum = 0;
      for (int i = lane; i < args.k; i += 32) sum = fmaf(w[i], x[i], sum);
      result[matrix] = warp_sum(sum);
    }
    if (lane != 0) continue;
    float v = result[0];
    if (is_swiglu) {
      v = v / (1.0f + expf(-v)) * result[1];
    } else if (args.epilogue == CudaEpilogue::kAdd) {
      v += static_cast<const float*>(product.y)[column * product.y_stride + row];
    } else if (product.bias != nullptr) {
      v += product.bias[row];
    }
    store(args, product, column, row, v);
  }
}

// Warps of a block: those that take the fewest turns of a chunk, counted over the waves of blocks that the
// multiprocessors' registers (16 warps of these kernels each) allow; of equal ones the most, for more loads in flight.
int choose_warps(int n_chunks, int n_blocks) {
  constexpr int kMultiprocessors = 132, kWarps = 16;
  int best = 1;
  float least = 1e30f;
  for (int n = 3; n <= 8; ++n) {
    const float waves = static_cast<float>(n_blocks) / static_cast<float>(kMultiprocessors * (kWarps / n));
    // The last of several waves is about half full.
    const float turns = static_cast<float>((n_chunks + n - 1) / n) * (waves <= 1 ? 1.0f : waves + 0.5f);
    if (turns <= least) best = n, least = turns;
  }
  return n_chunks < best ? (n_chunks > 0 ? n_chunks : 1) : best;
}

template <class Format>
void launch_skinny(void* stream, const SkinnyArgs& args, int n_chunks) {
  const bool is_swiglu = args.epilogue == CudaEpilogue::kSwiglu;
  const int n_blocks = args.first_panel[is_swiglu ? 1 : args.n_products];
  const int n_warps = choose_warps(n_chunks, n_blocks);
  const std::size_t part = static_cast<std::size_t>(n_warps) * (is_swiglu ? 2 : 1) * 16 * 8 * sizeof(float);
  const auto grid = static_cast<unsigned>(n_blocks), block = static_cast<unsigned>(n_warps * 32);
  if (args.n_rows == 1) {
    launch(skinny_kernel<Format, 0>, grid, block, part, stream, args);
  } else if (args.n_rows <= 8) {
    launch(skinny_kernel<Format, 1>, grid, block, part, stream, args);
  } else {
    launch(skinny_kernel<Format, 2>, grid, block, 2 * part, stream, args);
  }
}
}  // namespace

void linear(void* stream, const CudaLinearArgs& in) {
  SkinnyArgs args{};
  for (int i = 0; i < in.n_products; ++i) {
    args.products[i] = in.products[i];
    args.first_panel[i + 1] = args.first_panel[i] + (in.products[i].n_out + 15) / 16;
  }
  args.x = in.x;
  args.n_products = in.n_products;
  args.k = in.k;
  args.n_rows = in.n_rows;
  args.epilogue = in.epilogue;
  args.y_is_bf16 = in.y_is_bf16;
  if (in.format == PackedFormat::kF32) {
    std::int32_t most = 0;
    for (int i = 0; i < in.n_products; ++i) most = in.products[i].n_out > most ? in.products[i].n_out : most;
    const auto n_z = static_cast<unsigned>(in.epilogue == CudaEpilogue::kSwiglu ? 1 : in.n_products);
    launch(f32_kernel, dim3(ceil_div(most, 4), ceil_div(in.n_rows, 8), n_z), 128, 0, stream, args);
    return;
  }
  if (in.format == PackedFormat::kBF16 || in.format == PackedFormat::kF16) {
    args.panel_bytes = std::int64_t{16} * in.k * 2;
    launch_skinny<Bf16>(stream, args, static_cast<int>(ceil_div(in.k, Bf16::kChunk)));
    return;
  }
  with_quant(in.format, [&](auto quant) {
    using Format = decltype(quant);
    constexpr int kBlock = Format::kChunk == 256 ? 256 : 32;
    args.n_tiles = in.k / kBlock;
    args.panel_bytes = static_cast<std::int64_t>(args.n_tiles) * (Format::kTileQuant + Format::kTileScale);
    launch_skinny<Format>(stream, args, static_cast<int>(ceil_div(in.k, Format::kChunk)));
  });
}

}  // namespace still::cuda
