// vpmaddubsw, vpmaddwd, vpaddd on 256-bit registers.
#include "kernels/cpu/int8_peak.h"

#include <immintrin.h>

namespace still {

std::int64_t int8_peak_avx2(std::int64_t n_rounds) {
  constexpr int kChains = 10;
  __m256i sums[kChains];
#pragma GCC unroll 16
  for (auto& sum : sums) sum = _mm256_setzero_si256();
  __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(2);
  const __m256i ones = _mm256_set1_epi16(1);
  for (std::int64_t round = 0; round < n_rounds; ++round) {
    // The compiler may not know an operand or a sum, or it would fold rounds, or the chains into one.
#pragma GCC unroll 16
    for (auto& sum : sums) {
      asm volatile("" : "+x"(a), "+x"(b), "+x"(sum));
      __m256i pairs = _mm256_maddubs_epi16(a, b);
      asm volatile("" : "+x"(pairs));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
  }
#pragma GCC unroll 16
  for (auto& sum : sums) asm volatile("" : : "x"(sum));
  return n_rounds * kChains * 32;
}

}  // namespace still
