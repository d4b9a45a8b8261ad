// What stands between the products: norms, activations quantised or rounded, rotary embedding with the write of keys
// and values, SwiGLU of a dense product.
#include "kernels/cuda/comm.cuh"
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/f8_chain.cuh"
#include "kernels/cuda/norm.cuh"

namespace still::cuda {

namespace {

// Eight consecutive values of each lane (256 of a warp) quantised in blocks of kBlock as docs/arithmetic.md says. Lanes
// outside the row take part in the exchange (with zeros: whole blocks of theirs) and write nothing.
template <int kBlock>
__device__ __forceinline__ void quantize_eight(const float (&v)[8], std::int64_t at, bool is_inside,
                                               const CudaQuantizedOut& out) {
  float most = 0;
  int is_finite = 1;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    most = fmaxf(most, fabsf(v[i]));
    is_finite &= static_cast<int>(isfinite(v[i]));
  }
#pragma unroll
  for (int i = 1; i < kBlock / 8; i *= 2) {
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
    is_finite &= __shfl_xor_sync(0xffffffffu, is_finite, i);
  }
  const bool is_zero = most < 0x1p-120f || is_finite == 0;
  const float inverse = is_zero ? 0.0f : __fdiv_rn(127.0f, most);
  std::uint32_t words[2] = {0, 0};
  int sum = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int q = is_zero ? 0 : __float2int_rn(__fmul_rn(v[i], inverse));
    sum += q;
    words[i / 4] |= static_cast<std::uint32_t>(q & 255) << (8 * (i % 4));
  }
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  if (!is_inside) return;
  *reinterpret_cast<uint2*>(out.q + at) = make_uint2(words[0], words[1]);
  if (at % 16 == 0) out.sums[at / 16] = static_cast<std::int16_t>(sum);
  if (at % kBlock == 0)
    out.scale[at / kBlock] = is_finite == 0 ? __int_as_float(0x7fc00000) : is_zero ? 0.0f : __fdiv_rn(most, 127.0f);
}

// A warp takes 256 values of a row.
template <int kBlock>
__global__ void __launch_bounds__(256)
    quantize_kernel(const float* f32, const __nv_bfloat16* bf16, int n_rows, int k, const CudaQuantizedOut out) {
  wait_for_previous();
  allow_next();
  const int lane = static_cast<int>(threadIdx.x % 32), n_groups = (k + 255) / 256;
  const int item = static_cast<int>(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
  const int row = item / n_groups, column = item % n_groups * 256 + 8 * lane;
  if (row >= n_rows) return;
  const std::int64_t at = static_cast<std::int64_t>(row) * k + column;
  float v[8] = {};
  if (column < k) {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = f32 != nullptr ? f32[at + i] : __bfloat162float(bf16[at + i]);
  }
  quantize_eight<kBlock>(v, at, column < k, out);
}

__global__ void __launch_bounds__(256) to_bf16_kernel(const float* x, std::int64_t n, __nv_bfloat16* y) {
  wait_for_previous();
  allow_next();
  const std::int64_t at = (blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x) * 8;
  if (at + 8 <= n) {
    const float4 a = *reinterpret_cast<const float4*>(x + at), b = *reinterpret_cast<const float4*>(x + at + 4);
    *reinterpret_cast<uint4*>(y + at) =
        make_uint4(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w));
  } else {
    for (std::int64_t i = at; i < n; ++i) y[i] = __float2bfloat16_rn(x[i]);
  }
}

// A warp takes 256 elements of a row. The same f16 as F8::make_column's.
__global__ void __launch_bounds__(256)
    scale_chunks_kernel(const float* f32, const __nv_bfloat16* bf16, int k, __half* y, float* scale) {
  wait_for_previous();
  allow_next();
  const int lane = static_cast<int>(threadIdx.x % 32), n_chunks = (k + 255) / 256;
  const int chunk = static_cast<int>(blockIdx.x * 8 + threadIdx.x / 32);
  if (chunk >= n_chunks) return;
  const std::int64_t row = blockIdx.y * std::int64_t{k};
  float v[8], most = 0, bad = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int at = 256 * chunk + 32 * i + lane;
    v[i] = at >= k ? 0.0f : f32 != nullptr ? f32[row + at] : __bfloat162float(bf16[row + at]);
    most = fmaxf(most, fabsf(v[i]));
    bad += v[i] - v[i];  // NaN where one is NaN or infinite
  }
