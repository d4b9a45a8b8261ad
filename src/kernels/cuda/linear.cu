// Products of up to 16 rows: weights stream through registers into the tensor core once, whatever the number of rows.
//
// A block takes 16 rows of the matrix (for SwiGLU: of both matrices); its warps share k in turns of a chunk, hold one
// chunk while the next is under way, and add up through shared memory in order. The first chunks are asked for before
// the predecessor has ended, so that the memory does not idle between two products.
//
// The order of sums does not depend on the number of rows (weights.cuh; floats' does): the chunks of a row are shared
// out over as many parts as the kernel of one row has warps, which the sizes of the matrices alone decide. Kernels of
// more rows compute several parts with a warp.
//
// One row has its own kernel (weights.cuh says how the tensor core is used): it makes the row's form itself, and takes
// the RMSNorm before the product along: the row times the norm's weights is multiplied, the squares are summed on the
// way, and the results are divided by the root at the end; of a row that is to have the bits it has among others the
// norm comes first (norm.cuh).
#include "kernels/cuda/comm.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/skinny.cuh"

namespace still::cuda {

namespace {
// The chunks of a warp that computes parts `first`, first + n_warps ... of n_parts, one after the other. A chunk of the
// parts is kPieces chunks of the format.
template <class Format>
struct PartWalk {
  static constexpr int kPieces = Format::kSingleChunk / Format::kChunk;
  int part, whole, piece = 0;
  __device__ __forceinline__ explicit PartWalk(int first) : part(first), whole(first) {}
  __device__ __forceinline__ int chunk() const { return whole * kPieces + piece; }
  __device__ __forceinline__ PartWalk next(int n_chunks, int n_parts, int n_warps) const {
    PartWalk after = *this;
    if (++after.piece < kPieces) return after;
    after.piece = 0;
    after.whole += n_parts;
    if (after.whole >= n_chunks) after.whole = after.part += n_warps;
    return after;
  }
};

// kColumns8: columns (rows of activations) in groups of 8.
template <class Format, int kColumns8>
__global__ void __launch_bounds__(256, 2) skinny_kernel(const __grid_constant__ SkinnyArgs args) {
  extern __shared__ float parts[];  // [matrices][parts][16][8 * kColumns8]
  constexpr int kWidth = 8 * kColumns8;
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
    const Panel panel = panel_of<Format>(args, product, panel_idx);
    const int n_chunks = Format::n_single_chunks(panel);
    float f[kColumns8][Format::kSums] = {};
    typename Format::Chunk current, next;
    PartWalk<Format> walk(warp);
    if (walk.part < args.n_parts) Format::load(current, panel, walk.chunk(), lane);
    if (matrix == 0) {
      allow_next();
      wait_for_previous();
    }
    while (walk.part < args.n_parts) {
      const PartWalk<Format> after = walk.next(n_chunks, args.n_parts, n_warps);
      if (after.part < args.n_parts) Format::load(next, panel, after.chunk(), lane);
      Format::template multiply<kColumns8>(current, panel, args.x, args.n_rows, walk.chunk(), lane, f);
      if (after.part != walk.part) {
        float* part = parts + (matrix * args.n_parts + walk.part) * 16 * kWidth;
#pragma unroll
        for (int n = 0; n < kColumns8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            part[(8 * n + 2 * t + i % 2) * 16 + g + 8 * (i / 2)] = f[n][i];
            f[n][i] = 0;
          }
        }
      }
      current = next;
      walk = after;
    }
  }
  __syncthreads();

  const CudaProduct& product = args.products[is_swiglu ? 0 : which];
  for (int i = static_cast<int>(threadIdx.x); i < 16 * args.n_rows; i += static_cast<int>(blockDim.x)) {
    const int row = 16 * panel_idx + i % 16, column = i / 16;
    if (row >= product.n_out) continue;
    float v = sum_of_parts(args.n_parts, [&](int p) { return parts[p * 16 * kWidth + i]; });
    v = scaled<Format>(panel_of<Format>(args, product, panel_idx), i % 16, v);
    if (is_swiglu) {
      float up = sum_of_parts(args.n_parts, [&](int p) { return parts[(args.n_parts + p) * 16 * kWidth + i]; });
      up = scaled<Format>(panel_of<Format>(args, args.products[1], panel_idx), i % 16, up);
      v = swiglu(v, up);
    } else if (args.epilogue == CudaEpilogue::kAdd) {
      v += static_cast<const float*>(product.y)[column * product.y_stride + row];
    } else if (product.bias != nullptr) {
      v += product.bias[row];
    }
    store(args, product, column, row, v);
  }
}

