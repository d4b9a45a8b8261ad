// The vector types that the kernels are written in, for AVX2: 16 lanes in two registers of 8, one lane for each row of
// a panel. See lanes_avx512.h for what each function promises.
#pragma once

#include "kernels/cpu/common.h"

namespace still {
namespace {

struct Floats {
  __m256 a, b;
};
struct Ints {
  __m256i a, b;
};
using Bytes = Ints;
using Pairs = Ints;

// A sub-block's weights do not fit beside the sums.
constexpr bool kFewRegisters = true;
constexpr int kMaxColumns = 4;
constexpr int kColumnsAtOnce = 4;
constexpr int kAttentionRows = 7, kManyAttentionRows = 6;
constexpr int attention_vectors(int n_rows) {
  return n_rows <= 3 ? 2 : 1;
}

STILL_INLINE Floats f_zero() {
  return {_mm256_setzero_ps(), _mm256_setzero_ps()};
}
STILL_INLINE Floats f_set(float x) {
  return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
STILL_INLINE Floats f_load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
STILL_INLINE void f_store(float* p, Floats x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
STILL_INLINE Ints first_lanes(int64_t n) {
  const __m256i count = _mm256_set1_epi32(static_cast<int>(n));
  return {_mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
          _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))};
}
STILL_INLINE Floats f_load_some(const float* p, int64_t n) {
  const Ints mask = first_lanes(n);
  return {_mm256_maskload_ps(p, mask.a), _mm256_maskload_ps(p + 8, mask.b)};
}
STILL_INLINE void f_store_some(float* p, Floats x, int64_t n) {
  const Ints mask = first_lanes(n);
  _mm256_maskstore_ps(p, mask.a, x.a);
  _mm256_maskstore_ps(p + 8, mask.b, x.b);
}
STILL_INLINE Floats f_keep_some(Floats x, int64_t n) {
  const Ints mask = first_lanes(n);
  return {_mm256_and_ps(x.a, _mm256_castsi256_ps(mask.a)), _mm256_and_ps(x.b, _mm256_castsi256_ps(mask.b))};
}
STILL_INLINE Floats f_select(Floats x, Floats other, int64_t begin, int64_t end) {
  const Ints upto = first_lanes(end), before = first_lanes(begin);
  return {_mm256_blendv_ps(other.a, x.a, _mm256_castsi256_ps(_mm256_andnot_si256(before.a, upto.a))),
          _mm256_blendv_ps(other.b, x.b, _mm256_castsi256_ps(_mm256_andnot_si256(before.b, upto.b)))};
}
STILL_INLINE Floats f_add(Floats x, Floats y) {
  return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
STILL_INLINE Floats f_sub(Floats x, Floats y) {
  return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
STILL_INLINE Floats f_mul(Floats x, Floats y) {
  return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
STILL_INLINE Floats f_div(Floats x, Floats y) {
  return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}
STILL_INLINE Floats f_fma(Floats x, Floats y, Floats z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
STILL_INLINE Floats f_minus_fma(Floats x, Floats y, Floats z) {
  return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
// sums[r][i] = fma(*factor(r), x(i), sums[r][i])
template <int kRows, int kVectors, class X, class Factor>
STILL_INLINE void f_fma_rows(Floats (&sums)[kRows][kVectors], const X& x, const Factor& factor) {
  if constexpr (2 * kRows * kVectors + 2 * kVectors + 1 <= 16) {
    Floats values[kVectors];
    repeat<kVectors>([&](auto i) STILL_UNROLLED { values[decltype(i)::value] = x(decltype(i)::value); });
    repeat<kRows>([&](auto row) STILL_UNROLLED {
      const __m256 f = _mm256_broadcast_ss(factor(row));
      repeat<kVectors>([&](auto i) STILL_UNROLLED {
        Floats& sum = sums[decltype(row)::value][decltype(i)::value];
        const Floats& value = values[decltype(i)::value];
        sum = {_mm256_fmadd_ps(f, value.a, sum.a), _mm256_fmadd_ps(f, value.b, sum.b)};
      });
    });
  } else if constexpr (2 * kRows * kVectors + kRows + 1 <= 16) {
    // The factors and a half of x do.
    __m256 factors[kRows];
    repeat<kRows>([&](auto row) STILL_UNROLLED { factors[decltype(row)::value] = _mm256_broadcast_ss(factor(row)); });
    repeat<kVectors>([&](auto i) STILL_UNROLLED {
      constexpr int I = decltype(i)::value;
      const __m256 low = x(I).a;
      repeat<kRows>([&](auto row) STILL_UNROLLED {
        __m256& sum = sums[decltype(row)::value][I].a;
        sum = _mm256_fmadd_ps(factors[decltype(row)::value], low, sum);
      });
      const __m256 high = x(I).b;
      repeat<kRows>([&](auto row) STILL_UNROLLED {
        __m256& sum = sums[decltype(row)::value][I].b;
        sum = _mm256_fmadd_ps(factors[decltype(row)::value], high, sum);
      });
    });
  } else {
    // Two halves of x and a factor do not fit beside the sums: the compiler must load half of x and all factors again.
    static_assert(kVectors == 1 && kRows <= 7);
    const __m256 low = x(0).a;
    repeat<kRows>([&](auto row) STILL_UNROLLED {
      __m256& sum = sums[decltype(row)::value][0].a;
      sum = _mm256_fmadd_ps(_mm256_broadcast_ss(factor(row)), low, sum);
    });
    asm volatile("" ::: "memory");
    const __m256 high = x(0).b;
    repeat<kRows>([&](auto row) STILL_UNROLLED {
      __m256& sum = sums[decltype(row)::value][0].b;
      sum = _mm256_fmadd_ps(_mm256_broadcast_ss(factor(row)), high, sum);
    });
  }
}
STILL_INLINE Floats f_neg(Floats x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(x.a, sign), _mm256_xor_ps(x.b, sign)};
}
STILL_INLINE Floats f_max(Floats x, Floats y) {
  return {_mm256_max_ps(y.a, x.a), _mm256_max_ps(y.b, x.b)};
}
STILL_INLINE Floats f_min(Floats x, Floats y) {
  return {_mm256_min_ps(y.a, x.a), _mm256_min_ps(y.b, x.b)};
}
STILL_INLINE Floats f_where_greater(Floats x, Floats y, Floats then, Floats other) {
  return {_mm256_blendv_ps(other.a, then.a, _mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ)),
          _mm256_blendv_ps(other.b, then.b, _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ))};
}
STILL_INLINE Floats f_round(Floats x) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, kMode), _mm256_round_ps(x.b, kMode)};
}
STILL_INLINE Floats f_from_ints(Ints x) {
  return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}
STILL_INLINE __m128i load_half(const uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
STILL_INLINE Floats f_from_f16(const uint8_t* p) {
  return {_mm256_cvtph_ps(load_half(p)), _mm256_cvtph_ps(load_half(p + 16))};
}
STILL_INLINE Floats f_from_bf16(const uint8_t* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_half(p)), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_half(p + 16)), 16))};
}
STILL_INLINE Floats f_from_int8(const uint8_t* p) {
  const auto eight = [](const uint8_t* at) STILL_UNROLLED {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
  };
  return {eight(p), eight(p + 8)};
}
template <int kByte>
STILL_INLINE Floats f_from_byte(Bytes x) {
  const __m256i low = _mm256_set1_epi32(255);
  return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x.a, 8 * kByte), low)),
          _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x.b, 8 * kByte), low))};
}
STILL_INLINE void f_to_f16(uint8_t* p, Floats x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 16), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
STILL_INLINE float f_tree_sum(Floats x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
STILL_INLINE float f_max_lane(Floats x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
STILL_INLINE void f_store_folded_sum(float* p, Floats x) {
  _mm256_storeu_ps(p, _mm256_add_ps(x.a, x.b));
}
STILL_INLINE void f_store_folded_max(float* p, Floats x) {
  _mm256_storeu_ps(p, _mm256_max_ps(x.a, x.b));
}
STILL_INLINE Floats f_zero_where_equal(Floats x, Floats y, Floats z) {
  return {_mm256_and_ps(x.a, _mm256_cmp_ps(y.a, z.a, _CMP_NEQ_UQ)),
          _mm256_and_ps(x.b, _mm256_cmp_ps(y.b, z.b, _CMP_NEQ_UQ))};
}
STILL_INLINE uint32_t f_equal_lanes(Floats x, Floats y) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ))) |
         static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ))) << 8;
}
STILL_INLINE __m256 exp_ends_8(__m256 x, __m256 y, __m256 n) {
  // Two factors, each a normal number. Lanes whose n is out of range (or NaN) are replaced below.
  const __m256i exponent = _mm256_cvtps_epi32(n);
  const __m256i first = _mm256_srai_epi32(exponent, 1);
  const __m256i second = _mm256_sub_epi32(exponent, first);
  const __m256i bias = _mm256_set1_epi32(127);
  y = _mm256_mul_ps(y, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(first, bias), 23)));
  y = _mm256_mul_ps(y, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(second, bias), 23)));
  y = _mm256_blendv_ps(y, _mm256_setzero_ps(), _mm256_cmp_ps(x, _mm256_set1_ps(-87.33654f), _CMP_LT_OQ));
  y = _mm256_blendv_ps(y, _mm256_set1_ps(__builtin_inff()), _mm256_cmp_ps(x, _mm256_set1_ps(88.72283f), _CMP_GT_OQ));
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
STILL_INLINE Floats f_exp_ends(Floats x, Floats y, Floats n) {
  return {exp_ends_8(x.a, y.a, n.a), exp_ends_8(x.b, y.b, n.b)};
}
STILL_INLINE __m256 exp_low_end_8(__m256 x, __m256 y, __m256 n) {
  // From -87.33654 on n is at least -126, and y at least 1 where it is that: the product is a normal number.
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), exponent));
  return _mm256_and_ps(y, _mm256_cmp_ps(x, _mm256_set1_ps(-87.33654f), _CMP_NLT_UQ));
}
STILL_INLINE Floats f_exp_low_end(Floats x, Floats y, Floats n) {
  return {exp_low_end_8(x.a, y.a, n.a), exp_low_end_8(x.b, y.b, n.b)};
}
STILL_INLINE Ints i_abs_bits(Floats x) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  return {_mm256_and_si256(_mm256_castps_si256(x.a), mask), _mm256_and_si256(_mm256_castps_si256(x.b), mask)};
}
STILL_INLINE Ints i_max(Ints x, Ints y) {
  return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)};
}
STILL_INLINE int32_t i_max_lane(Ints x) {
  const __m256i eight = _mm256_max_epi32(x.a, x.b);
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
STILL_INLINE int32_t f_to_int8(int8_t* p, Floats x) {
  const __m256i low = _mm256_cvtps_epi32(x.a), high = _mm256_cvtps_epi32(x.b);
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  const __m256i eight = _mm256_add_epi32(low, high);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

STILL_INLINE Ints i_zero() {
  return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}
STILL_INLINE Ints i_broadcast(const int32_t* p) {
  const __m256i x = _mm256_set1_epi32(*p);
  return {x, x};
}
STILL_INLINE void i_store(uint8_t* p, Ints x) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(p), x.a);
  _mm256_store_si256(reinterpret_cast<__m256i*>(p + 32), x.b);
}
STILL_INLINE Ints i_add(Ints x, Ints y) {
  return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}
