// Attention over KV blocks. Three kernels:
//
// decode: one new token a sequence. A block takes (part of the positions, KV head, sequence); the heads that share the
// KV
//   head are the 8 columns of the tensor core's tile, so up to 8 of them cost one pass over the keys. A warp takes 32
//   positions at a time: S^T = K Q^T, then O^T = V^T P^T, operands straight from memory in 16-byte loads. Parts are of
//   a fixed number of positions and are folded in order by the block that arrives last, so that a sequence's result
//   does not depend on its neighbours.
// prefill: several new tokens a sequence. A warp takes 16 tokens of a head and walks the positions 32 at a time.
// simple: any head size, a warp for each (token, head): for small models and as an oracle.
//
// Keys lie [position][head_dim], values transposed [head_dim][32 positions]; both orders of the tensor core's k are
// permuted so that a lane reads 8 consecutive elements. Scores are in units of log2: scale * log2(e) is folded into q.
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/common.cuh"

namespace still::cuda {

namespace {
constexpr float kMinusInfinity = -INFINITY;
constexpr float kLog2E = 1.4426950408889634f;
constexpr int kDecodeWarps = 4;

__device__ __forceinline__ const std::uint8_t* head_block(const CudaKv& kv, int block, int kv_head) {
  return kv.base + block * kv.block_bytes + kv_head * kv.head_bytes;
}
__device__ __forceinline__ void write(const CudaAttentionArgs& args, std::int64_t at, float v) {
  if (args.out_bf16 != nullptr) {
    reinterpret_cast<__nv_bfloat16*>(args.out_bf16)[at] = __float2bfloat16_rn(v);
  } else {
    args.out_f32[at] = v;
  }
}
__device__ __forceinline__ uint4 load16(const void* at) {
  return *static_cast<const uint4*>(at);
}
// 8 x 8 of 16 bits, transposed across the warp.
__device__ __forceinline__ std::uint32_t transpose8(std::uint32_t v) {
  std::uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}

template <int kHeadDim>
__global__ void __launch_bounds__(32 * kDecodeWarps) decode_kernel(const __grid_constant__ CudaAttentionArgs args) {
  constexpr int kSteps = kHeadDim / 32;  // of 32 dimensions in S
  constexpr int kTiles = kHeadDim / 16;  // of 16 dimensions in O
  __shared__ float shared_o[kDecodeWarps][8][kHeadDim];
  __shared__ float shared_m[kDecodeWarps][8], shared_l[kDecodeWarps][8];
  __shared__ int is_last;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int g = lane / 4, t = lane % 4;
  const int part = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  const int idx = static_cast<int>(blockIdx.z);
  allow_next();
  // The step's lists were there before its first kernel, and keys and values but the last position's before the step.
  const int seq = args.batch.decode_seqs[idx], token = args.batch.decode_tokens[idx];
  const int kv_len = args.batch.kv_len[seq];
  const int group = args.n_heads / args.kv.n_kv_heads;
  const int first_visible = args.window > 0 ? max(0, kv_len - args.window) : 0;
  const int n_parts = (kv_len + args.split - 1) / args.split;
  const int first_part = first_visible / args.split;
  if (part >= n_parts || part < first_part) {
    wait_for_previous();
    if (kv_len == 0 && part == 0)  // padding of a captured step
      for (int i = static_cast<int>(threadIdx.x); i < group * kHeadDim; i += static_cast<int>(blockDim.x))
        write(args, (static_cast<std::int64_t>(token) * args.n_heads + kv_head * group) * kHeadDim + i, 0.0f);
    return;
  }
  const std::int32_t* table = args.batch.tables + static_cast<std::int64_t>(seq) * args.batch.table_stride;

  if (const int pos = part * args.split + 32 * warp; pos < kv_len) {
    const std::uint8_t* base = head_block(args.kv, table[pos / args.kv.block_size], kv_head);
    const int offset = pos % args.kv.block_size;
    const std::uint8_t* keys = base + static_cast<std::int64_t>(offset) * kHeadDim * 2;
    const std::uint8_t* values = base + args.kv.v_offset + static_cast<std::int64_t>(offset) * kHeadDim * 2;
    for (int i = lane; i < kHeadDim / 2; i += 32) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(keys + i * 128));
      asm volatile("prefetch.global.L2 [%0];" ::"l"(values + i * 128));
    }
  }
  wait_for_previous();