constexpr int kMostWarps = kMostParts;

// What a kernel of one row does between its first loads and its first look at the row. The number of the call that its
// results are sent in, where they are.
__device__ __forceinline__ std::uint32_t begin_row(const SkinnyArgs& args) {
  const bool is_sent = args.exchange.n_ranks > 0;
  if (!is_sent) allow_next();
  wait_for_previous();
  if (is_sent) allow_next();
  return is_sent ? next_call(args.exchange.state) : 0;
}

// The norm's factor where it comes first, else 1. By all threads of a block.
__device__ __forceinline__ float factor_before(const SkinnyArgs& args, float* sums, int warp, int n_warps, int lane) {
  if (args.norm == nullptr || !args.is_norm_first) return 1.0f;
  return norm_factor(args.x.f32, args.k, args.eps, sums, warp, n_warps, lane, [] { __syncthreads(); });
}

// One row's share of a lane: four elements and four more of a chunk; and an RMSNorm's weights there.
template <class Format>
struct RowShare {
  float4 raw[2], norm[2];
  __device__ __forceinline__ static int place(int chunk, int lane, int half, int k) {  // negative: outside
    const int at = Format::element_of(lane, half), from = chunk * Format::kSingleChunk + at;
    return at < Format::kSingleChunk && from < k ? from : -1;
  }
  __device__ __forceinline__ void load_norm(const SkinnyArgs& args, int chunk, int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int from = place(chunk, lane, half, args.k);
      norm[half] = from < 0 ? make_float4(0, 0, 0, 0) : __ldg(reinterpret_cast<const float4*>(args.norm + from));
    }
  }
  __device__ __forceinline__ void load_raw(const SkinnyArgs& args, int chunk, int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int from = place(chunk, lane, half, args.k);
      raw[half] = make_float4(0, 0, 0, 0);
      if (from < 0) continue;
      if (args.x.bf16 != nullptr) {
        const uint2 four = *reinterpret_cast<const uint2*>(args.x.bf16 + from);
        raw[half] = make_float4(__uint_as_float(four.x << 16), __uint_as_float(four.x & 0xffff0000u),
                                __uint_as_float(four.y << 16), __uint_as_float(four.y & 0xffff0000u));
      } else {
        raw[half] = *reinterpret_cast<const float4*>(args.x.f32 + from);
      }
    }
  }
  // `factor`: of the norm, where it comes first.
  __device__ __forceinline__ typename Format::Column column(const SkinnyArgs& args, int lane, float factor,
                                                            float& sum_of_squares) const {
    float v[8] = {raw[0].x, raw[0].y, raw[0].z, raw[0].w, raw[1].x, raw[1].y, raw[1].z, raw[1].w};
    if (args.norm != nullptr) {
      const float w[8] = {norm[0].x, norm[0].y, norm[0].z, norm[0].w, norm[1].x, norm[1].y, norm[1].z, norm[1].w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        sum_of_squares = fmaf(v[i], v[i], sum_of_squares);
        v[i] = v[i] * factor * w[i];
      }
    }
    return Format::make_column(v, lane);
  }
};

// A lane's share of results of rows g and g + 8 to `part` [16], complete.
template <class Format>
__device__ __forceinline__ void add_lanes(const float (&f)[4], int lane, float* part) {
  if constexpr (Format::kIsFolded) {
    if (lane % 4 < 2) part[lane / 4 + 8 * (lane % 2)] = f[0];
  } else {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float v = f[2 * r] + f[2 * r + 1];
      v += __shfl_xor_sync(0xffffffffu, v, 1);
      v += __shfl_xor_sync(0xffffffffu, v, 2);
      if (lane % 4 == 0) part[lane / 4 + 8 * r] = v;
    }
  }
}

