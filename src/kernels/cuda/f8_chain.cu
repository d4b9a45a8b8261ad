// Products of FP8 weights that have a scale for each row with rows of e4m3: for any number of rows one order of sums, a
// chain over k of the tensor core's steps of 32 (wgmma, m64nNk32). So a row's result depends on that row alone, and
// cuBLASLt's algorithms that do not cut k give the same bits. Of a long row and few outputs, whose chain would take
// longer than its bytes, k is cut in two (cuda_f8_parts): each part is a chain, their scaled results are added in
// order, as by a call of cuBLASLt for each part. In a block the parts are multiplied side by side, by a warpgroup each.
//
// Weights are wgmma's A operand, `box_rows` rows of a matrix a block; where that is less than 64 the
// instruction reads what lies behind and its other results are thrown away, so that the blocks of a small matrix are as
// many as the device has multiprocessors. A thread of a warp of its own asks the copy engine for weights (before the
// predecessor has ended: most of a multiprocessor's shared memory is a ring of them) and for activations. Blocks stay
// and take tile after tile.
//
// A row alone is made e4m3 by the block that reads it, as scale_rows does, while weights are on their way.
#include <algorithm>
#include <type_traits>

#include "base/check.h"
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/f8_chain.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/tensor_map.cuh"

namespace still::cuda {

namespace {
constexpr int kSliceK = 128;  // k of a slice: a row of the copy engine's swizzle
constexpr int kMostStages = 32;
constexpr int kSharedBytes = 227 * 1024;  // of a block
// A row alone and a small matrix: two blocks, of kernels that follow one another, share a multiprocessor then.
constexpr int kShortRowThreads = 256, kShortRow = 2048;
constexpr std::int64_t kSmallWeights = 32'000'000;
constexpr int kPadBytes = 8192;  // rows that are none of a tile's, behind the last one's
constexpr int kExchangeColumns = 32, kExchangeStride = 64 + 4;
constexpr int kExchangeResults = 16;  // of a thread, from a later part to the first

struct ChainArgs {
  CUtensorMap weights[kCudaMaxProducts];
  CUtensorMap x;  // but for a row alone
  CudaProduct products[kCudaMaxProducts];
  const float* w_scale[kCudaMaxProducts];
  std::int32_t first_tile[kCudaMaxProducts + 1];  // of rows of the matrices
  const float* row_f32;
  const float* norm;  // weights of an RMSNorm of row_f32, or null
  float eps;
  const __nv_bfloat16* row_bf16;
  const float* x_scale;
  std::int32_t n_products, k, n_rows;
  std::int32_t part_slices;  // of k of each part but the last, which may have fewer
  std::int32_t box_rows;     // rows of a matrix in a box; a tile is one, or of SwiGLU two
  std::int32_t n_tiles, n_column_tiles;
  std::int32_t n_stages;
  CudaEpilogue epilogue;
  bool y_is_bf16;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// A box of a matrix of bytes: `column` the first of 128, `row` the first row. What is outside is zero.
__device__ __forceinline__ void copy_box(std::uint8_t* to, const CUtensorMap* map, int column, int row,
                                         std::uint64_t* barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, "
      "%3}], "
      "[%4], %5;" ::"r"(shared_address(to)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}
// Operands in shared memory: the low word says where. Rows of 128 bytes in the swizzle of that width, eight of them
// together; or a row as it is, without a swizzle, the second 16 bytes of a step behind the first: the seven other rows
// of the operand are what lies behind.
__device__ __forceinline__ std::uint32_t operand_at(std::uint32_t address) {
  return address >> 4 | 1u << 16;
}
__device__ __forceinline__ std::uint64_t swizzled_operand(std::uint32_t low) {
  return std::uint64_t{1024 / 16 | 1u << 30} << 32 | low;
}
__device__ __forceinline__ std::uint64_t row_operand(std::uint32_t low) {
  return std::uint64_t{128 / 16} << 32 | low;
}

// d (+)= a b with a [64 x 32] and b [32 x n] of e4m3 in shared memory.
#define STILL_R4 "%0,%1,%2,%3"
#define STILL_R8 STILL_R4 ",%4,%5,%6,%7"
#define STILL_R16 STILL_R8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define STILL_R32 STILL_R16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define STILL_R64                                                    \
  STILL_R32                                                          \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47" \
  ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define STILL_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define STILL_D8(i) STILL_D4(i), STILL_D4(i + 4)
#define STILL_D16(i) STILL_D8(i), STILL_D8(i + 8)
#define STILL_D32(i) STILL_D16(i), STILL_D16(i + 16)
#define STILL_D64(i) STILL_D32(i), STILL_D32(i + 32)
#define STILL_STEP(n, size, a_at, b_at, p_at)                                                                    \
  __device__ __forceinline__ void chain_step(float(&d)[size], std::uint64_t a, std::uint64_t b, bool is_added) { \
    asm volatile(                                                                                                \
        "{.reg .pred p;\n"                                                                                       \
        "setp.ne.b32 p, %" #p_at                                                                                 \
        ", 0;\n"                                                                                                 \
        "wgmma.mma_async.sync.aligned.m64n" #n "k32.f32.e4m3.e4m3 {" STILL_R##size "}, %" #a_at ", %" #b_at      \
                                                                                   ", p, 1, 1;}"                 \
        : STILL_D##size(0)                                                                                       \
        : "l"(a), "l"(b), "r"(static_cast<int>(is_added)));                                                      \
  }
STILL_STEP(8, 4, 4, 5, 6)
STILL_STEP(16, 8, 8, 9, 10)
STILL_STEP(32, 16, 16, 17, 18)
STILL_STEP(64, 32, 32, 33, 34)
STILL_STEP(128, 64, 64, 65, 66)

// Where a block is: a tile of the matrices' rows times one of rows of activations.
struct Place {
  int which, tile, column_tile;
};
__device__ __forceinline__ Place place_of(const ChainArgs& args, int item) {
  Place place{0, item / args.n_column_tiles, item % args.n_column_tiles};
  while (place.which + 1 < args.n_products && place.tile >= args.first_tile[place.which + 1]) ++place.which;
  place.tile -= args.first_tile[place.which];
  return place;
}

// kColumns: rows of activations of a tile. kSlices: slices of k of a stage, of each part; of a row that is not cut,
// four leave none. kRow: threads that make a row alone e4m3; 0: there are several.
template <int kColumns, int kSlices, int kParts, int kRow>
__device__ __forceinline__ void chain_body(const ChainArgs& args) {
  constexpr bool kIsRow = kRow > 0;
  constexpr int kSize = kColumns / 2, kMultipliers = 128 * kParts;
  constexpr int kProducer = kIsRow ? kRow : kMultipliers;
  constexpr bool kIsEarly = kColumns <= 64;  // what a result is added to is read before the products
  extern __shared__ __align__(1024) std::uint8_t ring[];
  __shared__ std::uint64_t full[kMostStages], empty[kMostStages];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const bool is_swiglu = kParts == 1 && args.epilogue == CudaEpilogue::kSwiglu;
  const int n_matrices = is_swiglu ? 2 : 1;
  const int box_bytes = args.box_rows * kSliceK, slice_bytes = n_matrices * box_bytes;
  const int x_bytes = kIsRow ? 0 : kColumns * kSliceK;
  const int stage_bytes = kParts * kSlices * (slice_bytes + x_bytes);
  const int n_slices = (args.k + kSliceK - 1) / kSliceK, part_slices = kParts == 1 ? n_slices : args.part_slices;
  const int n_steps = (part_slices + kSlices - 1) / kSlices;
  const auto slices_of = [&](int part, int step) {
    return max(0, min(kSlices, min(part_slices, n_slices - part * part_slices) - step * kSlices));
  };
  const int n_items = args.n_tiles * args.n_column_tiles;
  const int n_stages = args.n_stages;
  std::uint8_t* row = ring + n_stages * stage_bytes + kPadBytes;
  if (thread == 0) {
    for (int i = 0; i < n_stages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], 4 * kParts);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  if (thread >= kProducer) {
    if (thread == kProducer) {
      std::uint64_t once, shared, again;
      asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
      asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(shared));
      asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(again));
      const std::uint64_t weights_policy = args.n_column_tiles == 1 ? once : shared;
      // A stage's weights or activations; q counts stages over all tiles.
      const auto ask_weights = [&](const Place& place, int step, int stage) {
        int n_all = 0;
#pragma unroll
        for (int part = 0; part < kParts; ++part) n_all += slices_of(part, step);
        expect_bytes(&full[stage], static_cast<unsigned>(n_all * (slice_bytes + x_bytes)));
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          const int n_here = slices_of(part, step);
          for (int s = 0; s < n_here; ++s) {
            std::uint8_t* to = ring + stage * stage_bytes + (part * kSlices + s) * slice_bytes;
            const int column = (part * part_slices + step * kSlices + s) * kSliceK;
            for (int box = 0; box < n_matrices; ++box)
              copy_box(to + box * box_bytes, &args.weights[is_swiglu ? box : place.which], column,
                       place.tile * args.box_rows, &full[stage], weights_policy);
          }
        }
      };
      const auto ask_x = [&](const Place& place, int step, int stage) {
        if constexpr (!kIsRow) {
#pragma unroll
          for (int part = 0; part < kParts; ++part) {
            const int n_here = slices_of(part, step);
            for (int s = 0; s < n_here; ++s) {
              const int at = part * kSlices + s;
              std::uint8_t* to = ring + stage * stage_bytes + kParts * kSlices * slice_bytes + at * x_bytes;
              copy_box(to, &args.x, (part * part_slices + step * kSlices + s) * kSliceK, place.column_tile * kColumns,
                       &full[stage], again);
            }
          }
        }
      };
      // Weights of as many stages as there are do not wait for the predecessor.
      int item = static_cast<int>(blockIdx.x), step = 0, q = 0;
      Place place = place_of(args, item);
      const auto advance = [&] {
        ++q;
        if (++step < n_steps) return;
        step = 0;
        item += static_cast<int>(gridDim.x);
        if (item < n_items) place = place_of(args, item);
      };
      while (item < n_items && q < n_stages) {
        ask_weights(place, step, q);
        advance();
      }
      allow_next();
      wait_for_previous();
      if constexpr (!kIsRow) {
        const int n_asked = q;
        item = static_cast<int>(blockIdx.x), step = 0, q = 0;
        place = place_of(args, item);
        while (q < n_asked) {
          ask_x(place, step, q);
          advance();
        }
      }
      while (item < n_items) {
        const int stage = q % n_stages;
        barrier_wait(&empty[stage], static_cast<unsigned>(q / n_stages - 1) % 2);
        ask_weights(place, step, stage);
        ask_x(place, step, stage);
        advance();
      }
    }
    return;
  }

