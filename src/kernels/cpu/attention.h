// Keys and values into the cache and attention over them (docs/arithmetic.md, "Attention").
// A row is one query of one head. Rows are taken in chunks; for each tile of 32 positions the keys and values become
// f32 in scratch once for the whole chunk, then, each for all of its rows,
//   scores: kAttentionRows rows x 16 or 32 keys in registers, a lane owns a key;
//   softmax: a row's scores are two vectors, and what a row has one of (maximum, sum) is kept for 16 rows in one;
//   output: kAttentionRows rows x 16 or 32 dimensions in registers, a lane owns a dimension.
// Up to kAttentionRows rows read the cache itself: an element is converted once for all of them.
// What a head width or type not covered here asks for is left to the reference.
#pragma once

#include "kernels/cpu/cpu_kernels.h"

namespace still {
namespace {

// Inlined, the loops would share their registers with constants of what is around them.
#define STILL_OWN_REGISTERS __attribute__((noinline))

constexpr int64_t kMaxHeadDim = 512;
constexpr int64_t kMaxGroup = 128;
// A tile is converted once for a chunk, which is whole queries. Its scores, softmax and output are computed for a block
// of rows after the other, so that probabilities stay in L1.
constexpr int64_t kChunkRows = 256, kBlockRows = 48;
constexpr float kMinusInfinity = -__builtin_inff();

STILL_INLINE int64_t group_dims(int64_t head_dim) {
  return head_dim % 32 == 0 ? 32 : head_dim;
}

// Keys and values of a tile: where and of which type the kernels read them.
enum class Element { kF32, kF16, kInt8 };
template <Element kElement>
STILL_INLINE Floats load_elements(const uint8_t* p, int64_t idx) {
  if constexpr (kElement == Element::kF32) return f_load(reinterpret_cast<const float*>(p) + idx);
  if constexpr (kElement == Element::kF16) return f_from_f16(p + 2 * idx);
  return f_from_int8(p + idx);
}

struct TileScratch {
  float* k;        // [head_dim][32]
  float* v;        // [32][padded_dim]
  float* k_scale;  // [n_groups][32], int8 only
  float* v_scale;  // [n_groups][32]
  float* scaled;   // [kAttentionRows][32]: p times the values' scale
  float* p;        // [kBlockRows][32]: scores, then probabilities
  float* o;        // [kChunkRows][padded_dim]: the segment's output
  // The tile at hand: in k and v above, or in the cache itself.
  const uint8_t* keys;
  const uint8_t* values;
  int64_t value_stride;
  // In the cache itself: the tile after it, which the kernels prefetch line by line.
  const uint8_t* next_keys;
  const uint8_t* next_values;
};
template <Element kElement>
constexpr int64_t kElementSize = kElement == Element::kF32   ? 4
                                 : kElement == Element::kF16 ? 2
                                                             : 1;

STILL_INLINE TileScratch attention_scratch(uint8_t* bytes, int64_t head_dim, int64_t padded_dim, int64_t n_groups) {
  float* at = reinterpret_cast<float*>(bytes);
  const auto take = [&](int64_t n) STILL_UNROLLED {
    float* start = at;
    at += (n + 15) / 16 * 16;
    return start;
  };
  TileScratch s{};
  s.k = take(head_dim * 32);
  s.v = take(32 * padded_dim);
  s.k_scale = take(n_groups * 32);
  s.v_scale = take(n_groups * 32);
  s.scaled = take(kAttentionRows * 32);
  s.p = take(kBlockRows * 32);
  s.o = take(kChunkRows * padded_dim);
  return s;
}
// k, v, scales, scaled, p, o at their largest.
static_assert((kMaxHeadDim * 32 * 2 + kMaxHeadDim * 2 + (kAttentionRows + kBlockRows) * 32 + kChunkRows * kMaxHeadDim) *
                  4 <
              kAttentionScratchBytes);

STILL_INLINE float f16_at(const uint8_t* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, 2);
  return _cvtsh_ss(bits);
}

// Where the tile at `pos`, a multiple of 32, lies in the cache.
struct CachedTile {
  const uint8_t *k, *v, *k_scale, *v_scale;
};
STILL_INLINE CachedTile cached_tile(const KvHeadView& kv, int64_t pos) {
  const int64_t head_dim = kv.head_dim, offset = pos % kv.block_size;
  const int64_t n_groups = head_dim / group_dims(head_dim), element = kv.type == KvType::kF16 ? 2 : 1;
  const uint8_t* block = kv.base + kv.block_table[pos / kv.block_size] * kv.block_bytes;
  return {block + kv.k_offset + offset * head_dim * element, block + kv.v_offset + offset * head_dim * element,
          block + kv.k_scale_offset + offset * n_groups * 2, block + kv.v_scale_offset + offset * n_groups * 2};
}

// Two groups' scales of a tile's values, [32][2], as 32 and 32.
STILL_INLINE void part_scales(const uint8_t* scales, float* first, float* second) {
  for (int64_t i = 0; i < 32; i += 16) {
    uint8_t halves[64];
    b_store_unaligned(halves, b_split_halves(b_load_unaligned(scales + 4 * i)));
    f_store(first + i, f_from_f16(halves));
    f_store(second + i, f_from_f16(halves + 32));
  }
}
// [32][n_groups] to [n_groups][32].
STILL_INLINE void load_value_scales(const uint8_t* scales, int64_t n_groups, float* out) {
  if (n_groups == 1) {
    for (int64_t i = 0; i < 32; i += 16) f_store(out + i, f_from_f16(scales + 2 * i));
  } else if (n_groups == 2) {
    part_scales(scales, out, out + 32);
  } else if (n_groups == 4) {
    uint8_t even[128], odd[128];
    for (int64_t i = 0; i < 4; ++i) {
      uint8_t halves[64];
      b_store_unaligned(halves, b_split_halves(b_load_unaligned(scales + 64 * i)));
      __builtin_memcpy(even + 32 * i, halves, 32);
      __builtin_memcpy(odd + 32 * i, halves + 32, 32);
    }
    part_scales(even, out, out + 64);
    part_scales(odd, out + 32, out + 96);
  } else {
    for (int64_t j = 0; j < 32; ++j)
      for (int64_t g = 0; g < n_groups; ++g) out[g * 32 + j] = f16_at(scales + 2 * (j * n_groups + g));
  }
}

STILL_INLINE void load_scales(const KvHeadView& kv, const CachedTile& tile, const TileScratch& s) {
  const int64_t n_groups = kv.head_dim / group_dims(kv.head_dim);
  for (int64_t i = 0; i < n_groups * 32; i += 16) f_store(s.k_scale + i, f_from_f16(tile.k_scale + 2 * i));
  load_value_scales(tile.v_scale, n_groups, s.v_scale);
}

// The tile as f32 in scratch.
template <bool kInt8>
void convert_tile(const KvHeadView& kv, int64_t pos, bool is_last, int64_t padded_dim, TileScratch& s) {
  constexpr Element kElement = kInt8 ? Element::kInt8 : Element::kF16;
  const int64_t head_dim = kv.head_dim, whole = head_dim / 16 * 16;
  const CachedTile tile = cached_tile(kv, pos), next = cached_tile(kv, is_last ? pos : pos + kKvTile);
  for (int64_t i = 0; i < head_dim * 32; i += 32) {
    prefetch_l2(next.k + i * kElementSize<kElement>);
    f_store(s.k + i, load_elements<kElement>(tile.k, i));
    f_store(s.k + i + 16, load_elements<kElement>(tile.k, i + 16));
  }
  for (int64_t j = 0; j < 32; ++j) {
    for (int64_t d = 0; d < whole; d += 16) {
      if (d % 32 == 0) prefetch_l2(next.v + (j * head_dim + d) * kElementSize<kElement>);
      f_store(s.v + j * padded_dim + d, load_elements<kElement>(tile.v, j * head_dim + d));
    }
    for (int64_t d = whole; d < head_dim; ++d)
      s.v[j * padded_dim + d] = kInt8 ? static_cast<float>(static_cast<int8_t>(tile.v[j * head_dim + d]))
                                      : f16_at(tile.v + 2 * (j * head_dim + d));
  }
  if constexpr (kInt8) load_scales(kv, tile, s);
  s.keys = reinterpret_cast<const uint8_t*>(s.k);
  s.values = reinterpret_cast<const uint8_t*>(s.v);
  s.value_stride = padded_dim;
}

// The tile as it lies in the cache.
template <bool kInt8>
void point_at_tile(const KvHeadView& kv, int64_t pos, bool is_last, TileScratch& s) {
  const CachedTile tile = cached_tile(kv, pos), next = cached_tile(kv, is_last ? pos : pos + kKvTile);
  if constexpr (kInt8) load_scales(kv, tile, s);
  s.keys = tile.k;
  s.values = tile.v;
  s.value_stride = kv.head_dim;
  s.next_keys = next.k;
  s.next_values = next.v;
}

// body(i) for i in [begin, end). Most steps are written out eight at a time: the end of a loop of 32 or 64 steps is
// mispredicted, that of four or eight is not.
template <class Body>
STILL_INLINE void eight_at_once(int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + 8 <= end; i += 8)
    repeat<8>([&](auto step) STILL_UNROLLED {
      body(i + decltype(step)::value);
      // The next step's loads stay behind it: a register for each would be wanted otherwise.
      asm volatile("" ::: "memory");
    });
  for (; i < end; ++i) body(i);
}

