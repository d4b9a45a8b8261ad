// Attention over KV blocks. Three kernels:
//
// decode: one new token a sequence. A block takes (part of the positions, KV head, sequence); the heads that share the
// KV
//   head are the 8 columns of the tensor core's tile, so up to 8 of them cost one pass over the keys. A warp takes 32
//   positions at a time: S^T = K Q^T, then O^T = V^T P^T, operands straight from memory in 16-byte loads. Parts are of
//   a fixed number of positions and are folded in order, so that a sequence's result does not depend on its
//   neighbours: up to 8 parts by a cluster of blocks through shared memory, more by the block that arrives last. Where
//   sequences fill the multiprocessors a block of a cluster takes several parts, one after the other.
//   What earlier steps wrote (lists, keys, values but the new position's) is in registers before the kernel waits for
//   its predecessor; the new key and value are computed, put in place and stored by the warp whose tile has them.
// prefill: several new tokens a sequence. A warp takes 16 tokens of a head and walks the positions 32 at a time.
// simple: any head size, a warp for each (token, head): for small models and as an oracle.
//
// Keys and values of bf16 are multiplied as bf16, with queries and probabilities in bf16. Of one byte they become f16
// in registers: e4m3 exactly, int8 times its scale; there what a step adds is stored by rope_kv_write.
//
// Keys lie [position][head_dim], values transposed [head_dim][32 positions]; both orders of the tensor core's k are
// permuted so that a lane reads 8 consecutive elements. Scores are in units of log2: scale * log2(e) is folded into q.
#include <bit>

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
__device__ __forceinline__ void write4(const CudaAttentionArgs& args, std::int64_t at, float4 v) {
  if (args.out_bf16 != nullptr) {
    *reinterpret_cast<uint2*>(args.out_bf16 + at) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
  } else {
    *reinterpret_cast<float4*>(args.out_f32 + at) = v;
  }
}
__device__ __forceinline__ void add_scaled(float4& sum, const float4& v, float factor) {
  sum.x = fmaf(v.x, factor, sum.x), sum.y = fmaf(v.y, factor, sum.y);
  sum.z = fmaf(v.z, factor, sum.z), sum.w = fmaf(v.w, factor, sum.w);
}
__device__ __forceinline__ float4 divided(const float4& v, float by) {
  return make_float4(v.x / by, v.y / by, v.z / by, v.w / by);
}
__device__ __forceinline__ uint4 load16(const void* at) {
  return *static_cast<const uint4*>(at);
}
__device__ __forceinline__ uint2 load_8(const void* at) {
  return *static_cast<const uint2*>(at);
}

// What differs between types of keys and values.
template <KvType kKv>
struct KvMath {
  static constexpr bool kIsByte = kKv == KvType::kInt8 || kKv == KvType::kF8, kIsInt8 = kKv == KvType::kInt8;
  static constexpr int kBytes = kIsByte ? 1 : 2;
  static constexpr int kWords = kIsByte ? 2 : 4;  // of eight elements
  static __device__ __forceinline__ std::uint32_t pack(float low, float high) {
    return kKv == KvType::kBF16 ? pack_bf16(low, high) : pack_f16(low, high);
  }
  static __device__ __forceinline__ void mma(float (&d)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                                             std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
    if constexpr (kKv == KvType::kBF16) {
      mma_bf16(d, a0, a1, a2, a3, b0, b1);
    } else {
      mma_f16(d, a0, a1, a2, a3, b0, b1);
    }
  }
  // Eight elements of 16 bits from what was loaded; int8 still without its scale.
  static __device__ __forceinline__ void widen(const std::uint32_t (&raw)[kWords], std::uint32_t (&v)[4]) {
    if constexpr (kKv == KvType::kF8) {
      e4m3_to_f16(raw[0], v[0], v[1]);
      e4m3_to_f16(raw[1], v[2], v[3]);
    } else if constexpr (kIsInt8) {
      int8_to_f16(raw[0], v[0], v[1]);
      int8_to_f16(raw[1], v[2], v[3]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = raw[i];
    }
  }
  static __device__ __forceinline__ void scale_all(std::uint32_t (&v)[4], std::uint32_t scale) {  // one f16
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = mul_f16(v[i], scale * 0x10001u);
  }
  static __device__ __forceinline__ void scale_each(std::uint32_t (&v)[4], const uint4& scales) {
    v[0] = mul_f16(v[0], scales.x), v[1] = mul_f16(v[1], scales.y);
    v[2] = mul_f16(v[2], scales.z), v[3] = mul_f16(v[3], scales.w);
  }
};
// 8 x 8 of 16 bits, transposed across the warp.
__device__ __forceinline__ std::uint32_t transpose8(std::uint32_t v) {
  std::uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}

// A barrier of a cluster: what was written to shared memory before it is seen by all blocks after it.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// The shared memory of another block of the cluster, at the place where this block has its own.
__device__ __forceinline__ std::uint32_t place_of_rank(const void* own, unsigned rank) {
  std::uint32_t address = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(own))), "r"(rank));
