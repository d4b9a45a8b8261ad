// Products of bf16 weights with few rows whose sums have the bits of cuBLASLt's algorithms: k is cut into so many parts
// (each a multiple of 64 long but for the last), a part is one chain over k of the tensor core's steps of 16, and the
// parts are added in order. So a row alone costs what its weights cost to read, and its result is the one that it has
// among hundreds.
//
// A warp owns a unit, 16 rows of a matrix (SwiGLU: 8 of both), or one part of k of it, and has a ring of stages in
// shared memory for itself. A thread of a warp of its own asks the copy engine for all warps' stages, as many ahead as
// there is room for, the first ones before the predecessor has ended. Blocks stay and take unit after unit; two of
// them, also of two kernels that follow one another, share a multiprocessor.
#include <algorithm>
#include <type_traits>

#include "base/check.h"
#include "kernels/cuda/comm.cuh"
#include "kernels/cuda/f8_chain.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/tensor_map.cuh"

namespace still::cuda {

namespace {
constexpr int kChunk = 64;                // k of a chunk: a row of the copy engine's swizzle
constexpr int kSharedBytes = 226 * 1024;  // of a multiprocessor
constexpr int kMostStages = 8, kWarps = 4, kThreads = 32 * kWarps;
// Parts where no number is asked for; the second where a multiprocessor has one unit at most.
constexpr int kParts = 2, kSmallParts = 3;

struct Bf16ChainArgs {
  CUtensorMap weights[2];   // of the products, in boxes of a unit's rows and a stage's k
  CUtensorMap x;            // but for a row alone
  CudaProduct products[2];  // SwiGLU: both
  const float* row_f32;
  const float* norm;  // weights of an RMSNorm of row_f32, or null
  float eps;
  const __nv_bfloat16* row_bf16;  // [k], or null
  std::int32_t k, n_rows;
  std::int32_t n_parts, part_chunks;  // of all parts but the last
  std::int32_t n_units, n_groups, n_stages;
  CudaEpilogue epilogue;
  bool y_is_bf16, rounds_gates;
  CudaExchange exchange;  // where a row alone is sent instead of stored; n_ranks 0: nowhere
};

// What a stage holds. kColumns8: rows of activations, in groups of 8. kIsRow: one, which is no part of stages.
template <int kColumns8, bool kIsRow, int kStageChunks>
struct Stage {
  static constexpr int kRowBytes = 2 * kChunk;  // of a row in a chunk
  static constexpr int kXRows = kIsRow ? 0 : 8 * kColumns8;
  static constexpr int kWeightBytes = 16 * kRowBytes * kStageChunks;
  static constexpr int kBytes = kWeightBytes + kXRows * kRowBytes * kStageChunks;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// A box of a matrix: from row `row` and chunk `chunk` on; its chunks stand behind one another.
__device__ __forceinline__ void copy_chunks(std::uint32_t to, const CUtensorMap* map, int row, int chunk,
                                            std::uint32_t barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3, "
      "%4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(0), "r"(row), "r"(chunk), "r"(barrier), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], std::uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}

constexpr int kPrepared = 4;  // times 8 elements of a row in a thread's registers

// The row that a block multiplies, as bf16 in shared memory, with its norm; a long one that is bf16 comes by the copy
// engine. By kThreads threads.
__device__ __forceinline__ void prepare_row(const Bf16ChainArgs& args, std::uint8_t* row, int thread) {
  __shared__ float sums[32];
  const int n = args.k / 8, n_warps = kWarps, warp = thread / 32, lane = thread % 32;
  const auto put = [&](int i, const float4& a, const float4& b) {
    reinterpret_cast<uint4*>(row)[i] =
        make_uint4(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w));
  };
  const auto* source = reinterpret_cast<const float4*>(args.row_f32);
  const auto* weights = reinterpret_cast<const float4*>(args.norm);
  const auto scaled = [](const float4& v, float factor, const float4& w) {
    return make_float4(v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z, v.w * factor * w.w);
  };
  if (args.norm != nullptr && n <= kPrepared * kThreads) {
    // norm_factor's order, with what it reads kept.
    float4 w[kPrepared][2], v[kPrepared][2];
#pragma unroll
    for (int turn = 0; turn < kPrepared; ++turn) {
      const int i = turn * kThreads + thread;
      for (int half = 0; half < 2; ++half)
        w[turn][half] = i < n ? __ldg(weights + 2 * i + half) : make_float4(0, 0, 0, 0);
    }
    wait_for_previous();
#pragma unroll
    for (int turn = 0; turn < kPrepared; ++turn) {
      const int i = turn * kThreads + thread;
      for (int half = 0; half < 2; ++half) v[turn][half] = i < n ? source[2 * i + half] : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (int turn = 0; turn < kPrepared; ++turn) {
      float sum = 0;
      for (const float4& four : v[turn])
        for (const float one : {four.x, four.y, four.z, four.w}) sum = fmaf(one, one, sum);
      sum = warp_sum(sum);
      if (lane == 0) sums[turn * n_warps + warp] = sum;
    }
    meet(1, kThreads);
    const float sum = warp_sum(lane < norm_threads(args.k) / 32 ? sums[lane] : 0.0f);
    const float factor = 1.0f / sqrtf(sum / static_cast<float>(args.k) + args.eps);
#pragma unroll
    for (int turn = 0; turn < kPrepared; ++turn) {
      const int i = turn * kThreads + thread;
      if (i < n) put(i, scaled(v[turn][0], factor, w[turn][0]), scaled(v[turn][1], factor, w[turn][1]));
    }
    return;
  }
  wait_for_previous();
  if (args.row_bf16 != nullptr) {
    uint4 v[kPrepared];
    const auto* from = reinterpret_cast<const uint4*>(args.row_bf16);
#pragma unroll
    for (int turn = 0; turn < kPrepared; ++turn)
      if (turn * kThreads + thread < n) v[turn] = from[turn * kThreads + thread];
#pragma unroll
    for (int turn = 0; turn < kPrepared; ++turn)
      if (turn * kThreads + thread < n) reinterpret_cast<uint4*>(row)[turn * kThreads + thread] = v[turn];
    return;
  }
  if (args.norm == nullptr) {
#pragma unroll 4
    for (int i = thread; i < n; i += kThreads) put(i, source[2 * i], source[2 * i + 1]);
    return;
  }
  const float factor =
      norm_factor(args.row_f32, args.k, args.eps, sums, warp, n_warps, lane, [] { meet(1, kThreads); });
  for (int i = thread; i < n; i += kThreads)
    put(i, scaled(source[2 * i], factor, __ldg(weights + 2 * i)),
        scaled(source[2 * i + 1], factor, __ldg(weights + 2 * i + 1)));
}

struct Barriers {
  std::uint64_t full[kWarps][kMostStages], empty[kWarps][kMostStages], row;
};

// Asks for all that a block's warps multiply, by one thread. row: where a long row of activations goes, or null.
template <class Stage, bool kIsSwiglu, int kStageChunks>
__device__ __forceinline__ void ask_for_all(const Bf16ChainArgs& args, std::uint8_t* ring, std::uint8_t* row,
                                            Barriers& barriers) {
  const int n_stages = args.n_stages, n_warps = args.n_groups * args.n_parts;
  const int n_blocks = static_cast<int>(gridDim.x), stride = args.n_groups * n_blocks;
  std::uint64_t once, again;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(again));
  const auto chunk_of = [&](int w, int step) { return w % args.n_parts * args.part_chunks + step * kStageChunks; };
  const auto place_of = [&](int w, int slot) { return shared_address(ring) + (w * n_stages + slot) * Stage::kBytes; };
  const auto ask_weights = [&](int w, int unit, int step, int slot) {
    const std::uint32_t barrier = shared_address(&barriers.full[w][slot]), to = place_of(w, slot);
    expect_bytes(&barriers.full[w][slot], Stage::kBytes);
    copy_chunks(to, &args.weights[0], (kIsSwiglu ? 8 : 16) * unit, chunk_of(w, step), barrier, once);
    if (kIsSwiglu)
      copy_chunks(to + Stage::kWeightBytes / 2, &args.weights[1], 8 * unit, chunk_of(w, step), barrier, once);
  };
  const auto ask_x = [&](int w, int step, int slot) {
    if constexpr (Stage::kXRows > 0)
      copy_chunks(place_of(w, slot) + Stage::kWeightBytes, &args.x, 0, chunk_of(w, step),
                  shared_address(&barriers.full[w][slot]), again);
  };
  // All warps' stages in turn. A part that is shorter than the first has empty ones.
  const int n_steps = (args.part_chunks + kStageChunks - 1) / kStageChunks;
  const auto unit_of = [&](int w, int turn) {
    return static_cast<int>(blockIdx.x) + w / args.n_parts * n_blocks + turn * stride;
  };
  const auto is_empty = [&](int w, int step) { return chunk_of(w, step) >= args.k / kChunk; };
  int slot = 0, turn = 0, step = 0, n_asked = 0;
  const auto advance = [&] {
    ++n_asked;
    if (++slot == n_stages) slot = 0;
    if (++step == n_steps) step = 0, ++turn;
  };
  for (int i = 0; i < n_stages; ++i) {
    for (int w = 0; w < n_warps && unit_of(w, turn) < args.n_units; ++w) {
      if (is_empty(w, step)) {
        barrier_arrive(&barriers.full[w][slot]);
      } else {
        ask_weights(w, unit_of(w, turn), step, slot);
      }
    }
    advance();
  }
  if (args.exchange.n_ranks == 0) allow_next();
  wait_for_previous();
  if (row != nullptr) {
    const unsigned bytes = 2 * static_cast<unsigned>(args.k);
    expect_bytes(&barriers.row, bytes);
    copy_bulk(row, args.row_bf16, bytes, &barriers.row);
  }
  if constexpr (Stage::kXRows > 0) {
    slot = turn = step = n_asked = 0;
    for (int i = 0; i < n_stages; ++i) {
      for (int w = 0; w < n_warps && unit_of(w, turn) < args.n_units; ++w)
        if (!is_empty(w, step)) ask_x(w, step, slot);
      advance();
    }
  }
  while (unit_of(0, turn) < args.n_units) {
    const unsigned parity = static_cast<unsigned>(n_asked / n_stages - 1) % 2;
    for (int w = 0; w < n_warps && unit_of(w, turn) < args.n_units; ++w) {
      barrier_wait(&barriers.empty[w][slot], parity);
      if (is_empty(w, step)) {
        barrier_arrive(&barriers.full[w][slot]);
        continue;
      }
      ask_weights(w, unit_of(w, turn), step, slot);
      ask_x(w, step, slot);
    }
    advance();
  }
}

template <int kColumns8, bool kIsRow, bool kIsSwiglu, int kStageChunks>
__device__ __forceinline__ void chain_body(const Bf16ChainArgs& args) {
  using Stage = Stage<kColumns8, kIsRow, kStageChunks>;
  constexpr int kRowBytes = Stage::kRowBytes;
  extern __shared__ __align__(1024) std::uint8_t ring[];
  __shared__ Barriers barriers;
  __shared__ float meeting[kWarps][4 * kColumns8][32];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int n_stages = args.n_stages, n_warps = args.n_groups * args.n_parts;
  std::uint8_t* row = ring + n_warps * n_stages * Stage::kBytes;  // of kIsRow
  const bool is_copied = kIsRow && args.row_bf16 != nullptr && args.k > 8 * kPrepared * kThreads;
  if (thread == 0) {
    for (int w = 0; w < n_warps; ++w) {
      for (int i = 0; i < n_stages; ++i) {
        barrier_init(&barriers.full[w][i], 1);
        barrier_init(&barriers.empty[w][i], 1);
      }
    }
    barrier_init(&barriers.row, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (warp == kWarps) {
    if (lane == 0) ask_for_all<Stage, kIsSwiglu, kStageChunks>(args, ring, is_copied ? row : nullptr, barriers);
    return;
  }

  const bool is_sent = kIsRow && !kIsSwiglu && args.exchange.n_ranks > 0;
  if (!is_sent) allow_next();
  if (kIsRow && !is_copied) {
    prepare_row(args, row, thread);
  } else {
    wait_for_previous();
  }
  if (is_sent) allow_next();
  const std::uint32_t call = is_sent ? next_call(args.exchange.state) : 0;
  if constexpr (kIsRow) {
    meet(1, kThreads);
    if (is_copied) barrier_wait(&barriers.row, 0);
  }
  if (warp >= n_warps) return;
  const int part = warp % args.n_parts, group = warp / args.n_parts;
  const int first_chunk = part * args.part_chunks, n_chunks = min(args.part_chunks, args.k / kChunk - first_chunk);
  const int g = lane / 4, t = lane % 4;
  const CudaProduct& product = args.products[0];

  struct Operands {
    std::uint32_t a[4][4], b[kColumns8][2][4];
  } operands[2];
  // A stage's chunks stand behind one another, each of rows of 128 bytes in the swizzle of that width. Of SwiGLU a
  // unit's second eight rows are those of the other matrix.
  constexpr std::uint32_t kChunkBytes = (kIsSwiglu ? 8 : 16) * kRowBytes;
  const int r = lane % 8;
  const std::uint32_t ring_at = shared_address(ring) + warp * n_stages * Stage::kBytes;
  const std::uint32_t a_lane =
      static_cast<std::uint32_t>(r * kRowBytes + lane / 8 % 2 * (kIsSwiglu ? Stage::kWeightBytes / 2 : 8 * kRowBytes));
  std::uint32_t a_at[4], b_at[2];
#pragma unroll
  for (int j = 0; j < 4; ++j) a_at[j] = a_lane + 16 * static_cast<std::uint32_t>((2 * j + lane / 16) ^ r);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int sixteen = 4 * j + lane / 8;  // of a row's 16 bytes
    b_at[j] =
        static_cast<std::uint32_t>(kIsRow ? 16 * sixteen : Stage::kWeightBytes + r * kRowBytes + 16 * (sixteen ^ r));
  }
  const std::uint32_t row_at = shared_address(row) + first_chunk * kRowBytes;
  // The part of a chunk's operands that its j-th step of 16 needs (activations: of two steps at once).
  const auto load = [&](Operands& to, int j, std::uint32_t a_from, std::uint32_t b_from) {
    load_matrices(to.a[j], a_from + a_at[j]);
    if (j % 2 != 0) return;
#pragma unroll
    for (int n = 0; n < kColumns8; ++n) load_matrices(to.b[n][j / 2], b_from + 8 * n * kRowBytes + b_at[j / 2]);
  };
  // Of a chunk of the stage at stage_at, whose first chunk's activations are at x_at.
  constexpr std::uint32_t kXStep = kIsRow ? kRowBytes : Stage::kXRows * kRowBytes;
  std::uint32_t stage_at = ring_at;
  int slot = 0;
  unsigned parity = 0;
  const auto pass_stage = [&] {
    stage_at += Stage::kBytes;
    if (++slot == n_stages) slot = 0, stage_at = ring_at, parity ^= 1;
  };
  const auto release = [&](int of) {
    if (lane == 0) barrier_arrive(&barriers.empty[warp][of]);
  };
  float d[kColumns8][4];
  // Multiplies a stage's chunks, the first of which is in operands[0]; while a chunk is multiplied, whose steps wait
  // for each other, the next one's operands come: in the end the next stage's first.
  const auto multiply_stage = [&]<bool kIsWhole>(std::bool_constant<kIsWhole>, int n_here, bool has_next,
                                                 std::uint32_t x_at) {
#pragma unroll
    for (int c = 0; c < kStageChunks; ++c) {
      if (!kIsWhole && c >= n_here) break;
      const bool is_end = kIsWhole ? c + 1 == kStageChunks : c + 1 == n_here;
      const Operands& with = operands[c % 2];
      Operands& next = operands[(c + 1) % 2];
      const int own_slot = slot;
      const bool has_more = !is_end || has_next;
      std::uint32_t a_from = stage_at + (c + 1) * kChunkBytes, b_from = (kIsRow ? x_at : stage_at) + (c + 1) * kXStep;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int n = 0; n < kColumns8; ++n)
          mma_bf16(d[n], with.a[j][0], with.a[j][1], with.a[j][2], with.a[j][3], with.b[n][j / 2][2 * (j % 2)],
                   with.b[n][j / 2][2 * (j % 2) + 1]);
        if (j == 0 && is_end) {
          pass_stage();
          a_from = stage_at, b_from = kIsRow ? x_at + kStageChunks * kXStep : stage_at;
          if (has_next) barrier_wait(&barriers.full[warp][slot], parity);
        }
        if (has_more) load(next, j, a_from, b_from);
      }
      if (is_end) release(own_slot);  // its operands have been multiplied, so they have come
    }
  };
  const int n_steps = (args.part_chunks + kStageChunks - 1) / kStageChunks,
            n_own_steps = (n_chunks + kStageChunks - 1) / kStageChunks;
  const int n_blocks = static_cast<int>(gridDim.x), stride = args.n_groups * n_blocks;
  for (int unit = static_cast<int>(blockIdx.x) + group * n_blocks; unit < args.n_units; unit += stride) {
    // What a thread's results are added to. They are of rows g and g + 8, columns 2 t and 2 t + 1 of each eight.
    const auto place_of = [&](int n, int i, int& out, int& column) {
      out = kIsSwiglu ? 8 * unit + g : 16 * unit + g + 8 * (i / 2);
      column = 8 * n + 2 * t + i % 2;
      return out < product.n_out && column < args.n_rows;
    };
    float old[kColumns8][4] = {};
    if (!kIsSwiglu && part == 0 && (args.epilogue == CudaEpilogue::kAdd || product.bias != nullptr)) {
#pragma unroll
      for (int n = 0; n < kColumns8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          int out, column;
          if (!place_of(n, i, out, column)) continue;
          old[n][i] = args.epilogue == CudaEpilogue::kAdd
                          ? static_cast<const float*>(product.y)[column * product.y_stride + out]
                          : product.bias[out];
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kColumns8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) d[n][i] = 0;
    }
    barrier_wait(&barriers.full[warp][slot], parity);
#pragma unroll
    for (int j = 0; j < 4; ++j) load(operands[0], j, stage_at, kIsRow ? row_at : stage_at);
    for (int step = 0; step < n_own_steps; ++step) {
      const int n_here = n_chunks - step * kStageChunks;
      const std::uint32_t x_at = row_at + step * kStageChunks * kRowBytes;
      if (n_here >= kStageChunks) {
        multiply_stage(std::true_type(), kStageChunks, step + 1 < n_own_steps, x_at);
      } else {
        multiply_stage(std::false_type(), n_here, false, x_at);
      }
    }
    // A shorter part passes by the steps that it has not.
    for (int step = n_own_steps; step < n_steps; ++step) {
      barrier_wait(&barriers.full[warp][slot], parity);
      release(slot);
      pass_stage();
    }
    if (args.n_parts > 1) {
      if (part > 0) {
#pragma unroll
        for (int n = 0; n < kColumns8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) meeting[warp][4 * n + i][lane] = d[n][i];
        }
      }
      meet(2 + group, 32 * args.n_parts);
      if (part == 0) {
        for (int p = 1; p < args.n_parts; ++p) {
#pragma unroll
          for (int n = 0; n < kColumns8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) d[n][i] = __fadd_rn(d[n][i], meeting[warp + p][4 * n + i][lane]);
          }
        }
      }
      if (unit + stride < args.n_units) meet(2 + group, 32 * args.n_parts);
      if (part > 0) continue;
    }
    if (is_sent) {  // all columns are the row's: lane l gets row l of the unit
      const float low = __shfl_sync(0xffffffffu, d[0][0], 4 * r), high = __shfl_sync(0xffffffffu, d[0][2], 4 * r);
      const int out = 16 * unit + lane;
      send_result(args.exchange, call, 0xffffffffu, out, lane < 16 && out < product.n_out, args.y_is_bf16,
                  lane < 8 ? low : high);
      continue;
    }
#pragma unroll
    for (int n = 0; n < kColumns8; ++n) {
#pragma unroll
      for (int i = 0; i < (kIsSwiglu ? 2 : 4); ++i) {
        int out, column;
        if (!place_of(n, i, out, column)) continue;
        float v = d[n][i];
        if constexpr (kIsSwiglu) {
          v = args.rounds_gates ? gated(v, d[n][i + 2]) : silu_times(v, d[n][i + 2]);
        } else if (args.epilogue == CudaEpilogue::kAdd || product.bias != nullptr) {
          v = __fadd_rn(v, old[n][i]);
        }
        const std::int64_t to = column * product.y_stride + out;
        if (args.y_is_bf16) {
          static_cast<__nv_bfloat16*>(product.y)[to] = __float2bfloat16_rn(v);
        } else {
          static_cast<float*>(product.y)[to] = v;
        }
      }
    }
  }
}
#endif