  allow_next();
  wait_for_previous();
  float own_scale = 0;
  if constexpr (kIsRow) {
    __shared__ float squares[32];
    RowNorm norm;
    if (args.norm != nullptr) {
      const int n_warps = kRow / 32;
      norm = {args.norm,
              norm_factor(args.row_f32, args.k, args.eps, squares, thread / 32, n_warps, lane, [] { meet(1, kRow); })};
    }
    own_scale = row_to_e4m3<kRow>(args.row_f32, args.row_bf16, args.k, row, n_slices * kSliceK, norm).scale;
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    meet(1, kRow);
    if (thread >= kMultipliers) return;
  }
  const int part = kParts == 1 ? 0 : __shfl_sync(0xffffffffu, thread / 128, 0), own = thread - 128 * part;
  const int warp = own / 32, g = lane / 4, t = lane % 4;
  const std::uint32_t ring_at = shared_address(ring), row_at = shared_address(row);
  float d[kSize];
  int stage = 0;
  unsigned parity = 0;
  int before = -1;  // the stage whose products may still be under way
  const auto release = [&] {
    if (before >= 0 && lane == 0) barrier_arrive(&empty[before]);
  };
  for (int item = static_cast<int>(blockIdx.x); item < n_items; item += static_cast<int>(gridDim.x)) {
    const Place place = place_of(args, item);
    const int first_column = place.column_tile * kColumns;
    // The thread's two rows of the tile: whose they are.
    int at[2];
    bool is_inside[2];
    float w_scale[2], bias[2] = {};
    const CudaProduct& product = args.products[is_swiglu ? 0 : place.which];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int in_tile = 16 * warp + g + 8 * r, matrix = is_swiglu ? in_tile / args.box_rows : place.which;
      at[r] = place.tile * args.box_rows + (is_swiglu ? in_tile % args.box_rows : in_tile);
      is_inside[r] = in_tile < n_matrices * args.box_rows && at[r] < product.n_out;
      w_scale[r] = is_inside[r] ? args.w_scale[matrix][at[r]] : 0.0f;
      if (!is_swiglu && product.bias != nullptr && is_inside[r]) bias[r] = product.bias[at[r]];
    }
    const bool is_add = args.epilogue == CudaEpilogue::kAdd;
    const auto old_of = [&](int j) {
      const int column = first_column + 8 * (j / 4) + 2 * t + j % 2, r = j % 4 / 2;
      return is_add && column < args.n_rows && is_inside[r]
                 ? static_cast<const float*>(product.y)[column * product.y_stride + at[r]]
                 : bias[r];
    };
    const auto x_scale_of = [&](int j) {  // of column 8 (j / 2) + 2 t + j % 2
      const int column = first_column + 8 * (j / 2) + 2 * t + j % 2;
      return kIsRow ? own_scale : column < args.n_rows ? args.x_scale[column] : 0.0f;
    };
    float old[kIsEarly ? kSize : 1], x_scale[kIsEarly ? kSize / 2 : 1];
    if constexpr (kIsEarly) {
      const bool is_first = kParts == 1 || part == 0;  // whose threads scale the other parts' results, too
#pragma unroll
      for (int j = 0; j < kSize; ++j) old[j] = is_first ? old_of(j) : 0.0f;
#pragma unroll
      for (int j = 0; j < kSize / 2; ++j) x_scale[j] = is_first ? x_scale_of(j) : 0.0f;
    }
    const auto to_next_stage = [&] {
      if (++stage == n_stages) stage = 0, parity ^= 1;
    };
    // Some slices' products; those of the stage before them are done then.
    const auto multiply = [&]<int kHere>(int step, std::integral_constant<int, kHere>) {
      barrier_wait(&full[stage], parity);
      // A shuffle's result is known to be the same for all threads of a warp: descriptors are made in uniform
      // registers, for a third of the instructions.
      const auto stage_at = __shfl_sync(0xffffffffu, ring_at + static_cast<std::uint32_t>(stage * stage_bytes), 0);
      const int x_at = kParts * kSlices * slice_bytes + part * kSlices * x_bytes;
      const std::uint32_t a_at = operand_at(stage_at + static_cast<std::uint32_t>(part * kSlices * slice_bytes)),
                          b_at = operand_at(kIsRow ? row_at + static_cast<std::uint32_t>(
                                                                  (part * part_slices + step * kSlices) * kSliceK)
                                                   : stage_at + static_cast<std::uint32_t>(x_at));
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < kHere; ++s) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const std::uint32_t a = a_at + static_cast<std::uint32_t>((s * slice_bytes >> 4) + 2 * j),
                              b = b_at + static_cast<std::uint32_t>((s * (kIsRow ? kSliceK : x_bytes) >> 4) + 2 * j);
          chain_step(d, swizzled_operand(a), kIsRow ? row_operand(b) : swizzled_operand(b), step + s + j > 0);
        }
      }
      wgmma_commit();
      wgmma_wait<1>();
      release();
      before = stage;
      to_next_stage();
    };
    const int n_own = kParts == 1 ? n_slices : min(part_slices, n_slices - part * part_slices);
    for (int step = 0; step < n_own / kSlices; ++step) multiply(step, std::integral_constant<int, kSlices>());
    // How many are left is known when this is compiled, else ptxas has each product wait for the one before.
    const int n_left = n_own % kSlices, last = n_own / kSlices;
    if constexpr (kParts == 1 || kSlices == 2) {
      if (n_left != 0) multiply(last, std::integral_constant<int, 1>());
    } else if constexpr (kSlices == 4) {
      if (n_left == 1) multiply(last, std::integral_constant<int, 1>());
      if (n_left == 2) multiply(last, std::integral_constant<int, 2>());
      if (n_left == 3) multiply(last, std::integral_constant<int, 3>());
    }
    wgmma_wait<0>();