#endif
  return address;
}
__device__ __forceinline__ float load_remote(std::uint32_t address) {
  float v = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
#endif
  return v;
}
__device__ __forceinline__ float4 load_remote4(std::uint32_t address) {
  float4 v = make_float4(0, 0, 0, 0);
#if __CUDA_ARCH__ >= 900
  asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
#endif
  return v;
}
// Keys and values are read once; asking for 256 bytes at a time keeps the memory's rows open.
__device__ __forceinline__ uint4 load_kv(const void* at) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at));
  return v;
}

__device__ __forceinline__ uint2 load_kv8(const void* at) {
  uint2 v;
  asm volatile("ld.global.L1::no_allocate.L2::256B.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(at));
  return v;
}

__device__ __forceinline__ void rotate(float a, float b, float cos, float sin, float& x, float& y) {
  x = fmaf(a, cos, -__fmul_rn(b, sin));
  y = fmaf(b, cos, __fmul_rn(a, sin));
}
__device__ __forceinline__ void load8(const float* from, float (&v)[8]) {
  const float4 a = *reinterpret_cast<const float4*>(from), b = *reinterpret_cast<const float4*>(from + 4);
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

constexpr int kMostCluster = 8;

template <int kHeadDim>
struct PartResult {
  float o[8][kHeadDim], m[8], l[8];
};

// kIsCluster: the parts of a sequence and KV head (at most kMostCluster) are shared out over the blocks of a cluster.
template <int kHeadDim, bool kIsCluster, KvType kKv>
__global__ void __launch_bounds__(32 * kDecodeWarps) decode_kernel(const __grid_constant__ CudaAttentionArgs args) {
  constexpr int kSteps = kHeadDim / 32;  // of 32 dimensions in S
  constexpr int kTiles = kHeadDim / 16;  // of 16 dimensions in O
  constexpr int kHalf = kHeadDim / 2;
  using Math = KvMath<kKv>;
  constexpr bool kCanFuse = kKv == KvType::kF16;
  __shared__ __align__(16) float shared_o[kDecodeWarps][8][kHeadDim];
  __shared__ float shared_m[kDecodeWarps][8], shared_l[kDecodeWarps][8];
  extern __shared__ __align__(16) float parts[];    // of the block, for its cluster: [parts] of PartResult
  __shared__ __align__(16) float angles[2][kHalf];  // cosines and sines of the new position
  __shared__ int is_last;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int g = lane / 4, t = lane % 4;
  const int n_own = kIsCluster ? args.parts_per_block : 1;
  const int part = n_own * static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  const int idx = static_cast<int>(blockIdx.z);
  allow_next();
  // The step's lists were there before its first kernel, and keys and values but the last position's before the step.
  const int seq = args.batch.is_plain ? idx : args.batch.decode_seqs[idx];
  const int token = args.batch.is_plain ? idx : args.batch.decode_tokens[idx];
  const std::int32_t* table = args.batch.tables + static_cast<std::int64_t>(seq) * args.batch.table_stride;
  const int begin = part * args.split;
  int first_tile = begin + 32 * warp;
  constexpr int kTurn = 32 * kDecodeWarps;  // from a tile of a warp to its next
  // Blocks are looked up a tile ahead, the first ones beside kv_len; past the sequence's end they are not used.
  const auto block_at = [&](int pos) { return table[min(pos / args.kv.block_size, args.batch.table_stride - 1)]; };
  int block = block_at(first_tile), next_block = block_at(first_tile + kTurn);
  const int kv_len = args.batch.kv_len[seq];
  const int group = args.n_heads / args.kv.n_kv_heads;
  const int first_visible = args.window > 0 ? max(0, kv_len - args.window) : 0;
  const int n_parts = (kv_len + args.split - 1) / args.split;
  const int first_part = first_visible / args.split;
  const int begin_part = max(part, first_part), end_part = min(part + n_own, n_parts);
  const bool is_idle = begin_part >= end_part;
  if (is_idle && (!kIsCluster || kv_len == 0)) {
    wait_for_previous();
    if (kv_len == 0 && part == 0)  // padding of a captured step
      for (int i = static_cast<int>(threadIdx.x); i < group * kHeadDim; i += static_cast<int>(blockDim.x))
        write(args, (static_cast<std::int64_t>(token) * args.n_heads + kv_head * group) * kHeadDim + i, 0.0f);
    return;  // of a cluster all blocks
  }
  const int end = is_idle ? begin : min(end_part * args.split, kv_len);
  if (first_visible > begin) {  // a window that begins in these parts
    first_tile += (first_visible - begin) / kTurn * kTurn;
    block = block_at(first_tile), next_block = block_at(first_tile + kTurn);
  }

  // Row r of the 8-row piece i is position 8 (r / 2) + 2 i + r % 2: then a lane's probabilities are of 8 positions in
  // a row of V^T.
  std::uint32_t k[4][kSteps][Math::kWords], v[kTiles][2][Math::kWords];
  std::uint32_t k_scales[Math::kIsInt8 ? 4 : 1][kSteps / 2];  // two groups of 32 dimensions a word
  uint4 v_scales[Math::kIsInt8 ? kSteps : 1];                 // of 32 dimensions
  std::uint8_t *keys = nullptr, *values = nullptr;            // of the tile
  const auto load_eight = [](const std::uint8_t* at, std::uint32_t(&to)[Math::kWords]) {
    if constexpr (Math::kIsByte) {
      const uint2 x = load_kv8(at);
      to[0] = x.x, to[1] = x.y;
    } else {
      const uint4 x = load_kv(at);
      to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
    }
  };
  const auto load_tile = [&](int pos, int block) {
    const int offset = pos % args.kv.block_size;
    std::uint8_t* base = args.kv.base + block * args.kv.block_bytes + kv_head * args.kv.head_bytes;
    const std::int64_t first = static_cast<std::int64_t>(offset) * kHeadDim * Math::kBytes;
    keys = base + first;
    values = base + args.kv.v_offset + first;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s)
        load_eight(keys + ((8 * (g / 2) + 2 * i + g % 2) * kHeadDim + 32 * s + 8 * t) * Math::kBytes, k[i][s]);
    }
#pragma unroll
    for (int d = 0; d < kTiles; ++d) {
#pragma unroll
      for (int r = 0; r < 2; ++r) load_eight(values + ((16 * d + 8 * r + g) * 32 + 8 * t) * Math::kBytes, v[d][r]);
    }
    if constexpr (Math::kIsInt8) {
      const std::uint8_t *of_k = base + args.kv.k_scale_offset + offset * (2 * kSteps),
                         *of_v = base + args.kv.v_scale_offset + offset / 32 * (64 * kSteps);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int s = 0; s < kSteps / 2; ++s)
          k_scales[i][s] =
              *reinterpret_cast<const std::uint32_t*>(of_k + (8 * (g / 2) + 2 * i + g % 2) * (2 * kSteps) + 4 * s);
      }
#pragma unroll
      for (int s = 0; s < kSteps; ++s) v_scales[s] = load16(of_v + 64 * s + 16 * t);
    }
  };
  const auto prefetch_tile = [&](int pos, int at) {  // into L2, two runs of memory
    // Where blocks fill the multiprocessors it costs 2 to 3 %.
    if (gridDim.x == 1) return;
    if (pos >= end || lane != 0) return;
    const int offset = pos % args.kv.block_size;
    const std::uint8_t* base =
        head_block(args.kv, at, kv_head) + static_cast<std::int64_t>(offset) * kHeadDim * Math::kBytes;
    prefetch_run(base, 32 * kHeadDim * Math::kBytes);
    prefetch_run(base + args.kv.v_offset, 32 * kHeadDim * Math::kBytes);
  };
  // Without rope fused, the predecessor wrote the last position: that tile waits.
  const bool is_early = first_tile < end && (args.is_rope_fused || first_tile + 32 < kv_len);
  if (is_early) load_tile(first_tile, block);
  prefetch_tile(first_tile + kTurn, next_block);
  if (args.is_q_raw) {
    for (int i = static_cast<int>(threadIdx.x); i < kHalf; i += static_cast<int>(blockDim.x)) {
      angles[0][i] = args.rope.cos[static_cast<std::int64_t>(kv_len - 1) * kHalf + i];
      angles[1][i] = args.rope.sin[static_cast<std::int64_t>(kv_len - 1) * kHalf + i];
    }
    __syncthreads();
  }
  wait_for_previous();

  // B operand: column g is head kv_head * group + g.
  std::uint32_t q[kSteps][4];
  {
    const float* from = args.q + token * args.q_stride + (kv_head * group + (g < group ? g : 0)) * kHeadDim + 8 * t;
    const float scale = args.scale * kLog2E;
#pragma unroll
    for (int s = 0; s < kSteps / 2; ++s) {
      float a[8], b[8];
      load8(from + 32 * s, a);
      load8(from + 32 * s + kHalf, b);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (args.is_q_raw) rotate(a[i], b[i], angles[0][32 * s + 8 * t + i], angles[1][32 * s + 8 * t + i], a[i], b[i]);
        a[i] *= scale, b[i] *= scale;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        q[s][i] = g < group ? Math::pack(a[2 * i], a[2 * i + 1]) : 0;
        q[s + kSteps / 2][i] = g < group ? Math::pack(b[2 * i], b[2 * i + 1]) : 0;
      }
    }
  }

  const int n_heads = args.n_heads, n_fours = group * kHeadDim / 4;
  const bool is_only = n_parts - first_part == 1;
  auto* results = reinterpret_cast<PartResult<kHeadDim>*>(parts);
  if (first_tile < end && !is_early) load_tile(first_tile, block);
  int pos = first_tile;
  for (int own = begin_part; own < end_part; ++own) {
    float o[kTiles][4] = {};
    float m[2] = {kMinusInfinity, kMinusInfinity}, l[2] = {0, 0};  // of heads 2 t and 2 t + 1
    // A part is whole turns of tiles.
    for (const int part_end = min((own + 1) * args.split, end); pos < part_end;) {
      block = next_block;
      next_block = block_at(pos + 2 * kTurn);
      if constexpr (kCanFuse) {
        if (args.is_rope_fused && pos + 32 >= kv_len) {  // the new position is in this tile
          const int at = kv_len - 1 - pos;
          if (g == 2 * (at / 8) + at % 2) {  // four lanes have its key
            const float* from = args.rope.k + token * args.rope.k_stride + kv_head * kHeadDim + 8 * t;
#pragma unroll
            for (int s = 0; s < kSteps / 2; ++s) {
              float a[8], b[8];
              load8(from + 32 * s, a);
              load8(from + 32 * s + kHalf, b);
              std::uint32_t low[4], high[4];
#pragma unroll
              for (int i = 0; i < 8; ++i)
                rotate(a[i], b[i], angles[0][32 * s + 8 * t + i], angles[1][32 * s + 8 * t + i], a[i], b[i]);
#pragma unroll
              for (int i = 0; i < 4; ++i)
                low[i] = pack_f16(a[2 * i], a[2 * i + 1]), high[i] = pack_f16(b[2 * i], b[2 * i + 1]);
              // Selections, not branches: an index that is not a constant would move the array to memory.
#pragma unroll
              for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                  k[i][s][e] = i == at % 8 / 2 ? low[e] : k[i][s][e];
                  k[i][s + kSteps / 2][e] = i == at % 8 / 2 ? high[e] : k[i][s + kSteps / 2][e];
                }
              }
              __half* to = reinterpret_cast<__half*>(keys) + at * kHeadDim + 32 * s + 8 * t;
              *reinterpret_cast<uint4*>(to) = make_uint4(low[0], low[1], low[2], low[3]);
              *reinterpret_cast<uint4*>(to + kHalf) = make_uint4(high[0], high[1], high[2], high[3]);
            }
          }
          if (t == at / 8) {  // eight lanes have its value
            const float* from = args.rope.v + token * args.rope.v_stride + kv_head * kHeadDim + g;
#pragma unroll
            for (int d = 0; d < kTiles; ++d) {
#pragma unroll
              for (int r = 0; r < 2; ++r) {
                const __half value = __float2half_rn(from[16 * d + 8 * r]);
                reinterpret_cast<__half*>(values)[(16 * d + 8 * r + g) * 32 + at] = value;
                const std::uint32_t bits = __half_as_ushort(value), keep = at % 2 == 0 ? 0xffff0000u : 0xffffu;
                const std::uint32_t moved = at % 2 == 0 ? bits : bits << 16;
#pragma unroll
                for (int e = 0; e < 4; ++e) v[d][r][e] = e == at % 8 / 2 ? (v[d][r][e] & keep) | moved : v[d][r][e];
              }
            }
          }
        }
      }
      float score[2][4] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          std::uint32_t a[4], b[4];
          Math::widen(k[2 * i][s], a);
          Math::widen(k[2 * i + 1][s], b);
          if constexpr (Math::kIsInt8) {
            Math::scale_all(a, (k_scales[2 * i][s / 2] >> (16 * (s % 2))) & 0xffffu);
            Math::scale_all(b, (k_scales[2 * i + 1][s / 2] >> (16 * (s % 2))) & 0xffffu);
          }
          Math::mma(score[i], a[0], b[0], a[1], b[1], q[s][0], q[s][1]);
          Math::mma(score[i], a[2], b[2], a[3], b[3], q[s][2], q[s][3]);
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
        p[2 * i] = transpose8(Math::pack(score[i][0], score[i][1]));
        p[2 * i + 1] = transpose8(Math::pack(score[i][2], score[i][3]));
      }