// kMatrices: 2 for SwiGLU. A warp holds two chunks: one of each matrix, or of two turns; what is used is asked for
// anew at once.
template <class Format, int kMatrices, bool kIsSecond>
__device__ __forceinline__ void single_body(const SkinnyArgs& args) {
  __shared__ float parts[kMatrices][kMostWarps][16];
  __shared__ float squares[32];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int n_warps = static_cast<int>(blockDim.x / 32);
  const bool takes_norm = args.norm != nullptr, divides = takes_norm && !args.is_norm_first;
  int which = 0;
  if constexpr (kMatrices == 1)
    while (which + 1 < args.n_products && static_cast<int>(blockIdx.x) >= args.first_panel[which + 1]) ++which;
  const int panel_idx = static_cast<int>(blockIdx.x) - (kMatrices == 2 ? 0 : args.first_panel[which]);
  const CudaProduct& product = args.products[which];
  Panel panels[kMatrices];
#pragma unroll
  for (int m = 0; m < kMatrices; ++m)
    panels[m] = panel_of<Format, kIsSecond>(args, kMatrices == 2 ? args.products[m] : product, panel_idx);
  const int n_chunks = Format::n_single_chunks(panels[0]);
  const int step = kMatrices == 2 ? n_warps : 2 * n_warps;
  const auto chunk_of = [&](int base, int slot) { return kMatrices == 2 ? base : base + slot * n_warps; };

  typename Format::Single slots[2];
#pragma unroll
  for (int s = 0; s < 2; ++s)
    if (chunk_of(warp, s) < n_chunks)
      Format::load_single(slots[s], panels[kMatrices == 2 ? s : 0], chunk_of(warp, s), lane);
  RowShare<Format> share;
  if (takes_norm && warp < n_chunks) share.load_norm(args, warp, lane);
  const std::uint32_t call = begin_row(args);
  if (warp < n_chunks) share.load_raw(args, warp, lane);
  const int out_row = 16 * panel_idx + static_cast<int>(threadIdx.x);
  float old = 0;
  if (kMatrices == 1 && threadIdx.x < 16 && out_row < product.n_out) {
    if (args.epilogue == CudaEpilogue::kAdd) {
      old = static_cast<const float*>(product.y)[out_row];
    } else if (product.bias != nullptr) {
      old = product.bias[out_row];
    }
  }

  const float first_factor = factor_before(args, squares, warp, n_warps, lane);
  float f[kMatrices][4] = {};
  float sum_of_squares = 0;
  typename Format::Column column;
  for (int base = warp; base < n_chunks; base += step) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const int chunk = chunk_of(base, s);
      if (chunk >= n_chunks) break;
      if (kMatrices == 1 || s == 0) {
        column = share.column(args, lane, first_factor, sum_of_squares);
        if (chunk + n_warps < n_chunks) {
          share.load_raw(args, chunk + n_warps, lane);
          if (takes_norm) share.load_norm(args, chunk + n_warps, lane);
        }
      }
      const Panel& panel = panels[kMatrices == 2 ? s : 0];
      Format::multiply_single(slots[s], column, panel, chunk, lane, f[kMatrices == 2 ? s : 0]);
      if (chunk + step < n_chunks) Format::load_single(slots[s], panel, chunk + step, lane);
    }
  }
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) add_lanes<Format>(f[m], lane, parts[m][warp]);
  if (divides) {
    sum_of_squares = warp_sum(sum_of_squares);
    if (lane == 0) squares[warp] = sum_of_squares;
  }
  __syncthreads();
  if (threadIdx.x >= 16 || out_row >= product.n_out) return;

  float v[kMatrices], r = 0;
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) v[m] = sum_of_parts(n_warps, [&](int w) { return parts[m][w][threadIdx.x]; });
  if (divides)
    for (int w = 0; w < n_warps; ++w) r += squares[w];
  const float factor = divides ? 1.0f / sqrtf(r / static_cast<float>(args.k) + args.eps) : 1.0f;
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) v[m] = scaled<Format>(panels[m], static_cast<int>(threadIdx.x), v[m]) * factor;
  const float result = kMatrices == 2 ? swiglu(v[0], v[kMatrices - 1]) : v[0] + old;
  if (kMatrices == 1 && args.exchange.n_ranks > 0) {
    // The row is a multiple of 8 long.
    const unsigned mask = product.n_out - 16 * panel_idx >= 16 ? 0xffffu : 0xffu;
    send_result(args.exchange, call, mask, out_row, true, args.y_is_bf16, result);
    return;
  }
  store(args, product, 0, out_row, result);
}