// scores[r] [32] = (q[r] . k) * scale
template <int kRows, bool kInt8, Element kElement>
STILL_OWN_REGISTERS void score_rows(const float* const* q, const TileScratch& s, int64_t head_dim, const float* scale,
                                    float* scores) {
  constexpr int kVectors = attention_vectors(kRows);
  const int64_t step = kInt8 ? group_dims(head_dim) : head_dim;
  // Copies that stay in registers.
  const float* rows[kRows];
  repeat<kRows>([&](auto row) STILL_UNROLLED { rows[decltype(row)::value] = q[decltype(row)::value]; });
  const uint8_t *const tile = s.keys, *const next = s.next_keys;
  for (int64_t first = 0; first < 32; first += 16 * kVectors) {
    for (int64_t begin = 0; begin < head_dim; begin += step) {
      Floats sum[kRows][kVectors];
      repeat<kRows>([&](auto row) STILL_UNROLLED {
        repeat<kVectors>([&](auto i) STILL_UNROLLED { sum[decltype(row)::value][decltype(i)::value] = f_zero(); });
      });
      eight_at_once(begin, begin + step, [&](int64_t d) STILL_UNROLLED {
        if constexpr (kElement != Element::kF32) {
          if (first == 0) prefetch_l2(next + d * 32 * kElementSize<kElement>);
        }
        const auto keys = [&](int i) STILL_UNROLLED { return load_elements<kElement>(tile, d * 32 + first + 16 * i); };
        f_fma_rows<kRows, kVectors>(sum, keys, [&](auto row) STILL_UNROLLED { return rows[decltype(row)::value] + d; });
      });
      repeat<kRows>([&](auto row) STILL_UNROLLED {
        repeat<kVectors>([&](auto i) STILL_UNROLLED {
          constexpr int kRow = decltype(row)::value, I = decltype(i)::value;
          float* out = scores + kRow * 32 + first + 16 * I;
          if constexpr (kInt8) {
            const Floats k_scale = f_load(s.k_scale + begin / step * 32 + first + 16 * I);
            sum[kRow][I] = f_fma(sum[kRow][I], k_scale, begin == 0 ? f_zero() : f_load(out));
          }
          if (begin + step == head_dim) sum[kRow][I] = f_mul(sum[kRow][I], f_set(*scale));
          f_store(out, sum[kRow][I]);
        });
      });
    }
  }
}

