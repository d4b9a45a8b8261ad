// The vector types that the kernels are written in, for AVX-512: 16 lanes, one for each row of a panel. With
// __AVX512VNNI__ dot products accumulate in int32, without it in int16 for as long as they cannot overflow.
#pragma once

#include "kernels/cpu/common.h"

namespace still {
namespace {

using Floats = __m512;  // 16 f32
using Ints = __m512i;   // 16 int32
using Bytes = __m512i;  // 16 x 4 bytes
using Pairs = __m512i;  // 16 x 2 int16

// How many columns of activations one pass over the weights serves, and how many share unpacked weights in registers.
// A sub-block's weights fit beside the sums.
constexpr bool kFewRegisters = false;
constexpr int kMaxColumns = 16;
constexpr int kColumnsAtOnce = 8;
// Rows (a query of a head) whose attention is computed side by side: at most, and of many; and how many vectors of keys
// or dimensions.
constexpr int kAttentionRows = 8, kManyAttentionRows = 8;
constexpr int attention_vectors(int) {
  return 2;
}

STILL_INLINE Floats f_zero() {
  return _mm512_setzero_ps();
}
STILL_INLINE Floats f_set(float x) {
  return _mm512_set1_ps(x);
}
STILL_INLINE Floats f_load(const float* p) {
  return _mm512_loadu_ps(p);
}
STILL_INLINE void f_store(float* p, Floats x) {
  _mm512_storeu_ps(p, x);
}
STILL_INLINE __mmask16 first_lanes(int64_t n) {
  return static_cast<__mmask16>((1u << n) - 1);
}
// The first n lanes, n in 0..16; the rest of a load is 0.
STILL_INLINE Floats f_load_some(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
STILL_INLINE void f_store_some(float* p, Floats x, int64_t n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), x);
}
STILL_INLINE Floats f_keep_some(Floats x, int64_t n) {
  return _mm512_maskz_mov_ps(first_lanes(n), x);
}
// Lanes [begin, end) of x, the others of `other`; 0 <= begin, end <= 16.
STILL_INLINE Floats f_select(Floats x, Floats other, int64_t begin, int64_t end) {
  const uint32_t mask = end <= begin ? 0 : ((1u << end) - 1) & ~((1u << begin) - 1);
  return _mm512_mask_mov_ps(other, static_cast<__mmask16>(mask), x);
}
STILL_INLINE Floats f_add(Floats a, Floats b) {
  return _mm512_add_ps(a, b);
}
STILL_INLINE Floats f_sub(Floats a, Floats b) {
  return _mm512_sub_ps(a, b);
}
STILL_INLINE Floats f_mul(Floats a, Floats b) {
  return _mm512_mul_ps(a, b);
}
STILL_INLINE Floats f_div(Floats a, Floats b) {
  return _mm512_div_ps(a, b);
}
STILL_INLINE Floats f_fma(Floats a, Floats b, Floats c) {
  return _mm512_fmadd_ps(a, b, c);
}
// fma(-a, b, c)
STILL_INLINE Floats f_minus_fma(Floats a, Floats b, Floats c) {
  return _mm512_fnmadd_ps(a, b, c);
}
// sums[r][i] = fma(*factor(r), x(i), sums[r][i])
template <int kRows, int kVectors, class X, class Factor>
STILL_INLINE void f_fma_rows(Floats (&sums)[kRows][kVectors], const X& x, const Factor& factor) {
  Floats values[kVectors];
  repeat<kVectors>([&](auto i) STILL_UNROLLED { values[decltype(i)::value] = x(decltype(i)::value); });
  repeat<kRows>([&](auto row) STILL_UNROLLED {
    const Floats f = f_set(*factor(row));
    repeat<kVectors>([&](auto i) STILL_UNROLLED {
      constexpr int kRow = decltype(row)::value, I = decltype(i)::value;
      sums[kRow][I] = f_fma(f, values[I], sums[kRow][I]);
    });
  });
}
STILL_INLINE Floats f_neg(Floats a) {
  return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f));
}
// b where it is greater, else a: a NaN in b is passed over
STILL_INLINE Floats f_max(Floats a, Floats b) {
  return _mm512_max_ps(b, a);
}
// b where it is less, else a
STILL_INLINE Floats f_min(Floats a, Floats b) {
  return _mm512_min_ps(b, a);
}
// x where a > b, else y
STILL_INLINE Floats f_where_greater(Floats a, Floats b, Floats x, Floats y) {
  return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), x);
}
STILL_INLINE Floats f_round(Floats a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
STILL_INLINE Floats f_from_ints(Ints x) {
  return _mm512_cvtepi32_ps(x);
}
STILL_INLINE Floats f_from_f16(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
STILL_INLINE Floats f_from_bf16(const uint8_t* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
STILL_INLINE Floats f_from_int8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
// Byte kByte of each lane, unsigned.
template <int kByte>
STILL_INLINE Floats f_from_byte(Bytes x) {
  return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(x, 8 * kByte), _mm512_set1_epi32(255)));
}
STILL_INLINE void f_to_f16(uint8_t* p, Floats x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
// The tree at the end of tree16 (docs/arithmetic.md).
STILL_INLINE float f_tree_sum(Floats x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
STILL_INLINE float f_max_lane(Floats x) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
// [i] of 8: lanes i and i + 8.
STILL_INLINE void f_store_folded_sum(float* p, Floats x) {
  _mm256_storeu_ps(p, _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)));
}
STILL_INLINE void f_store_folded_max(float* p, Floats x) {
  _mm256_storeu_ps(p, _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)));
}
// x, 0 where a equals b.
STILL_INLINE Floats f_zero_where_equal(Floats x, Floats a, Floats b) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ), x);
}
// Bit i: lane i of a equals lane i of b (NaNs equal nothing).
STILL_INLINE uint32_t f_equal_lanes(Floats a, Floats b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}
// y * 2^n with one rounding, and exp's ends: 0 below, infinity above, NaN stays.
STILL_INLINE Floats f_exp_ends(Floats x, Floats y, Floats n) {
  y = _mm512_scalef_ps(y, n);
  y = _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, f_set(-87.33654f), _CMP_LT_OQ), f_zero());
  y = _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, f_set(88.72283f), _CMP_GT_OQ), f_set(__builtin_inff()));
  return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}