#pragma unroll
      for (int d = 0; d < kTiles; ++d) {
        // Positions of the last tile past the end hold what was there: their probability is 0, but NaN times 0 is not.
        std::uint32_t a[4], b[4];
        Math::widen(v[d][0], a);
        Math::widen(v[d][1], b);
        if constexpr (Math::kIsInt8) {
          Math::scale_each(a, v_scales[d / 2]);
          Math::scale_each(b, v_scales[d / 2]);
        }
        Math::mma(o[d], a[0], b[0], a[1], b[1], p[0], p[1]);
        Math::mma(o[d], a[2], b[2], a[3], b[3], p[2], p[3]);
      }
      pos += kTurn;
      if (pos < end) load_tile(pos, block);
      prefetch_tile(pos + kTurn, next_block);
    }
    if (own > begin_part) __syncthreads();  // the last part's results are read
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

    // The warps' results into one, in order, four elements of a thread; then out, or into this part's place.
    for (int i = static_cast<int>(threadIdx.x); i < n_fours; i += static_cast<int>(blockDim.x)) {
      const int h = 4 * i / kHeadDim, d = 4 * i % kHeadDim;
      float most = kMinusInfinity, sum = 0;
      float4 value = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int w = 0; w < kDecodeWarps; ++w) most = fmaxf(most, shared_m[w][h]);
      const float shift = most == kMinusInfinity ? 0.0f : most;