STILL_INLINE Ints i_sub(Ints x, Ints y) {
  return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)};
}
template <int kBits>
STILL_INLINE Ints i_shift_left(Ints x) {
  return {_mm256_slli_epi32(x.a, kBits), _mm256_slli_epi32(x.b, kBits)};
}

STILL_INLINE Bytes b_load(const uint8_t* p) {
  return {_mm256_load_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_load_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
STILL_INLINE Bytes b_load_unaligned(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
STILL_INLINE void b_store(uint8_t* p, Bytes x) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(p), x.a);
  _mm256_store_si256(reinterpret_cast<__m256i*>(p + 32), x.b);
}
STILL_INLINE void b_store_unaligned(void* p, Bytes x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, x.b);
}
STILL_INLINE Bytes b_and(Bytes x, uint8_t mask) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
STILL_INLINE Bytes b_or(Bytes x, Bytes y) {
  return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)};
}
template <int kBits>
STILL_INLINE Bytes b_shift_right(Bytes x) {
  if constexpr (kBits > 0) return {_mm256_srli_epi16(x.a, kBits), _mm256_srli_epi16(x.b, kBits)};
  if constexpr (kBits < 0) return {_mm256_slli_epi16(x.a, -kBits), _mm256_slli_epi16(x.b, -kBits)};
  return x;
}
typedef uint16_t Words16 __attribute__((vector_size(32), may_alias));
STILL_INLINE Bytes b_shift_right_by(Bytes x, int n) {
  return {reinterpret_cast<__m256i>(reinterpret_cast<Words16>(x.a) >> n),
          reinterpret_cast<__m256i>(reinterpret_cast<Words16>(x.b) >> n)};
}
template <int kTo>
STILL_INLINE Bytes b_move_bit(Bytes x, int from) {
  const __m256i bit = _mm256_set1_epi8(static_cast<char>(1 << from)), to = _mm256_set1_epi8(1 << kTo);
  return {_mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(x.a, bit), bit), to),
          _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(x.b, bit), bit), to)};
}
STILL_INLINE Bytes b_lookup(const uint8_t (&table)[16], Bytes idx) {
  const __m256i lanes = _mm256_broadcastsi128_si256(load_half(table));
  return {_mm256_shuffle_epi8(lanes, idx.a), _mm256_shuffle_epi8(lanes, idx.b)};
}
STILL_INLINE void prefetch_l2(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}
STILL_INLINE void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}