#pragma unroll
    for (int j = 0; j < kSize; ++j) asm volatile("" : "+f"(d[j])::"memory");
    release();
    before = -1;
    if constexpr (kParts > 1) {  // stages in which only the parts before this one have slices
      for (int step = last + (n_left != 0 ? 1 : 0); step < n_steps; ++step) {
        barrier_wait(&full[stage], parity);
        if (lane == 0) barrier_arrive(&empty[stage]);
        to_next_stage();
      }
    }

    const auto scaled_at = [&](int j, float v) {
      const int c = 2 * (j / 4) + j % 2;
      if constexpr (kIsEarly) {
        return v * w_scale[j % 4 / 2] * x_scale[c];
      } else {
        return v * w_scale[j % 4 / 2] * x_scale_of(c);
      }
    };
    const auto old_at = [&](int j) {
      if constexpr (kIsEarly) {
        return old[j];
      } else {
        return old_of(j);
      }
    };
    if constexpr (kParts > 1) {
      // Products of later parts come to the first one's threads, which hold the same places of the tile.
      constexpr int kAtOnce = kSize < kExchangeResults ? kSize : kExchangeResults;
      __shared__ float products[kParts - 1][kAtOnce][128];
#pragma unroll
      for (int begin = 0; begin < kSize; begin += kAtOnce) {
        if (first_column + 2 * begin >= args.n_rows) break;
        if (part > 0) {
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) products[part - 1][i][own] = d[begin + i];
        }
        meet(2, kMultipliers);
        if (part == 0) {
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
            const int j = begin + i, column = first_column + 8 * (j / 4) + 2 * t + j % 2, r = j % 4 / 2;
            if (column >= args.n_rows || !is_inside[r]) continue;
            float v = scaled_at(j, d[j]);
            if (is_add || product.bias != nullptr) v = __fadd_rn(v, old_at(j));
#pragma unroll
            for (int other = 0; other < kParts - 1; ++other) v = __fadd_rn(v, scaled_at(j, products[other][i][own]));
            static_cast<float*>(product.y)[column * product.y_stride + at[r]] = v;
          }
        }
        meet(2, kMultipliers);
      }
      continue;
    }
    if (!is_swiglu) {
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        const int column = first_column + 8 * (j / 4) + 2 * t + j % 2, r = j % 4 / 2;
        if (column >= args.n_rows || !is_inside[r]) continue;
        float v = scaled_at(j, d[j]);
        if (is_add || product.bias != nullptr) v = __fadd_rn(v, old_at(j));
        const std::int64_t to = column * product.y_stride + at[r];
        if (args.y_is_bf16) {
          static_cast<__nv_bfloat16*>(product.y)[to] = __float2bfloat16_rn(v);
        } else {
          static_cast<float*>(product.y)[to] = v;
        }
      }
      continue;
    }
    // Gate and up of a row meet in shared memory, kExchangeColumns columns at a time.
    constexpr int kAtOnce = kColumns < kExchangeColumns ? kColumns : kExchangeColumns;
    __shared__ float meeting[kAtOnce][kExchangeStride];