  // B operand: column g is head kv_head * group + g.
  std::uint32_t q[kSteps][4];
  if (args.is_rope_fused) {
    constexpr int kHalf = kHeadDim / 2;
    const std::int64_t row = static_cast<std::int64_t>(kv_len - 1) * kHalf;
    const float *cos = args.rope.cos + row, *sin = args.rope.sin + row;
    if (part == n_parts - 1) {  // this block alone reads the new position
      std::uint8_t* base =
          args.kv.base + table[(kv_len - 1) / args.kv.block_size] * args.kv.block_bytes + kv_head * args.kv.head_bytes;
      const int offset = (kv_len - 1) % args.kv.block_size;
      const float* k = args.rope.k + token * args.rope.k_stride + kv_head * kHeadDim;
      const float* v = args.rope.v + token * args.rope.v_stride + kv_head * kHeadDim;
      __half* key = reinterpret_cast<__half*>(base) + static_cast<std::int64_t>(offset) * kHeadDim;
      __half* value = reinterpret_cast<__half*>(base + args.kv.v_offset) +
                      static_cast<std::int64_t>(offset / 32) * kHeadDim * 32 + offset % 32;
      for (int i = static_cast<int>(threadIdx.x); i < kHeadDim; i += static_cast<int>(blockDim.x)) {
        value[i * 32] = __float2half_rn(v[i]);
        if (i >= kHalf) continue;
        const float a = k[i], b = k[i + kHalf];
        key[i] = __float2half_rn(fmaf(a, cos[i], -__fmul_rn(b, sin[i])));
        key[i + kHalf] = __float2half_rn(fmaf(b, cos[i], __fmul_rn(a, sin[i])));
      }
      __syncthreads();
    }
    const float* from = args.q + token * args.q_stride + (kv_head * group + (g < group ? g : 0)) * kHeadDim;
    const float scale = args.scale * kLog2E;
#pragma unroll
    for (int s = 0; s < kSteps / 2; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float x[2], y[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int d = 32 * s + 8 * t + 2 * i + e;
          const float a = from[d], b = from[d + kHalf];
          x[e] = fmaf(a, cos[d], -__fmul_rn(b, sin[d])) * scale;
          y[e] = fmaf(b, cos[d], __fmul_rn(a, sin[d])) * scale;
        }
        q[s][i] = g < group ? pack_f16(x[0], x[1]) : 0;
        q[s + kSteps / 2][i] = g < group ? pack_f16(y[0], y[1]) : 0;
      }
    }
  } else {
    const float* from = args.q + token * args.q_stride + (kv_head * group + g) * kHeadDim;
    const float scale = args.scale * kLog2E;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        q[s][i] =
            g < group ? pack_f16(from[32 * s + 8 * t + 2 * i] * scale, from[32 * s + 8 * t + 2 * i + 1] * scale) : 0;
    }
  }

  float o[kTiles][4] = {};
  float m[2] = {kMinusInfinity, kMinusInfinity}, l[2] = {0, 0};  // of heads 2 t and 2 t + 1
  const int begin = part * args.split, end = min(begin + args.split, kv_len);
  for (int pos = begin + 32 * warp; pos < end; pos += 32 * kDecodeWarps) {
    const int offset = pos % args.kv.block_size;
    const std::uint8_t* base = head_block(args.kv, table[pos / args.kv.block_size], kv_head);
    const __half* keys = reinterpret_cast<const __half*>(base) + static_cast<std::int64_t>(offset) * kHeadDim;
    const __half* values = reinterpret_cast<const __half*>(base + args.kv.v_offset) +
                           static_cast<std::int64_t>(offset / 32) * kHeadDim * 32;
    // Row r of the 8-row piece i is position 8 (r / 2) + 2 i + r % 2: then a lane's probabilities are of 8 positions in
    // a row of V^T.
    uint4 k[4][kSteps];
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int s = 0; s < kSteps; ++s)
        k[i][s] = load16(keys + (8 * (g / 2) + 2 * i + g % 2) * kHeadDim + 32 * s + 8 * t);
    uint4 v[kTiles][2];