// Lane r: the rest of the tree over x[r], in which lane i meets i + 4, then i + 2, then i + 1.
template <class Op>
STILL_INLINE __m256 fold_eight(const float (*x)[8], const Op& op) {
  __m256 four[4];  // of rows r and r + 4
  repeat<4>([&](auto row) STILL_UNROLLED {
    constexpr int kRow = decltype(row)::value;
    const __m256 first = _mm256_loadu_ps(x[kRow]), second = _mm256_loadu_ps(x[kRow + 4]);
    four[kRow] = op(_mm256_permute2f128_ps(first, second, 0x20), _mm256_permute2f128_ps(first, second, 0x31));
  });
  const auto pair = [](__m256 a, __m256 b, auto high) STILL_UNROLLED {
    const __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
    return _mm256_castpd_ps(decltype(high)::value ? _mm256_unpackhi_pd(x, y) : _mm256_unpacklo_pd(x, y));
  };
  const __m256 low = op(pair(four[0], four[1], Int<0>{}), pair(four[0], four[1], Int<1>{}));
  const __m256 high = op(pair(four[2], four[3], Int<0>{}), pair(four[2], four[3], Int<1>{}));
  return op(_mm256_shuffle_ps(low, high, 0x88), _mm256_shuffle_ps(low, high, 0xdd));
}
// [r] = the largest, or the sum, of x[r].
STILL_INLINE void eight_maxima(const float (*x)[8], float* out) {
  _mm256_storeu_ps(out, fold_eight(x, [](__m256 a, __m256 b) STILL_UNROLLED { return _mm256_max_ps(a, b); }));
}
STILL_INLINE void eight_sums(const float (*x)[8], float* out) {
  _mm256_storeu_ps(out, fold_eight(x, [](__m256 a, __m256 b) STILL_UNROLLED { return _mm256_add_ps(a, b); }));
}