#pragma unroll
    for (int begin = 0; begin < kColumns; begin += kAtOnce) {
      if (first_column + begin >= args.n_rows) break;
#pragma unroll
      for (int i = 0; i < kAtOnce / 2; ++i) {
        const int j = begin / 2 + i;
        meeting[8 * (i / 4) + 2 * t + i % 2][16 * warp + g + 8 * (i % 4 / 2)] = scaled_at(j, d[j]);
      }
      meet(2, kMultipliers);
      const int n = args.box_rows * min(kAtOnce, args.n_rows - first_column - begin);
      for (int i = thread; i < n; i += kMultipliers) {
        const int r = i % args.box_rows, c = i / args.box_rows;
        const int out = place.tile * args.box_rows + r;
        if (out >= product.n_out) continue;
        const float v = gated(meeting[c][r], meeting[c][args.box_rows + r]);
        const std::int64_t to = (first_column + begin + c) * product.y_stride + out;
        if (args.y_is_bf16) {
          static_cast<__nv_bfloat16*>(product.y)[to] = __float2bfloat16_rn(v);
        } else {
          static_cast<float*>(product.y)[to] = v;
        }
      }
      meet(2, kMultipliers);
    }
  }
}
#endif

constexpr int threads_of(int n_parts, int row) {
  return 32 + (row > 0 ? row : 128 * n_parts);
}
template <int kColumns, int kSlices, int kParts, int kRow>
__global__ void __launch_bounds__(threads_of(kParts, kRow), 1) chain_kernel(const __grid_constant__ ChainArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  chain_body<kColumns, kSlices, kParts, kRow>(args);
#endif
}

