// The AMX table with products of bfloat16 weights on the matrix unit: see linear_bf16_tiles.h.
// clang-format off: what comes later is written in the terms of what comes before
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/common.h"
#include "kernels/cpu/linear_bf16_tiles.h"
// clang-format on

namespace still {

namespace {
// The intrinsics' inline assembly names no memory operands: the barriers keep stores of what a tile reads before it.
struct AmxBf16Tiles {
  static STILL_INLINE void configure(const uint8_t* config) { asm volatile("ldtilecfg (%0)" ::"r"(config) : "memory"); }
  static STILL_INLINE void release() { _tile_release(); }
  // 32 floats to two bfloat16 each.
  static STILL_INLINE void split(const float* x, uint8_t* high, uint8_t* low) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const __m512i h = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
    const __m512 rest_a = _mm512_sub_ps(a, widened(_mm512_castsi512_si256(h)));
    const __m512 rest_b = _mm512_sub_ps(b, widened(_mm512_extracti64x4_epi64(h, 1)));
    _mm512_storeu_si512(high, h);
    _mm512_storeu_si512(low, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(rest_b, rest_a)));
  }
  static STILL_INLINE __m512 widened(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  template <int kTile>
  static STILL_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  static STILL_INLINE void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  static STILL_INLINE void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kSums, int kActivations, int kWeights>
  static STILL_INLINE void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kActivations), "i"(kWeights));
  }
};
}  // namespace

const CpuKernels& amx_bf16_kernels() {
  static const CpuKernels table = [] {
    CpuKernels kernels = amx_kernels();
    kernels.name = "amx_bf16";
    kernels.linear[static_cast<int>(PackedFormat::kBF16)] = linear_bf16_tiles<AmxBf16Tiles>;
    return kernels;
  }();
  return table;
}

}  // namespace still