// What softmax_rows keeps for each row: maximum, sum, and the factor of what was summed before. There are 16 of each,
// of which those behind the last row stay as they are (a factor may change).
struct SoftmaxState {
  float *m, *l, *correction;
};

// Scores of n rows, n at most 16, to probabilities: p [n][32], 0 but for the row's positions [begin(r), end(r)) of the
// tile, which are all of it where kWhole.
template <bool kWhole, class Begin, class End>
STILL_OWN_REGISTERS void softmax_rows(float* p, int64_t n, const Begin& begin, const End& end, SoftmaxState state) {
  alignas(64) float folded[16][8], reduced[16], max[16];
  for (int64_t r = n; r < 16; ++r) _mm256_store_ps(folded[r], _mm256_setzero_ps());
  const auto select = [&](Floats& low, Floats& high, Floats other, int64_t r) STILL_UNROLLED {
    if constexpr (!kWhole) {
      const int64_t from = begin(r), to = end(r);
      low = f_select(low, other, min_of(from, 16), min_of(to, 16));
      high = f_select(high, other, max_of(from, 16) - 16, max_of(to, 16) - 16);
    }
  };
  for (int64_t r = 0; r < n; ++r) {
    Floats low = f_load(p + r * 32), high = f_load(p + r * 32 + 16);
    select(low, high, f_set(kMinusInfinity), r);
    f_store_folded_max(folded[r], f_max(f_max(f_set(kMinusInfinity), low), high));
  }
  eight_maxima(folded, reduced);
  eight_maxima(folded + 8, reduced + 8);
  const Floats old_max = f_load(state.m), new_max = f_max(old_max, f_load(reduced));
  f_store(max, new_max);
  for (int64_t r = 0; r < n; ++r) {
    float* row = p + r * 32;
    const Floats row_max = f_set(max[r]);
    Floats low = exp_of_difference(f_sub(f_load(row), row_max));
    Floats high = exp_of_difference(f_sub(f_load(row + 16), row_max));
    select(low, high, f_zero(), r);  // exp(-inf - -inf) is NaN
    f_store(row, low);
    f_store(row + 16, high);
    f_store_folded_sum(folded[r], f_add(low, high));
  }
  eight_sums(folded, reduced);
  eight_sums(folded + 8, reduced + 8);
  const Floats correction =
      f_zero_where_equal(exp_of_difference(f_sub(old_max, new_max)), old_max, f_set(kMinusInfinity));
  const Floats old_sum = f_load(state.l), sum = f_fma(old_sum, correction, f_load(reduced));
  f_store(state.m, n == 16 ? new_max : f_select(new_max, old_max, 0, n));
  f_store(state.l, n == 16 ? sum : f_select(sum, old_sum, 0, n));
  f_store(state.correction, correction);
}

// o[r] = o[r] * correction[r], then fma(p[r][j], v[j], .) for j in [begin, end); kVectors * 16 dimensions at a time
// from d_begin on for as long as they are in front of d_end. Returns the first dimension that is left.
template <int kRows, int kVectors, Element kElement>
STILL_OWN_REGISTERS int64_t output_rows(const float* p, const TileScratch& s, int64_t d_begin, int64_t d_end,
                                        int64_t padded_dim, int64_t begin, int64_t end, const float* correction,
                                        float* out) {
  const int64_t stride = s.value_stride * kElementSize<kElement>;
  int64_t d = d_begin;
  for (; d + 16 * kVectors <= d_end; d += 16 * kVectors) {
    float* o = out + d;
    Floats acc[kRows][kVectors];
    repeat<kRows>([&](auto row) STILL_UNROLLED {
      repeat<kVectors>([&](auto i) STILL_UNROLLED {
        constexpr int kRow = decltype(row)::value, I = decltype(i)::value;
        acc[kRow][I] = f_mul(f_load(o + kRow * padded_dim + 16 * I), f_set(correction[kRow]));
      });
    });
    const uint8_t* at = s.values + begin * stride + d * kElementSize<kElement>;
    const int64_t to_next = s.next_values - s.values;
    eight_at_once(begin, end, [&](int64_t j) STILL_UNROLLED {
      if constexpr (kElement != Element::kF32) prefetch_l2(at + to_next);
      const auto values = [&](int i) STILL_UNROLLED { return load_elements<kElement>(at, 16 * i); };
      f_fma_rows<kRows, kVectors>(acc, values,
                                  [&](auto row) STILL_UNROLLED { return p + decltype(row)::value * 32 + j; });
      at += stride;
    });
    repeat<kRows>([&](auto row) STILL_UNROLLED {
      repeat<kVectors>([&](auto i) STILL_UNROLLED {
        constexpr int kRow = decltype(row)::value, I = decltype(i)::value;
        f_store(o + kRow * padded_dim + 16 * I, acc[kRow][I]);
      });
    });
  }
  return d;
}

