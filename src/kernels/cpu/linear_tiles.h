// y = W x for quantised weights and many rows of activations, with a matrix unit that multiplies tiles of bytes (AMX):
// 16 rows of activations x 64 (or 32) k, read where they lie, by 64 (32) k x 16 rows of weights, unpacked in scratch.
// Sub-block scales go into the weights before the product, so that a whole block of 256 stays in the unit: a scale is
// written in base 8 and weight * digit fits a byte, one accumulator tile for each digit:
//   Q2_K  scale <= 15, weight <= 3: one digit;   Q3_K  -(weight * scale) in [-128, 124]: one digit
//   Q4_K, Q5_K  scale <= 63: two digits 0..7;    Q6_K  scale in [-128, 127], weight - 32: three digits -3..4
// IQ4_XS has weights that leave no room for digits: it is left to the level below.
// Tiles supplies the instructions, so that the rest can be tested where there is no such unit.
#pragma once

#include "kernels/cpu/linear_quantized.h"

namespace still {
namespace {

// How a format's weights enter the tiles: with kOffset subtracted (signed bytes) or as they are (unsigned).
template <class F>
struct TileDigits {
  static constexpr int kDigits = 1;
  static constexpr bool kSigned = F::kBlock == 32 && !F::kHasMin;
};
template <>
struct TileDigits<Q3_K> {
  static constexpr int kDigits = 1;
  static constexpr bool kSigned = true;
};
template <>
struct TileDigits<Q4_K> {
  static constexpr int kDigits = 2;
  static constexpr bool kSigned = false;
};
template <>
struct TileDigits<Q5_K> : TileDigits<Q4_K> {};
template <>
struct TileDigits<Q6_K> {
  static constexpr int kDigits = 3;
  static constexpr bool kSigned = true;
};

// Digit `kDigit` of int16 scales. Balanced digits (-3..4) for Q6_K: d0 = ((s + 3) & 7) - 3, carried into the rest.
template <class F, int kDigit>
STILL_INLINE __m512i scale_digit(__m512i scale) {
  if constexpr (TileDigits<F>::kDigits == 1)
    return F::kOffset != 0 ? _mm512_sub_epi16(_mm512_setzero_si512(), scale) : scale;
  if constexpr (TileDigits<F>::kDigits == 2)
    return kDigit == 0 ? _mm512_and_si512(scale, _mm512_set1_epi16(7)) : _mm512_srli_epi16(scale, 3);
  const __m512i three = _mm512_set1_epi16(3), seven = _mm512_set1_epi16(7);
  const __m512i low = _mm512_sub_epi16(_mm512_and_si512(_mm512_add_epi16(scale, three), seven), three);
  if constexpr (kDigit == 0) return low;
  const __m512i rest = _mm512_srai_epi16(_mm512_sub_epi16(scale, low), 3);
  const __m512i middle = _mm512_sub_epi16(_mm512_and_si512(_mm512_add_epi16(rest, three), seven), three);
  if constexpr (kDigit == 1) return middle;
  return _mm512_srai_epi16(_mm512_sub_epi16(rest, middle), 3);
}

// Bytes times an int16 factor (the same in both halves of a lane); products fit a byte.
template <class F>
STILL_INLINE __m512i scale_bytes(__m512i w, __m512i factor) {
  if constexpr (TileDigits<F>::kSigned) w = _mm512_sub_epi8(w, _mm512_set1_epi8(F::kOffset));
  const __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8);  // sign extension harms no weight below 128
  const __m512i odd = _mm512_srai_epi16(w, 8);
  const __m512i low = _mm512_and_si512(_mm512_mullo_epi16(even, factor), _mm512_set1_epi16(0xff));
  return _mm512_or_si512(low, _mm512_slli_epi16(_mm512_mullo_epi16(odd, factor), 8));
}

STILL_INLINE __m512i twice_low(__m512i pairs) {
  return _mm512_or_si512(_mm512_slli_epi32(pairs, 16), _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff)));
}
STILL_INLINE __m512i twice_high(__m512i pairs) {
  return _mm512_or_si512(_mm512_srli_epi32(pairs, 16), _mm512_andnot_si512(_mm512_set1_epi32(0xffff), pairs));
}

template <class F>
constexpr int64_t kDigitBytes = F::kBlock * kPanelRows;  // a block's weights as bytes
template <class F>
constexpr int64_t kTileWeightBytes = kDigitBytes<F> * TileDigits<F>::kDigits;

