// Ranks that write into one another's memory. A value itself says that it has come, so that no fence and no other sign
// is needed: words are never all ones but where nothing came yet, and who has read one makes it that again. Calls are
// counted in device memory, since captured steps replay their arguments; two turns of an inbox suffice, because a rank
// that has ended call n has everybody's data of n, which they sent after they had read all of n - 1.
//
// One row is sent by the product that computes it, block by block as they end (send_result). Such a product lets its
// successor start only after its own wait: the sum polls at once, and what stands before the product must be over.
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/cuda_kernels.h"

namespace still::cuda {

void gather_columns(void* stream, const CudaGatherArgs& args);
void load_gather_kernels();
void load_sum_kernels();  // elementwise.cu

template <class Kernel>
void load_kernel(Kernel* kernel) {
  cudaFuncAttributes attributes;
  (void)cudaFuncGetAttributes(&attributes, kernel);
}

inline constexpr std::uint64_t kRankTimeoutNs = 20'000'000'000ull;

__device__ __forceinline__ std::uint64_t now_ns() {
  std::uint64_t ns;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
  return ns;
}

// Of polls that failed so far; ends the context where another rank does not come.
__device__ __forceinline__ void check_patience(std::uint32_t& n_polls, std::uint64_t& since) {
  if ((++n_polls & 0x3fffu) != 0) return;
  if (since == 0) since = now_ns();
  if (now_ns() - since > kRankTimeoutNs) __trap();
}

__device__ __forceinline__ std::uint32_t load_volatile(const std::uint32_t* at) {
  std::uint32_t v;
  asm volatile("ld.volatile.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}
__device__ __forceinline__ void store_volatile(std::uint32_t* at, std::uint32_t v) {
  asm volatile("st.volatile.global.u32 [%0], %1;" ::"l"(at), "r"(v) : "memory");
}

// Numbers from 1 on, odd and even in turns; never 0, which is in memory that nobody wrote.
__device__ __forceinline__ std::uint32_t next_call(const std::uint32_t* state) {
  const std::uint32_t call = load_volatile(state) + 1;
  return call == 0 ? 2 : call;
}
// By one thread of each block, when all of the block have read the number. Orders nothing else.
__device__ __forceinline__ bool end_call(std::uint32_t* state, std::uint32_t call) {
  if (atomicAdd(state + 1, 1u) != gridDim.x - 1) return false;
  store_volatile(state + 1, 0);
  store_volatile(state, call);
  return true;
}

// Past the L1 cache, which may be older where a kernel does not wait for its predecessor.
__device__ __forceinline__ void load_eight(const float* from, float (&v)[8]) {
  const float4 a = __ldcg(reinterpret_cast<const float4*>(from)), b = __ldcg(reinterpret_cast<const float4*>(from + 4));
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
  v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

// Eight values as they travel: eight floats, or four pairs of bf16. A word of all ones says "not here yet": senders
// write another NaN instead, and who has read a word sets it to that again.
template <bool kIsBf16>
inline constexpr int kWords = kIsBf16 ? 4 : 8;
inline constexpr std::uint32_t kNotHere = 0xffffffffu, kOtherNan = 0x7fff7fffu;

__device__ __forceinline__ std::uint8_t* slot_of(const CudaExchange& exchange, std::uint32_t call, int receiver,
                                                 int sender) {
  return exchange.inboxes[receiver] + ((call & 1) * exchange.n_ranks + sender) * exchange.slot_bytes;
}

// Element `row` of a product with one row, to all ranks. All lanes of `mask` call it; lane l + 1 of an even row has
// row + 1.
__device__ __forceinline__ void send_result(const CudaExchange& exchange, std::uint32_t call, unsigned mask, int row,
                                            bool is_inside, bool is_bf16, float v) {
  const float next = __shfl_down_sync(mask, v, 1);
  if (!is_inside || (is_bf16 && row % 2 != 0)) return;
  std::uint32_t word = is_bf16 ? pack_bf16(v, next) : __float_as_uint(v);
  if (word == kNotHere) word = kOtherNan;
  const int at = is_bf16 ? row / 2 : row;
  for (int i = 1; i <= exchange.n_ranks; ++i)
    store_volatile(reinterpret_cast<std::uint32_t*>(
                       slot_of(exchange, call, (exchange.rank + i) % exchange.n_ranks, exchange.rank)) +
                       at,
                   word);
}

// Where the eight values `chunk` of the block's row from `sender` lie.
template <bool kIsBf16>
__device__ __forceinline__ std::uint8_t* place_of(const CudaSumArgs& args, std::uint32_t call, int receiver, int sender,
                                                  int chunk) {
  return slot_of(args.exchange, call, receiver, sender) +
         (static_cast<std::int64_t>(blockIdx.x) * (args.k / 8) + chunk) * (4 * kWords<kIsBf16>);
}

template <bool kIsBf16>
__device__ __forceinline__ void send_eight(const CudaSumArgs& args, std::uint32_t call, int receiver, int chunk,
                                           const std::uint32_t (&words)[kWords<kIsBf16>]) {
  std::uint8_t* to = place_of<kIsBf16>(args, call, receiver, args.exchange.rank, chunk);
#pragma unroll
  for (int i = 0; i < kWords<kIsBf16>; i += 4)
    asm volatile("st.volatile.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to + 4 * i), "r"(words[i]), "r"(words[i + 1]),
                 "r"(words[i + 2]), "r"(words[i + 3])
                 : "memory");
}

// From kSenders ranks that follow one another, all asked for together.
template <bool kIsBf16, int kSenders>
__device__ __forceinline__ void receive_eight(const CudaSumArgs& args, std::uint32_t call, int sender, int chunk,
                                              std::uint32_t (&words)[kSenders][kWords<kIsBf16>]) {
  std::uint8_t* from = place_of<kIsBf16>(args, call, args.exchange.rank, sender, chunk);
  std::uint32_t n_polls = 0;
  std::uint64_t since = 0;
  bool is_there;
  do {
    is_there = true;
#pragma unroll
    for (int s = 0; s < kSenders; ++s) {
#pragma unroll
      for (int i = 0; i < kWords<kIsBf16>; i += 4)
        asm volatile("ld.volatile.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(words[s][i]), "=r"(words[s][i + 1]), "=r"(words[s][i + 2]), "=r"(words[s][i + 3])
                     : "l"(from + s * args.exchange.slot_bytes + 4 * i)
                     : "memory");
    }
#pragma unroll
    for (int s = 0; s < kSenders; ++s) {
#pragma unroll
      for (const std::uint32_t word : words[s]) is_there = is_there && word != kNotHere;
    }
    if (!is_there) check_patience(n_polls, since);
  } while (!is_there);
#pragma unroll
  for (int s = 0; s < kSenders; ++s) {
#pragma unroll
    for (int i = 0; i < kWords<kIsBf16>; i += 4)
      *reinterpret_cast<uint4*>(from + s * args.exchange.slot_bytes + 4 * i) =
          make_uint4(kNotHere, kNotHere, kNotHere, kNotHere);
  }
}

template <bool kIsBf16>
__device__ __forceinline__ void to_words(const float (&v)[8], std::uint32_t (&words)[kWords<kIsBf16>]) {
#pragma unroll
  for (int i = 0; i < kWords<kIsBf16>; ++i)
    words[i] = kIsBf16 ? pack_bf16(v[2 * i % 8], v[(2 * i + 1) % 8]) : __float_as_uint(v[i]);
}
template <bool kIsBf16>
__device__ __forceinline__ void add_words(const std::uint32_t (&words)[kWords<kIsBf16>], float (&sum)[8]) {
#pragma unroll
  for (int i = 0; i < kWords<kIsBf16>; ++i) {
    if constexpr (kIsBf16) {
      sum[2 * i] += __uint_as_float(words[i] << 16);
      sum[2 * i + 1] += __uint_as_float(words[i] & 0xffff0000u);
    } else {
      sum[i] += __uint_as_float(words[i]);
    }
  }
}

}  // namespace still::cuda