#pragma unroll
  for (int i = 1; i < 32; i *= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
  const bool is_finite = __all_sync(0xffffffffu, bad == 0.0f) != 0;
  const int exponent = max(static_cast<int>(__float_as_uint(most) >> 23) - 12, 14);
  const float inverse = __uint_as_float(static_cast<std::uint32_t>(254 - exponent) << 23);
  if (lane == 0)
    scale[blockIdx.y * static_cast<std::int64_t>(n_chunks) + chunk] =
        is_finite ? __uint_as_float(static_cast<std::uint32_t>(exponent) << 23) : __int_as_float(0x7fc00000);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int at = 256 * chunk + 32 * i + lane;
    if (at < k) y[row + at] = __float2half_rn(v[i] * inverse);
  }
}

// A block takes a row.
__global__ void __launch_bounds__(kRowThreads)
    scale_rows_kernel(const float* f32, const __nv_bfloat16* bf16, int k, std::uint8_t* y, float* scale) {
  wait_for_previous();
  allow_next();
  const std::int64_t row = blockIdx.x * std::int64_t{k};
  const F8Scale own =
      row_to_e4m3(f32 != nullptr ? f32 + row : nullptr, bf16 != nullptr ? bf16 + row : nullptr, k, y + row, k);
  if (threadIdx.x == 0) scale[blockIdx.x] = own.scale;
}

__global__ void repeat_bias_kernel(const float* bias, int n_out, float* y, std::int64_t y_stride) {
  wait_for_previous();
  allow_next();
  for (int i = static_cast<int>(threadIdx.x); i < n_out; i += static_cast<int>(blockDim.x))
    y[blockIdx.x * y_stride + i] = bias[i];
}

// A thread's norm weights, which nobody writes: asked for before the predecessor has ended.
template <int kTurns>
__device__ __forceinline__ void load_norm_weights(const CudaNormArgs& args, float (&w)[kTurns][8]) {
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int at = 8 * (turn * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x));
#pragma unroll
    for (int i = 0; i < 8; ++i) w[turn][i] = at + i < args.k ? __ldg(args.w + at + i) : 0.0f;
  }
}
// From a row's values and each thread's sum of their squares to the result.
template <int kTurns>
__device__ __forceinline__ void finish_norm(const CudaNormArgs& args, const float (&w)[kTurns][8],
                                            float (&v)[kTurns][8], float sum);

// A block takes a row; its values stay in registers between the sum and the result (up to 16 of a thread, which is
// 16384 of a row). Squares are summed in f32: 8 of a thread, then a tree.
template <int kTurns>
__global__ void __launch_bounds__(1024) rms_norm_kernel(const CudaNormArgs args) {
  const int tid = static_cast<int>(threadIdx.x), n_threads = static_cast<int>(blockDim.x), k = args.k;
  float w[kTurns][8];
  load_norm_weights(args, w);
  allow_next();
  wait_for_previous();
  const std::int64_t source = args.rows != nullptr ? args.rows[blockIdx.x] : static_cast<int>(blockIdx.x);
  const float* x = args.x + source * k;
  float v[kTurns][8];
  float sum = 0;
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int at = 8 * (turn * n_threads + tid);
    if (k % 8 == 0 && at < k) {
      const float4 a = *reinterpret_cast<const float4*>(x + at), b = *reinterpret_cast<const float4*>(x + at + 4);
      v[turn][0] = a.x, v[turn][1] = a.y, v[turn][2] = a.z, v[turn][3] = a.w;
      v[turn][4] = b.x, v[turn][5] = b.y, v[turn][6] = b.z, v[turn][7] = b.w;
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) v[turn][i] = at + i < k ? x[at + i] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(v[turn][i], v[turn][i], sum);
  }
  finish_norm(args, w, v, sum);
}