// A block to [kDigits][kBlock / 4][16 rows][4] bytes.
template <class F>
STILL_INLINE void unpack_for_tiles(const uint8_t* quants, const uint8_t* scales, uint8_t* out) {
  if constexpr (F::kBlock == 32) {
    const typename F::Sub w = unpack<F, 0>(quants, 0);
    if constexpr (TileDigits<F>::kSigned) {
      repeat<F::kVectors>([&](auto i) STILL_UNROLLED {
        b_store(out + 64 * decltype(i)::value,
                _mm512_sub_epi8(w.v[decltype(i)::value], _mm512_set1_epi8(static_cast<char>(F::kOffset))));
      });
    } else {
      w.store(out);
    }
  } else {
    for (int step = 0; step < F::kSteps; ++step) {
      repeat<F::kStepSubs>([&](auto j) STILL_UNROLLED {
        const int sub_block = F::sub(step, decltype(j)::value);
        const __m512i pairs = scale_pairs<F>(scales + sub_block / 2 * 32);
        const __m512i scale = sub_block % 2 == 0 ? twice_low(pairs) : twice_high(pairs);
        const typename F::Sub w = unpack<F, decltype(j)::value>(quants, step);
        repeat<TileDigits<F>::kDigits>([&](auto digit) STILL_UNROLLED {
          constexpr int kDigit = decltype(digit)::value;
          const __m512i factor = scale_digit<F, kDigit>(scale);
          uint8_t* sub = out + kDigit * kDigitBytes<F> + sub_block * F::kVectors * 64;
          repeat<F::kVectors>([&](auto i) STILL_UNROLLED {
            b_store(sub + 64 * decltype(i)::value, scale_bytes<F>(w.v[decltype(i)::value], factor));
          });
        });
      });
    }
  }
}

// What one row of activations contributes besides its int8: its scale, then regroup_sums' words.
template <class F>
constexpr int kRowWords = ColumnLayout<F>::kWords - ColumnLayout<F>::kScaleAt;

// acc = fma(d * s, f32(dot), acc) and the minimum's or offset's part, as in add_block.
template <class F>
STILL_INLINE Floats add_tile_row(const uint8_t* scales, const int32_t* row, Ints dot, Floats acc) {
  const Floats s = f_broadcast(row), d = f_from_f16(scales + F::kDAt);
  if constexpr (F::kBlock == 32) {
    acc = f_fma(f_mul(d, s), f_from_ints(dot), acc);
    if constexpr (F::kHasMin) acc = f_fma(f_mul(f_from_f16(scales + F::kMAt), s), f_broadcast(row + 1), acc);
    return acc;
  }
  if constexpr (F::kOffset != 0 && TileDigits<F>::kDigits == 1) dot = i_sub(i_zero(), dot);  // Q3_K
  acc = f_fma(f_mul(d, s), f_from_ints(dot), acc);
  if constexpr (F::kHasMin) {
    Ints sum = i_zero();
    repeat<F::kSubs / 2>([&](auto pair) STILL_UNROLLED {
      constexpr int kPair = decltype(pair)::value;
      sum = p_dot(sum, scale_pairs<F>(scales + F::kMinAt + 32 * kPair), i_broadcast(row + 1 + kPair));
    });
    acc = f_fma(f_mul(f_neg(f_from_f16(scales + F::kMAt)), s), f_from_ints(sum), acc);
  }
  return acc;
}

// The unit's eight tiles: those that accumulate, kTileUnits blocks at a time so that the next block's products do not
// wait for the end of this one's, then those that take turns as activations and as weights.
template <class F>
constexpr int kTileUnits = F::kBlock == 32              ? 4
                           : TileDigits<F>::kDigits < 3 ? 2
                                                        : 1;
template <class F>
struct TileNumbers {
  static constexpr int kSums = kTileUnits<F> * TileDigits<F>::kDigits;
  static constexpr int kActivations = kSums, kWeights = kSums + 2, kTurns = 8 - kWeights;
  static_assert(kTurns >= 2);
};