// Rows that see the same positions of the tile: their probabilities, outputs and the factors of these.
template <int kRows, bool kInt8, Element kElement>
void output_tile(const TileScratch& s, const float* probabilities, float* o, int64_t head_dim, int64_t padded_dim,
                 int64_t begin, int64_t end, const float* correction) {
  const int64_t step = kInt8 ? group_dims(head_dim) : head_dim;
  for (int64_t first = 0; first < head_dim; first += step) {
    const float* p = probabilities;
    if constexpr (kInt8) {
      const float* scale = s.v_scale + first / step * 32;
      for (int64_t i = 0; i < kRows * 32; i += 16) f_store(s.scaled + i, f_mul(f_load(p + i), f_load(scale + i % 32)));
      p = s.scaled;
    }
    const int64_t last = first + step == head_dim ? padded_dim : first + step;
    constexpr int kVectors = attention_vectors(kRows);
    const int64_t d = output_rows<kRows, kVectors, kElement>(p, s, first, last, padded_dim, begin, end, correction, o);
    if constexpr (kVectors > 1) {
      if (d < last) output_rows<kRows, 1, kElement>(p, s, d, last, padded_dim, begin, end, correction, o);
    }
  }
}

STILL_INLINE void copy_row(const float* x, int64_t head_dim, float* o) {
  for_vectors(head_dim, [&](int64_t d, int64_t lanes)
                            STILL_UNROLLED { store_up_to_16(o + d, load_up_to_16(x + d, lanes), lanes); });
}
// o = fma(o, a, part * b)
STILL_INLINE void add_part_row(const float* part, float a, float b, int64_t head_dim, float* o) {
  for_vectors(head_dim, [&](int64_t d, int64_t lanes) STILL_UNROLLED {
    const Floats scaled = f_mul(load_up_to_16(part + d, lanes), f_set(b));
    store_up_to_16(o + d, f_fma(load_up_to_16(o + d, lanes), f_set(a), scaled), lanes);
  });
}
// total += part (docs/arithmetic.md), of n rows, n at most 16, of 16 that can be read; their outputs are part_stride
// apart, and out(r).
template <class Out>
STILL_INLINE void fold_rows(const float* part_m, const float* part_l, const float* part_o, int64_t part_stride,
                            int64_t n, int64_t head_dim, float* m, float* l, const Out& out) {
  const Floats old_max = f_load(m), old_sum = f_load(l), part_max = f_load(part_m);
  const Floats max = f_max(old_max, part_max);
  const Floats a = exp_of_difference(f_sub(old_max, max)), b = exp_of_difference(f_sub(part_max, max));
  float new_m[16], new_l[16], factor[16], part_factor[16];
  f_store(new_m, max);
  f_store(new_l, f_fma(old_sum, a, f_mul(f_load(part_l), b)));
  f_store(factor, a);
  f_store(part_factor, b);
  for (int64_t r = 0; r < n; ++r) {
    const float* o = part_o + r * part_stride;
    if (part_l[r] == 0.0f) continue;
    const bool is_first = l[r] == 0.0f;
    m[r] = is_first ? part_m[r] : new_m[r];
    l[r] = is_first ? part_l[r] : new_l[r];
    if (is_first) {
      copy_row(o, head_dim, out(r));
    } else {
      add_part_row(o, factor[r], part_factor[r], head_dim, out(r));
    }
  }
}
STILL_INLINE void divide_row(float* o, int64_t head_dim, float l) {
  for_vectors(head_dim, [&](int64_t d, int64_t lanes) STILL_UNROLLED {
    store_up_to_16(o + d, f_div(load_up_to_16(o + d, lanes), f_set(l)), lanes);
  });
}
STILL_INLINE void zero_floats(float* p, int64_t n) {
  for_vectors(n, [&](int64_t i, int64_t lanes) STILL_UNROLLED { store_up_to_16(p + i, f_zero(), lanes); });
}