template <int kTurns>
__device__ __forceinline__ void finish_norm(const CudaNormArgs& args, const float (&w)[kTurns][8],
                                            float (&v)[kTurns][8], float sum) {
  __shared__ float warp_sums[32];
  const int tid = static_cast<int>(threadIdx.x), n_threads = static_cast<int>(blockDim.x), k = args.k;
  sum = warp_sum(sum);
  if (tid % 32 == 0) warp_sums[tid / 32] = sum;
  __syncthreads();
  sum = warp_sum(tid % 32 < n_threads / 32 ? warp_sums[tid % 32] : 0.0f);
  const float r = 1.0f / sqrtf(sum / static_cast<float>(k) + args.eps);
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int at = 8 * (turn * n_threads + tid);
    if (turn > 0 && 8 * turn * n_threads >= k) break;
#pragma unroll
    for (int i = 0; i < 8; ++i) v[turn][i] = at + i < k ? v[turn][i] * r * w[turn][i] : 0.0f;
    const std::int64_t out = static_cast<std::int64_t>(blockIdx.x) * k + at;
    if (args.y_f32 != nullptr) {
      for (int i = 0; i < 8; ++i)
        if (at + i < k) args.y_f32[out + i] = v[turn][i];
    }
    if (args.y_bf16 != nullptr) {
      if (k % 8 == 0) {
        if (at < k)
          *reinterpret_cast<uint4*>(args.y_bf16 + out) =
              make_uint4(pack_bf16(v[turn][0], v[turn][1]), pack_bf16(v[turn][2], v[turn][3]),
                         pack_bf16(v[turn][4], v[turn][5]), pack_bf16(v[turn][6], v[turn][7]));
      } else {
        for (int i = 0; i < 8; ++i)
          if (at + i < k) reinterpret_cast<__nv_bfloat16*>(args.y_bf16)[out + i] = __float2bfloat16_rn(v[turn][i]);
      }
    }
    if (args.block32.q != nullptr) quantize_eight<32>(v[turn], out, at < k, args.block32);
    if (args.block256.q != nullptr) quantize_eight<256>(v[turn], out, at < k, args.block256);
  }
}