// y * 2^n with one rounding, where x is at most 0 or NaN: 0 below exp's end, NaN stays.
STILL_INLINE Floats f_exp_low_end(Floats x, Floats y, Floats n) {
  const __mmask16 is_inside = _mm512_cmp_ps_mask(x, f_set(-87.33654f), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_ps(is_inside, y, n);
}
// The bits of |x| as integers order like |x|; infinity and NaN are above all finite values.
STILL_INLINE Ints i_abs_bits(Floats x) {
  return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}
STILL_INLINE Ints i_max(Ints a, Ints b) {
  return _mm512_max_epi32(a, b);
}
STILL_INLINE int32_t i_max_lane(Ints x) {
  return _mm512_reduce_max_epi32(x);
}
// 16 floats to int8, round to even; no value is above 127 in magnitude. Returns the sum.
STILL_INLINE int32_t f_to_int8(int8_t* p, Floats x) {
  const __m512i rounded = _mm512_cvtps_epi32(x);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(rounded));
  return _mm512_reduce_add_epi32(rounded);
}

STILL_INLINE Ints i_zero() {
  return _mm512_setzero_si512();
}
STILL_INLINE Ints i_broadcast(const int32_t* p) {
  return _mm512_set1_epi32(*p);
}
STILL_INLINE void i_store(uint8_t* p, Ints x) {
  _mm512_store_si512(p, x);
}
STILL_INLINE Ints i_add(Ints a, Ints b) {
  return _mm512_add_epi32(a, b);
}
STILL_INLINE Ints i_sub(Ints a, Ints b) {
  return _mm512_sub_epi32(a, b);
}
template <int kBits>
STILL_INLINE Ints i_shift_left(Ints a) {
  return _mm512_slli_epi32(a, kBits);
}

STILL_INLINE Bytes b_load(const uint8_t* p) {
  return _mm512_load_si512(p);
}
STILL_INLINE Bytes b_load_unaligned(const uint8_t* p) {
  return _mm512_loadu_si512(p);
}
STILL_INLINE void b_store(uint8_t* p, Bytes x) {
  _mm512_store_si512(p, x);
}
STILL_INLINE Bytes b_set(uint8_t x) {
  return _mm512_set1_epi8(static_cast<char>(x));
}
STILL_INLINE Bytes b_and(Bytes a, uint8_t mask) {
  return _mm512_and_si512(a, b_set(mask));
}
STILL_INLINE Bytes b_or(Bytes a, Bytes b) {
  return _mm512_or_si512(a, b);
}
// Shifts of 16-bit lanes; negative: to the left. The caller masks what crosses bytes.
template <int kBits>
STILL_INLINE Bytes b_shift_right(Bytes a) {
  if constexpr (kBits > 0) return _mm512_srli_epi16(a, kBits);
  if constexpr (kBits < 0) return _mm512_slli_epi16(a, -kBits);
  return a;
}
// The same by a count known at run time (an immediate where the compiler knows it).
typedef uint16_t Words16 __attribute__((vector_size(64), may_alias));
STILL_INLINE Bytes b_shift_right_by(Bytes a, int n) {
  return reinterpret_cast<Bytes>(reinterpret_cast<Words16>(a) >> n);
}
// Bit `from` of each byte, moved to bit kTo.
template <int kTo>
STILL_INLINE Bytes b_move_bit(Bytes a, int from) {
  return b_and(b_shift_right<-kTo>(b_shift_right_by(a, from)), 1 << kTo);
}
STILL_INLINE Bytes b_lookup(const uint8_t (&table)[16], Bytes idx) {
  const __m128i lane = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(lane), idx);
}
STILL_INLINE void prefetch_l2(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}
STILL_INLINE void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}