// Rows of k bytes, `stride` apart, read in boxes of box_rows rows and 128 bytes.
CUtensorMap map_of(const std::uint8_t* at, std::int64_t n_rows, std::int64_t k, std::int64_t stride, int box_rows) {
  CUtensorMap map{};
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(n_rows)},
                   strides[1] = {static_cast<cuuint64_t>(stride)};
  const cuuint32_t box[2] = {kSliceK, static_cast<cuuint32_t>(box_rows)}, steps[2] = {1, 1};
  STILL_CHECK(tensor_map_encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<std::uint8_t*>(at), sizes,
                                   strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS);
  return map;
}

// How the rows of the matrices are cut: the boxes' rows, and tiles of all products.
struct Cut {
  int box_rows, n_tiles;
};
// What keeps the busiest multiprocessor for the shortest time: weights come from memory, activations from the L2 cache.
Cut best_cut(const CudaLinearArgs& in, int n_columns) {
  const bool is_swiglu = in.epilogue == CudaEpilogue::kSwiglu;
  const int n_matrices = is_swiglu ? 2 : 1, n_column_tiles = static_cast<int>(ceil_div(in.n_rows, n_columns));
  Cut best{};
  int least = 0;
  for (int rows = 8; rows <= 64 / n_matrices; rows += 8) {
    Cut cut{rows, 0};
    for (int i = 0; i < (is_swiglu ? 1 : in.n_products); ++i)
      cut.n_tiles += static_cast<int>(ceil_div(in.products[i].n_out, rows));
    const int cost = static_cast<int>(ceil_div(std::int64_t{cut.n_tiles} * n_column_tiles, kMultiprocessors)) *
                     (4 * n_matrices * rows + n_columns);
    if (best.box_rows == 0 || cost <= least) best = cut, least = cost;
  }
  return best;
}