template <int kColumns8, bool kIsRow, bool kIsSwiglu, int kStageChunks>
__global__ void __launch_bounds__(kThreads + 32, 2) bf16_chain_kernel(const __grid_constant__ Bf16ChainArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  chain_body<kColumns8, kIsRow, kIsSwiglu, kStageChunks>(args);
#endif
}

// Rows of k bf16, read in boxes of box_rows rows and n_chunks chunks. What is outside is zero. False: the copy engine
// cannot read them.
bool map_chunks(CUtensorMap& map, const void* at, std::int64_t n_rows, std::int64_t k, int box_rows, int n_chunks) {
  const cuuint64_t sizes[3] = {kChunk, static_cast<cuuint64_t>(n_rows), static_cast<cuuint64_t>(k / kChunk)},
                   strides[2] = {static_cast<cuuint64_t>(2 * k), 2 * kChunk};
  const cuuint32_t box[3] = {kChunk, static_cast<cuuint32_t>(box_rows), static_cast<cuuint32_t>(n_chunks)},
                   steps[3] = {1, 1, 1};
  if (reinterpret_cast<std::uintptr_t>(at) % 16 != 0) return false;
  return tensor_map_encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(at), sizes, strides, box,
                              steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                              CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <int kColumns8, bool kIsRow, bool kIsSwiglu, int kStageChunks>
bool launch_stages(void* stream, const CudaLinearArgs& in, int n_parts, bool rounds_gates) {
  const int n_chunks = in.k / kChunk;
  Bf16ChainArgs args{};
  args.row_bf16 = reinterpret_cast<const __nv_bfloat16*>(in.x.bf16);
  args.row_f32 = in.x.f32;
  args.norm = in.norm;
  args.eps = in.eps;
  args.k = in.k;
  args.n_rows = in.n_rows;
  args.n_parts = n_parts;
  args.part_chunks = static_cast<int>(ceil_div(n_chunks, n_parts));
  args.epilogue = in.epilogue;
  args.y_is_bf16 = in.y_is_bf16;
  args.rounds_gates = rounds_gates;
  args.exchange = in.exchange;
  if (in.k % kChunk != 0 || (n_parts - 1) * args.part_chunks >= n_chunks) return false;
  args.n_units = static_cast<int>(ceil_div(in.products[0].n_out, kIsSwiglu ? 8 : 16));
  const int row_bytes = kIsRow ? 2 * in.k : 0;
  constexpr int kStageBytes = Stage<kColumns8, kIsRow, kStageChunks>::kBytes;
  constexpr int kStatic = 16 * kWarps * kMostStages + 16 * kWarps * kColumns8 * 32 + 2048;
  // Two blocks of a multiprocessor, three where all units are under way then.
  const auto room_of = [&](int n_blocks) { return kSharedBytes / n_blocks - kStatic - row_bytes; };
  const bool has_three = args.n_units > 2 * kMultiprocessors && args.n_units <= 3 * kMultiprocessors &&
                         room_of(3) >= 2 * n_parts * kStageBytes;
  const int blocks_each = has_three ? 3 : 2, most_blocks = blocks_each * kMultiprocessors, room = room_of(blocks_each);
  const int most_groups = std::min(kWarps, room / (2 * kStageBytes)) / n_parts;
  if (most_groups < 1) return false;
  args.n_groups = std::clamp(static_cast<int>(ceil_div(args.n_units, most_blocks)), 1, most_groups);
  for (int i = 0; i < (kIsSwiglu ? 2 : 1); ++i) {
    args.products[i] = in.products[i];
    if (!map_chunks(args.weights[i], in.products[i].weights, in.products[i].n_out, in.k, kIsSwiglu ? 8 : 16,
                    kStageChunks))
      return false;
  }
  if (!kIsRow && !map_chunks(args.x, in.x.bf16, in.n_rows, in.k, 8 * kColumns8, kStageChunks)) return false;
  const int n_warps = args.n_groups * n_parts;
  args.n_stages = std::min(kMostStages, room / (n_warps * kStageBytes));
  const int shared = row_bytes + n_warps * args.n_stages * kStageBytes;
  const int n_blocks = std::min(most_blocks, static_cast<int>(ceil_div(args.n_units, args.n_groups)));
  const auto kernel = bf16_chain_kernel<kColumns8, kIsRow, kIsSwiglu, kStageChunks>;
  // Always the same: another thread may be launching the kernel for another shape.
  (void)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes / 2 - kStatic);
  launch(kernel, static_cast<unsigned>(n_blocks), kThreads + 32, static_cast<std::size_t>(shared), stream, args);
  return true;
}