template <class Format, int kMatrices>
__global__ void __launch_bounds__(32 * kMostWarps, 1) single_kernel(const __grid_constant__ SkinnyArgs args) {
  single_body<Format, kMatrices, false>(args);
}
// Products of two formats.
template <class First, class Second>
__global__ void __launch_bounds__(32 * kMostWarps, 1) mixed_kernel(const __grid_constant__ SkinnyArgs args) {
  if (static_cast<int>(blockIdx.x) < args.first_panel[args.n_first]) {
    single_body<First, 1, false>(args);
  } else {
    single_body<Second, 1, true>(args);
  }
}

// The same for matrices of many panels and rows of at most kMostWarps chunks: a block stays and takes panel after
// panel. A warp owns a chunk of the row, which it prepares once, and has two panels' (SwiGLU: both matrices') weights
// of it under way; the warps take turns at finishing panels, so that the others go on.
template <class Format, int kMatrices>
__global__ void __launch_bounds__(32 * kMostWarps, 1) stream_kernel(const __grid_constant__ SkinnyArgs args) {
  __shared__ float parts[2][2][kMostWarps][16];
  __shared__ float squares[32];
  const bool takes_norm = args.norm != nullptr, divides = takes_norm && !args.is_norm_first;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int n_warps = static_cast<int>(blockDim.x / 32), n_blocks = static_cast<int>(gridDim.x);
  const int n_panels = args.first_panel[kMatrices == 2 ? 1 : args.n_products];
  const int stride = kMatrices == 2 ? n_blocks : 2 * n_blocks;
  // Of the pair that begins at panel p, item s: its product, its panel there, and the panel's weights.
  const auto panel_at = [&](int p, int s) { return kMatrices == 2 ? p : p + s * n_blocks; };
  const auto product_at = [&](int panel_idx, int s) {
    int which = kMatrices == 2 ? s : 0;
    if constexpr (kMatrices == 1)
      while (which + 1 < args.n_products && panel_idx >= args.first_panel[which + 1]) ++which;
    return which;
  };
  const auto weights_at = [&](int panel_idx, int s) {
    const int which = product_at(panel_idx, s);
    return panel_of<Format>(args, args.products[which], panel_idx - (kMatrices == 2 ? 0 : args.first_panel[which]));
  };
  typename Format::Single slots[2];
  const auto load = [&](int p, int s) {
    if (panel_at(p, s) < n_panels) Format::load_single(slots[s], weights_at(panel_at(p, s), s), warp, lane);
  };
  RowShare<Format> share;
#pragma unroll
  for (int s = 0; s < 2; ++s) load(static_cast<int>(blockIdx.x), s);
  if (takes_norm) share.load_norm(args, warp, lane);
  const std::uint32_t call = begin_row(args);
  share.load_raw(args, warp, lane);
  const float first_factor = factor_before(args, squares, warp, n_warps, lane);
  float sum_of_squares = 0;
  const typename Format::Column column = share.column(args, lane, first_factor, sum_of_squares);
  if (divides) {
    sum_of_squares = warp_sum(sum_of_squares);
    if (lane == 0) squares[warp] = sum_of_squares;
  }

  int turn = 0;
  for (int p = static_cast<int>(blockIdx.x); p < n_panels; p += stride, ++turn) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      float f[4] = {};
      if (panel_at(p, s) < n_panels)
        Format::multiply_single(slots[s], column, weights_at(panel_at(p, s), s), warp, lane, f);
      load(p + stride, s);
      add_lanes<Format>(f, lane, parts[turn % 2][s][warp]);
    }
    __syncthreads();
    if (turn % n_warps != warp) continue;
    // Lane 16 s + r: row r of item s.
    const int s = lane / 16, panel_idx = panel_at(p, s), which = product_at(panel_idx, s);
    const CudaProduct& product = args.products[which];
    const int in_matrix = panel_idx - (kMatrices == 2 ? 0 : args.first_panel[which]);
    const int row = 16 * in_matrix + lane % 16;
    const bool is_inside = panel_idx < n_panels && row < product.n_out;
    float v = sum_of_parts(n_warps, [&](int w) { return parts[turn % 2][s][w][lane % 16]; }), r = 0;
    if (divides) {
      for (int w = 0; w < n_warps; ++w) r += squares[w];
      v *= 1.0f / sqrtf(r / static_cast<float>(args.k) + args.eps);
    }
    if (is_inside) v = scaled<Format>(panel_of<Format>(args, product, in_matrix), lane % 16, v);
    if constexpr (kMatrices == 2) {
      const float up = __shfl_down_sync(0xffffffffu, v, 16);
      if (lane < 16 && is_inside) store(args, product, 0, row, swiglu(v, up));
    } else if (args.exchange.n_ranks > 0) {
      send_result(args.exchange, call, 0xffffffffu, row, is_inside, args.y_is_bf16, v);
    } else if (is_inside) {
      if (args.epilogue == CudaEpilogue::kAdd) {
        v += static_cast<const float*>(product.y)[row];
      } else if (product.bias != nullptr) {
        v += product.bias[row];
      }
      store(args, product, 0, row, v);
    }
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