// dots [kUnits][kDigits][16 rows of activations][16 rows of weights] of kUnits blocks. q: the first row's first block.
template <class F, class Tiles, int kUnits>
STILL_INLINE void multiply_tiles(const int8_t* q, int64_t q_stride, const uint8_t* weights, int32_t* dots) {
  using Numbers = TileNumbers<F>;
  constexpr int kTileK = F::kBlock == 32 ? 32 : 64, kDigits = TileDigits<F>::kDigits;
  repeat<kUnits * kDigits>([&](auto sum) STILL_UNROLLED { Tiles::template zero<decltype(sum)::value>(); });
  repeat<kUnits>([&](auto unit) STILL_UNROLLED {
    constexpr int kUnit = decltype(unit)::value;
    repeat<F::kBlock / kTileK>([&](auto step) STILL_UNROLLED {
      constexpr int kStep = kUnit * F::kBlock / kTileK + decltype(step)::value, kAt = decltype(step)::value * kTileK;
      constexpr int kActivations = Numbers::kActivations + kStep % 2;
      Tiles::template load<kActivations>(q + kUnit * F::kBlock + kAt, q_stride);
      repeat<kDigits>([&](auto digit) STILL_UNROLLED {
        constexpr int kDigit = decltype(digit)::value;
        constexpr int kWeights = Numbers::kWeights + (kStep * kDigits + kDigit) % Numbers::kTurns;
        Tiles::template load<kWeights>(
            weights + kUnit * kTileWeightBytes<F> + kDigit * kDigitBytes<F> + kAt * kPanelRows, 64);
        Tiles::template multiply<kUnit * kDigits + kDigit, kActivations, kWeights, TileDigits<F>::kSigned>();
      });
    });
  });
  repeat<kUnits * kDigits>(
      [&](auto sum) STILL_UNROLLED { Tiles::template store<decltype(sum)::value>(dots + decltype(sum)::value * 256); });
}

// The tiles' shapes (Intel SDM vol. 1, 18.3: palette 1).
template <class F>
struct TileConfig {
  alignas(64) uint8_t bytes[64] = {};
  constexpr TileConfig() {
    constexpr int kTileK = F::kBlock == 32 ? 32 : 64;
    bytes[0] = 1;
    for (int tile = 0; tile < 8; ++tile) {
      const bool is_weights = tile >= TileNumbers<F>::kWeights;
      const bool is_activations = !is_weights && tile >= TileNumbers<F>::kActivations;
      bytes[16 + 2 * tile] = static_cast<uint8_t>(is_activations ? kTileK : 64);
      bytes[48 + tile] = static_cast<uint8_t>(is_weights ? kTileK / 4 : 16);
    }
  }
};

// Adds the dots of one block, [kDigits][16 rows of activations][16 rows of weights], to the sums of the 16 rows. words:
// [16][kRowWords]. Missing rows have words of 0: what they add up to is never stored.
template <class F>
STILL_INLINE void add_tile(const uint8_t* scales, const int32_t* words, const int32_t* dots, Floats (&sums)[16]) {
  repeat<16>([&](auto row) STILL_UNROLLED {
    constexpr int kRow = decltype(row)::value;
    Ints dot = _mm512_load_si512(dots + kRow * 16);
    if constexpr (TileDigits<F>::kDigits > 1)
      dot = i_add(dot, i_shift_left<3>(_mm512_load_si512(dots + 256 + kRow * 16)));
    if constexpr (TileDigits<F>::kDigits > 2)
      dot = i_add(dot, i_shift_left<6>(_mm512_load_si512(dots + 512 + kRow * 16)));
    sums[kRow] = add_tile_row<F>(scales, words + kRow * kRowWords<F>, dot, sums[kRow]);
  });
}