// Rows of one chunk: queries [first_query, first_query + n_queries) of all heads of the group, in this order.
struct AttentionChunk {
  int64_t n_rows;
  const float* q[kChunkRows];
  int64_t begin[kChunkRows], end[kChunkRows];  // visible positions
  float* out[kChunkRows];
  // Sixteen at a time are read and written.
  float m[kChunkRows + 16], l[kChunkRows + 16];  // of the segment
  float total_m[kChunkRows + 16], total_l[kChunkRows + 16];
  float correction[kChunkRows + 16];
};

// body(Int<n>) for n in 1..kAttentionRows
template <int N = kAttentionRows, class Body>
STILL_INLINE void with_rows(int64_t n, const Body& body) {
  if constexpr (N > 1) {
    if (n < N) return with_rows<N - 1>(n, body);
  }
  body(Int<N>{});
}

// body(first, n) for parts of the rows [row, row_end), which are some, that are computed side by side. The parts are
// equal but for one row: a few last rows would leave the multipliers waiting for their few chains.
template <class Body>
STILL_INLINE void side_by_side(int64_t row, int64_t row_end, const Body& body) {
  const int64_t n = row_end - row;
  const int64_t parts = n <= kAttentionRows ? 1 : (n + kManyAttentionRows - 1) / kManyAttentionRows;
  const int64_t size = n / parts, larger = row + n % parts * (size + 1);
  for (; row < larger; row += size + 1) body(row, size + 1);
  for (; row < row_end; row += size) body(row, size);
}

// The rows [row, row_end), at most kBlockRows, that see something of the tile at `pos`.
template <bool kInt8, Element kElement>
void attend_tile(const AttentionArgs& args, AttentionChunk& chunk, const TileScratch& s, int64_t padded_dim,
                 int64_t pos, int64_t row, int64_t row_end) {
  const int64_t head_dim = args.kv.head_dim;
  const auto tile_begin = [&](int64_t r) STILL_UNROLLED { return max_of(chunk.begin[r] - pos, 0); };
  const auto tile_end = [&](int64_t r) STILL_UNROLLED { return min_of(chunk.end[r] - pos, 32); };
  // Neither decreases from row to row.
  const bool is_whole = tile_begin(row_end - 1) == 0 && tile_end(row) == 32;
  side_by_side(row, row_end, [&](int64_t first, int64_t n_rows) STILL_UNROLLED {
    with_rows(n_rows, [&](auto n) STILL_UNROLLED {
      score_rows<decltype(n)::value, kInt8, kElement>(chunk.q + first, s, head_dim, &args.scale,
                                                      s.p + (first - row) * 32);
    });
  });
  for (int64_t first = row; first < row_end; first += 16) {
    const auto begin = [&](int64_t r) STILL_UNROLLED { return tile_begin(first + r); };
    const auto end = [&](int64_t r) STILL_UNROLLED { return tile_end(first + r); };
    const SoftmaxState state{chunk.m + first, chunk.l + first, chunk.correction + first};
    const int64_t n = min_of(16, row_end - first);
    if (is_whole) {
      softmax_rows<true>(s.p + (first - row) * 32, n, begin, end, state);
    } else {
      softmax_rows<false>(s.p + (first - row) * 32, n, begin, end, state);
    }
  }
  // Runs of rows that see the same positions; all of them except at the causal border and a window's edge.
  for (int64_t run = row, run_end = row; run < row_end; run = run_end) {
    if (is_whole) run_end = row_end;
    while (run_end < row_end && tile_begin(run_end) == tile_begin(run) && tile_end(run_end) == tile_end(run)) ++run_end;
    side_by_side(run, run_end, [&](int64_t first, int64_t n_rows) STILL_UNROLLED {
      with_rows(n_rows, [&](auto n) STILL_UNROLLED {
        output_tile<decltype(n)::value, kInt8, kElement>(s, s.p + (first - row) * 32, s.o + first * padded_dim,
                                                         head_dim, padded_dim, tile_begin(run), tile_end(run),
                                                         chunk.correction + first);
      });
    });
  }
}