constexpr int kWarps = 16, kSkinnyWarps = 8;
// From how many panels and chunks on blocks stay: enough to share evenly, and warps enough for the memory's latency.
constexpr int kStreamPanels = 4 * kMultiprocessors, kLeastStreamWarps = 6;

// Warps of a block: those that take the fewest turns of a chunk, counted over the waves of blocks that the
// multiprocessors' registers (16 warps of these kernels each) allow; of equal ones the most, for more loads in flight.
int choose_warps(int n_chunks, int n_blocks, int most) {
  int best = 1;
  float least = 1e30f;
  for (int n = 3; n <= most; ++n) {
    const float waves = static_cast<float>(n_blocks) / static_cast<float>(kMultiprocessors * (kWarps / n));
    // The last of several waves is about half full.
    const float turns = static_cast<float>((n_chunks + n - 1) / n) * (waves <= 1 ? 1.0f : waves + 0.5f);
    if (turns <= least) best = n, least = turns;
  }
  return n_chunks < best ? (n_chunks > 0 ? n_chunks : 1) : best;
}

bool is_streamed(int n_chunks, int n_panels) {
  return n_chunks >= kLeastStreamWarps && n_chunks <= kMostWarps && n_panels >= kStreamPanels;
}

// n_order: the panels by which the order of sums is chosen.
template <class Format>
void launch_skinny(void* stream, SkinnyArgs args, int n_order) {
  const bool is_swiglu = args.epilogue == CudaEpilogue::kSwiglu;
  const int n_blocks = args.first_panel[is_swiglu ? 1 : args.n_products];
  const auto grid = static_cast<unsigned>(n_blocks);
  const int n_chunks = static_cast<int>(ceil_div(args.k, Format::kSingleChunk));
  args.n_parts = parts_of(n_chunks, n_order);
  if (args.has_own_kernel) {
    // Of both matrices no more warps than have as many turns: idle ones cost more than their loads bring.
    if (!Format::kIsFolded && is_swiglu) {
      const int n_turns = (n_chunks + args.n_parts - 1) / args.n_parts;
      args.n_parts = (n_chunks + n_turns - 1) / n_turns;
    }
    const auto block = static_cast<unsigned>(args.n_parts * 32);
    if (is_streamed(n_chunks, n_order)) {
      const auto n = static_cast<unsigned>(kMultiprocessors * (kMostWarps / n_chunks));
      if (is_swiglu) {
        launch(stream_kernel<Format, 2>, n, block, 0, stream, args);
      } else {
        launch(stream_kernel<Format, 1>, n, block, 0, stream, args);
      }
    } else if (is_swiglu) {
      launch(single_kernel<Format, 2>, grid, block, 0, stream, args);
    } else {
      launch(single_kernel<Format, 1>, grid, block, 0, stream, args);
    }
    return;
  }
  if constexpr (!Format::kIsFolded) args.n_parts = choose_warps(n_chunks, n_blocks, kSkinnyWarps);
  // As many warps as take turns of equal length.
  const int n_turns = (args.n_parts + kSkinnyWarps - 1) / kSkinnyWarps,
            n_warps = (args.n_parts + n_turns - 1) / n_turns;
  const std::size_t part = static_cast<std::size_t>(args.n_parts) * (is_swiglu ? 2 : 1) * 16 * 8 * sizeof(float);
  const auto block = static_cast<unsigned>(n_warps * 32);
  if (args.n_rows <= 8) {
    launch(skinny_kernel<Format, 1>, grid, block, part, stream, args);
  } else {
    launch(skinny_kernel<Format, 2>, grid, block, 2 * part, stream, args);
  }
}
}  // namespace