// A block takes a row, as above, and eight values of a thread; what the other ranks sent of them is waited for here.
template <bool kIsBf16, bool kIsSent, int kTurns>
__global__ void __launch_bounds__(1024) sum_parts_kernel(const CudaSumArgs args) {
  const int tid = static_cast<int>(threadIdx.x), n_threads = static_cast<int>(blockDim.x), k = args.k;
  float w[kTurns][8];
  if (args.has_norm) load_norm_weights(args.norm, w);
  const CudaExchange& exchange = args.exchange;
  // The next may start at once: it waits for this whole kernel before it looks at anything.
  allow_next();
  if (!kIsSent) wait_for_previous();
  const std::uint32_t call = next_call(exchange.state);
  std::uint32_t part[kTurns][kWords<kIsBf16>];
  float v[kTurns][8];
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int at = 8 * (turn * n_threads + tid);
    if (at >= k || kIsSent) break;
    const std::int64_t from = static_cast<std::int64_t>(blockIdx.x) * k + at;
    if (kIsBf16 && args.part_bf16 != nullptr) {
      const uint4 words = *reinterpret_cast<const uint4*>(args.part_bf16 + from);
      part[turn][0] = words.x, part[turn][1] = words.y, part[turn][2] = words.z, part[turn][3] = words.w;
    } else {
      float values[8];
      load_eight(args.part + from, values);
      to_words<kIsBf16>(values, part[turn]);
    }
#pragma unroll
    for (std::uint32_t& word : part[turn]) word = word == kNotHere ? kOtherNan : word;
    for (int i = 1; i < exchange.n_ranks; ++i)
      send_eight<kIsBf16>(args, call, (exchange.rank + i) % exchange.n_ranks, at / 8, part[turn]);
  }
  // Under way while the others' parts are waited for.
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int at = 8 * (turn * n_threads + tid);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[turn][i] = 0;
    if (at < k && !args.is_new) load_eight(args.y + static_cast<std::int64_t>(blockIdx.x) * k + at, v[turn]);
  }
  float sum = 0;
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int at = 8 * (turn * n_threads + tid);
    if (at >= k) continue;
    float* y = args.y + static_cast<std::int64_t>(blockIdx.x) * k + at;
    float total[8] = {};
    for (int rank = 0; rank < exchange.n_ranks;) {
      if (rank == exchange.rank && !kIsSent) {
        add_words<kIsBf16>(part[turn], total);
        ++rank;
      } else if (kIsSent && rank + 2 <= exchange.n_ranks) {
        std::uint32_t words[2][kWords<kIsBf16>];
        receive_eight<kIsBf16, 2>(args, call, rank, at / 8, words);
        add_words<kIsBf16>(words[0], total);
        add_words<kIsBf16>(words[1], total);
        rank += 2;
      } else {
        std::uint32_t words[1][kWords<kIsBf16>];
        receive_eight<kIsBf16, 1>(args, call, rank, at / 8, words);
        add_words<kIsBf16>(words[0], total);
        ++rank;
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      v[turn][i] += total[i];
      sum = fmaf(v[turn][i], v[turn][i], sum);
    }
    *reinterpret_cast<float4*>(y) = make_float4(v[turn][0], v[turn][1], v[turn][2], v[turn][3]);
    *reinterpret_cast<float4*>(y + 4) = make_float4(v[turn][4], v[turn][5], v[turn][6], v[turn][7]);
  }
  // A number is counted when all have read it: of many blocks before the norm, which hides the atomic addition; the one
  // block of a sent row only stores it, behind the norm (1 % of a step there).
  if (!kIsSent) {
    __syncthreads();
    if (tid == 0) end_call(exchange.state, call);
  }
  if (args.has_norm) finish_norm(args.norm, w, v, sum);
  if (kIsSent) {
    __syncthreads();
    if (tid == 0) store_volatile(exchange.state, call);
  }
  // The product has sent all that it had to; who comes after this kernel counts on its end.
  if (kIsSent) wait_for_previous();
}

__global__ void gather_kernel(const std::uint32_t* x, int words, const std::int32_t* rows, std::uint32_t* y) {
  wait_for_previous();
  allow_next();
  const std::uint32_t* from = x + static_cast<std::int64_t>(rows[blockIdx.x]) * words;
  for (int i = static_cast<int>(threadIdx.x); i < words; i += static_cast<int>(blockDim.x))
    y[static_cast<std::int64_t>(blockIdx.x) * words + i] = from[i];
}

// 64 threads take a head of a token: queries first, then keys, then values.
template <KvType kKv>
__device__ __forceinline__ void put_kv(std::uint8_t* to, std::int64_t at, float v) {
  if constexpr (kKv == KvType::kF16) {
    reinterpret_cast<__half*>(to)[at] = __float2half_rn(v);
  } else if constexpr (kKv == KvType::kBF16) {
    reinterpret_cast<__nv_bfloat16*>(to)[at] = __float2bfloat16_rn(v);
  } else {
    to[at] = static_cast<std::uint8_t>(__nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3));
  }
}