#pragma unroll
    for (int d = 0; d < kTiles; ++d)
#pragma unroll
      for (int r = 0; r < 2; ++r) v[d][r] = load16(values + (16 * d + 8 * r + g) * 32 + 8 * t);

    float score[2][4] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const uint4 a = k[2 * i][s], b = k[2 * i + 1][s];
        mma_f16(score[i], a.x, b.x, a.y, b.y, q[s][0], q[s][1]);
        mma_f16(score[i], a.z, b.z, a.w, b.w, q[s][2], q[s][3]);
      }
    }
    float most[2] = {kMinusInfinity, kMinusInfinity};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int at = pos + 8 * (g / 2) + 2 * (2 * i + e / 2) + g % 2;
        if (at >= end || at < first_visible) score[i][e] = kMinusInfinity;
        most[e % 2] = fmaxf(most[e % 2], score[i][e]);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int i = 4; i < 32; i *= 2) most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffffu, most[h], i));
      const float next = fmaxf(m[h], most[h]);
      const float shift = next == kMinusInfinity ? 0.0f : next;
      const float factor = exp2f(m[h] - shift);
      m[h] = next;
      float sum = 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int e = h; e < 4; e += 2) {
          score[i][e] = exp2f(score[i][e] - shift);
          sum += score[i][e];
        }
      }
      l[h] = l[h] * factor + sum;  // of this lane's positions
#pragma unroll
      for (int d = 0; d < kTiles; ++d) {
        o[d][h] *= factor;
        o[d][h + 2] *= factor;
      }
    }
    std::uint32_t p[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      p[2 * i] = transpose8(pack_f16(score[i][0], score[i][1]));
      p[2 * i + 1] = transpose8(pack_f16(score[i][2], score[i][3]));
    }
#pragma unroll
    for (int d = 0; d < kTiles; ++d) {
      // Positions of the last tile past the end hold what was there: their probability is 0, but NaN times 0 is not.
      mma_f16(o[d], v[d][0].x, v[d][1].x, v[d][0].y, v[d][1].y, p[0], p[1]);
      mma_f16(o[d], v[d][0].z, v[d][1].z, v[d][0].w, v[d][1].w, p[2], p[3]);
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int i = 4; i < 32; i *= 2) l[h] += __shfl_xor_sync(0xffffffffu, l[h], i);
    if (g == 0) {
      shared_m[warp][2 * t + h] = m[h];
      shared_l[warp][2 * t + h] = l[h];
    }
  }
#pragma unroll
  for (int d = 0; d < kTiles; ++d)