template <int kColumns, int kSlices, int kParts, int kRow>
void launch_chain(void* stream, const CudaLinearArgs& in) {
  constexpr bool kIsRow = kRow > 0;
  static_assert((!kIsRow || 128 * kParts <= kRow) && cuda_f8_part_k(1, 1) % kSliceK == 0);
  STILL_CHECK(in.k > (kParts - 1) * cuda_f8_part_k(in.k, kParts));
  const Cut cut = best_cut(in, kColumns);
  const int n_matrices = in.epilogue == CudaEpilogue::kSwiglu ? 2 : 1;
  const std::int64_t stride = in.f8_stride != 0 ? in.f8_stride : in.k;
  ChainArgs args{};
  args.n_products = in.epilogue == CudaEpilogue::kSwiglu ? 1 : in.n_products;
  for (int i = 0; i < in.n_products; ++i) {
    args.products[i] = in.products[i];
    args.weights[i] = map_of(in.products[i].weights, in.products[i].n_out, in.k, stride, cut.box_rows);
    args.w_scale[i] = in.f8_scale != nullptr
                          ? in.f8_scale
                          : reinterpret_cast<const float*>(in.products[i].weights + in.products[i].n_out * stride);
    args.first_tile[i + 1] = args.first_tile[i] + static_cast<int>(ceil_div(in.products[i].n_out, cut.box_rows));
  }
  if (kIsRow) {
    args.row_f32 = in.x.f32;
    args.norm = in.norm;
    args.eps = in.eps;
    args.row_bf16 = reinterpret_cast<const __nv_bfloat16*>(in.x.bf16);
  } else {
    args.x = map_of(in.x.f8, in.n_rows, in.k, stride, kColumns);
    args.x_scale = in.x.scale;
  }
  args.k = in.k;
  args.part_slices = static_cast<std::int32_t>(cuda_f8_part_k(in.k, kParts) / kSliceK);
  args.n_rows = in.n_rows;
  args.box_rows = cut.box_rows;
  args.n_tiles = cut.n_tiles;
  args.n_column_tiles = static_cast<int>(ceil_div(in.n_rows, kColumns));
  args.epilogue = in.epilogue;
  args.y_is_bf16 = in.y_is_bf16;
  constexpr int kExchange = kParts == 1 ? std::min(kColumns, kExchangeColumns) * kExchangeStride * 4
                                        : (kParts - 1) * std::min(kColumns / 2, kExchangeResults) * 128 * 4;
  constexpr int kStatic = 2 * 8 * kMostStages + kExchange + (kIsRow ? 8 * kRow / 32 + 32 * 4 : 0) +
                          1024;  // the last for the ring's alignment
  const int row_bytes = kIsRow ? static_cast<int>(ceil_div(in.k, kSliceK)) * kSliceK + 256 : 0;
  const int stage_bytes = kParts * kSlices * kSliceK * (n_matrices * cut.box_rows + (kIsRow ? 0 : kColumns));
  const int room = kRow == kShortRowThreads ? kSharedBytes / 2 : kSharedBytes;
  args.n_stages = std::min(kMostStages, (room - kStatic - kPadBytes - row_bytes) / stage_bytes);
  STILL_CHECK(args.n_stages > 1);  // one is given back when the next one's products have begun
  const int shared = args.n_stages * stage_bytes + kPadBytes + row_bytes;
  const auto kernel = chain_kernel<kColumns, kSlices, kParts, kRow>;
  // Always the same: another thread may be launching the kernel for another shape.
  (void)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes - kStatic);
  const int n_blocks = std::min(kMultiprocessors, args.n_tiles * args.n_column_tiles);
  launch(kernel, static_cast<unsigned>(n_blocks), threads_of(kParts, kRow), static_cast<std::size_t>(shared), stream,
         args);
}
}  // namespace