// 64 threads take a head. Of int8 a group's largest is wanted before any is stored: the row goes through shared memory.
template <KvType kKv>
__global__ void __launch_bounds__(256) rope_kv_kernel(const CudaRopeKvArgs args) {
  constexpr bool kIsInt8 = kKv == KvType::kInt8;
  __shared__ float rows[kIsInt8 ? 4 : 1][256];
  wait_for_previous();
  allow_next();
  const int token = static_cast<int>(blockIdx.x), i0 = static_cast<int>(threadIdx.x);
  const int n_kv = args.kv.n_kv_heads, head_dim = args.kv.head_dim, half = args.n_rot / 2;
  int head = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y);
  const std::int64_t slot = args.slots[token];
  const bool is_query = head < args.n_heads, is_value = head >= args.n_heads + n_kv;
  const bool is_idle = head >= args.n_heads + 2 * n_kv || (!is_query && slot < 0);
  if (is_idle && !kIsInt8) return;
  if (!is_query) head -= is_value ? args.n_heads + n_kv : args.n_heads;
  const int offset = static_cast<int>(slot % args.kv.block_size);
  std::uint8_t* block = nullptr;
  if (!is_query && !is_idle)
    block = args.kv.base + slot / args.kv.block_size * args.kv.block_bytes + head * args.kv.head_bytes;
  // Element i of a head's key and value stands at:
  const auto place = [&](int i) {
    return is_value ? (static_cast<std::int64_t>(offset / 32) * head_dim + i) * 32 + offset % 32
                    : static_cast<std::int64_t>(offset) * head_dim + i;
  };
  const auto put = [&](int i, float v) {
    if constexpr (kIsInt8) {
      rows[threadIdx.y][i] = v;
    } else {
      put_kv<kKv>(block + (is_value ? args.kv.v_offset : 0), place(i), v);
    }
  };
  if (!is_idle && is_value) {
    const float* v = args.v + token * args.v_stride + head * head_dim;
    for (int i = i0; i < head_dim; i += 64) put(i, v[i]);
  } else if (!is_idle) {
    const std::int64_t position = args.positions[token];
    float* q = args.q + token * args.q_stride + head * head_dim;
    const float* from = is_query ? q : args.k + token * args.k_stride + head * head_dim;
    for (int i = i0; i < half; i += 64) {
      const int first = args.pairs ? 2 * i : i, second = args.pairs ? 2 * i + 1 : i + half;
      const float a = from[first], b = from[second];
      const float c = args.cos[position * half + i], s = args.sin[position * half + i];
      const float x = fmaf(a, c, -__fmul_rn(b, s)), y = fmaf(b, c, __fmul_rn(a, s));
      if (is_query) {
        q[first] = x, q[second] = y;
      } else {
        put(first, x), put(second, y);
      }
    }
    if (!is_query)
      for (int i = args.n_rot + i0; i < head_dim; i += 64) put(i, from[i]);
  }
  if constexpr (kIsInt8) {
    __syncthreads();
    if (is_idle || is_query) return;
    const int group = group_of(head_dim), n_groups = head_dim / group;
    for (int i = i0; i < head_dim; i += 64) {
      const float* values = rows[threadIdx.y] + i / group * group;
      float most = 0, bad = 0;
      for (int e = 0; e < group; ++e) {
        most = fmaxf(most, fabsf(values[e]));
        bad += values[e] - values[e];  // NaN where one is NaN or infinite
      }
      // As the CPU's: divided by what the scale is as f16; NaN where not all are finite.
      const bool is_finite = bad == 0.0f;
      const __half scale = is_finite ? __float2half_rn(most / 127.0f) : __ushort_as_half(0x7e00);
      const float by = __half2float(scale);
      const float q =
          is_finite && by > 0.0f ? fminf(fmaxf(rintf(__fdiv_rn(rows[threadIdx.y][i], by)), -127.0f), 127.0f) : 0.0f;
      reinterpret_cast<std::int8_t*>(block)[(is_value ? args.kv.v_offset : 0) + place(i)] = static_cast<std::int8_t>(q);
      if (i % group != 0) continue;
      auto* scales = reinterpret_cast<__half*>(block + (is_value ? args.kv.v_scale_offset : args.kv.k_scale_offset));
      scales[is_value ? (static_cast<std::int64_t>(offset / 32) * n_groups + i / group) * 32 + offset % 32
                      : static_cast<std::int64_t>(offset) * n_groups + i / group] = scale;
    }
  }
}