#pragma unroll
    for (int e = 0; e < 4; ++e) shared_o[warp][2 * t + e % 2][16 * d + g + 8 * (e / 2)] = o[d][e];
  __syncthreads();

  // The warps' results into one, in order; then out, or into this part's place.
  const int n_heads = args.n_heads;
  const bool is_only = n_parts - first_part == 1;
  for (int i = static_cast<int>(threadIdx.x); i < group * kHeadDim; i += static_cast<int>(blockDim.x)) {
    const int h = i / kHeadDim, d = i % kHeadDim;
    float most = kMinusInfinity, sum = 0, value = 0;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) most = fmaxf(most, shared_m[w][h]);
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      const float factor = exp2f(shared_m[w][h] - most);
      sum += shared_l[w][h] * factor;
      value += shared_o[w][h][d] * factor;
    }
    const int head = kv_head * group + h;
    if (is_only) {
      write(args, (static_cast<std::int64_t>(token) * n_heads + head) * kHeadDim + d, value / sum);
    } else {
      float* place =
          args.partials + ((static_cast<std::int64_t>(idx) * n_heads + head) * args.max_parts + part) * (kHeadDim + 2);
      place[2 + d] = value;
      if (d == 0) place[0] = most, place[1] = sum;
    }
  }
  if (is_only) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const auto n = static_cast<unsigned>(n_parts - first_part);
    // Back to 0 with the last arrival.
    const unsigned before =
        atomicInc(reinterpret_cast<unsigned*>(args.arrivals) + idx * args.kv.n_kv_heads + kv_head, n - 1);
    is_last = before == n - 1 ? 1 : 0;
  }
  __syncthreads();
  if (is_last == 0) return;
  __threadfence();
  for (int i = static_cast<int>(threadIdx.x); i < group * kHeadDim; i += static_cast<int>(blockDim.x)) {
    const int head = kv_head * group + i / kHeadDim, d = i % kHeadDim;
    const float* places =
        args.partials + (static_cast<std::int64_t>(idx) * n_heads + head) * args.max_parts * (kHeadDim + 2);
    float most = kMinusInfinity, sum = 0, value = 0;
    constexpr int kBatch = 4;  // loads in flight
    for (int begin_part = first_part; begin_part < n_parts; begin_part += kBatch) {
      float part_m[kBatch], part_l[kBatch], part_o[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int p = begin_part + i;
        const float* place = places + static_cast<std::int64_t>(p) * (kHeadDim + 2);
        part_m[i] = p < n_parts ? __ldcg(place) : kMinusInfinity;
        part_l[i] = p < n_parts ? __ldcg(place + 1) : 0.0f;
        part_o[i] = p < n_parts ? __ldcg(place + 2 + d) : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (begin_part + i >= n_parts) break;
        const float next = fmaxf(most, part_m[i]);
        const float a = exp2f(most - next), b = exp2f(part_m[i] - next);
        sum = sum * a + part_l[i] * b;
        value = value * a + part_o[i] * b;
        most = next;
      }
    }
    write(args, (static_cast<std::int64_t>(token) * n_heads + head) * kHeadDim + d, value / sum);
  }
}