// 16 bytes of each of 16 rows to 4 vectors; vector v holds bytes [4v, 4v + 4) of every row.
STILL_INLINE void gather_pieces(const uint8_t* const* rows, int64_t offset, Bytes (&out)[4]) {
  const auto load = [&](int row) STILL_UNROLLED {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + offset));
  };
  __m512i in[4];
  repeat<4>([&](auto i) STILL_UNROLLED {
    constexpr int kRow = decltype(i)::value;
    __m512i x = _mm512_castsi128_si512(load(kRow));
    x = _mm512_inserti32x4(x, load(kRow + 4), 1);
    x = _mm512_inserti32x4(x, load(kRow + 8), 2);
    in[kRow] = _mm512_inserti32x4(x, load(kRow + 12), 3);
  });
  const __m512i low01 = _mm512_unpacklo_epi32(in[0], in[1]), high01 = _mm512_unpackhi_epi32(in[0], in[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(in[2], in[3]), high23 = _mm512_unpackhi_epi32(in[2], in[3]);
  out[0] = _mm512_unpacklo_epi64(low01, low23);
  out[1] = _mm512_unpackhi_epi64(low01, low23);
  out[2] = _mm512_unpacklo_epi64(high01, high23);
  out[3] = _mm512_unpackhi_epi64(high01, high23);
}
STILL_INLINE void b_store_unaligned(void* p, Bytes x) {
  _mm512_storeu_si512(p, x);
}

STILL_INLINE Bytes b_flip_signs(Bytes x) {
  return _mm512_xor_si512(x, b_set(0x80));
}
// 16 lanes of two 16-bit halves: the low halves, then the high halves.
STILL_INLINE Bytes b_split_halves(Bytes x) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(x)),
                            _mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16)), 1);
}

// Pair-interleaved scales [16][2] of 8 bits to int16 pairs.
STILL_INLINE Pairs p_from_u8(const uint8_t* p) {
  return _mm512_cvtepu8_epi16(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
}
STILL_INLINE Pairs p_from_int8(const uint8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
}
// acc + a.low * b.low + a.high * b.high
STILL_INLINE Ints p_dot(Ints acc, Pairs a, Pairs b) {
#ifdef __AVX512VNNI__
  return _mm512_dpwssd_epi32(acc, a, b);
#else
  return _mm512_add_epi32(acc, _mm512_madd_epi16(a, b));
#endif
}

// The scale of one sub-block, the low or the high half of each pair: int32 with VNNI, else the same int16 twice.
typedef int32_t Words32 __attribute__((vector_size(64), may_alias));
STILL_INLINE Ints scale_half(Pairs pairs, int is_high) {
  const Words32 wide = (reinterpret_cast<Words32>(pairs) << (is_high != 0 ? 0 : 16)) >> 16;
#ifdef __AVX512VNNI__
  return reinterpret_cast<Ints>(wide);
#else
  return reinterpret_cast<Ints>((wide << 16) | (wide & 0xffff));
#endif
}

#ifdef __AVX512VNNI__
constexpr bool kHasVnni = true;
STILL_INLINE Ints vnni_dot(Ints acc, Bytes w, Ints q) {
  return _mm512_dpbusd_epi32(acc, w, q);
}
STILL_INLINE Ints vnni_scale(Ints dot, Ints scale) {
  return _mm512_mullo_epi32(dot, scale);
}
#else
constexpr bool kHasVnni = false;
STILL_INLINE Ints vnni_dot(Ints acc, Bytes, Ints) {
  return acc;
}
STILL_INLINE Ints vnni_scale(Ints dot, Ints) {
  return dot;
}
#endif
STILL_INLINE Pairs maddubs(Bytes w, Ints q) {
  return _mm512_maddubs_epi16(w, q);
}
STILL_INLINE Pairs p_add(Pairs a, Pairs b) {
  return _mm512_add_epi16(a, b);
}
STILL_INLINE void p_keep(Pairs&) {}
// The first and third byte of each lane, unsigned.
STILL_INLINE Pairs p_even_bytes(Bytes x) {
  return _mm512_and_si512(x, _mm512_set1_epi16(0xff));
}
STILL_INLINE Pairs p_zero() {
  return _mm512_setzero_si512();
}
STILL_INLINE Pairs p_ones() {
  return _mm512_set1_epi16(1);
}
template <int kBits>
STILL_INLINE Pairs p_shift_left(Pairs a) {
  return _mm512_slli_epi16(a, kBits);
}

}  // namespace
}  // namespace still

#include "kernels/cpu/dot.h"