// Stages of four chunks, or of two where so many do not fit.
template <int kColumns8, bool kIsRow>
bool launch_chain(void* stream, const CudaLinearArgs& in, int n_parts, bool rounds_gates) {
  if (in.epilogue == CudaEpilogue::kSwiglu)
    return launch_stages<kColumns8, kIsRow, true, 4>(stream, in, n_parts, rounds_gates) ||
           launch_stages<kColumns8, kIsRow, true, 2>(stream, in, n_parts, rounds_gates);
  return launch_stages<kColumns8, kIsRow, false, 4>(stream, in, n_parts, rounds_gates) ||
         launch_stages<kColumns8, kIsRow, false, 2>(stream, in, n_parts, rounds_gates);
}
}  // namespace

bool has_bf16_chains() {
  return has_wgmma() && tensor_map_encoder() != nullptr;
}

bool linear_bf16_chain(void* stream, const CudaLinearArgs& in, std::int32_t n_parts) {
  STILL_CHECK(in.n_rows >= 1 && in.n_rows <= kCudaBf16ChainRows);
  STILL_CHECK(in.n_products == 1 || (in.epilogue == CudaEpilogue::kSwiglu && in.n_products == 2));
  STILL_CHECK(in.n_rows == 1 || (in.x.bf16 != nullptr && in.norm == nullptr && in.exchange.n_ranks == 0));
  const bool is_like_dense = n_parts > 0;
  if (!is_like_dense) {
    const bool is_swiglu = in.epilogue == CudaEpilogue::kSwiglu;
    const bool is_small = ceil_div(in.products[0].n_out, is_swiglu ? 8 : 16) <= kMultiprocessors;
    n_parts = is_small ? kSmallParts : kParts;
    while (n_parts > 1 && in.k / kChunk < n_parts * n_parts) --n_parts;
  }
  if (n_parts > kWarps) return false;
  const auto launch_it = in.n_rows == 1   ? launch_chain<1, true>
                         : in.n_rows <= 8 ? launch_chain<1, false>
                                          : launch_chain<2, false>;
  return launch_it(stream, in, n_parts, is_like_dense);
}

}  // namespace still::cuda