STILL_INLINE void gather_pieces_8(const uint8_t* const* rows, int64_t offset, __m256i (&out)[4]) {
  __m256i in[4];
  repeat<4>([&](auto i) STILL_UNROLLED {
    constexpr int kRow = decltype(i)::value;
    in[kRow] = _mm256_inserti128_si256(_mm256_castsi128_si256(load_half(rows[kRow] + offset)),
                                       load_half(rows[kRow + 4] + offset), 1);
  });
  const __m256i low01 = _mm256_unpacklo_epi32(in[0], in[1]), high01 = _mm256_unpackhi_epi32(in[0], in[1]);
  const __m256i low23 = _mm256_unpacklo_epi32(in[2], in[3]), high23 = _mm256_unpackhi_epi32(in[2], in[3]);
  out[0] = _mm256_unpacklo_epi64(low01, low23);
  out[1] = _mm256_unpackhi_epi64(low01, low23);
  out[2] = _mm256_unpacklo_epi64(high01, high23);
  out[3] = _mm256_unpackhi_epi64(high01, high23);
}
STILL_INLINE void gather_pieces(const uint8_t* const* rows, int64_t offset, Bytes (&out)[4]) {
  __m256i first[4], second[4];
  gather_pieces_8(rows, offset, first);
  gather_pieces_8(rows + 8, offset, second);
  repeat<4>([&](auto i)
                STILL_UNROLLED { out[decltype(i)::value] = {first[decltype(i)::value], second[decltype(i)::value]}; });
}