__global__ void __launch_bounds__(256)
    swiglu_kernel(const __nv_bfloat16* gate_up, int n, int width, float* y_f32, __nv_bfloat16* y_bf16) {
  wait_for_previous();
  allow_next();
  const std::int64_t at = (blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x) * 8;
  const std::int64_t row = at / width, column = at % width;  // width is a multiple of 8
  if (row >= n) return;
  const uint4 gate = *reinterpret_cast<const uint4*>(gate_up + row * 2 * width + column);
  const uint4 up = *reinterpret_cast<const uint4*>(gate_up + row * 2 * width + width + column);
  const std::uint32_t g[4] = {gate.x, gate.y, gate.z, gate.w}, u[4] = {up.x, up.y, up.z, up.w};
  float v[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = silu_times(__uint_as_float(g[i] << 16), __uint_as_float(u[i] << 16));
    v[2 * i + 1] = silu_times(__uint_as_float(g[i] & 0xffff0000u), __uint_as_float(u[i] & 0xffff0000u));
  }
  if (y_bf16 != nullptr) {
    *reinterpret_cast<uint4*>(y_bf16 + at) =
        make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
  } else {
    *reinterpret_cast<float4*>(y_f32 + at) = make_float4(v[0], v[1], v[2], v[3]);
    *reinterpret_cast<float4*>(y_f32 + at + 4) = make_float4(v[4], v[5], v[6], v[7]);
  }
}

__global__ void fill_f32_kernel(float* x, std::int64_t n, std::uint64_t seed, float mean, float deviation) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < n;
       i += std::int64_t{gridDim.x} * blockDim.x) {
    std::uint64_t z = seed + (static_cast<std::uint64_t>(i) + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    const auto bits = static_cast<std::uint32_t>(z >> 32);
    float sum = 0;
    for (int b = 0; b < 4; ++b) sum += static_cast<float>((bits >> (8 * b)) & 255u) * (1.0f / 255) - 0.5f;
    x[i] = mean + deviation * 1.7320508f * sum;
  }
}

__global__ void __launch_bounds__(512) read_kernel(const uint4* data, std::int64_t n, std::uint32_t* sink) {
  std::uint32_t sum = 0;
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x;
  for (; i + 7 * stride < n; i += 8 * stride) {
    uint4 v[8];
#pragma unroll
    for (int u = 0; u < 8; ++u) v[u] = load_stream(data + i + u * stride);
#pragma unroll
    for (int u = 0; u < 8; ++u) sum += v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  for (; i < n; i += stride) sum += data[i].x;
  if (sum == 0x12345678u) *sink = sum;
}
}  // namespace

void quantize_rows(void* stream, const CudaActivations& x, std::int32_t n_rows, std::int32_t k, std::int32_t block,
                   const CudaQuantizedOut& out) {
  const unsigned n_blocks = ceil_div(std::int64_t{n_rows} * ((k + 255) / 256), 8);
  const auto* bf16 = reinterpret_cast<const __nv_bfloat16*>(x.bf16);
  if (block == 32) {
    launch(quantize_kernel<32>, n_blocks, 256, 0, stream, x.f32, bf16, n_rows, k, out);
  } else {
    launch(quantize_kernel<256>, n_blocks, 256, 0, stream, x.f32, bf16, n_rows, k, out);
  }
}

void to_bf16(void* stream, const float* x, std::int64_t n, std::uint16_t* y) {
  launch(to_bf16_kernel, ceil_div(n, 2048), 256, 0, stream, x, n, reinterpret_cast<__nv_bfloat16*>(y));
}

void scale_rows(void* stream, const CudaActivations& x, std::int32_t n_rows, std::int32_t k, std::uint16_t* y_f16,
                std::uint8_t* y_f8, float* scale) {
  const auto* bf16 = reinterpret_cast<const __nv_bfloat16*>(x.bf16);
  if (y_f16 != nullptr) {
    launch(scale_chunks_kernel, dim3(ceil_div(k, 2048), static_cast<unsigned>(n_rows)), 256, 0, stream, x.f32, bf16, k,
           reinterpret_cast<__half*>(y_f16), scale);
  } else {
    launch(scale_rows_kernel, static_cast<unsigned>(n_rows), kRowThreads, 0, stream, x.f32, bf16, k, y_f8, scale);
  }
}