template <bool kInt8>
void attend_chunk(const AttentionArgs& args, AttentionChunk& chunk, TileScratch& s, int64_t padded_dim) {
  const int64_t head_dim = args.kv.head_dim, n = chunk.n_rows;
  const bool is_direct = n <= kAttentionRows && padded_dim == head_dim;
  for (int64_t r = 0; r < n + 16; r += 16) {
    f_store(chunk.total_m + r, f_set(kMinusInfinity));
    f_store(chunk.total_l + r, f_zero());
  }
  for (int64_t r = 0; r < n; ++r) zero_floats(chunk.out[r], head_dim);
  // begin and end do not decrease from row to row, so neither of these does from tile to tile.
  int64_t active = 0, active_end = 0;
  for (int64_t segment = chunk.begin[0] / kKvSegment * kKvSegment; segment < chunk.end[n - 1]; segment += kKvSegment) {
    for (int64_t r = 0; r < n + 16; r += 16) {
      f_store(chunk.m + r, f_set(kMinusInfinity));
      f_store(chunk.l + r, f_zero());
    }
    zero_floats(s.o, n * padded_dim);
    for (int64_t pos = segment; pos < min_of(segment + kKvSegment, chunk.end[n - 1]); pos += kKvTile) {
      while (active < n && chunk.end[active] <= pos) ++active;
      while (active_end < n && chunk.begin[active_end] < pos + kKvTile) ++active_end;
      if (active >= active_end) continue;
      if (is_direct) {
        point_at_tile<kInt8>(args.kv, pos, pos + kKvTile >= chunk.end[n - 1], s);
        attend_tile<kInt8, kInt8 ? Element::kInt8 : Element::kF16>(args, chunk, s, padded_dim, pos, active, active_end);
      } else {
        convert_tile<kInt8>(args.kv, pos, pos + kKvTile >= chunk.end[n - 1], padded_dim, s);
        for (int64_t row = active; row < active_end; row += kBlockRows)
          attend_tile<kInt8, Element::kF32>(args, chunk, s, padded_dim, pos, row, min_of(row + kBlockRows, active_end));
      }
    }
    for (int64_t r = 0; r < n; r += 16) {
      fold_rows(chunk.m + r, chunk.l + r, s.o + r * padded_dim, padded_dim, min_of(16, n - r), head_dim,
                chunk.total_m + r, chunk.total_l + r, [&](int64_t i) STILL_UNROLLED { return chunk.out[r + i]; });
    }
  }
}

void attention(const AttentionArgs& args) {
  const int64_t head_dim = args.kv.head_dim;
  if (args.kv.type == KvType::kF32 || head_dim % 8 != 0 || head_dim > kMaxHeadDim || args.group > kMaxGroup)
    return kRefKernels.attention(args);
  if (args.n_q == 0) return;
  const int64_t padded_dim = (head_dim + 15) / 16 * 16;
  TileScratch s = attention_scratch(args.scratch, head_dim, padded_dim, head_dim / group_dims(head_dim));
  if (padded_dim != head_dim) zero_floats(s.v, 32 * padded_dim);
  AttentionChunk chunk;
  // Chunks of equal size.
  const int64_t most = max_of(1, kChunkRows / args.group), n_chunks = (args.n_q + most - 1) / most;
  const int64_t chunk_queries = (args.n_q + n_chunks - 1) / n_chunks;
  for (int64_t first = 0; first < args.n_q; first += chunk_queries) {
    const int64_t n_queries = min_of(chunk_queries, args.n_q - first);
    chunk.n_rows = n_queries * args.group;
    for (int64_t r = 0; r < chunk.n_rows; ++r) {
      const int64_t i = first + r / args.group, h = r % args.group, pos = args.q_pos + i;
      chunk.q[r] = args.q + i * args.q_stride + h * head_dim;
      chunk.out[r] = args.out + i * args.out_stride + h * head_dim;
      chunk.begin[r] = max_of(args.kv_begin, args.window > 0 ? pos + 1 - args.window : 0);
      chunk.end[r] = min_of(args.kv_end, pos + 1);
    }
    if (args.kv.type == KvType::kInt8) {
      attend_chunk<true>(args, chunk, s, padded_dim);
    } else {
      attend_chunk<false>(args, chunk, s, padded_dim);
    }
    for (int64_t r = 0; r < chunk.n_rows; ++r) {
      if (args.finish) {
        divide_row(chunk.out[r], head_dim, chunk.total_l[r]);
      } else {
        args.m[first * args.group + r] = chunk.total_m[r];
        args.l[first * args.group + r] = chunk.total_l[r];
      }
    }
  }
}

