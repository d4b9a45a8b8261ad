// vpmaddubsw, vpmaddwd, vpaddd on 512-bit registers.
#include "kernels/cpu/int8_peak.h"

#include <immintrin.h>

namespace still {

std::int64_t int8_peak_avx512(std::int64_t n_rounds) {
  constexpr int kChains = 12;
  __m512i sums[kChains];
#pragma GCC unroll 16
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(2);
  const __m512i ones = _mm512_set1_epi16(1);
  for (std::int64_t round = 0; round < n_rounds; ++round) {
    // The compiler may not know an operand or a sum, or it would fold rounds, or the chains into one.
#pragma GCC unroll 16
    for (auto& sum : sums) {
      asm volatile("" : "+v"(a), "+v"(b), "+v"(sum));
      __m512i pairs = _mm512_maddubs_epi16(a, b);
      asm volatile("" : "+v"(pairs));
      sum = _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, ones));
    }
  }
#pragma GCC unroll 16
  for (auto& sum : sums) asm volatile("" : : "v"(sum));
  return n_rounds * kChains * 64;
}

}  // namespace still