bool has_f8_chains() {
  return has_wgmma() && tensor_map_encoder() != nullptr;
}

void linear_f8(void* stream, const CudaLinearArgs& in) {
  STILL_CHECK((in.f8_stride == 0 && in.f8_scale == nullptr) || (in.x.f8 != nullptr && in.n_products == 1));
  STILL_CHECK(in.n_f8_parts <= 1 ||
              (in.n_f8_parts == 2 && in.n_products == 1 && !in.y_is_bf16 && in.epilogue != CudaEpilogue::kSwiglu));
  const bool has_long_stages = ceil_div(in.k, kSliceK) % 4 == 0;  // four slices are faster where they divide the row
  if (in.x.f8 == nullptr) {
    std::int64_t n_weights = 0;
    for (int i = 0; i < in.n_products; ++i) n_weights += std::int64_t{in.products[i].n_out} * in.k;
    const bool is_short = in.k <= kShortRow && n_weights <= kSmallWeights;
    if (in.n_f8_parts > 1) {
      launch_chain<8, 4, 2, kRowThreads>(stream, in);
    } else if (has_long_stages) {
      (is_short ? launch_chain<8, 4, 1, kShortRowThreads> : launch_chain<8, 4, 1, kRowThreads>)(stream, in);
    } else {
      (is_short ? launch_chain<8, 2, 1, kShortRowThreads> : launch_chain<8, 2, 1, kRowThreads>)(stream, in);
    }
    return;
  }
  if (in.n_f8_parts > 1) {
    const auto launch_it = in.n_rows <= 8    ? launch_chain<8, 4, 2, 0>
                           : in.n_rows <= 16 ? launch_chain<16, 2, 2, 0>
                           : in.n_rows <= 32 ? launch_chain<32, 2, 2, 0>
                           : in.n_rows <= 64 ? launch_chain<64, 2, 2, 0>
                                             : launch_chain<128, 1, 2, 0>;
    launch_it(stream, in);
    return;
  }
  const auto launch_eight = has_long_stages ? launch_chain<8, 4, 1, 0> : launch_chain<8, 2, 1, 0>;
  const auto launch_it = in.n_rows <= 8    ? launch_eight
                         : in.n_rows <= 16 ? launch_chain<16, 2, 1, 0>
                         : in.n_rows <= 32 ? launch_chain<32, 2, 1, 0>
                         : in.n_rows <= 64 ? launch_chain<64, 2, 1, 0>
                                           : launch_chain<128, 1, 1, 0>;
  launch_it(stream, in);
}

}  // namespace still::cuda