#pragma unroll
      for (int w = 0; w < kDecodeWarps; ++w) {
        const float factor = exp2f(shared_m[w][h] - shift);
        sum = fmaf(shared_l[w][h], factor, sum);
        add_scaled(value, *reinterpret_cast<const float4*>(&shared_o[w][h][d]), factor);
      }
      const int head = kv_head * group + h;
      if constexpr (kIsCluster) {
        PartResult<kHeadDim>& result = results[own - part];
        *reinterpret_cast<float4*>(&result.o[h][d]) = value;
        if (d == 0) result.m[h] = most, result.l[h] = sum;
      } else if (is_only) {
        write4(args, (static_cast<std::int64_t>(token) * n_heads + head) * kHeadDim + d, divided(value, sum));
      } else {
        float* place = args.partials +
                       ((static_cast<std::int64_t>(idx) * n_heads + head) * args.max_parts + part) * (kHeadDim + 2);
        *reinterpret_cast<float2*>(place + 2 + d) = make_float2(value.x, value.y);
        *reinterpret_cast<float2*>(place + 4 + d) = make_float2(value.z, value.w);
        if (d == 0) *reinterpret_cast<float2*>(place) = make_float2(most, sum);
      }
    }
  }
  if constexpr (kIsCluster) {
    // Every block folds a share of the elements over all parts.
    const int n_ranks = static_cast<int>(gridDim.x);
    const int share = (n_fours + n_ranks - 1) / n_ranks, rank = static_cast<int>(blockIdx.x);
    cluster_arrive();
    cluster_wait();
    for (int i = rank * share + static_cast<int>(threadIdx.x); i < min((rank + 1) * share, n_fours);
         i += static_cast<int>(blockDim.x)) {
      const int h = 4 * i / kHeadDim, d = 4 * i % kHeadDim;
      float ms[kMostCluster], ls[kMostCluster], most = kMinusInfinity, sum = 0;
      float4 os[kMostCluster], value = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int r = 0; r < kMostCluster; ++r) {
        ms[r] = kMinusInfinity, ls[r] = 0, os[r] = value;
        if (r < first_part || r >= n_parts) continue;
        const auto owner = static_cast<unsigned>(r / n_own);
        const PartResult<kHeadDim>& result = results[r % n_own];
        ms[r] = load_remote(place_of_rank(&result.m[h], owner));
        ls[r] = load_remote(place_of_rank(&result.l[h], owner));
        os[r] = load_remote4(place_of_rank(&result.o[h][d], owner));
      }
#pragma unroll
      for (int r = 0; r < kMostCluster; ++r) most = fmaxf(most, ms[r]);
#pragma unroll
      for (int r = 0; r < kMostCluster; ++r) {
        const float factor = exp2f(ms[r] - most);
        sum = fmaf(ls[r], factor, sum);
        add_scaled(value, os[r], factor);
      }
      write4(args, (static_cast<std::int64_t>(token) * n_heads + kv_head * group + h) * kHeadDim + d,
             divided(value, sum));
    }
    // Nobody leaves while another reads its memory.
    cluster_arrive();
    cluster_wait();
    return;
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
#pragma unroll 8
    for (int p = first_part; p < n_parts; ++p) most = fmaxf(most, __ldcg(places + p * (kHeadDim + 2)));