void attention_merge(const AttentionMergeArgs& args) {
  for (int64_t h = 0; h < args.n_heads; ++h) {
    // Rows of one.
    float m[16] = {kMinusInfinity}, l[16] = {}, part_m[16] = {}, part_l[16] = {};
    float* out = args.out + h * args.head_dim;
    zero_floats(out, args.head_dim);
    for (int64_t part = 0; part < args.n_parts; ++part) {
      const int64_t idx = part * args.n_heads + h;
      part_m[0] = args.m[idx];
      part_l[0] = args.l[idx];
      fold_rows(part_m, part_l, args.o + idx * args.head_dim, 0, 1, args.head_dim, m, l,
                [&](int64_t) STILL_UNROLLED { return out; });
    }
    divide_row(out, args.head_dim, l[0]);
  }
}

// One group of a key or value to int8; returns the scale's f16 bits.
STILL_INLINE uint16_t quantize_group(const float* x, int64_t n, int8_t* q) {
  Ints max_bits = i_zero();
  for_vectors(n, [&](int64_t i, int64_t lanes)
                     STILL_UNROLLED { max_bits = i_max(max_bits, i_abs_bits(load_up_to_16(x + i, lanes))); });
  const int32_t bits = i_max_lane(max_bits);
  float amax;
  __builtin_memcpy(&amax, &bits, 4);
  if (bits >= 0x7f800000) {
    for (int64_t i = 0; i < n; ++i) q[i] = 0;
    return 0x7e00;
  }
  const uint16_t scale_bits = static_cast<uint16_t>(_cvtss_sh(amax / 127.0f, _MM_FROUND_TO_NEAREST_INT));
  const float scale = _cvtsh_ss(scale_bits);
  if (scale == 0.0f) {
    for (int64_t i = 0; i < n; ++i) q[i] = 0;
    return scale_bits;
  }
  for_vectors(n, [&](int64_t i, int64_t lanes) STILL_UNROLLED {
    int8_t rounded[16];
    // max(-127, .) then min(127, .): values are finite here, so their order does not matter.
    const Floats scaled = f_div(load_up_to_16(x + i, lanes), f_set(scale));
    f_to_int8(rounded, f_neg(f_max(f_neg(f_max(scaled, f_set(-127.0f))), f_set(-127.0f))));
    __builtin_memcpy(q + i, rounded, static_cast<uint64_t>(lanes));
  });
  return scale_bits;
}

void kv_write(const KvHeadView& kv, int64_t pos, const float* k, const float* v) {
  const int64_t head_dim = kv.head_dim, offset = pos % kv.block_size;
  if (kv.type == KvType::kF32 || head_dim > kMaxHeadDim) return kRefKernels.kv_write(kv, pos, k, v);
  uint8_t* block = kv.base + kv.block_table[pos / kv.block_size] * kv.block_bytes;
  const int64_t tile = offset / kKvTile, lane = offset % kKvTile;
  if (kv.type == KvType::kF16) {
    uint8_t* key = block + kv.k_offset + (tile * head_dim * kKvTile + lane) * 2;
    uint8_t* value = block + kv.v_offset + offset * head_dim * 2;
    for_vectors(head_dim, [&](int64_t d, int64_t lanes) STILL_UNROLLED {
      uint8_t halves[32];
      f_to_f16(halves, load_up_to_16(k + d, lanes));
      for (int64_t i = 0; i < lanes; ++i) __builtin_memcpy(key + (d + i) * kKvTile * 2, halves + 2 * i, 2);
      f_to_f16(halves, load_up_to_16(v + d, lanes));
      __builtin_memcpy(value + 2 * d, halves, static_cast<uint64_t>(2 * lanes));
    });
    return;
  }
  const int64_t group = group_dims(head_dim), n_groups = head_dim / group;
  int8_t q[kMaxHeadDim];
  for (int64_t g = 0; g < n_groups; ++g) {
    const uint16_t k_scale = quantize_group(k + g * group, group, q);
    __builtin_memcpy(block + kv.k_scale_offset + ((tile * n_groups + g) * kKvTile + lane) * 2, &k_scale, 2);
    uint8_t* key = block + kv.k_offset + (tile * head_dim + g * group) * kKvTile + lane;
    for (int64_t i = 0; i < group; ++i) key[i * kKvTile] = static_cast<uint8_t>(q[i]);
    const uint16_t v_scale = quantize_group(v + g * group, group, q);
    __builtin_memcpy(block + kv.v_scale_offset + (offset * n_groups + g) * 2, &v_scale, 2);
    __builtin_memcpy(block + kv.v_offset + offset * head_dim + g * group, q, static_cast<uint64_t>(group));
  }
}

}  // namespace
}  // namespace still