// Rows [row, row + n) of activations, n <= kManyRows.
template <class F, class Tiles>
void multiply_many_tiles(const LinearArgs& args, int64_t row, int64_t n) {
  constexpr int64_t kRows = 16, kChunkBlocks = kChunkWeights / F::kBlock;
  static_assert(kManyRows % kRows == 0);
  static_assert(kChunkBlocks * kTileWeightBytes<F> + kRows * kChunkWeights +
                    kManyRows * kChunkBlocks * kRowWords<F> * 4 <=
                kLinearScratchBytes);
  uint8_t* weights = args.scratch;
  int8_t* tail = reinterpret_cast<int8_t*>(weights + kChunkBlocks * kTileWeightBytes<F>);  // the last rows, to 16
  int32_t* row_words = reinterpret_cast<int32_t*>(tail + kRows * kChunkWeights);  // [n / 16][count][16][kRowWords]
  constexpr int kUnits = kTileUnits<F>;
  constexpr int64_t kDots = TileDigits<F>::kDigits * 256;
  alignas(64) int32_t dots[kUnits * kDots];
  const int64_t n_blocks = args.k / F::kBlock;
  for (int64_t block = 0; block < n_blocks; block += kChunkBlocks) {
    const int64_t count = min_of(kChunkBlocks, n_blocks - block);
    const auto words_at = [&](int64_t r, int64_t b) {
      return row_words + ((r / kRows * count + b) * kRows + r % kRows) * kRowWords<F>;
    };
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t b = 0; b < count; ++b) {
        int32_t* words = words_at(r, b);
        __builtin_memcpy(words, args.x.scale + (row + r) * n_blocks + block + b, 4);
        regroup_sums<F>(args.x.sums + ((row + r) * args.k + (block + b) * F::kBlock) / 16, words + 1, 1);
      }
    }
    if (n % kRows != 0) {
      for (int64_t i = 0; i < kRows * kChunkWeights; ++i) tail[i] = 0;
      for (int64_t r = n / kRows * kRows; r < n; ++r)
        __builtin_memcpy(tail + r % kRows * kChunkWeights, args.x.q + (row + r) * args.k + block * F::kBlock,
                         static_cast<uint64_t>(count * F::kBlock));
      for (int64_t r = n; r % kRows != 0; ++r)
        for (int64_t b = 0; b < count; ++b) __builtin_memset(words_at(r, b), 0, kRowWords<F> * 4);
    }
    for (int64_t panel = args.panel_begin; panel < args.panel_end; ++panel) {
      const PanelPart part = panel_part<F>(args, panel, row, block);
      for (int64_t b = 0; b < count; ++b)
        unpack_for_tiles<F>(part.quants + b * F::kQuantBytes, part.scales + b * F::kScaleBytes,
                            weights + b * kTileWeightBytes<F>);
      for (int64_t first = 0; first < n; first += kRows) {
        const int64_t n_rows = min_of(kRows, n - first);
        const bool is_tail = n_rows < kRows;
        const int8_t* q = is_tail ? tail : args.x.q + (row + first) * args.k + block * F::kBlock;
        float* y = part.y + first * args.y_stride;
        // The rows' sums stay in registers from one block of the chunk to the next.
        Floats sums[kRows];
        repeat<16>([&](auto r) STILL_UNROLLED { sums[decltype(r)::value] = f_zero(); });
        if (block != 0)
          repeat<16>([&](auto r) STILL_UNROLLED {
            if (decltype(r)::value < n_rows)
              sums[decltype(r)::value] = f_load_some(y + decltype(r)::value * args.y_stride, part.n_lanes);
          });
        const int64_t q_stride = is_tail ? kChunkWeights : args.k;
        int64_t b = 0;
        for (; b + kUnits <= count; b += kUnits) {
          multiply_tiles<F, Tiles, kUnits>(q + b * F::kBlock, q_stride, weights + b * kTileWeightBytes<F>, dots);
          repeat<kUnits>([&](auto unit) STILL_UNROLLED {
            constexpr int kUnit = decltype(unit)::value;
            add_tile<F>(part.scales + (b + kUnit) * F::kScaleBytes, words_at(first, b + kUnit), dots + kUnit * kDots,
                        sums);
          });
        }
        for (; b < count; ++b) {
          multiply_tiles<F, Tiles, 1>(q + b * F::kBlock, q_stride, weights + b * kTileWeightBytes<F>, dots);
          add_tile<F>(part.scales + b * F::kScaleBytes, words_at(first, b), dots, sums);
        }
        repeat<16>([&](auto r) STILL_UNROLLED {
          if (decltype(r)::value < n_rows)
            f_store_some(y + decltype(r)::value * args.y_stride, sums[decltype(r)::value], part.n_lanes);
        });
      }
    }
  }
}

template <class F, class Tiles>
void linear_tiles(const LinearArgs& args) {
  static constexpr TileConfig<F> kConfig;
  Tiles::configure(kConfig.bytes);
  for (int64_t row = 0; row < args.n_rows; row += kManyRows)
    multiply_many_tiles<F, Tiles>(args, row, min_of(kManyRows, args.n_rows - row));
  Tiles::release();
}

// Few rows would leave most of a tile empty: the level below is faster there.
constexpr int64_t kTileMinRows = 16;
template <class F, class Tiles, PackedFormat kFormat>
void linear_tiles_or_below(const LinearArgs& args) {
  if (args.n_rows >= kTileMinRows) return linear_tiles<F, Tiles>(args);
  avx512_vnni_kernels().linear[static_cast<int>(kFormat)](args);
}

template <class Tiles>
void set_linear_tiles(CpuKernels& table) {
#define STILL_SET_TILES(format)                             \
  table.linear[static_cast<int>(PackedFormat::k##format)] = \
      linear_tiles_or_below<format, Tiles, PackedFormat::k##format>
  STILL_SET_TILES(Q4_0);
  STILL_SET_TILES(Q4_1);
  STILL_SET_TILES(Q5_0);
  STILL_SET_TILES(Q5_1);
  STILL_SET_TILES(Q8_0);
  STILL_SET_TILES(IQ4_NL);
  STILL_SET_TILES(Q2_K);
  STILL_SET_TILES(Q3_K);
  STILL_SET_TILES(Q4_K);
  STILL_SET_TILES(Q5_K);
  STILL_SET_TILES(Q6_K);
#undef STILL_SET_TILES
}

}  // namespace
}  // namespace still