STILL_INLINE Bytes b_flip_signs(Bytes x) {
  const __m256i sign = _mm256_set1_epi8(-128);
  return {_mm256_xor_si256(x.a, sign), _mm256_xor_si256(x.b, sign)};
}
STILL_INLINE Bytes b_split_halves(Bytes x) {
  const __m256i low = _mm256_set1_epi32(0xffff);
  const __m256i even = _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
  const __m256i odd = _mm256_packus_epi32(_mm256_srli_epi32(x.a, 16), _mm256_srli_epi32(x.b, 16));
  return {_mm256_permute4x64_epi64(even, 0xd8), _mm256_permute4x64_epi64(odd, 0xd8)};
}

STILL_INLINE Pairs p_from_u8(const uint8_t* p) {
  return {_mm256_cvtepu8_epi16(load_half(p)), _mm256_cvtepu8_epi16(load_half(p + 16))};
}
STILL_INLINE Pairs p_from_int8(const uint8_t* p) {
  return {_mm256_cvtepi8_epi16(load_half(p)), _mm256_cvtepi8_epi16(load_half(p + 16))};
}
STILL_INLINE Ints p_dot(Ints acc, Pairs x, Pairs y) {
  return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(x.a, y.a)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(x.b, y.b))};
}
// [is_high]: which bytes a shuffle takes to have a lane's low or high half twice.
alignas(32) constexpr uint8_t kHalfTwice[2][32] = {
    {0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13, 0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13},
    {2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15, 2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15}};
STILL_INLINE __m256i half_twice(__m256i pairs, int is_high) {
  return _mm256_shuffle_epi8(pairs, _mm256_load_si256(reinterpret_cast<const __m256i*>(kHalfTwice[is_high])));
}
STILL_INLINE Ints scale_half(Pairs x, int is_high) {
  return {half_twice(x.a, is_high), half_twice(x.b, is_high)};
}

constexpr bool kHasVnni = false;
STILL_INLINE Ints vnni_dot(Ints acc, Bytes, Ints) {
  return acc;
}
STILL_INLINE Ints vnni_scale(Ints dot, Ints) {
  return dot;
}
STILL_INLINE Pairs maddubs(Bytes w, Ints q) {
  return {_mm256_maddubs_epi16(w.a, q.a), _mm256_maddubs_epi16(w.b, q.b)};
}
// Of signed weights: |w| times q with w's sign. -128 is 128 as an unsigned byte, and two products are at most 32512.
STILL_INLINE Pairs maddubs_signed(Bytes w, Ints q) {
  return {_mm256_maddubs_epi16(_mm256_abs_epi8(w.a), _mm256_sign_epi8(q.a, w.a)),
          _mm256_maddubs_epi16(_mm256_abs_epi8(w.b), _mm256_sign_epi8(q.b, w.b))};
}
STILL_INLINE Pairs p_add(Pairs x, Pairs y) {
  return {_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)};
}
// The compiler must have x as it is here: it cannot rearrange the sums that lead to it.
STILL_INLINE void p_keep(Pairs& x) {
  asm("" : "+x"(x.a), "+x"(x.b));
}
STILL_INLINE Pairs p_even_bytes(Bytes x) {
  const __m256i low = _mm256_set1_epi16(0xff);
  return {_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low)};
}
STILL_INLINE Pairs p_zero() {
  return i_zero();
}
STILL_INLINE Pairs p_ones() {
  return {_mm256_set1_epi16(1), _mm256_set1_epi16(1)};
}
template <int kBits>
STILL_INLINE Pairs p_shift_left(Pairs x) {
  return {_mm256_slli_epi16(x.a, kBits), _mm256_slli_epi16(x.b, kBits)};
}

}  // namespace
}  // namespace still

#include "kernels/cpu/dot.h"