int parts_of(int n_chunks, int n_panels) {
  return is_streamed(n_chunks, n_panels) ? n_chunks : choose_warps(n_chunks, n_panels, kMostWarps);
}

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
  const bool is_float = in.format == PackedFormat::kBF16 || in.format == PackedFormat::kF16;
  args.has_own_kernel = in.n_rows == 1 && !(in.is_row_like_others && is_float);
  const int n_panels = args.first_panel[in.epilogue == CudaEpilogue::kSwiglu ? 1 : in.n_products];
  const int n_order = in.n_order_panels > 0 ? in.n_order_panels : n_panels;
  if (in.format == PackedFormat::kF32) {
    std::int32_t most = 0;
    for (int i = 0; i < in.n_products; ++i) most = in.products[i].n_out > most ? in.products[i].n_out : most;
    const auto n_z = static_cast<unsigned>(in.epilogue == CudaEpilogue::kSwiglu ? 1 : in.n_products);
    launch(f32_kernel, dim3(ceil_div(most, 4), ceil_div(in.n_rows, 8), n_z), 128, 0, stream, args);
    return;
  }
  args.exchange = in.exchange;
  args.norm = in.norm;
  args.is_norm_first = in.is_row_like_others;
  args.eps = in.eps;
  const PackedFormat packed = in.format == kCudaQ8F16 ? PackedFormat::kQ8_0 : in.format;
  args.panel_bytes = cuda_panel_bytes(packed, in.k);
  if (is_float) {
    launch_skinny<Bf16>(stream, args, n_order);
    return;
  }
  if (is_cuda_quantized(packed)) args.n_tiles = in.k / cuda_quant_layout(packed).block;
  if (in.x.images != nullptr) {
    launch_tiles(stream, in.format, args, n_order);
    return;
  }
  if (in.n_first < in.n_products && cuda_can_mix(in.format, in.second_format)) {
    using First = Quant<4, 32, true, 256>;
    using Second = Quant<6, 16, false, 256>;
    args.n_first = in.n_first;
    args.second_panel_bytes = cuda_panel_bytes(in.second_format, in.k);
    args.second_n_tiles = args.n_tiles;
    const int n_blocks = args.first_panel[in.n_products];
    const int n_warps = parts_of(args.n_tiles, n_order);
    launch(mixed_kernel<First, Second>, static_cast<unsigned>(n_blocks), static_cast<unsigned>(32 * n_warps), 0, stream,
           args);
    return;
  }
  if (in.format == kCudaQ8F16) {
    launch_skinny<Q8F16>(stream, args, n_order);
    return;
  }
  with_quant(in.format, [&](auto quant) { launch_skinny<decltype(quant)>(stream, args, n_order); });
}

}  // namespace still::cuda