// A warp takes 16 consecutive tokens of a sequence and one head; the heads of a block mostly share their keys.
template <int kHeadDim>
__global__ void __launch_bounds__(128) prefill_kernel(const __grid_constant__ CudaAttentionArgs args) {
  constexpr int kSteps = kHeadDim / 32, kTiles = kHeadDim / 8;
  wait_for_previous();
  allow_next();
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
  const int head = static_cast<int>(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
  if (head >= args.n_heads) return;
  // Long tiles first, so that the last wave is short.
  const std::int32_t* tile = args.batch.tiles + 4 * (gridDim.y - 1 - blockIdx.y);
  const int seq = tile[0], token = tile[1], n_tokens = tile[2], q_pos = tile[3];
  const int kv_head = head / (args.n_heads / args.kv.n_kv_heads);
  const std::int32_t* table = args.batch.tables + static_cast<std::int64_t>(seq) * args.batch.table_stride;

  // A operand: rows g and g + 8.
  std::uint32_t q[kSteps][2][4];
  const float scale = args.scale * kLog2E;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = min(g + 8 * r, n_tokens - 1);
    const float* from = args.q + (token + row) * args.q_stride + head * kHeadDim;
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        q[s][r][i] = pack_f16(from[32 * s + 8 * t + 2 * i] * scale, from[32 * s + 8 * t + 2 * i + 1] * scale);
  }
  float o[kTiles][4] = {};
  float m[2] = {kMinusInfinity, kMinusInfinity}, l[2] = {0, 0};
  const int end = q_pos + n_tokens;
  const int begin = args.window > 0 ? max(0, q_pos + 1 - args.window) / 32 * 32 : 0;
  for (int pos = begin; pos < end; pos += 32) {
    const int offset = pos % args.kv.block_size;
    const std::uint8_t* base = head_block(args.kv, table[pos / args.kv.block_size], kv_head);
    const __half* keys = reinterpret_cast<const __half*>(base) + static_cast<std::int64_t>(offset) * kHeadDim;
    const __half* values = reinterpret_cast<const __half*>(base + args.kv.v_offset) +
                           static_cast<std::int64_t>(offset / 32) * kHeadDim * 32;
    float score[4][4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const uint4 k = load16(keys + (8 * (g / 2) + 2 * i + g % 2) * kHeadDim + 32 * s + 8 * t);
        mma_f16(score[i], q[s][0][0], q[s][1][0], q[s][0][1], q[s][1][1], k.x, k.y);
        mma_f16(score[i], q[s][0][2], q[s][1][2], q[s][0][3], q[s][1][3], k.z, k.w);
      }
    }
    // Column 2 t + e of piece i is position 8 t + 2 i + e.
    if (pos + 32 > q_pos || args.window > 0) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int at = pos + 8 * t + 2 * i + e % 2, last = q_pos + g + 8 * (e / 2);
          if (at > last || at >= end || (args.window > 0 && at <= last - args.window)) score[i][e] = kMinusInfinity;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = kMinusInfinity;
#pragma unroll
      for (int i = 0; i < 4; ++i) most = fmaxf(most, fmaxf(score[i][2 * r], score[i][2 * r + 1]));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
      const float next = fmaxf(m[r], most), shift = next == kMinusInfinity ? 0.0f : next;
      const float factor = exp2f(m[r] - shift);
      m[r] = next;
      float sum = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
          score[i][e] = exp2f(score[i][e] - shift);
          sum += score[i][e];
        }
      }
      l[r] = l[r] * factor + sum;
#pragma unroll
      for (int d = 0; d < kTiles; ++d) {
        o[d][2 * r] *= factor;
        o[d][2 * r + 1] *= factor;
      }
    }
    std::uint32_t p[4][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      p[i][0] = pack_f16(score[i][0], score[i][1]);
      p[i][1] = pack_f16(score[i][2], score[i][3]);
    }
#pragma unroll
    for (int d = 0; d < kTiles; ++d) {
      const uint4 v = load16(values + (8 * d + g) * 32 + 8 * t);
      mma_f16(o[d], p[0][0], p[0][1], p[1][0], p[1][1], v.x, v.y);
      mma_f16(o[d], p[2][0], p[2][1], p[3][0], p[3][1], v.z, v.w);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    l[r] += __shfl_xor_sync(0xffffffffu, l[r], 1);
    l[r] += __shfl_xor_sync(0xffffffffu, l[r], 2);
    const int row = g + 8 * r;
    if (row >= n_tokens) continue;
    const float inverse = 1.0f / l[r];
    const std::int64_t at = (static_cast<std::int64_t>(token + row) * args.n_heads + head) * kHeadDim + 2 * t;
#pragma unroll
    for (int d = 0; d < kTiles; ++d) {
      if (args.out_bf16 != nullptr) {
        *reinterpret_cast<std::uint32_t*>(args.out_bf16 + at + 8 * d) =
            pack_bf16(o[d][2 * r] * inverse, o[d][2 * r + 1] * inverse);
      } else {
        args.out_f32[at + 8 * d] = o[d][2 * r] * inverse;
        args.out_f32[at + 8 * d + 1] = o[d][2 * r + 1] * inverse;
      }
    }
  }
}