void repeat_bias(void* stream, const float* bias, std::int32_t n_rows, std::int32_t n_out, float* y,
                 std::int64_t y_stride) {
  launch(repeat_bias_kernel, static_cast<unsigned>(n_rows), 256, 0, stream, bias, n_out, y, y_stride);
}

void rms_norm(void* stream, const CudaNormArgs& args) {
  launch(args.k > kNormTurn ? rms_norm_kernel<2> : rms_norm_kernel<1>, static_cast<unsigned>(args.n_rows),
         static_cast<unsigned>(norm_threads(args.k)), 0, stream, args);
}

template <bool kIsBf16, bool kIsSent>
void launch_sum(void* stream, const CudaSumArgs& args) {
  launch(args.k > kNormTurn ? sum_parts_kernel<kIsBf16, kIsSent, 2> : sum_parts_kernel<kIsBf16, kIsSent, 1>,
         static_cast<unsigned>(args.n_rows), static_cast<unsigned>(norm_threads(args.k)), 0, stream, args);
}
void sum_parts(void* stream, const CudaSumArgs& args) {
  if (args.is_sent)
    args.is_bf16 ? launch_sum<true, true>(stream, args) : launch_sum<false, true>(stream, args);
  else
    args.is_bf16 ? launch_sum<true, false>(stream, args) : launch_sum<false, false>(stream, args);
}

template <bool kIsBf16>
void load_sums() {
  load_kernel(sum_parts_kernel<kIsBf16, false, 1>);
  load_kernel(sum_parts_kernel<kIsBf16, false, 2>);
  load_kernel(sum_parts_kernel<kIsBf16, true, 1>);
  load_kernel(sum_parts_kernel<kIsBf16, true, 2>);
}
void load_sum_kernels() {
  load_sums<false>();
  load_sums<true>();
}

void gather(void* stream, const void* x, std::int64_t row_bytes, const std::int32_t* rows, std::int32_t n_rows,
            void* y) {
  launch(gather_kernel, static_cast<unsigned>(n_rows), 256, 0, stream, static_cast<const std::uint32_t*>(x),
         static_cast<int>(row_bytes / 4), rows, static_cast<std::uint32_t*>(y));
}

void rope_kv_write(void* stream, const CudaRopeKvArgs& args) {
  const int n_heads = args.n_heads + 2 * args.kv.n_kv_heads;
  const auto kernel = args.kv.type == KvType::kInt8   ? rope_kv_kernel<KvType::kInt8>
                      : args.kv.type == KvType::kBF16 ? rope_kv_kernel<KvType::kBF16>
                      : args.kv.type == KvType::kF8   ? rope_kv_kernel<KvType::kF8>
                                                      : rope_kv_kernel<KvType::kF16>;
  launch(kernel, dim3(static_cast<unsigned>(args.n_tokens), ceil_div(n_heads, 4)), dim3(64, 4), 0, stream, args);
}

void swiglu(void* stream, const std::uint16_t* gate_up, std::int32_t n, std::int32_t width, float* y_f32,
            std::uint16_t* y_bf16) {
  launch(swiglu_kernel, ceil_div(std::int64_t{n} * width, 2048), 256, 0, stream,
         reinterpret_cast<const __nv_bfloat16*>(gate_up), n, width, y_f32, reinterpret_cast<__nv_bfloat16*>(y_bf16));
}

void fill_f32(void* stream, float* x, std::int64_t n, std::uint64_t seed, float mean, float deviation) {
  launch(fill_f32_kernel, 1024, 256, 0, stream, x, n, seed, mean, deviation);
}

void read(void* stream, const void* data, std::int64_t bytes, std::uint32_t* sink) {
  launch(read_kernel, 132 * 4, 512, 0, stream, static_cast<const uint4*>(data), bytes / 16, sink);
}

}  // namespace still::cuda