#pragma unroll 4
    for (int p = first_part; p < n_parts; ++p) {
      const float* place = places + p * (kHeadDim + 2);
      const float factor = exp2f(__ldcg(place) - most);
      sum = fmaf(__ldcg(place + 1), factor, sum);
      value = fmaf(__ldcg(place + 2 + d), factor, value);
    }
    write(args, (static_cast<std::int64_t>(token) * n_heads + head) * kHeadDim + d, value / sum);
  }
}

// A warp takes 16 consecutive tokens of a sequence and one head; the heads of a block mostly share their keys.
template <int kHeadDim, KvType kKv>
__global__ void __launch_bounds__(128) prefill_kernel(const __grid_constant__ CudaAttentionArgs args) {
  constexpr int kSteps = kHeadDim / 32, kTiles = kHeadDim / 8;
  using Math = KvMath<kKv>;
  const auto load_eight = [](const std::uint8_t* at, std::uint32_t(&v)[4]) {
    std::uint32_t raw[Math::kWords];
    if constexpr (Math::kIsByte) {
      const uint2 x = load_8(at);
      raw[0] = x.x, raw[1] = x.y;
    } else {
      const uint4 x = load16(at);
      raw[0] = x.x, raw[1] = x.y, raw[2] = x.z, raw[3] = x.w;
    }
    Math::widen(raw, v);
  };
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
    const float* from = args.q + (token + row) * args.q_stride + head * kHeadDim + 8 * t;
    const std::int64_t angle = static_cast<std::int64_t>(q_pos + row) * (kHeadDim / 2) + 8 * t;
#pragma unroll
    for (int s = 0; s < kSteps / 2; ++s) {
      float a[8], b[8];
      load8(from + 32 * s, a);
      load8(from + 32 * s + kHeadDim / 2, b);
      if (args.is_q_raw) {
        float cos[8], sin[8];
        load8(args.rope.cos + angle + 32 * s, cos);
        load8(args.rope.sin + angle + 32 * s, sin);
#pragma unroll
        for (int i = 0; i < 8; ++i) rotate(a[i], b[i], cos[i], sin[i], a[i], b[i]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        q[s][r][i] = Math::pack(a[2 * i] * scale, a[2 * i + 1] * scale);
        q[s + kSteps / 2][r][i] = Math::pack(b[2 * i] * scale, b[2 * i + 1] * scale);
      }
    }
  }
  float o[kTiles][4] = {};
  float m[2] = {kMinusInfinity, kMinusInfinity}, l[2] = {0, 0};
  const int end = q_pos + n_tokens;
  const int begin = args.window > 0 ? max(0, q_pos + 1 - args.window) / 32 * 32 : 0;
  for (int pos = begin; pos < end; pos += 32) {
    const int offset = pos % args.kv.block_size;
    const std::uint8_t* base = head_block(args.kv, table[pos / args.kv.block_size], kv_head);
    const std::uint8_t* keys = base + static_cast<std::int64_t>(offset) * kHeadDim * Math::kBytes;
    const std::uint8_t* values =
        base + args.kv.v_offset + static_cast<std::int64_t>(offset / 32) * kHeadDim * 32 * Math::kBytes;
    const auto* k_scales = reinterpret_cast<const std::uint16_t*>(base + args.kv.k_scale_offset) + offset * kSteps;
    const std::uint8_t* v_scales = base + args.kv.v_scale_offset + offset / 32 * (64 * kSteps) + 16 * t;
    float score[4][4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int row = 8 * (g / 2) + 2 * i + g % 2;
        std::uint32_t k[4];
        load_eight(keys + (row * kHeadDim + 32 * s + 8 * t) * Math::kBytes, k);
        if constexpr (Math::kIsInt8) Math::scale_all(k, k_scales[row * kSteps + s]);
        Math::mma(score[i], q[s][0][0], q[s][1][0], q[s][0][1], q[s][1][1], k[0], k[1]);
        Math::mma(score[i], q[s][0][2], q[s][1][2], q[s][0][3], q[s][1][3], k[2], k[3]);
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
      p[i][0] = Math::pack(score[i][0], score[i][1]);
      p[i][1] = Math::pack(score[i][2], score[i][3]);
    }
#pragma unroll
    for (int d = 0; d < kTiles; ++d) {
      std::uint32_t v[4];
      load_eight(values + ((8 * d + g) * 32 + 8 * t) * Math::kBytes, v);
      if constexpr (Math::kIsInt8) Math::scale_each(v, load16(v_scales + 64 * (d / 4)));
      Math::mma(o[d], p[0][0], p[0][1], p[1][0], p[1][1], v[0], v[1]);
      Math::mma(o[d], p[2][0], p[2][1], p[3][0], p[3][1], v[2], v[3]);
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

__device__ __forceinline__ float kv_element(KvType type, const std::uint8_t* from, std::int64_t at) {
  if (type == KvType::kF16) return __half2float(reinterpret_cast<const __half*>(from)[at]);
  if (type == KvType::kBF16) return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(from)[at]);
  if (type == KvType::kInt8) return static_cast<float>(reinterpret_cast<const std::int8_t*>(from)[at]);
  std::uint32_t low, high;
  e4m3_to_f16(from[at], low, high);
  return half_bits_to_float(low & 0xffffu);
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
  const int group = group_of(head_dim), n_groups = head_dim / group;
  const bool is_int8 = args.kv.type == KvType::kInt8;
  const std::int32_t* table = args.batch.tables + static_cast<std::int64_t>(seq) * args.batch.table_stride;
  const float* q = args.q + token * args.q_stride + head * head_dim;
  float o[kMost] = {}, m = kMinusInfinity, l = 0;
  for (int pos = args.window > 0 ? max(0, kv_len - args.window) : 0; pos < kv_len; ++pos) {
    const int offset = pos % args.kv.block_size;
    const std::uint8_t* base = head_block(args.kv, table[pos / args.kv.block_size], kv_head);
    const std::int64_t key = static_cast<std::int64_t>(offset) * head_dim,
                       value = static_cast<std::int64_t>(offset / 32) * head_dim * 32 + offset % 32;
    const auto key_scale = [&](int d) {
      const auto* scales = reinterpret_cast<const __half*>(base + args.kv.k_scale_offset);
      return is_int8 ? __half2float(scales[offset * n_groups + d / group]) : 1.0f;
    };
    const auto value_scale = [&](int d) {
      const auto* scales = reinterpret_cast<const __half*>(base + args.kv.v_scale_offset);
      return is_int8 ? __half2float(scales[(offset / 32 * n_groups + d / group) * 32 + offset % 32]) : 1.0f;
    };
    float score = 0;
    for (int d = lane; d < head_dim; d += 32)
      score = fmaf(q[d], kv_element(args.kv.type, base, key + d) * key_scale(d), score);
    score = warp_sum(score) * args.scale;
    const float next = fmaxf(m, score), factor = expf(m - next), p = expf(score - next);
    m = next;
    l = l * factor + p;
#pragma unroll
    for (int i = 0; i < kMost; ++i)
      if (const int d = lane + 32 * i; d < head_dim)
        o[i] =
            fmaf(p, kv_element(args.kv.type, base + args.kv.v_offset, value + d * 32) * value_scale(d), o[i] * factor);
  }
#pragma unroll
  for (int i = 0; i < kMost; ++i)
    if (lane + 32 * i < head_dim)
      write(args, (static_cast<std::int64_t>(token) * args.n_heads + head) * head_dim + lane + 32 * i,
            kv_len > 0 ? o[i] / l : 0.0f);
}

template <int kHeadDim, KvType kKv>
void launch_mma(void* stream, const CudaAttentionArgs& args) {
  const CudaBatch& batch = args.batch;
  if (batch.n_decodes > 0) {
    unsigned n_parts = batch.max_decode_len > 0 ? ceil_div(batch.max_decode_len, args.split) : 1;
    dim3 grid(n_parts, static_cast<unsigned>(args.kv.n_kv_heads), static_cast<unsigned>(batch.n_decodes));
    if (n_parts > 1 && n_parts <= kMostCluster && has_clusters()) {
      grid.x = ceil_div(n_parts, args.parts_per_block);
      constexpr std::size_t kBytes = sizeof(PartResult<kHeadDim>);
      (void)cudaFuncSetAttribute(decode_kernel<kHeadDim, true, kKv>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(kMostCluster * kBytes));
      launch_cluster(decode_kernel<kHeadDim, true, kKv>, grid, 32 * kDecodeWarps, grid.x,
                     kBytes * static_cast<std::size_t>(args.parts_per_block), stream, args);
    } else {
      launch(decode_kernel<kHeadDim, false, kKv>, grid, 32 * kDecodeWarps, 0, stream, args);
    }
  }
  if (batch.n_tiles > 0)
    launch(prefill_kernel<kHeadDim, kKv>, dim3(ceil_div(args.n_heads, 4), static_cast<unsigned>(batch.n_tiles)), 128, 0,
           stream, args);
}
template <int kHeadDim>
void launch_of_type(void* stream, const CudaAttentionArgs& args) {
  switch (args.kv.type) {
    case KvType::kBF16:
      return launch_mma<kHeadDim, KvType::kBF16>(stream, args);
    case KvType::kF8:
      return launch_mma<kHeadDim, KvType::kF8>(stream, args);
    case KvType::kInt8:
      return launch_mma<kHeadDim, KvType::kInt8>(stream, args);
    default:
      return launch_mma<kHeadDim, KvType::kF16>(stream, args);
  }
}
}  // namespace

void attention(void* stream, const CudaAttentionArgs& args) {
  const bool is_grouped = args.n_heads / args.kv.n_kv_heads <= 8;
  if (is_grouped && args.kv.head_dim == 128) return launch_of_type<128>(stream, args);
  if (is_grouped && args.kv.head_dim == 64) return launch_of_type<64>(stream, args);
  if (args.batch.n_decodes > 0)
    launch(simple_kernel, dim3(static_cast<unsigned>(args.n_heads), static_cast<unsigned>(args.batch.n_decodes)), 32, 0,
           stream, args, true);
  if (args.batch.n_tiles > 0)
    launch(simple_kernel, dim3(static_cast<unsigned>(args.n_heads), static_cast<unsigned>(16 * args.batch.n_tiles)), 32,
           0, stream, args, false);
}

}  // namespace still::cuda