// A block of one warp takes (token, head) with any head size up to 256; f32 throughout.
__global__ void simple_kernel(const __grid_constant__ CudaAttentionArgs args, bool is_decode) {
  constexpr int kMost = 8;  // dimensions of a lane
  wait_for_previous();
  allow_next();
  const int lane = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.x), head_dim = args.kv.head_dim;
  int seq, token, kv_len;
  if (is_decode) {
    seq = args.batch.decode_seqs[blockIdx.y];
    token = args.batch.decode_tokens[blockIdx.y];
    kv_len = args.batch.kv_len[seq];
  } else {
    const std::int32_t* tile = args.batch.tiles + 4 * (blockIdx.y / 16);
    const int i = static_cast<int>(blockIdx.y % 16);
    if (i >= tile[2]) return;
    seq = tile[0], token = tile[1] + i, kv_len = tile[3] + i + 1;
  }
  const int kv_head = head / (args.n_heads / args.kv.n_kv_heads);
  const std::int32_t* table = args.batch.tables + static_cast<std::int64_t>(seq) * args.batch.table_stride;
  const float* q = args.q + token * args.q_stride + head * head_dim;
  float o[kMost] = {}, m = kMinusInfinity, l = 0;
  for (int pos = args.window > 0 ? max(0, kv_len - args.window) : 0; pos < kv_len; ++pos) {
    const int offset = pos % args.kv.block_size;
    const std::uint8_t* base = head_block(args.kv, table[pos / args.kv.block_size], kv_head);
    const __half* key = reinterpret_cast<const __half*>(base) + static_cast<std::int64_t>(offset) * head_dim;
    const __half* value = reinterpret_cast<const __half*>(base + args.kv.v_offset) +
                          static_cast<std::int64_t>(offset / 32) * head_dim * 32 + offset % 32;
    float score = 0;
    for (int d = lane; d < head_dim; d += 32) score = fmaf(q[d], __half2float(key[d]), score);
    score = warp_sum(score) * args.scale;
    const float next = fmaxf(m, score), factor = expf(m - next), p = expf(score - next);
    m = next;
    l = l * factor + p;
#pragma unroll
    for (int i = 0; i < kMost; ++i)
      if (lane + 32 * i < head_dim) o[i] = fmaf(p, __half2float(value[(lane + 32 * i) * 32]), o[i] * factor);
  }
#pragma unroll
  for (int i = 0; i < kMost; ++i)
    if (lane + 32 * i < head_dim)
      write(args, (static_cast<std::int64_t>(token) * args.n_heads + head) * head_dim + lane + 32 * i,
            kv_len > 0 ? o[i] / l : 0.0f);
}

template <int kHeadDim>
void launch_mma(void* stream, const CudaAttentionArgs& args) {
  const CudaBatch& batch = args.batch;
  if (batch.n_decodes > 0) {
    const unsigned n_parts = ceil_div(batch.max_decode_len, args.split);
    launch(decode_kernel<kHeadDim>,
           dim3(n_parts > 0 ? n_parts : 1, static_cast<unsigned>(args.kv.n_kv_heads),
                static_cast<unsigned>(batch.n_decodes)),
           32 * kDecodeWarps, 0, stream, args);
  }
  if (batch.n_tiles > 0)
    launch(prefill_kernel<kHeadDim>, dim3(ceil_div(args.n_heads, 4), static_cast<unsigned>(batch.n_tiles)), 128, 0,
           stream, args);
}
}  // namespace

void attention(void* stream, const CudaAttentionArgs& args) {
  const bool is_grouped = args.n_heads / args.kv.n_kv_heads <= 8;
  if (is_grouped && args.kv.head_dim == 128) return launch_mma<128>(stream, args);
  if (is_grouped && args.kv.head_dim == 64) return launch_mma<64>(stream, args);
  if (args.batch.n_decodes > 0)
    launch(simple_kernel, dim3(static_cast<unsigned>(args.n_heads), static_cast<unsigned>(args.batch.n_decodes)), 32, 0,
           stream, args, true);
  if (args.batch.n_tiles > 0)
    launch(simple_kernel, dim3(static_cast<unsigned>(args.n_heads), static_cast<unsigned>(16 * args.batch.n_tiles)), 32,
           0, stream, args, false);
}

}  // namespace still::cuda
